"""Meta-World: 50 tasks of a Sawyer arm, as Gymnasium environments.

The published results were made with the package's V2 environments on MuJoCo 2.1. Its V3 environments, used here, carry
V2's reward code on a current MuJoCo; what still differs is told by `tasks.caveat`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tdmpc2.envs.mujoco_env import MujocoEnv
from tdmpc2.envs.rendering import import_without_gl
from tdmpc2.envs.simulated import Array, ControlStep, require_states
from tdmpc2.spec import ObsKind
from tdmpc2.tasks import Task

if TYPE_CHECKING:
    pass

CAMERA = "corner2"
"""The camera of pictures: over the table, the arm in full."""


def build(task: Task, seed: int, obs: ObsKind) -> MetaWorldEnv:
    """The environment of a Meta-World task; see `tdmpc2.envs.make.make_env`."""
    require_states(task, obs)
    import_without_gl()
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    # Without a seed the constructor would draw from NumPy's global stream, and disturb it.
    environment = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[task.backend](seed=seed)
    # By default the first goal and object positions drawn stay for good, and new ones come from the global stream.
    environment._freeze_rand_vec = False
    environment.seeded_rand_vec = True
    return MetaWorldEnv(task, environment, CAMERA, seed)


class MetaWorldEnv(MujocoEnv):
    """A Meta-World environment whose goal is seen in the observation and drawn anew in every episode."""

    def _restart(self, seed: int | None) -> float:
        if seed is not None:
            self.environment.seed(seed)  # what `reset(seed=)` is given, the package ignores
        self.environment.reset()
        # As in the reference implementation: the arm is still settling at the reset itself.
        return self._control(np.zeros(self.action_space.shape)).success

    def _control(self, action: Array) -> ControlStep:
        self._last, reward, _, _, info = self.environment.step(action.astype(np.float32))
        return ControlStep(float(reward), float(info["success"]))
