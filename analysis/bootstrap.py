"""Drawing seeds and tasks anew: what the intervals of `analysis.statistics` are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit

from tdmpc2.errors import require

Scores = NDArray[np.float64]
"""Normalised scores (..., tasks, seeds), 0 to 100; NaN where a seed is missing."""
_VALUES_AT_ONCE = 1_000_000
"""Values drawn at once: bounds the memory of a bootstrap to about 100 MB, whatever the number of resamples."""


def checked_scores(scores: ArrayLike, axes: int | None = None) -> Scores:
    """Scores as an array of tasks and seeds; UserError where it has fewer axes than two, or not as many as it must."""
    scores = np.asarray(scores, dtype=np.float64)
    fits = scores.ndim >= 2 if axes is None else scores.ndim == axes
    require(fits, f"scores must be an array (tasks, seeds), not of shape {scores.shape}")
    return scores


def count_present(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """How many values are there: (..., n) to (...)."""
    return np.isfinite(values).sum(axis=-1)


def mean_of_present(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis without the missing values; NaN where all are missing (np.nanmean warns there)."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(present, values, 0.0).sum(axis=-1) / present.sum(axis=-1)


class Seeds(NamedTuple):
    """Tasks that have seeds."""

    rows: Scores
    """(tasks, width): each row's present seeds first or, with `together`, a column an agent."""
    counts: NDArray[np.intp]
    """How many seeds each task has (tasks,)."""
    together: bool = False
    """Whether a column is one agent of all tasks, whose scores rise and fall together: agents are drawn then."""


def present_seeds(scores: Scores, together: bool = False) -> Seeds:
    """Scores (tasks, seeds) without the tasks that have no seed, and with the missing seeds last.

    Args:
        scores: (tasks, seeds).
        together: whether a column is one agent of all tasks; then the columns stay, but for those without any score.
    """
    present = ~np.isnan(scores)
    counts = present.sum(axis=-1)
    if together:
        return Seeds(scores[counts > 0][:, present.any(axis=0)], counts[counts > 0], together=True)
    rows = np.take_along_axis(scores, np.argsort(~present, axis=-1, kind="stable"), axis=-1)
    return Seeds(rows[counts > 0, : counts.max(initial=0)], counts[counts > 0])


def degrees_of_freedom(*sides: Seeds) -> float:
    """Degrees of freedom of the spread between seeds: how many residuals, in effect, tell what it is.

    Welch and Satterthwaite's formula on the variances of the tasks' means. Where few tasks make up most of the spread
    (the others may all be solved) they are few. Agents that are drawn together have one mean each, over their tasks.
    0 where a side has no task with two seeds, or a single agent: its spread is not known.
    """
    variances, own = [], []
    for rows, counts, together in sides:
        if together:
            agents = rows.shape[1]
            if agents < 2:
                return 0.0
            of_means = float(np.var(mean_of_present(rows.T), ddof=1)) / agents
            variances.append(np.array([of_means * len(rows) ** 2]))  # of the sum over tasks, as the others are
            own.append(np.array([agents - 1]))
            continue
        several = counts > 1
        if not several.any():
            return 0.0
        rows, counts = rows[several], counts[several]
        variances.append(mean_of_present((rows - mean_of_present(rows)[:, None]) ** 2) / (counts - 1))
        own.append(counts - 1)
    variance, freedom = np.concatenate(variances), np.concatenate(own)
    spread = variance.sum()
    if spread == 0:
        return float(freedom.sum())
    return float(1 / ((variance / spread) ** 2 / freedom).sum())


def portions(total: int, width: int) -> Iterator[int]:
    """A number of draws, each of so many values, in portions that fit into memory."""
    at_once = max(1, _VALUES_AT_ONCE // max(1, width))
    for begin in range(0, total, at_once):
        yield min(at_once, total - begin)


def _places(rng: np.random.Generator, counts: NDArray[np.intp], width: int, draws: int) -> NDArray[np.intp]:
    """Places drawn with replacement among the first `counts` of each row: (draws, rows, width).

    Places from a row's count on stand for themselves. With probability n / (2 (n - 1)) the last of a row's n draws
    repeats one of its others; see `interval` for why.
    """
    places = (rng.random((draws, len(counts), width)) * counts[:, None]).astype(np.intp)
    others = np.maximum(counts - 1, 1)
    last = np.broadcast_to((counts - 1)[:, None], (draws, len(counts), 1))
    repeats = rng.random(last.shape) < (counts / (2 * others))[:, None]
    other = (rng.random(last.shape) * others[:, None]).astype(np.intp)
    source = np.where(repeats, other, last)
    np.put_along_axis(places, last, np.take_along_axis(places, source, axis=-1), axis=-1)
    own = np.arange(width)
    return np.where(own < counts[:, None], places, own)


def seed_resamples(rng: np.random.Generator, seeds: Seeds, resamples: int) -> Iterator[Scores]:
    """Scores with seeds drawn anew within tasks, or agents, in portions (draws, tasks, seeds), `resamples` in all."""
    tasks, width = seeds.rows.shape
    if seeds.together:
        for draws in portions(resamples, tasks * width):
            agents = _places(rng, np.array([width]), width, draws)[:, 0]
            yield np.moveaxis(seeds.rows[:, agents], 0, 1)
        return
    starts = (np.arange(tasks) * width)[:, None]
    for draws in portions(resamples, tasks * width):
        yield seeds.rows.take(_places(rng, seeds.counts, width, draws) + starts)


def task_resamples(rng: np.random.Generator, seeds: Seeds, resamples: int) -> Iterator[Scores]:
    """Scores with whole tasks drawn anew, in portions (draws, tasks, seeds), `resamples` in all."""
    tasks, width = seeds.rows.shape
    for draws in portions(resamples, tasks * width):
        yield seeds.rows[_places(rng, np.array([tasks]), tasks, draws)[:, 0]]


def percentile_bounds(
    drawn: NDArray[np.float64], value: NDArray[np.float64] | float, level: float, freedom: float
) -> NDArray[np.float64]:
    """Percentile interval of a statistic, from its resampled values.

    Further out for few degrees of freedom, as Student's t is wider than the normal distribution (the expanded
    percentile interval of Hesterberg 2015, doi:10.1080/00031305.2015.1089789). Moved by the resamples' own bias, the
    mean of what was drawn less the statistic, where that is more than chance: means have none, but where many tasks are
    nearly solved, resampled medians lie so far above the median that its plain percentile interval would not contain
    it.

    Args:
        drawn: (resamples, ...).
        value: the statistic itself (...).
        level: of the interval.
        freedom: as `degrees_of_freedom` gives it.

    Returns:
        low and high (2, ...), never beyond the lowest and highest value drawn or found; NaN without freedom.
    """
    if freedom == 0:
        return np.full((2, *drawn.shape[1:]), np.nan)
    tail = float(ndtr(stdtrit(freedom, (1 - level) / 2)))
    bias = drawn.mean(axis=0) - value
    by_chance = np.abs(bias) <= 3 * drawn.std(axis=0) / np.sqrt(len(drawn))
    moved = np.quantile(drawn, [tail, 1 - tail], axis=0) - np.where(by_chance, 0.0, bias)
    return np.clip(moved, np.minimum(drawn.min(axis=0), value), np.maximum(drawn.max(axis=0), value))


def check_resampling(resamples: int, level: float) -> None:
    """Refuse a number of resamples, or a level, that makes no sense (UserError)."""
    require(resamples >= 1, f"the number of resamples must be at least 1, not {resamples}")
    require(0 < level < 1, f"level must lie between 0 and 1, not {level}")
