"""A stand-in for training, and the statuses that it writes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.tasks import get_task
from tdmpc2.training.folder import RunFolder, Status
from tdmpc2.training.runtime import Stopped, StopRequest


class ScriptedTraining:
    """Stands in for `train`: claims the folder and writes its status, and ends each attempt at a run as told."""

    def __init__(self) -> None:
        self.script: dict[str, list[str]] = {}
        """Ends of a run's attempts by its name, in order; after them, and without any, it is done."""
        self.calls: list[str] = []
        self.writes_replay = False
        """Whether online runs that are done leave a replay buffer."""

    def __call__(self, config: Config, show_progress: bool, stop: StopRequest) -> None:
        self.calls.append(config.run_name)
        ends = self.script.get(config.run_name, [])
        end = ends.pop(0) if ends else "done"
        folder = RunFolder.of(config)
        folder.claim(config)
        try:
            if end == "done":
                if self.writes_replay and not config.offline:
                    write_replay(folder.replay, config.tasks[0])
                write_status(folder, config, "done", config.total_updates)
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
    """The status of a run that has made some updates in 0.5 seconds each, online with an agent step."""
    agent_steps = 0 if config.offline else steps
    values: dict[str, object] = {
        "state": state,
        "agent_steps": agent_steps,
        "total_agent_steps": config.agent_steps,
        "env_steps": 2 * agent_steps,
        "total_env_steps": 2 * config.agent_steps,
        "updates": steps,
        "total_updates": config.total_updates,
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


def write_replay(folder: Path, name: str) -> None:
    """A replay store of one short episode."""
    from tdmpc2.data.replay import Replay

    task = get_task(name)
    dims = task.obs_dim or 1
    store = Replay.create(
        folder, task=name, obs_shape=(dims,), obs_dtype="float32", action_dim=task.action_dim, capacity=100, slack=10
    )
    with store:
        store.add(
            np.zeros((6, dims), np.float32),
            np.zeros((5, task.action_dim), np.float32),
            np.zeros(5, np.float32),
            np.zeros(5, bool),
        )
        store.flush()
