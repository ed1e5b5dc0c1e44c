"""Which runs differ in their model's size alone, and what they scored and cost: a series of sizes on common tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.results import SERIES
from analysis.runs import name_task_sets
from analysis.scaling.parameters import count_parameters
from analysis.scores import groups, run_scores, score_matrix, task_order
from analysis.study import Study
from analysis.style import series_name
from analysis.tables import counted
from tdmpc2.errors import unknown_name

KINDS = ("single", "multi", "offline")
"""Kinds of runs that can be compared over sizes; a finetuned agent's size is its multi-task parent's."""
_KIND_WORDS = {"single": "single-task", "multi": "multi-task", "offline": "offline"}
_COST_COLUMNS = ["updates", "hours", "device", "hardware"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SizeSeries:
    """Models of several sizes, alike in all else, on the tasks that each of them has a score for."""

    algorithm: str
    """As in the table, e.g. `tdmpc2`, `tdmpc2-pixels`."""
    kind: str
    """One of `KINDS`."""
    task_set: str
    """What multi-task agents learned together, e.g. `mt30`; for other kinds, a name of the common tasks."""
    tasks: tuple[str, ...]
    """The common tasks, in reading order; there may be none."""
    left_out: tuple[str, ...]
    """Tasks that only some of the sizes have a score for."""
    uneven: tuple[str, ...]
    """Common tasks on which the sizes were evaluated last after different numbers of steps or updates."""
    sizes: tuple[int, ...]
    """Labels of the sizes, in millions of parameters, rising."""
    parameters: FloatArray
    """(sizes,) millions of learned parameters of one agent; their mean over tasks where each task has its own agent."""
    nominal: tuple[int, ...]
    """Sizes whose label stands in, because no agent's parameters could be counted."""
    uncounted: tuple[str, ...]
    """Tasks whose own agents are not in the mean of a size's parameters, because they could not be counted."""
    scores: FloatArray
    """(sizes, tasks, seeds) normalised scores, 0 to 100, NaN where a seed is missing."""
    costs: pd.DataFrame
    """One row a size: size; updates, hours: of one seed of all common tasks together (NaN where a run did not record
    them); device and hardware: the distinct ones, joined by commas."""

    @property
    def name(self) -> str:
        """For people, e.g. `TD-MPC2 multi-task (mt30)`."""
        base = series_name(self.algorithm, "single", None)
        return f"{base} {_KIND_WORDS[self.kind]} ({self.task_set})"

    @property
    def slug(self) -> str:
        """For file names, e.g. `tdmpc2-multi-mt30`."""
        words = "".join(c if c.isalnum() else " " for c in f"{self.algorithm} {self.kind} {self.task_set}")
        return "-".join(words.split())

    @property
    def comparable(self) -> bool:
        """Whether there is something to compare: two sizes or more, and a common task."""
        return len(self.sizes) > 1 and len(self.tasks) > 0


def size_series(study: Study, kinds: Sequence[str] = ("single", "multi")) -> list[SizeSeries]:
    """The series of sizes of a study's own runs, also those of one size.

    Scores are of each run's last evaluation. A seed that ended before another one of its task and size does not count.

    Args:
        study: the loaded results.
        kinds: which kinds of runs, of `KINDS`.

    Returns:
        A series for each algorithm and kind, and for each task set of multi-task agents; none without an evaluation.

    Raises:
        UserError: an unknown kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind", str(kind), KINDS, "kinds")
    rows = run_scores(study.ours)
    rows = rows[rows["kind"].isin(list(kinds)) & rows["score"].notna()]
    if rows.empty:
        return []
    furthest = rows.groupby(["task", *SERIES], dropna=False)["step"].transform("max")
    rows = rows[rows["step"] == furthest]
    folders = study.runs.drop_duplicates("run").set_index("run")
    counts = count_parameters(folders.loc[_one_run_a_model(rows), "folder"])
    updates = study.ours.groupby("run")["updates"].max()
    facts = folders[["folder", "seconds", "device", "hardware"]].assign(updates=updates)
    rows = rows.join(facts, on="run")
    found = [_one_series(key, part, counts) for key, part in groups(rows, ["algorithm", "kind", "task_set"])]
    return sorted(found, key=lambda series: (KINDS.index(series.kind), series.algorithm, len(series.tasks)))


def _one_run_a_model(rows: pd.DataFrame) -> list[str]:
    """One run of each task and series: seeds do not change the model."""
    return list(rows.drop_duplicates(["task", *SERIES])["run"].drop_duplicates())


def _one_series(key: tuple[str, str, str], rows: pd.DataFrame, counts: Mapping[str, int | None]) -> SizeSeries:
    algorithm, kind, task_set = key
    sizes = tuple(sorted(int(size) for size in rows["size"].unique()))
    per_task = rows.groupby("task")["size"].nunique()
    common = task_order(per_task.index[per_task == len(sizes)])
    left_out = task_order(per_task.index[per_task < len(sizes)])
    rows = rows[rows["task"].isin(common)]
    steps = rows.groupby("task")["step"].nunique()

    matrices = [score_matrix(rows[rows["size"] == size], common)[1] for size in sizes]
    seeds = max(matrix.shape[1] for matrix in matrices)
    scores = np.full((len(sizes), len(common), seeds), np.nan)
    for place, matrix in enumerate(matrices):
        scores[place, :, : matrix.shape[1]] = matrix

    models = rows.drop_duplicates(["task", "size"])
    counts_known = models["folder"].map(counts).astype(float)
    parameters = (counts_known / 1e6).groupby(models["size"]).mean().reindex(list(sizes))
    nominal = tuple(size for size in sizes if np.isnan(parameters[size])) if common else ()
    partly = counts_known.isna() & ~models["size"].isin(nominal)
    return SizeSeries(
        algorithm,
        kind,
        task_set if kind == "multi" else _name_tasks(tuple(common)),
        tuple(common),
        tuple(left_out),
        tuple(task_order(steps.index[steps > 1])),
        sizes,
        np.asarray(parameters.fillna(parameters.index.to_series().astype(float)), dtype=np.float64),
        nominal,
        tuple(task_order(models.loc[partly, "task"])),
        scores,
        _costs(rows, sizes),
    )


def _name_tasks(tasks: tuple[str, ...]) -> str:
    """A name of tasks that each have their own agent: that of a task set, else their number."""
    name = name_task_sets([tasks])[tasks]
    return counted(len(tasks), "task") if name in ("all", "1 task") or not tasks else name


def _costs(rows: pd.DataFrame, sizes: Sequence[int]) -> pd.DataFrame:
    """What one seed of all tasks cost: a multi-task run counts once, single-task runs are summed over tasks."""
    runs = rows.drop_duplicates("run").assign(hours=lambda run: run["seconds"].astype(float) / 3600)
    agent = runs["task"].where(runs["kind"] != "multi", "")  # its seeds are averaged, and other tasks' agents added
    spent = runs[["updates", "hours"]].astype(float)
    per_agent = spent.groupby([runs["size"], agent]).mean().where(spent.notna().groupby([runs["size"], agent]).all())
    totals = per_agent.groupby("size").sum().where(per_agent.notna().groupby("size").all())
    places = runs.groupby("size")[["device", "hardware"]].agg(_distinct)
    table = totals.join(places).reindex(list(sizes)).rename_axis("size").reset_index()
    return table.astype({"updates": float, "hours": float})[["size", *_COST_COLUMNS]]


def _distinct(names: pd.Series) -> str:
    return ", ".join(sorted(set(names.astype(str)) - {""}))
