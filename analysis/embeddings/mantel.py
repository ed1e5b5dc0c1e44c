"""Do two labels of tasks explain which tasks are similar? Mantel tests, plain and partial, and a bootstrap over tasks.

The observations are pairs of tasks: their similarity, whether they share the embodiment, whether they share the
objective. Pairs that have a task in common depend on one another, so tasks, not pairs, are permuted and resampled.

* Mantel (1967): correlation r over pairs of the similarity with an indicator. The rows and columns of the similarity
  matrix are permuted together; p is the share of permutations whose |r| is at least as large.
* Smouse, Long & Sokal (1986): partial r, with the other indicator held fixed. The similarity matrix is permuted, the
  two indicators stay as they are to each other.
* Snijders & Borgatti (1999): intervals from tasks drawn with replacement. A pair of a task with itself counts nothing.

Where suites are given, similarity and indicators are compared within each pair of suites alone (their means there are
taken off), and tasks are permuted within their suite: that suites differ explains nothing then.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MIN_TASKS = 6
"""Fewer tasks give no interval."""
_BATCH = 500
"""Permutations or resamples at once: bounds the memory, 500 x 5,356 pairs of 104 tasks are 21 MB."""
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Pairs:
    """All pairs of some tasks, (pairs,) each."""

    tasks: int
    """Number of tasks."""
    first: NDArray[np.intp]
    """Index of one task."""
    second: NDArray[np.intp]
    """Index of the other one, larger."""
    similarity: Array
    """Similarity of the two."""
    embodiment: Array
    """1 where they share the embodiment, else 0."""
    objective: Array
    """1 where they share the objective, else 0."""
    stratum: NDArray[np.intp]
    """Number of the pair of suites that the two are of; 0 throughout where suites play no part."""
    suite: NDArray[np.intp]
    """(tasks,): number of each task's suite; 0 throughout where suites play no part."""


class Estimate(NamedTuple):
    """A number with its 95% interval, NaN where none can be given."""

    value: float
    low: float
    high: float


class Association(NamedTuple):
    """How similarity goes with one label."""

    r: Estimate
    """Mantel's correlation."""
    p: float
    """Two-sided p-value of r; NaN where r is."""
    partial: Estimate
    """Correlation with the other label held fixed."""
    partial_p: float
    """Two-sided p-value of the partial correlation."""


class MantelTest(NamedTuple):
    """How similarity goes with both labels. NaN stands where no pair, or every pair, shares a label."""

    embodiment: Association
    """With sharing the embodiment."""
    objective: Association
    """With sharing the objective."""
    difference: Estimate
    """r of embodiment less r of objective."""
    permutations: int
    """Permutations tried."""
    exact: bool
    """Whether these are all there are."""


def make_pairs(
    similarity: Array, embodiments: Sequence[str], objectives: Sequence[str], suites: Sequence[str] | None = None
) -> Pairs:
    """All pairs of tasks.

    Args:
        similarity: (tasks, tasks), symmetric.
        embodiments: label of each task.
        objectives: label of each task.
        suites: suite of each task, to compare within pairs of suites; None: compare all pairs.
    """
    count = len(similarity)
    first, second = np.triu_indices(count, 1)
    bodies, aims = np.asarray(embodiments, dtype=object), np.asarray(objectives, dtype=object)
    suite = np.zeros(count, np.intp) if suites is None else np.unique(np.asarray(suites), return_inverse=True)[1]
    low, high = np.minimum(suite[first], suite[second]), np.maximum(suite[first], suite[second])
    stratum = np.unique(low * (count + 1) + high, return_inverse=True)[1]
    same_body, same_aim = (labels[first] == labels[second] for labels in (bodies, aims))
    return Pairs(
        count,
        first,
        second,
        similarity[first, second],
        same_body.astype(np.float64),
        same_aim.astype(np.float64),
        stratum,
        suite,
    )


