"""Agents in all their tasks, side by side: one picture and one film."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from PIL import Image

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.reference import ReferenceCheckpoint
from tdmpc2.data.files import disk_full_is_user_error
from tdmpc2.envs.make import why_unavailable
from tdmpc2.errors import require
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import expand_tasks, get_task
from tdmpc2.training import gallery_picture
from tdmpc2.training.evaluate_run import evaluate_shown
from tdmpc2.training.evaluation import EpisodeScore
from tdmpc2.training.films import FilmedEvaluator, Frame, Reel, write_film
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.gallery_picture import FPS, Tile, choose_layout
from tdmpc2.training.load_agent import StoredAgent, open_run, read_agent

MOST_TILES = 120
"""Tiles up to which a gallery is made: all 104 tasks, and some to spare."""
MOST_AT_ONCE = 16
"""Tasks played side by side: each one's renderer takes about 110 MB for as long as it is there."""
RANDOM = "random actions"
"""Who acts where there is no agent."""


@dataclass(frozen=True)
class Gallery:
    """What was made."""

    picture: Path
    film: Path
    seconds: float
    """Length of the film."""
    tasks: tuple[str, ...]
    """The tasks of its tiles, in the order in which they are shown."""
    left_out: Mapping[str, str]
    """Tasks that are not shown, and why."""


# --- which agents


def find_runs(folders: str) -> tuple[list[Path], list[str]]:
    """The runs that folders name.

    Args:
        folders: folders of runs and of sweeps, separated by commas.

    Returns:
        folders of runs, each once, and what is passed over in sweeps, with the reason: unfinished runs, and those that
        differ from another one in their seed alone.

    Raises:
        UserError: no such folder, a run has no checkpoint, or a sweep no finished run.
    """
    found: dict[Path, None] = {}
    passed_over: list[str] = []
    for name in folders.split(","):
        path = Path(name.strip())
        if (path / "runs").is_dir() and not RunFolder(path).config_file.exists():
            runs, others = _finished(path)
            found |= dict.fromkeys(runs)
            passed_over += others
        else:
            found[open_run(str(path)).path] = None
    return list(found), passed_over


def _finished(sweep: Path) -> tuple[list[Path], list[str]]:
    """The finished runs of a sweep, of those that differ in their seed alone the first, and what is passed over."""
    finished: list[tuple[int, Path, str]] = []
    passed_over = []
    for folder in (RunFolder(path) for path in sorted((sweep / "runs").iterdir())):
        if not folder.config_file.exists():
            continue
        status = folder.read_status()
        if status is None or status.state != "done" or not folder.checkpoint.exists():
            passed_over.append(f"{folder.path.name}: {'not begun' if status is None else status.state}")
            continue
        config = folder.read_config()
        seedless = repr({name: value for name, value in config.identity().items() if name != "seed"})
        finished.append((config.seed, folder.path, seedless))
    chosen: dict[str, Path] = {}
    for _, path, seedless in sorted(finished):
        if seedless in chosen:
            passed_over.append(f"{path.name}: differs from {chosen[seedless].name} in its seed alone")
        else:
            chosen[seedless] = path
    require(bool(chosen), f"run: {sweep} has no finished run yet")
    return sorted(chosen.values()), passed_over


def describe(stored: StoredAgent) -> str:
    """An agent in a few words: how many tasks it has learned, its size, its seed."""
    config, count = stored.config, len(stored.spec.tasks)
    words = [f"{count} tasks"] if count > 1 else []
    words.append(f"{stored.model_size}M")
    if config.obs == "rgb":
        words.append("pixels")
    if not isinstance(stored.content, ReferenceCheckpoint):  # such a file does not tell
        words.append(f"seed {config.seed}")
    return ", ".join([*words, config.label] if config.label else words)


class RandomAgent:
    """Acts at random, in the place of an agent that is evaluated."""

    def __init__(self, spec: AgentSpec) -> None:
        self.spec = spec

    def actor(self, seed: int) -> Callable[..., torch.Tensor]:
        """Chooses actions (B, action_dim), uniform in [-1, 1], for B observations."""
        generator = torch.Generator().manual_seed(seed)
        shape = self.spec.action_dim
        return lambda obs, *_, **__: torch.rand(len(obs), shape, generator=generator) * 2 - 1


class Player(NamedTuple):
    """Who acts in some tiles."""

    agent: TDMPC2
    description: str
    when: int
    """What an evaluation of this agent is told apart by."""
    tasks: tuple[str, ...]
    """The tasks to show."""


# --- playing


