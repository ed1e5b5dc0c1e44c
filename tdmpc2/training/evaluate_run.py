"""Evaluating the agent of a run or a checkpoint on its tasks, and filming it."""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from gymnasium.vector import SyncVectorEnv

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.config import EvaluateConfig
from tdmpc2.data.files import disk_full_is_user_error
from tdmpc2.envs.make import why_unavailable
from tdmpc2.errors import UserError, require
from tdmpc2.tasks import get_task
from tdmpc2.training.evaluation import EpisodeScore, Evaluator, processes_pay, summarise
from tdmpc2.training.folder import write_text
from tdmpc2.training.load_agent import StoredAgent, open_run, read_agent
from tdmpc2.training.logs import CLOCK, CsvLog
from tdmpc2.training.runtime import available_cores, prepare_process

_NAMES_SHOWN = 4
COLUMNS = (*CLOCK, "seed", "mpc", "episodes", "return", "return_std", "success", "episode_length", "video")
"""Columns of evaluations.csv. Seconds are those that the whole evaluation took, of all its tasks side by side; steps
and updates are empty where the agent learned from data alone, or its file does not tell."""


def evaluate_run(config: EvaluateConfig, show_progress: bool = True) -> list[dict[str, Any]]:
    """Evaluate a run's latest checkpoint, or a checkpoint file, on all tasks asked for side by side.

    A run's outcome is appended to evaluations.csv in its folder; a checkpoint's is written to `output`, if given.

    Args:
        config: which agent, which of its tasks, how many episodes, and how.
        show_progress: whether to write to the terminal.

    Returns:
        a row for each task, with the columns of evaluations.csv.

    Raises:
        UserError: no such run or checkpoint, or a damaged one, of another size, or without these tasks; a task cannot
            be run by this version; a film is asked of several tasks, or nothing can render it here; the output exists
            already; the disk is full.
    """
    if config.run is not None:
        folder, source = open_run(config.run).path, config.run
        table: Path | None = folder / "evaluations.csv"
    else:
        assert config.checkpoint is not None  # by the settings' own check
        source, table = config.checkpoint, None if config.output is None else Path(config.output)
        folder = Path() if table is None else _folder_of_new(table)
    if table is not None:
        _bring_up_to_date(table)
    prepare_process(config.threads)
    stored = read_agent(source, config.task)
    _check_size(stored, config.model_size)
    tasks = _runnable(stored, config.only)
    require(len(tasks) == 1 or not config.video, f"video: films one task, not {len(tasks)}; choose one with only=TASK")

    steps = config.episodes * sum(get_task(name).episode_length for name in tasks)
    own = {name: value for name in ("precision", "compile") if (value := getattr(config, name)) != "auto"}
    agent = stored.build(config.device, steps, mpc=config.mpc, **own)
    if agent.execution.notice and show_progress:
        print(agent.execution.notice, file=sys.stderr)
    with disk_full_is_user_error(folder, "writing the evaluation"):
        rows = _evaluate(agent, stored, tasks, config, folder, show_progress)
        if table is not None:
            log = CsvLog(table, COLUMNS, table.stat().st_size if table.exists() else 0)
            for row in rows:
                log.write(row)
            log.close()
    return rows


def _folder_of_new(table: Path) -> Path:
    """Where a new file can be written; said before hours of planning, not after."""
    require(not table.exists(), f"output: {table} exists already; name another file")
    folder = table.parent
    require(folder.is_dir() and os.access(folder, os.W_OK), f"output: {folder} is not a folder that can be written to")
    return folder


def _bring_up_to_date(table: Path) -> None:
    """Give a table of an older version the columns it lacks, empty, so that no row is written under other names."""
    if not table.exists():
        return
    with table.open(newline="") as file:
        rows = csv.DictReader(file)
        found = list(rows.fieldnames or ())
        unknown = [name for name in found if name not in COLUMNS]
        require(not unknown, f"{table}: column {', '.join(unknown)} is not one of this version; move the file away")
        if found in ([], list(COLUMNS)):
            return
        older = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(older)
    write_text(table, text.getvalue())


