import numpy as np
import pandas as pd
import pytest

from analysis.reference import load_reference
from analysis.results import load_sweep
from analysis.scores import (
    curves,
    final_scores,
    last_evaluations,
    overall_scores,
    percentiles,
    published_at,
    run_scores,
    score_matrix,
    task_order,
)

NOW = 1_700_000_000.0


def test_curve_statistics_over_three_seeds_by_hand(writer):
    for seed, value in ((1, 400.0), (2, 500.0), (3, 600.0)):
        writer.add("walker-walk", seed, [(0, 30.0), (2000, value)])
    row = curves(load_sweep(writer.folder).table).set_index("env_steps").loc[2000]
    assert (row["seeds"], row["mean"], row["std"], row["min"], row["max"]) == (3, 500.0, pytest.approx(100.0), 400, 600)
    # Student's t with 2 degrees of freedom: 4.302653 x 100 / sqrt(3) = 248.4138
    assert row["low"] == pytest.approx(500 - 248.4138, abs=1e-3)
    assert row["high"] == pytest.approx(500 + 248.4138, abs=1e-3)


def test_interval_stays_inside_the_metrics_range(writer):
    for seed, success in ((1, 0.0), (2, 0.5), (3, 1.0)):
        writer.add("mw-reach", seed, [(0, 10.0, success)])
    table = curves(load_sweep(writer.folder).table)
    row = table[table["metric"] == "success"].iloc[0]
    assert (row["low"], row["high"]) == (0.0, 1.0)


def test_no_interval_is_pretended_with_two_seeds_and_no_spread_with_one(writer):
    writer.add("walker-walk", 1, [(0, 10.0), (1000, 100.0)])
    writer.add("walker-walk", 2, [(0, 30.0)])
    table = curves(load_sweep(writer.folder).table).set_index("env_steps")
    assert table["low"].isna().all()
    assert (table.loc[0, "min"], table.loc[0, "max"], table.loc[0, "mean"]) == (10.0, 30.0, 20.0)
    assert table.loc[1000, "seeds"] == 1
    assert np.isnan(table.loc[1000, "std"])


def test_seeds_are_interpolated_on_the_grid_but_never_beyond_their_end(writer):
    writer.add("walker-walk", 1, [(0, 0.0), (2000, 200.0)])
    writer.add("walker-walk", 2, [(0, 100.0), (500, 100.0)])
    table = curves(load_sweep(writer.folder).table)
    assert table["env_steps"].tolist() == [0, 500, 2000]
    # seed 1 at 500 lies on its line from 0 to 200: 50; seed 2 has ended before 2000
    assert table["mean"].tolist() == [50.0, 75.0, 200.0]
    assert table["seeds"].tolist() == [2, 2, 1]
    assert curves(load_sweep(writer.folder).table, grid=[1000])["mean"].tolist() == [100.0]


def test_published_value_is_interpolated_per_seed_and_averaged(published):
    text = "step,reward,seed\n0,20,1\n100000,120,1\n0,0,2\n100000,200,2\n200000,300,2\n"
    table = load_reference(published({"tdmpc2/walker-walk.csv": text})).table
    # at 25,000: seed 1 has 20 + 100/4 = 45, seed 2 has 200/4 = 50
    assert published_at(table, "walker-walk", 25_000) == {"tdmpc2": 47.5}
    # at 150,000 only seed 2 is left, at 200 + 100/2
    assert published_at(table, "walker-walk", 150_000) == {"tdmpc2": 250.0}
    assert np.isnan(published_at(table, "walker-walk", 300_000)["tdmpc2"])
    assert published_at(table, "walker-run", 25_000) == {}