def mantel_test(pairs: Pairs, *, permutations: int = 10_000, resamples: int = 2_000, seed: int = 0) -> MantelTest:
    """Mantel and partial Mantel tests of similarity with both labels, with intervals from a bootstrap over tasks.

    p-values: the share of permutations with |r| at least the observed one; of all, where they are no more than
    `permutations`, else of so many drawn ones and the observed order itself, (count + 1) / (permutations + 1).

    Args:
        pairs: all pairs of the tasks.
        permutations: permutations to draw at most.
        resamples: draws of tasks for the intervals.
        seed: of both.
    """
    rng = np.random.default_rng(seed)
    observed = _correlations(np.ones((1, len(pairs.similarity))), pairs)
    drawn, exact = _permuted(pairs, permutations, rng)
    p = [_p_value(o, n, exact) for o, n in zip(_all(observed), _all(drawn), strict=True)]
    resampled = _bootstrapped(pairs, resamples, rng)
    r_body, r_aim, partial_body, partial_aim = (
        _estimate(float(o[0]), n) for o, n in zip(_all(observed), _all(resampled), strict=True)
    )
    difference = _estimate(r_body.value - r_aim.value, resampled[:, 0] - resampled[:, 1])
    return MantelTest(
        Association(r_body, p[0], partial_body, p[2]),
        Association(r_aim, p[1], partial_aim, p[3]),
        difference,
        len(drawn),
        exact,
    )


def bootstrap_means(
    pairs: Pairs, groups: NDArray[np.bool_], *, resamples: int = 2_000, seed: int = 0
) -> list[Estimate]:
    """Mean similarity of groups of pairs, with intervals from a bootstrap over tasks.

    Args:
        pairs: all pairs of the tasks.
        groups: (groups, pairs), which pairs are in each.
        resamples: draws of tasks.
        seed: of the draws.

    Returns:
        One estimate a group, then that of the first group's mean less the second's. NaN where a group is empty.
    """
    members = groups.T.astype(np.float64)
    sums = np.concatenate([members, members * pairs.similarity[:, None]], axis=1)
    observed = sums.sum(axis=0)[None]
    drawn = [observed]
    if pairs.tasks >= MIN_TASKS:
        drawn = [weights @ sums for weights in _task_weights(pairs, resamples, np.random.default_rng(seed))]
    size = len(groups)
    means = [_ratio(part[:, size:], part[:, :size]) for part in (observed, np.concatenate(drawn))]
    with_difference = [np.column_stack([part, part[:, 0] - part[:, 1]]) for part in means]
    return [_estimate(float(o[0]), n) for o, n in zip(with_difference[0].T, with_difference[1].T, strict=True)]


def _correlations(weights: Array, pairs: Pairs) -> Array:
    """Weighted correlations over pairs, within strata, (draws, pairs) -> (draws, 3).

    Of similarity and embodiment, similarity and objective, embodiment and objective.
    """
    values = np.column_stack([pairs.similarity, pairs.embodiment, pairs.objective])
    inside = pairs.stratum[:, None] == np.arange(pairs.stratum.max(initial=0) + 1)
    products = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    second = weights @ np.column_stack([values[:, i] * values[:, j] for i, j in products])
    sizes = weights @ inside.astype(np.float64)
    sums = [weights @ (inside * values[:, i, None]) for i in range(3)]
    moments = []
    for column, (i, j) in enumerate(products):
        of_means = np.where(sizes > 0, _ratio(sums[i] * sums[j], sizes), 0.0).sum(axis=1)
        moments.append(second[:, column] - of_means)
    spread = [np.where(moments[i] > _ROUNDING * (second[:, i] + 1), moments[i], np.nan) for i in range(3)]
    r = [moments[column] / np.sqrt(spread[i] * spread[j]) for column, (i, j) in list(enumerate(products))[3:]]
    return np.clip(np.column_stack(r), -1, 1)


def _all(correlations: Array) -> tuple[Array, Array, Array, Array]:
    """(draws, 3) -> r and partial r: of embodiment, of objective, and both with the other held fixed, (draws,) each."""
    body, aim, labels = correlations.T
    return body, aim, _partial(body, aim, labels), _partial(aim, body, labels)


def _partial(r: Array, other: Array, between: Array) -> Array:
    """Partial correlation; NaN where the other label leaves nothing to explain."""
    left = (1 - other**2) * (1 - between**2)
    return np.clip(_ratio(r - other * between, np.sqrt(np.where(left > _ROUNDING, left, 0.0))), -1, 1)


