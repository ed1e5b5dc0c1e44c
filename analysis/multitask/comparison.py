"""One agent for many tasks against one agent a task: the pairs, task by task.

All scores are normalised, 0 to 100 (return / 10, success x 100). The multi-task agent's is that of its last evaluation,
the single-task agent's is taken at the environment step at which the buffer ended that the multi-task agent learned
from. Where that is not known, the single-task agent's last evaluation counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.multitask.buffers import buffer_steps, task_shares
from analysis.results import SERIES, registry_table
from analysis.runs import ALGORITHM
from analysis.scores import (
    MIN_SEEDS_FOR_INTERVAL,
    final_scores,
    groups,
    last_evaluations,
    offline,
    scored,
    seed_statistics,
    task_order,
)
from analysis.significance import adjust, two_sample_test
from analysis.statistics import Interval, difference, mean
from analysis.study import PUBLISHED_KIND, Study
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASKS

PAPER_SIZE = 5
"""Single-task agents of the paper have so many million parameters, whatever size the multi-task agent has."""
MOST_TASKS = 0.8
"""A size is chosen only if it was run on at least this share of the tasks that the best covered size was run on."""
SINGLE = ["single_algorithm", "single_kind", "single_size"]
"""What tells one series of single-task agents from another; kind single, or published."""
_SCORED = ["seeds", "episodes", "score", "min", "max", "low", "high"]
COMPARISON_COLUMNS = [
    "suite", "domain", "task", "metric", "embodiment", "objective", *SERIES, "updates", *_SCORED,
    *SINGLE, "single_step", "buffer_step", *(f"single_{name}" for name in _SCORED), "random_score", "over_random",
    "difference", "difference_low", "difference_high", "p", "p_holm", "agents_low", "agents_high", "data_rows",
    "data_share", "buffers", "note",
]  # fmt: skip
"""Columns of `compare`."""
SAME_BUFFERS, SOME_BUFFERS, OTHER_BUFFERS, NOT_RECORDED = (
    "of these runs",
    "of some of these runs",
    "of other runs",
    "not recorded",
)
"""Whose buffers a multi-task agent learned a task from, beside the single-task runs that it is compared with."""


def compare(
    study: Study,
    buffers: pd.DataFrame,
    sizes: int | Sequence[int] | None = None,
    published_single: bool = True,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Each multi-task agent's score on each of its tasks, the single-task score beside it, and the difference.

    One series of single-task agents is paired with each multi-task series, see `single_series`. Agents from pixels are
    left out: data sets are of states. A task without one of the scores keeps its row, and its note says why.

    Args:
        study: what was loaded.
        buffers: as `buffers.read_buffers` returns it.
        sizes: model sizes (millions of parameters) of the single-task agents to choose from; None: all.
        published_single: whether published single-task scores stand in on tasks that no single-task run is of.
        alpha: 1 - the level of the differences' intervals.

    Returns:
        A row for each offline series (kinds multi and offline) and task of it: suite, domain, task, metric, embodiment,
        objective, algorithm, kind, size, task_set, updates; seeds and episodes behind the score, score, min and max
        over seeds, low and high (95% interval of the mean over seeds, NaN below three); single_algorithm,
        single_kind (single or published), single_size; single_step (where the single-task score was taken) and
        buffer_step (where the buffer ended), both in environment steps; the single-task score in the same columns, as
        single_*; random_score (NaN where not known), over_random (score - random_score); difference (score -
        single_score), difference_low and difference_high (see `mean_difference`); p (permutation test over seeds,
        NaN where a side has one seed) and p_holm (corrected over the tasks of the series); data_rows, data_share (of
        the data set's rows, 0 to 1); buffers (see `SAME_BUFFERS`); note.

    Raises:
        UserError: no single-task run is of one of the sizes asked for.
    """
    ours = study.ours[study.ours["kind"] != "finetuned"]
    runs = study.runs[study.runs["kind"] != "finetuned"]
    asked = set(study.tasks)
    scaled = _normalised(final_scores(runs, ours))
    scaled = scaled[scaled["task"].isin(asked)]
    single_runs = _from_states(runs[runs["kind"] == "single"])
    single_runs = single_runs[single_runs["task"].isin(asked)]
    chosen_sizes = _checked_sizes(sizes, single_runs)
    last = last_evaluations(offline(ours))
    seeds_of = dict(groups(last[last["counted"]], ["task", *SERIES]))
    notes = {key: rows["note"].iloc[0] for key, rows in groups(scaled, ["task", *SERIES])}

    parts = []
    for key, rows in groups(offline(scaled)):
        own_runs = runs[_is_series(runs, key)]
        single = single_series(key, single_runs[single_runs["task"].isin(rows["task"])], chosen_sizes)
        by_run, by_task = buffer_steps(buffers, list(own_runs["run"]))
        table = ours.iloc[:0] if single is None else ours[_is_series(ours, single)]
        with_run = set() if single is None else set(single_runs.loc[_is_series(single_runs, single), "task"])
        if published_single:
            lacking = rows.loc[~rows["task"].isin(single_runs["task"]), "task"]
            table = pd.concat([table, _published(study, lacking)], ignore_index=True) if len(lacking) else table
        beside = dict(list(single_scores(table[table["task"].isin(rows["task"])], by_run, by_task).groupby("task")))
        shares = task_shares(buffers, list(own_runs["run"]))
        pairs = [
            _pair(
                row,
                seeds_of.get((row["task"], *key)),
                beside.get(row["task"]),
                single if row["task"] in with_run else None,
                by_task.get(row["task"], np.nan),
                set(by_run),
                notes.get((row["task"], *single), "") if single and row["task"] in with_run else None,
                alpha,
            )
            for row in rows.to_dict("records")
        ]
        part = pd.DataFrame(pairs).join(shares.add_prefix("data_"), on="task")
        own = [seeds_of.get((task, *key)) for task in rows["task"]]
        over_agents = _over_agents(own, [beside.get(task) for task in rows["task"]], key[1] == "multi", alpha)
        parts.append(
            part.assign(
                p_holm=adjust(part["p"].to_numpy(float), "holm"),
                agents_low=over_agents.low,
                agents_high=over_agents.high,
            )
        )
    if not parts:
        return pd.DataFrame(columns=pd.Index(COMPARISON_COLUMNS))
    table = pd.concat(parts, ignore_index=True)
    place = {task: i for i, task in enumerate(task_order(table["task"]))}
    ordered = table.assign(place=table["task"].map(place)).sort_values(
        ["algorithm", "task_set", "kind", "size", "place"], kind="stable"
    )
    whole = dict.fromkeys(("size", "single_size", "episodes", "single_episodes", "updates"), "Int64")
    return ordered[COMPARISON_COLUMNS].astype(whole).reset_index(drop=True)


