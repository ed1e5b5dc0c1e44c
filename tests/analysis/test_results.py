import json
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.results import TABLE_COLUMNS, load_sweep, load_training
from analysis.runs import name_task_sets
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASK_SETS
from tdmpc2.training.folder import RunFolder

NOW = 1_700_000_000.0


def run_row(runs: pd.DataFrame, name: str) -> dict:
    return runs.set_index("run").loc[name].to_dict()


def test_tidy_table_has_one_row_a_metric_with_normalised_score(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (2000, 250.0)])
    writer.add("mw-reach", 2, [(0, 12.0, 0.0), (1000, 90.0, 0.7)], size=5)
    table = load_sweep(writer.folder).table

    assert list(table.columns) == TABLE_COLUMNS
    walk = table[table["task"] == "walker-walk"]
    assert walk[["suite", "domain", "algorithm", "kind"]].drop_duplicates().to_numpy().tolist() == [
        ["dmcontrol", "walker", "tdmpc2", "single"]
    ]
    assert walk[["size", "seed", "env_steps", "metric", "value", "score"]].to_numpy().tolist() == [
        [1, 1, 0, "return", 30.0, 3.0],
        [1, 1, 2000, "return", 250.0, 25.0],
    ]
    reach = table[(table["task"] == "mw-reach") & (table["env_steps"] == 1000)].set_index("metric")
    assert reach.loc["success", "value"] == 0.7
    assert reach.loc["success", "score"] == pytest.approx(70.0)
    assert reach.loc["return", "value"] == 90.0
    assert np.isnan(reach.loc["return", "score"])  # the task is scored by success


def test_every_state_is_listed_with_progress_and_reason(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 250.0)])
    writer.add("walker-walk", 2, [(0, 30.0)], state="failed", message="worker killed: out of memory")
    writer.add("walker-walk", 3, [(0, 30.0), (1500, 90.0)], state="running")
    writer.add("walker-walk", 4, [(0, 30.0)], state="interrupted", message="SIGTERM")
    writer.add("walker-walk", 5, None)
    writer.add("walker-walk", 6, [(0, 30.0)], state="failed")
    runs = load_sweep(writer.folder, now=NOW).runs

    listed = runs[["state", "progress", "evaluations", "reason"]].to_numpy().tolist()
    assert listed == [
        ["done", 1.0, 2, ""],
        ["failed", 0.0, 1, "worker killed: out of memory"],
        ["running", 0.5, 2, ""],
        ["interrupted", 0.0, 1, "SIGTERM"],
        ["not started", 0.0, 0, ""],
        ["failed", 0.0, 1, "no reason recorded"],
    ]


def test_running_run_without_sign_of_life_is_remarked(writer):
    writer.add("walker-walk", 1, [(0, 30.0)], state="running")
    runs = load_sweep(writer.folder, now=NOW + 7200).runs
    assert runs["state"].tolist() == ["running"]
    assert "no sign of life for 2.0 h" in runs["reason"].iloc[0]


def test_reasons_the_runs_could_not_write_themselves_come_from_the_sweep(writer):
    writer.add("walker-walk", 1, [(0, 30.0)], state="interrupted", message="SIGTERM")
    writer.add("walker-walk", 2, None)
    writer.add("walker-walk", 3, [(0, 30.0), (3000, 40.0)])
    killed = {f"walker-walk-1M-seed{seed}": "worker killed three times" for seed in (1, 2, 3)}
    (writer.folder / "failures.json").write_text(json.dumps(killed))
    runs = load_sweep(writer.folder, now=NOW).runs
    assert runs[["state", "reason"]].to_numpy().tolist() == [
        ["failed", "worker killed three times"],
        ["failed", "worker killed three times"],
        ["done", ""],  # it was done in the end
    ]


