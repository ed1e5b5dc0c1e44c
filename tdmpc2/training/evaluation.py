"""Evaluation: episodes side by side, one batched planner call for all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.envs.vector import make_vector_env
from tdmpc2.seeding import Stream, derive_seed
from tdmpc2.spec import ObsKind
from tdmpc2.training.collector import begin_episodes


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

    Args:
        tasks: one task an episode, all of equal shapes.
        obs: kind of observation.
        seed: the seed that all episodes derive from.
        parallel: whether each environment has a process of its own. With states, planning takes all the time;
            rendering pixels is worth it.
    """

    def __init__(self, tasks: Sequence[str], obs: ObsKind, seed: int, parallel: bool) -> None:
        self._tasks, self._seed = list(tasks), seed
        seeds = [derive_seed(seed, Stream.EVAL_EPISODE, 0, i) for i in range(len(tasks))]
        self.env: VectorEnv[Any, Any, Any] = make_vector_env(self._tasks, seeds, obs, parallel)

    def evaluate(self, agent: TDMPC2, when: int, on_step: Callable[[int], None] | None = None) -> list[EpisodeScore]:
        """Run one episode in each environment, without exploration noise.

        Args:
            agent: the agent; its own acting and learning are not disturbed.
            when: what tells this evaluation apart from others of the same seed, as a rule the agent step.
            on_step: called with the number of steps before each one, e.g. to show progress or to stop.

        Returns:
            one score an environment.
        """
        count = len(self._tasks)
        seeds = [derive_seed(self._seed, Stream.EVAL_EPISODE, when, i) for i in range(count)]
        actor = agent.actor(derive_seed(self._seed, Stream.EVAL_AGENT, when))
        names = {name: i for i, name in enumerate(agent.spec.tasks)}
        ids = np.array([names[task] for task in self._tasks]) if agent.spec.multitask else None

        obs = begin_episodes(self.env, seeds, np.ones(count, bool))
        total, success, length = np.zeros(count), np.full(count, np.nan), np.zeros(count, int)
        active, first = np.ones(count, bool), True
        while active.any():
            if on_step is not None:
                on_step(int(length.max()))
            action = actor(obs, first, ids, eval_mode=True).numpy()
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += np.where(active, reward, 0.0)
            length += active
            ended = terminated | truncated
            success = np.where(active & ended, info["success"], success)
            active &= ~ended
            if active.any() and ended.any():
                # The others go on; these are stepped along, from a new start that nobody looks at.
                obs = begin_episodes(self.env, seeds, ended)
            first = False
        return [
            EpisodeScore(task, float(total[i]), float(success[i]), int(length[i])) for i, task in enumerate(self._tasks)
        ]

    def close(self) -> None:
        """Close the environments."""
        self.env.close(terminate=True)  # a worker whose step was broken off might never answer


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
