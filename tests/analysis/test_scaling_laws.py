import itertools

import numpy as np
import pytest
from scipy.optimize import least_squares

from analysis.scaling.laws import EXPONENTS, LOG_LINEAR, POWER_LAW, cross_validate


def squared_error(law, millions, scores) -> float:
    return float(((law.predict(law.fit(millions, scores), millions) - scores) ** 2).sum())


def test_log_linear_law_recovers_a_line_over_decades():
    millions = np.array([1.0, 10.0, 100.0])
    constants = LOG_LINEAR.fit(millions, np.array([[10.0, 30.0, 50.0], [40.0, 40.0, 40.0]]))
    assert constants == pytest.approx(np.array([[10.0, 20.0], [40.0, 0.0]]))
    assert LOG_LINEAR.predict(constants, np.array([1000.0])) == pytest.approx(np.array([[70.0], [40.0]]))


def test_power_law_recovers_the_constants_of_exact_scores():
    millions = np.array([1.0, 4.0, 16.0, 64.0, 256.0])
    rows = np.array([[20.0, 50.0, 65.0, 72.5, 76.25], [50.0, 75.0, 87.5, 93.75, 96.875]])  # 80 - 60/2^k, 100 - 50/2^k
    constants = POWER_LAW.fit(millions, rows)
    assert constants == pytest.approx(np.array([[60.0, 0.5, 80.0], [50.0, 0.5, 100.0]]), rel=1e-4)
    assert POWER_LAW.predict(constants, np.array([1024.0]))[:, 0] == pytest.approx([78.125, 98.4375], rel=1e-4)


def test_power_law_keeps_its_bounds():
    millions = np.array([1.0, 10.0, 100.0, 1000.0])
    a, b, c = POWER_LAW.fit(millions, np.array([10.0, 40.0, 70.0, 100.0]))
    assert (a >= 0, EXPONENTS[0] <= b <= EXPONENTS[1]) == (True, True)
    assert c <= 100.0
    a, _, c = POWER_LAW.fit(millions, np.array([80.0, 60.0, 40.0, 20.0]))
    assert (a, c) == pytest.approx((0.0, 50.0))  # falling scores: the best law that does not fall is their mean


def test_power_law_fits_no_worse_than_a_general_solver_from_many_starts():
    rng = np.random.default_rng(3)
    millions = np.array([1.4, 5.4, 19.0, 48.8, 317.4])
    for _ in range(5):
        scores = np.clip(75 - 60 * millions**-0.4 + rng.normal(0, 5, 5), 0, 100)
        best = min(
            least_squares(
                lambda p, y=scores: p[2] - p[0] * millions ** -p[1] - y,
                (a, b, c),
                bounds=([0, EXPONENTS[0], -1000], [2000, EXPONENTS[1], 100]),
            ).cost
            * 2
            for a, b, c in itertools.product((5, 60), (0.1, 0.5, 2), (60, 95))
        )
        assert squared_error(POWER_LAW, millions, scores) <= best * (1 + 1e-3)


def test_cross_validation_predicts_each_size_from_the_others():
    # Through (1, 0) and (2, 30) the line is at -30 in 0; through (0, 0) and (2, 30) at 15 in 1; else it stays at 0.
    errors = cross_validate(LOG_LINEAR, np.array([1.0, 10.0, 100.0]), np.array([0.0, 0.0, 30.0]))
    assert errors == pytest.approx([900.0, 225.0, 900.0])