def test_running_run_whose_process_is_gone_is_interrupted(writer, monkeypatch):
    run = writer.add("walker-walk", 1, [(0, 30.0)], state="running")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "host": socket.gethostname()}))
    runs = load_sweep(writer.folder, now=NOW).runs
    assert runs[["state", "reason"]].to_numpy().tolist() == [
        ["interrupted", "its process ended without a word, perhaps killed"]
    ]
    monkeypatch.setattr(RunFolder, "is_claimed", lambda _self: True)
    assert load_sweep(writer.folder, now=NOW).runs["state"].tolist() == ["running"]


def test_half_written_and_broken_rows_are_reported_and_the_rest_kept(writer):
    run = writer.add("walker-walk", 1, [(0, 30.0), (1000, 50.0)])
    text = (run / "eval.csv").read_text()
    (run / "eval.csv").write_text(
        text + 'x,"\n1500,750,0,1.0,walker-walk,10,oops,0.0,,500\n2000,1000,0,1.0,walker-walk,10,9'
    )
    writer.add("walker-walk", 2, [(0, 31.0), (1000, 51.0)])
    sweep = load_sweep(writer.folder, now=NOW)

    first = sweep.table[sweep.table["seed"] == 1]
    assert first[["env_steps", "value"]].to_numpy().tolist() == [[0, 30.0], [1000, 50.0]]
    reason = run_row(sweep.runs, "walker-walk-1M-seed1")["reason"]
    assert "last row half-written" in reason
    assert reason.count("1 unreadable row left out") == 2  # one of too few cells, one that is no number
    assert run_row(sweep.runs, "walker-walk-1M-seed2")["reason"] == ""
    assert len(sweep.table[sweep.table["seed"] == 2]) == 2


def test_cut_off_number_is_never_taken_for_a_value(writer):
    run = writer.add("walker-walk", 1, [(0, 30.0)])
    with (run / "eval.csv").open("a") as file:
        file.write("1000,500,0,1.0,walker-walk,10,957.3,0.0,,50")  # of 500, or of 50000?
    assert load_sweep(writer.folder).table["env_steps"].tolist() == [0]


def test_broken_files_of_one_run_leave_the_others_alone(writer):
    broken = writer.add("walker-walk", 1, [(0, 30.0)])
    (broken / "status.json").write_text('{"state": "runn')
    (broken / "config.yaml").write_text("task: [walker")
    (broken / "eval.csv").unlink()
    writer.add("walker-walk", 2, [(0, 30.0)])
    sweep = load_sweep(writer.folder, now=NOW)

    row = run_row(sweep.runs, "walker-walk-1M-seed1")
    assert row["state"] == "unknown"
    assert row["task"] == "walker-walk"  # known from the plan
    for file in ("status.json: cannot be read", "config.yaml: cannot be read", "eval.csv: missing"):
        assert file in row["reason"]
    assert sweep.table["seed"].tolist() == [2]


def test_run_without_plan_or_readable_config_is_still_listed(writer):
    run = writer.add("walker-walk", 1, [(0, 30.0)], planned=False)
    (run / "config.yaml").write_text("task: no-such-task\nmodel_size: 1\nseed: 1\n")
    sweep = load_sweep(writer.folder, now=NOW)
    assert "config.yaml: task, model_size or seed missing or not valid" in sweep.runs["reason"].iloc[0]
    assert sweep.table.empty
    assert "no plan.json" in sweep.notes[0]


def test_broken_plan_is_noted_and_found_runs_reported(writer):
    writer.add("walker-walk", 1, [(0, 30.0)])
    (writer.folder / "plan.json").write_text("{")
    sweep = load_sweep(writer.folder, now=NOW)
    assert "plan.json cannot be read" in sweep.notes[0]
    assert len(sweep.table) == 1


def test_run_that_differs_from_its_plan_is_remarked(writer):
    writer.add("walker-walk", 1, [(0, 30.0)], config={"seed": 9})
    writer.add("walker-walk", 2, [(0, 30.0)], planned=False)
    runs = load_sweep(writer.folder, now=NOW).runs
    assert runs["reason"].tolist() == ["config.yaml differs from plan.json: seed 9, planned 1", "not in plan.json"]
    assert runs["seed"].tolist() == [9, 2]  # what the run really did


