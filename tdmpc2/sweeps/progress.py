"""How far a sweep has come, read from its runs' folders."""

from __future__ import annotations

import dataclasses
import time
from typing import Literal

from tdmpc2.errors import UserError
from tdmpc2.sweeps.folder import PlanEntry, SweepFolder
from tdmpc2.training.folder import RunFolder, Status
from tdmpc2.training.stored_copy import leased_elsewhere

RunState = Literal["waiting", "running", "killed", "interrupted", "failed", "done"]
"""`killed`: its status says running, but no process is on it."""
UNFINISHED: tuple[RunState, ...] = ("failed", "killed", "interrupted", "waiting", "running")


@dataclasses.dataclass(frozen=True)
class RunView:
    """One run as it stands."""

    entry: PlanEntry
    state: RunState
    planned: bool = True
    """Whether it stands in the plan."""
    agent_steps: int = 0
    env_steps: int = 0
    updates: int = 0
    seconds: float = 0.0
    """Wall-clock time spent on it so far."""
    seconds_left: float | None = None
    """The run's own estimate, while it runs."""
    phase: str = ""
    last_return: float | None = None
    """Score of its last evaluation."""
    message: str = ""
    """Why it failed or stopped."""

    @property
    def fraction(self) -> float:
        """Share of its work that is done, 0 to 1: of its updates, online averaged with the share of its agent steps,
        which go ahead of the updates at first and take less time."""
        if self.state == "done":
            return 1.0
        if self.entry.kind == "offline":
            return min(1.0, self.updates / self.entry.total_updates)
        return min(1.0, (self.agent_steps + self.updates) / (2 * self.entry.agent_steps))


def describe_run(
    entry: PlanEntry, status: Status | None, alive: bool, planned: bool = True, failure: str | None = None
) -> RunView:
    """One run as its status tells.

    Args:
        entry: the run as planned.
        status: its status, if it has one.
        alive: whether a process is on it.
        planned: whether it stands in the plan.
        failure: why it was given up the last time, if it was.
    """
    if status is None:
        state: RunState = "running" if alive else "waiting" if failure is None else "failed"
        return RunView(entry, state, planned, message=failure or "")
    state = "killed" if status.state == "running" and not alive else status.state
    if failure is not None and state in ("killed", "interrupted"):
        state = "failed"
    return RunView(
        entry=entry,
        state=state,
        planned=planned,
        agent_steps=status.agent_steps,
        env_steps=status.env_steps,
        updates=status.updates,
        seconds=status.seconds,
        seconds_left=status.seconds_left,
        phase=status.phase,
        last_return=status.last_return,
        message=(failure or status.message) if state == "failed" else status.message,
    )


def view_run(folder: RunFolder, entry: PlanEntry, planned: bool = True, failure: str | None = None) -> RunView:
    """One run as its folder, which need not exist, tells; the rest as in `describe_run`."""
    status = folder.read_status()
    running = status is None or status.state == "running"
    alive = running and (folder.is_claimed() or leased_elsewhere(folder, time.time()))
    return describe_run(entry, status, alive, planned, failure)


def view_sweep(folder: SweepFolder) -> list[RunView]:
    """All runs that are planned, and those that are in the folder without standing in the plan.

    Raises:
        UserError: plan.json is damaged.
    """
    failures = folder.read_failures()
    entries = folder.read_plan()
    there = dict.fromkeys(folder.run_names())
    views = []
    for entry in entries:
        failure = failures.get(entry.name)
        if entry.name in there:
            views.append(view_run(folder.run(entry.name), entry, failure=failure))
        else:  # spares a look for the files of each of the many that have not begun
            views.append(describe_run(entry, None, alive=False, failure=failure))
    planned = {entry.name for entry in entries}
    for name in there:
        if name not in planned:
            run = folder.run(name)
            views.append(view_run(run, _entry_of(run, name), planned=False, failure=failures.get(name)))
    return views


def _entry_of(run: RunFolder, name: str) -> PlanEntry:
    """The plan's line of a run that stands in no plan, from its own settings."""
    try:
        config = run.read_config()
    except UserError:  # not a run's folder, or damaged: it is shown by its name alone
        return PlanEntry(name, "?", 0, 0, 1, 1)
    return dataclasses.replace(PlanEntry.of(config), name=name)
