"""Evaluation: the episodes of all tasks side by side, in as few batched planner calls as their lengths allow."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from tdmpc2.agent.agent import TDMPC2, Actor
from tdmpc2.envs.vector import ProcessVectorEnv, make_vector_env
from tdmpc2.seeding import Stream, derive_seed
from tdmpc2.spec import AgentSpec, ObsKind
from tdmpc2.tasks import get_task
from tdmpc2.training.collector import begin_episodes
from tdmpc2.training.runtime import available_cores

SPLIT_FROM: dict[ObsKind, int] = {"state": 64, "rgb": 4}
"""Episodes of one length from which they run as two halves, each with an actor and environments of its own.

In worker processes one half then steps while the planner works on the other. That hides the steps, and asks the planner
twice for half as many observations: no loss on a CPU, whose planning takes as long for each observation however many
there are, nor for large batches on a GPU; but a GPU takes nearly as long for a small batch as for a larger one. So
states, whose steps take less than a millisecond, are split only in batches as large as multi-task evaluation has, and
pixels, whose rendering takes tens of milliseconds, in small ones too.

Scores depend on whether episodes are split (each actor has a random stream of its own). So this is a rule of what is
evaluated; neither processes nor cores nor the device have a say."""

STEP_SECONDS: dict[ObsKind, float] = {"state": 5e-4, "rgb": 3e-2}
"""An agent step of one environment: walker-walk on one core, rendering in software. Others take 0.2 to 3 times that."""
EPISODE_STEPS = 500
"""Agent steps of an episode, for the reckoning below: DMControl's."""
START_SECONDS = 3.0
"""Starting the workers: each imports the simulator, all at the same time."""


def processes_pay(device: str, obs: ObsKind, episodes: int, cores: int, evaluations: int = 1) -> bool:
    """Whether environments are better stepped in worker processes, by what things were measured to cost.

    * States, planned for on a CPU: never. Planning takes tens of milliseconds an observation, a step half of one. A
      hundredth of the time is all there is to win, and a worker takes 75 MB of memory.
    * Pixels: rendering takes as long as light planning on a CPU. Ten episodes on two cores, planned for by one thread:
      1.7 times as many a minute as without processes. (With planning on both cores no difference was established.)
    * States, planned for on a GPU: planning should take a few milliseconds for all, and stepping ten environments as
      long; reckoned, not measured.

    In the last two, processes pay once they save more time than it takes to start them.

    Args:
        device: type of the device that plans, `cpu` or `cuda`.
        obs: kind of observation.
        episodes: how many run side by side.
        cores: CPU cores that the process may use.
        evaluations: how many evaluations the environments will be used for.
    """
    if device == "cpu" and obs == "state":
        return False
    one_by_one = evaluations * episodes * EPISODE_STEPS * STEP_SECONDS[obs]
    return one_by_one * (1 - 1 / min(cores, episodes)) > START_SECONDS


@dataclass(frozen=True)
class EpisodeScore:
    """How one evaluation episode went."""

    task: str
    total_reward: float
    success: float
    """Success at the last step; NaN for tasks without a success criterion."""
    length: int
    """Agent steps."""


