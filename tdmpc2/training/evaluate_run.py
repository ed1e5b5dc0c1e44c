"""Evaluating the agent in a run's folder, and filming it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from gymnasium.vector import SyncVectorEnv

from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.config import EvaluateConfig
from tdmpc2.data.files import disk_full_is_user_error
from tdmpc2.errors import UserError, nearest
from tdmpc2.tasks import get_task
from tdmpc2.training.evaluation import Evaluator, processes_pay, summarise
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.logs import CLOCK, CsvLog
from tdmpc2.training.runtime import available_cores, prepare_process

COLUMNS = (*CLOCK, "seed", "mpc", "episodes", "return", "return_std", "success", "episode_length", "video")
"""Columns of a run's evaluations.csv; seconds are those that the evaluation took."""


def evaluate_run(config: EvaluateConfig, show_progress: bool = True) -> list[dict[str, Any]]:
    """Evaluate a run's latest checkpoint, and append the outcome to evaluations.csv in its folder.

    Args:
        config: which run, how many episodes, and how.
        show_progress: whether to write to the terminal.

    Returns:
        a row for each of the agent's tasks, with the columns of evaluations.csv.

    Raises:
        UserError: no such run, no checkpoint in it yet, or a damaged one; nothing can render a video here; the disk
            is full.
    """
    folder = _open_folder(config.run)
    prepare_process(config.threads)
    state = checkpoints.read(folder.checkpoint)
    if not {"agent", "steps"} <= state.keys():
        raise UserError(f"{folder.checkpoint}: not a run's checkpoint")
    own = {name: value for name in ("precision", "compile") if (value := getattr(config, name)) != "auto"}
    steps = config.episodes * max(state["agent"]["spec"]["episode_lengths"])
    agent = TDMPC2.from_state(state["agent"], folder.checkpoint, config.device, steps, mpc=config.mpc, **own)
    if agent.execution.notice and show_progress:
        print(agent.execution.notice, file=sys.stderr)
    with disk_full_is_user_error(folder.path, "writing the evaluation"):
        rows = [_evaluate_task(agent, name, state["steps"], config, folder, show_progress) for name in agent.spec.tasks]
        path = folder.path / "evaluations.csv"
        log = CsvLog(path, COLUMNS, path.stat().st_size if path.exists() else 0)
        for row in rows:
            log.write(row)
        log.close()
    return rows


def _open_folder(path: str) -> RunFolder:
    folder = RunFolder(path)
    if not folder.path.is_dir():
        parent = folder.path.parent
        siblings = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
        match = nearest(folder.path.name, siblings)
        hint = f"; did you mean {parent / match}?" if match else ""
        raise UserError(f"run: no folder {path}{hint}")
    folder.read_config()
    if not folder.checkpoint.exists():
        raise UserError(f"run: {path} has no checkpoint yet")
    return folder


def _evaluate_task(
    agent: TDMPC2, name: str, steps: int, config: EvaluateConfig, folder: RunFolder, show_progress: bool
) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import Progress

    task = get_task(name)
    # Frames are taken from an environment of this process.
    parallel = not config.video and processes_pay(agent.device.type, agent.spec.obs, config.episodes, available_cores())
    evaluator = Evaluator([name] * config.episodes, agent.spec.obs, config.seed, parallel)
    frames: list[np.ndarray[Any, Any]] = []
    start = time.monotonic()
    with Progress(console=Console(stderr=True), disable=not show_progress) as progress:
        bar = progress.add_task(f"{name}, {config.episodes} episodes", total=task.episode_length)

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
            scores = evaluator.evaluate(agent, steps, on_step)
            fps = evaluator.env.metadata.get("render_fps", 25)
        finally:
            evaluator.close()
    del frames[scores[0].length :]  # the other episodes may be longer
    video = _write_video(folder.videos, f"{name}-{steps * task.action_repeat}", frames, fps) if config.video else None
    return {
        "env_steps": steps * task.action_repeat,
        "agent_steps": steps,
        "updates": agent.updates,
        "seconds": round(time.monotonic() - start, 1),
        "task": name,
        "seed": config.seed,
        "mpc": config.mpc,
        **summarise(scores)[name],
        "video": "" if video is None else str(video.relative_to(folder.path)),
    }


def _write_video(folder: Path, stem: str, frames: list[np.ndarray[Any, Any]], fps: float) -> Path:
    """Write an MP4 under a name that is not taken."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = {path.stem for path in folder.iterdir()}
    name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    path = folder / f"{name}.mp4"
    iio.imwrite(path, np.stack(frames), fps=fps, codec="libx264", macro_block_size=8)
    return path
