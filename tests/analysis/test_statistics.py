import numpy as np
import pytest
from scipy.stats import trim_mean

from analysis import bootstrap, significance
from analysis import statistics as st
from tdmpc2.errors import UserError

SCORES = np.array([[0.0, 10.0], [20.0, 30.0], [40.0, 50.0], [60.0, 100.0]])
NAN = np.nan


def random_scores(seed: int = 0, shape: tuple[int, ...] = (12, 3)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, shape)


def test_aggregates_by_hand():
    assert st.mean(SCORES) == 38.75  # of 5, 25, 45, 80
    assert st.median(SCORES) == 35.0  # of 25 and 45
    assert st.iqm(SCORES) == 35.0  # of 20, 30, 40, 50
    assert st.optimality_gap(SCORES, target=50.0) == 18.75  # task means of min(score, 50): 5, 25, 45, 50


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (5, 3), (7, 7), (104, 3)])
def test_iqm_is_the_trimmed_mean_of_all_runs(shape):
    scores = random_scores(1, shape)
    assert st.iqm(scores) == pytest.approx(trim_mean(scores, 0.25, axis=None))


@pytest.mark.parametrize("name", st.AGGREGATES)
def test_leading_axes_are_kept_and_tasks_without_seeds_left_out(name):
    statistic = st.AGGREGATES[name]
    stacked = np.stack([SCORES, SCORES[::-1] / 2])
    assert statistic(stacked).tolist() == [statistic(SCORES), statistic(SCORES[::-1] / 2)]
    lacking = np.vstack([SCORES[:2], [[NAN, NAN]], SCORES[2:]])
    assert statistic(lacking) == statistic(SCORES)
    assert np.isnan(statistic(np.full((3, 2), NAN)))
    assert np.isnan(statistic(np.empty((0, 2))))


def test_missing_seeds_count_nowhere_in_a_row():
    scores = np.array([[NAN, 10.0, 20.0], [40.0, NAN, NAN], [90.0, 80.0, NAN]])
    assert st.mean(scores) == pytest.approx((15 + 40 + 85) / 3)
    assert st.median(scores) == 40.0
    assert st.iqm(scores) == pytest.approx((20 + 40 + 80) / 3)  # of 10, 20, 40, 80, 90


def test_drawn_means_have_the_true_variance_and_ragged_tasks_keep_their_weight():
    seen = []

    def record(scores):
        seen.append(scores)
        return st.mean(scores)

    rows = np.array([[0.0, NAN, 30.0, 60.0], [NAN, 10.0, NAN, 20.0], [5.0, NAN, NAN, NAN]])
    st.interval(rows, record, resamples=100_000)
    drawn = np.concatenate([part for part in seen if part.ndim == 3])
    assert (np.isfinite(drawn).sum(axis=-1) == [3, 2, 1]).all()
    means = np.nanmean(drawn, axis=-1)
    assert means.mean(axis=0) == pytest.approx([30, 15, 5], rel=0.01)
    # unbiased variance / n: 900 / 3 and 50 / 2; n of n drawn plainly would give 200 and 12.5
    assert means.var(axis=0) == pytest.approx([300, 25, 0], rel=0.03)


def test_where_seeds_sit_in_a_row_does_not_matter():
    left = np.array([[10.0, 20.0, NAN], [50.0, 90.0, 70.0]])
    right = np.array([[NAN, 10.0, 20.0], [50.0, 90.0, 70.0]])
    assert st.aggregate(left) == st.aggregate(right)


def test_same_seed_same_interval_and_another_seed_another():
    scores = random_scores()
    assert st.interval(scores, st.iqm, seed=3) == st.interval(scores, st.iqm, seed=3)
    assert st.interval(scores, st.iqm, seed=3) != st.interval(scores, st.iqm, seed=4)
    assert st.aggregate(scores, seed=3)["iqm"] == st.interval(scores, st.iqm, seed=3)


def test_portions_of_draws_add_up_to_all_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "_VALUES_AT_ONCE", 1000)
    sizes = []
    st.interval(random_scores(), lambda s: sizes.append(len(s)) or st.mean(s), resamples=100)
    assert sizes[:4] == [27, 27, 27, 19]  # 1000 // 36 = 27 resamples at once


def test_seeds_that_agree_have_an_interval_of_no_width_and_tasks_that_differ_have_one_over_tasks():
    scores = np.array([[20.0, 20.0], [60.0, 60.0], [70.0, 70.0]])
    assert st.interval(scores, st.mean) == (50.0, pytest.approx(50.0), pytest.approx(50.0))
    wide = st.interval(scores, st.mean, over_tasks=True)
    assert wide.low < 45 < 55 < wide.high


def test_one_seed_a_task_gives_no_interval_but_one_over_tasks():
    scores = np.array([[20.0, NAN], [NAN, 60.0]])
    value, low, high = st.interval(scores, st.mean)
    assert value == 40.0
    assert np.isnan([low, high]).all()
    over = st.interval(scores, st.mean, over_tasks=True)
    assert (over.low, over.high) == (20.0, 60.0)
    assert np.isnan(st.interval(scores[:1], st.mean, over_tasks=True).low)
    assert np.isnan(st.aggregate(np.full((3, 2), NAN))["median"]).all()