def _over_agents(
    own: Sequence[pd.DataFrame | None], other: Sequence[pd.DataFrame | None], together: bool, alpha: float
) -> Interval:
    """The mean difference over tasks with its interval over agents: what agents of other seeds might have given.

    Args:
        own: seeds of the multi-task series by task, with seed and score; None without any.
        other: those of the single-task side.
        together: whether one agent of the series is of all its tasks.
        alpha: 1 - level of the interval.
    """
    both = [(mine, theirs) for mine, theirs in zip(own, other, strict=True) if mine is not None and theirs is not None]
    if not both:
        return Interval(np.nan, np.nan, np.nan)
    x, y = (
        pd.concat([side["score"].set_axis(side["seed"]).rename(place) for place, side in enumerate(sides)], axis=1)
        for sides in zip(*both, strict=True)
    )
    return difference(x.T.to_numpy(float), y.T.to_numpy(float), mean, level=1 - alpha, together=(together, False))


def single_series(
    series: tuple[Any, ...], single_runs: pd.DataFrame, sizes: Sequence[int] | None = None
) -> tuple[str, str, int, str] | None:
    """The single-task series to compare a multi-task series with.

    Of its own algorithm where there are such runs, else of the plain one, else the first by name; then of its own
    size, else of the paper's (5), else of the largest, of those sizes that were run on about as many of its tasks (at
    least four fifths) as any: a comparison on few tasks of the same size says less than one on all of another.

    Args:
        series: algorithm, kind, size and task set of the multi-task agents.
        single_runs: single-task runs of its tasks.
        sizes: sizes to choose from; None: all.

    Returns:
        Algorithm, kind, size, "" (as `SERIES`); None where there is none.
    """
    if sizes is not None:
        single_runs = single_runs[single_runs["size"].isin(list(sizes))]
    if single_runs.empty:
        return None
    algorithms = sorted(set(single_runs["algorithm"]))
    algorithm = next((name for name in (series[0], ALGORITHM) if name in algorithms), algorithms[0])
    covered = single_runs[single_runs["algorithm"] == algorithm].groupby("size")["task"].nunique()
    there = sorted(int(size) for size in covered.index[covered >= MOST_TASKS * covered.max()])
    size = next((size for size in (series[2], PAPER_SIZE) if size in there), there[-1])
    return algorithm, "single", size, ""


