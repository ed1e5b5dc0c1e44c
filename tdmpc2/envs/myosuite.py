"""MyoSuite: 10 tasks of a hand driven by 39 muscles, as Gymnasium environments.

The published results were made with an older release; what differs is told by `tasks.caveat`.
"""

from __future__ import annotations

import numpy as np

from tdmpc2.envs.mujoco_env import MujocoEnv
from tdmpc2.envs.rendering import import_without_gl
from tdmpc2.envs.simulated import Array, ControlStep, require_states
from tdmpc2.spec import ObsKind
from tdmpc2.tasks import Task

CAMERA = "hand_side_inter"
"""The camera of pictures: the hand from its side."""


def build(task: Task, seed: int, obs: ObsKind) -> MyoSuiteEnv:
    """The environment of a MyoSuite task; see `tdmpc2.envs.make.make_env`."""
    require_states(task, obs)
    import_without_gl()
    import gymnasium
    import myosuite  # noqa: F401  # registers the environments

    # Unwrapped: the package's own time limit ends pen-twirl at 50 steps, where the published results have 100.
    environment = gymnasium.make(task.backend, disable_env_checker=True).unwrapped
    return MyoSuiteEnv(task, environment, CAMERA, seed)


class MyoSuiteEnv(MujocoEnv):
    """A MyoSuite environment; as in the published results it does not end before its time limit."""

    def _restart(self, seed: int | None) -> float:
        self._last, _ = self.environment.reset(seed=seed)
        return 0.0

    def _control(self, action: Array) -> ControlStep:
        self._last, reward, _, _, info = self.environment.step(action.astype(np.float32))
        return ControlStep(float(reward), float(info["solved"]))
