"""How fast scores rise: learning curves of many tasks together, areas under curves, steps to reach a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.aggregate.selection import of_series, scopes, series_keys
from analysis.results import SERIES
from analysis.scores import online, score_matrix, scored
from analysis.statistics import area_under_curve, interval, steps_to_threshold
from analysis.statistics import mean as mean_score

THRESHOLDS = (50, 90)
"""Normalised scores whose first crossing is told."""
MOST_POINTS = 30
"""Points of a curve of many tasks: more are not told apart on a panel, and each costs a bootstrap."""
_RUN = ["task", *SERIES, "seed", "run"]
_BAND_RESAMPLES = 300
"""Enough for a band that is looked at; the intervals of tables take all that were asked for."""


def domain_curves(table: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Normalised score over environment steps, mean over the tasks of a scope, for every series that acts.

    A curve is over the same tasks and runs from end to end. It stops no later than the first of its tasks, and there
    where most is kept (steps times runs that reach them), so that neither a run that failed early cuts all others nor a
    few long ones push the rest out; runs that end before are left out and counted. It begins where the last of its runs
    begins. Between two evaluations a run's score is interpolated linearly.

    Args:
        table: as `selection.select` returns it; agents that learned from data alone are left out.
        resamples: of the bootstrap; at most 300 are drawn.

    Returns:
        scope, algorithm, kind, size, task_set, env_steps, mean (over tasks of the mean over seeds), low, high (95%,
        seeds drawn anew within tasks; NaN where no task has two), tasks, runs, runs_short (left out), first_to_end (the
        task whose curve ends first).
    """
    table = online(scored(table))
    parts = []
    for scope, tasks in scopes(table).items():
        inside = table[table["task"].isin(tasks)]
        for key in series_keys(inside):
            part = _mean_curve(of_series(inside, key), min(resamples, _BAND_RESAMPLES))
            for place, (name, value) in enumerate(zip(["scope", *SERIES], [scope, *key], strict=True)):
                part.insert(place, name, value)
            parts.append(part.astype({"size": "Int64"}))
    columns = ["scope", *SERIES, "env_steps", "mean", "low", "high", "tasks", "runs", "runs_short", "first_to_end"]
    found = [part for part in parts if len(part)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=pd.Index(columns))


def _mean_curve(rows: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """One series' curve: env_steps and the columns after it in `domain_curves`; empty where its tasks never overlap."""
    runs = [(str(key["task"]), points) for key, points in _run_points(rows)]
    ends: dict[str, float] = {}
    for task, (steps, _) in runs:
        ends[task] = max(ends.get(task, 0.0), float(steps[-1]))
    first_to_end = min(ends, key=lambda task: ends[task])
    last = np.array([points[0][-1] for _, points in runs])
    end = max(last[last <= ends[first_to_end]], key=lambda step: (step * np.sum(last >= step), step))
    reaching = [(task, points) for task, points in runs if points[0][-1] >= end]
    begin = max(points[0][0] for _, points in reaching)
    every = np.unique(np.concatenate([steps for _, (steps, _) in reaching]))
    grid = every[(every >= begin) & (every <= end)]
    if len(grid) > MOST_POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, MOST_POINTS).round().astype(int)]
    names = list(ends)
    counts = dict.fromkeys(names, 0)
    most = max(sum(task == name for task, _ in reaching) for name in names)
    scores = np.full((len(grid), len(names), most), np.nan)
    for task, (steps, values) in reaching:
        scores[:, names.index(task), counts[task]] = np.interp(grid, steps, values)
        counts[task] += 1
    bands = [interval(at_step, mean_score, resamples=resamples) for at_step in scores]
    curve = pd.DataFrame(bands, columns=pd.Index(["mean", "low", "high"]))
    curve.insert(0, "env_steps", grid)
    return curve.assign(
        tasks=len(names), runs=len(reaching), runs_short=len(runs) - len(reaching), first_to_end=first_to_end
    )


