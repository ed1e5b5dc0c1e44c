"""Sweeps from the command line to the exit code, with training played by a script, in this process."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_training import ScriptedTraining, write_status

from tdmpc2.cli import main
from tdmpc2.envs import make
from tdmpc2.sweeps import commands
from tdmpc2.sweeps.declaration import load_declaration
from tdmpc2.sweeps.executors import SerialExecutor
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.planning import PlannedRun, plan_runs
from tdmpc2.training.runtime import StopRequest

Declare = Callable[..., Path]
BALANCE, REACHER = "cartpole-balance-1M-seed1", "reacher-easy-1M-seed1"


@pytest.fixture(autouse=True)
def scripted(training: ScriptedTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_executor(args: argparse.Namespace, stop: StopRequest) -> SerialExecutor:
        return SerialExecutor(stop, train=training, show_progress=False)

    monkeypatch.setattr(commands, "_make_executor", make_executor)
    monkeypatch.setattr(commands, "CLAIM_SECONDS", 0.0)


def planned() -> dict[str, PlannedRun]:
    return {run.name: run for run in plan_runs(load_declaration(Path("scripts/sweeps/pair.yaml")))}


def test_sweep_runs_to_the_end_and_leaves_its_plan_and_declaration(
    declare: Declare, training: ScriptedTraining
) -> None:
    file = declare()
    assert main(["sweep", "run", "pair"]) == 0
    assert training.calls == [BALANCE, REACHER]
    plan = json.loads(Path("results/pair/plan.json").read_text())
    assert plan["name"] == "pair"
    assert plan["runs"] == [
        {
            "name": name,
            "task": name.removesuffix("-1M-seed1"),
            "model_size": 1,
            "seed": 1,
            "agent_steps": 100,
            "env_steps": 200,
            "updates": 100,
            "kind": "online",
            "gpus": 0.0,
            "data": "",
        }
        for name in (BALANCE, REACHER)
    ]
    assert Path("results/pair/sweep.yaml").read_text() == file.read_text()


def test_finished_runs_are_skipped_and_unfinished_ones_resumed(declare: Declare, training: ScriptedTraining) -> None:
    declare()
    runs = planned()
    for run, state in ((runs[BALANCE], "done"), (runs[REACHER], "interrupted")):
        run.folder.claim(run.config)
        run.folder.release()
        write_status(run.folder, run.config, state, 100 if state == "done" else 40)
    assert main(["sweep", "run", "pair"]) == 0
    assert training.calls == [REACHER]
    assert main(["sweep", "run", "pair"]) == 0
    assert training.calls == [REACHER]


def test_failed_run_is_retried_then_listed_while_the_others_go_on(
    declare: Declare, training: ScriptedTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    declare()
    training.script = {BALANCE: ["fail", "fail"]}
    assert main(["sweep", "run", "pair"]) == 1
    assert sorted(training.calls) == [BALANCE, BALANCE, REACHER]
    log = Path("results/pair/runs") / BALANCE / "run.log"
    error = capsys.readouterr().err
    assert f"{BALANCE}: RuntimeError: no luck (log: {log})" in error
    assert "tdmpc2 sweep retry pair" in error
    assert log.read_text().count("RuntimeError: no luck") == 2
    assert "Traceback" in log.read_text()

    assert main(["sweep", "status", "pair"]) == 0
    assert "1 done, 1 failed" in capsys.readouterr().out


def test_failure_that_passes_is_retried_to_success(declare: Declare, training: ScriptedTraining) -> None:
    declare()
    training.script = {BALANCE: ["fail"]}
    assert main(["sweep", "run", "pair"]) == 0
    assert SweepFolder("results", "pair").read_failures() == {}


def test_refusal_is_not_retried(declare: Declare, training: ScriptedTraining) -> None:
    declare()
    training.script = {BALANCE: ["refuse"]}
    assert main(["sweep", "run", "pair", "--retries", "5"]) == 1
    assert sorted(training.calls) == [BALANCE, REACHER]
    assert SweepFolder("results", "pair").read_failures() == {BALANCE: "the disk is full"}


def test_retry_runs_the_failed_ones_alone(declare: Declare, training: ScriptedTraining) -> None:
    declare()
    training.script = {BALANCE: ["fail"], REACHER: ["interrupt"]}
    assert main(["sweep", "run", "pair", "--retries", "0"]) == 130
    training.calls.clear()
    assert main(["sweep", "retry", "pair"]) == 0
    assert training.calls == [BALANCE]


def test_status_finds_a_sweep_by_its_name_or_its_file(declare: Declare, capsys: pytest.CaptureFixture[str]) -> None:
    file = declare(name="pair.v2")
    assert main(["sweep", "run", str(file)]) == 0
    for name in ("pair.v2", str(file)):
        capsys.readouterr()
        assert main(["sweep", "status", name]) == 0
        assert "2 done" in capsys.readouterr().out


def test_retry_without_failures_says_so(declare: Declare, capsys: pytest.CaptureFixture[str]) -> None:
    declare()
    assert main(["sweep", "run", "pair"]) == 0
    assert main(["sweep", "retry", "pair"]) == 0
    assert "no run has failed" in capsys.readouterr().out


def test_interrupted_sweep_starts_no_other_run_and_says_how_to_go_on(
    declare: Declare, training: ScriptedTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    declare()
    training.script = {BALANCE: ["interrupt"]}
    assert main(["sweep", "run", "pair", "--results", "out"]) == 130
    assert training.calls == [BALANCE]
    assert "go on with: tdmpc2 sweep run pair --results out" in capsys.readouterr().out
    assert main(["sweep", "run", "pair", "--results", "out"]) == 0


def test_changed_settings_are_refused_before_anything_starts(
    declare: Declare, training: ScriptedTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    text = declare().read_text()
    assert main(["sweep", "run", "pair"]) == 0
    before = Path("results/pair/plan.json").read_text()
    training.calls.clear()
    declare(text.replace("steps: 100", "steps: 300").replace("seeds: [1]", "seeds: [1, 2]"))
    assert main(["sweep", "run", "pair"]) == 2
    error = capsys.readouterr().err
    assert BALANCE in error
    assert "steps=100 there, steps=300 now" in error
    assert training.calls == []
    assert Path("results/pair/plan.json").read_text() == before


def test_grown_sweep_runs_what_is_new_and_keeps_the_earlier_declaration(
    declare: Declare, training: ScriptedTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    text = declare().read_text()
    assert main(["sweep", "run", "pair"]) == 0
    training.calls.clear()
    declare(text.replace("reacher-easy", "walker-walk"))
    assert main(["sweep", "run", "pair"]) == 0
    assert training.calls == ["walker-walk-1M-seed1"]
    (kept,) = Path("results/pair").glob("sweep.until-*.yaml")
    assert kept.read_text() == text
    capsys.readouterr()
    main(["sweep", "status", "pair"])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(REACHER)]
    assert "done (not in the plan)" in row


def test_tasks_that_cannot_be_run_are_refused_before_anything_starts_or_left_out_on_request(
    declare: Declare,
    training: ScriptedTraining,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(make.BACKENDS, "maniskill", make.Backend("tdmpc2.envs.maniskill", "no_such_simulator"))
    declare("tasks: [reacher-easy, pick-cube]\nsizes: [1]\nseeds: [1]\noverrides: {steps: 100}\n")
    reason = "the Python package no_such_simulator is not installed; `make setup` installs it"

    assert main(["sweep", "plan", "pair"]) == 0
    assert f"not runnable: {reason}" in capsys.readouterr().out
    assert main(["sweep", "run", "pair"]) == 2
    assert f"{reason}: pick-cube" in capsys.readouterr().err
    assert training.calls == []
    assert not Path("results").exists()

    assert main(["sweep", "run", "pair", "--skip-unavailable"]) == 0
    assert f"{reason}: pick-cube" in capsys.readouterr().out
    assert training.calls == [REACHER]
    assert [entry.task for entry in SweepFolder("results", "pair").read_plan()] == ["reacher-easy", "pick-cube"]


def test_plan_totals_runs_and_steps(declare: Declare, capsys: pytest.CaptureFixture[str]) -> None:
    declare("tasks: [cartpole-balance, reacher-easy]\nsizes: [1, 5]\nseeds: [1, 2]\noverrides: {steps: 1_500}\n")
    assert main(["sweep", "plan", "pair"]) == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines()]
    assert ["reacher-easy", "5M", "2", "1,500", "3,000", "2", "waiting"] in rows
    assert "8 runs, 24,000 environment steps, 12,000 updates" in text
    assert "hours of single-task at 1M, 5M unknown until a run of it has been measured" in text


def test_run_that_somebody_else_is_on_is_refused(
    declare: Declare, training: ScriptedTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    declare()
    other = planned()[REACHER]
    other.folder.claim(other.config)
    try:
        assert main(["sweep", "run", "pair"]) == 2
    finally:
        other.folder.release()
    assert f"another process is working on {other.folder.path}" in capsys.readouterr().err
    assert training.calls == []


def test_second_driver_on_a_sweep_is_refused(declare: Declare, capsys: pytest.CaptureFixture[str]) -> None:
    declare()
    with SweepFolder("results", "pair").claim():
        assert main(["sweep", "run", "pair"]) == 2
    assert "is running this sweep" in capsys.readouterr().err
    assert main(["sweep", "run", "pair"]) == 0


def test_sweep_whose_declaration_is_gone_goes_on_from_the_copy(declare: Declare, training: ScriptedTraining) -> None:
    training.script = {BALANCE: ["fail"]}
    file = declare()
    assert main(["sweep", "run", str(file), "--retries", "0"]) == 1
    file.unlink()
    assert main(["sweep", "retry", "pair"]) == 0


def test_damaged_declaration_is_not_passed_over_for_the_copy(
    declare: Declare, capsys: pytest.CaptureFixture[str]
) -> None:
    declare()
    assert main(["sweep", "run", "pair"]) == 0
    declare("tasks: [cartpole-balance]\n")
    assert main(["sweep", "retry", "pair"]) == 2
    assert "scripts/sweeps/pair.yaml: sizes: missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "piar"], "did you mean 'pair'"),
        (["plan", "piar"], "did you mean 'pair'"),
        (["status", "piar"], "unknown sweep 'piar'"),
        (["status", "pair"], "not started"),
        (["run", "pair", "--cpus", "0"], "cpus"),
        (["run", "pair", "--gpus", "1.5"], "gpus"),
        (["run", "pair", "--retries", "-1"], "--retries"),
        (["run", "pair", "--executor", "serial", "--address", "head:6379"], "--address"),
        (["run", "pair", "--results", "scripts/sweeps/pair.yaml"], "cannot be made"),
    ],
)
def test_bad_command_line_ends_with_one_message_and_exit_code_2(
    declare: Declare, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    declare()
    assert main(["sweep", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_resources_on_the_command_line_replace_the_declared_ones(declare: Declare, training: ScriptedTraining) -> None:
    declare()
    assert main(["sweep", "run", "pair", "--cpus", "2"]) == 0
    assert planned()[BALANCE].folder.read_config().threads == 2


def test_list_shows_how_far_each_sweep_has_come_and_what_is_wrong(
    declare: Declare, capsys: pytest.CaptureFixture[str]
) -> None:
    declare()
    declare("tasks: 3\n", name="broken")
    assert main(["sweep", "run", "pair"]) == 0
    capsys.readouterr()
    assert main(["sweep", "list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "2 done" in rows["pair"]
    assert "cannot be used" in rows["broken"]
