import pytest

from analysis import multitask_presentation as words
from analysis.comparison import compare_kinds, compare_means
from analysis.results import load_sweep
from analysis.scores import final_scores

NOW = 1_700_000_000.0
TASKS = ["walker-walk", "mw-reach"]


def compared(writer):
    sweep = load_sweep(writer.folder, now=NOW)
    return sweep, compare_kinds(final_scores(sweep.runs, sweep.table))


def two_tasks(writer):
    """Single-task: 500 (random 31.88) and 0.8; multi-task: 300 and 0.9."""
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 500.0)])
    writer.add("mw-reach", 1, [(0, 5.0, 0.0), (3000, 50.0, 0.8)])
    writer.add_multi(
        TASKS, 1, [(0, dict.fromkeys(TASKS, 0.0)), (2000, {"walker-walk": 300.0, "mw-reach": 0.9})], size=5
    )


def test_each_task_has_its_multi_task_score_beside_the_single_task_and_the_random_one(writer):
    two_tasks(writer)
    _, table = compared(writer)
    rows = table.set_index("task")
    walk, reach = rows.loc["walker-walk"], rows.loc["mw-reach"]
    assert (walk["score"], walk["single_score"], walk["difference"]) == (30.0, 50.0, -20.0)
    assert walk["random_score"] == pytest.approx(3.188)
    assert walk["over_random"] == pytest.approx(30 - 3.188)
    assert (walk["size"], walk["single_size"], walk["updates"], walk["single_env_steps"]) == (5, 1, 2000, 3000)
    assert (walk["seeds"], walk["episodes"], walk["single_seeds"], walk["single_episodes"]) == (1, 5, 1, 10)
    assert (reach["score"], reach["single_score"]) == (90.0, 80.0)
    assert reach["difference"] == pytest.approx(10.0)
    assert reach[["random_score", "over_random"]].isna().all()  # nobody measured it
    assert walk["note"] == reach["note"] == ""


def test_intervals_are_normalised_and_every_single_task_size_is_paired(writer):
    for seed, value in ((1, 400.0), (2, 500.0), (3, 600.0)):
        writer.add("walker-walk", seed, [(3000, value)])
        writer.add_multi(["walker-walk", "dog-run"], seed, [(2000, {"walker-walk": value / 2, "dog-run": 1.0})])
    writer.add("walker-walk", 1, [(3000, 700.0)], size=5)
    _, table = compared(writer)
    walk = table[table["task"] == "walker-walk"].set_index("single_size")
    assert walk["difference"].to_dict() == {1: -25.0, 5: -45.0}
    # Student's t with 2 degrees of freedom: 4.302653 x 10 / sqrt(3) = 24.84138, half of it for half the spread
    assert walk.loc[1, "single_low"] == pytest.approx(50 - 24.84138, abs=1e-4)
    assert walk.loc[1, "high"] == pytest.approx(25 + 12.42069, abs=1e-4)
    assert (walk.loc[1, "min"], walk.loc[1, "max"]) == (20.0, 30.0)
    assert walk.loc[5, ["single_low", "single_high"]].isna().all()  # one seed


def test_what_is_missing_keeps_its_row_and_says_so(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (1000, 90.0)], state="failed", message="NaN")
    writer.add_multi(["walker-walk", "dog-run"], 1, None)
    _, table = compared(writer)
    notes = table.set_index("task")["note"].to_dict()
    assert notes == {
        "walker-walk": "seed 1 not started, no evaluation; single-task: seed 1 failed; 1,000 of 3,000 steps",
        "dog-run": "seed 1 not started, no evaluation; no single-task run of this task",
    }
    assert table["difference"].isna().all()


def test_finetuned_and_pixel_agents_are_no_single_task_baseline(writer):
    writer.add("walker-walk", 1, [(3000, 900.0)], config={"checkpoint": "x"}, planned=False, variant="-finetuned")
    writer.add("walker-walk", 1, [(3000, 800.0)], config={"obs": "rgb"}, planned=False, variant="-rgb")
    writer.add_multi(["walker-walk", "dog-run"], 1, [(2000, {"walker-walk": 300.0, "dog-run": 1.0})])
    _, table = compared(writer)
    assert len(table) == 2
    assert table["single_score"].isna().all()


