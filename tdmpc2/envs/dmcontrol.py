"""DMControl: 28 tasks of `dm_control.suite` and the 11 custom ones, as Gymnasium environments."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box

from tdmpc2.envs.rendering import import_without_gl, switch_rendering_on
from tdmpc2.spec import FRAME_SHAPE, ObsKind
from tdmpc2.tasks import Task

if TYPE_CHECKING:
    from dm_control.rl import control

Array = np.ndarray[Any, Any]
Step = tuple[Array, float, bool, bool, dict[str, Any]]

# The stock cheetah's model draws this warning every time it is loaded, and no user can do anything about it.
logging.getLogger("absl").addFilter(lambda record: "settotalmass" not in record.getMessage())

RENDER_SIZE = 384
"""Height and width, in pixels, of the pictures that `render` gives."""


def build(task: Task, seed: int, obs: ObsKind) -> DMControlEnv:
    """The environment of a DMControl task; see `tdmpc2.envs.make.make_env`."""
    import_without_gl()
    from dm_control import suite

    from tdmpc2.envs.custom import CUSTOM_TASKS

    if task.name in CUSTOM_TASKS:
        environment = CUSTOM_TASKS[task.name](seed)
    else:
        environment = suite.load(*task.backend.split("/"), task_kwargs={"random": seed})
    return DMControlEnv(task, environment, seed, obs)


class DMControlEnv(gymnasium.Env[Array, Array]):
    """A dm_control environment with action repeat, a time limit and flat or pixel observations."""

    render_mode = "rgb_array"

    def __init__(self, task: Task, environment: control.Environment, seed: int, obs: ObsKind) -> None:
        self.task = task
        self.environment = environment
        self._substeps = round(environment.control_timestep() / environment.physics.timestep())
        # The first camera, as in the published pixel results; the quadruped's is far away, its third is the side view.
        self._camera = 2 if task.backend.startswith("quadruped") else 0
        self._frames: deque[Array] | None = None
        if obs == "rgb":
            switch_rendering_on()
            self._frames = deque(maxlen=FRAME_SHAPE[0] // 3)

        bounds = environment.action_spec()
        self._center = (bounds.maximum + bounds.minimum) / 2
        self._half_range = (bounds.maximum - bounds.minimum) / 2
        obs_dim = sum(int(np.prod(entry.shape)) for entry in environment.observation_spec().values())
        for kind, found, expected in [
            ("observation", obs_dim, task.obs_dim),
            ("action", bounds.shape[0], task.action_dim),
        ]:
            if found != expected:
                raise RuntimeError(f"{task.name}: {kind} has {found} dims in the simulator, {expected} in the registry")

        if obs == "rgb":
            self.observation_space = Box(0, 255, FRAME_SHAPE, np.uint8)
        else:
            self.observation_space = Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = Box(-1.0, 1.0, (task.action_dim,), np.float32, seed=seed)
        seconds = environment.control_timestep() * task.action_repeat
        # An instance's own, since Gymnasium's vector environments write into it.
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / seconds)}
        self._agent_step: int | None = None  # None: the episode is over or has not begun
        self._closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode; with a seed, restart the random stream from it. There are no options."""
        self._require_open()
        super().reset(seed=seed)
        if seed is not None:
            self.environment.task.random.seed(seed)
        self.environment.reset()
        self._agent_step = 0
        if self._frames is not None:
            self._frames.clear()
        return self._observe(), {"success": float("nan")}

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
        command = self._center + self._half_range * action.clip(-1.0, 1.0)

        # `control.Environment.step`, less the observations that an action repeat throws away.
        task, physics = self.environment.task, self.environment.physics
        reward = 0.0
        for _ in range(self.task.action_repeat):
            task.before_step(command, physics)
            physics.step(self._substeps)
            task.after_step(physics)
            reward += float(task.get_reward(physics))
            discount = task.get_termination(physics)  # None while the episode goes on
            if discount is not None:
                break

        self._agent_step += 1
        terminated = discount == 0.0
        truncated = not terminated and (discount is not None or self._agent_step >= self.task.episode_length)
        if terminated or truncated:
            self._agent_step = None
        return self._observe(), reward, terminated, truncated, {"success": float("nan")}

    def render(self) -> Array:  # type: ignore[override]  # Gymnasium's own type allows for lists and text
        """The scene as uint8 (RENDER_SIZE, RENDER_SIZE, 3).

        Raises:
            UserError: nothing can render here.
        """
        self._require_open()
        switch_rendering_on()
        return self._picture(RENDER_SIZE, RENDER_SIZE)

    def close(self) -> None:
        """Free the simulation and its renderer."""
        if not self._closed:
            self.environment.physics.free()
            self._closed = True
            self._agent_step = None

    def _observe(self) -> Array:
        if self._frames is None:
            entries = self.environment.task.get_observation(self.environment.physics).values()
            return np.concatenate([np.ravel(entry) for entry in entries], dtype=np.float32, casting="same_kind")
        frame = np.moveaxis(self._picture(*FRAME_SHAPE[1:]), -1, 0)
        missing = FRAME_SHAPE[0] // 3 - len(self._frames)
        self._frames.extend([frame] * max(1, missing))  # an episode's first frame stands for those before it
        return np.concatenate(self._frames)

    def _picture(self, height: int, width: int) -> Array:
        picture: Array = self.environment.physics.render(height, width, camera_id=self._camera)
        return picture.copy()  # dm_control gives a flipped view of its buffer

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self.task.name}: the environment was closed")
