"""A whole sweep in few numbers, kept up run by run: the work of a look at it grows with what changed, not with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tdmpc2.sweeps.cost import SpeedKey, TimeLeft, seconds_of_updates, speed_key, time_left, updates_left
from tdmpc2.sweeps.folder import Kind, PlanEntry
from tdmpc2.sweeps.progress import RunState, RunView
from tdmpc2.tasks import TASK_SETS, TASKS

GroupKey = tuple[Kind, str, int]
"""How runs learn, on which suite or task set, and their model size."""


def group_key(entry: PlanEntry) -> GroupKey:
    """The group that a run is counted in: the suite of its task; of several, the task set, or how many they are."""
    if entry.task in TASKS:
        what = TASKS[entry.task].domain
    elif entry.task in TASK_SETS:
        what = entry.task
    else:
        count = entry.task.count(",") + 1
        what = f"{count} tasks" if count > 1 else entry.task
    return entry.kind, what, entry.model_size


class Overview:
    """The runs of a sweep as they stand, and what is told of them together.

    Args:
        views: the runs.
    """

    def __init__(self, views: Iterable[RunView] = ()) -> None:
        self.views: dict[str, RunView] = {}
        """The runs by name, in order."""
        self.counts: Counter[RunState] = Counter()
        """How many runs are in each state."""
        self.groups: dict[GroupKey, Counter[RunState]] = {}
        """The same by group."""
        self.running: dict[str, RunView] = {}
        """The runs under way by name, in the order in which they began."""
        self.failures: dict[str, dict[str, None]] = {}
        """Names of the runs that failed by the reason."""
        self._seconds: dict[SpeedKey, float] = {}
        """Time that the runs which are not under way took for their updates."""
        self._updates: Counter[SpeedKey] = Counter()
        self._to_come: Counter[SpeedKey] = Counter()
        """Updates of the runs that wait, or are to be resumed."""
        for view in views:
            self.put(view)

    def put(self, view: RunView) -> None:
        """Take in a run as it stands now, in place of what was known of it."""
        name = view.entry.name
        before = self.views.get(name)
        if before is not None:
            self._count(before, -1)
            if before.state == "failed":
                del self.failures[before.message][name]
        self.views[name] = view
        self._count(view, 1)
        if view.state == "failed":
            self.failures.setdefault(view.message, {})[name] = None
        if view.state == "running":
            self.running[name] = view
        else:
            self.running.pop(name, None)

    def _count(self, view: RunView, sign: int) -> None:
        self.counts[view.state] += sign
        self.groups.setdefault(group_key(view.entry), Counter())[view.state] += sign
        key = speed_key(view)
        if view.state == "running":
            return
        if view.updates > 0:
            self._seconds[key] = self._seconds.get(key, 0.0) + sign * seconds_of_updates(view)
            self._updates[key] += sign * view.updates
        if view.state not in ("done", "failed"):
            self._to_come[key] += sign * updates_left(view)

    def speed(self) -> dict[SpeedKey, float]:
        """Seconds per update by size and kind, as `measured_speed` has it."""
        seconds, updates = dict(self._seconds), dict(self._updates)
        for view in self.running.values():
            if view.updates > 0:
                key = speed_key(view)
                seconds[key] = seconds.get(key, 0.0) + seconds_of_updates(view)
                updates[key] = updates.get(key, 0) + view.updates
        return {key: seconds[key] / count for key, count in updates.items() if count > 0}

    def time_left(self) -> TimeLeft | None:
        """How long the sweep still takes, with as many runs side by side as now; None where nothing runs."""
        return time_left(list(self.running.values()), self._to_come, self.speed())