def test_variants_and_kinds_are_series_of_their_own(writer):
    writer.add("walker-walk", 1, [(0, 30.0)], config={"label": "no-mpc"}, planned=False)
    writer.add("walker-walk", 2, [(0, 30.0)], config={"obs": "rgb"}, planned=False)
    writer.add("walker-walk", 3, [(0, 30.0)], config={"task": "walker-walk,dog-run", "data": "d"}, planned=False)
    writer.add("walker-walk", 4, [(0, 30.0)], config={"checkpoint": "runs/x"}, planned=False, variant="-finetuned")
    writer.add("walker-walk", 5, [(0, 30.0)], config={"data": "d"}, planned=False)
    runs = load_sweep(writer.folder, now=NOW).runs.set_index("seed").sort_index()
    assert runs["algorithm"].tolist() == ["tdmpc2 no-mpc", "tdmpc2-pixels", *["tdmpc2"] * 3]
    assert runs["kind"].tolist() == ["single", "single", "multi", "finetuned", "offline"]


def test_kind_of_a_run_that_has_not_started_comes_from_the_plan(writer):
    writer.add_multi(["walker-walk", "dog-run"], 1, None, total=2000)
    plan = json.loads((writer.folder / "plan.json").read_text())
    few = {"task": "dog-run", "model_size": 5, "seed": 1, "env_steps": 20000}
    plan["runs"].append({"name": "dog-run-5M-finetuned-few-seed1", **few, "kind": "finetune", "updates": 10000})
    (writer.folder / "plan.json").write_text(json.dumps(plan))
    runs = load_sweep(writer.folder, now=NOW).runs
    assert runs[["kind", "algorithm", "state"]].to_numpy().tolist() == [
        ["multi", "tdmpc2", "not started"],
        ["finetuned", "tdmpc2 few", "not started"],
    ]
    assert runs["total_updates"].tolist() == [2000, 10000]
    assert runs["progress"].iloc[0] == 0.0
    assert np.isnan(runs["total_env_steps"].iloc[0])


def test_offline_run_is_read_by_updates_with_a_row_a_task(writer):
    points = [(0, {"walker-walk": 30.0, "mw-reach": 0.0}), (1000, {"walker-walk": 250.0, "mw-reach": 0.4})]
    writer.add_multi(["walker-walk", "mw-reach"], 1, points, state="running", total=4000, data="../datasets/mine")
    sweep = load_sweep(writer.folder, now=NOW)
    rows = sweep.table[sweep.table["score"].notna()]
    assert rows[["task", "kind", "task_set", "updates", "metric", "value", "episodes"]].to_numpy().tolist() == [
        ["mw-reach", "multi", "2 tasks", 0, "success", 0.0, 5],
        ["mw-reach", "multi", "2 tasks", 1000, "success", 0.4, 5],
        ["walker-walk", "multi", "2 tasks", 0, "return", 30.0, 5],
        ["walker-walk", "multi", "2 tasks", 1000, "return", 250.0, 5],
    ]
    assert rows["score"].tolist() == [0.0, 40.0, 3.0, 25.0]
    assert rows["env_steps"].isna().all()
    run = sweep.runs.iloc[0]
    assert (run["data"], run["updates"], run["total_updates"], run["progress"]) == ("mine", 1000, 4000, 0.25)
    assert (run["evaluations"], run["reason"]) == (2, "")


def test_tasks_that_an_evaluation_lacks_are_reported(writer):
    both = {"walker-walk": 30.0, "dog-run": 5.0}
    points = [(0, both), (1000, {"walker-walk": 90.0}), (2000, both)]
    writer.add_multi(["walker-walk", "dog-run", "mw-reach"], 1, points)
    reason = load_sweep(writer.folder, now=NOW).runs["reason"].iloc[0]
    assert reason == ("eval.csv: no evaluation of mw-reach; eval.csv: an evaluation at 1,000 updates lacks dog-run")


