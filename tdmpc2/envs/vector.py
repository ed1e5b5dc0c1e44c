"""Several environments stepped together, in this process or in worker processes that hold several each."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from tdmpc2.envs.make import Env, make_env
from tdmpc2.envs.padding import check_fits, pad_env
from tdmpc2.errors import UserError
from tdmpc2.own_tasks import load_tasks_file, tasks_file_of
from tdmpc2.spec import FRAME_SHAPE, ObsKind
from tdmpc2.tasks import get_task

Array = NDArray[Any]
Step = tuple[Array, Array, Array, Array, dict[str, Any]]

CLOSE_SECONDS = 5.0
"""How long workers are given to end, each time they are asked more firmly."""


class WorkerDiedError(ConnectionResetError):
    """A process that environments run in has ended by itself; the message says how."""


@dataclass(frozen=True)
class _EnvBuilder:
    """Builds one environment, here or in a worker process."""

    name: str
    seed: int
    obs: ObsKind
    shape: tuple[int, int] | None
    """Lengths of observation and action to pad to; None leaves the environment as it is."""
    tasks_file: str | None
    """What registers the task, where it is an own one: a worker process must load it too."""

    def __call__(self) -> Env:
        if self.tasks_file is not None:
            load_tasks_file(self.tasks_file)
        env = make_env(self.name, self.seed, self.obs)
        return env if self.shape is None else pad_env(env, self.shape, self.name, self.seed)


def make_vector_env(
    names: Sequence[str],
    seeds: Sequence[int],
    obs: ObsKind = "state",
    parallel: bool = False,
    workers: int | None = None,
    shape: tuple[int, int] | None = None,
    take_part: bool = False,
) -> VectorEnv:
    """Environments stepped together, in one shape: those of smaller tasks are padded.

    State observations are zero-padded on the right; actions are given padded, and an environment sees its own dims
    alone. An environment that has the common shape already is left as it is. Pixels are not padded.

    Nothing resets by itself. The caller resets the episodes that ended, each with a seed of its own:

        seeds = [...]  # one an environment; those of environments that go on are not used
        obs, info = env.reset(seed=seeds, options={"reset_mask": terminated | truncated})

    Gymnasium takes the mask out of `options`, so pass a new dict each time. `info["success"]` (num_envs,) is there
    after every step, the last one of an episode included. Where an exception broke off a step of parallel
    environments, close them with `close(terminate=True)`.

    Args:
        names: one task an environment.
        seeds: one construction seed an environment, in [0, 2**32).
        obs: kind of observation.
        parallel: step the environments in worker processes, see `ProcessVectorEnv`. The processes come from a fork
            server, not from a fork of this process, whose torch threads or OpenGL contexts would not survive it; so a
            script that calls this needs the usual `if __name__ == "__main__":`.
        workers: how many processes, where parallel; by default one for each environment.
        shape: lengths of observation and action, those of the agent that acts; by default the tasks' largest. States
            only.
        take_part: whether this process is one of the workers, see `ProcessVectorEnv`.

    Raises:
        UserError: a task does not fit into the shape, pixel tasks differ in their actions, names and seeds differ in
            length, or as `make_env`.
    """
    if not names or len(names) != len(seeds):
        raise UserError(f"make_vector_env: {len(names)} names and {len(seeds)} seeds; give one seed for each name")
    padded = _common_shape(names, obs, shape)
    builders = [
        _EnvBuilder(name, seed, obs, padded, tasks_file_of(name)) for name, seed in zip(names, seeds, strict=True)
    ]
    if parallel:
        return ProcessVectorEnv(builders, len(builders) if workers is None else workers, take_part)
    return SyncVectorEnv(builders, autoreset_mode=AutoresetMode.DISABLED)


def _common_shape(names: Sequence[str], obs: ObsKind, shape: tuple[int, int] | None) -> tuple[int, int] | None:
    """Lengths of observation and action to pad to; None where nothing is padded."""
    tasks = {name: get_task(name) for name in names}.values()
    if obs != "state":
        dims = {task.action_dim: task.name for task in tasks}
        if shape is not None or len(dims) > 1:
            found = "; ".join(f"{name}: observation {FRAME_SHAPE}, action ({dim},)" for dim, name in dims.items())
            raise UserError(f"tasks of different shapes can be stepped together with obs=state alone: {found}")
        return None
    if shape is None and len({(task.obs_dim, task.action_dim) for task in tasks}) == 1:
        return None
    unknown = [task.name for task in tasks if task.obs_dim is None]
    if shape is None and unknown:
        raise UserError(f"observation length not in the registry, so nothing can be padded to it: {', '.join(unknown)}")
    largest = max(task.obs_dim or 0 for task in tasks), max(task.action_dim for task in tasks)
    for task in tasks:
        check_fits(task.name, (task.obs_dim or 0, task.action_dim), shape or largest)
    return shape or largest


class ProcessVectorEnv(VectorEnv[Array, Array, Array]):
    """Environments in worker processes that hold several each; for the rest as Gymnasium's `AsyncVectorEnv`.

    Gymnasium's has a process for each environment: with hundreds of them, hundreds of copies of the simulator for a
    few cores. A worker here is a `SyncVectorEnv`. Worker w of W has the environments w, w + W, w + 2 W, ..., so that
    neighbours, which are often of one task, are spread. Nothing resets by itself.

    The workers start at once and side by side; what goes wrong in one is raised by the next call here. After any
    error nothing is left running, and further calls raise ClosedEnvironmentError.

    Args:
        env_fns: what builds each environment; picklable, of equal spaces. The first is called in this process too, to
            learn them.
        workers: number of processes, at least one; never more than environments.
        take_part: whether this process is the first of them. Where it has nothing to do between `step_async` and
            `step_wait`, that saves a process, and the time to wake it up and to wait for it; its share is stepped in
            `step_wait`.

    Raises:
        WorkerDiedError: (from every call) a worker has ended by itself.
    """

    def __init__(self, env_fns: Sequence[Callable[[], Env]], workers: int, take_part: bool = False) -> None:
        workers = max(1, min(workers, len(env_fns)))
        self._rows = [slice(worker, None, workers) for worker in range(workers)]
        self._owing = list(range(workers))  # the workers that owe an answer; the first says that it is built
        self._stepping = False
        self.processes: list[BaseProcess] = []
        self._ends: list[Connection | _OwnShare] = [_OwnShare(env_fns[self._rows[0]])] if take_part else []
        """Where each worker is spoken to."""
        context = multiprocessing.get_context("forkserver")
        for worker in range(len(self._ends), workers):
            end, far_end = context.Pipe()
            arguments = (far_end, env_fns[self._rows[worker]])
            process = context.Process(target=_work, args=arguments, name=f"environments-{worker}", daemon=True)
            self._ends.append(end)
            self.processes.append(process)
            process.start()
            far_end.close()

        self.num_envs = len(env_fns)
        first = env_fns[0]()
        self.metadata = {**first.metadata, "autoreset_mode": AutoresetMode.DISABLED}
        self.render_mode = first.render_mode
        self.single_observation_space, self.single_action_space = first.observation_space, first.action_space
        first.close()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        shape, dtype = self.observation_space.shape, self.observation_space.dtype
        self._observations: Array = np.zeros(shape or (), dtype)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin episodes. A step under way is waited for, and its outcome lost.

        Args:
            seed: one an environment, or that of the first, which the others count on from.
            options: the environments' own, and `reset_mask` (num_envs,): which of them are reset, by default all.

        Returns:
            the observations of all environments, and the infos of those that were reset.
        """
        if self._stepping:
            self.step_wait()
        self._require_idle("reset")
        options = None if options is None else dict(options)
        mask: Array | None = options.pop("reset_mask", None) if options else None
        if isinstance(seed, int):
            seed = range(seed, seed + self.num_envs)
        for worker, rows in enumerate(self._rows):
            arguments: dict[str, Any] = {"options": options}
            if mask is not None:
                if not mask[rows].any():
                    continue
                arguments["options"] = {**(options or {}), "reset_mask": mask[rows]}
            if seed is not None:
                arguments["seed"] = list(seed[rows])
            self._send(worker, "reset", arguments)
        infos: dict[str, Any] = {}
        for worker, (observations, info) in self._answers():
            self._observations[self._rows[worker]] = observations
            self._spread(infos, info, self._rows[worker])
        return self._observations.copy(), infos

    def step(self, actions: Array) -> Step:
        """Take a step in every environment: `step_async` and `step_wait` in one."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Array) -> None:
        """Let the workers take a step, and return at once.

        Args:
            actions: (num_envs, *action shape).

        Raises:
            AlreadyPendingCallError: they are at one already.
        """
        self._require_idle("step")
        for worker, rows in enumerate(self._rows):
            self._send(worker, "step", {"actions": actions[rows]})
        self._stepping = True

    def step_wait(self) -> Step:
        """Wait for the step that `step_async` began.

        Returns:
            observations, rewards, terminated, truncated, each (num_envs, ...), and infos.

        Raises:
            NoAsyncCallError: there is none.
            Exception: what an environment raised, with a note of where.
        """
        self._require_open()
        if not self._stepping:
            raise NoAsyncCallError("step_wait: no step was begun; call step_async before it", "step")
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        infos: dict[str, Any] = {}
        for worker, (observations, *outcome, info) in self._answers():
            rows = self._rows[worker]
            self._observations[rows] = observations
            rewards[rows], terminated[rows], truncated[rows] = outcome
            self._spread(infos, info, rows)
        self._stepping = False
        return self._observations.copy(), rewards, terminated, truncated, infos

    def close_extras(self, terminate: bool = False, **kwargs: Any) -> None:
        """End the workers; it takes three times CLOSE_SECONDS at the most, whatever they are doing.

        Args:
            terminate: do not wait for what they are doing.
            kwargs: none.
        """
        for end in self._ends:
            end.close()  # a worker that waits for a command, or is about to answer, ends at this
        for stop in (None, BaseProcess.terminate, BaseProcess.kill)[terminate:]:
            alive = [process for process in self.processes if process.is_alive()]
            for process in alive:
                if stop is not None:
                    stop(process)
            deadline = time.monotonic() + CLOSE_SECONDS
            for process in alive:
                process.join(max(0.0, deadline - time.monotonic()))

    def _require_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("the environments were closed, or an error has ended them")

    def _require_idle(self, call: str) -> None:
        self._require_open()
        if self._stepping:
            raise AlreadyPendingCallError(f"{call}: a step is under way; call step_wait before it", "step")
        for _ in self._answers():  # of workers that have just started
            pass

    def _send(self, worker: int, command: str, arguments: dict[str, Any]) -> None:
        with self._all_end_with_one(worker):
            self._ends[worker].send((command, arguments))
        self._owing.append(worker)

    def _answers(self) -> Iterator[tuple[int, Any]]:
        """What the workers answer that owe an answer, with their numbers."""
        while self._owing:
            worker = self._owing.pop(0)
            with self._all_end_with_one(worker):
                well, outcome = self._ends[worker].recv()
            if not well:
                self.close(terminate=True)
                raise outcome
            yield worker, outcome

    @contextmanager
    def _all_end_with_one(self, worker: int) -> Iterator[None]:
        """End the workers if a message to or from one is broken off, by its death or by Ctrl-C here."""
        try:
            yield
        except (EOFError, OSError) as error:
            raise self._died(worker) from error
        except BaseException:  # the rest of the message would be taken for the next one
            self.close(terminate=True)
            raise

    def _died(self, worker: int) -> WorkerDiedError:
        """The error for a worker whose pipe broke; ends all."""
        process = self.processes[worker - len(self._rows)]  # the workers that are processes come last
        process.join(CLOSE_SECONDS)  # its pipe breaks a moment before it is gone
        code = process.exitcode
        self.close(terminate=True)
        how = f"exit code {code}"
        if code is not None and code < 0:
            how = f"signal {signal.Signals(-code).name}"
            how += "; the system may have run out of memory" if -code == signal.SIGKILL else ""
        return WorkerDiedError(f"environment process {worker + 1} of {len(self._rows)} died ({how})")

    def _spread(self, infos: dict[str, Any], info: dict[str, Any], rows: slice) -> None:
        """Put a worker's infos, arrays with an entry for each of its environments, where those stand among all."""
        for key, values in info.items():
            if isinstance(values, dict):
                self._spread(infos.setdefault(key, {}), values, rows)
                continue
            if key not in infos:
                empty = None if values.dtype == object else 0
                infos[key] = np.full((self.num_envs, *values.shape[1:]), empty, values.dtype)
            infos[key][rows] = values


