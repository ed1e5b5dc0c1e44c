"""Runs that wait for others: when they begin, what is built for them, and what becomes of them when others fail."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_training import ScriptedTraining, write_replay, write_status

from tdmpc2.cli import main
from tdmpc2.config import Config
from tdmpc2.data.dataset import Dataset
from tdmpc2.envs import make
from tdmpc2.sweeps import commands
from tdmpc2.sweeps.declaration import load_declaration
from tdmpc2.sweeps.execution import SweepExecution
from tdmpc2.sweeps.executors import Outcome, SerialExecutor
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.planning import PlannedRun, plan_runs
from tdmpc2.training.runtime import StopRequest

Declare = Callable[..., Path]

STAGES = """
tasks: [cup-catch, reacher-easy, walker-walk]
sizes: [1]
seeds: [1]
overrides: {steps: 100}
datasets:
  pair: {tasks: [cup-catch, reacher-easy]}
  all: {}
multitask:
  - {data: pair, overrides: {steps: 30}}
  - {data: all, overrides: {steps: 30}}
finetune:
  - {from: pair, tasks: [walker-run]}
"""
CUP, REACHER, WALKER = "cup-catch-1M-seed1", "reacher-easy-1M-seed1", "walker-walk-1M-seed1"
PAIR, ALL = "cup-catch+reacher-easy-1M-seed1", "cup-catch+reacher-easy+walker-walk-1M-seed1"
TUNED = "walker-run-1M-finetuned-seed1"


@pytest.fixture(autouse=True)
def scripted(training: ScriptedTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    training.writes_replay = True

    def make_executor(args: argparse.Namespace, stop: StopRequest) -> SerialExecutor:
        return SerialExecutor(stop, train=training, show_progress=False)

    monkeypatch.setattr(commands, "_make_executor", make_executor)
    monkeypatch.setattr(commands, "CLAIM_SECONDS", 0.0)


def planned() -> dict[str, PlannedRun]:
    return {run.name: run for run in plan_runs(load_declaration(Path("scripts/sweeps/pair.yaml")))}


def manifest(name: str) -> Path:
    return Path("results/pair/datasets") / name / "dataset.json"


def finish(run: PlannedRun) -> None:
    run.folder.claim(run.config)
    run.folder.release()
    write_replay(run.folder.replay, run.config.task)
    write_status(run.folder, run.config, "done", run.config.total_updates)


def test_each_run_begins_as_soon_as_those_that_it_needs_are_done(declare: Declare, training: ScriptedTraining) -> None:
    declare(STAGES)
    assert main(["sweep", "run", "pair"]) == 0
    # Not the walker, which is in the queue since the start: what waits for nobody comes last.
    assert training.calls == [CUP, REACHER, PAIR, TUNED, WALKER, ALL]


def test_data_set_is_there_when_the_run_on_it_begins(declare: Declare, training: ScriptedTraining) -> None:
    declare(STAGES)
    seen: dict[str, list[bool]] = {}

    def watch_data(config: Config, show_progress: bool, stop: StopRequest) -> None:
        seen[config.run_name] = [manifest("pair").exists(), manifest("all").exists()]
        training(config, show_progress, stop)

    execution = SweepExecution(
        SweepFolder("results", "pair"),
        list(planned().values()),
        SerialExecutor(StopRequest(), watch_data),
        StopRequest(),
    )
    execution.execute(lambda: None)
    assert seen[CUP] == seen[REACHER] == [False, False]
    assert seen[PAIR] == seen[WALKER] == [True, False]
    assert seen[ALL] == [True, True]
    dataset = Dataset.read(manifest("all").parent)
    assert [task.name for task in dataset.tasks] == ["cup-catch", "reacher-easy", "walker-walk"]
    assert [record.seed for record in dataset.stores] == [1, 1, 1]


class EndsInOrder:
    """Begins everything at once, and ends it in an order of its own."""

    def __init__(self, order: list[str], ends: dict[str, str]) -> None:
        self.order, self.ends = order, ends
        self.begun: list[str] = []

    def submit(self, run: PlannedRun) -> None:
        self.begun.append(run.name)

    def wait(self, timeout: float) -> list[Outcome]:
        name = next(name for name in self.order if name in self.begun)
        self.order.remove(name)
        self.begun.append(f"({name})")
        return [Outcome(name, self.ends.get(name, "done"), "why")]  # type: ignore[arg-type]

    def check(self, runs: object) -> list[str]:
        return []

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_run_does_not_wait_for_what_it_does_not_need(declare: Declare) -> None:
    declare(STAGES)
    runs = planned()
    for name in (CUP, REACHER, WALKER):
        write_replay(runs[name].folder.replay, runs[name].config.task)
    executor = EndsInOrder([REACHER, CUP, PAIR, TUNED, WALKER, ALL], {})
    SweepExecution(SweepFolder("results", "pair"), list(runs.values()), executor, StopRequest()).execute(lambda: None)
    assert executor.begun == [
        CUP, REACHER, WALKER, f"({REACHER})", f"({CUP})", PAIR, f"({PAIR})", TUNED,
        f"({TUNED})", f"({WALKER})", ALL, f"({ALL})",
    ]  # fmt: skip


def test_runs_that_need_a_failed_one_are_not_begun_and_say_so(
    declare: Declare, training: ScriptedTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(STAGES)
    training.script = {REACHER: ["fail", "fail"]}
    assert main(["sweep", "run", "pair"]) == 1
    assert training.calls == [CUP, REACHER, WALKER, REACHER]
    reasons = SweepFolder("results", "pair").read_failures()
    assert reasons == {
        REACHER: "RuntimeError: no luck",
        PAIR: f"waits for {REACHER}, which failed",
        ALL: f"waits for {REACHER}, which failed",
        TUNED: f"waits for {PAIR}, which was not begun",
    }
    error = capsys.readouterr().err
    assert "1 run(s) failed:" in error
    assert f"3 run(s) not begun:\n  {PAIR}: waits for {REACHER}, which failed\n" in error
    assert "tdmpc2 sweep retry pair" in error
    main(["sweep", "status", "pair"])
    text = capsys.readouterr().out
    assert "2 done, 4 failed" in text
    assert f"waits for {REACHER}, which failed" in text


def test_retry_goes_on_with_the_runs_that_waited(declare: Declare, training: ScriptedTraining) -> None:
    declare(STAGES)
    training.script = {REACHER: ["fail"]}
    assert main(["sweep", "run", "pair", "--retries", "0"]) == 1
    training.calls.clear()
    assert main(["sweep", "retry", "pair"]) == 0
    assert training.calls == [REACHER, PAIR, ALL, TUNED]
    assert SweepFolder("results", "pair").read_failures() == {}


def test_run_whose_need_is_not_part_of_the_retry_is_not_begun(declare: Declare, training: ScriptedTraining) -> None:
    declare(STAGES)
    runs = planned()
    finish(runs[CUP])
    finish(runs[WALKER])
    folder = SweepFolder("results", "pair")
    folder.write_failures({PAIR: "killed 4 times"})
    assert main(["sweep", "retry", "pair"]) == 1
    assert training.calls == []
    assert folder.read_failures() == {PAIR: f"waits for {REACHER}, which is not done"}


def test_sweep_resumed_in_the_middle_takes_the_data_set_that_is_there(
    declare: Declare, training: ScriptedTraining
) -> None:
    declare(STAGES)
    training.script = {PAIR: ["interrupt"]}
    assert main(["sweep", "run", "pair"]) == 130
    assert training.calls == [CUP, REACHER, PAIR]
    built = os.stat(manifest("pair")).st_mtime_ns
    training.calls.clear()
    assert main(["sweep", "run", "pair"]) == 0
    assert training.calls == [PAIR, TUNED, WALKER, ALL]
    assert os.stat(manifest("pair")).st_mtime_ns == built


def test_data_set_that_grew_in_the_declaration_is_refused_before_anything_starts(
    declare: Declare, training: ScriptedTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(STAGES)
    assert main(["sweep", "run", "pair"]) == 0
    training.calls.clear()
    declare(STAGES.replace("seeds: [1]", "seeds: [1, 2]"))
    assert main(["sweep", "run", "pair"]) == 2
    error = capsys.readouterr().err
    assert "datasets/pair: this data set was built from other runs" in error
    assert "lacks cup-catch-1M-seed2; lacks reacher-easy-1M-seed2" in error
    assert training.calls == []
    declare(
        STAGES.replace("seeds: [1]", "seeds: [1, 2]", 1)
        .replace("{tasks: [", "{seeds: [1], tasks: [")
        .replace("all: {}", "all: {seeds: [1]}")
    )
    assert main(["sweep", "run", "pair"]) == 0
    assert [name for name in training.calls if name.startswith("cup-catch-1M")] == ["cup-catch-1M-seed2"]


def test_data_set_of_other_order_of_tasks_is_refused(
    declare: Declare, training: ScriptedTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    text = STAGES.split("finetune:")[0]
    declare(text)
    assert main(["sweep", "run", "pair"]) == 0
    declare(text.replace("[cup-catch, reacher-easy]", "[reacher-easy, cup-catch]"))
    assert main(["sweep", "run", "pair"]) == 2
    assert "its tasks are cup-catch, reacher-easy, the declared ones reacher-easy, cup-catch" in capsys.readouterr().err


def test_buffer_that_no_data_set_can_be_made_of_is_told_for_each_run_on_it(
    declare: Declare, training: ScriptedTraining
) -> None:
    declare(STAGES)
    training.writes_replay = False
    assert main(["sweep", "run", "pair"]) == 1
    assert sorted(training.calls) == [CUP, REACHER, WALKER]
    failures = SweepFolder("results", "pair").read_failures()
    assert failures[PAIR].startswith("data set pair: ")
    assert failures[ALL].startswith("data set all: ")
    assert failures[TUNED] == f"waits for {PAIR}, which was refused"


def test_stop_leaves_what_waits_unbegun_and_unfailed(declare: Declare, training: ScriptedTraining) -> None:
    declare(STAGES)
    training.script = {CUP: ["interrupt"]}
    assert main(["sweep", "run", "pair"]) == 130
    assert training.calls == [CUP]
    assert SweepFolder("results", "pair").read_failures() == {}


def test_run_that_waits_is_shown_waiting_whatever_an_earlier_process_left(declare: Declare) -> None:
    declare(STAGES)
    runs = planned()
    write_status(runs[PAIR].folder, runs[PAIR].config, "running", 5, pid=1)
    execution = SweepExecution(
        SweepFolder("results", "pair"), list(runs.values()), EndsInOrder([CUP], {}), StopRequest(), retries=0
    )
    seen = []

    def stop_at_once() -> None:
        seen.append(execution.view(PAIR))
        execution.stop.requested = True
        execution.executor.order += [REACHER, WALKER]  # type: ignore[attr-defined]

    execution.execute(stop_at_once)
    assert (seen[0].state, seen[0].message) == ("waiting", f"waits for {CUP} and 1 more")


def test_runs_on_data_that_cannot_be_made_here_are_left_out_by_name(
    declare: Declare, training: ScriptedTraining, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(make.BACKENDS, "maniskill", make.Backend("tdmpc2.envs.maniskill", "no_such_simulator"))
    declare(STAGES.replace("reacher-easy, walker-walk]", "reacher-easy, pick-cube]"))
    assert main(["sweep", "plan", "pair"]) == 0
    text = capsys.readouterr().out
    assert "multi-task: 1 run, 30 updates" in text  # the cost is that of what can be run
    assert main(["sweep", "run", "pair"]) == 2
    assert main(["sweep", "run", "pair", "--skip-unavailable"]) == 0
    assert training.calls == [CUP, REACHER, PAIR, TUNED]
    left_out = "cup-catch+reacher-easy+pick-cube-1M-seed1: needs pick-cube-1M-seed1, which cannot be run"
    assert left_out in capsys.readouterr().out


def test_cost_is_printed_before_anything_starts(
    declare: Declare, training: ScriptedTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(STAGES)
    training.script = {CUP: ["interrupt"]}
    main(["sweep", "run", "pair"])
    lines = capsys.readouterr().out.splitlines()
    # Action repeat is 2: 3 and 1 runs of 100 agent steps; a multi-task run makes no environment steps.
    assert lines[1].startswith("single-task: 3 runs, 600 environment steps, 300 updates; to go: hours of")
    assert lines[2].startswith("multi-task: 2 runs, 60 updates; to go: hours of")
    assert lines[3].startswith("finetuning: 1 run, 200 environment steps, 100 updates; to go: hours of")
    assert lines[4].startswith("in all: 6 runs, 800 environment steps, 460 updates; to go: hours of")
