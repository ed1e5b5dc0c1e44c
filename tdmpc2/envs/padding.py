"""Environments of smaller tasks in the shapes of larger ones, so that tasks can be stepped together."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from tdmpc2.envs.make import Env
from tdmpc2.errors import UserError

Array = NDArray[Any]


class PaddedEnv(gymnasium.Wrapper[Array, Array, Array, Array]):
    """An environment whose observations are zero-padded on the right, and whose actions are cut to its own dims.

    Args:
        env: has float32 state observations and actions within [-1, 1].
        obs_dim: length of the padded observation.
        action_dim: length of the action that is given.
        seed: of the padded action space.
    """

    def __init__(self, env: Env, obs_dim: int, action_dim: int, seed: int) -> None:
        super().__init__(env)
        self._own_actions = _length(env.action_space)
        # All of a padded batch must be of one space, whatever bounds the tasks' own observations have.
        self.observation_space = Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = Box(-1.0, 1.0, (action_dim,), np.float32, seed=seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode: the padded observation (obs_dim,), and the environment's own info."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._padded(obs), info

    def step(self, action: Array) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        """Take one agent step.

        Args:
            action: (action_dim,), of which the environment sees its own dims alone.

        Raises:
            ValueError: the action has another shape.
        """
        if np.shape(action) != self.action_space.shape:
            raise ValueError(f"action of shape {np.shape(action)}, expected {self.action_space.shape}")
        obs, reward, terminated, truncated, info = self.env.step(action[: self._own_actions])
        return self._padded(obs), reward, terminated, truncated, info

    def _padded(self, obs: Array) -> Array:
        padded = np.zeros(self.observation_space.shape or (), np.float32)
        padded[: len(obs)] = obs
        return padded


def pad_env(env: Env, shape: tuple[int, int], name: str, seed: int) -> Env:
    """The environment in a given shape; the environment itself where it has that already.

    Args:
        env: an environment with state observations.
        shape: length of the observation, length of the action.
        name: its task, for messages.
        seed: of the padded action space.

    Raises:
        UserError: the environment is larger than that.
    """
    own = (_length(env.observation_space), _length(env.action_space))
    check_fits(name, own, shape)
    return env if own == shape else PaddedEnv(env, *shape, seed)


def check_fits(name: str, own: tuple[int, int], shape: tuple[int, int]) -> None:
    """Refuse a task whose observations or actions are longer than a padded shape.

    Args:
        name: the task.
        own: length of its observation, length of its action.
        shape: the padded ones.

    Raises:
        UserError: it does not fit.
    """
    if own[0] > shape[0] or own[1] > shape[1]:
        raise UserError(
            f"task {name} has observations of {own[0]} and actions of {own[1]} dims; "
            f"they do not fit into {shape[0]} and {shape[1]}"
        )


def _length(space: gymnasium.Space[Any]) -> int:
    if space.shape is None or len(space.shape) != 1:
        raise ValueError(f"only vectors can be padded, not {space}")
    return space.shape[0]
