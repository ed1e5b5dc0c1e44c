"""What a person sees of a sweep: the plan, its runs' states, and the live view."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tdmpc2.sweeps.cost import SpeedKey, measured_speed, remaining_cost
from tdmpc2.sweeps.folder import Kind, PlanEntry
from tdmpc2.sweeps.overview import Overview
from tdmpc2.sweeps.progress import RunState, RunView
from tdmpc2.training.progress import format_duration

STATE_NAMES: Mapping[RunState, str] = {
    "waiting": "waiting",
    "running": "running",
    "killed": "killed; will resume",
    "interrupted": "interrupted; will resume",
    "failed": "failed",
    "done": "done",
}
STAGE_NAMES: Mapping[Kind, str] = {"online": "single-task", "offline": "multi-task", "finetune": "finetuning"}
_STAGES_IN_SHORT: Mapping[Kind, str] = {"online": "", "offline": "multi-task: ", "finetune": "finetuning: "}
_COLORS: Mapping[RunState, str] = {"running": "cyan", "failed": "red", "done": "green"}
_ORDER: tuple[RunState, ...] = ("done", "running", "failed", "killed", "interrupted", "waiting")
MOST_ROWS = 60
"""Runs that a table shows one by one; those of a larger sweep are counted, but for some that are under way."""
FEWEST_ROWS = 3
"""Failures, and runs under way, that are shown of a larger sweep however small the screen is."""
DRAWING_SHARE = 0.01
"""Share of the driver's time that may go into drawing the table, which is then drawn less often than could be."""
LINE_SECONDS = 60.0
"""Seconds between two lines on the whole sweep, where there is no terminal."""