def test_evaluation_being_written_is_no_fault_of_a_running_run(writer):
    points = [(0, {"walker-walk": 30.0, "dog-run": 5.0}), (1000, {"walker-walk": 90.0})]
    writer.add_multi(["walker-walk", "dog-run"], 1, points, state="running")
    writer.add_multi(["walker-walk", "dog-run"], 2, points, state="failed", message="NaN")
    assert load_sweep(writer.folder, now=NOW).runs["reason"].tolist() == [
        "",
        "NaN; eval.csv: an evaluation at 1,000 updates lacks dog-run",
    ]


def test_rows_of_foreign_tasks_and_rows_without_a_step_are_reported(writer):
    run = writer.add_multi(["walker-walk", "dog-run"], 1, [(0, {"walker-walk": 30.0, "dog-run": 5.0})])
    with (run / "eval.csv").open("a") as file:
        file.write(",,0,1.0,cup-spin,5,7.0,0.0,,500\n,,,1.0,dog-run,5,9.0,0.0,,500\n")
    online = writer.add("dog-run", 1, [(0, 4.0)])
    with (online / "eval.csv").open("a") as file:
        file.write(",,1500,1.0,dog-run,5,9.0,0.0,,500\n")  # an acting run has environment steps
    sweep = load_sweep(writer.folder, now=NOW)
    assert sorted(sweep.table["value"]) == [4.0, 5.0, 30.0]
    assert run_row(sweep.runs, "walker-walk+dog-run-1M-seed1")["reason"] == (
        "eval.csv: 1 unreadable row left out; eval.csv: rows of cup-spin, not among the run's tasks, left out"
    )
    assert run_row(sweep.runs, "dog-run-1M-seed1")["reason"] == "eval.csv: 1 unreadable row left out"


def test_task_sets_are_named_for_people_and_apart():
    ab, ac = ("walker-walk", "dog-run"), ("walker-walk", "cup-spin")
    names = name_task_sets([TASK_SETS["mt30"], ab, ac, ab, ("dog-run",), ("cup-spin",)])
    assert list(names.values()) == ["mt30", "2 tasks", "2 tasks (2)", "1 task", "1 task"]


def test_training_log_of_an_offline_run_is_over_updates(writer):
    writer.add("walker-walk", 1, [(0, 30.0)])
    writer.add_multi(["walker-walk", "dog-run"], 1, [(0, {"walker-walk": 30.0, "dog-run": 5.0})])
    training = load_training(load_sweep(writer.folder, now=NOW))
    rows = training.set_index("kind")
    assert rows.loc["multi", "updates"].tolist() == [1000, 2000]
    assert rows.loc["multi", "env_steps"].isna().all()
    assert rows.loc["multi", "value_loss"].tolist() == [1.5, 1.25]
    assert rows.loc["single", "env_steps"] == 2000


def test_not_started_variant_is_recognised_by_its_name(writer):
    (writer.folder / "plan.json").write_text(
        json.dumps({"runs": [{"name": "dog-run-rgb-5M-no-mpc-seed1", "task": "dog-run", "model_size": 5, "seed": 1}]})
    )
    runs = load_sweep(writer.folder).runs
    assert runs[["algorithm", "state"]].to_numpy().tolist() == [["tdmpc2-pixels no-mpc", "not started"]]


def test_rows_of_unknown_tasks_and_repeated_rows_are_reported(writer):
    run = writer.add("walker-walk", 1, [(0, 30.0), (1000, 50.0)])
    with (run / "eval.csv").open("a") as file:
        file.write("1000,500,0,1.0,walker-walk,10,60.0,0.0,,500\n1000,500,0,1.0,walker-moonwalk,10,60.0,0.0,,500\n")
    sweep = load_sweep(writer.folder, now=NOW)
    assert sweep.table["value"].tolist() == [30.0, 60.0]
    assert "1 repeated row, the last of each kept" in sweep.runs["reason"].iloc[0]
    assert "unknown task walker-moonwalk" in sweep.runs["reason"].iloc[0]


