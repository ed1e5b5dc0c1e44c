"""What is still to be spent, derived by hand from times and budgets."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_training import write_status

from tdmpc2.sweeps import cost
from tdmpc2.sweeps.cost import measured_speed, remaining_cost, speed_elsewhere, sweep_seconds_left
from tdmpc2.sweeps.declaration import load_declaration
from tdmpc2.sweeps.folder import PlanEntry
from tdmpc2.sweeps.planning import PlannedRun, plan_runs
from tdmpc2.sweeps.progress import RunView
from tdmpc2.sweeps.tables import cost_lines

Declare = Callable[..., Path]


def view(
    name: str, state: str, size: int = 1, total: int = 100, kind: str = "online", gpus: float = 0.0, **values: object
) -> RunView:
    agent_steps = 0 if kind == "offline" else total
    entry = PlanEntry(name, "walker-walk", size, 1, agent_steps, 2 * agent_steps, total, kind, gpus)  # type: ignore[arg-type]
    return RunView(entry, state, **values)  # type: ignore[arg-type]


def test_speed_is_measured_by_size_and_kind_over_updates() -> None:
    views = [
        view("a", "done", updates=100, agent_steps=100, seconds=50.0),
        view("b", "interrupted", updates=300, agent_steps=900, seconds=350.0),  # its random steps took no time
        view("c", "waiting", size=5),
        view("d", "running", size=19, total=1_000, updates=0, agent_steps=900, seconds=9.0),
        view("e", "done", kind="offline", updates=100, seconds=300.0),
        view("f", "done", kind="finetune", updates=100, seconds=200.0),
    ]
    assert measured_speed(views) == {(1, "online"): (50 + 350) / (100 + 300), (1, "offline"): 3.0, (1, "finetune"): 2.0}


def test_speed_of_a_run_under_way_is_its_own_estimate() -> None:
    # 60 seconds have gone, most of them into its start; 80 updates are left and will take 8 seconds.
    for kind in ("online", "offline"):
        views = [view("a", "running", kind=kind, updates=20, agent_steps=20, seconds=60.0, seconds_left=8.0)]
        assert measured_speed(views)[1, kind] == pytest.approx(0.1)  # type: ignore[index]


def test_cost_uses_own_estimates_then_speed_and_names_what_is_unknown() -> None:
    views = [
        view("a", "done", updates=100, seconds=50.0),
        view("b", "running", updates=20, seconds_left=8.0),
        view("c", "waiting"),
        view("d", "interrupted", updates=60),
        view("e", "waiting", size=5),
        view("f", "waiting", kind="offline"),
    ]
    left = remaining_cost(views, {(1, "online"): 0.5})
    assert left.cpu_seconds == left.running_seconds == 8 + 100 * 0.5 + 40 * 0.5
    assert left.gpu_seconds == 0
    assert left.unknown == ((1, "offline"), (5, "online"))


def test_hours_of_a_gpu_count_by_the_share_that_is_asked_for() -> None:
    views = [view("a", "waiting", gpus=0.25), view("b", "waiting"), view("c", "waiting", gpus=2)]
    left = remaining_cost(views, {(1, "online"): 36.0})  # an hour each
    assert (left.gpu_seconds, left.cpu_seconds, left.running_seconds) == (2.25 * 3600, 3600, 3 * 3600)
    assert "about 2.2 GPU-hours; about 1.0 hours of running" in cost_lines(views, {(1, "online"): 36.0})[0]


def test_time_left_shares_the_work_among_the_running_but_is_no_less_than_the_longest() -> None:
    views = [
        view("a", "running", updates=1, seconds_left=10.0),
        view("b", "running", updates=1, seconds_left=10.0),
        view("c", "waiting"),
    ]
    assert sweep_seconds_left(views, {(1, "online"): 0.5}) == (10 + 10 + 50) / 2
    assert sweep_seconds_left([*views[:1], view("b", "running", updates=1, seconds_left=90.0)], {}) == 90
    assert sweep_seconds_left(views, {}) is None
    assert sweep_seconds_left([view("c", "waiting")], {(1, "online"): 0.5}) is None


def test_cost_is_told_by_stage_and_in_all() -> None:
    views = [
        view("a", "done", total=7_200, updates=7_200, seconds=7_200.0),
        view("b", "waiting", total=7_200),
        view("c", "waiting", total=3_000, kind="offline"),
        view("d", "waiting", total=3_000, kind="offline", size=5),
    ]
    single, multi, total, speed = cost_lines(views, {(1, "offline"): 0.02, (1, "online"): 9.0})
    assert single == (
        "single-task: 2 runs, 28,800 environment steps, 14,400 updates; "
        "to go: about 2.0 hours of running, one run at a time"
    )
    assert multi == (
        "multi-task: 2 runs, 6,000 updates; to go: about 60 s of running, one run at a time; "
        "hours of multi-task at 5M unknown until a run of it has been measured"
    )
    assert total.startswith("in all: 4 runs, 28,800 environment steps, 20,400 updates; to go: about 2.0 hours")
    assert speed.endswith(": 1e+03 ms single-task at 1M, 20 ms multi-task at 1M (in another sweep)")


def test_sweep_of_one_stage_has_one_line_on_what_it_costs() -> None:
    (line,) = cost_lines([view("a", "waiting")], {})
    assert line.endswith("hours of single-task at 1M unknown until a run of it has been measured")


MEASURED = "tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\noverrides: {steps: 100, num_samples: 64}\n"


def elsewhere(declare: Declare, text: str, **status: object) -> dict[object, float]:
    """Speed for a new sweep of `MEASURED`, after another one of `text` has made 40 updates in 20 seconds."""
    for run in planned(declare(text, name="before")):
        run.folder.claim(run.config)
        run.folder.release()
        write_status(run.folder, run.config, "interrupted", 40, **({"hardware": "this machine"} | status))
    return dict(speed_elsewhere(planned(declare(MEASURED, name="new")), "results"))


def planned(file: Path) -> tuple[PlannedRun, ...]:
    return plan_runs(load_declaration(file))


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (("num_samples: 64", "num_samples: 128"), {}),
        (("sizes: [1]", "sizes: [5]"), {}),
        (("steps: 100", "steps: 100, batch_size: 128"), {}),
        (("sizes: [1]", "sizes: [1]\nresources: {cpus: 2}"), {}),
        (("", ""), {"hardware": "another machine"}),
        (("", ""), {"hardware": "this machine; a GPU", "device": "cuda"}),
        (("", ""), {"updates": 0}),
    ],
)
def test_speed_of_a_run_that_differs_in_what_takes_time_is_not_taken(
    declare: Declare, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], status: dict[str, object]
) -> None:
    monkeypatch.setattr(cost, "describe_hardware", lambda: "this machine")
    assert elsewhere(declare, MEASURED.replace(*change), **status) == {}


def test_speed_of_a_like_run_of_another_sweep_is_taken(declare: Declare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "describe_hardware", lambda: "this machine")
    other = MEASURED.replace("walker-walk", "cup-catch").replace("steps: 100", "steps: 300, lr: 1e-3, batch_size: 256")
    assert elsewhere(declare, other) == {(1, "online"): 0.5}


def test_speed_on_a_gpu_is_taken_for_runs_that_ask_for_one(declare: Declare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "describe_hardware", lambda: "this machine")
    on_gpu = MEASURED + "resources: {gpus: 1}\n"
    (run,) = planned(declare(on_gpu, name="before"))
    run.folder.claim(run.config)
    run.folder.release()
    write_status(
        run.folder, run.config, "done", 100, hardware="this machine; a GPU", device="cuda", seconds=time.time()
    )
    assert speed_elsewhere(planned(declare(on_gpu, name="new")), "results").keys() == {(1, "online")}
    assert speed_elsewhere(planned(declare(MEASURED, name="new")), "results") == {}