def test_final_scores_compare_seeds_at_the_same_steps_and_name_the_others(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 300.0)])
    writer.add("walker-walk", 2, [(0, 30.0), (3000, 500.0)])
    writer.add("walker-walk", 3, [(0, 30.0), (1000, 90.0)], state="failed", message="NaN")
    writer.add("walker-walk", 4, None)
    sweep = load_sweep(writer.folder, now=NOW)
    row = final_scores(sweep.runs, sweep.table).iloc[0]
    assert (row["seeds_planned"], row["seeds"], row["env_steps"]) == (4, 2, 3000)
    assert (row["mean"], row["min"], row["max"], row["score"]) == (400.0, 300.0, 500.0, 40.0)
    assert row["std"] == pytest.approx(141.4214, abs=1e-4)
    assert np.isnan(row["low"])
    assert row["random_return"] == 31.88
    assert row["note"] == "seed 3 failed at 1,000 steps, not counted; seed 4 not started, no evaluation"
    last = last_evaluations(sweep.table).set_index("seed")
    assert last["counted"].to_dict() == {1: True, 2: True, 3: False}


def test_task_without_any_evaluation_keeps_its_row(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (2000, 90.0)], state="running")
    writer.add("dog-run", 1, None)
    sweep = load_sweep(writer.folder, now=NOW)
    final = final_scores(sweep.runs, sweep.table).set_index("task")
    assert final.loc["dog-run", "seeds"] == 0
    assert np.isnan(final.loc["dog-run", "score"])
    assert final.loc["dog-run", "note"] == "seed 1 not started, no evaluation"
    assert final.loc["walker-walk", "note"] == "seed 1 running; 2,000 of 3,000 steps"
    overall = overall_scores(final.reset_index()).iloc[0]
    assert (overall["tasks"], overall["tasks_planned"], overall["score"]) == (1, 2, pytest.approx(9.0))


def test_final_scores_say_where_the_published_curve_ends(writer, published):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 90.0)])
    sweep = load_sweep(writer.folder, now=NOW)
    text = "step,reward,seed\n0,20,1\n2000,80,1\n"
    reference = load_reference(
        published({"tdmpc2/walker-walk.csv": text, "sac/walker-walk.csv": text + "4000,100,1\n"})
    )
    row = final_scores(sweep.runs, sweep.table, reference.table).iloc[0]
    assert row["published_sac"] == 90.0
    assert np.isnan(row["published_tdmpc2"])
    assert row["note"] == ""
    assert row["reference_note"] == "ends before 3,000 steps: tdmpc2"


def test_multi_task_run_gives_a_score_for_each_of_its_tasks(writer):
    writer.add_multi(["walker-walk", "dog-run"], 1, [(0, {"walker-walk": 30.0, "dog-run": 5.0})], total=0)
    writer.add("walker-walk", 2, [(0, 50.0)])
    sweep = load_sweep(writer.folder, now=NOW)
    final = final_scores(sweep.runs, sweep.table)
    assert final[["task", "kind", "task_set", "mean"]].to_numpy().tolist() == [
        ["dog-run", "multi", "2 tasks", 5.0],
        ["walker-walk", "multi", "2 tasks", 30.0],
        ["walker-walk", "single", "", 50.0],
    ]


def test_offline_seeds_are_compared_at_the_same_updates(writer):
    tasks = ["walker-walk", "mw-reach"]
    for seed, value in ((1, 300.0), (2, 400.0), (3, 500.0)):
        writer.add_multi(
            tasks,
            seed,
            [(0, {"walker-walk": 30.0, "mw-reach": 0.0}), (2000, {"walker-walk": value, "mw-reach": 0.5})],
        )
    early = [(0, {"walker-walk": 30.0, "mw-reach": 0.0}), (1000, {"walker-walk": 900.0, "mw-reach": 1.0})]
    writer.add_multi(tasks, 4, early, state="failed", message="NaN")
    sweep = load_sweep(writer.folder, now=NOW)
    final = final_scores(sweep.runs, sweep.table).set_index("task")
    walk = final.loc["walker-walk"]
    assert (walk["seeds_planned"], walk["seeds"], walk["updates"], walk["episodes"]) == (4, 3, 2000, 15)
    assert (walk["mean"], walk["std"], walk["score"]) == (400.0, 100.0, 40.0)
    assert walk["low"] == pytest.approx(400 - 248.4138, abs=1e-3)  # Student's t: 4.302653 x 100 / sqrt(3)
    assert walk["env_steps"] is pd.NA
    assert walk["note"] == "seed 4 failed at 1,000 updates, not counted"
    assert final.loc["mw-reach", "score"] == 50.0


