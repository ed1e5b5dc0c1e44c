"""Evaluating the agent of a run or a checkpoint on its tasks, and filming it."""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.config import EvaluateConfig
from tdmpc2.data.files import disk_full_is_user_error
from tdmpc2.envs.make import why_unavailable
from tdmpc2.errors import UserError, require
from tdmpc2.own_tasks import load_tasks_file
from tdmpc2.tasks import file_name, get_task
from tdmpc2.training.evaluation import EpisodeScore, Evaluator, processes_pay, summarise
from tdmpc2.training.films import FilmedEvaluator, Reel, write_film
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
            be run by this version; films are asked for where nothing can render any; the output exists already; the
            disk is full.
    """
    if config.tasks_file is not None:
        load_tasks_file(config.tasks_file)
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
    videos: dict[str, str] = {}
    if config.video:
        clocks = {name: when if stored.steps is None else when * get_task(name).action_repeat for name in tasks}
        scores, videos = _act_and_film(agent, clocks, when, config, folder, show_progress)
    else:
        scores = _act(agent, tasks, when, config, show_progress)
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
            "video": videos.get(name, ""),
        }
        for name, outcome in summarise(scores).items()
    ]


def _act(
    agent: TDMPC2, tasks: Sequence[str], when: int, config: EvaluateConfig, show_progress: bool
) -> list[EpisodeScore]:
    """Scores of all episodes."""
    episodes = [name for name in tasks for _ in range(config.episodes)]
    parallel = processes_pay(agent.device.type, agent.spec.obs, len(episodes), available_cores())
    evaluator = Evaluator(episodes, agent.spec.obs, config.seed, parallel, agent.spec)
    try:
        return evaluate_shown(evaluator, agent, when, episodes, show_progress)
    finally:
        evaluator.close()


def _act_and_film(
    agent: TDMPC2, clocks: Mapping[str, int], when: int, config: EvaluateConfig, folder: Path, show_progress: bool
) -> tuple[list[EpisodeScore], dict[str, str]]:
    """Scores of all episodes, and the films of each task's first one, relative to the folder.

    Args:
        clocks: what tells a task's films of this agent from those of its other states, by the task's name.
    """
    tasks = list(clocks)
    episodes = [name for name in tasks for _ in range(config.episodes)]
    evaluator = FilmedEvaluator(episodes, config.seed, agent.spec)
    try:
        with Reel(folder) as reel:
            rates, unseen = evaluator.film(range(0, len(episodes), config.episodes), reel.add)
            require(bool(rates), f"video: {next(iter(unseen.values()), '')}")
            for row, reason in unseen.items():
                print(f"not filmed: {episodes[row]}: {reason}", file=sys.stderr)
            scores = evaluate_shown(evaluator, agent, when, episodes, show_progress)
            videos = {}
            for row, fps in rates.items():
                path = _free_name(folder / "videos", f"{file_name(episodes[row])}-{clocks[episodes[row]]}")
                write_film(path, reel.frames(row), fps)
                videos[episodes[row]] = str(path.relative_to(folder))
        return scores, videos
    finally:
        evaluator.close()


def evaluate_shown(
    evaluator: Evaluator, agent: TDMPC2, when: int, episodes: Sequence[str], show_progress: bool
) -> list[EpisodeScore]:
    """Run one episode in each environment of an evaluator, with a progress bar.

    Args:
        evaluator: the environments.
        agent: who acts in them.
        when: as in `Evaluator.evaluate`.
        episodes: the evaluator's tasks, one an episode.
        show_progress: whether to write to the terminal.

    Returns:
        one score an episode.
    """
    from rich.console import Console
    from rich.progress import Progress

    tasks = list(dict.fromkeys(episodes))
    subject = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"
    with Progress(console=Console(stderr=True), disable=not show_progress) as progress:
        longest = max(get_task(name).episode_length for name in tasks)
        bar = progress.add_task(f"{subject}, {len(episodes)} episode{'s'[: len(episodes) > 1]}", total=longest)
        return evaluator.evaluate(agent, when, lambda step: progress.update(bar, completed=step))


def _free_name(folder: Path, stem: str) -> Path:
    """The path of an MP4 that is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = {path.stem for path in folder.iterdir()}
    name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    return folder / f"{name}.mp4"
