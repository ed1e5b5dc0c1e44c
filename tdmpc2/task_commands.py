"""The command `tdmpc2 tasks`: which tasks there are, and which of them run here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tdmpc2.errors import UserError
from tdmpc2.tasks import Task, caveat, expand_tasks, get_task

CHECK_STEPS = 5
"""Agent steps that `--check` takes in each episode, if it does not end before."""
EXIT_FAILED = 1
_WIDTH = 110


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tasks` to a command line; its `run_command` takes the parsed options and returns the exit code."""
    text = "list the tasks, and which of them run here"
    parser = subparsers.add_parser("tasks", help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="tasks or task sets (default: all)")
    parser.add_argument("--available", action="store_true", help="only those that run here")
    parser.add_argument("--check", action="store_true", help="build, reset and step each one that runs here")
    parser.set_defaults(run_command=run)


def run(options: argparse.Namespace) -> int:
    """Show the tasks, or check them; returns the exit code."""
    from tdmpc2.envs.make import why_unavailable

    tasks = [get_task(name) for name in expand_tasks(",".join(options.names) or "all", "tasks")]
    lacking = {task.name: why_unavailable(task.name) for task in tasks}
    if options.available:
        tasks = [task for task in tasks if not lacking[task.name]]
    return _check(tasks, lacking) if options.check else _show(tasks, lacking)


def _show(tasks: Sequence[Task], lacking: dict[str, str]) -> int:
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)  # in a file or pipe there is room
    table = Table(title=f"{len(tasks)} tasks; episode length in agent steps")
    for name in ("task", "domain", "obs", "action", "episode", "metric", "mt30", "mt80", "available"):
        table.add_column(
            name, no_wrap=name == "task", justify="right" if name in ("obs", "action", "episode") else "left"
        )
    for task in tasks:
        table.add_row(
            task.name,
            task.domain,
            "?" if task.obs_dim is None else str(task.obs_dim),
            str(task.action_dim),
            str(task.episode_length),
            task.metric,
            "" if task.mt30_id is None else "yes",
            "" if task.mt80_id is None else "yes",
            "no" if lacking[task.name] else "yes",
        )
    console.print(table)
    _notes(console, "not available", {task.name: lacking[task.name] for task in tasks})
    _notes(console, "not as in the published results", {task.name: caveat(task) for task in tasks})
    return 0


def _notes(console: Console, title: str, notes: dict[str, str]) -> None:
    """Notes, those that several tasks share told once."""
    shared: dict[str, list[str]] = {}
    for name, note in notes.items():
        if note:
            shared.setdefault(note, []).append(name)
    for note, names in shared.items():
        which = ", ".join(names) if len(names) <= 4 else f"{len(names)} tasks ({names[0]}, ..., {names[-1]})"
        console.print(f"{title}: {which}: {note}", highlight=False, soft_wrap=True)


def _check(tasks: Sequence[Task], lacking: dict[str, str]) -> int:
    """Build, reset and step every task that is there; a line for each, the failed ones at the end again."""
    failed: dict[str, str] = {}
    there = [task for task in tasks if not lacking[task.name]]
    for place, task in enumerate(there, 1):
        try:
            fault = check_task(task.name)
        except Exception as error:  # a broken simulator may raise anything, and the other tasks are to be checked too
            fault = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if fault:
            failed[task.name] = fault
        print(f"{place:3}/{len(there)} {task.name}: {fault or 'ok'}", flush=True)
    console = Console(soft_wrap=True)
    console.print(f"{len(there) - len(failed)} of {len(tasks)} tasks run here", highlight=False)
    _notes(console, "not available", {task.name: lacking[task.name] for task in tasks})
    for name, fault in failed.items():
        print(f"failed: {name}: {fault}", file=sys.stderr)
    return EXIT_FAILED if failed else 0


def check_task(name: str) -> str:
    """Build a task's environment and play three short episodes: one, another from another seed, the first again.

    Dims other than the registry's, the environment itself refuses.

    Returns:
        what is wrong, "" if nothing is: observations of another shape, numbers that are not finite, no verdict on
        success, or a repeated episode that is not the same.

    Raises:
        Exception: whatever the simulator raises.
    """
    import numpy as np

    from tdmpc2.envs.make import make_env

    env = make_env(name, seed=1)
    try:
        actions = [env.action_space.sample() for _ in range(CHECK_STEPS)]
        episodes = []
        for seed in (7, 8, 7):
            obs, _ = env.reset(seed=seed)
            numbers = [obs]
            for action in actions:
                obs, reward, terminated, truncated, info = env.step(action)
                numbers += [obs, np.array([reward])]
                if terminated or truncated:
                    break
            episodes.append(np.concatenate(numbers))
        if obs.shape != env.observation_space.shape:
            return f"an observation of shape {obs.shape}, not {env.observation_space.shape}"
        if not np.isfinite(np.concatenate(episodes)).all():
            return "observations or rewards are not finite"
        if get_task(name).metric == "success" and info["success"] not in (0.0, 1.0):
            return f"success is {info['success']}, neither 0 nor 1"
        if not np.array_equal(episodes[0], episodes[2]):
            return "the same seed and actions gave other observations or rewards"
        return ""
    finally:
        env.close()
