"""What the page says of a sweep, without how it looks: figures, rows of the tables, failures by reason."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from tdmpc2.sweeps.board.reading import Snapshot
from tdmpc2.sweeps.cost import Cost, SpeedKey, measured_speed, remaining_cost, sweep_seconds_left
from tdmpc2.sweeps.progress import RunState, RunView
from tdmpc2.sweeps.tables import STAGE_NAMES, STATE_NAMES
from tdmpc2.training.progress import format_duration

ShownState = RunState | Literal["damaged"]
"""`damaged`: its status.json is there and cannot be read."""
SHOWN_STATES: tuple[ShownState, ...] = ("running", "failed", "damaged", "killed", "interrupted", "waiting", "done")
"""In the order of the table: what is under way, what needs somebody, and the rest."""
STATE_COLOURS: Mapping[ShownState, str] = {
    "done": "#009E73",
    "running": "#0072B2",
    "failed": "#D55E00",
    "damaged": "#882255",
    "killed": "#CC79A7",
    "interrupted": "#E69F00",
    "waiting": "#767676",
}
"""Of Okabe and Ito's palette, told apart with every common form of colour blindness, and one of Tol's; hex RGB."""
TROUBLE: tuple[ShownState, ...] = ("failed", "damaged", "killed")
"""States that somebody should look at."""
_NO_REASON: Mapping[ShownState, str] = {
    "failed": "no reason was recorded",
    "damaged": "status.json is damaged; the run writes it anew when it goes on",
    "killed": "its process is gone; it goes on from its last checkpoint when the sweep is run again",
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number at the top of the page."""

    label: str
    value: str
    note: str = ""
    """What stands below it."""
    help: str = ""


@dataclasses.dataclass(frozen=True)
class Trouble:
    """Runs that failed, or the like, for one reason."""

    state: ShownState
    reason: str
    runs: tuple[str, ...]


def shown_state(view: RunView, snapshot: Snapshot) -> ShownState:
    """A run's state as it is shown."""
    return "damaged" if view.entry.name in snapshot.damaged else view.state


def state_name(state: ShownState) -> str:
    """A state in words."""
    return "status unreadable" if state == "damaged" else STATE_NAMES[state]


def count_states(snapshot: Snapshot) -> dict[ShownState, int]:
    """Number of runs by state, those that are done first, without states that no run is in."""
    counts = Counter(shown_state(view, snapshot) for view in snapshot.views)
    return {state: counts[state] for state in ("done", *SHOWN_STATES[:-1]) if counts[state]}


def known_runs(views: Iterable[RunView]) -> list[RunView]:
    """The runs without folders that hold no run, or one whose settings are damaged and that stands in no plan."""
    return [view for view in views if view.entry.model_size]


