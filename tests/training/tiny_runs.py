"""Tiny runs: short episodes, a model of a few hundred parameters, and environments whose numbers are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch

from tdmpc2.tasks import TASKS, Task

EPISODE_LENGTH = 20
TINY = {
    "task": "pendulum-swingup",
    "model_size": 1,
    "enc_dim": 16,
    "mlp_dim": 16,
    "latent_dim": 16,
    "num_samples": 16,
    "num_elites": 4,
    "num_pi_trajs": 2,
    "iterations": 1,
    "batch_size": 8,
    "buffer_size": 1000,
    "eval_episodes": 2,
    "threads": 1,
    "device": "cpu",
}


def shortened_tasks() -> dict[str, Task]:
    """The registry, with episodes of `EPISODE_LENGTH` agent steps."""
    return {name: dataclasses.replace(task, episode_length=EPISODE_LENGTH) for name, task in TASKS.items()}


def assert_identical(left: Any, right: Any, where: str = "") -> None:
    """Nested mappings, lists and tensors are equal, bit by bit."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_identical(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_identical(one, other, f"{where}/{i}")
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, where
        assert left.shape == right.shape, where
        assert left.numpy().tobytes() == right.numpy().tobytes(), where
    else:
        assert left == right, where


@dataclasses.dataclass
class Script:
    """What a scripted environment does in the episode that a seed begins."""

    length: int
    terminates: bool = True
    """Whether its end is a termination, and not the time limit."""
    rewards: tuple[float, ...] | None = None
    """One a step; by default the step's number."""
    successes: tuple[float, ...] | None = None
    """One a step; by default NaN."""


class ScriptedEnv(gymnasium.Env[Any, Any]):
    """Observations (3,) are seed, step and the sum of actions so far; all else as the script has it."""

    def __init__(self, script: Callable[[int], Script], dims: tuple[int, int]) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (dims[0],), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (dims[1],), np.float32)
        self._write = script
        self._over = True

    def _observe(self) -> Any:
        obs = np.zeros(self.observation_space.shape, np.float32)
        obs[:3] = self._seed % 1000 / 1000, self._step / 10, self._sum
        return obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._seed, self._step, self._sum, self._over = seed or 0, 0, 0.0, False
        self.script = self._write(self._seed)
        return self._observe(), {"success": float("nan")}

    def step(self, action: Any) -> Any:
        assert not self._over, "stepped after its end"
        script, t = self.script, self._step
        self._step += 1
        self._sum += float(np.sum(action))
        self._over = self._step == script.length
        reward = float(self._step) if script.rewards is None else script.rewards[t]
        success = float("nan") if script.successes is None else script.successes[t]
        terminated = self._over and script.terminates
        return self._observe(), reward, terminated, self._over and not terminated, {"success": success}
