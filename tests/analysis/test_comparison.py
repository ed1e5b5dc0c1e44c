import json

import numpy as np
import pytest
from scipy.stats import t as student

from analysis.multitask import text as words
from analysis.multitask.buffers import read_buffers
from analysis.multitask.comparison import OTHER_BUFFERS, SAME_BUFFERS, compare, mean_difference
from analysis.multitask.overview import compare_means
from analysis.results import load_sweep
from analysis.study import load_study
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASK_SETS, TASKS

TWO = ["walker-walk", "mw-reach"]


def compared(writer, reference=None, **settings):
    study = load_study([writer.folder], reference)
    return compare(study, read_buffers(study.runs)[0], **settings)


def add_manifest(run, stores):
    """`stores` are (path, task, seed, rows, episodes)."""
    tasks = list(dict.fromkeys(store[1] for store in stores))
    described = [
        {
            "id": place,
            "name": name,
            "obs_dim": TASKS[name].obs_dim,
            "action_dim": TASKS[name].action_dim,
            "episode_length": TASKS[name].episode_length,
            "metric": TASKS[name].metric,
        }
        for place, name in enumerate(tasks)
    ]
    records = [
        {"path": path, "task": task, "seed": seed, "rows": rows, "episodes": episodes, "rows_written": rows}
        for path, task, seed, rows, episodes in stores
    ]
    manifest = {"version": 1, "name": "buffers", "tasks": described, "stores": records}
    (run / "dataset.json").write_text(json.dumps(manifest))


def two_tasks(writer):
    """Single-task: 500 (random 31.88) and 0.8; multi-task: 300 and 0.9."""
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 500.0)])
    writer.add("mw-reach", 1, [(0, 5.0, 0.0), (3000, 50.0, 0.8)])
    return writer.add_multi(
        TWO, 1, [(0, dict.fromkeys(TWO, 0.0)), (2000, {"walker-walk": 300.0, "mw-reach": 0.9})], size=5
    )


def test_each_task_has_its_multi_task_score_beside_the_single_task_and_the_random_one(writer):
    two_tasks(writer)
    rows = compared(writer).set_index("task")
    walk, reach = rows.loc["walker-walk"], rows.loc["mw-reach"]
    assert (walk["score"], walk["single_score"], walk["difference"]) == (30.0, 50.0, -20.0)
    assert walk["random_score"] == pytest.approx(3.188)
    assert walk["over_random"] == pytest.approx(30 - 3.188)
    assert (walk["size"], walk["single_size"], walk["updates"], walk["single_step"]) == (5, 1, 2000, 3000)
    assert (walk["seeds"], walk["episodes"], walk["single_seeds"], walk["single_episodes"]) == (1, 5, 1, 10)
    assert (reach["score"], reach["single_score"]) == (90.0, 80.0)
    assert reach["difference"] == pytest.approx(10.0)
    assert reach[["random_score", "over_random"]].isna().all()  # nobody measured it
    assert rows[["difference_low", "difference_high", "p", "p_holm"]].isna().all(axis=None)  # one seed
    assert walk["note"] == reach["note"] == ""
    assert (walk["embodiment"], walk["objective"]) == ("walker", "walk")


def test_the_single_task_score_is_taken_where_its_buffer_ended(writer):
    run = two_tasks(writer)
    # walker-walk: 2 episodes of 500 agent steps, 2 environment steps each: 2,000 of 3,000 environment steps
    add_manifest(
        run,
        [
            ("../../runs/walker-walk-1M-seed1/replay", "walker-walk", 1, 1002, 2),
            ("/elsewhere/runs/mw-reach-5M-seed7/replay", "mw-reach", 7, 1515, 15),
        ],
    )
    rows = compared(writer).set_index("task")
    walk, reach = rows.loc["walker-walk"], rows.loc["mw-reach"]
    assert walk["buffer_step"] == walk["single_step"] == 2000
    assert walk["single_score"] == pytest.approx(3 + (50 - 3) * 2 / 3)
    assert walk["difference"] == pytest.approx(30 - 34.33333, abs=1e-4)
    assert walk["buffers"] == SAME_BUFFERS
    # mw-reach: 15 episodes of 100 agent steps, so 3,000: another run's buffer, but equally long
    assert (reach["buffers"], reach["single_step"], reach["single_score"]) == (OTHER_BUFFERS, 3000, 80.0)
    assert walk["data_share"] == pytest.approx(1002 / 2517)
    assert reach["data_rows"] == 1515


