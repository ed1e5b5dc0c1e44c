"""Tasks of people's own: any Gymnasium environment as `gym:ID`, and tasks that a Python file or a package registers.

    from tdmpc2.own_tasks import register_task

    register_task("hopper-far", "Hopper-v5", score_range=(0, 3500), embodiment="hopper", objective="hop")

Such a file is given as `tasks_file=FILE`. Loading it runs its code; that is done where a person names it, in a command
or a sweep's declaration, and in the processes that train it. Reading a run's folder runs nothing: what must be known of
its own tasks stands in its `tasks.json`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pydantic

from tdmpc2.errors import UserError, nearest, require, unknown_name
from tdmpc2.tasks import OWN, TASK_SETS, TASKS, Metric, Task, enter_task

if TYPE_CHECKING:
    from collections.abc import Iterator

    import gymnasium

    GymEnv = gymnasium.Env[Any, Any]

GYM = "gym:"
"""What the names of tasks begin with that are a Gymnasium environment, as it is."""
ENTRY_POINTS = "tdmpc2.tasks"
"""The entry points by which an installed package registers tasks."""
DEFAULT_ENV_STEPS = 1_000_000
"""Budget of an own task, for which there is no published one."""
SUCCESS_KEYS = ("success", "is_success")
"""Where an environment's info may tell success."""
_ORDINARY = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


@dataclasses.dataclass(frozen=True)
class OwnTask:
    """A task as it was registered, its environment not built yet; see `register_task`."""

    name: str
    make: Callable[[int], GymEnv] | str
    metric: Metric = "return"
    score_range: tuple[float, float] | None = None
    episode_length: int | None = None
    action_repeat: int = 1
    embodiment: str = ""
    objective: str = ""
    origin: str = ""
    """The file that registered it; "" where it was another piece of code."""


_registered: dict[str, OwnTask] = {}
_loaded_files: set[str] = set()
_file_being_loaded = ""


def register_task(
    name: str,
    make: Callable[[int], GymEnv] | str,
    *,
    metric: Metric = "return",
    score_range: tuple[float, float] | None = None,
    episode_length: int | None = None,
    action_repeat: int = 1,
    embodiment: str = "",
    objective: str = "",
) -> None:
    """Make an environment known as a task. It is built when the task is first asked for.

    Args:
        name: the task's name; letters, digits, `-`, `_` and `.`.
        make: what builds the environment from a seed, or the id of a registered Gymnasium environment. Observations
            and actions must be flat boxes, those of the actions bounded. `reset(seed=)` must make an episode a function
            of the seed.
        metric: what the task is scored by: `return`, or `success`, that of the episode's last step, which `info` must
            then tell as `success` or `is_success`.
        score_range: values of the metric that the normalised scores 0 and 100 stand for. Without it success goes from 0
            to 1, and returns have no normalised score.
        episode_length: agent steps in an episode. Default: from the environment's own limit (`spec.max_episode_steps`).
        action_repeat: steps of the environment for one agent step; their rewards are summed.
        embodiment: label of what decides the dynamics, e.g. `walker`; it may be one of the registry's. Default: name.
        objective: label of what is to be achieved, e.g. `run`. Default: name.

    Raises:
        UserError: a value is not valid, or the name is taken; names the field.
    """
    require(isinstance(name, str) and name != "", "name: missing")
    where = name
    ordinary = set(name) <= _ORDINARY and name[0] not in "-."
    require(ordinary, f"{where}: name: letters, digits, '-', '_' and '.' only, the first a letter or digit")
    require(callable(make) or (isinstance(make, str) and make != ""), f"{where}: make: neither a function nor an id")
    if metric not in get_args(Metric):
        raise unknown_name("metric", str(metric), get_args(Metric), f"{where}: metric")
    if score_range is None and metric == "success":
        score_range = (0.0, 1.0)
    if score_range is not None:
        score_range = _checked_range(score_range, where)
    for field, value in (("action_repeat", action_repeat), ("episode_length", episode_length)):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        optional = field == "episode_length" and value is None
        require(whole or optional, f"{where}: {field}: {value!r} is not a whole number of at least 1")
    for field, text in (("embodiment", embodiment), ("objective", objective)):
        require(isinstance(text, str), f"{where}: {field}: {text!r} is not a text")
    if name in _registered:
        by = f" by {_registered[name].origin}" if _registered[name].origin else ""
        raise UserError(f"{where}: name: registered already{by}")
    # One that a run's folder told of may be in TASKS: the registered one replaces it when it is built.
    taken = name in TASK_SETS or (name in TASKS and TASKS[name].domain != OWN)
    require(not taken, f"{where}: name: taken by a task or task set of the registry")
    _registered[name] = OwnTask(
        name, make, metric, score_range, episode_length, action_repeat, embodiment or name, objective or name,
        _file_being_loaded,
    )  # fmt: skip
    if name in TASKS:
        enter_task(_measure(_registered[name]))