def make_console() -> Console:
    """The console for standard output; wide enough for every table where it is not a terminal."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160
    return console


def plan_table(views: Sequence[RunView], not_runnable: Mapping[str, str]) -> RenderableType:
    """The runs of a plan by what they learn and size.

    Args:
        views: all planned runs.
        not_runnable: names of runs that cannot be run here, each with the reason.
    """
    table = Table("task", "size", "runs", "updates", "env steps", "state", box=None, pad_edge=False)
    for column in table.columns[1:5]:
        column.justify = "right"
    groups: dict[tuple[str, str, int, int], list[RunView]] = {}
    for view in views:
        entry = view.entry
        groups.setdefault((entry.kind, entry.task, entry.model_size, entry.total_updates), []).append(view)
    for (_, _, size, _), runs in groups.items():
        entry = runs[0].entry
        reason = not_runnable.get(entry.name)
        state = count_states(runs) if reason is None else f"not runnable: {reason}"
        env_steps = "" if entry.kind == "offline" else f"{entry.env_steps:,}"
        table.add_row(_task_cell(entry), f"{size}M", str(len(runs)), f"{entry.total_updates:,}", env_steps, state)
    return Group(table, Text(f"\n{len(views)} runs: {count_states(views)}"))


def _task_cell(entry: PlanEntry) -> str:
    """What a run learns, in a few words."""
    names = entry.task.split(",")
    tasks = ", ".join(names) if len(names) <= 3 else f"{len(names)} tasks"
    return _STAGES_IN_SHORT[entry.kind] + tasks


def cost_lines(views: Sequence[RunView], elsewhere: Mapping[SpeedKey, float]) -> list[str]:
    """What the runs cost in steps and updates, and what is still to be spent, by stage and in all.

    Args:
        views: the runs.
        elsewhere: speed measured in other sweeps, for what these runs do not tell themselves.
    """
    own = measured_speed(views)
    speed = {**elsewhere, **own}
    lines = []
    for kind, name in STAGE_NAMES.items():
        if stage := [view for view in views if view.entry.kind == kind]:
            lines.append(f"{name}: {_cost_text(stage, speed)}")
    if len(lines) != 1:
        lines.append(f"in all: {_cost_text(views, speed)}")
    needed = {(view.entry.model_size, view.entry.kind) for view in views}
    measured = [
        f"{1000 * speed[key]:.3g} ms {_at_sizes([key])}" + ("" if key in own else " (in another sweep)")
        for key in _ordered(needed & speed.keys())
    ]
    if measured:
        lines.append(f"measured per update, acting and evaluation included: {', '.join(measured)}")
    return lines


def _cost_text(views: Sequence[RunView], speed: Mapping[SpeedKey, float]) -> str:
    env_steps = sum(view.entry.env_steps for view in views)
    parts = [f"{len(views)} run{'s' if len(views) != 1 else ''}"] + (
        [f"{env_steps:,} environment steps"] if env_steps else []
    )
    parts.append(f"{sum(view.entry.total_updates for view in views):,} updates")
    cost = remaining_cost(views, speed)
    left = []
    if cost.gpu_seconds > 0:
        left.append(f"about {cost.gpu_seconds / 3600:,.1f} GPU-hours")
    if cost.cpu_seconds > 0:
        long = cost.cpu_seconds >= 3600
        hours = f"{cost.cpu_seconds / 3600:,.1f} hours" if long else format_duration(cost.cpu_seconds)
        left.append(f"about {hours} of running, one run at a time")
    if cost.unknown:
        hours = "GPU-hours" if all(view.entry.gpus > 0 for view in views) else "hours"
        left.append(f"{hours} of {_at_sizes(cost.unknown)} unknown until a run of it has been measured")
    return ", ".join(parts) + "; to go: " + ("; ".join(left) or "nothing")


def _ordered(keys: Iterable[SpeedKey]) -> list[SpeedKey]:
    """By stage, then size."""
    stages = list(STAGE_NAMES)
    return sorted(keys, key=lambda key: (stages.index(key[1]), key[0]))


def _at_sizes(keys: Iterable[SpeedKey]) -> str:
    """E.g. `single-task at 5M, multi-task at 1M, 5M`."""
    sizes: dict[str, list[str]] = {}
    for size, kind in _ordered(keys):
        sizes.setdefault(STAGE_NAMES[kind], []).append(f"{size}M")
    return ", ".join(f"{name} at {', '.join(listed)}" for name, listed in sizes.items())


def count_states(views: Iterable[RunView] | Overview) -> str:
    """E.g. `3 done, 1 running`."""
    counts = views.counts if isinstance(views, Overview) else Counter(view.state for view in views)
    return ", ".join(f"{counts[state]} {STATE_NAMES[state]}" for state in _ORDER if counts[state])


def status_table(
    views: Iterable[RunView] | Overview, every_run: bool = False, lines: int | None = None
) -> RenderableType:
    """The runs as they stand: each in a row, or, where they are many, counted.

    Args:
        views: the runs.
        every_run: show each, however many they are.
        lines: height of the screen that it has to fit on; None where it may be as long as it likes.
    """
    overview = views if isinstance(views, Overview) else Overview(views)
    most = MOST_ROWS if lines is None else min(MOST_ROWS, lines - 4)
    summary = Text("\n" + summary_line(overview))
    if every_run or len(overview.views) <= most:
        shown = sorted(overview.views.values(), key=lambda view: _ORDER.index(view.state))
        return Group(_run_rows(shown), summary)
    groups = _group_rows(overview)
    room = max(2 * FEWEST_ROWS, most - groups.row_count - 6)  # less headings and what stands between
    reasons = sorted(overview.failures.items(), key=lambda item: -len(item[1]))
    reasons = [(reason, names) for reason, names in reasons if names]
    running = list(overview.running.values())
    rows = max(FEWEST_ROWS, room - min(len(reasons), room // 2))
    parts: list[RenderableType] = [groups]
    if running:
        parts += [Text(), _run_rows(running[:rows])]
        if len(running) > rows:
            parts.append(Text(f"and {len(running) - rows} more under way"))
    if reasons:
        most_reasons = max(FEWEST_ROWS, room - min(len(running), rows))
        parts += [Text(), Text("failed:", style=_COLORS["failed"])]
        parts += [_failure_line(reason, list(names)) for reason, names in reasons[:most_reasons]]
        if len(reasons) > most_reasons:
            parts.append(Text(f"and for {len(reasons) - most_reasons} other reasons"))
    return Group(*parts, summary)


def _run_rows(views: Iterable[RunView]) -> Table:
    table = Table("run", "state", "progress", "env steps, or updates", "score", "time left", box=None, pad_edge=False)
    for column in table.columns[3:]:
        column.justify = "right"
    for view in views:
        state = STATE_NAMES[view.state] + ("" if view.planned else " (not in the plan)")
        table.add_row(
            view.entry.name,
            Text(state, style=_COLORS.get(view.state, "")),
            ProgressBar(total=1.0, completed=view.fraction, width=20),
            _steps_done(view),
            "" if view.last_return is None else f"{view.last_return:.4g}",
            "" if view.seconds_left is None or view.state != "running" else format_duration(view.seconds_left),
        )
        if view.message and view.state not in ("done", "running"):
            table.add_row("", Text(view.message))
    return table


def _group_rows(overview: Overview) -> Table:
    """How many runs are in each state, by what they learn and by size."""
    by_tasks: dict[str, Counter[RunState]] = {}
    by_size: dict[int, Counter[RunState]] = {}
    for (kind, what, size), counts in overview.groups.items():
        by_tasks.setdefault(_STAGES_IN_SHORT[kind] + what, Counter()).update(counts)
        by_size.setdefault(size, Counter()).update(counts)
    states = [state for state in _ORDER if overview.counts[state]]
    table = Table("", "runs", box=None, pad_edge=False)
    for state in states:
        table.add_column(STATE_NAMES[state].partition(";")[0], style=_COLORS.get(state, ""))
    for column in table.columns[1:]:
        column.justify = "right"
    sizes = {f"size {size}M": by_size[size] for size in sorted(by_size)}
    for name, counts in [*by_tasks.items(), *sizes.items(), ("all", overview.counts)]:
        table.add_row(name, f"{counts.total():,}", *(f"{counts[state]:,}" if counts[state] else "" for state in states))
    return table


def _failure_line(reason: str, names: Sequence[str]) -> Text:
    """A reason, and the runs that failed for it."""
    more = f" and {len(names) - 2:,} more" if len(names) > 2 else ""
    first_line = reason.partition("\n")[0] or "no reason was recorded"
    return Text(f"  {first_line}: {', '.join(names[:2])}{more}", overflow="ellipsis", no_wrap=True)


def _steps_done(view: RunView) -> str:
    """Environment steps, or updates of a run that makes none."""
    if view.entry.kind == "offline":
        return f"{view.updates:,} / {view.entry.total_updates:,} updates"
    return f"{view.env_steps:,} / {view.entry.env_steps:,}"


def summary_line(views: Iterable[RunView] | Overview) -> str:
    """The whole sweep in a line."""
    overview = views if isinstance(views, Overview) else Overview(views)
    left = overview.time_left()
    if left is None:
        return count_states(overview)
    unknown = f", and what {_at_sizes(left.unknown)} takes, which is not known yet" if left.unknown else ""
    at_a_time = f"with {len(overview.running)} at a time" if len(overview.running) > 1 else "one at a time"
    return f"{count_states(overview)}; about {format_duration(left.seconds)} left, {at_a_time}{unknown}"


class SweepDisplay:
    """Shows a sweep while it runs.

    Args:
        console: where to.
        live: as a table that is drawn again and again; else a line for every change, and one a minute.
    """

    def __init__(self, console: Console, live: bool) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if live else None
        self._overview = Overview()
        self._printed = float("-inf")
        self._draw_from = float("-inf")

    def __enter__(self) -> SweepDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._draw(self._live)
            self._live.stop()

    def show(self, views: Iterable[RunView], now: float) -> None:
        """Show the runs as they stand.

        Args:
            views: the runs that may have changed since the last call; in the first, all of the sweep.
            now: seconds on a clock that never goes back.
        """
        for view in views:
            before = self._overview.views.get(view.entry.name)
            if before == view:
                continue
            self._overview.put(view)
            changed = before is not None and (before.state, before.message) != (view.state, view.message)
            if changed and self._live is None:
                self._console.print(_change_line(view), soft_wrap=True)
        if self._live is None:
            if now - self._printed >= LINE_SECONDS:
                self._printed = now
                self._console.print(summary_line(self._overview), soft_wrap=True)
        elif now >= self._draw_from:
            start = time.process_time()
            self._draw(self._live)
            self._draw_from = now + (time.process_time() - start) / DRAWING_SHARE

    def _draw(self, live: Live) -> None:
        live.update(status_table(self._overview, lines=self._console.height), refresh=True)


def _change_line(view: RunView) -> str:
    details = view.message
    if view.state == "done" and view.last_return is not None:
        details = f"score {view.last_return:.4g}"
    if view.state == "running":
        entry = view.entry
        offline = entry.kind == "offline"
        details = f"{entry.total_updates:,} updates" if offline else f"{entry.env_steps:,} environment steps"
    return f"{view.entry.name}: {STATE_NAMES[view.state]}" + (f" ({details})" if details else "")
