"""Signs of life: the run's status file, and a progress bar or, where there is no terminal, a line now and then."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

import tdmpc2
from tdmpc2.config import Config
from tdmpc2.tasks import get_task
from tdmpc2.training.folder import RunFolder, State, Status
from tdmpc2.training.provenance import begin_process, end_process
from tdmpc2.training.runtime import describe_hardware

if TYPE_CHECKING:
    import torch

STATUS_SECONDS = 2.0
"""Seconds between two writes of the status, at the least."""
LINE_SECONDS = 30.0
"""Seconds between two lines, where there is no terminal."""
WINDOW_SECONDS = 120.0
"""How far back the speed is measured."""


class RunProgress:
    """Follows a run and tells of it, from the moment on at which its folder is claimed.

    Args:
        folder: the run's folder.
        config: its settings.
        show: whether to write to the terminal.
        record: whether to write status.json; false in a process that only helps the one that does.
    """

    def __init__(self, folder: RunFolder, config: Config, show: bool, record: bool = True) -> None:
        self._folder, self._config, self._record = folder, config, record
        self._device, self._hardware, self._execution = config.device, describe_hardware(), ""
        self._repeat = get_task(config.tasks[0]).action_repeat
        self._total = config.total_updates
        self._history: deque[tuple[float, int]] = deque()
        self._printed = 0.0
        # What an earlier process told stands until `begin`, so that a run that cannot be resumed still shows it.
        before = folder.read_status()
        self._start = time.monotonic() - (0.0 if before is None else before.seconds)
        self._agent_steps, self._updates = (0, 0) if before is None else (before.agent_steps, before.updates)
        self._last_return = None if before is None else before.last_return
        self._phase = "starting"
        self._write("running", "")
        if record:
            begin_process(folder.path)
        self._console = Console(stderr=True, quiet=not show)
        self._bar: Progress | None = None
        self._bar_task = TaskID(0)
        if show and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                console=self._console,
                refresh_per_second=2,
            )
            self._bar_task = self._bar.add_task(config.run_name, total=self._total, text="")
            self._bar.start()

    def begin(self, device: torch.device, agent_steps: int, updates: int, seconds: float, execution: str = "") -> None:
        """Say where the run starts from.

        Args:
            device: what it runs on.
            agent_steps: agent steps so far, by the checkpoint; 0 offline.
            updates: updates so far.
            seconds: time spent on them by earlier processes.
            execution: precision and compiling, for the records.
        """
        self._device, self._hardware, self._execution = str(device), describe_hardware(device), execution
        self._agent_steps, self._updates = agent_steps, updates
        self._start = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent on the run, over all its processes."""
        return time.monotonic() - self._start

    def note(self, text: str) -> None:
        """Say something once."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def evaluated(self, score: float) -> None:
        """Take in the score of an evaluation."""
        self._last_return = score

    def update(self, phase: str, agent_steps: int, updates: int) -> None:
        """Take in how far the run is; tells of it when it is time to."""
        self._phase, self._agent_steps, self._updates = phase, agent_steps, updates
        now = time.monotonic()
        if now - self._written < STATUS_SECONDS:
            return
        if updates > 0:
            self._history.append((now, updates))
            while now - self._history[0][0] > WINDOW_SECONDS:
                self._history.popleft()
        self._write("running", "")
        self._show(now)

    def speed(self) -> float | None:
        """Updates a second, of late; None where there is nothing to go by yet."""
        if len(self._history) < 2:
            return None
        (then, before), (now, after) = self._history[0], self._history[-1]
        return (after - before) / (now - then) if after > before else None

    def seconds_left(self) -> float | None:
        """Estimate from the updates still to do, which take nearly all of the time; None while there is no speed."""
        speed = self.speed()
        return None if speed is None else max(0, self._total - self._updates) / speed

    def finish(self, state: State, message: str = "") -> None:
        """Write the last status."""
        if self._bar is not None:
            self._bar.stop()
        if self._record:
            end_process(self._folder.path, state)
        self._write(state, message)

    def _write(self, state: State, message: str) -> None:
        self._written = time.monotonic()
        if not self._record:
            return
        self._folder.write_status(
            Status(
                state=state,
                agent_steps=self._agent_steps,
                total_agent_steps=self._config.agent_steps,
                env_steps=self._agent_steps * self._repeat,
                total_env_steps=self._config.agent_steps * self._repeat,
                updates=self._updates,
                total_updates=self._total,
                seconds=round(self.seconds, 2),
                seconds_left=self.seconds_left() if state == "running" else None,
                phase=self._phase,
                last_return=self._last_return,
                message=message,
                digest=self._config.digest(),
                version=tdmpc2.__version__,
                device=self._device,
                hardware=self._hardware,
                pid=os.getpid(),
                host=socket.gethostname(),
                updated=time.time(),
                execution=self._execution,
            )
        )

    def _show(self, now: float) -> None:
        speed, left = self.speed(), self.seconds_left()
        of_all = f"/{self._total:,}" if self._config.offline else ""
        env_steps = f"{self._agent_steps * self._repeat:,}/{self._total * self._repeat:,} env steps"
        parts = [
            self._phase,
            "" if self._config.offline else env_steps,
            f"{self._updates:,}{of_all} updates" + ("" if speed is None else f" ({speed:.3g} a second)"),
            "" if self._last_return is None else f"score {self._last_return:.3g}",
            "" if left is None else f"{format_duration(left)} left",
        ]
        text = " · ".join(part for part in parts if part)
        if self._bar is not None:
            self._bar.update(self._bar_task, completed=self._updates, text=text)
        elif now - self._printed > LINE_SECONDS:
            self._printed = now
            self.note(f"{self._config.run_name}: {text}")


def format_duration(seconds: float) -> str:
    """A duration as people say it: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
