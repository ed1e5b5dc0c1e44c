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
from tdmpc2.errors import UserError
from tdmpc2.sweeps.planning import PlannedRun

if TYPE_CHECKING:
    from tdmpc2.training.runtime import StopRequest

End = Literal["done", "stopped", "refused", "failed", "killed", "unmet"]
"""How an attempt at a run ended: `stopped` on request, `refused` with a UserError, `failed` with another exception,
`killed` with its process; or `unmet`, not begun, because a run that it needs was given up."""


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
        train(run.config, show_progress=show_progress, stop=stop)
    except Stopped:
        return Outcome(run.name, "stopped", "stopped on request")
    except UserError as error:
        _append(log, f"refused: {error}")
        return Outcome(run.name, "refused", str(error))
    except Exception as error:  # any fault of one run is told, and the other runs go on
        _append(log, traceback.format_exc())
        return Outcome(run.name, "failed", f"{type(error).__name__}: {error}")
    return Outcome(run.name, "done")


def _append(log: Path, text: str) -> None:
    try:
        with log.open("a") as file:
            file.write(text.rstrip("\n") + "\n")
    except OSError:  # a full disk must not hide the fault that is being logged; the outcome tells it too
        return


def take_next(queue: deque[PlannedRun]) -> PlannedRun:
    """Take the run that is to start next off a queue that is not empty; see `Executor.submit`."""
    run = next((run for run in queue if run.needs), queue[0])
    queue.remove(run)
    return run


class SerialExecutor:
    """Executes runs in this process, one after another, in the order of `take_next`.

    Args:
        stop: set when the sweep is to stop.
        train: what executes a run.
        show_progress: whether the runs write to the terminal.
    """

    def __init__(self, stop: StopRequest, train: TrainFunction = train_run, show_progress: bool = True) -> None:
        self._stop, self._train, self._show_progress = stop, train, show_progress
        self._queue: deque[PlannedRun] = deque()

    def check(self, runs: Sequence[PlannedRun]) -> list[str]:
        """See `Executor`; threads are only threads here, so nothing is refused."""
        return []

    def submit(self, run: PlannedRun) -> None:
        """See `Executor`."""
        self._queue.append(run)

    def wait(self, timeout: float) -> list[Outcome]:
        """See `Executor`: executes the next run."""
        if self._stop.requested:
            unbegun = [Outcome(run.name, "stopped", "not begun") for run in self._queue]
            self._queue.clear()
            return unbegun
        if not self._queue:
            return []
        return [attempt_run(self._train, take_next(self._queue), self._show_progress, self._stop)]

    def stop(self) -> None:
        """See `Executor`: the run under way heeds the request that it was given; the others never begin."""

    def close(self) -> None:
        """See `Executor`."""
        self._queue.clear()
