"""Executing a sweep: what is submitted when, what is tried again, and what is given up."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tdmpc2.errors import UserError
from tdmpc2.sweeps.executors import End, Executor, Outcome
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.planning import PlannedRun
from tdmpc2.sweeps.progress import RunView, describe_run
from tdmpc2.training.folder import Status

if TYPE_CHECKING:
    from tdmpc2.training.runtime import StopRequest

MAX_KILLS = 3
"""Times in a row that a run may lose its process without having got further since, and be resumed: a run that is
preempted for a week ends all the same, one that dies each time at the same place does not go on for ever."""
MAX_DEFERRALS = 20
"""Times in a row that an attempt may find that it cannot begin: its folder is held by another process, which each time
is waited for `executors.BUSY_SECONDS`, or its machine turns out to be unfit."""
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
    """Times in a row that its process was lost without progress."""
    deferrals: int = 0
    """Times in a row that an attempt could not begin."""
    reached: int = 0
    """The most work that its status told of before the present attempt; see `_work_done`."""
    note: str = ""
    """Why the last attempt ended, while the run waits for the next."""
    seen: tuple[int, str, float] | None = None
    """Process, host and time of the status that an earlier attempt left: not a sign of life of the present one."""
    outcome: Outcome | None = None
    """The last attempt's, once there will be no other."""
    place: int = 0
    """Its place in the order of the runs."""
    lacking: int = 0
    """How many of the runs that it needs are not done."""
    met: int = 0
    """How many of the runs that it needs, from the first on, are known to be done."""
    unmet: str = ""
    """Why its needs will not be met, where that is known."""


@runtime_checkable
class TellsWhatRuns(Protocol):
    """An executor that knows which of the runs that it has taken on have begun."""

    def under_way(self) -> Collection[str]:
        """Names of the runs that have begun, or may have, and have not ended."""


