"""Executing a sweep: what is submitted, what is tried again, and what is given up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tdmpc2.sweeps.executors import Executor, Outcome
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.planning import PlannedRun
from tdmpc2.sweeps.progress import RunView, describe_run

if TYPE_CHECKING:
    from tdmpc2.training.runtime import StopRequest

MAX_KILLS = 3
"""Times that a run may lose its process and be resumed: a preempted one deserves it, one that outgrows its machine
would go on for ever."""
TICK_SECONDS = 1.0


@dataclass
class Attempts:
    """What has become of one run so far in this execution."""

    run: PlannedRun
    failures: int = 0
    kills: int = 0
    note: str = ""
    """Why the last attempt ended, while the run waits for the next."""
    seen: tuple[int, str, float] | None = None
    """Process, host and time of the status that an earlier attempt left: not a sign of life of the present one."""
    outcome: Outcome | None = None
    """The last attempt's, once there will be no other."""


@dataclass
class SweepExecution:
    """One execution of runs of a sweep, from the first submission to the last outcome.

    Args:
        folder: the sweep's folder.
        runs: the runs to execute, in order.
        executor: who executes them; `check` has been called.
        stop: set when the sweep is to stop.
        retries: how often a run that failed with an exception is tried again.
    """

    folder: SweepFolder
    runs: Sequence[PlannedRun]
    executor: Executor
    stop: StopRequest
    retries: int = 1
    attempts: dict[str, Attempts] = field(init=False, default_factory=dict)

    def execute(self, watch: Callable[[], None]) -> dict[str, Outcome]:
        """Execute the runs; return when each is done, stopped or given up.

        Args:
            watch: called whenever something may have changed, about once a second.

        Returns:
            the last outcome of each run by name.
        """
        failures = self.folder.read_failures()
        for run in self.runs:
            failures.pop(run.name, None)
        self.folder.write_failures(failures)
        for run in self.runs:
            self.attempts[run.name] = Attempts(run)
            if self.stop.requested:
                self.attempts[run.name].outcome = Outcome(run.name, "stopped", "not begun")
            else:
                self._submit(self.attempts[run.name])
        stopping = False
        watch()
        while any(attempts.outcome is None for attempts in self.attempts.values()):
            if self.stop.requested and not stopping:
                stopping = True
                self.executor.stop()
            for outcome in self.executor.wait(TICK_SECONDS):
                self._take(outcome)
            watch()
        return {name: attempts.outcome for name, attempts in self.attempts.items() if attempts.outcome is not None}

    def _submit(self, attempts: Attempts) -> None:
        status = attempts.run.folder.read_status()
        attempts.seen = None if status is None else (status.pid, status.host, status.updated)
        self.executor.submit(attempts.run)

    def _take(self, outcome: Outcome) -> None:
        """Give the run another attempt, or take this outcome for its last."""
        attempts = self.attempts[outcome.name]
        retry = False
        if outcome.end == "failed":
            attempts.failures += 1
            retry = attempts.failures <= self.retries
        elif outcome.end in ("killed", "stopped"):  # stopped, but not by us: its machine is being taken away
            attempts.kills += 1
            retry = attempts.kills <= MAX_KILLS
        if retry and not self.stop.requested:
            attempts.note = f"{outcome.message}; tried again"
            self._submit(attempts)
            return
        if outcome.end == "killed" and self.stop.requested:
            outcome = replace(outcome, end="stopped")
        elif outcome.end in ("killed", "stopped") and not self.stop.requested:
            outcome = Outcome(outcome.name, "killed", f"{outcome.message}, {attempts.kills} times in all")
        attempts.outcome = outcome
        if outcome.end in ("failed", "killed", "refused"):
            self.folder.write_failures(self.folder.read_failures() | {outcome.name: outcome.message})

    def view(self, name: str) -> RunView:
        """One of the runs as it stands: what its folder tells, corrected by what is known here."""
        attempts = self.attempts[name]
        run, outcome, status = attempts.run, attempts.outcome, attempts.run.folder.read_status()
        if outcome is None:
            fresh = status is not None and (status.pid, status.host, status.updated) != attempts.seen
            view = describe_run(run.entry, status, alive=True)
            if fresh and view.state == "running":
                return view
            return replace(view, state="waiting", message=attempts.note)
        view = describe_run(run.entry, status, alive=False)
        if outcome.end in ("done", "stopped"):
            return view
        return replace(view, state="failed", message=outcome.message)