def _checked_range(given: Any, where: str) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in given)
    except (TypeError, ValueError):
        raise UserError(f"{where}: score_range: {given!r} is not a pair of numbers (low, high)") from None
    require(math.isfinite(low) and math.isfinite(high) and low < high, f"{where}: score_range: needs low < high")
    return low, high


# --- files and packages that register tasks


def load_tasks_file(path: str | Path) -> None:
    """Run a Python file that registers tasks; once in a process, however often it is asked for.

    Raises:
        UserError: there is no such file, its code fails, or it registers no task; names the file.
    """
    file = Path(path).resolve()
    if str(file) in _loaded_files:
        return
    require(file.is_file(), f"tasks_file: {path}: no such file")
    # A name of its own, the same in every process, so that pickle finds again what the file defines.
    name = "tdmpc2_tasks_" + hashlib.sha256(str(file).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(name, file)
    require(spec is not None and spec.loader is not None, f"tasks_file: {path}: not a Python file (.py)")
    assert spec is not None  # for the type checker
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = set(_registered)
    sys.modules[name] = module
    try:
        with _loading(str(file)):
            spec.loader.exec_module(module)
        require(set(_registered) != before, "registers no task; call tdmpc2.own_tasks.register_task in it")
    except Exception as error:  # the file is the user's own, and may raise anything
        del sys.modules[name]
        for added in set(_registered) - before:
            del _registered[added]
        raise UserError(f"{path}: {_told(error, str(file))}") from error
    _loaded_files.add(str(file))


@contextmanager
def _loading(file: str) -> Iterator[None]:
    global _file_being_loaded
    outer, _file_being_loaded = _file_being_loaded, file
    try:
        yield
    finally:
        _file_being_loaded = outer


def _told(error: Exception, file: str) -> str:
    """A fault of a user's file in one line, with the line it lies in."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    place = "" if line is None else f"line {line}: "
    return place + (str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")


@functools.cache
def _load_entry_points() -> None:
    """Let installed packages register their tasks; once in a process, when a task is not known otherwise."""
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            found = point.load()
            if inspect.isroutine(found):  # else a module, which has registered its tasks by now
                found()
        except Exception as error:  # another package's code may raise anything
            raise UserError(
                f"the package that registers tasks by entry point {ENTRY_POINTS}: {point.name} = {point.value} fails "
                f"({type(error).__name__}: {error})"
            ) from error


# --- tasks of the registry's form


def find_task(name: str) -> Task | None:
    """The own task of that name, entered in `TASKS`; None where nothing registers it.

    Raises:
        UserError: it cannot be built, or is of no use to an agent here; says why.
    """
    if name.startswith(GYM):
        own = _gymnasium_task(name)
    else:
        if name not in _registered:
            _load_entry_points()
        if name not in _registered:
            return None
        own = _registered[name]
    task = _measure(own)
    enter_task(task)
    return task


def registered_names() -> tuple[str, ...]:
    """Names of the tasks that files, packages and other code have registered so far."""
    return tuple(_registered)


def tasks_file_of(name: str) -> str | None:
    """The file that registered a task here, for a process that is to build it too; None for all other tasks."""
    return _registered[name].origin or None if name in _registered else None


def why_unavailable(task: Task) -> str:
    """Why the environment of an own task cannot be built here; "" where nothing is known to be lacking."""
    if task.name in _registered or task.name.startswith(GYM):
        return ""
    _load_entry_points()
    if task.name in _registered:
        return ""
    return f"the code that defines it has not been loaded; name its file: tasks_file={task.backend or 'FILE.py'}"


def build_env(name: str, seed: int) -> GymEnv:
    """The environment of an own task as it is, without any wrapper of this project.

    Raises:
        UserError: it cannot be built, or a package it needs is not installed.
    """
    return _build(_gymnasium_task(name) if name.startswith(GYM) else _registered[name], seed)


def _gymnasium_task(name: str) -> OwnTask:
    """The task that a Gymnasium environment makes as it is. Its labels are its id without the version."""
    env_id = name.removeprefix(GYM)
    label = env_id.rpartition("-v")[0] or env_id
    return OwnTask(name, env_id, embodiment=label, objective=label)


def _build(own: OwnTask, seed: int) -> GymEnv:
    import gymnasium

    try:
        made = _make_by_id(own, own.make) if isinstance(own.make, str) else own.make(seed)
    except UserError:
        raise
    except Exception as error:  # a simulator's or a user's code may raise anything
        lacks = isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled)
        what = "needs a package that is not installed" if lacks else "cannot be built"
        at = f"{own.origin}: {_told(error, own.origin)}" if own.origin else f"{type(error).__name__}: {error}"
        raise UserError(f"{own.name}: {what}: {at}") from error
    if not isinstance(made, gymnasium.Env):
        raise UserError(f"{own.name}: make: gave a {type(made).__name__}, not a gymnasium.Env")
    return made


def _make_by_id(own: OwnTask, env_id: str) -> GymEnv:
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    if env_id not in gymnasium.registry:
        match = nearest(env_id, gymnasium.registry)
        prefix = GYM if own.name.startswith(GYM) else ""
        hint = f"did you mean {prefix}{match}?" if match else "see gymnasium.pprint_registry()"
        raise UserError(
            f"{own.name}: no Gymnasium environment is registered as {env_id!r}; {hint} One of a package that "
            "registers its environments when it is imported needs a tasks file that imports it"
        )
    entry = gymnasium.spec(env_id).entry_point
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    films = "rgb_array" in (getattr(creator, "metadata", None) or {}).get("render_modes", ())
    # The checker warns of what is checked here, or is the environment's own affair.
    return gymnasium.make(env_id, render_mode="rgb_array" if films else None, disable_env_checker=True)


def _measure(own: OwnTask) -> Task:
    """Build the environment once, and read off what an agent must know of it."""
    env = _build(own, seed=0)
    where = own.name
    try:
        obs_dim = _flat_length(env.observation_space, f"{where}: observation")
        action_dim = _flat_length(env.action_space, f"{where}: action")
        bounds = env.action_space
        bounded = getattr(bounds, "is_bounded", lambda: False)()
        require(bounded, f"{where}: action: {bounds} has no bounds that actions in [-1, 1] could be scaled to")
        limit = None if env.spec is None else env.spec.max_episode_steps
        if own.metric == "success":
            _require_success(env, where)
    finally:
        env.close()
    length = own.episode_length
    if length is None:
        if limit is None:
            raise UserError(
                f"{where}: its environment has no time limit (max_episode_steps); give it one by register_task(..., "
                "episode_length=STEPS) in a tasks file (tasks_file=FILE)"
            )
        length = math.ceil(limit / own.action_repeat)
    return Task(
        name=own.name,
        domain=OWN,
        backend=own.origin or (own.make if isinstance(own.make, str) else ""),
        obs_dim=obs_dim,
        action_dim=action_dim,
        action_repeat=own.action_repeat,
        episode_length=length,
        metric=own.metric,
        mt30_id=None,
        mt80_id=None,
        paper_env_steps=DEFAULT_ENV_STEPS,
        random_return=None,
        embodiment=own.embodiment,
        objective=own.objective,
        score_range=own.score_range,
    )


def _flat_length(space: gymnasium.Space[Any], where: str) -> int:
    from gymnasium.spaces import Box

    if not isinstance(space, Box):
        kind = type(space).__name__
        hint = (
            "discrete actions cannot be planned by MPPI, which samples vectors"
            if kind in ("Discrete", "MultiDiscrete", "MultiBinary")
            else "flatten it by gymnasium.wrappers.FlattenObservation, in a tasks file"
            if kind in ("Dict", "Tuple")
            else "the agent takes vectors"
        )
        raise UserError(f"{where}: its space is {kind}, not a flat Box; {hint}")
    require(
        len(space.shape) == 1 and space.shape[0] > 0,
        f"{where}: its space has the shape {space.shape}, not that of a vector; flatten it in a tasks file",
    )
    return int(space.shape[0])


def _require_success(env: GymEnv, where: str) -> None:
    env.reset(seed=0)
    env.action_space.seed(0)
    info = env.step(env.action_space.sample())[4]
    if not any(key in info for key in SUCCESS_KEYS):
        told = ", ".join(map(str, info)) or "nothing"
        raise UserError(f"{where}: metric: success, but its info tells neither success nor is_success ({told})")


# --- what a run's folder tells of own tasks

RECORD = "tasks.json"
"""File that tells of own tasks, in the folder of a run, a sweep or a data set."""
_RECORD = pydantic.TypeAdapter(list[Task])


def record_of(names: Iterable[str]) -> str:
    """The content of a `tasks.json`: the own tasks among these, as they stand in `TASKS`; "" where there are none."""
    own = [dataclasses.asdict(TASKS[name]) for name in dict.fromkeys(names) if TASKS[name].domain == OWN]
    return json.dumps(own, indent=1) if own else ""


def read_record(file: Path) -> tuple[Task, ...]:
    """The own tasks that a `tasks.json` tells of; none where there is no such file. Runs no code.

    Raises:
        UserError: it is damaged, or tells of a task that is no own one; names the file.
    """
    try:
        tasks = _RECORD.validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, pydantic.ValidationError) as error:
        raise UserError(f"{file}: cannot be read ({str(error).splitlines()[0]})") from None
    for task in tasks:
        taken = task.name in TASKS and TASKS[task.name].domain != OWN
        require(task.domain == OWN and not taken, f"{file}: {task.name} is not a task of one's own")
    return tuple(tasks)


def enter_record(file: Path) -> list[str]:
    """Enter the own tasks of a `tasks.json` in `TASKS`, but for those that stand there already.

    Returns:
        which of those that stand there are otherwise, one message each.

    Raises:
        UserError: as `read_record`.
    """
    messages = []
    for task in read_record(file):
        if task.name not in TASKS:
            enter_task(task)
        else:
            changes = differences(task, TASKS[task.name])
            if changes:
                messages.append(f"{file.name}: {task.name} is another task of that name elsewhere ({changes})")
    return messages


def differences(there: Task, now: Task) -> str:
    """How two tasks of one name differ in what decides a run's results or scores; "" where they do not."""
    fields = "obs_dim action_dim action_repeat episode_length metric score_range".split()
    changed = [f for f in fields if getattr(there, f) != getattr(now, f)]
    return "; ".join(f"{f}={getattr(there, f)} there, {f}={getattr(now, f)} now" for f in changed)
