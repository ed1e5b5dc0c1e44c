"""Scores drawn anew for all sizes at once, so that whatever follows from them has an interval.

Where there are enough tasks, tasks are drawn, the same ones for every size: what the sizes have in common on a task
cancels out in their differences. A single-task agent comes along with its task. A multi-task agent acts on all tasks,
so its scores rise and fall together; agents are therefore drawn whole, beside the tasks (Owen 2007, The pigeonhole
bootstrap, doi:10.1214/07-AOAS122). With too few tasks, only seeds are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from analysis.scores import MIN_SEEDS_FOR_INTERVAL
from analysis.statistics import AGGREGATES, Interval
from tdmpc2.errors import require, unknown_name

STATISTICS = ("mean", "iqm", "median")
"""Aggregates that are larger for a better model."""
MIN_TASKS_FOR_INTERVAL = 3
"""With fewer tasks an interval over tasks would be pretended."""
_VALUES_AT_ONCE = 2_000_000

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Resampled:
    """An aggregate score of each size, resampled."""

    draws: FloatArray
    """(resamples, sizes); no rows where nothing can be said about the spread."""
    over: str
    """What was drawn: `tasks and seeds`, `tasks` (of one seed each), `seeds`, or "" for nothing."""
    freedom: int
    """Degrees of freedom of the spread."""

    def interval(self, value: float, drawn: FloatArray, level: float = 0.95) -> Interval:
        """The percentile interval of a number that was computed from each draw, (resamples,)."""
        low, high = self.bounds(drawn, level)
        return Interval(float(value), float(low), float(high))

    def bounds(self, drawn: FloatArray, level: float = 0.95) -> FloatArray:
        """Low and high (2, ...) of what was computed from each draw (resamples, ...); NaN without draws.

        Widened for few degrees of freedom as Student's t is wider than the normal distribution (Hesterberg 2015,
        doi:10.1080/00031305.2015.1089789, section 5.3).
        """
        if len(drawn) == 0:
            return np.full((2, *drawn.shape[1:]), np.nan)
        tail = float(ndtr(stdtrit(self.freedom, (1 - level) / 2)))
        return np.quantile(drawn, [tail, 1 - tail], axis=0)


def check_statistic(statistic: str, resamples: int) -> None:
    """Refuse what no interval can be made with.

    Raises:
        UserError: an unknown statistic, or fewer than one resample.
    """
    if statistic not in STATISTICS:
        raise unknown_name("statistic", statistic, STATISTICS, "statistic")
    require(resamples >= 1, f"resamples: must be at least 1, not {resamples}")


def resample(scores: FloatArray, statistic: str, resamples: int, *, shared: bool, seed: int = 0) -> Resampled:
    """Draw tasks with their seeds, or only seeds where there are too few tasks, and aggregate.

    One fewer is drawn than there are: the spread of what n - 1 draws give is, without bias, that of n runs (Hesterberg
    2015, section 5.3).

    Args:
        scores: (sizes, tasks, seeds), NaN where a seed is missing; each task has one at every size.
        statistic: one of `STATISTICS`.
        resamples: number of draws.
        shared: whether a seed is one agent for all tasks, not an agent for each.
        seed: of the random generator.
    """
    tasks = scores.shape[1]
    rng = np.random.default_rng(seed)
    aggregate = AGGREGATES[statistic]
    if tasks >= MIN_TASKS_FOR_INTERVAL:
        by_task = scores.swapaxes(0, 1)  # (tasks, sizes, seeds)
        parts = []
        for draws in draws_at_once(scores, resamples):
            drawn = by_task[rng.integers(0, tasks, (draws, tasks - 1))].swapaxes(1, 2)
            parts.append(aggregate(_draw_agents(drawn, agents(scores), rng) if shared else drawn))
        several = np.isfinite(scores).sum(axis=-1).max() > 1
        return Resampled(np.concatenate(parts), "tasks and seeds" if several else "tasks", tasks - 1)
    return resample_seeds(scores, statistic, resamples, shared=shared, seed=seed)


def resample_seeds(scores: FloatArray, statistic: str, resamples: int, *, shared: bool, seed: int = 0) -> Resampled:
    """Draw seeds for the tasks as they are: within each task, or whole agents where a seed is one agent for all tasks.

    No draws with fewer than three agents for all tasks, or where tasks have their own agents and one has a single seed,
    or there are no more than two seeds in all. Arguments as for `resample`.
    """
    counts = np.isfinite(scores).sum(axis=-1)
    freedom = int((agents(scores) - 1).min() if shared else (counts - 1).sum(axis=-1).min())
    alone = not shared and counts.size > 0 and counts.min() < 2
    if alone or freedom < MIN_SEEDS_FOR_INTERVAL - 1:
        return Resampled(np.empty((0, len(scores))), "", 0)
    rng = np.random.default_rng(seed)
    parts = []
    for draws in draws_at_once(scores, resamples):
        if shared:
            parts.append(_draw_agents(np.broadcast_to(scores, (draws, *scores.shape)), agents(scores), rng))
        else:
            parts.append(draw_seeds(scores, draws, rng))
    return Resampled(np.concatenate([AGGREGATES[statistic](part) for part in parts]), "seeds", freedom)


def draws_at_once(scores: FloatArray, resamples: int) -> list[int]:
    """`resamples` in parts that fit into memory."""
    most = max(1, _VALUES_AT_ONCE // max(1, scores.size))
    return [min(most, resamples - begin) for begin in range(0, resamples, most)]


def agents(scores: FloatArray) -> NDArray[np.intp]:
    """How many seeds have a score on any task: (sizes, tasks, seeds) to (sizes,)."""
    return np.isfinite(scores).any(axis=1).sum(axis=-1)


def _draw_agents(scores: FloatArray, counts: NDArray[np.intp], rng: np.random.Generator) -> FloatArray:
    """Seeds drawn for all tasks alike, one fewer than there are: (draws, sizes, tasks, seeds) to the same shape.

    Args:
        scores: a size's seeds that have a score come first.
        counts: (sizes,), how many they are.
        rng: random generator.
    """
    draws, sizes, _, width = scores.shape
    places = (rng.random((draws, sizes, 1, width)) * counts[:, None, None]).astype(np.intp)
    drawn = np.take_along_axis(scores, places, axis=-1)
    return np.where(np.arange(width) < np.maximum(counts - 1, 1)[:, None, None], drawn, np.nan)


def draw_seeds(scores: FloatArray, draws: int, rng: np.random.Generator) -> FloatArray:
    """Seeds drawn within each size and task, one fewer than there are: (sizes, tasks, seeds) to (draws, ...)."""
    packed = np.take_along_axis(scores, np.argsort(np.isnan(scores), axis=-1, kind="stable"), axis=-1)
    counts = np.isfinite(scores).sum(axis=-1)[..., None]
    places = (rng.random((draws, *scores.shape)) * counts).astype(np.intp)
    drawn = np.take_along_axis(np.broadcast_to(packed, places.shape), places, axis=-1)
    return np.where(np.arange(scores.shape[-1]) < np.maximum(counts - 1, 1), drawn, np.nan)
