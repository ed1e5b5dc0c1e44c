"""The 104 tasks and the task sets, as data, and the place where people's own tasks are entered.

Every task has two labels, for research on what makes tasks alike: does the similarity of task embeddings follow the
dynamics, or what is to be achieved?

* `embodiment` is what decides the dynamics: the body, and the object that it must move. A reacher with a third link, or
  the same arm with a drawer in place of a door, is another embodiment; an obstacle (Meta-World's walls), another
  starting state, target size or shaping of the reward is not. Objects that stand by and need not be moved do not count.
* `objective` is what the reward asks for, in words that name neither body nor object, so that bodies can share it.
  Gaits and directions are told apart (walk, run, run-backwards), since their rewards contradict one another; difficulty
  and sparseness are not. It follows the reward rather than the task's name: the fish must `reach` a target, a lock is
  to be brought to its closed state (`close`), a plate slid out of the cabinet is a `pull`, a peg unplugged a `remove`.

So two tasks that share both labels differ in difficulty, layout or shaping alone, and comparisons take pairs that share
exactly one of the two.

Own tasks, and Gymnasium's by `gym:ID`, are no part of the file; see `tdmpc2.own_tasks`. They join `TASKS` when they are
first asked for.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Literal

from tdmpc2.errors import UserError, unknown_name

Metric = Literal["return", "success"]
DOMAINS = ("dmcontrol", "metaworld", "maniskill", "myosuite")
"""The benchmark suites of the 104 tasks."""
OWN = "own"
"""The domain of people's own tasks."""


@dataclass(frozen=True)
class Task:
    """One task of the registry."""

    name: str
    """Name in the published results, e.g. `walker-walk`."""
    domain: str
    """One of `DOMAINS`, or `OWN`."""
    backend: str
    """The simulator package's own id; of own tasks, the Gymnasium id or the file that defines it."""
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
    """The paper's training budget in environment steps; of own tasks, the default one."""
    random_return: float | None
    """Mean return of a random policy over ten episodes, where measured."""
    embodiment: str
    """What decides the dynamics, e.g. `walker` or `sawyer-door`; see the module's description."""
    objective: str
    """What is to be achieved, whichever the body, e.g. `run` or `open`; see the module's description."""

    score_range: tuple[float, float] | None = None
    """Values of the metric that the normalised scores 0 and 100 stand for; None where none is known."""

    @property
    def score_scale(self) -> float:
        """Factor from differences of the metric to those of the normalised score, in the registry 0.1 for returns and
        100 for success; NaN without a range."""
        return math.nan if self.score_range is None else 100.0 / (self.score_range[1] - self.score_range[0])

    @property
    def score_low(self) -> float:
        """The metric's value where the normalised score is 0; NaN without a range."""
        return math.nan if self.score_range is None else self.score_range[0]

    def score(self, value: float) -> float:
        """The normalised score, 0 to 100 over the range, of a value of the metric; NaN without a range."""
        return (value - self.score_low) * self.score_scale


def file_name(tasks: str) -> str:
    """Names of tasks as part of a file's name: not all systems take the colon of `gym:Walker2d-v5`."""
    return tasks.replace(":", "-").replace("/", "-")


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
                embodiment=row["embodiment"],
                objective=row["objective"],
                score_range=(0.0, 1.0) if metric == "success" else (0.0, 1000.0),
            )
    return tasks


_tasks = _read_registry()
TASKS: Mapping[str, Task] = MappingProxyType(_tasks)
"""All tasks by name: the 104, then those of people's own that this process knows so far."""


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


def enter_task(task: Task) -> None:
    """Let a task of people's own stand in `TASKS`, in place of an own one of that name.

    Raises:
        UserError: the name is one of the 104, or a task set's.
    """
    if task.name in TASK_SETS or (task.name in TASKS and TASKS[task.name].domain != OWN):
        raise UserError(f"name: {task.name!r} is taken, by a task or task set of the registry")
    _tasks[task.name] = task


_METAWORLD = (
    "published results: V2 environments on MuJoCo 2.1; here: V3 with V2's reward, the gripper's opening measured "
    "between other points"
)
_MYOSUITE = (
    "published results: an older release, with two thumb joints the other way round and slightly other reach and pose "
    "dynamics"
)
_PARTICULAR = {
    "mw-handle-pull": "a bonus of the reward reads another coordinate",
    "mw-button-press-topdown": "success within 0.024 instead of 0.02",
    "mw-button-press-topdown-wall": "success within 0.024 instead of 0.02",
    "mw-disassemble": "another range of starting positions",
    "mw-door-close": "another range of starting positions",
}


def caveat(task: Task) -> str:
    """How the simulator here differs from that of a task's published results; "" where no difference is known."""
    general = {"metaworld": _METAWORLD, "myosuite": _MYOSUITE}.get(task.domain, "")
    return "; ".join(part for part in (general, _PARTICULAR.get(task.name, "")) if part)


def get_task(name: str, where: str = "") -> Task:
    """The task called `name`. An own one that is asked for the first time is looked for, and built once.

    Args:
        name: a task's name.
        where: the file or option it was read from, for the message.

    Raises:
        UserError: there is none; names the nearest. Or it is an own task that cannot be built, or is of no use.
    """
    if name in TASKS:
        return TASKS[name]
    from tdmpc2 import own_tasks

    try:
        task = own_tasks.find_task(name)
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error
    if task is None:
        raise unknown_name("task", name, [*TASKS, *TASK_SETS, *own_tasks.registered_names()], where)
    return task


def expand_tasks(names: str | tuple[str, ...], where: str = "") -> tuple[str, ...]:
    """Task names from names of tasks and task sets, in order, each once.

    Args:
        names: one name, a comma-separated list, or a tuple of names.
        where: the file or option they were read from, for the message.

    Raises:
        UserError: a name is neither a task nor a task set; names the nearest. Or as `get_task`.
    """
    parts = names.split(",") if isinstance(names, str) else names
    expanded: dict[str, None] = {}
    for part in parts:
        name = part.strip()
        if name in TASK_SETS:
            expanded.update(dict.fromkeys(TASK_SETS[name]))
        else:
            expanded[get_task(name, where).name] = None
    return tuple(expanded)


def nearest_task(name: str, candidates: Iterable[str]) -> str:
    """The task among `candidates` that is most like another one, by the labels of both.

    It is the task itself, else one of the same embodiment, else one of the same objective (of the same domain, where
    there is one). Among several the one with the most similar name wins; of equally similar ones that of the same
    objective, then the first.

    Args:
        name: a task's name.
        candidates: names of tasks.

    Raises:
        UserError: a name is unknown, or no candidate shares embodiment or objective with the task.
    """
    task, others = get_task(name), [get_task(candidate) for candidate in candidates]

    def likeness(other: Task) -> tuple[bool, bool, bool, float, bool]:
        same_body, same_objective = other.embodiment == task.embodiment, other.objective == task.objective
        similar = difflib.SequenceMatcher(None, other.name, name, autojunk=False).ratio()
        return other.name == name, same_body, other.domain == task.domain, similar, same_objective

    related = [other for other in others if other.embodiment == task.embodiment or other.objective == task.objective]
    if not related:
        raise UserError(
            f"no task like {name} (embodiment {task.embodiment}, objective {task.objective}) among "
            f"{', '.join(other.name for other in others[:8])}{', ...' if len(others) > 8 else ''}; "
            "choose embedding_from=mean, or the TASK to start from"
        )
    return max(related, key=likeness).name
