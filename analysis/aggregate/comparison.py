"""Aggregate scores of each series, and series against one another, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.aggregate.selection import of_series, scopes, series_keys
from analysis.bootstrap import Scores
from analysis.results import SERIES
from analysis.scores import score_matrix, task_order
from analysis.significance import adjust, paired_test
from analysis.statistics import (
    AGGREGATES,
    Interval,
    aggregate,
    difference,
    iqm,
    performance_profile,
    probability_of_improvement,
)
from analysis.statistics import mean as mean_score
from analysis.study import PUBLISHED_KIND
from analysis.style import SeriesKey

OWN, COMMON = "own", "common"
"""Which tasks a row is over: those that the series has, or those that all series of the scope have."""
OTHER = ["other_algorithm", "other_kind", "other_size", "other_task_set"]
"""Columns that name the second series of a pair, as `SERIES` names the first."""


def series_scores(rows: pd.DataFrame, tasks: Sequence[str]) -> dict[SeriesKey, pd.DataFrame]:
    """The rows of each series that have a score on these tasks; series without any are left out."""
    scored = rows[rows["score"].notna() & rows["task"].isin(list(tasks))]
    return {key: of_series(scored, key) for key in series_keys(scored)}


def one_agent(key: SeriesKey) -> bool:
    """Whether a seed of the series is one agent of all its tasks, whose scores rise and fall together."""
    return key[1] == "multi"


def common_tasks(by_series: dict[SeriesKey, pd.DataFrame]) -> list[str]:
    """The tasks that every series has, in reading order."""
    sets = [set(rows["task"]) for rows in by_series.values()]
    return task_order(set.intersection(*sets)) if sets else []


def aggregate_table(rows: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Mean, median, interquartile mean and optimality gap of every series, by budget and set of tasks.

    Args:
        rows: as `selection.scores_at` returns it.
        resamples: of the bootstrap.

    Returns:
        budget (NaN: last evaluation), scope (overall or a suite), basis (`own`: all tasks of the series; `common`: the
        tasks that all series of the scope have, only where they differ), algorithm, kind, size, task_set, tasks,
        shared_tasks (that all series of the scope have), runs (scores that count, one a run and task), runs_short (that
        end before the budget), seeds_min, seeds_max (of a task), step_min, step_max (where scores were taken, on the
        series' own axis), and for each statistic NAME its value NAME, NAME_low, NAME_high: 95% stratified bootstrap,
        NaN where no task has two seeds.
    """
    records = []
    for budget, at_budget in rows.groupby("budget", dropna=False, sort=False):
        for scope, tasks in scopes(rows).items():
            by_series = series_scores(at_budget, tasks)
            shared = common_tasks(by_series)
            for basis, limits in ((OWN, tasks), (COMMON, shared)):
                if basis == COMMON and all(own["task"].nunique() == len(shared) for own in by_series.values()):
                    continue
                for key, own in by_series.items():
                    counted = own[own["task"].isin(limits)]
                    if counted.empty:
                        continue
                    everything = of_series(at_budget[at_budget["task"].isin(list(limits))], key)
                    seeds = counted.groupby("task")["seed"].nunique()
                    record = {
                        "budget": budget,
                        "scope": scope,
                        "basis": basis,
                        **dict(zip(SERIES, key, strict=True)),
                        "tasks": counted["task"].nunique(),
                        "shared_tasks": len(shared),
                        "runs": len(counted),
                        "runs_short": len(everything) - len(counted),
                        "seeds_min": seeds.min(),
                        "seeds_max": seeds.max(),
                        "step_min": counted["step"].min(),
                        "step_max": counted["step"].max(),
                    }
                    drawn = aggregate(score_matrix(counted)[1], resamples=resamples, together=one_agent(key))
                    for name, found in drawn.items():
                        record |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
                    records.append(record)
    statistics = [f"{name}{end}" for name in AGGREGATES for end in ("", "_low", "_high")]
    counts = ["tasks", "shared_tasks", "runs", "runs_short", "seeds_min", "seeds_max", "step_min", "step_max"]
    columns = ["budget", "scope", "basis", *SERIES, *counts, *statistics]
    return pd.DataFrame(records, columns=pd.Index(columns)).astype({"size": "Int64"})


