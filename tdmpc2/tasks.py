"""The 104 tasks and the task sets, as data."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Literal

from tdmpc2.errors import unknown_name

Metric = Literal["return", "success"]
DOMAINS = ("dmcontrol", "metaworld", "maniskill", "myosuite")


@dataclass(frozen=True)
class Task:
    """One task of the registry."""

    name: str
    """Name in the published results, e.g. `walker-walk`."""
    domain: str
    """One of `DOMAINS`."""
    backend: str
    """The simulator package's own id."""
    obs_dim: int | None
    """Length of the state observation; None where it could not be read off a running environment."""
    action_dim: int
    """Length of the action."""
    action_repeat: int
    """Control steps of the simulator for one agent step (rewards summed)."""
    episode_length: int
    """Agent steps in an episode."""
    metric: Metric
    """What the task is scored by."""
    mt30_id: int | None
    """Index in the task set mt30."""
    mt80_id: int | None
    """Index in the task set mt80."""
    paper_env_steps: int
    """The paper's training budget in environment steps."""
    random_return: float | None
    """Mean return of a random policy over ten episodes, where measured."""

    @property
    def score_scale(self) -> float:
        """Factor from the metric to the normalised score of 0 to 100: return / 10, success x 100."""
        return 0.1 if self.metric == "return" else 100.0


def _read_registry() -> dict[str, Task]:
    def optional(text: str) -> int | None:
        return int(text) if text else None

    tasks = {}
    with resources.files("tdmpc2").joinpath("tasks.csv").open() as file:
        for row in csv.DictReader(file):
            metric: Metric = "success" if row["metric"] == "success" else "return"
            tasks[row["task"]] = Task(
                name=row["task"],
                domain=row["domain"],
                backend=row["backend"],
                obs_dim=optional(row["obs_dim"]),
                action_dim=int(row["action_dim"]),
                action_repeat=int(row["action_repeat"]),
                episode_length=int(row["episode_agent_steps"]),
                metric=metric,
                mt30_id=optional(row["mt30_id"]),
                mt80_id=optional(row["mt80_id"]),
                paper_env_steps=int(row["paper_env_steps"]),
                random_return=float(row["random_return"]) if row["random_return"] else None,
            )
    return tasks


TASKS: Mapping[str, Task] = MappingProxyType(_read_registry())
"""All tasks by name."""


def _read_sets() -> dict[str, tuple[str, ...]]:
    def ordered(ids: dict[str, int | None]) -> tuple[str, ...]:
        present = {name: index for name, index in ids.items() if index is not None}
        return tuple(sorted(present, key=present.__getitem__))

    sets = {domain: tuple(t.name for t in TASKS.values() if t.domain == domain) for domain in DOMAINS}
    sets["mt30"] = ordered({t.name: t.mt30_id for t in TASKS.values()})
    sets["mt80"] = ordered({t.name: t.mt80_id for t in TASKS.values()})
    sets["all"] = tuple(TASKS)
    return sets


TASK_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(_read_sets())
"""Task sets by name: mt30 and mt80 in the order of their ids, each domain, and all 104."""


def get_task(name: str, where: str = "") -> Task:
    """The task called `name`.

    Args:
        name: a task's name.
        where: the file or option it was read from, for the message.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS, where)
    return TASKS[name]


def expand_tasks(names: str | tuple[str, ...], where: str = "") -> tuple[str, ...]:
    """Task names from names of tasks and task sets, in order, each once.

    Args:
        names: one name, a comma-separated list, or a tuple of names.
        where: the file or option they were read from, for the message.

    Raises:
        UserError: a name is neither a task nor a task set; names the nearest.
    """
    parts = names.split(",") if isinstance(names, str) else names
    expanded: dict[str, None] = {}
    for part in parts:
        name = part.strip()
        if name in TASK_SETS:
            expanded.update(dict.fromkeys(TASK_SETS[name]))
        elif name in TASKS:
            expanded[name] = None
        else:
            raise unknown_name("task", name, [*TASKS, *TASK_SETS], where)
    return tuple(expanded)
