"""Meta-World: 50 tasks of a Sawyer arm, as Gymnasium environments.

The published results were made with the package's V2 environments on MuJoCo 2.1. Its V3 environments, used here, carry
V2's reward code on a current MuJoCo; what still differs is told by `tasks.caveat`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tdmpc2.envs.rendering import SceneRenderer, import_without_gl
from tdmpc2.envs.simulated import Array, ControlStep, SimulatedEnv
from tdmpc2.errors import UserError
from tdmpc2.spec import ObsKind
from tdmpc2.tasks import Task

if TYPE_CHECKING:
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

CAMERA = "corner2"
"""The camera of pictures: over the table, the arm in full."""


def build(task: Task, seed: int, obs: ObsKind) -> MetaWorldEnv:
    """The environment of a Meta-World task; see `tdmpc2.envs.make.make_env`."""
    if obs == "rgb":
        raise UserError(f"obs=rgb: {task.name} runs from states only; pixels are for DMControl's tasks")
    import_without_gl()
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    # Without a seed the constructor would draw from NumPy's global stream, and disturb it.
    environment = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[task.backend](seed=seed)
    # By default the first goal and object positions drawn stay for good, and new ones come from the global stream.
    environment._freeze_rand_vec = False
    environment.seeded_rand_vec = True
    return MetaWorldEnv(task, environment, seed, obs)


class MetaWorldEnv(SimulatedEnv):
    """A Meta-World environment whose goal is seen in the observation and drawn anew in every episode."""

    def __init__(self, task: Task, environment: SawyerXYZEnv, seed: int, obs: ObsKind) -> None:
        self.environment = environment
        self._last: Array | None = None
        self._scene = SceneRenderer(environment.model, environment.data, CAMERA, upside_down=True)
        obs_dim, action_dim = environment.observation_space.shape[0], environment.action_space.shape[0]
        super().__init__(task, seed, obs, obs_dim, action_dim, float(environment.dt))

    def _restart(self, seed: int | None) -> float:
        if seed is not None:
            self.environment.seed(seed)  # what `reset(seed=)` is given, the package ignores
        self.environment.reset()
        # As in the reference implementation: the arm is still settling at the reset itself.
        return self._control(np.zeros(self.action_space.shape)).success

    def _control(self, action: Array) -> ControlStep:
        self._last, reward, _, _, info = self.environment.step(action.astype(np.float32))
        return ControlStep(float(reward), float(info["success"]))

    def _observe(self) -> Array:
        return np.asarray(self._last, dtype=np.float32)

    def _picture(self, height: int, width: int) -> Array:
        return self._scene.picture(height, width)

    def _free(self) -> None:
        self._scene.close()
        self.environment.close()