def test_few_seeds_widen_the_interval_as_students_t():
    # 1 task, 3 seeds: t with 2 degrees of freedom lies so far out that the interval spans the seeds
    value, low, high = st.interval(np.array([[10.0, 20.0, 60.0]]), st.mean)
    assert (value, low, high) == (30.0, 10.0, 60.0)


def test_freedom_is_that_of_the_tasks_that_vary():
    even = bootstrap.present_seeds(np.array([[0.0, 10.0, 20.0]] * 4))
    one = bootstrap.present_seeds(np.array([[0.0, 10.0, 20.0], [100.0] * 3, [100.0] * 3]))
    assert bootstrap.degrees_of_freedom(even) == pytest.approx(8)
    assert bootstrap.degrees_of_freedom(one) == pytest.approx(2)
    assert bootstrap.degrees_of_freedom(even, bootstrap.present_seeds(np.array([[5.0]]))) == 0


def test_difference_leaves_out_tasks_that_one_side_lacks():
    x = np.array([[10.0, 10.0], [90.0, 90.0]])
    y = np.array([[4.0, 4.0, 4.0], [NAN, NAN, NAN]])
    assert st.difference(x, y, st.mean) == (6.0, pytest.approx(6.0), pytest.approx(6.0))
    assert np.isnan(st.difference(x, np.array([[4.0], [5.0]]), st.mean).low)
    assert np.isnan(st.difference(x, np.full((2, 2), NAN), st.median)).all()
    with pytest.raises(UserError, match="same tasks"):
        st.difference(x, y[:1], st.mean)


def test_difference_turns_its_sign_with_its_sides_and_contains_its_value():
    x, y = random_scores(1), random_scores(2)
    there, back = st.difference(x, y, st.iqm), st.difference(y, x, st.iqm)
    assert there.value == pytest.approx(-back.value)
    assert there.low < there.value < there.high


def test_profile_is_the_share_of_runs_strictly_above_with_tasks_counting_the_same():
    scores = np.array([[10.0, NAN, 30.0], [NAN, 50.0, NAN], [NAN, NAN, NAN]])
    profile = st.performance_profile(scores, [60, 0, 30, 20])
    assert profile["threshold"].tolist() == [0, 20, 30, 60]
    assert profile["share"].tolist() == [1.0, 0.75, 0.5, 0.0]
    assert profile["low"].tolist() == [1.0, 0.5, 0.5, 0.0]  # the first task's share at 20 is 0 to 1
    assert profile["high"].tolist() == [1.0, 1.0, 0.5, 0.0]
    assert st.performance_profile(np.full((2, 2), NAN), [10, 20])["share"].isna().all()
    assert st.performance_profile(scores[1:], [10])["low"].isna().all()


def test_profile_equals_direct_counting():
    scores, thresholds = random_scores(), np.linspace(0, 100, 21)
    profile = st.performance_profile(scores, thresholds, resamples=200)
    direct = [st.interval(scores, lambda s, t=t: st.mean((s > t).astype(float)), resamples=200) for t in thresholds]
    expected = np.array(direct)
    assert profile[["share", "low", "high"]].to_numpy() == pytest.approx(expected)


def test_probability_of_improvement_counts_ties_half():
    x, y = np.array([[1.0, 3.0], [5.0, 6.0]]), np.array([[NAN, 2.0, 3.0], [1.0, NAN, 2.0]])
    assert st.probability_of_improvement(x, y).value == pytest.approx((1.5 / 4 + 1) / 2)
    assert st.probability_of_improvement(y, x).value == pytest.approx((2.5 / 4 + 0) / 2)
    assert st.probability_of_improvement(x[1:], y[1:]) == (1.0, 1.0, 1.0)
    found = st.probability_of_improvement(random_scores(1), random_scores(2))
    assert 0 < found.low < found.value < found.high < 1


def test_area_is_the_mean_height_up_to_the_budget():
    steps, values = [20, 0, 10, 5], [100.0, 0.0, 100.0, NAN]
    assert st.area_under_curve(steps, values, 15) == pytest.approx((500 + 500) / 15)
    assert st.area_under_curve(steps, values, 0) == 0.0
    assert np.isnan(st.area_under_curve(steps, values, 21))
    assert np.isnan(st.area_under_curve([], [], 1))
    assert st.area_under_curve([10, 20], [40.0, 60.0], 20) == 50.0  # from the first step on, not from 0


def test_threshold_is_reached_on_the_line_between_points():
    steps, values = [20, 0, 10, 5], [80.0, 0.0, 100.0, NAN]
    assert st.steps_to_threshold(steps, values, 50) == 5.0
    assert st.steps_to_threshold(steps, values, 0) == 0.0
    assert np.isnan(st.steps_to_threshold(steps, values, 101))