def make_gallery(
    sources: Sequence[str],
    stem: Path,
    *,
    tasks: str | None = None,
    only: str | None = None,
    seed: int = 1,
    seconds: float | None = None,
    columns: int | None = None,
    device: str = "auto",
    show_progress: bool = True,
    **changes: Any,
) -> Gallery:
    """Play an episode of each agent in each of its tasks, and show them side by side.

    Time runs alike in all tiles; an episode that has ended holds its last frame. The picture shows the middle of each
    tile's film. Tasks that cannot be run or rendered here are left out.

    Args:
        sources: runs' folders, or one checkpoint as `read_agent` takes it. None at all: random actions.
        stem: `stem`.png and `stem`.mp4 are written.
        tasks: tasks of a reference implementation's checkpoint, or of random actions.
        only: tasks to show: a task, a list, or task sets.
        seed: seed of the environments and the planner.
        seconds: length of the film, at the most.
        columns: tiles side by side.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        show_progress: whether to write to the terminal.
        changes: the agents' settings to change, e.g. `mpc=False`.

    Raises:
        UserError: a file is there already or cannot be written, an agent cannot be loaded, no task can be shown, there
            are too many, or the disk is full.
    """
    picture, film = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.mp4")
    for path in (picture, film):
        require(not path.exists(), f"output: {path} exists already; name another file with output=")
    folder = stem.parent
    require(folder.is_dir() and os.access(folder, os.W_OK), f"output: {folder} is not a folder that can be written to")
    _check_number(sources, only)
    tiles: list[tuple[str, str, Tile]] = []  # task, who acts, tile
    left_out: dict[str, str] = {}
    with disk_full_is_user_error(folder, "making the gallery"), Reel(folder) as reel:
        for source in sources or (None,):
            if source is None:
                player = _random(tasks, only)
            else:
                stored = read_agent(source, tasks)
                # Of several agents, those that know none of the tasks asked for are not meant.
                chosen = stored.choose_tasks(only) if len(sources) == 1 else _known(stored, only)
                player = _build(stored, chosen, device, changes)
            left_out |= {name: reason for name in player.tasks if (reason := why_unavailable(name))}
            names = [name for name in player.tasks if name not in left_out]
            for first in range(0, len(names), MOST_AT_ONCE):
                together = names[first : first + MOST_AT_ONCE]
                own, unseen = _play(player, together, seed, seconds, reel, len(tiles), show_progress)
                tiles += [(task, player.description, tile) for task, tile in own.items()]
                left_out |= unseen
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        require(bool(tiles), f"nothing to show: {why or f'none of these agents knows {only}'}")

        order = list(dict.fromkeys(task for task, _, _ in tiles))
        tiles.sort(key=lambda entry: order.index(entry[0]))  # one task's tiles side by side
        shown = [tile for _, _, tile in tiles]
        if len({who for _, who, _ in tiles}) > 1:
            shown = [dataclasses.replace(tile, lines=(*tile.lines, who)) for _, who, tile in tiles]
        layout = choose_layout(len(shown), columns, len(shown[0].lines))
        frames = gallery_picture.count_frames(shown, seconds)
        write_film(film, _counted(gallery_picture.film(shown, reel, layout, frames), frames, show_progress), FPS)
        Image.fromarray(gallery_picture.still(shown, reel, layout)).save(picture)
    return Gallery(picture, film, frames / FPS, tuple(task for task, _, _ in tiles), left_out)


def _check_number(sources: Sequence[str], only: str | None) -> None:
    """Refuse more tiles than can be seen, before any of them is played."""
    if len(sources) > 1:
        held = [task for source in sources for task in RunFolder(source).read_config().tasks]
        count = len(held) if only is None else sum(task in expand_tasks(only, where="only") for task in held)
        require(
            count <= MOST_TILES,
            f"{count} episodes to show, more than {MOST_TILES}; choose tasks with only=, or name fewer runs",
        )


def _known(stored: StoredAgent, only: str | None) -> tuple[str, ...]:
    if only is None:
        return stored.spec.tasks
    return tuple(name for name in expand_tasks(only, where="only") if name in stored.spec.tasks)


def _build(stored: StoredAgent, tasks: tuple[str, ...], device: str, changes: Mapping[str, Any]) -> Player:
    steps = sum(get_task(name).episode_length for name in tasks)
    when = stored.steps if stored.steps is not None else stored.updates or 0  # as `tdmpc2 evaluate` has it
    return Player(stored.build(device, steps, **changes), describe(stored), when, tasks)


def _random(tasks: str | None, only: str | None) -> Player:
    names = expand_tasks(tasks or "", where="task")
    chosen = names if only is None else tuple(name for name in expand_tasks(only, where="only") if name in names)
    require(bool(chosen), f"only: none of {tasks}")
    return Player(cast(TDMPC2, RandomAgent(AgentSpec.from_tasks(chosen))), RANDOM, 0, chosen)


def _play(
    player: Player,
    names: Sequence[str],
    seed: int,
    seconds: float | None,
    reel: Reel,
    first: int,
    show_progress: bool,
) -> tuple[dict[str, Tile], dict[str, str]]:
    """Play an episode in each task and film it, the films being numbered from `first`.

    Returns:
        tiles by task, and why others cannot be shown.
    """

    def keep(row: int, step: int, frame: Frame) -> None:
        reel.add(first + row, step, frame)

    evaluator = FilmedEvaluator(names, seed, player.agent.spec)
    try:
        rates, unseen = evaluator.film(range(len(names)), keep, partial(gallery_picture.wanted_steps, seconds=seconds))
        scores = [] if unseen else evaluate_shown(evaluator, player.agent, player.when, names, show_progress)
    finally:
        evaluator.close()
    if unseen:  # nothing is planned for what nobody can see
        left = [names[row] for row in sorted(rates)]
        others = {names[row]: reason for row, reason in unseen.items()}
        return (_play(player, left, seed, seconds, reel, first, show_progress)[0] if left else {}), others
    return {
        score.task: Tile((score.task, outcome(score)), first + row, rates[row], score.length)
        for row, score in enumerate(scores)
    }, {}


def outcome(score: EpisodeScore) -> str:
    """What came of an episode, in words: its return, and success where the task is scored by that."""
    total = score.total_reward
    text = f"return {total:,.0f}" if abs(total) >= 100 else f"return {total:.1f}"
    if get_task(score.task).metric == "return":
        return text
    return f"{'success' if score.success > 0 else 'no success'}, {text}"


def _counted(frames: Iterable[Frame], count: int, show_progress: bool) -> Iterable[Frame]:
    from rich.console import Console
    from rich.progress import track

    return track(frames, "writing the film", count, console=Console(stderr=True), disable=not show_progress)
