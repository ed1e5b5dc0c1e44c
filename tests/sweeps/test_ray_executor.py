"""Runs in Ray's worker processes, for real: one start of Ray for all that is to be seen."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tdmpc2.errors import UserError
from tdmpc2.sweeps import ray_executor
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


def test_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, but not listening
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        for spelling in (address, f"ray://{address}"):
            with pytest.raises(UserError, match=f"--address {spelling}: no Ray cluster"):
                RayExecutor(spelling).check([])
