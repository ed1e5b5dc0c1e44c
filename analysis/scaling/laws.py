"""Laws of score over parameters: fitted by least squares, for one set of scores or for thousands at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

TOP = 100.0
"""The largest normalised score."""
EXPONENTS = (0.01, 4.0)
"""Range of the power law's exponent. At the lower end the law is a straight line over log parameters for all that can
be seen; at the upper end, a step behind the smallest model."""
_GRID = 120
_GOLDEN = (math.sqrt(5.0) - 1) / 2


@dataclass(frozen=True)
class Law:
    """A law of score over parameters."""

    name: str
    """For people."""
    formula: str
    """N are millions of parameters."""
    letters: tuple[str, ...]
    """Names of its constants."""
    sizes_needed: int
    """Sizes from which on it is fitted, so that one can be left out to see how well it is predicted."""
    fit: Callable[[FloatArray, FloatArray], FloatArray]
    """(sizes,) millions, (..., sizes) scores -> (..., constants)."""
    predict: Callable[[FloatArray, FloatArray], FloatArray]
    """(..., constants), (points,) millions -> (..., points) scores."""


def fit_log_linear(millions: FloatArray, scores: FloatArray) -> FloatArray:
    """score = a + b log10(N) by least squares: (sizes,), (..., sizes) -> (..., 2) with a, b (points a decade)."""
    x = np.log10(millions)
    centred = x - x.mean()
    slope = scores @ centred / (centred @ centred)
    return np.stack([scores.mean(axis=-1) - slope * x.mean(), slope], axis=-1)


def predict_log_linear(constants: FloatArray, millions: FloatArray) -> FloatArray:
    """(..., 2), (points,) -> (..., points)."""
    return constants[..., :1] + constants[..., 1:] * np.log10(millions)


def fit_power_law(millions: FloatArray, scores: FloatArray) -> FloatArray:
    """score = c - a N^(-b) by least squares, with a >= 0, c <= 100 and b within `EXPONENTS`.

    With b given, the best a and c follow from a linear regression (variable projection, Golub and Pereyra 1973), so
    only b is searched: on a grid, which no local minimum can mislead, then by golden section around the best place.

    Args:
        millions: (sizes,) parameters.
        scores: (..., sizes).

    Returns:
        (..., 3): a, b, c.
    """
    flat = scores.reshape(-1, scores.shape[-1])
    log_b = np.linspace(math.log(EXPONENTS[0]), math.log(EXPONENTS[1]), _GRID)
    errors = np.stack([_given_exponent(millions, flat, np.full(len(flat), np.exp(b)))[2] for b in log_b])
    best = errors.argmin(axis=0)
    low, high = log_b[np.maximum(best - 1, 0)], log_b[np.minimum(best + 1, _GRID - 1)]
    for _ in range(40):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        is_left = _given_exponent(millions, flat, np.exp(left))[2] <= _given_exponent(millions, flat, np.exp(right))[2]
        low, high = np.where(is_left, low, left), np.where(is_left, right, high)
    b = np.exp((low + high) / 2)
    a, c, _ = _given_exponent(millions, flat, b)
    return np.stack([a, b, c], axis=-1).reshape(*scores.shape[:-1], 3)


def _given_exponent(
    millions: FloatArray, scores: FloatArray, b: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The best a >= 0 and c <= 100 for scores (fits, sizes) with exponents b (fits,), and the sum of squared errors.

    The problem is convex: where the free solution breaks a bound, the best one lies on a bound.
    """
    z = millions ** -b[:, None]
    mean_z, mean_y = z.mean(axis=1), scores.mean(axis=1)
    centred = z - mean_z[:, None]
    free_a = -(centred * scores).sum(axis=1) / (centred**2).sum(axis=1)
    free_c = mean_y + free_a * mean_z
    top_a = np.maximum((z * (TOP - scores)).sum(axis=1) / (z**2).sum(axis=1), 0.0)
    a = np.stack([free_a, top_a, np.zeros_like(mean_y)])
    c = np.stack([free_c, np.full_like(mean_y, TOP), np.minimum(mean_y, TOP)])
    errors = ((c[..., None] - a[..., None] * z - scores) ** 2).sum(axis=-1)
    errors[0] = np.where((free_a >= 0) & (free_c <= TOP), errors[0], np.inf)
    best = errors.argmin(axis=0)[None]
    chosen = (np.take_along_axis(values, best, axis=0)[0] for values in (a, c, errors))
    return next(chosen), next(chosen), next(chosen)


def predict_power_law(constants: FloatArray, millions: FloatArray) -> FloatArray:
    """(..., 3), (points,) -> (..., points)."""
    a, b, c = (constants[..., place, None] for place in range(3))
    return c - a * millions**-b


LOG_LINEAR = Law("log-linear", "score = a + b log10(N)", ("a", "b"), 3, fit_log_linear, predict_log_linear)
POWER_LAW = Law(
    "saturating power law", "score = c - a N^(-b)", ("a", "b", "c"), 4, fit_power_law, predict_power_law
)  # fmt: skip
LAWS = (LOG_LINEAR, POWER_LAW)
"""The simpler law first."""


def cross_validate(law: Law, millions: FloatArray, scores: FloatArray) -> FloatArray:
    """Squared errors of predicting each size from the others: (sizes,), (sizes,) -> (sizes,)."""
    errors = np.empty(len(millions))
    for left_out in range(len(millions)):
        others = np.arange(len(millions)) != left_out
        constants = law.fit(millions[others], scores[others])
        errors[left_out] = law.predict(constants, millions[left_out : left_out + 1])[0] - scores[left_out]
    return errors**2
