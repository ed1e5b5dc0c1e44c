"""People's own tasks: Gymnasium environments with flat boxes, in the form that all environments here have."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.spaces import Box

from tdmpc2 import own_tasks
from tdmpc2.envs.rendering import switch_rendering_on
from tdmpc2.envs.simulated import NO_CRITERION, Array, ControlStep, SimulatedEnv, require_states
from tdmpc2.errors import UserError
from tdmpc2.spec import ObsKind
from tdmpc2.tasks import Task

if TYPE_CHECKING:
    from tdmpc2.own_tasks import GymEnv

DEFAULT_FPS = 30
"""Environment steps a second in films, where the environment does not tell."""


def why_unavailable(task: Task) -> str:
    """Why the environment of an own task cannot be built here; "" where nothing is known to be lacking."""
    return own_tasks.why_unavailable(task)


def build(task: Task, seed: int, obs: ObsKind) -> GymnasiumEnv:
    """The environment of an own task; see `tdmpc2.envs.make.make_env`."""
    require_states(task, obs)
    return GymnasiumEnv(task, own_tasks.build_env(task.name, seed), seed, obs)


class GymnasiumEnv(SimulatedEnv):
    """A Gymnasium environment, its actions scaled from [-1, 1] to its own bounds, its terminations its own."""

    def __init__(self, task: Task, environment: GymEnv, seed: int, obs: ObsKind) -> None:
        self.environment = environment
        self._last: Array | None = None
        bounds = environment.action_space
        assert isinstance(bounds, Box)  # what made it a task has checked that
        self._bounds = bounds
        low, high = bounds.low.astype(np.float64), bounds.high.astype(np.float64)
        self._center, self._half_range = (high + low) / 2, (high - low) / 2
        shape = environment.observation_space.shape or ()
        fps = float(environment.metadata.get("render_fps") or DEFAULT_FPS)
        super().__init__(task, seed, obs, math.prod(shape), bounds.shape[0], 1 / fps)

    def _restart(self, seed: int | None) -> float:
        obs, info = self.environment.reset(seed=seed)
        self._last = np.array(obs, dtype=np.float32)  # an environment may use its own again
        return self._success(info, absent=0.0)

    def _control(self, action: Array) -> ControlStep:
        command = (self._center + action * self._half_range).astype(self._bounds.dtype)
        obs, reward, terminated, truncated, info = self.environment.step(command)
        self._last = np.array(obs, dtype=np.float32)  # an environment may use its own again
        return ControlStep(float(reward), self._success(info), bool(terminated), bool(truncated))

    def _success(self, info: dict[str, Any], absent: float | None = None) -> float:
        """What the info tells of success.

        Raises:
            UserError: nothing, and the task is scored by it, unless there is a value for that.
        """
        for key in own_tasks.SUCCESS_KEYS:
            if key in info:
                return float(info[key])
        if self.task.metric != "success":
            return NO_CRITERION
        if absent is None:
            raise UserError(f"task {self.task.name}: metric: success, but a step's info tells none")
        return absent

    def _observe(self) -> Array:
        return np.asarray(self._last, dtype=np.float32)

    def _picture(self, height: int, width: int) -> Array:
        if hasattr(self.environment.unwrapped, "mujoco_renderer"):
            switch_rendering_on()  # chooses an OpenGL that works without a display
        drawn: Any = self.environment.render()
        if not isinstance(drawn, np.ndarray) or drawn.ndim != 3 or drawn.shape[2] != 3:
            raise UserError(
                f"task {self.task.name}: its environment draws no pictures; "
                "where it can, a tasks file must build it with render_mode='rgb_array'"
            )
        return _fit(drawn, height, width)

    def _free(self) -> None:
        self.environment.close()


def _fit(picture: Array, height: int, width: int) -> Array:
    """A picture (h, w, 3) in another size, its proportions kept, black where it does not reach."""
    if picture.shape[:2] == (height, width):
        return picture
    scale = min(height / picture.shape[0], width / picture.shape[1])
    tall, wide = (max(1, round(side * scale)) for side in picture.shape[:2])
    rows = (np.arange(tall) + 0.5) * picture.shape[0] / tall
    columns = (np.arange(wide) + 0.5) * picture.shape[1] / wide
    fitted = np.zeros((height, width, 3), np.uint8)
    top, left = (height - tall) // 2, (width - wide) // 2
    fitted[top : top + tall, left : left + wide] = picture[rows.astype(int)][:, columns.astype(int)]
    return fitted