def _permuted(pairs: Pairs, permutations: int, rng: np.random.Generator) -> tuple[Array, bool]:
    """Correlations as `_correlations` for permuted similarity matrices, and whether these are all permutations.

    Permutations map each stratum onto itself: means and spreads stay, only the products with the labels change.
    """
    columns = [_centred(values, pairs.stratum) for values in (pairs.similarity, pairs.embodiment, pairs.objective)]
    matrix = np.zeros((pairs.tasks, pairs.tasks))
    matrix[pairs.first, pairs.second] = matrix[pairs.second, pairs.first] = columns[0]
    labels = np.column_stack(columns[1:])
    labels_agree = _correlations(np.ones((1, len(pairs.similarity))), pairs)[0, 2]
    members = [np.flatnonzero(pairs.suite == suite) for suite in np.unique(pairs.suite)]
    exact = math.prod(math.factorial(len(part)) for part in members) <= permutations
    norms = np.linalg.norm(columns[0]) * np.linalg.norm(labels, axis=0)
    found = []
    for orders in _all_orders(members) if exact else _drawn_orders(members, permutations, rng):
        moved = matrix[orders[:, pairs.first], orders[:, pairs.second]]
        r = _ratio(moved @ labels, np.where(norms > _ROUNDING, norms, 0.0)[None])
        found.append(np.column_stack([r, np.full(len(r), labels_agree)]))
    return np.concatenate(found), exact


def _all_orders(members: Sequence[NDArray[np.intp]]) -> Iterator[NDArray[np.intp]]:
    """Every order of the tasks that keeps each suite's tasks on the suite's places, (orders, tasks)."""
    places = np.argsort(np.concatenate(members))
    whole = itertools.product(*(itertools.permutations(part.tolist()) for part in members))
    while batch := list(itertools.islice(whole, _BATCH)):
        yield np.array([list(itertools.chain(*order)) for order in batch])[:, places]


def _drawn_orders(
    members: Sequence[NDArray[np.intp]], permutations: int, rng: np.random.Generator
) -> Iterator[NDArray[np.intp]]:
    for start in range(0, permutations, _BATCH):
        count = min(_BATCH, permutations - start)
        orders = np.empty((count, sum(map(len, members))), np.intp)
        for part in members:
            orders[:, part] = rng.permuted(np.broadcast_to(part, (count, len(part))), axis=1)
        yield orders


def _bootstrapped(pairs: Pairs, resamples: int, rng: np.random.Generator) -> Array:
    """Correlations as `_correlations` for tasks drawn with replacement; NaN with too few tasks."""
    if pairs.tasks < MIN_TASKS:
        return np.full((1, 3), np.nan)
    return np.concatenate([_correlations(weights, pairs) for weights in _task_weights(pairs, resamples, rng)])


def _task_weights(pairs: Pairs, resamples: int, rng: np.random.Generator) -> Iterator[Array]:
    """How often each pair counts when tasks are drawn with replacement, within their suite, (draws, pairs)."""
    for start in range(0, resamples, _BATCH):
        count = min(_BATCH, resamples - start)
        drawn = np.empty((count, pairs.tasks))
        for suite in np.unique(pairs.suite):
            part = np.flatnonzero(pairs.suite == suite)
            drawn[:, part] = rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=count)
        yield drawn[:, pairs.first] * drawn[:, pairs.second]


def _centred(values: Array, stratum: NDArray[np.intp]) -> Array:
    means = np.bincount(stratum, values) / np.maximum(np.bincount(stratum), 1)
    centred = values - means[stratum] if len(values) else values
    return np.where(np.abs(centred) > _ROUNDING, centred, 0.0)


def _p_value(observed: Array, drawn: Array, exact: bool) -> float:
    if np.isnan(observed[0]):
        return float("nan")
    as_large = int((np.abs(drawn) >= abs(observed[0]) - _ROUNDING).sum())
    return as_large / len(drawn) if exact else (as_large + 1) / (len(drawn) + 1)


def _estimate(value: float, drawn: Array) -> Estimate:
    """A value with the middle 95% of draws; without, where fewer than nine in ten draws have a value."""
    known = drawn[np.isfinite(drawn)]
    if math.isnan(value) or len(drawn) < 2 or len(known) < 0.9 * len(drawn):
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Quotient, NaN where the denominator is 0."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=np.broadcast_to(denominator, shape) > 0)
