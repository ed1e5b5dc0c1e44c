"""What a report is made from: any number of sweeps and published curves, as one tidy table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.reference import Reference, load_reference
from analysis.results import RUN_COLUMNS, SERIES, TABLE_COLUMNS, SweepResults, load_sweep, steps_on_axis
from analysis.tables import counted
from tdmpc2.errors import UserError, require
from tdmpc2.tasks import OWN, TASKS, expand_tasks

PUBLISHED_KIND = "published"
"""`kind` of published curves in a tidy table."""


@dataclass(frozen=True)
class Study:
    """Sweeps and published curves, restricted to some tasks and seeds."""

    name: str
    """For titles, e.g. `quickstart`, `quickstart + mine` or `published curves`."""
    sweeps: tuple[SweepResults, ...]
    """The sweeps as they were loaded, not restricted. Where two folders have the same name, so that it does not tell
    them apart, more of their path is in it: `mine/quickstart`."""
    reference: Reference | None
    """Published curves as they were loaded, not restricted."""
    table: pd.DataFrame
    """Evaluations of the sweeps and, with kind `published`, of the published curves: columns `results.TABLE_COLUMNS`,
    see there, and `sweep` ("" for published ones)."""
    runs: pd.DataFrame
    """The sweeps' runs, see `SweepResults.runs`, and `sweep`, `folder` (the run's, as text). Where there are several
    sweeps, `run` is SWEEP/RUN, here and in the table."""
    tasks: tuple[str, ...]
    """The tasks that were asked for, in the registry's order; all 104 where nothing was."""
    problems: tuple[str, ...]
    """What could not be taken as it stands: faults of a sweep's plan, of published files, seeds that two runs share."""

    @property
    def ours(self) -> pd.DataFrame:
        """The rows of the table that the sweeps' runs made."""
        return self.table[self.table["kind"] != PUBLISHED_KIND]

    @property
    def published(self) -> pd.DataFrame:
        """The rows of the table that were published."""
        return self.table[self.table["kind"] == PUBLISHED_KIND]


def load_study(
    results: Sequence[Path | str] = (),
    reference: Path | str | None = None,
    tasks: str | Sequence[str] = "all",
    seeds: Sequence[int] | None = None,
) -> Study:
    """Read sweeps and published curves into one tidy table.

    Args:
        results: folders of sweeps, `results/NAME`; none for published curves alone.
        reference: folder of published curves, ALGORITHM/TASK.csv.
        tasks: tasks or task sets to restrict the study to.
        seeds: seeds to restrict it to; None: all. Runs whose settings cannot be read, so that their task or seed is
            not known, stay in the table of runs.

    Raises:
        UserError: there is nothing to read (neither a sweep nor published curves), a folder cannot be read, a task is
            unknown, a sweep is named twice, or nothing is left of tasks and seeds.
    """
    folders = [Path(folder) for folder in results]
    require(bool(folders) or reference is not None, "nothing to report on: neither a sweep nor published curves")
    repeated = {str(folder) for folder in folders if sum(folder.resolve() == f.resolve() for f in folders) > 1}
    require(not repeated, f"results: named twice: {', '.join(sorted(repeated))}")
    sweeps = [replace(load_sweep(f), name=name) for f, name in zip(folders, _names(folders), strict=True)]
    named = tuple(tasks.split(",")) if isinstance(tasks, str) else tuple(tasks)
    asked = set(expand_tasks(named, "tasks"))  # now that the sweeps' own tasks are known
    if "all" in named:
        asked |= {task.name for task in TASKS.values() if task.domain == OWN}
    published = load_reference(reference) if reference is not None else None

    problems = [f"{sweep.name}: {note}" for sweep in sweeps for note in sweep.notes]
    tables = [_with_sweep(sweep, sweep.table, len(sweeps) > 1) for sweep in sweeps]
    runs = [_with_sweep(sweep, _with_folders(sweep), len(sweeps) > 1) for sweep in sweeps]
    ours = pd.concat(tables, ignore_index=True) if tables else _no_rows(TABLE_COLUMNS)
    ours, shared = _one_run_a_seed(ours)
    problems += shared
    if published is not None:
        problems += published.problems
        theirs = published.table.assign(sweep="")
        ours = pd.concat([ours, theirs], ignore_index=True) if len(ours) else theirs
    all_runs = pd.concat(runs, ignore_index=True) if runs else _no_rows([*RUN_COLUMNS, "folder"])

    table = ours[ours["task"].isin(asked)]
    concerned = [not task or not asked.isdisjoint(_tasks_of(task)) for task in all_runs["task"]]
    all_runs = all_runs[np.array(concerned, dtype=bool)]
    if seeds is not None:
        table = table[table["seed"].isin(list(seeds))]
        all_runs = all_runs[all_runs["seed"].isin(list(seeds)) | all_runs["seed"].isna()]
    if table.empty and all_runs.empty:
        raise UserError("tasks and seeds: nothing that was run or published is among them")
    name = " + ".join(sweep.name for sweep in sweeps) or "published curves"
    return Study(
        name,
        tuple(sweeps),
        published,
        table.reset_index(drop=True),
        all_runs.reset_index(drop=True),
        tuple(task for task in TASKS if task in asked),
        tuple(problems),
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The last name of each folder or, of folders that share it, as much of the path as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    names = [own[-1] for own in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        shared = Counter(names)
        names = ["/".join(own[-depth:]) if shared[name] > 1 else name for own, name in zip(parts, names, strict=True)]
    return names


def _with_sweep(sweep: SweepResults, rows: pd.DataFrame, several: bool) -> pd.DataFrame:
    runs = sweep.name + "/" + rows["run"].astype(str) if several else rows["run"]
    return rows.assign(run=runs, sweep=sweep.name)


def _with_folders(sweep: SweepResults) -> pd.DataFrame:
    return sweep.runs.assign(folder=[str(sweep.folder / "runs" / name) for name in sweep.runs["run"]])


def _no_rows(columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype=object) for name in [*columns, "sweep"]})


def _one_run_a_seed(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Where several runs are of one task, series and seed, the one that got furthest counts; the others are named."""
    keys = ["task", *SERIES, "seed"]
    runs = table.assign(step=steps_on_axis(table)).groupby([*keys, "run"], dropna=False)["step"].max().reset_index()
    order = runs.sort_values("step", kind="stable")
    spare = order[order.duplicated(keys, keep="last")]
    if spare.empty:
        return table, []
    dropped = pd.MultiIndex.from_frame(spare[["task", "run"]])
    kept = table[~pd.MultiIndex.from_frame(table[["task", "run"]]).isin(dropped)]
    names = sorted(set(spare["run"]))
    told = f"same task, model and seed as another run, which got as far or further: {', '.join(names[:6])}"
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return kept, [f"{counted(len(names), 'run')} not counted, {told}{more}"]


@cache
def _tasks_of(settings: str) -> tuple[str, ...]:
    return expand_tasks(settings)
