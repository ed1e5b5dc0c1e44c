"""Which replay buffers the multi-task agents learned from, and at which step of which single-task run each ended.

A run that learns from a data set keeps a copy of its manifest, `dataset.json`: the stores, and how much each held.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
import pandas as pd

from analysis.results import is_offline
from tdmpc2.data.dataset import Dataset, StoreRecord
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASKS, expand_tasks

BUFFER_COLUMNS = ["run", "task", "source_run", "store", "source_seed", "rows", "share", "env_steps"]
"""Columns of `read_buffers`."""


def read_buffers(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The replay buffers behind every run that learned from a data set, as the manifests in the run folders say.

    Args:
        runs: table of runs with their folders (`Study.runs`).

    Returns:
        buffers: one row a run and store: run, task, source_run (the single-task run among `runs` that wrote it, ""
            where none of them did or it cannot be told), store (its path in the manifest), source_seed (missing where
            it is not known), rows, share (of the rows of the run's tasks, 0 to 1), env_steps (environment steps of the
            run that wrote it when the data set was built).
        problems: the runs whose manifest is missing or damaged, with the reason.
    """
    singles = runs[runs["kind"] == "single"]
    records, problems = [], []
    for run in runs[is_offline(runs)].to_dict("records"):
        folder = Path(str(run.get("folder", "")))
        if not folder.is_dir():
            continue  # the run has not begun: the table of runs says so
        try:
            dataset = Dataset.read(folder)
        except UserError as error:
            problems.append(f"{run['run']}: what it learned from is not recorded ({error})")
            continue
        learned = set(expand_tasks(str(run["task"]))) if run["task"] else set()
        stores = [store for store in dataset.stores if store.task in learned]
        total = sum(store.rows for store in stores)
        records += [
            {
                "run": run["run"],
                "task": store.task,
                "source_run": _source_run(store, dataset.store_folder(store).parent, str(run["sweep"]), singles),
                "store": store.path,
                "source_seed": store.seed,
                "rows": store.rows,
                "share": store.rows / total,
                "env_steps": steps_taken(store),
            }
            for store in stores
        ]
    table = pd.DataFrame(records, columns=pd.Index(BUFFER_COLUMNS))
    return table.astype({"source_seed": "Int64", "rows": "Int64", "env_steps": "Int64", "share": float}), problems


def steps_taken(store: StoreRecord) -> int:
    """Environment steps that the run behind a store had taken when the data set was built.

    An episode of T agent steps has T + 1 rows. A store that is full forgets its oldest episodes, so those ever written
    are reckoned at the mean length of those it holds; where nothing is forgotten yet, the number is exact.
    """
    agent_steps = store.rows_written * store.transitions / store.rows
    return round(agent_steps * TASKS[store.task].action_repeat)


def _source_run(store: StoreRecord, folder: Path, sweep: str, singles: pd.DataFrame) -> str:
    """The run that wrote a store: by its folder, else by the folder's name, else (a copy) by task and seed."""
    own = singles[singles["task"] == store.task]
    if store.seed is not None:
        own = own[own["seed"] == store.seed]
    folders = [Path(path) for path in own["folder"]]
    at_path = own[np.array([path.resolve() == folder.resolve() for path in folders], dtype=bool)]
    if len(at_path):
        return str(at_path["run"].iloc[0])
    name = PurePath(store.path).parent.name
    named = own[np.array([path.name == name for path in folders], dtype=bool)]
    beside = named[named["sweep"] == sweep]
    if len(beside) or len(named):
        return _only(beside if len(beside) else named)
    is_copy = not PurePath(store.path).is_absolute() and PurePath(store.path).name != "replay"
    return _only(own) if is_copy else ""


def _only(runs: pd.DataFrame) -> str:
    """The name of the run where there is just one, else ""."""
    return str(runs["run"].iloc[0]) if len(runs) == 1 else ""


def buffer_steps(buffers: pd.DataFrame, runs: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Where the buffers ended that some runs learned from, in environment steps.

    Args:
        buffers: as `read_buffers` returns it.
        runs: runs that learned from data sets, of one series.

    Returns:
        by_run: step by single-task run, for the buffers whose run is known; the largest where data sets differ.
        by_task: the largest step by task, of all buffers.
    """
    own = buffers[buffers["run"].isin(list(runs))]
    known = own[own["source_run"] != ""]
    by_run = known.groupby("source_run")["env_steps"].max()
    by_task = own.groupby("task")["env_steps"].max()
    return (
        {str(name): float(step) for name, step in by_run.items()},
        {str(name): float(step) for name, step in by_task.items()},
    )


def task_shares(buffers: pd.DataFrame, runs: Sequence[str]) -> pd.DataFrame:
    """Rows and share (0 to 1) of each task in the data that some runs learned from, means over the runs; by task."""
    own = buffers[buffers["run"].isin(list(runs))]
    per_run = own.groupby(["run", "task"])[["rows", "share"]].sum().astype(float)
    return per_run.groupby("task").mean()
