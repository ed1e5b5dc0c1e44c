"""DMControl: 28 tasks of `dm_control.suite` and the 11 custom ones, as Gymnasium environments."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from tdmpc2.envs.rendering import import_without_gl, switch_rendering_on
from tdmpc2.envs.simulated import NO_CRITERION, Array, ControlStep, SimulatedEnv
from tdmpc2.spec import FRAME_SHAPE, ObsKind
from tdmpc2.tasks import Task

if TYPE_CHECKING:
    from dm_control.rl import control

# The stock cheetah's model draws this warning every time it is loaded, and no user can do anything about it.
logging.getLogger("absl").addFilter(lambda record: "settotalmass" not in record.getMessage())


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


class DMControlEnv(SimulatedEnv):
    """A dm_control environment with flat or pixel observations."""

    def __init__(self, task: Task, environment: control.Environment, seed: int, obs: ObsKind) -> None:
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
        super().__init__(task, seed, obs, obs_dim, bounds.shape[0], environment.control_timestep())

    def _restart(self, seed: int | None) -> float:
        if seed is not None:
            self.environment.task.random.seed(seed)
        self.environment.reset()
        if self._frames is not None:
            self._frames.clear()
        return NO_CRITERION

    def _control(self, action: Array) -> ControlStep:
        # `control.Environment.step`, less the observations that an action repeat throws away.
        task, physics = self.environment.task, self.environment.physics
        task.before_step(self._center + self._half_range * action, physics)
        physics.step(self._substeps)
        task.after_step(physics)
        reward = float(task.get_reward(physics))
        discount = task.get_termination(physics)  # None while the episode goes on
        return ControlStep(reward, NO_CRITERION, terminated=discount == 0.0, ended=discount is not None)

    def _observe(self) -> Array:
        if self._frames is None:
            entries = self.environment.task.get_observation(self.environment.physics).values()
            return np.concatenate([np.ravel(entry) for entry in entries], dtype=np.float32, casting="same_kind")
        frame = np.moveaxis(self._picture(*FRAME_SHAPE[1:]), -1, 0)
        missing = FRAME_SHAPE[0] // 3 - len(self._frames)
        self._frames.extend([frame] * max(1, missing))  # an episode's first frame stands for those before it
        return np.concatenate(self._frames)

    def _picture(self, height: int, width: int) -> Array:
        switch_rendering_on()
        picture: Array = self.environment.physics.render(height, width, camera_id=self._camera)
        return picture.copy()  # dm_control gives a flipped view of its buffer

    def _free(self) -> None:
        self.environment.physics.free()
