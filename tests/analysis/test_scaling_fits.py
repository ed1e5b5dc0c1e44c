import numpy as np
import pandas as pd
import pytest

from analysis.scaling import text, text_tables
from analysis.scaling.fits import curve, fits_table, measure, points_table
from analysis.scaling.laws import LOG_LINEAR, POWER_LAW
from analysis.scaling.series import SizeSeries
from analysis.scaling.slopes import task_slopes
from tdmpc2.errors import UserError

FIVE = (1.0, 4.0, 16.0, 64.0, 256.0)


def series(scores, parameters=FIVE, kind="multi") -> SizeSeries:
    """A series from scores (sizes, tasks, seeds)."""
    scores = np.asarray(scores, dtype=float)
    sizes = tuple(range(1, len(scores) + 1))
    tasks = tuple(f"task-{i}" for i in range(scores.shape[1]))
    costs = pd.DataFrame({"size": sizes, "updates": np.nan, "hours": np.nan, "device": "cpu", "hardware": ""})
    millions = np.array(parameters[: len(scores)])
    return SizeSeries("tdmpc2", kind, "three", tasks, (), (), sizes, millions, (), (), scores, costs)


def same(by_size, tasks=3, seeds=3):
    """Scores that are equal on all tasks and seeds of a size."""
    return np.broadcast_to(np.array(by_size)[:, None, None], (len(by_size), tasks, seeds))


def test_cross_validation_takes_the_power_law_for_scores_that_level_off():
    scaling = measure(series(same([20.0, 50.0, 65.0, 72.5, 76.25])), resamples=20)  # 80 - 60 N^-0.5
    assert scaling.decided
    assert scaling.chosen is not None
    assert scaling.chosen.law is POWER_LAW
    assert scaling.gain(1, 100).value == pytest.approx(54.0, rel=1e-4)  # 74 - 20
    assert "levels off" not in text.answer(scaling)
    # the first tenfold: 60 (1 - 10^-0.5) = 41.03; the last: 60 (25.6^-0.5 - 256^-0.5) = 8.11
    assert "the first tenfold brings +41.0 points [+41.0, +41.0], the last +8.1 points" in text.answer(scaling)


def test_cross_validation_takes_the_line_for_scores_that_rise_steadily():
    scaling = measure(series(same([10.0, 26.0, 42.0, 58.0, 74.0])), resamples=20)  # 16 points for each fourfold
    assert scaling.decided
    assert scaling.chosen is not None
    assert scaling.chosen.law is LOG_LINEAR
    assert scaling.slope().value == pytest.approx(16 / np.log10(4))
    assert "no levelling off is seen" in text.answer(scaling)


def test_laws_that_predict_equally_well_are_not_decided_between():
    scaling = measure(series(same([50.0] * 5)), resamples=20)
    assert not scaling.decided
    assert scaling.chosen is not None
    assert scaling.chosen.law is LOG_LINEAR
    assert "is not decided" in text.answer(scaling)
    assert "which cannot be told from none" in text.answer(scaling)
    assert list(text_tables.shown_fits([scaling])["taken"]) == [
        "yes, as the simpler one; not decided between",
        "no; not decided between",
    ]


@pytest.mark.parametrize(("sizes", "laws"), [(2, 0), (3, 1), (4, 2)])
def test_laws_are_fitted_only_from_sizes_enough_on(sizes, laws):
    scaling = measure(series(same([10.0, 20.0, 40.0, 45.0][:sizes])), resamples=10)
    assert len(scaling.fits) == laws
    assert len(fits_table([scaling])["law"].unique()) == laws


def test_intervals_over_tasks_are_wider_than_over_seeds_where_tasks_differ():
    tasks = np.array([10.0, 40.0, 60.0, 90.0])
    scores = tasks[None, :, None] + np.array([-1.0, 0.0, 1.0]) + np.array([0.0, 5.0])[:, None, None]
    scaling = measure(series(scores, kind="single"), resamples=500)
    assert scaling.score == pytest.approx([50.0, 55.0])
    over_seeds, over_tasks = (np.ptp(b, axis=1) for b in (scaling.over_seeds, scaling.over_tasks))
    assert (over_seeds > 0).all()
    assert (over_tasks > 5 * over_seeds).all()
    assert (scaling.over_tasks[:, 0] >= [10.0 - 1, 15.0 - 1]).all()


def test_what_sizes_have_in_common_on_a_task_cancels_out_in_their_difference():
    scores = np.array([[[0.0], [50.0], [90.0]], [[10.0], [60.0], [100.0]]])
    scaling = measure(series(scores, (1.0, 10.0)), resamples=200)
    assert tuple(scaling.difference()) == pytest.approx((10.0, 10.0, 10.0))
    assert tuple(scaling.slope()) == pytest.approx((10.0, 10.0, 10.0))
    assert np.ptp(scaling.over_tasks[0]) > 20