def test_means_are_over_the_tasks_that_have_both_scores(writer):
    two_tasks(writer)
    three = {"walker-walk": 600.0, "mw-reach": 0.7, "dog-run": 100.0}
    writer.add_multi(list(three), 1, [(2000, three)])
    _, table = compared(writer)
    means = compare_means(table).set_index(["task_set", "size", "single_size"])
    both = means.loc[("3 tasks", 1, 1)]
    assert (both["tasks"], both["tasks_compared"], both["score"], both["single_score"]) == (3, 2, 65.0, 65.0)
    assert (both["tasks_above_single"], both["difference"]) == (1, pytest.approx(0.0))
    assert means.loc[("2 tasks", 5, 1), "score"] == 60.0  # mean of 30 and 90
    assert means.loc[("3 tasks", 1, 1), ["tasks_scored", "tasks_random_known", "tasks_above_random"]].tolist() == [
        3,
        2,
        2,
    ]


def test_means_of_an_agent_without_any_single_task_run_are_missing(writer):
    writer.add_multi(["walker-walk", "dog-run"], 1, [(2000, {"walker-walk": 300.0, "dog-run": 1.0})])
    _, table = compared(writer)
    (row,) = compare_means(table).to_dict("records")
    assert (row["tasks"], row["tasks_scored"], row["tasks_compared"], row["tasks_above_random"]) == (2, 2, 0, 1)
    assert "no single-task score beside it; above a random policy on 1 of 2 tasks" in words.summary(table)


def test_no_offline_run_gives_an_empty_comparison(writer):
    writer.add("walker-walk", 1, [(3000, 500.0)])
    _, table = compared(writer)
    assert table.empty
    assert compare_means(table).empty


def test_summary_gives_both_sides_and_how_many_tasks_are_better(writer):
    two_tasks(writer)
    _, table = compared(writer)
    assert words.summary(table) == (
        "Normalised scores, 0 to 100, means over tasks. TD-MPC2 5M multi-task (2 tasks), after 2k updates: 60.0 over 2 "
        "tasks, against 65.0 of TD-MPC2 1M single-task agents (better on 1 of 2); above a random policy on 1 of 1 task "
        "where that is known. With one seed a model, how far another seed would differ is not known."
    )


def test_section_says_what_was_learned_from_and_what_waits_or_failed(writer):
    two_tasks(writer)
    writer.add_multi(TASKS, 2, None, size=5)
    writer.add_multi(TASKS, 3, [], size=5, state="failed", message="out of memory")
    sweep, table = compared(writer)
    assert words.heading(sweep.runs) == "Multi-task agents"
    assert words.trained_on(sweep.runs, "2 tasks") == (
        "TD-MPC2 5M multi-task. Each is one agent for 2 tasks (walker-walk, mw-reach), learned offline from the data "
        'set "buffers", in 2,000 updates. No environment step is taken, so updates are the axis.'
    )
    assert words.unfinished(sweep.runs) == (
        "2 of 3 multi-task runs not done: 1 failed, 1 not started. A run that has not started waits for its data set, "
        "or for its turn. walker-walk+mw-reach-5M-seed3: out of memory."
    )
    assert "Multi-task: 1 seed, 5 episodes a seed and task" in words.compared_caption(table)
    assert words.comparison_table(table).iloc[0].to_dict() == {
        "task": "walker-walk",
        "model": "TD-MPC2 5M multi-task (2 tasks)",
        "updates": "2,000",
        "seeds": "1",
        "score": "30.0",
        "random policy": "3.2",
        "single-task model": "TD-MPC2 1M",
        "its environment steps": "3,000",
        "its seeds": "1",
        "its score": "50.0",
        "difference": "-20.0",
        "notes": "seed 2 not started, no evaluation; seed 3 failed, no evaluation",
    }


def test_files_of_several_task_sets_have_names_of_their_own():
    assert words.file_suffix("mt30", ["mt30"]) == ""
    assert words.file_suffix("2 tasks (2)", ["mt30", "2 tasks (2)"]) == "-2-tasks-2"
