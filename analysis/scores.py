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
from tdmpc2.tasks import TASKS, expand_tasks

FINAL_COLUMNS = [
    "suite", "domain", "task", "metric", *SERIES, "seeds_planned", "seeds", "episodes", "env_steps", "updates", "mean",
    "std", "min", "max", "low", "high", "score", "random_return",
]  # fmt: skip
"""Columns of `final_scores` before the note and those of published curves."""
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
    parts = []
    for key, group in groups(table, keys):
        axis = axis_of(key[keys.index("kind")])
        steps = np.unique(group[axis].to_numpy(np.int64)) if grid is None else np.asarray(grid)
        seeds = [seed.sort_values(axis) for _, seed in group.groupby("seed")]
        values = np.stack(
            [_interpolate(steps, seed[axis].to_numpy(float), seed["value"].to_numpy(float)) for seed in seeds]
        )  # (seeds, steps)
        part = seed_statistics(values, _top(key[0]))
        for column in ("updates", "env_steps"):
            part.insert(0, column, pd.Series(steps if column == axis else pd.NA, index=part.index, dtype="Int64"))
        for position, (name, value) in enumerate(zip(keys, key, strict=True)):
            part.insert(position, name, value)
        parts.append(part[part["seeds"] > 0].astype({"size": "Int64"}))
    columns = [*keys, "env_steps", "updates", "seeds", "mean", "std", "min", "max", "low", "high"]
    if not parts:
        return pd.DataFrame(columns=pd.Index(columns))
    return pd.concat(parts, ignore_index=True)


def _top(task: str) -> float:
    """The largest possible value of a task's metric, where the normalised score is 100."""
    return 100.0 / TASKS[task].score_scale


def _interpolate(steps: np.ndarray, own_steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One seed's values (n,) on other steps (m,); NaN before its first and after its last evaluation."""
    return np.interp(steps, own_steps, values, left=np.nan, right=np.nan)


def seed_statistics(values: np.ndarray, top: float) -> pd.DataFrame:
    """Statistics over seeds.

    Args:
        values: (seeds, steps), NaN where a seed has no value; there may be no seed at all.
        top: the metric's largest possible value; its smallest is 0.

    Returns:
        One row a step: seeds (that have a value), mean, std (NaN below two seeds), min, max, low and high (95% interval
        of the mean by Student's t, clipped to [0, top], NaN below three seeds).
    """
    present = np.isfinite(values)
    n = present.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # steps with no seed, or one: NaN is the answer
        mean = np.where(present, values, 0.0).sum(axis=0) / n
        std = np.sqrt((np.where(present, values - mean, 0.0) ** 2).sum(axis=0) / (n - 1))
        half = stdtrit(np.maximum(n - 1, 1), 0.975) * std / np.sqrt(n)
    enough = n >= MIN_SEEDS_FOR_INTERVAL
    return pd.DataFrame(
        {
            "seeds": n,
            "mean": mean,
            "std": np.where(n > 1, std, np.nan),
            "min": np.where(n > 0, np.where(present, values, np.inf).min(axis=0, initial=np.inf), np.nan),
            "max": np.where(n > 0, np.where(present, values, -np.inf).max(axis=0, initial=-np.inf), np.nan),
            "low": np.where(enough, np.clip(mean - half, 0.0, top), np.nan),
            "high": np.where(enough, np.clip(mean + half, 0.0, top), np.nan),
        }
    )


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


def planned_scores(runs: pd.DataFrame) -> pd.DataFrame:
    """Every task, series and seed that the runs are to give a score for: one row a run and task of it."""
    known = runs[runs["task"] != ""]
    lists = pd.Series([list(expand_tasks(str(task))) for task in known["task"]], index=known.index, dtype=object)
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
    planned = planned_scores(runs)
    last = last_evaluations(table)
    registry = registry_table()
    keys = ["task", *SERIES]
    by_group = dict(groups(last, keys))
    records = []
    for key, group in groups(planned, keys):
        task = key[0]
        found = by_group.get(key, last.iloc[:0])
        counted = found[found["counted"]]
        acted = len(counted) > 0 and axis_of(key[2]) == "env_steps"
        env_steps = int(counted["env_steps"].iloc[0]) if acted else None
        over_seeds = seed_statistics(counted["value"].to_numpy(float)[:, None], _top(task))
        statistics = {str(name): column[0] for name, column in over_seeds.items()}
        record: dict[str, Any] = {
            "suite": registry["suite"][task],
            "domain": registry["domain"][task],
            "task": task,
            "metric": TASKS[task].metric,
            **dict(zip(SERIES, key[1:], strict=True)),
            "seeds_planned": group["seed"].nunique(),
            "seeds": int(statistics.pop("seeds")),
            "episodes": counted["episodes"].sum(min_count=max(1, len(counted))),
            "env_steps": env_steps,
            "updates": counted["updates"].max(),
            **statistics,
            "score": statistics["mean"] * TASKS[task].score_scale,
            "random_return": registry["random_return"][task],
        }
        record["note"] = "; ".join(_notes(group, found))
        if reference is not None and env_steps is not None:
            values = published_at(reference, task, env_steps)
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


def _notes(group: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """Why seeds are missing from a final score, and whether it was taken before the end of training."""
    axis = axis_of(group["kind"].iloc[0])
    unit = "steps" if axis == "env_steps" else "updates"
    notes = []
    rows = {int(row["seed"]): row for row in found.to_dict("records")}
    for run in group.sort_values("seed").to_dict("records"):
        row = rows.get(int(run["seed"]))
        if row is None:
            notes.append(f"seed {run['seed']} {run['state']}, no evaluation")
        elif not row["counted"]:
            notes.append(f"seed {run['seed']} {run['state']} at {row[axis]:,} {unit}, not counted")
        elif run["state"] != "done":
            notes.append(f"seed {run['seed']} {run['state']}")
    reached, total = found[axis].max(), group[f"total_{axis}"].max()
    if len(found) and reached < total:
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
