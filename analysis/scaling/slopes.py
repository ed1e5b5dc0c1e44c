"""Which tasks gain from a larger model: the slope of score over log10 of parameters, task by task."""

from __future__ import annotations

from itertools import permutations as orders

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from analysis.scaling.resampling import draw_seeds, draws_at_once
from analysis.scaling.series import SizeSeries
from analysis.scores import MIN_SEEDS_FOR_INTERVAL
from analysis.significance import adjust

FloatArray = NDArray[np.float64]

LEVEL = 0.05
"""A task's slope counts as a gain or a loss below this corrected p-value."""
_ALL_ORDERS = 7
"""Up to so many runs of a task all orders are enumerated."""


def task_slopes(series: SizeSeries, resamples: int = 1000, permutations: int = 20_000, seed: int = 0) -> pd.DataFrame:
    """Points of normalised score that a tenfold larger model brings on each task, by least squares over all its runs.

    Args:
        series: two sizes or more and a common task.
        resamples: of the intervals, which draw seeds within each size.
        permutations: random orders of the test that size does not matter, which deals a task's scores out to its runs
            anew; with up to 7 runs all orders are enumerated.
        seed: of the random generators.

    Returns:
        One row a task, the largest slope first: task, runs, slope, low and high (95% interval over seeds, NaN where a
        size has fewer than three), p (two-sided permutation test), p_adjusted (Holm's correction for all tasks),
        verdict (`gain`, `loss` or `not decided`).
    """
    x = np.log10(series.parameters)
    slope = _slopes(x, series.scores)
    low, high = _intervals(x, series.scores, resamples, seed)
    p = _p_values(x, series.scores, permutations, seed)
    adjusted = adjust(p)
    verdict = np.where(adjusted < LEVEL, np.where(slope > 0, "gain", "loss"), "not decided")
    runs = np.isfinite(series.scores).sum(axis=(0, 2))
    table = pd.DataFrame(
        {
            "task": series.tasks, "runs": runs, "slope": slope, "low": low, "high": high, "p": p,
            "p_adjusted": adjusted, "verdict": verdict,
        }
    )  # fmt: skip
    return table.sort_values("slope", ascending=False, kind="stable", ignore_index=True)


def _slopes(x: FloatArray, scores: FloatArray) -> FloatArray:
    """Least-squares slopes: x (sizes,), scores (..., sizes, tasks, seeds) to (..., tasks)."""
    present = np.isfinite(scores)
    place = np.broadcast_to(x[:, None, None], scores.shape)
    count = present.sum(axis=(-3, -1))
    centre = np.where(present, place, 0.0).sum(axis=(-3, -1)) / count
    centred = np.where(present, place - centre[..., None, :, None], 0.0)
    return (centred * np.where(present, scores, 0.0)).sum(axis=(-3, -1)) / (centred**2).sum(axis=(-3, -1))


def _intervals(x: FloatArray, scores: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Low and high (2, tasks), over seeds; widened for few of them, see `resampling.Resampled.bounds`."""
    rng = np.random.default_rng(seed)
    counts = np.isfinite(scores).sum(axis=-1)  # (sizes, tasks)
    drawn = np.concatenate([_slopes(x, draw_seeds(scores, n, rng)) for n in draws_at_once(scores, resamples)])
    freedom = np.maximum((counts - 1).sum(axis=0), 1)
    bounds = np.full((2, scores.shape[1]), np.nan)
    for task in np.flatnonzero(counts.min(axis=0) >= MIN_SEEDS_FOR_INTERVAL):
        tail = float(ndtr(stdtrit(freedom[task], 0.025)))
        bounds[:, task] = np.quantile(drawn[:, task], [tail, 1 - tail])
    return bounds


def _p_values(x: FloatArray, scores: FloatArray, permutations: int, seed: int) -> FloatArray:
    """Two-sided p-values (tasks,) of a slope of 0, by permuting a task's scores over its runs."""
    known: dict[int, NDArray[np.intp]] = {}  # the orders of so many runs
    values = np.empty(scores.shape[1])
    for task in range(scores.shape[1]):
        present = np.isfinite(scores[:, task])
        y = scores[:, task][present]
        place = np.broadcast_to(x[:, None], present.shape)[present]
        if len(y) not in known:
            known[len(y)] = _orders(len(y), permutations, seed)
        centred = place - place.mean()
        sums = np.abs(y[known[len(y)]] @ centred)
        rounding = 1e-9 * float(np.abs(centred).sum())  # in points: equal sums may differ by the order of summing
        extreme = int((sums >= abs(y @ centred) - rounding).sum())
        exact = len(y) <= _ALL_ORDERS
        values[task] = extreme / len(sums) if exact else (extreme + 1) / (len(sums) + 1)
    return values


def _orders(count: int, permutations: int, seed: int) -> NDArray[np.intp]:
    """Orders of so many runs, one a row: all of them, or random ones."""
    if count <= _ALL_ORDERS:
        return np.array(list(orders(range(count))), dtype=np.intp)
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(count), (permutations, 1)), axis=1)
