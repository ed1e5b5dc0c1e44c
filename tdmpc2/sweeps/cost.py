"""What a sweep still costs, at the speed that was measured: of its own runs, or of like runs of other sweeps."""

from __future__ import annotations

import dataclasses
import os
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
        left = view.entry.total_updates - view.updates
        if view.state == "running" and view.seconds_left is not None and left > 0:
            seconds_per_update = view.seconds_left / left
        else:
            seconds_per_update = view.seconds / view.updates
        key = (view.entry.model_size, view.entry.kind)
        seconds[key] = seconds.get(key, 0.0) + seconds_per_update * view.updates
        updates[key] = updates.get(key, 0) + view.updates
    return {key: seconds[key] / updates[key] for key in updates}


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
    for path in sorted(Path(results_dir).glob("*/runs/*")):
        if path.parts[-3] in own or not any(f"-{size}M-" in path.name for size in sizes):
            continue
        folder = RunFolder(path)
        status = folder.read_status()
        if status is None or status.updates == 0:
            continue
        on_gpu = status.device.startswith("cuda")
        if not (status.hardware.startswith(f"{machine}; ") if on_gpu else status.hardware == machine):
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
        key = (view.entry.model_size, view.entry.kind)
        if view.state == "running" and view.seconds_left is not None:
            seconds = view.seconds_left
        elif key in speed:
            seconds = max(0, view.entry.total_updates - view.updates) * speed[key]
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
    """Wall-clock seconds until the sweep is done, with as many runs side by side as now; None where unknown."""
    cost = remaining_cost(views, speed)
    running = [view for view in views if view.state == "running"]
    if cost.unknown or not running:
        return None
    longest = max((view.seconds_left or 0.0) for view in running)
    return max(cost.running_seconds / len(running), longest)