def test_offline_score_before_the_end_says_so(writer):
    writer.add_multi(["walker-walk", "dog-run"], 1, [(500, {"walker-walk": 9.0, "dog-run": 9.0})], state="running")
    sweep = load_sweep(writer.folder, now=NOW)
    assert set(final_scores(sweep.runs, sweep.table)["note"]) == {"seed 1 running; 500 of 2,000 updates"}


def test_curves_run_over_each_kinds_own_axis(writer):
    writer.add("walker-walk", 1, [(0, 10.0), (3000, 20.0)])
    points = [(0, {"walker-walk": 1.0, "dog-run": 2.0}), (1000, {"walker-walk": 3.0, "dog-run": 4.0})]
    writer.add_multi(["walker-walk", "dog-run"], 1, points)
    table = curves(load_sweep(writer.folder, now=NOW).table)
    walk = table[table["task"] == "walker-walk"]
    assert walk.loc[walk["kind"] == "single", "env_steps"].tolist() == [0, 3000]
    assert walk.loc[walk["kind"] == "single", "updates"].isna().all()
    assert walk.loc[walk["kind"] == "multi", "updates"].tolist() == [0, 1000]
    assert walk.loc[walk["kind"] == "multi", "env_steps"].isna().all()
    assert walk.loc[walk["kind"] == "multi", "mean"].tolist() == [1.0, 3.0]


def test_agents_of_different_task_sets_are_never_averaged(writer):
    writer.add_multi(["walker-walk", "dog-run"], 1, [(2000, {"walker-walk": 100.0, "dog-run": 1.0})])
    three = {"walker-walk": 300.0, "dog-run": 3.0, "cup-spin": 9.0}
    writer.add_multi(list(three), 1, [(2000, three)])
    sweep = load_sweep(writer.folder, now=NOW)
    final = final_scores(sweep.runs, sweep.table)
    walk = final[final["task"] == "walker-walk"].set_index("task_set")
    assert walk["mean"].to_dict() == {"2 tasks": 100.0, "3 tasks": 300.0}
    assert walk["seeds"].tolist() == [1, 1]


def test_tasks_are_ordered_by_suite_then_name():
    tasks = ["mw-reach", "walker-walk", "myo-pose", "dog-run", "walker-walk"]
    assert task_order(tasks) == ["dog-run", "walker-walk", "mw-reach", "myo-pose"]


def test_percentiles_over_runs_in_bins(writer):
    training = pd.DataFrame(
        {
            "algorithm": "tdmpc2",
            "kind": "single",
            "size": pd.array([1] * 4, dtype="Int64"),
            "task_set": "",
            "env_steps": [100.0, 400.0, 900.0, 1000.0],
            "loss": [1.0, 3.0, 10.0, 20.0],
        }
    )
    table = percentiles(training, "loss", bins=2)
    assert table["env_steps"].tolist() == [250.0, 750.0]
    assert table["p50"].tolist() == [2.0, 15.0]


def tidy(rows: list[tuple], task: str = "walker-walk", **columns) -> pd.DataFrame:
    """Rows (seed, environment steps, score) as a tidy table."""
    table = pd.DataFrame(rows, columns=["seed", "env_steps", "score"])
    known = {"suite": "dmcontrol", "domain": "walker", "task": task, "algorithm": "tdmpc2", "size": 5}
    known |= {"kind": "single", "task_set": "", "updates": pd.NA, "run": "run-" + table["seed"].astype(str)}
    whole = dict.fromkeys(("size", "seed", "env_steps", "updates"), "Int64")
    return table.assign(**{**known, **columns}).astype(whole)


