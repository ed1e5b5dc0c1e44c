"""The command `tdmpc2 gallery`: agents in all their tasks, in one picture and one film."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import ConfigDict, Field

from tdmpc2.config import Above0, Compile, Count, Positive, Precision, Unset, parse_settings
from tdmpc2.errors import require
from tdmpc2.tasks import expand_tasks

MOST_COLUMNS = 12
"""Columns in which a task's name can still be read, of a film 1,920 pixels wide."""


@pydantic.dataclasses.dataclass(
    frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)
)
class GalleryConfig:
    """Settings of `tdmpc2 gallery`."""

    run: Annotated[str | None, Unset] = None
    """Folder of a run, or of a sweep for all its finished runs (of runs that differ in their seed, the first), or
    several such folders, separated by commas."""
    checkpoint: Annotated[str | None, Unset] = None
    """Checkpoint file, of this project or the reference implementation, or hf://OWNER/REPO/PATH."""
    task: Annotated[str | None, Unset] = None
    """With `checkpoint`: tasks that the reference implementation's was trained on, e.g. mt80. Without `run` and
    `checkpoint`: tasks that are shown under random actions."""
    only: Annotated[str | None, Unset] = None
    """Which of the agents' tasks to show: a task, a list, or a task set. Default: all."""
    output: Annotated[str | None, Unset] = None
    """FILE.png and FILE.mp4 are written; neither may be there yet. Default: gallery in the run's or sweep's folder."""
    seconds: Annotated[Above0 | None, Unset] = None
    """Length of the film. Default: until the last episode has ended. Episodes are played to their ends either way."""
    columns: Annotated[Annotated[int, Field(ge=1, le=MOST_COLUMNS)] | None, Unset] = None
    """Tiles side by side. Default: what comes near the shape of a screen."""
    seed: Count = 1
    """Seed of the environments and the planner."""
    mpc: bool = True
    """Plan with MPPI; false acts with the policy prior alone."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    threads: Annotated[Positive | None, Unset] = None
    """CPU threads. Default: all cores."""
    precision: Precision = "auto"
    """Matrix products: `float32`, `tf32` (GPUs) or `bfloat16`; `auto`: as the run's settings say."""
    compile: Compile = "auto"
    """`none`, `kernels` (CPU) or `full` (torch.compile); `auto`: as the run's settings say."""

    def __post_init__(self) -> None:
        require(
            (self.run is None) != (self.checkpoint is None and self.task is None),
            "run: give run=FOLDER, checkpoint=FILE, or task=TASKS for random actions",
        )
        if self.task is not None:
            expand_tasks(self.task, where="task")
        require(self.run is not None or self.output is not None, "output: needed without run=, e.g. output=gallery")


def run(options: argparse.Namespace) -> int:
    """`tdmpc2 gallery key=value ...`; returns the exit code."""
    config = parse_settings(GalleryConfig, options.settings)
    from tdmpc2.training.gallery import find_runs, make_gallery
    from tdmpc2.training.runtime import prepare_process

    sources: list[str] = [] if config.checkpoint is None else [config.checkpoint]
    if config.run is not None:
        folders, passed_over = find_runs(config.run)
        for line in passed_over:
            print(f"not shown: {line}", file=sys.stderr)
        sources = [str(folder) for folder in folders]
        require(
            config.output is not None or "," not in config.run,
            "output: needed with several folders, e.g. output=gallery",
        )
    stem = Path(config.output if config.output is not None else f"{config.run}/gallery")
    prepare_process(config.threads)
    changes = {name: value for name in ("precision", "compile") if (value := getattr(config, name)) != "auto"}
    made = make_gallery(
        sources,
        stem.with_suffix("") if stem.suffix in (".png", ".mp4") else stem,
        tasks=config.task,
        only=config.only,
        seed=config.seed,
        seconds=config.seconds,
        columns=config.columns,
        device=config.device,
        show_progress=not options.quiet,
        mpc=config.mpc,
        **changes,
    )
    for name, reason in made.left_out.items():
        print(f"not shown: {name}: {reason}", file=sys.stderr)
    count = len(made.tasks)
    print(f"{made.picture}, {made.film}: written ({count} episode{'s'[: count > 1]}, {made.seconds:.1f} s)")
    return 0