def test_a_buffer_that_is_full_forgets_and_the_steps_taken_are_reckoned_all_the_same(writer):
    run = two_tasks(writer)
    add_manifest(run, [("../../runs/walker-walk-1M-seed1/replay", "walker-walk", 1, 1002, 2)])
    manifest = json.loads((run / "dataset.json").read_text())
    manifest["stores"][0]["rows_written"] = 1503  # 3 episodes, of which 2 are held
    (run / "dataset.json").write_text(json.dumps(manifest))
    table, problems = read_buffers(load_study([writer.folder]).runs)
    assert table[["source_run", "env_steps"]].to_numpy().tolist() == [["walker-walk-1M-seed1", 3000]]
    assert problems == []


def test_a_missing_manifest_is_reported_and_the_last_evaluation_counts(writer):
    two_tasks(writer)
    study = load_study([writer.folder])
    table, (problem,) = read_buffers(study.runs)
    assert table.empty
    assert "walker-walk+mw-reach-5M-seed1: what it learned from is not recorded" in problem
    rows = compare(study, table)
    assert set(rows["buffers"]) == {"not recorded"}
    assert rows["single_step"].tolist() == [3000, 3000]


@pytest.mark.parametrize(
    ("there", "sizes", "chosen"), [((1, 5, 19), None, 19), ((1, 5), None, 5), ((1, 48), None, 48), ((1, 19), 1, 1)]
)
def test_the_single_task_size_is_the_own_one_else_five_else_the_largest(writer, there, sizes, chosen):
    for size in there:
        writer.add("walker-walk", 1, [(3000, 100.0 * size)], size=size)
    writer.add_multi(TWO, 1, [(2000, {"walker-walk": 300.0, "mw-reach": 0.9})], size=19)
    rows = compared(writer, sizes=sizes).set_index("task")
    assert rows.loc["walker-walk", "single_size"] == chosen
    assert rows.loc["mw-reach", "note"] == "no single-task run of this task"


def test_another_size_of_all_tasks_is_compared_with_rather_than_the_own_one_of_few(writer, published):
    for task in ("walker-walk", "mw-reach"):
        writer.add(task, 1, [(3000, 500.0, 0.5)])
    writer.add("walker-walk", 1, [(3000, 900.0)], size=5)
    writer.add_multi(TWO, 1, [(2000, {"walker-walk": 300.0, "mw-reach": 0.9})], size=5)
    curves = published({"tdmpc2/mw-reach.csv": "step,success,seed\n2000000,1.0,1\n"})
    study = load_study([writer.folder], curves)
    rows = compare(study, read_buffers(study.runs)[0]).set_index("task")
    assert rows["single_size"].tolist() == [1, 1]
    assert rows["single_kind"].tolist() == ["single", "single"]  # no published score beside our own run of the task
    assert rows.loc["mw-reach", "single_score"] == 50.0


def test_a_size_that_nobody_trained_is_refused_with_those_there_are(writer):
    two_tasks(writer)
    with pytest.raises(UserError, match="sizes: no single-task run of 7M; there are runs of 1M"):
        compared(writer, sizes=7)


def test_published_scores_stand_in_where_no_run_is_of_the_task_and_are_marked(writer, published):
    writer.add("walker-walk", 1, [(3000, 500.0)])
    writer.add_multi(TWO, 1, [(2000, {"walker-walk": 300.0, "mw-reach": 0.9})])
    curve = "step,success,seed\n0,0.0,1\n1000000,0.75,1\n0,0.0,2\n1000000,0.25,2\n"
    reference = published({"tdmpc2/mw-reach.csv": curve, "tdmpc2/walker-walk.csv": "step,reward,seed\n5000,999,1\n"})
    rows = compared(writer, reference).set_index("task")
    walk, reach = rows.loc["walker-walk"], rows.loc["mw-reach"]
    assert (walk["single_kind"], walk["single_score"]) == ("single", 50.0)
    assert (reach["single_kind"], reach["single_score"], reach["single_seeds"]) == ("published", 50.0, 2)
    assert reach["single_step"] == 1_000_000
    assert reach["note"] == "published single-task score, of another version of the simulator"
    without = compared(writer, reference, published_single=False).set_index("task")
    assert np.isnan(without.loc["mw-reach", "single_score"])


def test_the_difference_of_three_against_three_seeds_has_welchs_interval_and_a_permutation_p():
    value, low, high = mean_difference(np.array([20.0, 25.0, 30.0]), np.array([40.0, 50.0, 60.0]))
    # variances 25 and 100: standard error (125 / 3)^(1/2), freedom 125^2 / ((25^2 + 100^2) / 2) = 2.941176
    half = student.ppf(0.975, 125**2 / ((25**2 + 100**2) / 2)) * (125 / 3) ** 0.5
    assert (value, low, high) == pytest.approx((-25.0, -25 - half, -25 + half))