class _Share:
    """A worker's environments, built by the first thing that it is asked for."""

    def __init__(self, env_fns: Sequence[Callable[[], Env]]) -> None:
        self._env_fns = env_fns
        self._env: SyncVectorEnv | None = None

    def answer(self, command: str, arguments: dict[str, Any]) -> tuple[bool, Any]:
        """Whether all is well, and the outcome of a command or what was raised; of no command, none."""
        try:
            if self._env is None:
                self._env = SyncVectorEnv(self._env_fns, copy=False, autoreset_mode=AutoresetMode.DISABLED)
            return True, getattr(self._env, command)(**arguments) if command else None
        except Exception as error:  # whatever it is, the owner raises it
            return False, error

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


class _OwnShare(_Share):
    """The share that the owner steps itself: spoken to like a worker, it does as it was told when it is listened to."""

    def __init__(self, env_fns: Sequence[Callable[[], Env]]) -> None:
        super().__init__(env_fns)
        self._told: tuple[str, dict[str, Any]] = ("", {})

    def send(self, told: tuple[str, dict[str, Any]]) -> None:
        self._told = told

    def recv(self) -> tuple[bool, Any]:
        return self.answer(*self._told)


def _work(pipe: Connection, env_fns: Sequence[Callable[[], Env]]) -> None:
    """A worker's life: an answer once it is built, and one for each command after that."""
    # Ctrl-C reaches every process of the terminal. The owner answers it, with its workers still there.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    share = _Share(env_fns)
    command: str = ""
    arguments: dict[str, Any] = {}
    with suppress(EOFError, OSError):  # of the pipe: the owner has closed its end, or is gone
        while True:
            well, outcome = share.answer(command, arguments)
            pipe.send((well, outcome if well else _portable(outcome)))
            command, arguments = pipe.recv()
    share.close()


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, or, where its class does not survive pickling, one that says the same."""
    trace = "in an environment's process:\n" + "".join(traceback.format_exception(error))
    error.add_note(trace)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does when it is pickled or built again
        error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(trace)
    return error