def single_scores(table: pd.DataFrame, by_run: Mapping[str, float], by_task: Mapping[str, float]) -> pd.DataFrame:
    """Single-task scores at the steps at which the buffers ended that were learned from.

    A run whose buffer was learned from is scored where that buffer ended; another run of the task where the longest of
    the task's buffers ended; both at the last evaluation where that comes earlier, as it does for a task whose buffers
    are not known. Between two evaluations the score is interpolated. Of several seeds those count that got equally
    far, and those that were learned from.

    Args:
        table: evaluations of single-task agents, one series a task.
        by_run: environment step by run, `by_task`: by task; as `buffers.buffer_steps` returns them.

    Returns:
        A row a run: run, task, seed, kind, step (environment steps), score, episodes (of the run's last evaluation).
    """
    rows = scored(table).sort_values("env_steps", kind="stable")
    records = []
    for (run, task, seed, kind), own in rows.groupby(["run", "task", "seed", "kind"], sort=False):
        steps, scores = own["env_steps"].to_numpy(float), own["score"].to_numpy(float)
        # published agents are scored at their own end: their buffers are not the ones that were learned from
        end = np.inf if kind == PUBLISHED_KIND else by_run.get(str(run), by_task.get(str(task), np.inf))
        step = min(end, steps[-1])
        score = float(np.interp(step, steps, scores, left=np.nan))
        records.append((run, task, seed, kind, step, score, own["episodes"].iloc[-1]))
    columns = ["run", "task", "seed", "kind", "step", "score", "episodes"]
    found = pd.DataFrame(records, columns=pd.Index(columns)).astype({"episodes": "Int64"})
    furthest = found.groupby("task")["step"].transform("max")
    return found[found["score"].notna() & ((found["step"] == furthest) | found["run"].isin(list(by_run)))]


def mean_difference(x: np.ndarray, y: np.ndarray, alpha: float = 0.05) -> tuple[float, float, float]:
    """Difference of two means over seeds, with Welch's interval.

    A t-interval and not a bootstrap: of three seeds, the bootstrap's is far too narrow. Source: Welch (1947), The
    generalization of Student's problem when several different population variances are involved.

    Args:
        x: (seeds,) scores.
        y: (other seeds,) scores; the seeds of the two are not paired.
        alpha: 1 - level of the interval.

    Returns:
        mean of x - mean of y (NaN where one is empty), and the ends of the interval (NaN below three seeds a side).
    """
    if not len(x) or not len(y):
        return np.nan, np.nan, np.nan
    value = float(np.mean(x) - np.mean(y))
    if min(len(x), len(y)) < MIN_SEEDS_FOR_INTERVAL:
        return value, np.nan, np.nan
    parts = np.array([np.var(x, ddof=1) / len(x), np.var(y, ddof=1) / len(y)])
    total = float(parts.sum())
    if total == 0:
        return value, value, value
    freedom = total**2 / float((parts**2 / (np.array([len(x), len(y)]) - 1)).sum())
    half = float(stdtrit(freedom, 1 - alpha / 2)) * total**0.5
    return value, value - half, value + half


