"""What a sweep still costs, at the speed that was measured: of its own runs, or of like runs of other sweeps."""

from __future__ import annotations

import dataclasses
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.sweeps.folder import Kind, PlanEntry, kind_of
from tdmpc2.sweeps.progress import RunView, view_run
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.runtime import describe_hardware

if TYPE_CHECKING:
    from tdmpc2.sweeps.planning import PlannedRun

SpeedKey = tuple[int, Kind]
"""Model size and kind: an update on a data set takes a larger batch than one online, and no agent step beside it."""
MOST_ALIKE = 20
"""Runs of another sweep that are read, at the most, of those that differ in task and seed alone by their names: to
read the settings of a run takes milliseconds, and a sweep may have ten thousand."""


def measured_speed(views: Iterable[RunView]) -> dict[SpeedKey, float]:
    """Seconds per update by model size and kind, over the runs that have begun to learn.

    Online, an update comes with an agent step. Updates take nearly all of the time, so they are what is counted: the
    random phase that comes before them would make a young run look fast. A run under way counts with its own estimate
    of what is left, which is free of what its start took. Runs weigh as many updates as they have made.
    """
    seconds: dict[SpeedKey, float] = {}
    updates: dict[SpeedKey, int] = {}
    for view in views:
        if view.updates == 0:
            continue
        key = speed_key(view)
        seconds[key] = seconds.get(key, 0.0) + seconds_of_updates(view)
        updates[key] = updates.get(key, 0) + view.updates
    return {key: seconds[key] / updates[key] for key in updates}


def speed_key(view: RunView) -> SpeedKey:
    """What a run's speed depends on."""
    return view.entry.model_size, view.entry.kind


def seconds_of_updates(view: RunView) -> float:
    """Seconds that the updates of a run took so far; of one under way, that they would take at its present speed."""
    left = view.entry.total_updates - view.updates
    if view.state == "running" and view.seconds_left is not None and left > 0:
        return view.seconds_left / left * view.updates
    return view.seconds


def speed_elsewhere(runs: Sequence[PlannedRun], results_dir: str | os.PathLike[str]) -> dict[SpeedKey, float]:
    """Seconds per update of like runs of other sweeps: same size, kind, machine and settings that decide the time.

    Args:
        runs: the runs of the sweep whose cost is asked for.
        results_dir: folder of all results.
    """
    machine = describe_hardware()
    wanted = {(_what_takes_time(run.config), run.resources.gpus > 0) for run in runs}
    sizes = {run.config.model_size for run in runs}
    own = {run.config.exp_name for run in runs}
    views = []
    alike: Counter[tuple[str, str, bool]] = Counter()
    # In an order that has nothing to do with tasks, which take more or less time, and is the same every time.
    for path in sorted(Path(results_dir).glob("*/runs/*"), key=lambda path: (zlib.crc32(path.name.encode()), path)):
        sweep, variant = path.parts[-3], re.search(r"(-rgb)?-(\d+)M-.*(?=seed\d+$)", path.name)
        if sweep in own or variant is None or int(variant[2]) not in sizes:
            continue
        folder = RunFolder(path)
        status = folder.read_status()
        if status is None or status.updates == 0:
            continue
        on_gpu = status.device.startswith("cuda")
        if not (status.hardware.startswith(f"{machine}; ") if on_gpu else status.hardware == machine):
            continue
        alike[sweep, variant[0], status.total_agent_steps == 0] += 1
        if alike[sweep, variant[0], status.total_agent_steps == 0] > MOST_ALIKE:
            continue
        try:
            config = folder.read_config()
        except UserError:  # a run that cannot be read tells nothing about speed
            continue
        if (_what_takes_time(config), on_gpu) in wanted:
            views.append(view_run(folder, PlanEntry.of(config)))
    return measured_speed(views)


def _what_takes_time(config: Config) -> tuple[Any, ...]:
    planner = (config.mpc, config.iterations, config.num_samples)
    return (config.model_size, kind_of(config), config.obs, config.sequences, config.horizon, planner, config.threads)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What is still to be spent on some runs."""

    cpu_seconds: float
    """Sum over the unfinished runs without a GPU whose speed has been measured, each as if it ran alone."""
    gpu_seconds: float
    """Likewise over those with a GPU, each times its share of it."""
    running_seconds: float
    """Sum over both, whatever their share of a GPU."""
    unknown: tuple[SpeedKey, ...]
    """Sizes and kinds of unfinished runs that no run has been measured of."""


def remaining_cost(views: Sequence[RunView], speed: Mapping[SpeedKey, float]) -> Cost:
    """What the unfinished runs still cost, by each run's own estimate or else by measured speed.

    Args:
        views: the runs.
        speed: seconds per update, from `measured_speed`.
    """
    cpu, gpu, running, unknown = 0.0, 0.0, 0.0, set()
    for view in views:
        if view.state == "done":
            continue
        key = speed_key(view)
        if view.state == "running" and view.seconds_left is not None:
            seconds = view.seconds_left
        elif key in speed:
            seconds = updates_left(view) * speed[key]
        else:
            unknown.add(key)
            continue
        running += seconds
        if view.entry.gpus > 0:
            gpu += seconds * view.entry.gpus
        else:
            cpu += seconds
    return Cost(cpu, gpu, running, tuple(sorted(unknown)))


def sweep_seconds_left(views: Sequence[RunView], speed: Mapping[SpeedKey, float]) -> float | None:
    """Wall-clock seconds until the sweep is done, with as many runs side by side as now; None where unknown.

    Runs that failed are not waited for: nobody runs them until somebody has looked at them.
    """
    running = [view for view in views if view.state == "running"]
    to_come: dict[SpeedKey, int] = {}
    for view in views:
        if view.state not in ("done", "failed", "running"):
            to_come[speed_key(view)] = to_come.get(speed_key(view), 0) + updates_left(view)
    left = time_left(running, to_come, speed)
    return None if left is None or left.unknown else left.seconds


def updates_left(view: RunView) -> int:
    """Updates that a run has still to make."""
    return max(0, view.entry.total_updates - view.updates)


@dataclasses.dataclass(frozen=True)
class TimeLeft:
    """How long a sweep still takes."""

    seconds: float
    """Wall-clock time, with as many runs side by side as now, for all runs whose speed is known."""
    unknown: tuple[SpeedKey, ...]
    """Sizes and kinds of runs to come that no run has been measured of, and that come on top."""


def time_left(
    running: Sequence[RunView], to_come: Mapping[SpeedKey, int], speed: Mapping[SpeedKey, float]
) -> TimeLeft | None:
    """How long a sweep still takes; None where nothing runs.

    Args:
        running: the runs under way.
        to_come: updates that the others have still to make.
        speed: seconds per update, from `measured_speed`.
    """
    if not running:
        return None
    work, longest, unknown = 0.0, 0.0, {key for key, updates in to_come.items() if updates and key not in speed}
    for view in running:
        seconds = view.seconds_left
        if seconds is None and speed_key(view) in speed:
            seconds = updates_left(view) * speed[speed_key(view)]
        if seconds is None:
            unknown.add(speed_key(view))
        else:
            work, longest = work + seconds, max(longest, seconds)
    work += sum(updates * speed[key] for key, updates in to_come.items() if key in speed)
    return TimeLeft(max(work / len(running), longest), tuple(sorted(unknown)))
