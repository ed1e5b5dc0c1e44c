"""Sweeps of thousands of runs: what a tick touches, what is told on one screen, and how often it is drawn."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live
from scripted_training import write_status

from tdmpc2.sweeps import cost
from tdmpc2.sweeps.cost import speed_elsewhere
from tdmpc2.sweeps.declaration import load_declaration
from tdmpc2.sweeps.execution import SweepExecution
from tdmpc2.sweeps.executors import Outcome
from tdmpc2.sweeps.folder import PlanEntry, SweepFolder
from tdmpc2.sweeps.overview import Overview
from tdmpc2.sweeps.planning import PlannedRun, plan_runs
from tdmpc2.sweeps.progress import RunView
from tdmpc2.sweeps.tables import SweepDisplay, status_table, summary_line
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.runtime import StopRequest

Declare = Callable[..., Path]
TWENTY = f"tasks: [walker-walk]\nsizes: [1]\nseeds: {list(range(20))}\noverrides: {{steps: 100}}\n"
CHAIN = """
tasks: [cup-catch]
sizes: [1]
seeds: [1]
overrides: {steps: 100}
datasets: {cup: {}}
multitask: [{data: cup, overrides: {label: multi, steps: 30}}]
finetune: [{from: cup, tasks: [dmcontrol]}]
"""


class SilentTwoAtATime:
    """Has two runs under way and ends the elder whenever it is asked, failing those that it is told to."""

    def __init__(self, failing: Collection[str] = ()) -> None:
        self.waiting: list[str] = []
        self.begun: list[str] = []
        self.failing = failing

    def check(self, runs: Sequence[PlannedRun]) -> list[str]:
        return []

    def submit(self, run: PlannedRun) -> None:
        self.waiting.append(run.name)

    def wait(self, timeout: float) -> list[Outcome]:
        outcomes = [Outcome(name, "refused" if name in self.failing else "done", "why") for name in self.begun[:1]]
        del self.begun[:1]
        while self.waiting and len(self.begun) < 2:
            self.begun.append(self.waiting.pop(0))
        return outcomes

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


class TwoAtATime(SilentTwoAtATime):
    """Tells which they are."""

    def under_way(self) -> list[str]:
        return self.begun


def make_execution(file: Path, executor: SilentTwoAtATime) -> SweepExecution:
    runs = plan_runs(load_declaration(file))
    return SweepExecution(SweepFolder("results", "pair"), runs, executor, StopRequest(), retries=0)


def test_a_look_at_the_sweep_reads_only_the_runs_that_are_under_way_or_ended(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = make_execution(declare(TWENTY), TwoAtATime())
    looks: list[list[str]] = []
    read: list[str] = []
    read_status = RunFolder.read_status

    def note_and_read(folder: RunFolder) -> object:
        read.append(folder.path.name)
        return read_status(folder)

    monkeypatch.setattr(RunFolder, "read_status", note_and_read)

    def watch() -> None:
        read.clear()
        for name in execution.news():
            execution.view(name)
        looks.append(list(read))
        read.clear()

    execution.execute(watch)
    names = [run.name for run in execution.runs]
    assert looks[0] == names  # all of them were submitted
    assert looks[1] == names[:2]  # two have begun
    assert looks[2] == names[:3]  # the first has ended, and the third begun
    assert looks[3] == names[1:4]
    assert max(map(len, looks[1:])) == 3


def test_of_an_executor_that_cannot_tell_what_runs_every_submitted_run_is_looked_at(
    declare: Declare,
) -> None:
    execution = make_execution(declare(TWENTY), SilentTwoAtATime())
    looks: list[int] = []
    execution.execute(lambda: looks.append(len(execution.news())))
    assert looks[:4] == [20, 20, 20, 19]  # nothing has ended until the second call of `wait`


def test_runs_that_wait_for_one_that_failed_are_given_up_at_once_and_recorded_in_one_go(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = declare(CHAIN)
    execution = make_execution(file, TwoAtATime(failing=["cup-catch-1M-seed1"]))
    written: list[int] = []
    write = SweepFolder.write_failures

    def note_and_write(folder: SweepFolder, failures: dict[str, str]) -> None:
        written.append(len(failures))
        write(folder, failures)

    monkeypatch.setattr(SweepFolder, "write_failures", note_and_write)
    outcomes = execution.execute(lambda: None)
    ends = [outcome.end for outcome in outcomes.values()]
    assert ends == ["refused"] + ["unmet"] * 40  # the multi-task run, and one on each of the 39 tasks of DMControl
    assert written == [0, 1, 41]
    reasons = execution.folder.read_failures()
    assert reasons["cup-catch-1M-multi-seed1"] == "waits for cup-catch-1M-seed1, which was refused"
    assert reasons["walker-run-1M-finetuned-seed1"] == "waits for cup-catch-1M-multi-seed1, which was not begun"


def test_runs_on_data_that_were_made_before_are_asked_for_once(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TWENTY + "datasets: {all: {}}\nmultitask: [{data: all, seeds: [1, 2, 3], overrides: {label: multi}}]\n"
    runs = plan_runs(load_declaration(declare(text)))
    online, multi = runs[:20], runs[20:]
    for run in online[1:]:
        write_status(run.folder, run.config, "done", 100)
    read: list[str] = []
    read_status = RunFolder.read_status

    def note_and_read(folder: RunFolder) -> object:
        read.append(folder.path.name)
        return read_status(folder)

    monkeypatch.setattr(RunFolder, "read_status", note_and_read)
    execution = SweepExecution(SweepFolder("results", "pair"), multi, TwoAtATime(), StopRequest())
    outcomes = execution.execute(lambda: None)
    assert sorted(read) == sorted(run.name for run in online)
    assert {outcome.message for outcome in outcomes.values()} == {f"waits for {online[0].name}, which is not done"}


def view(
    index: int, state: str, message: str = "", size: int = 1, task: str = "walker-walk", **rest: object
) -> RunView:
    entry = PlanEntry(f"run-{index}", task, size, 1, 1000, 2000)
    return RunView(entry, state, message=message, **rest)  # type: ignore[arg-type]


def test_overview_follows_a_run_from_state_to_state() -> None:
    overview = Overview([view(1, "waiting"), view(2, "waiting", size=5), view(3, "waiting")])
    assert overview.time_left() is None
    overview.put(view(1, "running", updates=100, seconds=20.0, seconds_left=90.0))
    # 900 updates in 90 s: 0.1 s each. Run 3 takes 100 s more; size 5 nobody has measured.
    assert overview.speed() == pytest.approx({(1, "online"): 0.1})
    left = overview.time_left()
    assert left is not None
    assert (left.seconds, left.unknown) == (pytest.approx(190), ((5, "online"),))
    overview.put(view(1, "failed", "no luck", updates=100, seconds=20.0))
    overview.put(view(2, "running", updates=500, seconds=600.0, size=5))
    assert overview.failures == {"no luck": {"run-1": None}}
    # 0.2 and 1.2 s an update, over all their time; 500 updates of size 5 and 1,000 of size 1 are to come.
    assert overview.speed() == pytest.approx({(1, "online"): 0.2, (5, "online"): 1.2})
    left = overview.time_left()
    assert left is not None
    assert (left.seconds, left.unknown) == (pytest.approx(500 * 1.2 + 1000 * 0.2), ())
    overview.put(view(1, "running"))
    assert overview.failures == {"no luck": {}}
    assert +overview.counts == {"running": 2, "waiting": 1}
    assert list(overview.running) == ["run-2", "run-1"]
    for index, size in ((1, 1), (2, 5), (3, 1)):
        overview.put(view(index, "done", updates=1000, seconds=100.0, size=size))
    assert +overview.counts == {"done": 3}
    assert overview.speed() == pytest.approx({(1, "online"): 0.1, (5, "online"): 0.1})


def large_sweep() -> list[RunView]:
    """10,000 runs: 64 under way, 50 failed for two reasons, 7,000 done, the rest waiting; half of them of size 5."""
    states = ["running"] * 64 + ["failed"] * 50 + ["done"] * 7_000 + ["waiting"] * 2_886
    tasks = itertools.cycle(["walker-walk", "mw-reach"])
    return [
        view(
            index,
            state,
            message=("no memory" if index < 70 else "no simulator") if state == "failed" else "",
            size=1 if index < 5_000 else 5,
            task=next(tasks),
            updates=0 if state == "waiting" else 1000 if state == "done" else 500,
            seconds=0.0 if state == "waiting" else 100.0 if state == "done" else 50.0,
            seconds_left=50.0 if state == "running" else None,
        )
        for index, state in enumerate(states)
    ]


@pytest.mark.parametrize("height", [24, 50])
def test_large_sweep_is_told_on_one_screen(height: int) -> None:
    console = Console(width=120, markup=False, color_system=None)
    with console.capture() as capture:
        console.print(status_table(large_sweep(), lines=height))
    lines = capture.get().splitlines()
    assert len(lines) < height
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["runs"] == ["runs", "done", "running", "failed", "waiting"]
    assert rows["dmcontrol"] == ["dmcontrol", "5,000", "3,500", "32", "25", "1,443"]
    assert rows["metaworld"] == ["metaworld", "5,000", "3,500", "32", "25", "1,443"]
    assert rows["all"] == ["all", "10,000", "7,000", "64", "50", "2,886"]
    assert any(line.split() == ["size", "1M", "5,000", "4,886", "64", "50"] for line in lines)
    assert "  no simulator: run-70, run-71 and 42 more" in lines
    assert "  no memory: run-64, run-65 and 4 more" in lines
    assert rows["run-0"][1] == "running"
    # A run takes 100 s: 64 x 50 s and 2,886 x 100 s are left, shared by 64, which is 4,559 s.
    assert lines[-1].endswith("; about 1 h 16 min left, with 64 at a time")


def test_time_left_names_what_it_cannot_count() -> None:
    views = [view(1, "running", updates=10, seconds_left=60.0), view(2, "waiting", size=5)]
    assert summary_line(views) == (
        "1 running, 1 waiting; about 60 s left, one at a time, and what single-task at 5M takes, which is not known yet"
    )


def test_failed_runs_are_not_waited_for() -> None:
    views = [view(1, "running", updates=10, seconds_left=60.0), view(2, "failed", "why")]
    assert summary_line(views) == "1 running, 1 failed; about 60 s left, one at a time"


def test_table_that_takes_long_to_draw_is_drawn_less_often_but_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 1 / 32)  # seconds that each drawing takes
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    drawn: list[int] = []
    draw = SweepDisplay._draw

    def note_and_draw(display: SweepDisplay, live: Live) -> None:
        drawn.append(second)
        draw(display, live)

    monkeypatch.setattr(SweepDisplay, "_draw", note_and_draw)
    console = Console(width=120, height=30, markup=False, force_terminal=True)
    with console.capture() as capture, SweepDisplay(console, live=True) as display:
        for second in range(12):
            display.show([view(1, "running", env_steps=second)], now=float(second))
    assert drawn == [0, 4, 8, 11]  # a hundredth of the time is one in 3.1 s, of looks a second apart; and at the end
    assert "11 / 2,000" in capture.get()


def test_speed_elsewhere_reads_the_settings_of_a_few_of_many_like_runs(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "describe_hardware", lambda: "this machine")
    monkeypatch.setattr(cost, "MOST_ALIKE", 3)
    text = TWENTY.replace("sizes: [1]", "sizes: [1, 5]")
    for run in plan_runs(load_declaration(declare(text, name="before"))):
        run.folder.claim(run.config)
        run.folder.release()
        write_status(run.folder, run.config, "done", 100, hardware="this machine")
    read: list[str] = []
    read_config = RunFolder.read_config

    def note_and_read(folder: RunFolder) -> object:
        read.append(folder.path.name)
        return read_config(folder)

    monkeypatch.setattr(RunFolder, "read_config", note_and_read)
    speed = speed_elsewhere(plan_runs(load_declaration(declare(text, name="new"))), "results")
    assert speed == {(1, "online"): 0.5, (5, "online"): 0.5}
    assert sorted(name.split("-")[2] for name in read) == ["1M"] * 3 + ["5M"] * 3
