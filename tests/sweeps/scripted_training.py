"""A stand-in for training, and the statuses that it writes."""

from __future__ import annotations

import os
import time

from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.training.folder import RunFolder, Status
from tdmpc2.training.runtime import Stopped, StopRequest


class ScriptedTraining:
    """Stands in for `train`: claims the folder and writes its status, and ends each attempt at a run as told."""

    def __init__(self) -> None:
        self.script: dict[str, list[str]] = {}
        """Ends of a run's attempts by its name, in order; after them, and without any, it is done."""
        self.calls: list[str] = []

    def __call__(self, config: Config, show_progress: bool, stop: StopRequest) -> None:
        self.calls.append(config.run_name)
        ends = self.script.get(config.run_name, [])
        end = ends.pop(0) if ends else "done"
        folder = RunFolder.of(config)
        folder.claim(config)
        try:
            if end == "done":
                write_status(folder, config, "done", config.agent_steps)
            elif end == "fail":
                write_status(folder, config, "failed", 40, "no luck")
                raise RuntimeError("no luck")
            elif end == "refuse":
                raise UserError("the disk is full")
            elif end == "interrupt":  # Ctrl-C while the run is under way
                stop.requested = True
                write_status(folder, config, "interrupted", 40, "stopped on request")
                raise Stopped
        finally:
            folder.release()


def write_status(
    folder: RunFolder, config: Config, state: str, steps: int, message: str = "", **changes: object
) -> None:
    """The status of a run that has come to some agent step, an update and 0.5 seconds each."""
    values: dict[str, object] = {
        "state": state,
        "agent_steps": steps,
        "total_agent_steps": config.agent_steps,
        "env_steps": 2 * steps,
        "total_env_steps": 2 * config.agent_steps,
        "updates": steps,
        "seconds": steps / 2,
        "seconds_left": None,
        "phase": "learning",
        "last_return": 12.5,
        "message": message,
        "digest": config.digest(),
        "version": "0",
        "device": "cpu",
        "hardware": "",
        "pid": os.getpid(),
        "host": "here",
        "updated": time.time(),
    }
    folder.write_status(Status(**(values | changes)))  # type: ignore[arg-type]