def test_run_score_is_that_of_each_runs_own_last_evaluation():
    table = pd.concat(
        [
            tidy([(1, 2000, 70.0), (1, 0, 10.0), (2, 1000, 40.0), (2, 0, np.nan)]),  # in no order
            tidy([(1, 0, 5.0)], task="walker-run"),
        ]
    )
    rows = run_scores(table)
    assert rows[["task", "seed", "run", "step", "score"]].to_numpy().tolist() == [
        ["walker-run", 1, "run-1", 0.0, 5.0],
        ["walker-walk", 1, "run-1", 2000.0, 70.0],
        ["walker-walk", 2, "run-2", 1000.0, 40.0],
    ]


def test_run_score_at_a_budget_lies_on_the_line_between_evaluations():
    table = tidy([(1, 0, 10.0), (1, 2000, 70.0), (2, 1000, 40.0), (2, 3000, 60.0), (3, 0, 1.0), (3, 1000, 2.0)])
    # seed 1 at 1,500: 10 + 60 x 3/4 = 55; seed 2: 40 + 20 x 1/4 = 45; seed 3 ended before
    rows = run_scores(table, budget=1500)
    assert rows["score"].tolist()[:2] == [55.0, 45.0]
    assert np.isnan(rows["score"].iloc[2])
    assert rows["step"].tolist() == [1500.0, 1500.0, 1000.0]
    # at an evaluation: its score; before a run's first evaluation: none
    exact = run_scores(table, budget=1000)
    assert exact["score"].tolist() == [40.0, 40.0, 2.0]
    early = run_scores(table, budget=500)
    assert np.isnan(early["score"].iloc[1])
    assert early["step"].tolist() == [500.0, 3000.0, 500.0]


def test_run_scores_of_offline_agents_are_taken_at_updates():
    offline = tidy([(1, 0, 10.0), (1, 0, 30.0)], kind="multi", task_set="mt30", env_steps=pd.NA, updates=[100, 300])
    assert run_scores(offline, budget=200)[["step", "score"]].to_numpy().tolist() == [[200.0, 20.0]]
    assert run_scores(offline)[["step", "score"]].to_numpy().tolist() == [[300.0, 30.0]]


def test_score_matrix_has_a_row_a_task_and_a_column_a_seed():
    rows = pd.DataFrame(
        {
            "task": ["walker-walk", "walker-walk", "dog-run", "dog-run", "mw-reach"],
            "seed": [3, 1, 3, 2, 1],
            "score": [30.0, 10.0, 33.0, 22.0, np.nan],
        }
    )
    tasks, scores = score_matrix(rows)
    assert tasks == ["dog-run", "walker-walk"]  # mw-reach has no score
    np.testing.assert_array_equal(scores, [[np.nan, 22.0, 33.0], [10.0, np.nan, 30.0]])
    tasks, scores = score_matrix(rows, ["mw-reach", "walker-walk"])
    assert tasks == ["mw-reach", "walker-walk"]
    np.testing.assert_array_equal(scores, [[np.nan] * 3, [10.0, np.nan, 30.0]])


def test_score_matrix_without_any_score_still_has_a_column():
    rows = pd.DataFrame({"task": ["dog-run"], "seed": [1], "score": [np.nan]})
    tasks, scores = score_matrix(rows)
    assert (tasks, scores.shape) == ([], (0, 1))
    tasks, scores = score_matrix(rows, ["dog-run"])
    np.testing.assert_array_equal(scores, [[np.nan]])


def test_curves_of_a_table_without_rows_have_all_columns():
    empty = curves(tidy([]).assign(metric="return", value=0.0))
    assert empty.empty
    assert {"task", "env_steps", "updates", "seeds", "mean", "low", "high"} <= set(empty)


def test_final_scores_of_runs_without_any_evaluation_are_missing_not_zero(writer):
    writer.add("walker-walk", 1, None)
    sweep = load_sweep(writer.folder)
    row = final_scores(sweep.runs, sweep.table).iloc[0]
    assert (row["seeds_planned"], row["seeds"], row["note"]) == (1, 0, "seed 1 not started, no evaluation")
    assert row[["mean", "score", "low"]].isna().all()
    assert row[["episodes", "env_steps", "updates"]].isna().all()
