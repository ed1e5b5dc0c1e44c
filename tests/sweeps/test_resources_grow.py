"""A run that outgrows its memory asks for more; losses are blamed on a run only where it makes no progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted_training import write_status

from tdmpc2.errors import RunBusyError
from tdmpc2.sweeps import executors
from tdmpc2.sweeps.declaration import load_declaration
from tdmpc2.sweeps.execution import MAX_DEFERRALS, MAX_KILLS, SweepExecution
from tdmpc2.sweeps.executors import Backlog, End, Outcome, SerialExecutor
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.planning import PlannedRun, plan_runs
from tdmpc2.sweeps.ray_executor import RayExecutor, grown_memory, memory_reached
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.runtime import StopRequest

Declare = Callable[..., Path]
ONE_RUN = "tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\noverrides: {steps: 100}\nresources: {memory_gb: 3}\n"
OUT_OF_MEMORY = "(Worker's Lease ID: 01 | Granted time: 12:00 | Retriable: false | Memory used: {} GiB)"


@pytest.mark.parametrize(
    ("asked", "reached", "largest", "grown"),
    [
        (4.0, None, 64.0, 8.0),
        (4.0, 10.0, 64.0, 20.0),  # it had come to use more than was set aside for it
        (40.0, None, 64.0, 64.0),
        (64.0, None, 64.0, None),
        (None, 6.0, 64.0, 12.0),
        (None, None, 64.0, 32.0),
    ],
)
def test_memory_is_doubled_up_to_the_largest_node(
    asked: float | None, reached: float | None, largest: float, grown: float | None
) -> None:
    assert grown_memory(asked, reached, largest) == grown


class FakeRay:
    """Stands in for Ray where only the memory of its nodes is asked for."""

    def __init__(self, *gibibytes: float) -> None:
        self._nodes = [
            {"Alive": True, "NodeID": str(index), "Resources": {"CPU": 4.0, "memory": size * 2**30}}
            for index, size in enumerate(gibibytes)
        ]

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes


def executor_on(*gibibytes: float) -> RayExecutor:
    executor = RayExecutor()
    executor._ray = FakeRay(*gibibytes)
    return executor


def one_run(declare: Declare) -> PlannedRun:
    (run,) = plan_runs(load_declaration(declare(ONE_RUN)))
    return run


def test_run_that_outgrew_its_memory_asks_for_more_until_no_node_has_it(declare: Declare) -> None:
    run, executor = one_run(declare), executor_on(8.0, 10.0)
    account = OUT_OF_MEMORY.format("3.50")
    outcomes = [executor._out_of_memory(run, account)]
    assert outcomes[-1].end == "outgrown"
    assert "3.0 GiB set aside for it, using 3.5 GiB; asks for 7.0 GiB" in outcomes[-1].message
    assert executor._memory_of(run) == 7.0
    executor._out_of_memory(run, OUT_OF_MEMORY.format("7.25"))
    assert executor._memory_of(run) == 10.0
    last = executor._out_of_memory(run, OUT_OF_MEMORY.format("10.10"))
    assert last.end == "refused"
    assert "no machine has more (10.0 GiB)" in last.message
    assert run.resources.memory_gb == 3, "the plan keeps what was declared"


def test_run_that_kept_to_its_memory_is_not_given_more_for_what_others_took(declare: Declare) -> None:
    run, executor = one_run(declare), executor_on(8.0)
    assert executor._out_of_memory(run, OUT_OF_MEMORY.format("2.00")).end == "killed"
    assert executor._memory_of(run) == 3


@pytest.mark.parametrize(
    ("account", "reached"),
    [(OUT_OF_MEMORY.format("2.75"), 2.75), ("pid=12, actual memory used=0.50GB, worker ID=ab)", 0.5), ("killed", None)],
)
def test_memory_in_use_is_read_from_rays_account(account: str, reached: float | None) -> None:
    assert memory_reached(account) == reached


class LosingExecutor:
    """Ends each attempt as told, after the run has come as far as told (None: no further)."""

    def __init__(self, script: Sequence[tuple[End, int | None]]) -> None:
        self.script, self.submitted = list(script), 0
        self._run: PlannedRun

    def check(self, runs: Sequence[PlannedRun]) -> list[str]:
        return []

    def submit(self, run: PlannedRun) -> None:
        self._run, self.submitted = run, self.submitted + 1

    def wait(self, timeout: float) -> list[Outcome]:
        end, steps = self.script.pop(0)
        if steps is not None:
            write_status(self._run.folder, self._run.config, "running", steps)
        return [Outcome(self._run.name, end, "lost")]

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def outcome_of(declare: Declare, script: Sequence[tuple[End, int | None]]) -> tuple[Outcome, LosingExecutor]:
    run, executor = one_run(declare), LosingExecutor(script)
    execution = SweepExecution(SweepFolder("results", "pair"), [run], executor, StopRequest(), retries=0)
    return execution.execute(lambda: None)[run.name], executor


def test_run_preempted_twenty_times_while_it_gets_on_ends(declare: Declare) -> None:
    losses: list[tuple[End, int | None]] = [("stopped" if n % 2 else "killed", n + 1) for n in range(20)]
    outcome, executor = outcome_of(declare, [*losses, ("done", None)])
    assert outcome.end == "done"
    assert executor.submitted == 21


def test_losses_are_counted_anew_after_progress(declare: Declare) -> None:
    stuck: list[tuple[End, int | None]] = [("killed", None)] * MAX_KILLS
    outcome, _ = outcome_of(declare, [*stuck, ("killed", 10), *stuck, ("done", None)])
    assert outcome.end == "done"
    outcome, executor = outcome_of(declare, [*stuck, ("killed", 20), *stuck, ("killed", 20), ("done", None)])
    assert outcome.end == "killed"
    assert executor.submitted == 2 * MAX_KILLS + 2
    assert f"{MAX_KILLS + 1} times without getting further" in outcome.message


def test_growing_is_not_counted_as_loss(declare: Declare) -> None:
    grown: list[tuple[End, int | None]] = [("outgrown", None)] * (MAX_KILLS + 2)
    assert outcome_of(declare, [*grown, ("done", None)])[0].end == "done"


def test_attempt_that_cannot_begin_is_put_off_and_at_last_refused(declare: Declare) -> None:
    deferred: list[tuple[End, int | None]] = [("deferred", None)] * MAX_DEFERRALS
    assert outcome_of(declare, [*deferred, ("done", None)])[0].end == "done"
    assert outcome_of(declare, [*deferred, ("deferred", None)])[0].end == "refused"


def test_folder_that_another_process_leaves_in_time_is_waited_for(declare: Declare) -> None:
    run = one_run(declare)
    other = RunFolder(run.folder.path)
    other.claim(run.config)
    tries: list[str] = []

    def train(config: Any, show_progress: bool, stop: StopRequest) -> None:
        tries.append("try")
        own = RunFolder.of(config)
        try:
            own.claim(config)
        except RunBusyError:
            other.release()
            raise
        own.release()

    executor = SerialExecutor(StopRequest(), train, show_progress=False)
    executor.submit(run)
    assert executor.wait(0.0) == [Outcome(run.name, "done")]
    assert len(tries) == 2


def test_attempt_at_a_folder_that_stays_taken_is_put_off(declare: Declare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "BUSY_SECONDS", 0.0)
    run = one_run(declare)
    other = RunFolder(run.folder.path)
    other.claim(run.config)

    def train(config: Any, show_progress: bool, stop: StopRequest) -> None:
        RunFolder.of(config).claim(config)

    executor = SerialExecutor(StopRequest(), train, show_progress=False)
    executor.submit(run)
    (outcome,) = executor.wait(0.0)
    other.release()
    assert outcome.end == "deferred"
    assert "is working on this run" in outcome.message


def test_runs_that_others_were_needed_for_go_first_and_each_kind_in_order(declare: Declare) -> None:
    stages = "datasets: {walks: {}}\nmultitask: [{data: walks, overrides: {label: multi, steps: 10}}]\n"
    first, chained = plan_runs(load_declaration(declare(ONE_RUN + stages)))
    backlog = Backlog()
    for run in (first, first, chained):
        backlog.append(run)
    assert len(backlog) == 3
    assert [backlog.take().name for _ in range(2)] == [chained.name, first.name]
    assert backlog.clear() == [first]
    assert len(backlog) == 0