def test_multi_task_agents_are_drawn_whole():
    scores = np.tile([10.0, 20.0, 30.0], (1, 3, 1))  # agents good or bad at everything
    whole = measure(series(scores), resamples=1000).over_seeds[0]
    apart = measure(series(scores, kind="single"), resamples=1000).over_seeds[0]
    # Two of three agents, the tail of two degrees of freedom: the best and the worst draw, 10 and 30.
    assert whole == pytest.approx([10.0, 30.0], abs=0.1)
    assert 10.0 < apart[0] < apart[1] < 30.0


def test_no_interval_is_pretended_with_few_seeds_of_few_tasks():
    scaling = measure(series([[[10.0, 12.0]], [[30.0, 32.0]]], (1.0, 10.0)), resamples=50)
    assert scaling.difference().value == pytest.approx(20.0)
    assert np.isnan(scaling.difference().low)
    assert np.isnan([scaling.over_seeds, scaling.over_tasks]).all()
    sentence = text.answer(scaling)
    assert (
        "31.0 with 10M parameters against 11.0 with 1M, +20.0 points; no interval, which needs 3 tasks or" in sentence
    )
    assert "Two sizes give a difference, not a law." in sentence


def test_missing_seeds_leave_the_others_to_be_averaged():
    scores = [[[10.0, np.nan, np.nan], [20.0, 30.0, 40.0]], [[50.0, 60.0, 70.0], [np.nan, 80.0, 90.0]]]
    scaling = measure(series(scores, kind="single"), resamples=50)
    assert scaling.score == pytest.approx([20.0, 72.5])  # of task means 10 and 30, 60 and 85
    assert list(points_table([scaling])["seeds_fewest"]) == [1, 2]


def test_band_holds_the_fitted_curve_and_is_narrow_where_scores_are():
    rng = np.random.default_rng(0)
    scores = 80 - 60 * np.array(FIVE)[:, None, None] ** -0.5 + rng.normal(0, 1, (5, 30, 3))
    scaling = measure(series(scores), resamples=200)
    assert scaling.chosen is not None
    rows = curve(scaling, scaling.chosen, np.array([1.0, 16.0, 512.0]))
    assert ((rows["low"] < rows["score"]) & (rows["score"] < rows["high"])).all()
    assert (rows["high"] - rows["low"] < 6).all()
    assert rows["score"].to_list() == pytest.approx([20.0, 65.0, 77.35], abs=1.5)


def test_one_size_and_no_common_task_are_told_in_a_sentence():
    one = measure(series(same([30.0])), resamples=10)
    assert text.answer(one).endswith(
        "the only model size with an evaluation is 1M; a second size on the same tasks is needed."
    )
    none = measure(series(np.empty((2, 0, 1))), resamples=10)
    assert "no task has a score at every size (1M and 2M)" in text.answer(none)
    assert none.fits == ()
    assert points_table([none]).empty


def test_unknown_statistic_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match="unknown statistic 'meen'; did you mean 'mean'"):
        measure(series(same([30.0, 40.0])), "meen")
    with pytest.raises(UserError, match="resamples"):
        measure(series(same([30.0, 40.0])), resamples=0)


def test_slope_by_task_is_tested_against_dealing_scores_out_anew():
    rises, flat = [[10.0] * 3, [30.0] * 3], [[50.0] * 3] * 2
    slopes = task_slopes(series(np.stack([rises, flat], axis=1), (1.0, 10.0)), resamples=50)
    first, second = slopes.to_dict("records")
    assert (first["task"], first["runs"]) == ("task-0", 6)
    assert (first["slope"], first["low"], first["high"]) == pytest.approx((20.0, 20.0, 20.0))
    assert first["p"] == pytest.approx(0.1)  # 2 of the 20 ways to split six runs in halves
    assert (second["slope"], second["p"], first["p_adjusted"]) == pytest.approx((0.0, 1.0, 0.2))
    assert set(slopes["verdict"]) == {"not decided"}
    assert "on none of 2 tasks can a gain or loss be told from chance" in text.slopes_sentence(series(flat), slopes)


def test_gains_and_losses_are_claimed_where_many_runs_agree():
    noise = np.array([-1.0, 0.0, 1.0])
    rises = np.array([10.0, 20.0, 30.0, 40.0, 50.0])[:, None] + noise
    scores = np.stack([rises, 60 - rises, 30 + 0 * rises + noise], axis=1)
    slopes = task_slopes(series(scores), resamples=50).set_index("task")
    assert slopes["verdict"].to_dict() == {"task-0": "gain", "task-2": "not decided", "task-1": "loss"}
    assert slopes.loc["task-0", "slope"] == pytest.approx(10 / np.log10(4))
    sentence = text.slopes_sentence(series(scores), slopes.reset_index())
    assert "of 3 tasks 1 gains from size (task-0) and 1 loses by it (task-1)" in sentence


def test_two_seeds_of_many_tasks_give_an_interval_over_seeds_but_two_agents_for_all_do_not():
    scores = np.arange(20.0).reshape(1, 10, 2)
    assert np.isfinite(measure(series(scores, kind="single"), resamples=50).over_seeds).all()
    assert np.isnan(measure(series(scores), resamples=50).over_seeds).all()
    scores[0, 0, 1] = np.nan  # a task's only seed says nothing of its spread
    assert np.isnan(measure(series(scores, kind="single"), resamples=50).over_seeds).all()
