"""How far a sweep has come, read from its runs' folders, and what is still to come at the measured speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from tdmpc2.errors import UserError
from tdmpc2.sweeps.folder import PlanEntry, SweepFolder
from tdmpc2.tasks import get_task
from tdmpc2.training.folder import RunFolder, Status

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
        """Share of its work that is done, 0 to 1; an update takes longer than an agent step, so they are averaged."""
        total = self.entry.agent_steps
        return 1.0 if self.state == "done" else min(1.0, (self.agent_steps + self.updates) / (2 * total))


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
    alive = (status is None or status.state == "running") and folder.is_claimed()
    return describe_run(entry, status, alive, planned, failure)


def view_sweep(folder: SweepFolder) -> list[RunView]:
    """All runs that are planned, and those that are in the folder without standing in the plan.

    Raises:
        UserError: plan.json is damaged.
    """
    failures = folder.read_failures()
    entries = folder.read_plan()
    views = [view_run(folder.run(entry.name), entry, failure=failures.get(entry.name)) for entry in entries]
    planned = {entry.name for entry in entries}
    for name in folder.run_names():
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
    env_steps = config.agent_steps * get_task(config.tasks[0]).action_repeat
    return PlanEntry(name, config.task, config.model_size, config.seed, config.agent_steps, env_steps)


def measured_speed(views: Iterable[RunView]) -> dict[int, float]:
    """Seconds per agent step by model size, over the runs that have begun to learn.

    An agent step comes with one update, which takes nearly all of the time, so updates are what is counted: the random
    phase that comes before them would make a young run look fast. A run under way counts with its own estimate of what
    is left, which is free of what its start took. Runs weigh as many updates as they have made.
    """
    seconds: dict[int, float] = {}
    updates: dict[int, int] = {}
    for view in views:
        if view.updates == 0:
            continue
        left = view.entry.agent_steps - view.updates
        if view.state == "running" and view.seconds_left is not None and left > 0:
            seconds_per_update = view.seconds_left / left
        else:
            seconds_per_update = view.seconds / view.updates
        size = view.entry.model_size
        seconds[size] = seconds.get(size, 0.0) + seconds_per_update * view.updates
        updates[size] = updates.get(size, 0) + view.updates
    return {size: seconds[size] / updates[size] for size in updates}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What is still to be spent on a sweep."""

    seconds: float
    """Sum over the unfinished runs whose size has been measured, each as if it ran alone."""
    unknown_sizes: tuple[int, ...]
    """Sizes of unfinished runs that no run has been measured of."""


def remaining_cost(views: Sequence[RunView], speed: Mapping[int, float]) -> Cost:
    """What the unfinished runs still cost, by each run's own estimate or else by measured speed.

    Args:
        views: the sweep's runs.
        speed: seconds per agent step by size, from `measured_speed`.
    """
    seconds, unknown = 0.0, set()
    for view in views:
        if view.state == "done":
            continue
        size = view.entry.model_size
        if view.state == "running" and view.seconds_left is not None:
            seconds += view.seconds_left
        elif size in speed:
            seconds += max(0, view.entry.agent_steps - view.updates) * speed[size]
        else:
            unknown.add(size)
    return Cost(seconds, tuple(sorted(unknown)))


def sweep_seconds_left(views: Sequence[RunView], speed: Mapping[int, float]) -> float | None:
    """Wall-clock seconds until the sweep is done, with as many runs side by side as now; None where unknown."""
    cost = remaining_cost(views, speed)
    running = [view for view in views if view.state == "running"]
    if cost.unknown_sizes or not running:
        return None
    longest = max((view.seconds_left or 0.0) for view in running)
    return max(cost.seconds / len(running), longest)
