"""What a person sees of a sweep: the plan, its runs' states, and the live view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tdmpc2.sweeps.progress import (
    UNFINISHED,
    RunState,
    RunView,
    measured_speed,
    remaining_cost,
    sweep_seconds_left,
)
from tdmpc2.training.progress import format_duration

STATE_NAMES: Mapping[RunState, str] = {
    "waiting": "waiting",
    "running": "running",
    "killed": "killed; will resume",
    "interrupted": "interrupted; will resume",
    "failed": "failed",
    "done": "done",
}
_COLORS: Mapping[RunState, str] = {"running": "cyan", "failed": "red", "done": "green"}
_ORDER: tuple[RunState, ...] = ("done", "running", "failed", "killed", "interrupted", "waiting")
MOST_ROWS = 60
"""Runs that a table shows one by one; of a larger sweep, those that are done or waiting are only counted."""
LINE_SECONDS = 60.0
"""Seconds between two lines on the whole sweep, where there is no terminal."""


def make_console() -> Console:
    """The console for standard output; wide enough for every table where it is not a terminal."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160
    return console


def plan_table(views: Sequence[RunView], unavailable: Mapping[str, str]) -> RenderableType:
    """The runs of a plan by task and size, with totals.

    Args:
        views: all planned runs.
        unavailable: tasks that cannot be run, with the reason.
    """
    table = Table("task", "size", "runs", "agent steps", "env steps", "state", box=None, pad_edge=False)
    for column in table.columns[1:5]:
        column.justify = "right"
    groups: dict[tuple[str, int, int], list[RunView]] = {}
    for view in views:
        entry = view.entry
        groups.setdefault((entry.task, entry.model_size, entry.env_steps), []).append(view)
    for (task, size, _), runs in groups.items():
        entry = runs[0].entry
        state = f"not runnable: {unavailable[task]}" if task in unavailable else count_states(runs)
        steps = (f"{entry.agent_steps:,}", f"{entry.env_steps:,}")
        table.add_row(task, f"{size}M", str(len(runs)), *steps, state)
    env_steps = sum(view.entry.env_steps for view in views)
    agent_steps = sum(view.entry.agent_steps for view in views)
    total = Text(
        f"\n{len(views)} runs: {env_steps:,} environment steps, {agent_steps:,} agent steps with an update each"
        f"; {count_states(views)}"
    )
    return Group(table, total, Text(cost_line([view for view in views if view.entry.task not in unavailable])))


def cost_line(views: Sequence[RunView]) -> str:
    """What is still to be spent, from measured speed alone."""
    speed = measured_speed(views)
    cost = remaining_cost(views, speed)
    parts = []
    if cost.seconds > 0 or not cost.unknown_sizes:
        hours = f"{cost.seconds / 3600:,.1f} hours" if cost.seconds >= 3600 else format_duration(cost.seconds)
        parts.append(f"about {hours} of running to go, one run at a time")
    if cost.unknown_sizes:
        sizes = ", ".join(f"{size}M" for size in cost.unknown_sizes)
        parts.append(f"hours of size {sizes}: unknown until a run of it has been measured")
    measured = ", ".join(f"{1000 * speed[size]:.3g} ms at {size}M" for size in sorted(speed))
    return "; ".join(parts) + (f" (measured per agent step: {measured})" if measured else "")


def count_states(views: Sequence[RunView]) -> str:
    """E.g. `3 done, 1 running`."""
    counts = Counter(view.state for view in views)
    return ", ".join(f"{counts[state]} {STATE_NAMES[state]}" for state in _ORDER if counts[state])


def status_table(views: Sequence[RunView], every_run: bool = False) -> RenderableType:
    """The runs as they stand.

    Args:
        views: the runs.
        every_run: show each, however many they are.
    """
    table = Table("run", "state", "progress", "env steps", "score", "time left", box=None, pad_edge=False)
    for column in table.columns[3:]:
        column.justify = "right"
    shown = list(views)
    if len(views) > MOST_ROWS and not every_run:
        shown = [view for view in views if view.state not in ("done", "waiting")][:MOST_ROWS]
    for view in sorted(shown, key=lambda view: _ORDER.index(view.state)):
        state = STATE_NAMES[view.state] + ("" if view.planned else " (not in the plan)")
        table.add_row(
            view.entry.name,
            Text(state, style=_COLORS.get(view.state, "")),
            ProgressBar(total=1.0, completed=view.fraction, width=20),
            f"{view.env_steps:,} / {view.entry.env_steps:,}",
            "" if view.last_return is None else f"{view.last_return:.4g}",
            "" if view.seconds_left is None or view.state != "running" else format_duration(view.seconds_left),
        )
        if view.message and view.state not in ("done", "running"):
            table.add_row("", Text(view.message))
    return Group(table, Text("\n" + summary_line(views)))


def summary_line(views: Sequence[RunView]) -> str:
    """The whole sweep in a line."""
    if not any(view.state in UNFINISHED for view in views):
        return count_states(views)
    left = sweep_seconds_left(views, measured_speed(views))
    return count_states(views) + ("" if left is None else f"; about {format_duration(left)} left")


class SweepDisplay:
    """Shows a sweep while it runs.

    Args:
        console: where to.
        live: as a table that is drawn again and again; else a line for every change, and one a minute.
    """

    def __init__(self, console: Console, live: bool) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if live else None
        self._before: dict[str, RunView] = {}
        self._printed = float("-inf")

    def __enter__(self) -> SweepDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, views: Sequence[RunView], now: float) -> None:
        """Show the runs as they stand.

        Args:
            views: all runs of the sweep.
            now: seconds on a clock that never goes back.
        """
        if self._live is not None:
            self._live.update(status_table(views), refresh=True)
            return
        for view in views:
            before = self._before.get(view.entry.name)
            if before is not None and (before.state, before.message) != (view.state, view.message):
                self._console.print(_change_line(view), soft_wrap=True)
            self._before[view.entry.name] = view
        if now - self._printed >= LINE_SECONDS:
            self._printed = now
            self._console.print(summary_line(views), soft_wrap=True)


def _change_line(view: RunView) -> str:
    details = view.message
    if view.state == "done" and view.last_return is not None:
        details = f"score {view.last_return:.4g}"
    if view.state == "running":
        details = f"{view.entry.env_steps:,} environment steps"
    return f"{view.entry.name}: {STATE_NAMES[view.state]}" + (f" ({details})" if details else "")
