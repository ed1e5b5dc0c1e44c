"""Tests by permutation, and corrections for many of them."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.bootstrap import check_resampling, portions
from analysis.statistics import interval, mean
from tdmpc2.errors import require, unknown_name

_MOST_SIGNS = 13
"""Up to this many differences all 2^n sign flips are enumerated."""
_MOST_SPLITS = 20_000
"""Up to this many ways to split two samples are enumerated."""


class PairedTest(NamedTuple):
    """Mean of paired differences, its interval, and the p-value of a mean of 0 (two-sided).

    n counts the differences; exact tells that all sign flips were enumerated.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int
    exact: bool


def paired_test(
    differences: ArrayLike, *, permutations: int = 10_000, level: float = 0.95, seed: int = 0
) -> PairedTest:
    """Test of paired differences having mean 0, by flipping their signs; two-sided (Fisher 1935).

    Args:
        differences: (tasks,), one a task; NaN are left out.
        permutations: random sign flips where there are more than 13 differences; up to there all 2^n are enumerated.
        level: of the interval of the mean, a bootstrap over tasks.
        seed: of the random generator.

    Returns:
        The test; p NaN without any difference, the interval NaN below two.
    """
    check_resampling(permutations, level)
    d = np.asarray(differences, dtype=np.float64).ravel()
    d = d[~np.isnan(d)]
    n = len(d)
    if n == 0:
        return PairedTest(np.nan, np.nan, np.nan, np.nan, 0, False)
    value, low, high = interval(d[:, None], mean, level=level, seed=seed, over_tasks=True)
    exact = n <= _MOST_SIGNS
    least = abs(d.sum()) - _rounding(d)
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        p = float(np.mean(np.abs(signs @ d) >= least))
    else:
        rng = np.random.default_rng(seed)
        extreme = 0
        for draws in portions(permutations, n):
            extreme += int(np.sum(np.abs((1.0 - 2.0 * rng.integers(0, 2, (draws, n))) @ d) >= least))
        p = (1 + extreme) / (1 + permutations)
    return PairedTest(value, low, high, p, n, exact)


def two_sample_test(x: ArrayLike, y: ArrayLike, *, permutations: int = 10_000, seed: int = 0) -> float:
    """p-value of two samples having equal means, by permuting who belongs to which; two-sided.

    Args:
        x: (n,); NaN are left out.
        y: (m,); NaN are left out.
        permutations: random ones where there are more than 20,000 splits; up to there all are enumerated.
        seed: of the random generator.

    Returns:
        p; NaN where a sample is empty.
    """
    x, y = (np.asarray(sample, dtype=np.float64).ravel() for sample in (x, y))
    x, y = x[~np.isnan(x)], y[~np.isnan(y)]
    n, m = len(x), len(y)
    if n == 0 or m == 0:
        return np.nan
    pooled = np.concatenate([x, y])
    pooled -= pooled.mean()  # then the means differ by the sum of the first n times (1/n + 1/m)
    least = abs(pooled[:n].sum()) - _rounding(pooled)
    if comb(n + m, n) <= _MOST_SPLITS:
        splits = np.array(list(combinations(range(n + m), n)))
        return float(np.mean(np.abs(pooled[splits].sum(axis=1)) >= least))
    rng = np.random.default_rng(seed)
    extreme = 0
    for draws in portions(permutations, n + m):
        shuffled = rng.permuted(np.broadcast_to(pooled, (draws, n + m)), axis=1)
        extreme += int(np.sum(np.abs(shuffled[:, :n].sum(axis=1)) >= least))
    return (1 + extreme) / (1 + permutations)


def _rounding(values: NDArray[np.float64]) -> float:
    """Sums that differ by less are the same but for the order of summing."""
    return 1e-12 * float(np.abs(values).sum())


def adjust(p_values: ArrayLike, method: str = "holm") -> NDArray[np.float64]:
    """p-values corrected for how many there are.

    Args:
        p_values: (tests,); NaN stay NaN and do not count.
        method: "holm" bounds the chance of any false finding (Holm 1979), "bh" the expected share of false ones among
            the findings (Benjamini and Hochberg 1995).

    Returns:
        (tests,), to compare with the level itself.

    Raises:
        UserError: for another method, or a p-value outside 0..1.
    """
    if method not in ("holm", "bh"):
        raise unknown_name("correction", method, ("holm", "bh"))
    p = np.asarray(p_values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(p))
    require(bool(np.all((p[known] >= 0) & (p[known] <= 1))), "p-values must lie between 0 and 1")
    order = known[np.argsort(p[known], kind="stable")]
    n = len(order)
    rank = np.arange(1, n + 1)
    if method == "holm":
        corrected = np.maximum.accumulate(p[order] * (n - rank + 1))
    else:
        corrected = np.minimum.accumulate((p[order] * n / rank)[::-1])[::-1]
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(corrected, 1.0)
    return adjusted
