"""What the environments of all simulators have in common: checks, action repeat, the time limit, the random stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box

from tdmpc2.errors import require
from tdmpc2.spec import FRAME_SHAPE, ObsKind
from tdmpc2.tasks import Task

Array = np.ndarray[Any, Any]
Step = tuple[Array, float, bool, bool, dict[str, Any]]

RENDER_SIZE = 384
"""Height and width, in pixels, of the pictures that `render` gives."""
NO_CRITERION = float("nan")
"""`info["success"]` of tasks without a success criterion."""


class ControlStep(NamedTuple):
    """What one control step of a simulator gave."""

    reward: float
    """Its reward."""
    success: float
    """1.0 or 0.0 by the task's criterion, NaN without one."""
    terminated: bool = False
    """Whether the episode is over since a state was reached that ends it."""
    ended: bool = False
    """Whether the simulator ends the episode for another reason."""


def require_states(task: Task, obs: ObsKind) -> None:
    """Refuse pixels, for simulators that give states alone.

    Raises:
        UserError: `obs` is rgb.
    """
    require(obs == "state", f"obs=rgb: {task.name} runs from states only; pixels are for DMControl's tasks")


class SimulatedEnv(gymnasium.Env[Array, Array], ABC):
    """An environment of a registry's task; see `tdmpc2.envs.make.make_env` for what all of them promise.

    A simulator implements the methods that begin with an underscore.

    Args:
        task: the task.
        seed: seed of the action space, and of the simulator's stream unless the first reset brings one.
        obs: kind of observation.
        obs_dim: length of the simulator's state observation.
        action_dim: length of its action.
        control_seconds: simulated seconds of one control step.

    Raises:
        RuntimeError: the dims are not those of the registry.
    """

    render_mode = "rgb_array"

    def __init__(
        self, task: Task, seed: int, obs: ObsKind, obs_dim: int, action_dim: int, control_seconds: float
    ) -> None:
        self.task = task
        for kind, found, expected in [
            ("observation", obs_dim, task.obs_dim),
            ("action", action_dim, task.action_dim),
        ]:
            if expected is not None and found != expected:
                raise RuntimeError(f"{task.name}: {kind} has {found} dims in the simulator, {expected} in the registry")
        if obs == "rgb":
            self.observation_space = Box(0, 255, FRAME_SHAPE, np.uint8)
        else:
            self.observation_space = Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = Box(-1.0, 1.0, (action_dim,), np.float32, seed=seed)
        # An instance's own, since Gymnasium's vector environments write into it.
        fps = round(1 / (control_seconds * task.action_repeat))
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self._first_seed: int | None = seed  # None once there was a reset
        self._agent_step: int | None = None  # None: the episode is over or has not begun
        self._closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode; with a seed, restart the random stream from it. There are no options."""
        self._require_open()
        seed, self._first_seed = self._first_seed if seed is None else seed, None
        super().reset(seed=seed)
        success = self._restart(seed)
        self._agent_step = 0
        return self._observe(), {"success": success}

    def step(self, action: Array) -> Step:
        """One agent step: the action for `action_repeat` control steps, rewards summed.

        Args:
            action: (action_dim,), finite; clipped to [-1, 1].

        Raises:
            ValueError: the action has another shape, or an entry that is not finite.
            gymnasium.error.ResetNeeded: before the first reset, or after the episode's end.
        """
        if self._agent_step is None:
            raise ResetNeeded(f"{self.task.name}: no episode under way; call reset() first")
        action = np.asarray(action, dtype=np.float64)
        if action.shape != self.action_space.shape:
            raise ValueError(f"{self.task.name}: action of shape {action.shape}, expected {self.action_space.shape}")
        if not np.isfinite(action).all():
            raise ValueError(f"{self.task.name}: action is not finite: {action}")
        command = action.clip(-1.0, 1.0)

        reward = 0.0
        for _ in range(self.task.action_repeat):
            last = self._control(command)
            reward += last.reward
            if last.terminated or last.ended:
                break

        self._agent_step += 1
        truncated = not last.terminated and (last.ended or self._agent_step >= self.task.episode_length)
        if last.terminated or truncated:
            self._agent_step = None
        return self._observe(), reward, last.terminated, truncated, {"success": last.success}

    def render(self) -> Array:  # type: ignore[override]  # Gymnasium's own type allows for lists and text
        """The scene as uint8 (RENDER_SIZE, RENDER_SIZE, 3).

        Raises:
            UserError: nothing can render here.
        """
        self._require_open()
        return self._picture(RENDER_SIZE, RENDER_SIZE)

    def close(self) -> None:
        """Free the simulation and its renderer."""
        if not self._closed:
            self._free()
            self._closed = True
            self._agent_step = None

    @abstractmethod
    def _restart(self, seed: int | None) -> float:
        """Begin an episode, from a fresh random stream if there is a seed; gives `info["success"]`."""

    @abstractmethod
    def _control(self, action: Array) -> ControlStep:
        """One control step under an action (action_dim,) in [-1, 1]."""

    @abstractmethod
    def _observe(self) -> Array:
        """The observation as it stands."""

    @abstractmethod
    def _picture(self, height: int, width: int) -> Array:
        """The scene as uint8 (height, width, 3)."""

    @abstractmethod
    def _free(self) -> None:
        """Free the simulation; called once."""

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self.task.name}: the environment was closed")
