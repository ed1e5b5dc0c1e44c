"""Environments of packages that step MuJoCo themselves and give flat observations."""

from __future__ import annotations

from typing import Any

import numpy as np

from tdmpc2.envs.rendering import SceneRenderer
from tdmpc2.envs.simulated import Array, SimulatedEnv
from tdmpc2.tasks import Task


class MujocoEnv(SimulatedEnv):
    """Such an environment; a subclass restarts and steps it, and keeps its observation in `_last`.

    Args:
        task: the task.
        environment: the package's own environment, with `model`, `data` and `dt`.
        camera: name of the camera of its pictures, which stands on its head in both packages.
        seed: as for `SimulatedEnv`.
    """

    def __init__(self, task: Task, environment: Any, camera: str, seed: int) -> None:
        self.environment = environment
        self._last: Array | None = None
        self._scene = SceneRenderer(environment.model, environment.data, camera, upside_down=True)
        obs_dim, action_dim = environment.observation_space.shape[0], environment.action_space.shape[0]
        super().__init__(task, seed, "state", obs_dim, action_dim, float(environment.dt))

    def _observe(self) -> Array:
        return np.array(self._last, dtype=np.float32)

    def _picture(self, height: int, width: int) -> Array:
        return self._scene.picture(height, width)

    def _free(self) -> None:
        self._scene.close()
        self.environment.close()
