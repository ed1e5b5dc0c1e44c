"""Who executes runs: the interface, and the executor that does it in this process."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tdmpc2.config import Config
from tdmpc2.errors import RunBusyError, UserError
from tdmpc2.sweeps.planning import PlannedRun

if TYPE_CHECKING:
    from tdmpc2.training.runtime import StopRequest

End = Literal["done", "stopped", "refused", "failed", "killed", "outgrown", "deferred", "unmet"]
"""How an attempt at a run ended: `stopped` on request, `refused` with a UserError, `failed` with another exception,
`killed` with its process, `outgrown` where that was for its memory and the next attempt is given more. Or not begun:
`deferred`, because another process is on the run or its machine is unfit, or `unmet`, because a run that it needs was
given up."""
BUSY_SECONDS = 30.0
"""How long an attempt waits for another process to leave the run's folder: the file server may not have noticed yet
that a machine is gone, and a process cut off from its driver takes a while to end."""


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt at a run."""

    name: str
    """The run's name."""
    end: End
    message: str = ""
    """The reason, unless it is done."""


class TrainFunction(Protocol):
    """What executes one run; see `tdmpc2.training.run.train`."""

    def __call__(self, config: Config, show_progress: bool, stop: StopRequest) -> Any:
        """Train to the end, or raise."""


class Executor(Protocol):
    """Executes runs. Attempts are counted, and retried, by who submits them."""

    def check(self, runs: Sequence[PlannedRun]) -> list[str]:
        """Get ready for these runs.

        Returns:
            what the user should know about how they will run.

        Raises:
            UserError: a run asks for more than there is.
        """

    def submit(self, run: PlannedRun) -> None:
        """Take on a run whose needs are met, to be started when there is room for it.

        A run that others had to be done for goes before those that wait without: it is what the sweep is for, and the
        first of a chain.
        """

    def wait(self, timeout: float) -> list[Outcome]:
        """The attempts that ended since the last call.

        Args:
            timeout: seconds to wait for one; an executor that runs in this process waits for the run.
        """

    def stop(self) -> None:
        """Ask every run to stop: each checkpoints and ends as `stopped`, at once where it has not begun."""

    def close(self) -> None:
        """End everything that is still there."""


def train_run(config: Config, show_progress: bool, stop: StopRequest) -> None:
    """Train one run with the real training code, which is loaded where the run runs."""
    from tdmpc2.training.run import train

    train(config, show_progress=show_progress, stop=stop)


def log_file(run: PlannedRun) -> Path:
    """Where a run's output and tracebacks are kept."""
    return run.folder.path / "run.log"


def attempt_run(train: TrainFunction, run: PlannedRun, show_progress: bool, stop: StopRequest) -> Outcome:
    """Execute a run in this process; whatever goes wrong with it is logged in its folder and told by the outcome."""
    from tdmpc2.training.runtime import Stopped

    log = log_file(run)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        _append(
            log, f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} started on {socket.gethostname()}, process {os.getpid()}"
        )
        _train_when_free(train, run, show_progress, stop)
    except Stopped:
        return Outcome(run.name, "stopped", "stopped on request")
    except RunBusyError as error:
        _append(log, f"deferred: {error}")
        return Outcome(run.name, "deferred", f"waits: {error}")
    except UserError as error:
        _append(log, f"refused: {error}")
        return Outcome(run.name, "refused", str(error))
    except Exception as error:  # any fault of one run is told, and the other runs go on
        _append(log, traceback.format_exc())
        return Outcome(run.name, "failed", f"{type(error).__name__}: {error}")
    return Outcome(run.name, "done")


def _train_when_free(train: TrainFunction, run: PlannedRun, show_progress: bool, stop: StopRequest) -> None:
    """Train as soon as no other process is on the run; raises RunBusyError where one stays for `BUSY_SECONDS`."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            train(run.config, show_progress=show_progress, stop=stop)
            return
        except RunBusyError:
            if time.monotonic() > deadline:
                raise
        stop.check()
        time.sleep(1.0)


def _append(log: Path, text: str) -> None:
    try:
        with log.open("a") as file:
            file.write(text.rstrip("\n") + "\n")
    except OSError:  # a full disk must not hide the fault that is being logged; the outcome tells it too
        return


class Backlog:
    """Runs that have been submitted and not begun; see `Executor.submit` for who goes first."""

    def __init__(self) -> None:
        self._chained: deque[PlannedRun] = deque()
        self._others: deque[PlannedRun] = deque()

    def __len__(self) -> int:
        return len(self._chained) + len(self._others)

    def append(self, run: PlannedRun) -> None:
        """Take on a run."""
        (self._chained if run.needs else self._others).append(run)

    def take(self) -> PlannedRun:
        """Take off the run that is to start next; there must be one."""
        return (self._chained or self._others).popleft()

    def clear(self) -> list[PlannedRun]:
        """Take off all."""
        runs = [*self._chained, *self._others]
        self._chained.clear()
        self._others.clear()
        return runs


class SerialExecutor:
    """Executes runs in this process, one after another, in the order of `Backlog`.

    Args:
        stop: set when the sweep is to stop.
        train: what executes a run.
        show_progress: whether the runs write to the terminal.
    """

    def __init__(self, stop: StopRequest, train: TrainFunction = train_run, show_progress: bool = True) -> None:
        self._stop, self._train, self._show_progress = stop, train, show_progress
        self._queue = Backlog()

    def check(self, runs: Sequence[PlannedRun]) -> list[str]:
        """See `Executor`; threads are only threads here, so nothing is refused."""
        return []

    def submit(self, run: PlannedRun) -> None:
        """See `Executor`."""
        self._queue.append(run)

    def wait(self, timeout: float) -> list[Outcome]:
        """See `Executor`: executes the next run."""
        if self._stop.requested:
            return [Outcome(run.name, "stopped", "not begun") for run in self._queue.clear()]
        if not self._queue:
            return []
        return [attempt_run(self._train, self._queue.take(), self._show_progress, self._stop)]

    def stop(self) -> None:
        """See `Executor`: the run under way heeds the request that it was given; the others never begin."""

    def close(self) -> None:
        """See `Executor`."""
        self._queue.clear()