def in_short(count: float) -> str:
    """A count as people say it: 500, 20k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size * (1 - 5e-4):  # 999,999 rounds up to the next unit
            return f"{count / size:.4g}{unit}"
    return f"{count:.4g}"


def in_hours(seconds: float) -> str:
    """Time spent computing: `45 s`, `12 min`, and from two hours on in hours, so that it compares with GPU-hours."""
    if seconds < 7200:
        return format_duration(seconds)
    return f"{seconds / 3600:,.{1 if seconds < 360_000 else 0}f} h"


def gpu_seconds(views: Iterable[RunView]) -> float:
    """Seconds of GPUs that runs have taken so far, by the share of a GPU that each asks for."""
    return sum(view.seconds * view.entry.gpus for view in views)


def overview(snapshot: Snapshot, now: float) -> list[Figure]:
    """The figures at the top: runs, environment steps, updates, cost so far and to come, time left.

    Args:
        snapshot: the sweep.
        now: Unix time, from which the time of its end is counted.
    """
    views = snapshot.views
    counts = count_states(snapshot)
    figures = [
        Figure("Runs done", f"{counts.get('done', 0):,} of {len(views):,}", f"{counts.get('running', 0)} running")
    ]
    steps = sum(view.entry.env_steps for view in views)
    if steps:
        taken = sum(view.env_steps for view in views)
        figures.append(Figure("Environment steps", in_short(taken), f"of {in_short(steps)}"))
    updates = sum(view.entry.total_updates for view in views)
    figures.append(Figure("Updates", in_short(sum(view.updates for view in views)), f"of {in_short(updates)}"))

    speed = measured_speed(views)
    cost = remaining_cost(views, speed)
    figures.append(
        Figure(
            "Run time",
            in_hours(sum(view.seconds for view in views)),
            _to_come(in_hours(cost.running_seconds), cost.running_seconds, bool(cost.unknown)),
            "Summed over the runs, each as if it ran alone.",
        )
    )
    if any(view.entry.gpus for view in views):
        figures.append(
            Figure(
                "GPU-hours",
                f"{gpu_seconds(views) / 3600:,.1f}",
                _to_come(f"{cost.gpu_seconds / 3600:,.1f}", cost.gpu_seconds, bool(cost.unknown)),
                "Run time multiplied by the share of a GPU that each run asks for.",
            )
        )
    figures.append(_time_left(views, speed, now))
    return figures


def _still(cost: Cost) -> str:
    if cost.unknown:
        return "unknown until one has been measured"
    return in_hours(cost.running_seconds) if cost.running_seconds else "nothing"


def _to_come(text: str, amount: float, incomplete: bool) -> str:
    """What is to come, which is a lower bound where some of it is not known yet."""
    if incomplete:
        return f"at least {text} to come" if amount > 0 else "to come: not known yet"
    return f"{text} to come" if amount > 0 else "nothing to come"


def _time_left(views: Sequence[RunView], speed: Mapping[SpeedKey, float], now: float) -> Figure:
    help = "At the speed measured so far, with as many runs side by side as now."
    if all(view.state == "done" for view in views):
        return Figure("Time left", "none", "all runs are done")
    left = sweep_seconds_left(views, speed)
    if left is not None:
        return Figure(
            "Time left", format_duration(left), time.strftime("until %a %d %b, %H:%M", time.localtime(now + left)), help
        )
    under_way = any(view.state == "running" for view in views)
    reason = "until every kind of run has been measured" if under_way else "no run is under way"
    return Figure("Time left", "unknown", reason, help)


def choose_runs(snapshot: Snapshot, states: Sequence[ShownState] = (), text: str = "") -> list[RunView]:
    """The runs of a table, in the order of their states, then of the plan.

    Args:
        snapshot: the sweep.
        states: only runs in these; empty for all.
        text: only runs with all of these words in their names.
    """
    words = text.lower().split()
    chosen = [
        view
        for view in snapshot.views
        if (not states or shown_state(view, snapshot) in states)
        and all(word in view.entry.name.lower() for word in words)
    ]
    return sorted(chosen, key=lambda view: SHOWN_STATES.index(shown_state(view, snapshot)))


def run_row(view: RunView, snapshot: Snapshot) -> dict[str, Any]:
    """A run's row of the table; `state` is a list of one word, `progress` percent."""
    state = shown_state(view, snapshot)
    entry = view.entry
    if entry.kind == "offline":
        steps = f"{in_short(view.updates)} of {in_short(entry.total_updates)} updates"
    else:
        steps = f"{in_short(view.env_steps)} of {in_short(entry.env_steps)} environment steps"
    return {
        "run": entry.name,
        "state": [state_name(state)],
        "progress": 100 * view.fraction,
        "steps": steps,
        "score": view.last_return,
        "spent": in_hours(view.seconds) if view.seconds else "",
        "left": format_duration(view.seconds_left) if state == "running" and view.seconds_left is not None else "",
        "note": "; ".join(part for part in (_reason(view, state), "" if view.planned else "not in the plan") if part),
    }


def _reason(view: RunView, state: ShownState) -> str:
    if state == "running":
        return view.phase
    if state == "done":
        return ""
    return view.message.partition("\n")[0] or _NO_REASON.get(state, "")


def troubles(snapshot: Snapshot) -> list[Trouble]:
    """What went wrong, by state and reason, the most frequent reason of each state first."""
    found: dict[tuple[ShownState, str], list[str]] = {}
    for view in snapshot.views:
        state = shown_state(view, snapshot)
        if state in TROUBLE:
            found.setdefault((state, _reason(view, state)), []).append(view.entry.name)
    ordered = sorted(found, key=lambda key: (TROUBLE.index(key[0]), -len(found[key])))
    return [Trouble(state, reason, tuple(found[state, reason])) for state, reason in ordered]


def cost_rows(views: Sequence[RunView]) -> list[dict[str, Any]]:
    """What each stage costs at each model size: time so far and to come, seconds summed over the runs as text."""
    speed = measured_speed(views)
    groups: dict[SpeedKey, list[RunView]] = {}
    for view in views:
        groups.setdefault((view.entry.model_size, view.entry.kind), []).append(view)
    stages = list(STAGE_NAMES)
    rows = []
    for key in sorted(groups, key=lambda key: (stages.index(key[1]), key[0])):
        group = groups[key]
        made, planned = sum(view.updates for view in group), sum(view.entry.total_updates for view in group)
        cost = remaining_cost(group, speed)
        row = {
            "stage": STAGE_NAMES[key[1]],
            "size": f"{key[0]}M",
            "runs": f"{sum(view.state == 'done' for view in group):,} of {len(group):,}",
            "updates": f"{in_short(made)} of {in_short(planned)}",
            "speed": 1000 * speed[key] if key in speed else None,
            "spent": in_hours(sum(view.seconds for view in group)),
            "to come": _still(cost),
        }
        if any(view.entry.gpus for view in views):
            row["GPU-hours spent"] = gpu_seconds(group) / 3600
            row["GPU-hours to come"] = None if cost.unknown else cost.gpu_seconds / 3600
        rows.append(row)
    return rows
