"""Coverage of the intervals on simulated scores whose truth is known, and published aggregates."""

import os
from pathlib import Path

import numpy as np
import pytest

from analysis import statistics as st
from analysis.reference import load_reference
from analysis.scores import run_scores, score_matrix

pytestmark = pytest.mark.slow
SIMULATIONS = 1000
"""Monte Carlo error of a coverage of 95%: sqrt(0.95 x 0.05 / 1000) = 0.7%."""
RESAMPLES = 500


def draw(rng: np.random.Generator, centres: np.ndarray, deviations: np.ndarray, seeds: int, noise: str) -> np.ndarray:
    shape = (len(centres), seeds)
    z = rng.standard_normal(shape) if noise == "normal" else 1 - rng.exponential(size=shape)
    return np.clip(centres[:, None] + deviations[:, None] * z, 0, 100)


def simulated_tasks(rng: np.random.Generator, tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (many near 100) and deviations of the tasks' scores."""
    return rng.beta(2, 0.8, tasks) * 100, rng.choice([1, 5, 15, 25], tasks)


def covered(found: st.Interval, truth: float) -> bool:
    return found.low <= truth <= found.high


@pytest.mark.parametrize(
    ("tasks", "seeds", "noise"), [(10, 5, "normal"), (39, 3, "normal"), (39, 3, "exponential"), (39, 10, "exponential")]
)
def test_intervals_of_mean_and_iqm_cover_the_truth(tasks, seeds, noise):
    rng = np.random.default_rng(1)
    hits = {"mean": 0, "iqm": 0}
    for _ in range(20):
        task = simulated_tasks(rng, tasks)
        truth = draw(rng, *task, 5000, noise)
        for seed in range(SIMULATIONS // 20):
            scores = draw(rng, *task, seeds, noise)
            found = st.aggregate(scores, names=tuple(hits), resamples=RESAMPLES, seed=seed)
            for name in hits:
                hits[name] += covered(found[name], float(st.AGGREGATES[name](truth)))
    for name, count in hits.items():
        assert 0.93 <= count / SIMULATIONS <= 0.97, (name, count)


def test_intervals_of_comparisons_cover_the_truth():
    rng = np.random.default_rng(2)
    hits = {"mean": 0, "iqm": 0, "probability": 0}
    for _ in range(20):
        centres, deviations = simulated_tasks(rng, 39)
        lower = np.clip(centres - rng.normal(5, 8, 39), 0, 100)
        true_x, true_y = (draw(rng, c, deviations, 3000, "normal") for c in (centres, lower))
        truth = {name: float(st.AGGREGATES[name](true_x) - st.AGGREGATES[name](true_y)) for name in ("mean", "iqm")}
        ranks = [(np.searchsorted(np.sort(q), p, "left"), np.searchsorted(np.sort(q), p, "right")) for p, q in
                 zip(true_x, true_y, strict=True)]  # fmt: skip
        truth["probability"] = float(np.mean(ranks) / 3000)
        for seed in range(SIMULATIONS // 20):
            x, y = (draw(rng, c, deviations, 3, "normal") for c in (centres, lower))
            for name in ("mean", "iqm"):
                found = st.difference(x, y, st.AGGREGATES[name], resamples=RESAMPLES, seed=seed)
                hits[name] += covered(found, truth[name])
            found = st.probability_of_improvement(x, y, resamples=RESAMPLES, seed=seed)
            hits["probability"] += covered(found, truth["probability"])
    for name, count in hits.items():
        assert 0.93 <= count / SIMULATIONS <= 0.975, (name, count)


def test_intervals_over_tasks_cover_the_mean_of_all_tasks_like_these():
    rng = np.random.default_rng(3)
    truth = float(draw(rng, *simulated_tasks(rng, 100_000), 5, "normal").mean())
    hits = 0
    for seed in range(SIMULATIONS):
        scores = draw(rng, *simulated_tasks(rng, 39), 3, "normal")
        hits += covered(st.interval(scores, st.mean, resamples=RESAMPLES, seed=seed, over_tasks=True), truth)
    assert 0.93 <= hits / SIMULATIONS <= 0.97, hits


def test_published_aggregates_hold():
    folder = os.environ.get("TDMPC2_REFERENCE")
    if not folder:
        pytest.skip("TDMPC2_REFERENCE names no folder of published curves")
    table = load_reference(Path(folder)).table
    table = table[table["algorithm"] == "tdmpc2"]
    tasks, scores = score_matrix(run_scores(table))
    assert len(tasks) == 104
    assert float(st.mean(scores)) == pytest.approx(90.8, abs=0.05)
    assert float(st.iqm(scores)) == pytest.approx(97.6, abs=0.05)
    tasks, scores = score_matrix(run_scores(table[table["suite"] == "dmcontrol"], budget=1_000_000))
    assert len(tasks) == 39
    assert float(st.mean(scores)) == pytest.approx(79.3, abs=0.05)