def _work_done(status: Status | None) -> int:
    """Agent steps and updates together."""
    return 0 if status is None else status.agent_steps + status.updates


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
    _open: set[str] = field(init=False, default_factory=set)
    """Runs that have no last outcome yet."""
    _unbegun: dict[str, None] = field(init=False, default_factory=dict)
    """Those of them that have not been submitted, in order."""
    _needed_by: dict[str, list[str]] = field(init=False, default_factory=dict)
    """Runs that have not been submitted by what they need and is not done."""
    _changed: set[str] = field(init=False, default_factory=set)
    """Runs of which something has become since `news` was last asked for."""
    _done_before: dict[str, bool] = field(init=False, default_factory=dict)
    """Whether runs that are needed, but not executed here, are done."""
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
        for place, run in enumerate(self.runs):
            failures.pop(run.name, None)
            self.attempts[run.name] = Attempts(run, place=place)
        self.folder.write_failures(failures)
        self._open = set(self.attempts)
        self._unbegun = dict.fromkeys(self.attempts)
        self._begin_what_can(self._find_needs())
        stopping = False
        watch()
        while self._open:
            if self.stop.requested and not stopping:
                stopping = True
                self.executor.stop()
            outcomes = self.executor.wait(TICK_SECONDS)
            for outcome in outcomes:
                self._take(outcome)
            self._begin_what_can(outcome.name for outcome in outcomes)
            watch()
        return {name: attempts.outcome for name, attempts in self.attempts.items() if attempts.outcome is not None}

    def news(self) -> list[str]:
        """Names of the runs whose `view` may have changed since the last call, in order: those that something has
        become of, and all that are under way."""
        names, self._changed = self._changed, set()
        if isinstance(self.executor, TellsWhatRuns):
            names.update(self.executor.under_way())
        else:
            names |= self._open - self._unbegun.keys()
        return sorted(names, key=lambda name: self.attempts[name].place)

    def _find_needs(self) -> list[str]:
        """Enter what each run waits for; the runs that wait for nothing, or in vain."""
        settled = []
        for name, attempts in self.attempts.items():
            for need in attempts.run.needs:
                if need in self.attempts:
                    attempts.lacking += 1
                    self._needed_by.setdefault(need, []).append(name)
                elif not self._is_done(need):
                    attempts.lacking += 1
                    attempts.unmet = attempts.unmet or f"waits for {need}, which is not done"
            if attempts.lacking == 0 or attempts.unmet:
                settled.append(name)
        return settled

    def _begin_what_can(self, names: Iterable[str]) -> None:
        """Submit the runs whose needs are met by now, and give up those whose needs will not be.

        Args:
            names: the runs of which something has become; it may decide what becomes of those that need them.
        """
        given_up: dict[str, str] = {}
        todo = [self.attempts[name].place for name in names]
        heapq.heapify(todo)  # what a run needs comes before it, so one pass in order goes down a chain
        while todo:
            attempts = self.attempts[self.runs[heapq.heappop(todo)].name]
            name = attempts.run.name
            self._changed.add(name)
            if name in self._unbegun and not self.stop.requested:
                if attempts.unmet:
                    del self._unbegun[name]
                    attempts.outcome = Outcome(name, "unmet", attempts.unmet)
                    given_up[name] = attempts.unmet
                elif attempts.lacking == 0:
                    del self._unbegun[name]
                    self._begin(attempts)
            if attempts.outcome is not None:
                self._open.discard(name)
                for waiting in self._tell_those_waiting(attempts.outcome):
                    heapq.heappush(todo, waiting.place)
        if given_up:  # many may have waited for one
            self.folder.write_failures(self.folder.read_failures() | given_up)
        if self.stop.requested:
            for name in self._unbegun:
                self.attempts[name].outcome = Outcome(name, "stopped", "not begun")
            self._open.difference_update(self._unbegun)
            self._changed.update(self._unbegun)
            self._unbegun.clear()

    def _tell_those_waiting(self, outcome: Outcome) -> list[Attempts]:
        """Enter the end of a run with those that need it; those of them that wait no longer."""
        settled = []
        for name in self._needed_by.pop(outcome.name, ()):
            attempts = self.attempts[name]
            if outcome.end == "done":
                attempts.lacking -= 1
            else:
                attempts.unmet = attempts.unmet or f"waits for {outcome.name}, which {_PAST[outcome.end]}"
            if attempts.lacking == 0 or attempts.unmet:
                settled.append(attempts)
        return settled

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
        if need not in self._done_before:
            status = self.folder.run(need).read_status()
            self._done_before[need] = status is not None and status.state == "done"
        return self._done_before[need]

    def _why_it_waits(self, attempts: Attempts) -> str:
        """Why a run is not under way."""
        if attempts.submitted or attempts.lacking == 0:
            return attempts.note
        needs = attempts.run.needs
        while self._is_done(needs[attempts.met]):
            attempts.met += 1
        more = f" and {attempts.lacking - 1} more" if attempts.lacking > 1 else ""
        return f"waits for {needs[attempts.met]}{more}"

    def _submit(self, attempts: Attempts) -> None:
        status = attempts.run.folder.read_status()
        attempts.seen = None if status is None else (status.pid, status.host, status.updated)
        attempts.reached = max(attempts.reached, _work_done(status))
        self.executor.submit(attempts.run)

    def _take(self, outcome: Outcome) -> None:
        """Give the run another attempt, or take this outcome for its last."""
        attempts = self.attempts[outcome.name]
        retry = False
        if outcome.end == "failed":
            attempts.failures += 1
            retry = attempts.failures <= self.retries
        elif outcome.end == "deferred":
            attempts.deferrals += 1
            retry = attempts.deferrals <= MAX_DEFERRALS
        elif outcome.end == "outgrown":  # the executor makes room for it, or refuses it
            retry = True
        elif outcome.end in ("killed", "stopped"):  # stopped, but not by us: its machine is being taken away
            attempts.kills = 0 if self._got_further(attempts) else attempts.kills + 1
            retry = attempts.kills <= MAX_KILLS
        if outcome.end != "deferred":
            attempts.deferrals = 0
        if retry and not self.stop.requested:
            attempts.note = f"{outcome.message}; tried again"
            self._submit(attempts)
            return
        if outcome.end in ("killed", "outgrown", "deferred") and self.stop.requested:
            outcome = replace(outcome, end="stopped")
        elif outcome.end in ("killed", "stopped") and not self.stop.requested:
            outcome = Outcome(
                outcome.name, "killed", f"{outcome.message}, {attempts.kills} times without getting further"
            )
        elif outcome.end == "deferred":
            outcome = replace(outcome, end="refused")
        self._end(attempts, outcome)

    def _got_further(self, attempts: Attempts) -> bool:
        """Whether the run has come further than any attempt before."""
        return _work_done(attempts.run.folder.read_status()) > attempts.reached

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
            return replace(view, state="waiting", message=self._why_it_waits(attempts))
        view = describe_run(run.entry, status, alive=False)
        if outcome.end == "done":  # where results are in object storage, the status here may be older
            return replace(view, state="done", message="")
        if outcome.end == "stopped":
            return view
        return replace(view, state="failed", message=outcome.message)
