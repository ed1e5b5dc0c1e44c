"""What is tried again and what is given up, with an executor that plays a script, and what is shown meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console
from scripted_training import write_status

from tdmpc2.errors import UserError
from tdmpc2.sweeps.declaration import load_declaration
from tdmpc2.sweeps.execution import MAX_KILLS, SweepExecution
from tdmpc2.sweeps.executors import Outcome
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.planning import PlannedRun, plan_runs
from tdmpc2.sweeps.progress import RunView
from tdmpc2.sweeps.ray_executor import check_fit
from tdmpc2.sweeps.tables import SweepDisplay
from tdmpc2.training.runtime import StopRequest

Declare = Callable[..., Path]
BALANCE, REACHER = "cartpole-balance-1M-seed1", "reacher-easy-1M-seed1"


class ScriptedExecutor:
    """Ends every attempt at a run as the script says; `done` where it says nothing."""

    def __init__(self, script: dict[str, list[Outcome]]) -> None:
        self.script, self.submitted, self.stops = script, [], 0
        self._open: list[str] = []

    submitted: list[str]

    def check(self, runs: Sequence[PlannedRun]) -> list[str]:
        return []

    def submit(self, run: PlannedRun) -> None:
        self.submitted.append(run.name)
        self._open.append(run.name)

    def wait(self, timeout: float) -> list[Outcome]:
        name = self._open.pop(0)
        return [self.script[name].pop(0) if self.script.get(name) else Outcome(name, "done")]

    def stop(self) -> None:
        self.stops += 1

    def close(self) -> None:
        pass


def make_execution(
    script: dict[str, list[Outcome]], retries: int = 1, stop: StopRequest | None = None
) -> tuple[SweepExecution, ScriptedExecutor]:
    runs = plan_runs(load_declaration(Path("scripts/sweeps/pair.yaml")))
    executor = ScriptedExecutor(script)
    return SweepExecution(SweepFolder("results", "pair"), runs, executor, stop or StopRequest(), retries), executor


def test_killed_run_is_resumed_until_it_has_been_killed_too_often(declare: Declare) -> None:
    declare()
    killed = Outcome(BALANCE, "killed", "its process was killed")
    execution, executor = make_execution({BALANCE: [killed] * 10}, retries=0)
    outcomes = execution.execute(lambda: None)
    assert executor.submitted.count(BALANCE) == 1 + MAX_KILLS
    assert outcomes[REACHER].end == "done"
    assert outcomes[BALANCE].end == "killed"
    assert f"{1 + MAX_KILLS} times" in outcomes[BALANCE].message
    assert BALANCE in execution.folder.read_failures()


def test_kills_and_failures_are_counted_apart(declare: Declare) -> None:
    declare()
    ends = [
        Outcome(BALANCE, "killed", "killed"),
        Outcome(BALANCE, "failed", "bad"),
        Outcome(BALANCE, "killed", "killed"),
    ]
    execution, executor = make_execution({BALANCE: ends}, retries=1)
    assert execution.execute(lambda: None)[BALANCE].end == "done"
    assert executor.submitted.count(BALANCE) == 4


def test_run_stopped_by_somebody_else_goes_on(declare: Declare) -> None:
    declare()
    execution, executor = make_execution({BALANCE: [Outcome(BALANCE, "stopped", "stopped on request")]})
    assert execution.execute(lambda: None)[BALANCE].end == "done"
    assert executor.submitted.count(BALANCE) == 2


def test_nothing_is_tried_again_once_the_sweep_is_to_stop(declare: Declare) -> None:
    declare()
    stop = StopRequest()
    ends = {BALANCE: [Outcome(BALANCE, "failed", "bad")], REACHER: [Outcome(REACHER, "killed", "killed")]}
    execution, executor = make_execution(ends, stop=stop)

    def request_stop() -> None:
        stop.requested = True

    outcomes = execution.execute(request_stop)
    assert executor.stops == 1
    assert len(executor.submitted) == 2
    assert outcomes[BALANCE].end == "failed"
    assert outcomes[REACHER].end == "stopped"


def test_record_of_an_earlier_failure_goes_when_the_run_starts_anew(declare: Declare) -> None:
    declare()
    execution, _ = make_execution({})
    execution.folder.write_failures({BALANCE: "old", "another-run": "old"})
    execution.execute(lambda: None)
    assert execution.folder.read_failures() == {"another-run": "old"}


def test_status_that_an_earlier_attempt_left_is_no_sign_of_life(declare: Declare) -> None:
    declare()
    execution, _ = make_execution({})
    run = next(run for run in execution.runs if run.name == BALANCE)
    write_status(run.folder, run.config, "running", 40, pid=1)
    seen: list[RunView] = []

    def watch() -> None:
        if not seen:
            seen.append(execution.view(BALANCE))
            write_status(run.folder, run.config, "running", 41, pid=2)
            seen.append(execution.view(BALANCE))

    execution.execute(watch)
    assert [view.state for view in seen] == ["waiting", "running"]


def test_without_a_terminal_each_change_is_a_line(declare: Declare) -> None:
    declare()
    execution, _ = make_execution({BALANCE: [Outcome(BALANCE, "failed", "RuntimeError: [bad] luck")] * 2})
    console = Console(width=160, markup=False, force_terminal=False)
    with console.capture() as capture, SweepDisplay(console, live=False) as display:
        execution.execute(lambda: display.show([execution.view(run.name) for run in execution.runs], now=0.0))
    lines = capture.get().splitlines()
    assert lines[0] == "2 waiting"
    assert f"{BALANCE}: waiting (RuntimeError: [bad] luck; tried again)" in lines
    assert f"{BALANCE}: failed (RuntimeError: [bad] luck)" in lines


def test_on_a_terminal_a_table_is_drawn(declare: Declare) -> None:
    declare()
    execution, _ = make_execution({})
    console = Console(width=120, markup=False, force_terminal=True)
    with console.capture() as capture, SweepDisplay(console, live=True) as display:
        execution.execute(lambda: display.show([execution.view(run.name) for run in execution.runs], now=0.0))
    assert BALANCE in capture.get()
    assert "time left" in capture.get()


NODES = [
    {"CPU": 2.0, "memory": 8.0 * 2**30},
    {"CPU": 4.0, "memory": 2.0 * 2**30},
]


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ("{cpus: 5}", ["5 CPU cores", "largest machine has 4 CPU cores"]),
        ("{memory_gb: 9}", ["9.0 GiB", "8.0 GiB"]),
        ("{cpus: 3, memory_gb: 4}", ["3 CPU cores", "4.0 GiB", "not together"]),
    ],
)
def test_run_that_fits_on_no_machine_is_refused(declare: Declare, resources: str, words: list[str]) -> None:
    file = declare(f"tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\nresources: {resources}\n")
    with pytest.raises(UserError) as caught:
        check_fit(plan_runs(load_declaration(file)), NODES)
    for word in ["walker-walk-1M-seed1", *words]:
        assert word in str(caught.value)


def test_missing_gpu_is_refused_only_where_the_device_is_demanded(declare: Declare) -> None:
    text = "tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\nresources: {gpus: 0.5}\n"
    (notice,) = check_fit(plan_runs(load_declaration(declare(text))), NODES)
    assert "no GPU found" in notice
    demanding = plan_runs(load_declaration(declare(text + "overrides: {device: cuda}\n")))
    with pytest.raises(UserError, match=r"asks for 0\.5 GPUs; the largest machine has 0 GPUs"):
        check_fit(demanding, NODES)
    assert check_fit(demanding, [*NODES, {"CPU": 1.0, "GPU": 1.0, "memory": 2.0**30}]) == []