def _check_size(stored: StoredAgent, wanted: int | None) -> None:
    if wanted not in (None, stored.model_size):
        raise UserError(f"model_size: {stored.origin} holds an agent of size {stored.model_size}, not {wanted}")


def _runnable(stored: StoredAgent, only: str | None) -> tuple[str, ...]:
    """The tasks to evaluate, all of which can be run here."""
    tasks = stored.choose_tasks(only)
    missing = {name: why_unavailable(name) for name in tasks if why_unavailable(name)}
    if missing:
        left = [name for name in tasks if name not in missing]
        rest = ",".join(left) if len(left) <= _NAMES_SHOWN else "... (`tdmpc2 tasks` shows which run here)"
        hint = f"; evaluate the others with only={rest}" if left and only is None else ""
        names = ", ".join(list(missing)[:_NAMES_SHOWN]) + (" and others" if len(missing) > _NAMES_SHOWN else "")
        raise UserError(f"only: {names} cannot be run here: {next(iter(missing.values()))}{hint}")
    return tasks


def _evaluate(
    agent: TDMPC2,
    stored: StoredAgent,
    tasks: Sequence[str],
    config: EvaluateConfig,
    folder: Path,
    show_progress: bool,
) -> list[dict[str, Any]]:
    start = time.monotonic()
    # What an evaluation while training has counted by, so that the same seed gives the same scores.
    when = stored.steps if stored.steps is not None else stored.updates or 0
    scores, frames, fps = _act(agent, tasks, when, config, show_progress)
    video = ""
    if config.video:
        (task,) = tasks
        clock = when if stored.steps is None else when * get_task(task).action_repeat
        del frames[scores[0].length :]  # the other episodes may be longer
        video = str(_write_video(folder / "videos", f"{task}-{clock}", frames, fps).relative_to(folder))
    seconds = round(time.monotonic() - start, 1)
    return [
        {
            "env_steps": None if stored.steps is None else stored.steps * get_task(name).action_repeat,
            "agent_steps": stored.steps,
            "updates": stored.updates,
            "seconds": seconds,
            "task": name,
            "seed": config.seed,
            "mpc": config.mpc,
            **outcome,
            "video": video,
        }
        for name, outcome in summarise(scores).items()
    ]


def _act(
    agent: TDMPC2, tasks: Sequence[str], when: int, config: EvaluateConfig, show_progress: bool
) -> tuple[list[EpisodeScore], list[np.ndarray[Any, Any]], float]:
    """Scores of all episodes, frames of the first one (where filmed), and frames per second."""
    from rich.console import Console
    from rich.progress import Progress

    episodes = [name for name in tasks for _ in range(config.episodes)]
    # Frames are taken from an environment of this process.
    parallel = not config.video and processes_pay(agent.device.type, agent.spec.obs, len(episodes), available_cores())
    evaluator = Evaluator(episodes, agent.spec.obs, config.seed, parallel, agent.spec)
    frames: list[np.ndarray[Any, Any]] = []
    subject = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"
    with Progress(console=Console(stderr=True), disable=not show_progress) as progress:
        longest = max(get_task(name).episode_length for name in tasks)
        bar = progress.add_task(f"{subject}, {len(episodes)} episodes", total=longest)

        def on_step(step: int) -> None:
            progress.update(bar, completed=step)
            if config.video:
                assert isinstance(evaluator.env, SyncVectorEnv)
                frames.append(np.asarray(evaluator.env.envs[0].render()))

        try:
            if config.video:
                evaluator.env.reset()
                on_step(0)  # where nothing can render, say so before an hour of planning
                frames.clear()
            scores = evaluator.evaluate(agent, when, on_step)
            fps = evaluator.env.metadata.get("render_fps", 25)
        finally:
            evaluator.close()
    return scores, frames, fps


def _write_video(folder: Path, stem: str, frames: list[np.ndarray[Any, Any]], fps: float) -> Path:
    """Write an MP4 under a name that is not taken."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = {path.stem for path in folder.iterdir()}
    name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    path = folder / f"{name}.mp4"
    iio.imwrite(path, np.stack(frames), fps=fps, codec="libx264", macro_block_size=8)
    return path