def profiles(rows: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Performance profiles of every series: share of runs above each normalised score, each task counting the same.

    Args:
        rows: one budget's rows of `selection.scores_at`.
        resamples: of the bootstrap.

    Returns:
        scope, algorithm, kind, size, task_set, tasks, threshold (0 to 100), share (0 to 1), low, high (pointwise).
    """
    thresholds = np.linspace(0.0, 100.0, 101)
    parts = []
    for scope, tasks in scopes(rows).items():
        for key, own in series_scores(rows, tasks).items():
            part = performance_profile(score_matrix(own)[1], thresholds, resamples=resamples, together=one_agent(key))
            part.insert(0, "tasks", own["task"].nunique())
            for place, (name, value) in enumerate(zip(["scope", *SERIES], [scope, *key], strict=True)):
                part.insert(place, name, value)
            parts.append(part.astype({"size": "Int64"}))
    columns = ["scope", *SERIES, "tasks", "threshold", "share", "low", "high"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=pd.Index(columns))


def pairs(keys: Sequence[SeriesKey]) -> list[tuple[SeriesKey, SeriesKey]]:
    """Which series are held against which: each of ours against each published one.

    Where only one side is there: the first of them (ours: the smallest single-task series; published: TD-MPC2) against
    each other.

    Args:
        keys: series, in the order of `selection.series_keys`.
    """
    ours = [key for key in keys if key[1] != PUBLISHED_KIND]
    published = [key for key in keys if key[1] == PUBLISHED_KIND]
    if ours and published:
        return [(mine, theirs) for mine in ours for theirs in published]
    return [(keys[0], other) for other in keys[1:]]


def improvements(rows: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """How probably a run of one series beats one of another, and a paired test over tasks.

    Args:
        rows: as `selection.scores_at` returns it.
        resamples: of the bootstrap.

    Returns:
        budget, scope, algorithm ... task_set (the first series), other_algorithm ... other_task_set (the second),
        tasks (that both have), probability, probability_low, probability_high (0 to 1), difference (mean over tasks of
        first minus second), difference_low, difference_high (95%, bootstrap over tasks), p (sign-flip permutation test
        of no difference over tasks; NaN below two tasks), p_holm (corrected for the pairs of this budget and scope),
        exact (whether all sign flips were counted).
    """
    records: list[dict[str, object]] = []
    for budget, at_budget in rows.groupby("budget", dropna=False, sort=False):
        for scope, tasks in scopes(rows).items():
            by_series = series_scores(at_budget, tasks)
            found = []
            for first, second in pairs(list(by_series)):
                shared = common_tasks({first: by_series[first], second: by_series[second]})
                if not shared:
                    continue
                x, y = _matrices(by_series, (first, second), shared)
                together = (one_agent(first), one_agent(second))
                better = probability_of_improvement(x, y, resamples=resamples, together=together)
                test = paired_test(
                    [float(mean_score(a[None])) - float(mean_score(b[None])) for a, b in zip(x, y, strict=True)]
                )
                found.append(
                    {
                        "budget": budget,
                        "scope": scope,
                        **dict(zip(SERIES, first, strict=True)),
                        **dict(zip(OTHER, second, strict=True)),
                        "tasks": len(shared),
                        "probability": better.value,
                        "probability_low": better.low,
                        "probability_high": better.high,
                        "difference": test.mean,
                        "difference_low": test.low,
                        "difference_high": test.high,
                        "p": test.p if test.n > 1 else np.nan,  # one task's sign says nothing
                        "exact": test.exact,
                    }
                )
            for record, p in zip(found, adjust([record["p"] for record in found]), strict=True):
                records.append({**record, "p_holm": p})
    probabilities = [f"probability{end}" for end in ("", "_low", "_high")]
    differences = [f"difference{end}" for end in ("", "_low", "_high")]
    columns = ["budget", "scope", *SERIES, *OTHER, "tasks", *probabilities, *differences, "p", "p_holm", "exact"]
    return pd.DataFrame(records, columns=pd.Index(columns)).astype({"size": "Int64", "other_size": "Int64"})


def _matrices(
    by_series: dict[SeriesKey, pd.DataFrame], keys: Sequence[SeriesKey], tasks: Sequence[str]
) -> list[Scores]:
    return [score_matrix(by_series[key], tasks)[1] for key in keys]


class Standing(NamedTuple):
    """One series in a ranking, over the same tasks as the others."""

    key: SeriesKey
    """The series."""
    runs: int
    """Scores that count, one a run and task."""
    iqm: Interval
    """Interquartile mean of normalised scores with its 95% interval."""
    mean: Interval
    """Mean of normalised scores with its 95% interval."""


class Ranking(NamedTuple):
    """Series ranked by interquartile mean over the tasks that all of them have."""

    tasks: tuple[str, ...]
    """The tasks of the ranking."""
    standings: tuple[Standing, ...]
    """Best first."""
    left_out: tuple[tuple[SeriesKey, int], ...]
    """Series with too few of the tasks to be ranked with the others, and how many they have."""
    margin: Interval | None
    """Best minus second, of interquartile means over these tasks, with its 95% interval; None where there is one."""


def rank(rows: pd.DataFrame, resamples: int = 2000) -> Ranking:
    """Rank the series over the tasks that they share.

    The yardstick is the series with the most tasks (one of ours where there are any). Series with less than four fifths
    of its tasks are left out: they would shrink the tasks that all have.

    Args:
        rows: one budget's rows of `selection.scores_at`.
        resamples: of the bootstrap.
    """
    by_series = series_scores(rows, task_order(rows["task"]))
    ours = [key for key in by_series if key[1] != PUBLISHED_KIND] or list(by_series)
    widest = max((set(by_series[key]["task"]) for key in ours), key=len, default=set())
    overlap = {key: len(widest & set(own["task"])) for key, own in by_series.items()}
    kept = {key: own for key, own in by_series.items() if 5 * overlap[key] >= 4 * len(widest)}
    left_out = tuple((key, overlap[key]) for key in by_series if key not in kept)
    tasks = common_tasks(kept)
    if not tasks and kept:  # each has most of them, yet no task is shared by all: the widest alone stands for itself
        first = max(ours, key=lambda key: overlap[key])
        left_out = tuple((key, overlap[key]) for key in by_series if key != first)
        kept = {first: by_series[first]}
        tasks = common_tasks(kept)
    standings = []
    for key in kept:
        scores = score_matrix(kept[key], tasks)[1]
        found = aggregate(scores, names=("iqm", "mean"), resamples=resamples, together=one_agent(key))
        standings.append(Standing(key, int(np.isfinite(scores).sum()), found["iqm"], found["mean"]))
    standings.sort(key=lambda standing: -standing.iqm.value)
    margin = None
    if len(standings) > 1:
        first, second = (standing.key for standing in standings[:2])
        x, y = _matrices(kept, (first, second), tasks)
        margin = difference(x, y, iqm, resamples=resamples, together=(one_agent(first), one_agent(second)))
    return Ranking(tuple(tasks), tuple(standings), left_out, margin)


def task_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Each series' score on each task.

    Args:
        rows: one budget's rows of `selection.scores_at`.

    Returns:
        task, algorithm, kind, size, task_set, runs, mean, min, max (normalised, over runs), step_min, step_max; in
        reading order of tasks, series as `selection.series_keys` orders them.
    """
    scored = rows[rows["score"].notna()]
    grouped = scored.groupby(["task", *SERIES], dropna=False, sort=False)
    found = grouped.agg(
        runs=("score", "size"), mean=("score", "mean"), min=("score", "min"), max=("score", "max"),
        step_min=("step", "min"), step_max=("step", "max"),
    ).reset_index()  # fmt: skip
    order = {task: place for place, task in enumerate(task_order(found["task"]))}
    return (
        found.assign(order=found["task"].map(order))
        .sort_values(["order", *SERIES], ignore_index=True)
        .drop(columns="order")
    )
