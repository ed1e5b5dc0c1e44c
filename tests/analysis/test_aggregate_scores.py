"""Aggregates, rankings and sample efficiency against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from analysis.aggregate import answer, comparison, progress, selection, shown
from analysis.results import add_registry
from analysis.study import load_study
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASKS

COLUMNS = ["task", "algorithm", "kind", "size", "seed", "env_steps", "metric", "value", "run"]


def table_of(*runs):
    """Tidy table of runs (algorithm, kind, task, seed, {steps: return})."""
    rows = [
        (
            task,
            algorithm,
            kind,
            None if kind == "published" else 5,
            seed,
            step,
            TASKS[task].metric,
            value,
            f"{algorithm}/{task}",
        )
        for algorithm, kind, task, seed, points in runs
        for step, value in points.items()
    ]
    return add_registry(pd.DataFrame(rows, columns=pd.Index(COLUMNS)).astype({"size": "Int64"}))


def finals(algorithm, kind, **returns):
    """Runs whose last return on walker_walk, dog_run, ... is given, a value a seed."""
    return [
        (algorithm, kind, task.replace("_", "-"), seed, {0: 0.0, 1000: value})
        for task, values in returns.items()
        for seed, value in enumerate(values, 1)
    ]


def last_scores(*runs):
    return selection.scores_at(table_of(*runs), [None])


OURS = finals("tdmpc2", "single", walker_walk=[300, 500], dog_run=[100, 200])


def test_aggregates_of_two_tasks_with_two_seeds():
    rows = comparison.aggregate_table(last_scores(*OURS), resamples=200)
    (row,) = rows.to_dict("records")
    assert (row["scope"], row["basis"], row["tasks"], row["runs"]) == ("overall", "own", 2, 4)
    assert row["mean"] == pytest.approx((40 + 15) / 2)
    assert row["median"] == pytest.approx(27.5)
    assert row["iqm"] == pytest.approx((20 + 30) / 2)  # of 10, 20, 30, 50 the ends are cut
    assert row["optimality_gap"] == pytest.approx(100 - 27.5)
    assert row["mean_low"] < 27.5 < row["mean_high"]


def test_one_seed_gives_no_interval_and_says_so():
    rows = comparison.aggregate_table(last_scores(*finals("tdmpc2", "single", walker_walk=[300], dog_run=[100])))
    assert rows["mean"].tolist() == [20.0]
    assert np.isnan(rows["mean_low"].iloc[0])
    assert "one seed a task gives no interval" in answer.interval_caption(rows, None)
    assert shown.aggregates(rows, selection.scopes(last_scores(*OURS)))["mean"].tolist() == ["20.0"]


def test_series_with_different_tasks_are_also_compared_on_the_common_ones():
    other = finals("sac", "published", walker_walk=[600, 800])
    rows = comparison.aggregate_table(last_scores(*OURS, *other), resamples=50)
    means = {(row["basis"], row["algorithm"]): (row["tasks"], row["mean"]) for row in rows.to_dict("records")}
    assert means == {
        ("own", "tdmpc2"): (2, 27.5),
        ("own", "sac"): (1, 70.0),
        ("common", "tdmpc2"): (1, 40.0),
        ("common", "sac"): (1, 70.0),
    }


def test_series_without_a_common_task_are_told():
    rows = last_scores(*finals("tdmpc2", "published", walker_walk=[300]), *finals("sac", "published", dog_run=[100]))
    told = answer.without_common_tasks(comparison.aggregate_table(rows, resamples=50), selection.scopes(rows))
    assert told == ["DMControl, at each run's last evaluation: no task has a score of every series, so no ranking."]


def test_a_budget_interpolates_and_runs_that_end_before_it_are_counted():
    table = table_of(
        ("tdmpc2", "single", "walker-walk", 1, {0: 0.0, 1000: 400.0}),
        ("tdmpc2", "single", "walker-walk", 2, {0: 0.0, 200: 100.0}),
    )
    (row,) = comparison.aggregate_table(selection.scores_at(table, [500.0])).to_dict("records")
    assert (row["mean"], row["runs"], row["runs_short"]) == (20.0, 1, 1)


def test_offline_agents_stand_with_their_last_evaluation_at_every_budget():
    offline = table_of(("tdmpc2", "multi", "walker-walk", 1, {0: 0.0})).assign(env_steps=pd.NA, updates=7000)
    table = pd.concat([table_of(*OURS), offline], ignore_index=True).astype({"env_steps": "Int64", "updates": "Int64"})
    rows = selection.scores_at(table, [None, 500.0])
    multi = rows[rows["kind"] == "multi"]
    assert multi["step"].tolist() == [7000.0, 7000.0]
    assert multi["score"].tolist() == [0.0, 0.0]


def test_improvement_counts_pairs_of_runs_and_tests_over_tasks():
    others = finals("sac", "published", walker_walk=[200, 400], dog_run=[50, 60])
    more = finals("tdmpc", "published", walker_walk=[300, 500], dog_run=[100, 200])
    rows = comparison.improvements(last_scores(*OURS, *others, *more), resamples=50).set_index("other_algorithm")
    # walker: 30 and 50 against 20 and 40 win three of four; dog: both win both
    assert rows["probability"]["sac"] == pytest.approx((0.75 + 1.0) / 2)
    assert rows["difference"]["sac"] == pytest.approx(((40 - 30) + (15 - 5.5)) / 2)
    assert rows["p"]["sac"] == pytest.approx(0.5)  # of four sign flips, two are as extreme
    assert rows["p_holm"]["sac"] == pytest.approx(1.0)
    assert rows["probability"]["tdmpc"] == pytest.approx(0.5)


def test_a_single_task_allows_no_test():
    rows = comparison.improvements(
        last_scores(*finals("tdmpc2", "published", dog_run=[1, 2]), *finals("sac", "published", dog_run=[3, 4])),
        resamples=50,
    )
    assert rows["p"].isna().all()
    assert shown.improvements(rows, {"overall": ["dog-run"]})["p"].tolist() == ["\N{EN DASH}"]


def test_answer_tells_best_and_second_apart():
    rows = last_scores(
        *finals("tdmpc2", "published", walker_walk=[900, 910, 920]),
        *finals("sac", "published", walker_walk=[100, 110, 120]),
    )
    sentence = answer.answer(comparison.rank(rows, resamples=500), None)
    assert sentence.startswith("At each run's last evaluation, TD-MPC2 (published) has the highest interquartile mean")
    assert "IQM 91.0 [" in sentence
    assert "next is SAC (published) with IQM 11.0 [" in sentence
    assert "is 80.0 [" in sentence
    assert sentence.endswith("leaves out 0, so the two are told apart.")


def test_answer_is_undecided_where_the_interval_contains_zero():
    rows = last_scores(
        *finals("tdmpc2", "published", walker_walk=[100, 500, 900]),
        *finals("sac", "published", walker_walk=[90, 490, 880]),
    )
    assert "contains 0, so which of the two is better is undecided" in answer.answer(comparison.rank(rows), None)


def test_answer_with_one_seed_is_undecided_for_want_of_an_interval():
    rows = last_scores(*finals("tdmpc2", "single", dog_run=[900]), *finals("sac", "published", dog_run=[100, 110]))
    sentence = answer.answer(comparison.rank(rows, resamples=50), 1e6)
    assert sentence.startswith("After 1M environment steps, TD-MPC2 5M has the highest")
    assert "IQM 90.0, mean 90.0 on dog-run (1 run)" in sentence
    assert "one seed a task of TD-MPC2 5M gives no interval, so which is better is undecided" in sentence


def test_answer_of_a_single_series_and_of_none():
    sentence = answer.answer(comparison.rank(last_scores(*OURS), resamples=50), None)
    assert "There is no other series to compare it with." in sentence
    assert answer.answer(comparison.rank(last_scores(*OURS).iloc[:0]), None) == answer.NO_EVALUATION


def test_series_with_too_few_tasks_do_not_shrink_the_ranking():
    few = finals("tdmpc2-pixels", "published", walker_walk=[1000, 1000])
    ranking = comparison.rank(last_scores(*OURS, *finals("sac", "published", walker_walk=[1], dog_run=[1]), *few))
    assert ranking.tasks == ("dog-run", "walker-walk")
    assert [standing.key[0] for standing in ranking.standings] == ["tdmpc2", "sac"]
    assert ranking.left_out == ((("tdmpc2-pixels", "published", None, ""), 1),)


def test_profile_is_the_share_of_runs_above_each_score():
    rows = comparison.profiles(last_scores(*OURS), resamples=50)
    share = rows.set_index("threshold")["share"]
    assert share[[0.0, 10.0, 15.0, 30.0, 60.0]].tolist() == [1.0, 0.75, 0.75, 0.25, 0.0]


def test_suites_are_scopes_where_there_are_several():
    one, two = last_scores(*OURS), last_scores(*OURS, *finals("tdmpc2", "single", mw_reach=[0.5]))
    assert selection.scopes(one) == {"overall": ["dog-run", "walker-walk"]}
    assert list(selection.scopes(two)) == ["overall", "dmcontrol", "metaworld"]
    assert selection.scope_name("overall", ["dog-run"]) == "DMControl"
    assert selection.scope_name("overall", ["dog-run", "mw-reach"]) == "Overall"


def test_budgets_are_chosen_from_how_far_curves_reach():
    theirs = ("sac", "published", "walker-walk", 1, {0: 0.0, 2_000_000: 500.0})
    short = ("tdmpc2", "single", "walker-walk", 1, {0: 0.0, 3000: 100.0})
    assert selection.choose_budgets(table_of(theirs)) == [None, 1e6]
    assert selection.primary_budget(table_of(theirs), [None, 1e6]) is None
    both = table_of(theirs, short)
    assert selection.choose_budgets(both) == [None, 3000.0]
    assert selection.primary_budget(both, [None, 3000.0]) == 3000.0
    assert "no evaluation between the untrained agent and 2M steps" in answer.interpolation_note(both, 3000.0)
    assert selection.choose_budgets(both, [500, 2000]) == [None, 2000.0, 500.0]


@pytest.mark.parametrize("budget", [0, -5, float("nan"), "1M", True])
def test_budgets_that_are_no_steps_are_refused(budget):
    with pytest.raises(UserError, match=r"budgets: .* is not a number of environment steps above 0"):
        selection.choose_budgets(table_of(*OURS), [budget])


def test_published_curves_are_taken_on_the_tasks_of_the_sweep(writer, published):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 200.0)])
    text = "step,reward,seed\n0,20,1\n100000,900,1\n"
    folder = published({"tdmpc2/walker-walk.csv": text, "tdmpc2/dog-run.csv": text, "sac/walker-walk.csv": text})
    study = load_study([writer.folder], folder)
    assert set(selection.select(study)["task"]) == {"walker-walk"}
    assert set(selection.select(study, ["sac"])["run"]) == {"walker-walk-1M-seed1", "sac/walker-walk"}
    assert set(selection.select(load_study([], folder))["task"]) == {"walker-walk", "dog-run"}
    with pytest.raises(UserError, match="unknown published algorithm 'sack'; did you mean 'sac'"):
        selection.select(study, ["sack"])


def test_suite_curve_keeps_its_tasks_and_runs_from_end_to_end():
    table = table_of(
        ("tdmpc2", "single", "walker-walk", 1, {0: 0.0, 1000: 400.0, 2000: 800.0}),
        ("tdmpc2", "single", "walker-walk", 2, {0: 0.0, 100: 0.0}),  # failed early
        ("tdmpc2", "single", "dog-run", 1, {0: 0.0, 1000: 200.0}),
    ).assign(run=["a"] * 3 + ["b"] * 2 + ["c"] * 2)
    curve = progress.domain_curves(table, resamples=50)
    assert curve["env_steps"].tolist() == [0.0, 1000.0]
    assert curve["mean"].tolist() == [0.0, (40 + 20) / 2]
    assert curve["low"].isna().all()  # the one task with two seeds has lost one
    assert curve[["tasks", "runs", "runs_short"]].drop_duplicates().to_numpy().tolist() == [[2, 2, 1]]
    assert "TD-MPC2 5M 1 of 3 (DMControl)" in answer.curve_caption(curve, selection.scopes(last_scores(*OURS)))


def test_a_few_longer_runs_do_not_push_the_others_out_of_a_curve():
    table = table_of(
        *[("tdmpc2", "published", "walker-walk", seed, {0: 0.0, 1900: 500.0}) for seed in (1, 2)],
        ("tdmpc2", "published", "walker-walk", 3, {0: 0.0, 2000: 500.0}),
    )
    curve = progress.domain_curves(table, resamples=50)
    assert curve["env_steps"].max() == 1900
    assert curve["runs"].unique().tolist() == [3]


def test_area_and_steps_to_thresholds():
    table = table_of(
        ("tdmpc2", "single", "walker-walk", 1, {0: 0.0, 1000: 1000.0}),
        ("tdmpc2", "single", "walker-walk", 2, {0: 0.0, 1000: 600.0}),
        ("tdmpc2", "single", "walker-walk", 3, {0: 0.0, 400: 100.0}),
    )
    runs = progress.run_progress(table, 500.0, thresholds=(50, 90))
    assert runs["area"].tolist()[:2] == pytest.approx([25.0, 15.0])  # half the height at 500 steps: 50 and 30
    assert np.isnan(runs["area"].iloc[2])
    assert runs["steps_to_50"].tolist()[:2] == pytest.approx([500.0, 1000 * 5 / 6])
    assert runs["steps_to_90"].tolist()[0] == pytest.approx(900.0)
    (row,) = progress.efficiency_table(runs, (50, 90), resamples=50).to_dict("records")
    assert (row["runs"], row["area_runs"], row["area"]) == (3, 2, pytest.approx(20.0))
    assert row["reach_50"] == pytest.approx(2 / 3)
    assert row["steps_to_50"] == pytest.approx(1000 * 5 / 6)  # the median of 500, 833 and never
    assert np.isnan(row["steps_to_90"])  # two of three never get there
    assert shown.efficiency(pd.DataFrame([row]), {"overall": ["walker-walk"]})["median steps to 90"].tolist() == [
        "not by half"
    ]


def test_scores_by_task_stand_beside_one_another():
    rows = comparison.task_table(last_scores(*OURS, *finals("sac", "published", walker_walk=[600])))
    assert shown.task_scores(rows).to_dict("records") == [
        {"task": "dog-run", "TD-MPC2 5M": "15.0 (10.0 to 20.0)", "SAC (published)": "\N{EN DASH}"},
        {"task": "walker-walk", "TD-MPC2 5M": "40.0 (30.0 to 50.0)", "SAC (published)": "60.0"},
    ]


def test_simulators_that_differ_from_the_published_ones_are_told_where_both_are_shown(writer, published):
    for task in ("walker-walk", "mw-handle-pull", "mw-reach", "mw-push"):
        writer.add(task, 1, [(2000, 300.0, 0.5)])
    names = ("walker-walk,reward", "mw-handle-pull,success", "mw-reach,success", "myo-hand-reach,success")
    files = {f"tdmpc2/{n.split(',')[0]}.csv": f"step,{n.split(',')[1]},seed\n0,0,1\n" for n in names}
    note = answer.simulator_note(load_study([writer.folder], published(files)).table)
    assert "mw-handle-pull: published results: V2 environments on MuJoCo 2.1" in note
    assert "a bonus of the reward reads another coordinate" in note
    assert "mw-reach: published results" in note  # without what concerns handle-pull alone
    assert "mw-push" not in note  # nothing published
    assert "myo" not in note  # nothing of ours
    assert "walker" not in note  # the same simulator
