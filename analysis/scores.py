"""Small pure functions from tidy tables to curves and final scores.

Steps are environment steps, and updates for agents that learned from data alone (see `results.SweepResults`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.results import SERIES, is_offline, registry_table, steps_on_axis
from analysis.runs import axis_of
from tdmpc2.tasks import OWN, TASKS, expand_tasks

FINAL_COLUMNS = [
    "suite", "domain", "task", "metric", *SERIES, "seeds_planned", "seeds", "episodes", "env_steps", "updates", "mean",
    "std", "min", "max", "low", "high", "score", "random_return",
]  # fmt: skip
"""Columns of `final_scores` before the note and those of published curves."""
STATISTICS = ("seeds", "mean", "std", "min", "max", "low", "high")
"""Columns of `seed_statistics`."""
PUBLISHED = "published_"
"""Prefix of the columns of published values in `final_scores`."""
MIN_SEEDS_FOR_INTERVAL = 3
"""With fewer seeds an interval would be pretended: the seeds themselves are shown instead."""


def groups(table: pd.DataFrame, keys: Sequence[str] = SERIES) -> list[tuple[Any, pd.DataFrame]]:
    """The groups of a table by these columns, in order; a missing part of a key (a published curve's size) is None."""
    grouped = table.groupby(list(keys), dropna=False, sort=True)
    return [(tuple(None if pd.isna(part) else part for part in _as_tuple(key)), part) for key, part in grouped]


def _as_tuple(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def primary(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a tidy table whose metric is the one the task is scored by."""
    metrics = {task: TASKS[task].metric for task in table["task"].unique()}
    return table[(table["metric"] == table["task"].map(metrics)) & table["value"].notna()]


def scored(table: pd.DataFrame) -> pd.DataFrame:
    """The rows among `primary` that have a normalised score: not those of own tasks without a score range."""
    return table[table["score"].notna()]


def curves(table: pd.DataFrame, grid: Sequence[int] | None = None) -> pd.DataFrame:
    """Learning curves aggregated over seeds, one row a task, metric, series and step.

    A seed without an evaluation at a step of the grid is interpolated linearly between its own evaluations, never
    beyond its last one: there it no longer counts, and `seeds` falls.

    Args:
        table: tidy table of evaluations (`SweepResults.table` or `Reference.table`).
        grid: places on the series' own axis to aggregate at; default: for each series all at which one of its seeds
            was evaluated.

    Returns:
        task, metric, algorithm, kind, size, task_set, env_steps or updates (the series' axis; the other is missing),
        seeds (how many count), mean, std (of seeds, NaN for one), min,
        max, low and high: a 95% interval of the mean over seeds (Student's t), clipped to the metric's range, NaN with
        fewer than three seeds.
    """
    keys = ["task", "metric", *SERIES]
    columns = [*keys, "env_steps", "updates", *STATISTICS]
    if table.empty:
        return pd.DataFrame(columns=pd.Index(columns))
    number = table.groupby(keys, dropna=False, sort=True).ngroup().to_numpy()
    seeds, steps = table["seed"].to_numpy(np.int64), steps_on_axis(table).to_numpy(np.int64)
    order = np.lexsort((steps, seeds, number))
    number, seeds, steps = number[order], seeds[order], steps[order]
    values, tasks = table["value"].to_numpy(float)[order], table["task"].to_numpy(object)[order]
    # Series, and within them seeds, lie side by side now: plain slices, since there may be many thousands of them.
    begins = np.flatnonzero(np.diff(number, prepend=-1))
    parts = []
    for begin, end in zip(begins, [*begins[1:], len(number)], strict=True):
        own = slice(begin, end)
        places = np.unique(steps[own]) if grid is None else np.asarray(grid)
        cuts = np.flatnonzero(np.diff(seeds[own])) + 1
        of_seeds = zip(np.split(steps[own], cuts), np.split(values[own], cuts), strict=True)
        stacked = np.stack([_interpolate(places, at, value) for at, value in of_seeds])  # (seeds, places)
        parts.append({"place": places, **_seed_statistics(stacked, *_range(tasks[begin]))})
    joined = pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    first = np.repeat(order[begins], [len(part["place"]) for part in parts])
    told = table[keys].iloc[first].reset_index(drop=True)
    place = joined.pop("place").astype("Int64")
    by_updates = is_offline(told)
    result = pd.concat(
        [told, place.mask(by_updates).rename("env_steps"), place.where(by_updates).rename("updates"), joined], axis=1
    )
    return result[result["seeds"] > 0].astype({"size": "Int64"}).reset_index(drop=True)[columns]


def _range(task: str) -> tuple[float, float]:
    """The largest and the smallest possible value of a task's metric; an own task's declared range bounds nothing."""
    low, high = TASKS[task].score_range or (-np.inf, np.inf)
    return (np.inf, -np.inf) if TASKS[task].domain == OWN and TASKS[task].metric == "return" else (high, low)


def _interpolate(steps: np.ndarray, own_steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One seed's values (n,) on other steps (m,); NaN before its first and after its last evaluation."""
    if len(own_steps) == len(steps) and (own_steps == steps).all():
        return values
    return np.interp(steps, own_steps, values, left=np.nan, right=np.nan)


def seed_statistics(values: np.ndarray, top: float, bottom: float = 0.0) -> pd.DataFrame:
    """Statistics over seeds.

    Args:
        values: (seeds, steps), NaN where a seed has no value; there may be no seed at all.
        top: the metric's largest possible value.
        bottom: its smallest.

    Returns:
        One row a step: seeds (that have a value), mean, std (NaN below two seeds), min, max, low and high (95% interval
        of the mean by Student's t, clipped to [bottom, top], NaN below three seeds).
    """
    return pd.DataFrame(_seed_statistics(values, top, bottom))


def _seed_statistics(values: np.ndarray, top: float, bottom: float = 0.0) -> dict[str, np.ndarray]:
    """As `seed_statistics`, by name."""
    present = np.isfinite(values)
    n = present.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # steps with no seed, or one: NaN is the answer
        mean = np.where(present, values, 0.0).sum(axis=0) / n
        std = np.sqrt((np.where(present, values - mean, 0.0) ** 2).sum(axis=0) / (n - 1))
        half = stdtrit(np.maximum(n - 1, 1), 0.975) * std / np.sqrt(n)
    enough = n >= MIN_SEEDS_FOR_INTERVAL
    return {
        "seeds": n,
        "mean": mean,
        "std": np.where(n > 1, std, np.nan),
        "min": np.where(n > 0, np.where(present, values, np.inf).min(axis=0, initial=np.inf), np.nan),
        "max": np.where(n > 0, np.where(present, values, -np.inf).max(axis=0, initial=-np.inf), np.nan),
        "low": np.where(enough, np.clip(mean - half, bottom, top), np.nan),
        "high": np.where(enough, np.clip(mean + half, bottom, top), np.nan),
    }


def last_evaluations(table: pd.DataFrame) -> pd.DataFrame:
    """Each seed's last evaluation by the task's own metric, and whether it counts for the final score.

    Only seeds evaluated at the same step are compared: those that reach the last step (environment steps, or updates
    for offline agents) that any seed of their task and series reached. The others have `counted` False.

    Returns:
        The rows of the table, with `counted` added.
    """
    table = primary(table)
    steps = steps_on_axis(table).astype(float)
    keys = [table[name] for name in ("task", *SERIES)]
    last = steps.groupby([*keys, table["seed"]], dropna=False).idxmax()
    furthest = steps.groupby(keys, dropna=False).transform("max")
    return table.assign(counted=steps == furthest).loc[last].reset_index(drop=True)


def published_at(reference: pd.DataFrame, task: str, env_steps: float) -> dict[str, float]:
    """Published value of each algorithm on a task after this many environment steps.

    Each seed is interpolated linearly between its two published points around that step; the seeds are then averaged.
    NaN where no seed was published that far.

    Args:
        reference: tidy table of published curves.
        task: the task's name; its own metric is looked up.
        env_steps: environment steps.

    Returns:
        Value by algorithm, for the algorithms that published this task.
    """
    rows = primary(reference[reference["task"] == task])
    found: dict[str, float] = {}
    for algorithm, group in rows.groupby("algorithm", sort=True):
        values = [
            float(_interpolate(np.array([env_steps]), s["env_steps"].to_numpy(), s["value"].to_numpy(float))[0])
            for _, s in group.sort_values("env_steps").groupby("seed")
        ]
        reached = [value for value in values if np.isfinite(value)]
        found[str(algorithm)] = float(np.mean(reached)) if reached else np.nan
    return found


def run_scores(table: pd.DataFrame, budget: float | None = None) -> pd.DataFrame:
    """Each run's normalised score on each of its tasks, after a budget or at its own last evaluation.

    Args:
        table: tidy table of evaluations; rows of other metrics than the task's own are left out.
        budget: place on the run's axis (environment steps; updates of agents that learned from data alone). Between
            two evaluations the score is interpolated linearly. None: each run's last evaluation.

    Returns:
        One row a run and task: suite, domain, task, algorithm, kind, size, task_set, seed, run, step (where the score
        was taken, on the run's axis), score (0 to 100; NaN for a run that begins after or ends before the budget: then
        `step` is that of its last evaluation).
    """
    rows = scored(table)
    rows = rows.assign(step=steps_on_axis(rows).astype(float)).sort_values("step", kind="stable")
    identity = ["suite", "domain", "task", *SERIES, "seed", "run"]
    keys = ["task", *SERIES, "seed", "run"]
    last = rows.drop_duplicates(keys, keep="last").set_index(keys, drop=False)
    last.index.names = [f"{name}_key" for name in keys]
    if budget is not None:
        nearest = (
            rows[rows["step"] <= budget].drop_duplicates(keys, keep="last"),
            rows[rows["step"] >= budget].drop_duplicates(keys, keep="first"),
        )
        ends = (side.set_index(keys)[["step", "score"]].reindex(last.index) for side in nearest)
        before, after = (end.to_numpy(float) for end in ends)
        gap = after[:, 0] - before[:, 0]
        share = np.divide(budget - before[:, 0], gap, out=np.zeros(len(gap)), where=gap > 0)
        score = before[:, 1] + share * (after[:, 1] - before[:, 1])
        last = last.assign(score=score, step=last["step"].where(np.isnan(score), float(budget)))
    return last.sort_values(keys, kind="stable")[[*identity, "step", "score"]].reset_index(drop=True)


def score_matrix(rows: pd.DataFrame, tasks: Sequence[str] | None = None) -> tuple[list[str], np.ndarray]:
    """One series' scores as `analysis.statistics` takes them.

    Args:
        rows: one series' rows of `run_scores`.
        tasks: the tasks to take, in this order, also those without a score; default: those with one, in reading order.

    Returns:
        tasks and scores (tasks, seeds), NaN where a task has no score by that seed; at least one column.
    """
    rows = rows[rows["score"].notna() & rows["seed"].notna()].drop_duplicates(["task", "seed"])
    names = task_order(rows["task"]) if tasks is None else list(tasks)
    seeds, column = np.unique(rows["seed"].to_numpy(np.int64), return_inverse=True)
    row = pd.Index(names, dtype=object).get_indexer(pd.Index(rows["task"], dtype=object))
    scores = np.full((len(names), max(1, len(seeds))), np.nan)
    asked = row >= 0
    scores[row[asked], column[asked]] = rows["score"].to_numpy(float)[asked]
    return names, scores


def planned_scores(runs: pd.DataFrame) -> pd.DataFrame:
    """Every task, series and seed that the runs are to give a score for: one row a run and task of it."""
    known = runs[runs["task"] != ""]
    tasks_of = {task: list(expand_tasks(str(task))) for task in known["task"].unique()}
    lists = pd.Series([tasks_of[task] for task in known["task"]], index=known.index, dtype=object)
    columns = ["run", *SERIES, "seed", "state", "total_env_steps", "total_updates"]
    return known[columns].assign(task=lists).explode("task", ignore_index=True)


def final_scores(runs: pd.DataFrame, table: pd.DataFrame, reference: pd.DataFrame | None = None) -> pd.DataFrame:
    """Final scores by task and series: a row for everything that was planned or found, also where nothing came out.

    Args:
        runs: table of runs (`SweepResults.runs`).
        table: tidy table of evaluations (`SweepResults.table`).
        reference: tidy table of published curves, if any.

    Returns:
        suite, domain, task, metric, algorithm, kind, size, task_set, seeds_planned, seeds (that count, see
        `last_evaluations`), episodes (of all of them), env_steps (of the evaluation; missing for agents that take
        none) and updates (the most of any seed), mean, std (of seeds), min, max, low, high (95% interval of the mean
        by Student's t, from three seeds on), score (normalised mean, 0 to 100), random_return (of a random policy,
        from the registry), note (why a seed does not count, or a curve ends early); with a reference also
        published_ALGORITHM (at the same environment steps, see `published_at`) and reference_note (which published
        curves end earlier).
    """
    # Plain records: a sweep may have tens of thousands of series, and splitting a table that often is slow.
    planned = _records_by_series(planned_scores(runs))
    last = _records_by_series(last_evaluations(table))
    registry = registry_table().to_dict("index")
    published_curves = {} if reference is None else dict(list(reference.groupby("task")))
    published_values: dict[tuple[str, int], dict[str, float]] = {}
    records = []
    for key, group in planned.items():
        task, kind = key[0], key[2]
        found = last.get(key, [])
        counted = [row for row in found if row["counted"]]
        env_steps = int(counted[0]["env_steps"]) if counted and axis_of(kind) == "env_steps" else None
        of_seeds = np.array([[row["value"]] for row in counted], float).reshape(-1, 1)
        over_seeds = _seed_statistics(of_seeds, *_range(task))
        statistics = {name: column[0] for name, column in over_seeds.items()}
        updates = [row["updates"] for row in counted if not pd.isna(row["updates"])]
        record: dict[str, Any] = {
            "suite": registry[task]["suite"],
            "domain": registry[task]["domain"],
            "task": task,
            "metric": TASKS[task].metric,
            **dict(zip(SERIES, key[1:], strict=True)),
            "seeds_planned": len({run["seed"] for run in group}),
            "seeds": int(statistics.pop("seeds")),
            "episodes": sum(row["episodes"] for row in counted) if counted else pd.NA,
            "env_steps": env_steps,
            "updates": max(updates, default=pd.NA),
            **statistics,
            "score": TASKS[task].score(statistics["mean"]),
            "random_return": registry[task]["random_return"],
        }
        record["note"] = "; ".join(_notes(kind, group, found))
        if reference is not None and env_steps is not None:
            if (task, env_steps) not in published_values:
                of_task = published_curves.get(task, reference.iloc[:0])
                published_values[task, env_steps] = published_at(of_task, task, env_steps)
            values = published_values[task, env_steps]
            record |= {f"{PUBLISHED}{algorithm}": value for algorithm, value in values.items()}
            short = [algorithm for algorithm, value in values.items() if np.isnan(value)]
            record["reference_note"] = f"ends before {env_steps:,} steps: {', '.join(short)}" if short else ""
        records.append(record)
    published = dict.fromkeys(name for record in records for name in record if name.startswith(PUBLISHED))
    columns = [*FINAL_COLUMNS, "note", *published, *(["reference_note"] if published else [])]
    scores = pd.DataFrame(records, columns=pd.Index(columns)).astype(
        dict.fromkeys(("size", "episodes", "env_steps", "updates"), "Int64")
    )
    order = scores.assign(order=scores["task"].map({task: i for i, task in enumerate(task_order(scores["task"]))}))
    return order.sort_values(["order", *SERIES], ignore_index=True)[columns]


def published_algorithms(final: pd.DataFrame) -> list[str]:
    """The algorithms that a table of final scores has published values of."""
    return [str(column).removeprefix(PUBLISHED) for column in final if str(column).startswith(PUBLISHED)]


def _records_by_series(rows: pd.DataFrame) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The rows of each task and series as records; a missing part of a key is None."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows.to_dict("records"):
        key = (row["task"], *(None if pd.isna(row[name]) else row[name] for name in SERIES))
        found.setdefault(key, []).append({str(name): value for name, value in row.items()})
    return found


def _notes(kind: str, group: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> list[str]:
    """Why seeds are missing from a final score, and whether it was taken before the end of training."""
    axis = axis_of(kind)
    unit = "steps" if axis == "env_steps" else "updates"
    notes = []
    rows = {int(row["seed"]): row for row in found}
    for run in sorted(group, key=lambda run: int(run["seed"])):
        row = rows.get(int(run["seed"]))
        if row is None:
            notes.append(f"seed {run['seed']} {run['state']}, no evaluation")
        elif not row["counted"]:
            notes.append(f"seed {run['seed']} {run['state']} at {row[axis]:,} {unit}, not counted")
        elif run["state"] != "done":
            notes.append(f"seed {run['seed']} {run['state']}")
    total = max((run[f"total_{axis}"] for run in group if not pd.isna(run[f"total_{axis}"])), default=0)
    reached = max((row[axis] for row in found), default=total)
    if reached < total:
        notes.append(f"{int(reached):,} of {int(total):,} {unit}")
    return notes


def task_order(tasks: Iterable[str]) -> list[str]:
    """The distinct tasks in reading order: by suite, in the registry's order of suites, then by name."""
    suites = list(dict.fromkeys(task.domain for task in TASKS.values()))
    return sorted(set(tasks), key=lambda task: (suites.index(TASKS[task].domain), task))


def online(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of agents that act while they learn, and of published curves: their axis is environment steps."""
    return table[~is_offline(table)]


def offline(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of agents that learned from data alone, many tasks or one: their axis is updates."""
    return table[is_offline(table)]


def overall_scores(final: pd.DataFrame) -> pd.DataFrame:
    """Mean normalised score of each series over the tasks that have one.

    Args:
        final: as `final_scores` returns it.

    Returns:
        algorithm, kind, size, task_set, tasks (with a score), tasks_planned, score (mean over tasks, 0 to 100).
    """
    grouped = final.groupby(SERIES, dropna=False, sort=True)
    return grouped.agg(tasks=("score", "count"), tasks_planned=("score", "size"), score=("score", "mean")).reset_index()


def percentiles(training: pd.DataFrame, metric: str, axis: str = "env_steps", bins: int = 60) -> pd.DataFrame:
    """Percentiles of a training metric over all runs of a series, in equal bins of the axis.

    Args:
        training: as `results.load_training` returns it.
        metric: one of its columns.
        axis: env_steps or updates.
        bins: number of bins from 0 to the last step.

    Returns:
        algorithm, kind, size, task_set, env_steps or updates (the bin's middle), p10, p50, p90.
    """
    width = max(float(training[axis].max()), 1.0) / bins
    number = np.minimum(training[axis] // width, bins - 1)
    binned = training.assign(**{axis: (number + 0.5) * width}).groupby([*SERIES, axis], dropna=False)[metric]
    return pd.DataFrame({f"p{p}": binned.quantile(p / 100) for p in (10, 50, 90)}).reset_index()