def _pair(
    row: Mapping[Any, Any],
    own: pd.DataFrame | None,
    other: pd.DataFrame | None,
    single: tuple[str, str, int, str] | None,
    buffer_step: float,
    sources: set[str],
    single_note: str | None,
    alpha: float,
) -> dict[str, Any]:
    """One row of `compare`: a task's multi-task score (`row`, seeds `own`) beside the single-task seeds `other`."""
    x = np.empty(0) if own is None else own["score"].to_numpy(float)
    y = np.empty(0) if other is None else other["score"].to_numpy(float)
    gap, low, high = mean_difference(x, y, alpha)
    statistics = {str(name): column[0] for name, column in seed_statistics(y[:, None], 100.0).items()}
    episodes = pd.NA if other is None else other["episodes"].sum(min_count=max(1, len(other)))
    step = np.nan if other is None else float(other["step"].max())
    published = other is not None and bool((other["kind"] == PUBLISHED_KIND).all())
    algorithm, kind, size = (ALGORITHM, PUBLISHED_KIND, pd.NA) if published else (single or ("", "", pd.NA))[:3]
    task = TASKS[row["task"]]
    return {
        **{name: row[name] for name in ("suite", "domain", "task", "metric", *SERIES, "updates", *_SCORED)},
        "embodiment": task.embodiment,
        "objective": task.objective,
        "single_algorithm": algorithm,
        "single_kind": kind,
        "single_size": size,
        "single_step": step,
        "buffer_step": buffer_step,
        **{f"single_{name}": statistics[name] for name in ("seeds", "min", "max", "low", "high")},
        "single_score": statistics["mean"],
        "single_episodes": episodes,
        "random_score": row["random_score"],
        "over_random": row["score"] - row["random_score"],
        "difference": gap,
        "difference_low": low,
        "difference_high": high,
        "p": two_sample_test(x, y) if min(len(x), len(y)) > 1 else np.nan,
        "buffers": _whose(other, buffer_step, sources),
        "note": _note(row["note"], single_note, published, step, buffer_step),
    }


def _whose(other: pd.DataFrame | None, buffer_step: float, sources: set[str]) -> str:
    """Whose buffers the task was learned from."""
    if np.isnan(buffer_step):
        return NOT_RECORDED
    learned = [] if other is None else [run in sources for run in other["run"]]
    return SAME_BUFFERS if learned and all(learned) else SOME_BUFFERS if any(learned) else OTHER_BUFFERS


def _note(own: str, single: str | None, published: bool, step: float, buffer_step: float) -> str:
    """What is amiss with a pair."""
    if published:
        beside = "published single-task score, of another version of the simulator"
    elif single is None:
        beside = "no single-task run of this task"
    else:
        beside = f"single-task: {single}" if single else ""
        if step < buffer_step:
            early = f"evaluated last at {step:,.0f} steps, the buffer ends at {buffer_step:,.0f}"
            beside = f"{beside}; {early}" if beside else f"single-task: {early}"
        if np.isnan(step) and not beside:
            beside = f"single-task: no evaluation before its buffer ended at {buffer_step:,.0f} steps"
    return "; ".join(part for part in (own, beside) if part)


def _normalised(final: pd.DataFrame) -> pd.DataFrame:
    """Final scores with min, max, low and high on the scale of `score`, 0 to 100, and `random_score` beside them."""
    registry = registry_table()
    low, factor = (final["task"].map(registry[name]).astype(float) for name in ("score_low", "score_scale"))
    scaled = {name: (final[name].astype(float) - low) * factor for name in ("min", "max", "low", "high")}
    return final.assign(**scaled, random_score=(final["random_return"].astype(float) - low) * factor)


def _checked_sizes(sizes: int | Sequence[int] | None, single_runs: pd.DataFrame) -> list[int] | None:
    """The sizes asked for as a list; refused where there are single-task runs, but none of these sizes."""
    if sizes is None:
        return None
    asked = [int(sizes)] if isinstance(sizes, int) else [int(size) for size in sizes]
    there = sorted(int(size) for size in set(single_runs["size"].dropna()))
    if there and not set(asked) & set(there):
        raise UserError(f"sizes: no single-task run of {_sizes(asked)}; there are runs of {_sizes(there)}")
    return asked


def _sizes(sizes: Sequence[int]) -> str:
    return ", ".join(f"{size}M" for size in sizes)


def _is_series(rows: pd.DataFrame, key: Sequence[Any]) -> pd.Series:
    """Which rows are of a series; none of the parts of the key may be missing."""
    return pd.concat([rows[name] == part for name, part in zip(SERIES, key, strict=True)], axis=1).all(axis=1)


def _from_states(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[~rows["algorithm"].str.contains("-pixels")]


def _published(study: Study, tasks: pd.Series) -> pd.DataFrame:
    """Published evaluations of the single-task agents on some tasks."""
    published = study.published
    return published[(published["algorithm"] == ALGORITHM) & published["task"].isin(list(tasks))]
