"""Runs in Ray's worker processes, for real: one start of Ray for all that is to be seen."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.errors import UserError
from tdmpc2.sweeps import ray_executor
from tdmpc2.sweeps.datasets import PlannedDataset
from tdmpc2.sweeps.declaration import load_declaration
from tdmpc2.sweeps.execution import SweepExecution
from tdmpc2.sweeps.executors import log_file
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.planning import plan_runs
from tdmpc2.sweeps.ray_executor import RayExecutor
from tdmpc2.training.runtime import StopRequest

Declare = Callable[..., Path]


def make_training() -> Any:
    """What the workers execute: a function of its own, for they cannot import the tests."""

    def train(config: Any, show_progress: bool, stop: Any) -> None:
        import os
        import signal
        import time

        from tdmpc2.training.folder import RunFolder
        from tdmpc2.training.runtime import Stopped

        folder = RunFolder.of(config).path
        resumed, deadline = (folder / "begun").exists(), time.monotonic() + 200
        (folder / "begun").touch()
        if config.seed == 3:
            while not stop.requested:
                time.sleep(0.02)
            raise Stopped
        while len(list(folder.parent.glob("*/begun"))) < 2:
            if time.monotonic() > deadline:
                raise TimeoutError("the other run did not run beside this one")
            time.sleep(0.02)
        if config.seed == 2:
            raise RuntimeError("no luck")
        if not resumed:
            os.kill(os.getpid(), signal.SIGKILL)

    return train


def test_ray_runs_side_by_side_resumes_a_killed_run_and_stops_on_request(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "available_cores", lambda: 2)
    file = declare("tasks: [walker-walk]\nsizes: [1]\nseeds: [1, 2, 3]\noverrides: {steps: 100}\n")
    killed, failing, waiting = plan_runs(load_declaration(file))
    stop, executor = StopRequest(), RayExecutor(train=make_training())
    execution = SweepExecution(SweepFolder("results", "pair"), (killed, failing, waiting), executor, stop, retries=0)
    deadline = time.monotonic() + 300

    def stop_when_two_have_ended() -> None:
        ended = [execution.attempts[run.name].outcome is not None for run in (killed, failing)]
        begun = (waiting.folder.path / "begun").exists()
        stop.requested = (all(ended) and begun) or time.monotonic() > deadline

    try:
        assert executor.check(execution.runs) == []
        outcomes = execution.execute(stop_when_two_have_ended)
    finally:
        executor.close()
    assert outcomes[killed.name].end == "done"
    assert execution.attempts[killed.name].kills == 1
    assert outcomes[failing.name].message == "RuntimeError: no luck"
    assert "Traceback" in log_file(failing).read_text()
    assert outcomes[waiting.name].end == "stopped"


def make_recording() -> Any:
    """What the workers execute: a line with the run's name in a file."""

    def train(config: Any, show_progress: bool, stop: Any) -> None:
        with open("begun", "a") as file:
            file.write(config.run_name + "\n")

    return train


STAGES = """
tasks: [cup-catch, reacher-easy, walker-walk, hopper-hop]
sizes: [1]
seeds: [1]
overrides: {steps: 100}
datasets: {cup: {tasks: [cup-catch]}}
multitask: [{data: cup, overrides: {label: multi, steps: 10}}]
finetune: [{from: cup, tasks: [cup-spin]}]
"""


def test_ray_begins_a_run_when_its_needs_are_done_before_those_that_wait_for_room(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "available_cores", lambda: 1)
    built: list[list[str]] = []
    monkeypatch.setattr(PlannedDataset, "build", lambda dataset: built.append([store.run for store in dataset.stores]))
    runs = plan_runs(load_declaration(declare(STAGES)))
    executor = RayExecutor(train=make_recording())
    execution = SweepExecution(SweepFolder("results", "pair"), runs, executor, StopRequest(), retries=0)
    try:
        executor.check(runs)
        outcomes = execution.execute(lambda: None)
    finally:
        executor.close()
    assert {outcome.end for outcome in outcomes.values()} == {"done"}
    assert built == [["cup-catch-1M-seed1"]]
    begun = Path("begun").read_text().split()
    cup, multi, tuned = (
        begun.index(f"cup-{name}-seed1") for name in ("catch-1M", "catch-1M-multi", "spin-1M-finetuned")
    )
    # Ray holds one run more than there is room for, so at most one goes between a run and what was waiting for it.
    assert cup == 0
    assert multi in (1, 2)
    assert tuned - multi in (1, 2)


def test_ray_that_does_not_start_is_tried_again_and_then_refused_without_leaving_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray

    tries: list[str] = []

    def init(_temp_dir: str, **_: Any) -> None:
        tries.append(_temp_dir)
        raise Exception("The current node timed out during startup")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match=r"could not be started on this machine, twice \(The current node timed out"):
        RayExecutor().check([])
    assert len(set(tries)) == 2
    assert not any(Path(folder).exists() for folder in tries)


def test_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, but not listening
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        for spelling in (address, f"ray://{address}"):
            with pytest.raises(UserError, match=f"--address {spelling}: no Ray cluster"):
                RayExecutor(spelling).check([])


def test_wrong_token_is_told_after_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray import _raylet

    def refuse(address: str) -> None:
        raise ray.exceptions.AuthenticationError("InvalidAuthToken")

    monkeypatch.setattr(_raylet, "GcsClient", refuse)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray would go on asking for 20 s"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--address {address}: the cluster refuses this machine's token"):
            RayExecutor(address).check([])