def test_sign_flips_enumerated_by_hand():
    # 1 + 2 + 3: of 8 flips only +++ and --- reach 6
    assert significance.paired_test([1.0, 2.0, NAN, 3.0])[3:] == (0.25, 3, True)
    # 3 + 1 - 1 = 3: sums are 5, 3, 3, 1 and their opposites
    assert significance.paired_test([3.0, 1.0, -1.0]).p == 0.75
    assert significance.paired_test([0.1, 0.2, 0.3]).p == 0.25  # rounding does not split equal sums
    assert significance.paired_test([0.0, 0.0]).p == 1.0
    alone = significance.paired_test([5.0])
    assert (alone.mean, alone.p, alone.n) == (5.0, 1.0, 1)
    assert np.isnan([alone.low, alone.high]).all()
    assert significance.paired_test([NAN]).n == 0


def test_random_sign_flips_never_give_zero_and_come_near_the_exact_p():
    assert significance.paired_test(np.ones(40), permutations=99).p == 0.01
    differences = np.random.default_rng(0).normal(0.4, 1, 13)
    exact, random = (
        significance.paired_test(differences),
        significance.paired_test([*differences, 0.0], permutations=20_000),
    )
    assert exact.exact
    assert not random.exact
    assert random.p == pytest.approx(exact.p, abs=0.015)  # a difference of 0 changes no sum


def test_two_samples_enumerated_by_hand():
    assert significance.two_sample_test([1.0, 2.0, NAN], [3.0, 4.0]) == pytest.approx(2 / 6)
    assert significance.two_sample_test([1.0], [2.0, 3.0, 4.0]) == pytest.approx(
        2 / 4
    )  # 1 and 4 are as far from the others
    assert np.isnan(significance.two_sample_test([NAN], [1.0]))
    assert significance.two_sample_test(np.zeros(50), np.ones(50), permutations=99) == 0.01
    assert significance.two_sample_test(np.ones(50), np.ones(50), permutations=99) == 1.0


def test_holm_and_benjamini_hochberg_by_hand():
    p = [0.01, 0.04, NAN, 0.03, 0.005]
    assert significance.adjust(p, "holm") == pytest.approx([0.03, 0.06, NAN, 0.06, 0.02], nan_ok=True)
    assert significance.adjust(p, "bh") == pytest.approx([0.02, 0.04, NAN, 0.04, 0.02], nan_ok=True)
    assert significance.adjust([0.9, 0.8], "holm").tolist() == [1.0, 1.0]
    assert len(significance.adjust([])) == 0


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="did you mean 'iqm'"):
        st.aggregate(SCORES, names=["iqmm"])
    with pytest.raises(UserError, match="did you mean 'holm'"):
        significance.adjust([0.1], "hollm")
    with pytest.raises(UserError, match="between 0 and 1"):
        significance.adjust([1.5])
    with pytest.raises(UserError, match="level"):
        st.interval(SCORES, st.mean, level=95)
    with pytest.raises(UserError, match="tasks, seeds"):
        st.mean(SCORES[0])


def test_the_median_of_nearly_solved_tasks_lies_within_its_interval():
    rng = np.random.default_rng(0)
    solved = np.clip(97 + 6 * rng.standard_normal((100, 3)), 0, 100)  # resampled task means reach 100 more often
    value, low, high = st.interval(solved, st.median)
    assert low < value < high <= 100


def test_agents_of_many_tasks_are_drawn_whole():
    scores = np.tile([[0.0, 10.0, 50.0]], (40, 1))  # each agent the same on all tasks: as one task with three seeds
    assert st.interval(scores, st.mean, together=True) == st.interval(scores[:1], st.mean)
    apart = st.interval(scores, st.mean)
    assert apart.high - apart.low < 20  # drawn task by task, their luck cancels out
    assert st.difference(scores, scores * 0, st.mean, together=(True, False)).low == pytest.approx(0.0)
    assert np.isnan(st.interval(scores[:, :1], st.mean, together=True).low)  # one agent
    profile = st.performance_profile(scores, [5.0], together=True)
    assert profile[["share", "low", "high"]].to_numpy().tolist() == [pytest.approx([2 / 3, 0.0, 1.0])]


def test_agents_that_lack_a_task_keep_their_column():
    scores = np.array([[10.0, NAN], [20.0, 40.0], [NAN, NAN]])
    value, low, high = st.interval(scores, st.mean, together=True)
    assert value == (10 + 30) / 2
    assert low == 15.0  # the first agent alone
    assert 20 < high <= 40.0  # the second alone has 40, on the second task
    assert bootstrap.degrees_of_freedom(bootstrap.present_seeds(scores, together=True)) == 1


def test_freedom_of_whole_agents_beside_seeds_by_hand():
    agents = bootstrap.present_seeds(np.array([[0.0, 10.0]] * 4), together=True)
    seeds = bootstrap.present_seeds(np.array([[0.0, 10.0]] * 4))
    # variance of the sum over 4 tasks: 16 x 50 / 2 = 400 with 1 degree of freedom; 4 x 50 / 2 = 100 with 4 x 1
    assert bootstrap.degrees_of_freedom(agents, seeds) == pytest.approx(500**2 / (400**2 + 4 * 25**2))
