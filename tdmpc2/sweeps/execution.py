"""Executing a sweep: what is submitted when, what is tried again, and what is given up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tdmpc2.errors import UserError
from tdmpc2.sweeps.executors import End, Executor, Outcome
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.planning import PlannedRun
from tdmpc2.sweeps.progress import RunView, describe_run

if TYPE_CHECKING:
    from tdmpc2.training.runtime import StopRequest

MAX_KILLS = 3
"""Times that a run may lose its process and be resumed: a preempted one deserves it, one that outgrows its machine
would go on for ever."""
TICK_SECONDS = 1.0
_PAST: Mapping[End, str] = {
    "failed": "failed",
    "refused": "was refused",
    "killed": "was killed",
    "unmet": "was not begun",
    "stopped": "was stopped",
}


@dataclass
class Attempts:
    """What has become of one run so far in this execution."""

    run: PlannedRun
    submitted: bool = False
    """Whether its needs were met."""
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
        runs: the runs to execute, in order, those that a run needs before it.
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
    _built: set[str] = field(init=False, default_factory=set)
    """Names of the data sets that are there."""

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
        self._begin_what_can()
        stopping = False
        watch()
        while any(attempts.outcome is None for attempts in self.attempts.values()):
            if self.stop.requested and not stopping:
                stopping = True
                self.executor.stop()
            for outcome in self.executor.wait(TICK_SECONDS):
                self._take(outcome)
            self._begin_what_can()
            watch()
        return {name: attempts.outcome for name, attempts in self.attempts.items() if attempts.outcome is not None}

    def _begin_what_can(self) -> None:
        """Submit the runs whose needs are met by now, and give up those whose needs will not be."""
        for attempts in self.attempts.values():  # what a run needs comes before it, so one pass goes down a chain
            if attempts.submitted or attempts.outcome is not None:
                continue
            run = attempts.run
            if self.stop.requested:
                attempts.outcome = Outcome(run.name, "stopped", "not begun")
                continue
            waiting = [need for need in run.needs if not self._is_done(need)]
            unmet = next((reason for need in waiting if (reason := self._why_not(need))), None)
            if unmet is not None:
                self._end(attempts, Outcome(run.name, "unmet", unmet))
            elif waiting:
                more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
                attempts.note = f"waits for {waiting[0]}{more}"
            else:
                self._begin(attempts)

    def _begin(self, attempts: Attempts) -> None:
        run = attempts.run
        attempts.submitted, attempts.note = True, ""
        if run.dataset is not None and run.dataset.name not in self._built:
            try:
                run.dataset.build()
            except UserError as error:
                self._end(attempts, Outcome(run.name, "refused", f"data set {run.dataset.name}: {error}"))
                return
            self._built.add(run.dataset.name)
        self._submit(attempts)

    def _is_done(self, need: str) -> bool:
        if need in self.attempts:
            outcome = self.attempts[need].outcome
            return outcome is not None and outcome.end == "done"
        status = self.folder.run(need).read_status()
        return status is not None and status.state == "done"

    def _why_not(self, need: str) -> str | None:
        """Why a run that is needed will not be done by this execution; None where it may be."""
        if need not in self.attempts:
            return f"waits for {need}, which is not done"
        outcome = self.attempts[need].outcome
        return None if outcome is None else f"waits for {need}, which {_PAST[outcome.end]}"

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
        self._end(attempts, outcome)

    def _end(self, attempts: Attempts, outcome: Outcome) -> None:
        attempts.outcome = outcome
        if outcome.end not in ("done", "stopped"):
            self.folder.write_failures(self.folder.read_failures() | {outcome.name: outcome.message})

    def view(self, name: str) -> RunView:
        """One of the runs as it stands: what its folder tells, corrected by what is known here."""
        attempts = self.attempts[name]
        run, outcome, status = attempts.run, attempts.outcome, attempts.run.folder.read_status()
        if outcome is None:
            fresh = status is not None and (status.pid, status.host, status.updated) != attempts.seen
            view = describe_run(run.entry, status, alive=True)
            if attempts.submitted and fresh and view.state == "running":
                return view
            return replace(view, state="waiting", message=attempts.note)
        view = describe_run(run.entry, status, alive=False)
        if outcome.end in ("done", "stopped"):
            return view
        return replace(view, state="failed", message=outcome.message)