def _run_points(rows: pd.DataFrame) -> list[tuple[dict[str, Any], tuple[np.ndarray, np.ndarray]]]:
    """Each run's identity (`_RUN`), and its environment steps, rising, and normalised scores."""
    # a published file is one run name for all of its seeds; grouping thousands of runs one by one would be slow
    if rows.empty:
        return []
    ordered = rows.assign(number=rows.groupby(_RUN, dropna=False, sort=True).ngroup())
    ordered = ordered.sort_values(["number", "env_steps"], kind="stable")
    begins = np.flatnonzero(np.diff(ordered["number"].to_numpy(), prepend=-1))
    steps = np.split(ordered["env_steps"].to_numpy(float), begins[1:])
    scores = np.split(ordered["score"].to_numpy(float), begins[1:])
    identities = ordered.iloc[begins][_RUN].to_dict("records")
    named = [{str(name): value for name, value in key.items()} for key in identities]
    return list(zip(named, zip(steps, scores, strict=True), strict=True))


def run_progress(table: pd.DataFrame, budget: float, thresholds: Sequence[float] = THRESHOLDS) -> pd.DataFrame:
    """How fast each run's score rises.

    Args:
        table: as `selection.select` returns it; agents that learned from data alone are left out.
        budget: environment steps that areas are taken over.
        thresholds: normalised scores.

    Returns:
        One row a run and task: task, algorithm, kind, size, task_set, seed, run, area (mean normalised score over the
        steps from the first evaluation to the budget; NaN where the run ends before it), steps_to_THRESHOLD
        (environment steps at which the score is first there, interpolated linearly; NaN if it never is).
    """
    records = []
    for key, (steps, scores) in _run_points(online(scored(table))):
        record = key | {"area": area_under_curve(steps, scores, budget)}
        record |= {f"steps_to_{level:g}": steps_to_threshold(steps, scores, level) for level in thresholds}
        records.append(record)
    columns = [*_RUN, "area", *(f"steps_to_{level:g}" for level in thresholds)]
    return pd.DataFrame(records, columns=pd.Index(columns)).astype({"size": "Int64"})


def efficiency_table(
    runs: pd.DataFrame, thresholds: Sequence[float] = THRESHOLDS, resamples: int = 2000
) -> pd.DataFrame:
    """Sample efficiency of every series.

    Args:
        runs: as `run_progress` returns it, of the same thresholds.
        thresholds: normalised scores.
        resamples: of the bootstrap.

    Returns:
        scope, algorithm, kind, size, task_set, tasks, runs, area_runs (that reach the budget), area, area_low,
        area_high (mean over tasks of the mean over seeds, 95% stratified bootstrap), and for each threshold reach_T
        (share of all runs that ever get there, 0 to 1) and steps_to_T (median over all runs, those that never do
        counting as beyond every other; NaN where half of them never do).
    """
    records = []
    for scope, tasks in scopes(runs).items():
        inside = runs[runs["task"].isin(tasks)]
        for key in series_keys(inside):
            own = of_series(inside, key)
            area = interval(score_matrix(own.assign(score=own["area"]))[1], mean_score, resamples=resamples)
            record = {
                "scope": scope,
                **dict(zip(SERIES, key, strict=True)),
                "tasks": own["task"].nunique(),
                "runs": len(own),
                "area_runs": int(own["area"].notna().sum()),
                "area": area.value,
                "area_low": area.low,
                "area_high": area.high,
            }
            for level in thresholds:
                steps = own[f"steps_to_{level:g}"].to_numpy(float)
                median = float(np.median(np.where(np.isnan(steps), np.inf, steps)))
                record[f"reach_{level:g}"] = float(np.mean(~np.isnan(steps)))
                record[f"steps_to_{level:g}"] = median if np.isfinite(median) else np.nan
            records.append(record)
    first = ["scope", *SERIES, "tasks", "runs", "area_runs", "area", "area_low", "area_high"]
    columns = [*first, *(f"{name}_{level:g}" for level in thresholds for name in ("reach", "steps_to"))]
    return pd.DataFrame(records, columns=pd.Index(columns)).astype({"size": "Int64"})