def test_p_of_a_task_is_of_all_splits_of_its_seeds(writer):
    for seed, value in ((1, 400.0), (2, 500.0), (3, 600.0)):
        writer.add("walker-walk", seed, [(3000, value)])
        writer.add_multi(TWO, seed, [(2000, {"walker-walk": value / 4, "mw-reach": 1.0})])
    walk = compared(writer).set_index("task").loc["walker-walk"]
    assert walk["p"] == walk["p_holm"] == pytest.approx(0.1)  # 2 of 20 splits; one task tested
    assert walk["difference"] == -37.5
    # Student's t with 2 degrees of freedom: 4.302653 x 10 / sqrt(3) = 24.84138
    assert walk["single_low"] == pytest.approx(50 - 24.84138, abs=1e-4)


def test_what_is_missing_keeps_its_row_and_says_so(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (1000, 90.0)], state="failed", message="NaN")
    writer.add_multi(["walker-walk", "dog-run"], 1, None)
    rows = compared(writer)
    assert rows.set_index("task")["note"].to_dict() == {
        "walker-walk": "seed 1 not started, no evaluation; single-task: seed 1 failed; 1,000 of 3,000 steps",
        "dog-run": "seed 1 not started, no evaluation; no single-task run of this task",
    }
    assert rows["difference"].isna().all()


def test_finetuned_and_pixel_agents_are_no_single_task_baseline(writer):
    writer.add("walker-walk", 1, [(3000, 900.0)], config={"checkpoint": "x"}, planned=False, variant="-finetuned")
    writer.add("walker-walk", 1, [(3000, 800.0)], config={"obs": "rgb"}, planned=False, variant="-rgb")
    writer.add_multi(["walker-walk", "dog-run"], 1, [(2000, {"walker-walk": 300.0, "dog-run": 1.0})])
    rows = compared(writer)
    assert len(rows) == 2
    assert rows["single_score"].isna().all()


def test_no_offline_run_gives_an_empty_comparison(writer):
    writer.add("walker-walk", 1, [(3000, 500.0)])
    assert compared(writer).empty


def test_section_says_what_was_learned_from_and_what_waits_or_failed(writer):
    two_tasks(writer)
    writer.add_multi(TWO, 2, None, size=5)
    writer.add_multi(TWO, 3, [], size=5, state="failed", message="out of memory")
    runs = load_sweep(writer.folder).runs
    assert words.trained_on(runs, "2 tasks") == (
        "TD-MPC2 5M multi-task. Each is one agent for 2 tasks (walker-walk, mw-reach), learned offline from the data "
        'set "buffers", in 2,000 updates. No environment step is taken, so updates are the axis.'
    )
    assert words.unfinished(runs) == (
        "2 of 3 multi-task runs not done: 1 failed, 1 not started. A run that has not started waits for its data set, "
        "or for its turn. walker-walk+mw-reach-5M-seed3: out of memory."
    )
    assert "Multi-task: 1 seed, 5 episodes a seed and task" in words.compared_caption(compared(writer))


def test_files_of_several_parts_have_names_of_their_own():
    assert words.file_suffix("mt30", ["mt30"]) == ""
    assert words.file_suffix("2 tasks (2)", ["mt30", "2 tasks (2)"]) == "-2-tasks-2"


def test_luck_that_an_agent_has_on_all_its_tasks_leaves_the_verdict_undecided(writer):
    tasks = TASK_SETS["dmcontrol"][:8]
    for seed in (1, 2, 3):
        for task in tasks:
            writer.add(task, seed, [(3000, 500.0 + seed)])
        shared = {1: -150.0, 2: 100.0, 3: 200.0}[seed]  # each agent so much above or below 500 on every task
        writer.add_multi(tasks, seed, [(2000, {task: 500.0 + shared + i for i, task in enumerate(tasks)})])
    rows = compared(writer)
    (mean,) = compare_means(rows).to_dict("records")
    assert mean["difference"] == pytest.approx(5.0 + 0.35 - 0.2)  # shifts and i, less the seeds
    assert mean["low"] > 0  # over tasks alone it would be decided
    assert mean["p_holm"] < 0.05
    assert mean["agents_low"] < 0 < mean["agents_high"]
    assert mean["verdict"] == "undecided"