def test_training_log_keeps_losses_and_last_row(writer):
    run = writer.add("walker-walk", 1, [(0, 30.0)])
    lines = [f"{2000 + i},1,1,1.0,walker-walk,{i},500,20,,False,0.5,{i}" for i in range(1000)]
    with (run / "train.csv").open("a") as file:
        file.write("\n".join(lines) + "\n")
    training = load_training(load_sweep(writer.folder, now=NOW), max_rows=50)
    assert len(training) == 49  # the first row is from before learning
    assert training["value_loss"].iloc[-1] == 999
    assert training["value_loss"].notna().all()
    assert "episode_length" not in training
    assert training[["algorithm", "size", "seed"]].drop_duplicates().to_numpy().tolist() == [["tdmpc2", 1, 1]]


def test_missing_sweep_names_the_nearest(writer):
    with pytest.raises(UserError, match=r"no sweep folder .*smal; did you mean .*small\?"):
        load_sweep(writer.folder.parent / "smal")


def test_folder_without_runs_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no runs in it"):
        load_sweep(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "# mine\ntask: dog-run  # a comment\nmodel_size: 5\n\nseed: 3\nlabel: 'no mpc'\n",
        "{task: dog-run, model_size: 5, seed: 3, label: no mpc}\n",
        "task: >-\n  dog-run\nmodel_size: 5\nseed: 3\nlabel: no\n  mpc\n",
        "defaults: &five 5\ntask: dog-run\nmodel_size: *five\nseed: 3\nlabel: no mpc",
        "seed: 9\nlr: 0.001\nmodel_size: 5\ntask: dog-run\nlabel: no mpc\nseed: 3\n",  # the last of two counts
    ],
)
def test_config_is_read_however_its_yaml_is_written(writer, text):
    run = writer.add("walker-walk", 1, [(0, 30.0)], planned=False)
    (run / "config.yaml").write_text(text)
    row = load_sweep(writer.folder, now=NOW).runs.iloc[0]
    assert (row["task"], row["size"], row["seed"], row["algorithm"]) == ("dog-run", 5, 3, "tdmpc2 no mpc")


def test_config_whose_telling_settings_are_damaged_is_reported(writer):
    run = writer.add("walker-walk", 1, [(0, 30.0)])
    (run / "config.yaml").write_text("task: walker-walk\nmodel_size: [1\nseed: 1\n")
    assert "config.yaml: cannot be read" in load_sweep(writer.folder, now=NOW).runs["reason"].iloc[0]


def test_each_run_loses_only_its_own_foreign_rows(writer):
    foreign = {"walker-walk": "dog-run", "dog-run": "walker-walk", "cup-spin": "no-task"}
    for task, other in foreign.items():
        run = writer.add(task, 1, [(0, 1.0)])
        with (run / "eval.csv").open("a") as file:
            file.write(f"1000,500,0,1.0,{other},10,9.0,0.0,,500\n1000,500,0,1.0,{task},10,2.0,0.0,,500\n")
    sweep = load_sweep(writer.folder, now=NOW)
    assert sweep.table[["task", "value"]].to_numpy().tolist() == [
        [task, value] for task in sorted(foreign) for value in (1.0, 2.0)
    ]
    assert sweep.runs.set_index("task")["reason"].to_dict() == {
        "walker-walk": "eval.csv: rows of dog-run, not among the run's tasks, left out",
        "dog-run": "eval.csv: rows of walker-walk, not among the run's tasks, left out",
        "cup-spin": "eval.csv: unknown task no-task, rows left out",
    }


def test_gaps_of_one_offline_run_are_not_laid_to_another(writer):
    both = {"walker-walk": 30.0, "dog-run": 5.0}
    writer.add_multi(["walker-walk", "dog-run"], 1, [(0, both), (1000, both)])
    writer.add_multi(["walker-walk", "dog-run"], 2, [(0, both), (1000, {"walker-walk": 90.0})])
    writer.add_multi(["walker-walk", "dog-run"], 3, [(0, {"walker-walk": 90.0})])
    assert load_sweep(writer.folder, now=NOW).runs["reason"].tolist() == [
        "",
        "eval.csv: an evaluation at 1,000 updates lacks dog-run",
        "eval.csv: no evaluation of dog-run",
    ]
