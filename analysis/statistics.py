"""Scores with their uncertainty: aggregates over tasks and seeds, and comparisons, with their intervals.

Scores are arrays (..., tasks, seeds), normalised to 0..100, NaN where a seed is missing (in any place of a row). A task
without any seed is left out. Everything is vectorised, and random only through the `seed` that is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.bootstrap import (
    Scores,
    Seeds,
    check_resampling,
    checked_scores,
    count_present,
    degrees_of_freedom,
    mean_of_present,
    percentile_bounds,
    present_seeds,
    seed_resamples,
    task_resamples,
)
from tdmpc2.errors import require, unknown_name

Statistic = Callable[[Scores], NDArray[np.float64]]
"""From scores (..., tasks, seeds) to one number for each leading index."""


class Interval(NamedTuple):
    """A statistic with its interval; low and high are NaN where no interval can be given."""

    value: float
    low: float
    high: float


# Aggregates


def mean(scores: Scores) -> NDArray[np.float64]:
    """Mean over tasks of each task's mean over its seeds: scores (..., tasks, seeds) to (...)."""
    return mean_of_present(_task_means(scores))


def median(scores: Scores) -> NDArray[np.float64]:
    """Median over tasks of each task's mean over its seeds: scores (..., tasks, seeds) to (...)."""
    ordered = np.sort(_task_means(scores), axis=-1)  # NaN last
    if ordered.shape[-1] == 0:
        return np.full(ordered.shape[:-1], np.nan)
    n = count_present(ordered)[..., None]
    middle = [np.take_along_axis(ordered, np.maximum(place, 0), axis=-1)[..., 0] for place in ((n - 1) // 2, n // 2)]
    return (middle[0] + middle[1]) / 2


def iqm(scores: Scores) -> NDArray[np.float64]:
    """Interquartile mean over all runs pooled: scores (..., tasks, seeds) to (...).

    Of n runs the int(n / 4) lowest and as many of the highest are left out, and the rest is averaged (Agarwal et al.
    2021, arXiv:2108.13264, as `scipy.stats.trim_mean` with 0.25).
    """
    scores = checked_scores(scores)
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)  # NaN last
    n = count_present(ordered)
    cut = n // 4
    place = np.arange(ordered.shape[-1])
    kept = (place >= cut[..., None]) & (place < (n - cut)[..., None])
    with np.errstate(invalid="ignore"):  # no run at all: NaN is the answer
        return np.where(kept, ordered, 0.0).sum(axis=-1) / (n - 2 * cut)


def optimality_gap(scores: Scores, target: float = 100.0) -> NDArray[np.float64]:
    """How far runs stay below a target on average; what is above it does not make up for what is below.

    Agarwal et al. 2021 (arXiv:2108.13264): target - mean of min(score, target), tasks counting the same.

    Args:
        scores: (..., tasks, seeds).
        target: the score that is good enough.

    Returns:
        (...), in points of normalised score, 0 or more.
    """
    return target - mean(np.minimum(scores, target))


AGGREGATES: Mapping[str, Statistic] = {
    "mean": mean,
    "median": median,
    "iqm": iqm,
    "optimality_gap": optimality_gap,
}
"""The aggregate statistics by name."""


def _task_means(scores: Scores) -> NDArray[np.float64]:
    return mean_of_present(checked_scores(scores))


# Intervals


def interval(
    scores: Scores,
    statistic: Statistic,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    over_tasks: bool = False,
    together: bool = False,
) -> Interval:
    """A statistic of scores with its stratified bootstrap interval.

    Seeds are drawn with replacement within each task, so the interval speaks of these very tasks. Plainly drawn, n of n
    seeds have means whose variance is (n - 1) / n of the true one: far too little for three seeds. Rao and Wu (1988,
    doi:10.1080/01621459.1988.10478591) draw n - 1 instead, which sets that right but lets tasks with many seeds weigh
    more in pooled statistics. Here n are drawn, and with probability n / (2 (n - 1)) the last repeats one of the
    others: again the variance of a task's mean is unbiased, every task keeps its weight, and the statistic its range.
    The percentiles lie further out where few seeds tell of the spread (`percentile_bounds`, `degrees_of_freedom`).

    Measured share of 95% intervals that contain the truth (400 to 1,000 simulations of tasks with noise of deviation 1
    to 25, clipped to 0..100), mean / IQM in percent:

    | tasks x seeds   | 10 x 3      | 10 x 5      | 10 x 10     | 39 x 3      | 39 x 10     | 104 x 3     |
    |-----------------|-------------|-------------|-------------|-------------|-------------|-------------|
    | normal          | 94.6 / 93.7 | 94.3 / 94.3 |             | 94.8 / 95.8 |             | 95.2 / 95.0 |
    | exponential     | 91.6 / 93.3 |             | 93.7 / 94.8 | 94.7 / 95.5 | 96.2 / 95.0 | 95.0 / 94.2 |

    So with few tasks, few seeds and rare failures the interval of the mean is a little too narrow; that of the median,
    which hangs on few tasks, too: 92.0 with 10 x 3. Plain drawing of n of n gave 84.1 / 84.4 (normal, 10 x 3). Where
    many tasks are nearly solved, the median of few seeds is itself a biased estimate, and its interval rarely contains
    the median of many (with TD-MPC2's published spread, 104 x 3: mean 94.7, IQM 93.7, median 34): prefer the IQM.

    A task with a single seed adds no spread: with some such tasks the interval is too narrow.

    Args:
        scores: (tasks, seeds).
        statistic: function of scores (..., tasks, seeds), e.g. one of `AGGREGATES`.
        resamples: how often the scores are drawn anew.
        level: share of such intervals that are to contain the truth.
        seed: of the random generator.
        over_tasks: draw tasks instead, for statements about tasks like these. A drawn task brings all its seeds, and
            with them their spread: drawing them once more would count it twice (Davison and Hinkley 1997, Bootstrap
            Methods and their Application, section 3.8). One seed a task is enough then.
        together: whether a seed is one agent of all tasks (a multi-task agent), whose scores rise and fall together:
            agents are drawn then, as drawing each task's seeds apart would let their luck cancel out.

    Returns:
        The statistic; without interval (NaN) where no task has two seeds, with `over_tasks` where there are fewer than
        two tasks.
    """
    return _intervals(scores, {"": statistic}, resamples, level, seed, over_tasks, together)[""]


def aggregate(
    scores: Scores,
    *,
    names: Sequence[str] = tuple(AGGREGATES),
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    over_tasks: bool = False,
    together: bool = False,
) -> dict[str, Interval]:
    """Several aggregates of the same scores with their intervals, from one set of resamples.

    Args:
        scores: (tasks, seeds).
        names: of `AGGREGATES`.
        resamples: this and the rest as for `interval`.
        level: of each interval by itself.
        seed: of the random generator.
        over_tasks: draw tasks instead of seeds.
        together: draw whole agents, each of all tasks.

    Returns:
        Interval by name.

    Raises:
        UserError: for a name that is not in `AGGREGATES`.
    """
    for name in names:
        if name not in AGGREGATES:
            raise unknown_name("aggregate", name, AGGREGATES)
    return _intervals(scores, {name: AGGREGATES[name] for name in names}, resamples, level, seed, over_tasks, together)


def _intervals(
    scores: Scores,
    statistics: Mapping[str, Statistic],
    resamples: int,
    level: float,
    seed: int,
    over_tasks: bool,
    together: bool,
) -> dict[str, Interval]:
    check_resampling(resamples, level)
    scores = checked_scores(scores, axes=2)
    seeds = present_seeds(scores, together and not over_tasks)
    freedom = max(len(seeds.counts) - 1, 0) if over_tasks else degrees_of_freedom(seeds)
    drawn: list[NDArray[np.float64]] = []
    if freedom:
        draw = task_resamples if over_tasks else seed_resamples
        drawn = [
            np.stack([statistic(part) for statistic in statistics.values()])
            for part in draw(np.random.default_rng(seed), seeds, resamples)
        ]
    values = np.array([float(statistic(scores)) for statistic in statistics.values()])
    low, high = percentile_bounds(
        np.concatenate([np.empty((len(values), 0)), *drawn], axis=1).T, values, level, freedom
    )
    return {
        name: Interval(*map(float, found))
        for name, found in zip(statistics, np.stack([values, low, high]).T, strict=True)
    }


def difference(
    x: Scores,
    y: Scores,
    statistic: Statistic,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    together: tuple[bool, bool] = (False, False),
) -> Interval:
    """statistic(x) - statistic(y) with its interval; seeds are drawn within tasks, independently for x and y.

    Args:
        x: scores (tasks, seeds).
        y: scores (tasks, other seeds); its rows are the same tasks. A task that lacks seeds on either side is left out
            of both.
        statistic: function of scores (..., tasks, seeds), e.g. one of `AGGREGATES`.
        resamples: this and the rest as for `interval`.
        level: of the interval.
        seed: of the random generator.
        together: of x and of y, as for `interval`.

    Returns:
        The difference; without interval (NaN) where one side has no task with two seeds, since its spread is not known.

    Raises:
        UserError: if x and y have different numbers of tasks.
    """
    check_resampling(resamples, level)
    sides = _shared(x, y, together)
    drawn = _drawn(sides, statistic, resamples, seed)
    value = float(statistic(sides[0].rows) - statistic(sides[1].rows))
    low, high = percentile_bounds(drawn[0] - drawn[1], value, level, degrees_of_freedom(*sides))
    return Interval(value, float(low), float(high))


def _shared(x: Scores, y: Scores, together: tuple[bool, bool]) -> tuple[Seeds, Seeds]:
    """The tasks that both sides have seeds of."""
    x, y = checked_scores(x, axes=2), checked_scores(y, axes=2)
    require(len(x) == len(y), f"x and y must have the same tasks, but have {len(x)} and {len(y)} rows")
    shared = ~(np.isnan(x).all(axis=1) | np.isnan(y).all(axis=1))
    return present_seeds(x[shared], together[0]), present_seeds(y[shared], together[1])


def _drawn(sides: Sequence[Seeds], statistic: Statistic, resamples: int, seed: int) -> list[NDArray[np.float64]]:
    """A statistic of independent resamples of each side: an array (resamples,) each."""
    rng = np.random.default_rng(seed)
    return [np.concatenate([statistic(part) for part in seed_resamples(rng, side, resamples)]) for side in sides]


def performance_profile(
    scores: Scores,
    thresholds: ArrayLike,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    together: bool = False,
) -> pd.DataFrame:
    """Share of runs that score above each threshold, each task counting the same (Agarwal et al. 2021).

    Args:
        scores: (tasks, seeds).
        thresholds: normalised scores, in any order.
        resamples: this and the rest as for `interval`.
        level: of the interval at each threshold by itself, not of the whole curve. With 10 tasks or fewer, where shares
            are near 0 or 1, it was seen to contain the truth in only 73 to 90%.
        seed: of the random generator.
        together: as for `interval`.

    Returns:
        threshold (rising), share (0 to 1), low, high.
    """
    check_resampling(resamples, level)
    edges = np.sort(np.asarray(thresholds, dtype=np.float64).ravel())
    seeds = present_seeds(checked_scores(scores, axes=2), together)
    if len(seeds.rows) == 0:
        return pd.DataFrame({"threshold": edges, "share": np.nan, "low": np.nan, "high": np.nan})
    # How many thresholds each run is above says all: a resample's profile is a weighted histogram of these numbers.
    numbers = np.where(np.isnan(seeds.rows), np.nan, np.searchsorted(edges, seeds.rows, side="left"))
    parts = seed_resamples(np.random.default_rng(seed), seeds._replace(rows=numbers), resamples)
    drawn = np.concatenate([_profile(part, len(edges)) for part in parts])
    share = _profile(numbers[None], len(edges))[0]
    low, high = percentile_bounds(drawn, share, level, degrees_of_freedom(seeds))
    return pd.DataFrame({"threshold": edges, "share": share, "low": low, "high": high})


def _profile(above: NDArray[np.float64], thresholds: int) -> NDArray[np.float64]:
    """Share of the runs above each threshold, each task counting the same.

    Args:
        above: (draws, tasks, seeds), how many thresholds a run is above; NaN where it is missing.
        thresholds: how many there are.

    Returns:
        (draws, thresholds).
    """
    draws, bins = len(above), thresholds + 1
    places = np.nan_to_num(above).astype(np.intp) + (np.arange(draws) * bins)[:, None, None]
    present = ~np.isnan(above)
    of_task = present.sum(axis=-1, keepdims=True)
    tasks = (of_task > 0).sum(axis=1, keepdims=True)
    weights = np.where(present, 1 / np.maximum(of_task * tasks, 1), 0.0)
    counted = np.bincount(places.ravel(), weights.ravel(), minlength=draws * bins)
    from_top = counted.reshape(draws, bins)[:, :0:-1].cumsum(axis=1)
    return np.minimum(from_top[:, ::-1], 1.0)  # sums may round to a little more than 1


def probability_of_improvement(
    x: Scores,
    y: Scores,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    together: tuple[bool, bool] = (False, False),
) -> Interval:
    """Probability that a run of x scores higher than one of y on the same task, mean over tasks; ties count half.

    For each task Mann and Whitney's U / (n m), as Agarwal et al. 2021 (arXiv:2108.13264). What is resampled is each
    run's share of won comparisons, on either side (DeLong et al. 1988, doi:10.2307/2531595): resampled runs compared
    anew would count the noise of the comparisons again, and the interval be too wide.

    Args:
        x: scores (tasks, seeds).
        y: scores (tasks, other seeds); its rows are the same tasks. A task that lacks seeds on either side is left out.
        resamples: this and the rest as for `interval`.
        level: of the interval.
        seed: of the random generator.
        together: of x and of y, as for `interval`.

    Returns:
        The probability; without interval (NaN) where one side has no task with two seeds.

    Raises:
        UserError: if x and y have different numbers of tasks.
    """
    check_resampling(resamples, level)
    x_runs, y_runs = _shared(x, y, together)
    wins = (np.sign(x_runs.rows[:, :, None] - y_runs.rows[:, None, :]) + 1) / 2  # NaN where either is missing
    shares = (
        x_runs._replace(rows=mean_of_present(wins)),
        y_runs._replace(rows=mean_of_present(wins.swapaxes(1, 2))),
    )
    value = float(mean(shares[0].rows))
    drawn = _drawn(shares, mean, resamples, seed)
    low, high = np.clip(
        percentile_bounds(drawn[0] + drawn[1] - value, value, level, degrees_of_freedom(*shares)), 0.0, 1.0
    )
    return Interval(value, float(low), float(high))


# Learning curves


def _curve(steps: ArrayLike, values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of one curve by rising step, without those that have no value."""
    steps, values = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    require(steps.shape == values.shape, f"a curve needs as many values as steps: {values.shape}, {steps.shape}")
    order = np.argsort(steps, kind="stable")
    order = order[~np.isnan(values[order])]
    return steps[order], values[order]


def area_under_curve(steps: ArrayLike, values: ArrayLike, budget: float) -> float:
    """Mean height of a curve from its first step to a budget, straight lines between its points.

    Args:
        steps: (points,), environment steps, in any order.
        values: (points,), e.g. normalised scores; NaN are left out.
        budget: environment steps.

    Returns:
        In units of the values; NaN where the curve ends before the budget or begins after it.
    """
    steps, values = _curve(steps, values)
    if len(steps) == 0 or not steps[0] <= budget <= steps[-1]:
        return np.nan
    end = float(np.interp(budget, steps, values))
    if budget == steps[0]:
        return end
    before = steps < budget
    area = np.trapezoid([*values[before], end], [*steps[before], budget])
    return float(area / (budget - steps[0]))


def steps_to_threshold(steps: ArrayLike, values: ArrayLike, threshold: float) -> float:
    """The first step at which a curve is at or above a threshold, on the straight line between its points.

    Args:
        steps: (points,), environment steps, in any order.
        values: (points,), e.g. normalised scores; NaN are left out.
        threshold: in units of the values.

    Returns:
        Environment steps; NaN if the curve never gets there.
    """
    steps, values = _curve(steps, values)
    reached = np.flatnonzero(values >= threshold)
    if len(reached) == 0:
        return np.nan
    first = int(reached[0])
    if first == 0:
        return float(steps[0])
    share = (threshold - values[first - 1]) / (values[first] - values[first - 1])
    return float(steps[first - 1] + share * (steps[first] - steps[first - 1]))
