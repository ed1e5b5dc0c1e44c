"""MyoSuite: 10 tasks of a hand driven by 39 muscles, as Gymnasium environments.

The published results were made with an older release; what differs is told by `tasks.caveat`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tdmpc2.envs.rendering import SceneRenderer, import_without_gl
from tdmpc2.envs.simulated import Array, ControlStep, SimulatedEnv
from tdmpc2.errors import UserError
from tdmpc2.spec import ObsKind
from tdmpc2.tasks import Task

CAMERA = "hand_side_inter"
"""The camera of pictures: the hand from its side."""


def build(task: Task, seed: int, obs: ObsKind) -> MyoSuiteEnv:
    """The environment of a MyoSuite task; see `tdmpc2.envs.make.make_env`."""
    if obs == "rgb":
        raise UserError(f"obs=rgb: {task.name} runs from states only; pixels are for DMControl's tasks")
    import_without_gl()
    import gymnasium
    import myosuite  # noqa: F401  # registers the environments

    # Unwrapped: the package's own time limit ends pen-twirl at 50 steps, where the published results have 100.
    return MyoSuiteEnv(task, gymnasium.make(task.backend, disable_env_checker=True).unwrapped, seed, obs)


class MyoSuiteEnv(SimulatedEnv):
    """A MyoSuite environment; as in the published results it does not end before its time limit."""

    def __init__(self, task: Task, environment: Any, seed: int, obs: ObsKind) -> None:
        self.environment = environment
        self._last: Array | None = None
        self._scene = SceneRenderer(environment.model, environment.data, CAMERA, upside_down=True)
        obs_dim, action_dim = environment.observation_space.shape[0], environment.action_space.shape[0]
        super().__init__(task, seed, obs, obs_dim, action_dim, float(environment.dt))

    def _restart(self, seed: int | None) -> float:
        self._last, _ = self.environment.reset(seed=seed)
        return 0.0

    def _control(self, action: Array) -> ControlStep:
        self._last, reward, _, _, info = self.environment.step(action.astype(np.float32))
        return ControlStep(float(reward), float(info["solved"]))

    def _observe(self) -> Array:
        return np.array(self._last, dtype=np.float32)

    def _picture(self, height: int, width: int) -> Array:
        return self._scene.picture(height, width)

    def _free(self) -> None:
        self._scene.close()
        self.environment.close()