class Evaluator:
    """Environments of its own to evaluate agents in.

    Episodes of one length form a group, which ends together, save for terminations: so nothing is planned for episodes
    that are over while those of longer tasks go on. Large groups run as two halves, see `SPLIT_FROM`. Groups and halves
    have an actor each, and step in turn.

    The scores follow from the agent, `seed`, `when` and `tasks`, in this order, alone.

    Args:
        tasks: one task an episode.
        obs: kind of observation.
        seed: the seed that all episodes derive from.
        parallel: whether to step the environments in processes, about one a core; see `processes_pay`. The scores are
            the same either way.
        spec: of the agents to be evaluated. Smaller tasks are padded to its shapes, so several tasks need it.

    Raises:
        UserError: a task does not fit into these shapes, or as `make_env`.
    """

    def __init__(
        self, tasks: Sequence[str], obs: ObsKind, seed: int, parallel: bool, spec: AgentSpec | None = None
    ) -> None:
        self._tasks, self._seed = list(tasks), seed
        options: dict[str, Any] = {"parallel": parallel}
        if spec is not None and _needs_padding(self._tasks, spec):
            options["shape"] = (spec.obs_shape[0], spec.action_dim)
        lengths = [get_task(task).episode_length for task in self._tasks]
        seeds = np.array(self._episode_seeds(0))
        self._parts: list[tuple[NDArray[np.int_], VectorEnv[Any, Any, Any]]] = []
        for length in dict.fromkeys(lengths):
            group = np.flatnonzero(np.array(lengths) == length)
            # Every other episode: where costs or lengths go by task, both halves have as much to do.
            halves = [group[::2], group[1::2]] if len(group) >= SPLIT_FROM[obs] else [group]
            if parallel:
                options["workers"] = max(1, available_cores() // len(halves))
            for rows in halves:
                names = [self._tasks[row] for row in rows]
                self._parts.append((rows, make_vector_env(names, seeds[rows].tolist(), obs, **options)))

    @property
    def env(self) -> VectorEnv[Any, Any, Any]:
        """The environments that the first episode runs in the first of: all, or a part."""
        return self._parts[0][1]

    def evaluate(self, agent: TDMPC2, when: int, on_step: Callable[[int], None] | None = None) -> list[EpisodeScore]:
        """Run one episode in each environment, without exploration noise.

        Args:
            agent: the agent; its own acting and learning are not disturbed.
            when: what tells this evaluation apart from others of the same seed, as a rule the agent step.
            on_step: called with the number of steps before each one, e.g. to show progress or to stop.

        Returns:
            one score an environment.
        """
        parts = [self._begin(agent, when, number) for number in range(len(self._parts))]
        for step in itertools.count():
            told = False
            for part in parts:  # while one is planned for, the others' workers take their step
                part.finish_step()
                if part.active.any():
                    if on_step is not None and not told:
                        on_step(step)
                    told = True
                    part.begin_step()
            if not told:
                break
        scores: dict[int, EpisodeScore] = {}
        for (rows, _), part in zip(self._parts, parts, strict=True):
            scores |= zip(rows.tolist(), part.scores(), strict=True)
        return [scores[i] for i in range(len(self._tasks))]

    def _begin(self, agent: TDMPC2, when: int, number: int) -> _Episodes:
        rows, env = self._parts[number]
        tasks = [self._tasks[row] for row in rows]
        actor_seed = derive_seed(self._seed, Stream.EVAL_AGENT, when)
        if number > 0:
            actor_seed = derive_seed(actor_seed, Stream.EVAL_AGENT, number)
        seeds = self._episode_seeds(when)
        ids = np.array([agent.spec.tasks.index(task) for task in tasks]) if agent.spec.multitask else None
        return _Episodes(tasks, env, [seeds[row] for row in rows], agent.actor(actor_seed), ids)

    def _episode_seeds(self, when: int) -> list[int]:
        return [derive_seed(self._seed, Stream.EVAL_EPISODE, when, i) for i in range(len(self._tasks))]

    def close(self) -> None:
        """Close the environments."""
        for _, env in self._parts:
            env.close(terminate=True)  # a worker whose step was broken off might never answer


class _Episodes:
    """Episodes under way that are planned for and stepped together.

    Args:
        tasks: one an episode.
        env: their environments.
        seeds: one an episode.
        actor: chooses the actions.
        ids: (N,) the agent's numbers of the tasks; None for an agent of one task.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        env: VectorEnv[Any, Any, Any],
        seeds: Sequence[int],
        actor: Actor,
        ids: NDArray[np.int_] | None,
    ) -> None:
        self._tasks, self._env, self._seeds, self._actor, self._ids = tasks, env, seeds, actor, ids
        count = len(tasks)
        self.active = np.ones(count, bool)
        """(N,) which episodes have not ended."""
        self._total, self._success, self._length = np.zeros(count), np.full(count, np.nan), np.zeros(count, int)
        self._obs = begin_episodes(env, seeds, self.active)
        self._first = True
        self._wait: Callable[[], tuple[Any, ...]] | None = None  # for the step under way

    def begin_step(self) -> None:
        """Choose actions and step: in the background, where the environments are in processes."""
        action = self._actor(self._obs, self._first, self._ids, eval_mode=True).numpy()
        self._first = False
        if isinstance(self._env, ProcessVectorEnv):
            self._env.step_async(action)
            self._wait = self._env.step_wait
        else:
            outcome = self._env.step(action)
            self._wait = lambda: outcome

    def finish_step(self) -> None:
        """Wait for the step under way, if any, and keep what came of it."""
        if self._wait is None:
            return
        self._obs, reward, terminated, truncated, info = self._wait()
        self._wait = None
        self._total += np.where(self.active, reward, 0.0)
        self._length += self.active
        ended = terminated | truncated
        self._success = np.where(self.active & ended, info["success"], self._success)
        self.active &= ~ended
        if self.active.any() and ended.any():
            # The others go on; these are stepped along, from a new start that nobody looks at.
            self._obs = begin_episodes(self._env, self._seeds, ended)

    def scores(self) -> list[EpisodeScore]:
        """One an episode, once all have ended."""
        outcomes = zip(self._tasks, self._total, self._success, self._length, strict=True)
        return [EpisodeScore(task, float(total), float(ok), int(length)) for task, total, ok, length in outcomes]


def _needs_padding(tasks: Sequence[str], spec: AgentSpec) -> bool:
    own = {(task.obs_dim, task.action_dim) for task in map(get_task, tasks)}
    return spec.obs == "state" and own != {(spec.obs_shape[0], spec.action_dim)}


def summarise(scores: Sequence[EpisodeScore]) -> dict[str, dict[str, float | int]]:
    """Means over episodes, for each task: the columns of eval.csv that tell the outcome."""
    summary: dict[str, dict[str, float | int]] = {}
    for task in dict.fromkeys(score.task for score in scores):
        own = [score for score in scores if score.task == task]
        returns = [score.total_reward for score in own]
        summary[task] = {
            "episodes": len(own),
            "return": statistics.fmean(returns),
            "return_std": statistics.stdev(returns) if len(own) > 1 else float("nan"),
            "success": statistics.fmean(score.success for score in own),
            "episode_length": statistics.fmean(score.length for score in own),
        }
    return summary
