"""Stepping the training environments and putting their episodes together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from tdmpc2.envs.vector import make_vector_env
from tdmpc2.errors import UserError
from tdmpc2.seeding import Stream, derive_seed
from tdmpc2.spec import ObsKind
from tdmpc2.training.runtime import available_cores

Array = NDArray[Any]


@dataclass
class Episode:
    """An episode of T agent steps, finished or under way."""

    index: int
    """Its number in the run, which decides its seed."""
    obs: list[Array] = field(default_factory=list)
    """T + 1 observations."""
    action: list[Array] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)
    success: float = float("nan")
    """Success at the last step; NaN for tasks without a success criterion."""

    def __len__(self) -> int:
        return len(self.action)

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """Observations (T+1, ...), actions (T, A), rewards (T,) and terminations (T,)."""
        reward, terminated = np.array(self.reward, np.float32), np.array(self.terminated, bool)
        return np.stack(self.obs), np.stack(self.action), reward, terminated


def begin_episodes(env: VectorEnv[Any, Any, Any], seeds: Sequence[int], which: NDArray[np.bool_]) -> Array:
    """Reset some of the environments, each with its own seed: returns the observations of all, (N, *obs_shape)."""
    # Gymnasium's annotation knows one seed for all; its vector environments take a list.
    obs, _ = env.reset(seed=list(seeds), options={"reset_mask": which})  # type: ignore[arg-type]
    return np.asarray(obs)


class Collector:
    """N environments of one task, stepped side by side.

    An episode's seed follows from its number, so an episode under way is not stored but played again: a checkpoint
    keeps its actions alone.

    Args:
        task: the task's name.
        num_envs: N.
        seed: the run's seed.
        obs: kind of observation.
        episodic: whether episodes may terminate.
    """

    def __init__(self, task: str, num_envs: int, seed: int, obs: ObsKind, episodic: bool) -> None:
        self._task, self._seed, self._episodic = task, seed, episodic
        seeds = [derive_seed(seed, Stream.TRAIN_EPISODE, i) for i in range(num_envs)]
        # Nothing is done here while the others step, so this process steps a share itself.
        self._env = make_vector_env(
            [task] * num_envs, seeds, obs, parallel=num_envs > 1, workers=available_cores(), take_part=True
        )
        self.num_envs = num_envs
        self._next_index = 0
        self._episodes: list[Episode] = [Episode(-1)] * num_envs
        self.obs: Array = np.zeros(0)
        """(N, *obs_shape), the current observations."""
        self._begin_episodes(np.ones(num_envs, bool))

    @property
    def first_step(self) -> NDArray[np.bool_]:
        """(N,) whether the next step is its episode's first."""
        return np.array([len(episode) == 0 for episode in self._episodes])

    def step(self, action: Array) -> list[Episode]:
        """Step all environments, and reset those whose episode ends.

        Args:
            action: (N, A).

        Returns:
            the episodes that ended, in the order of their numbers.

        Raises:
            UserError: an episode terminated although the run is not episodic.
        """
        ended = self._advance(action)
        if not self._episodic and any(episode.terminated[-1] for episode in self._episodes):
            raise UserError(f"task {self._task}: an episode terminated; train it with episodic=true")
        finished = [episode for episode, end in zip(self._episodes, ended, strict=True) if end]
        if ended.any():
            self._begin_episodes(ended)
        return sorted(finished, key=lambda episode: episode.index)

    def _advance(self, action: Array) -> NDArray[np.bool_]:
        obs, reward, terminated, truncated, info = self._env.step(action)
        for i, episode in enumerate(self._episodes):
            episode.obs.append(np.array(obs[i]))
            episode.action.append(np.array(action[i], dtype=np.float32))
            episode.reward.append(float(reward[i]))
            episode.terminated.append(bool(terminated[i]))
            episode.success = float(info["success"][i])
        self.obs = obs
        return terminated | truncated

    def _begin_episodes(self, which: NDArray[np.bool_]) -> None:
        for i in np.flatnonzero(which):
            self._episodes[i] = Episode(self._next_index)
            self._next_index += 1
        self._reset(which)

    def _reset(self, which: NDArray[np.bool_]) -> None:
        seeds = [derive_seed(self._seed, Stream.TRAIN_EPISODE, max(episode.index, 0)) for episode in self._episodes]
        self.obs = begin_episodes(self._env, seeds, which)
        for i in np.flatnonzero(which):
            self._episodes[i].obs = [np.array(self.obs[i])]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to play the episodes under way again."""
        return {
            "next_index": self._next_index,
            "episodes": [
                {
                    "index": episode.index,
                    "action": torch.from_numpy(np.array(episode.action, dtype=np.float32)),
                    "obs": torch.from_numpy(episode.obs[-1]),
                }
                for episode in self._episodes
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Play the episodes under way again, up to where they were.

        Returns:
            whether every environment came out where it had been. If not, the simulator is not deterministic here:
            the episodes under way are dropped and new ones begun.
        """
        saved = state["episodes"]
        actions = [episode["action"].numpy() for episode in saved]
        self._episodes = [Episode(episode["index"]) for episode in saved]
        self._next_index = state["next_index"]
        same = self._play_again(actions) and all(
            np.array_equal(episode.obs[-1], before["obs"].numpy())
            for episode, before in zip(self._episodes, saved, strict=True)
        )
        if not same:
            self._begin_episodes(np.ones(self.num_envs, bool))
        return same

    def _play_again(self, actions: Sequence[Array]) -> bool:
        """Play episodes from their beginnings; false, and broken off, where one ends under way."""
        longest = max(len(a) for a in actions)
        # All environments step at once, so the shorter episodes begin later; before that, actions of zeros fill in.
        self._reset(np.ones(self.num_envs, bool))
        shape = self._env.single_action_space.shape or ()
        for t in range(longest):
            starts = np.array([len(a) == longest - t for a in actions])
            if t > 0 and starts.any():
                self._restart(starts)
            offset = [t - (longest - len(a)) for a in actions]
            step = [a[o] if o >= 0 else np.zeros(shape, np.float32) for a, o in zip(actions, offset, strict=True)]
            ended = self._advance(np.stack(step))
            filling = np.array([o < 0 for o in offset])
            if (ended & ~filling).any():
                return False
            if ended.any():
                self._restart(ended)
        empty = np.array([len(a) == 0 for a in actions])
        if longest > 0 and empty.any():
            self._restart(empty)
        return True

    def _restart(self, which: NDArray[np.bool_]) -> None:
        for i in np.flatnonzero(which):
            self._episodes[i] = Episode(self._episodes[i].index)
        self._reset(which)

    def close(self) -> None:
        """Close the environments."""
        # Worker processes hold nothing worth waiting for, and one whose step was broken off might never answer.
        self._env.close(terminate=True)
