"""Environments for worker processes: in a module that imports quickly, since every worker does."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


class BriefEnv(gymnasium.Env[Any, Any]):
    """Episodes of 2 to 7 steps; a reward tells the step, the seed and the action."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.count, self.length = 0, 0

    def _observe(self) -> Any:
        return np.array([self.fraction, self.count / 10, 0], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        seed = seed or 0
        self.count, self.length, self.fraction = 0, length_of(seed), seed % 1000 / 1000
        return self._observe(), {"success": float("nan")}

    def step(self, action: Any) -> Any:
        assert self.count < self.length, "stepped after its end"
        self.count += 1
        reward = self.count + self.fraction + float(action[0]) / 10
        return self._observe(), reward, self.count == self.length, False, {"success": float(self.count % 2)}


def length_of(seed: int) -> int:
    """Steps of the brief episode that a seed begins."""
    return 2 + seed % 6


class UnsteadyEnv(BriefEnv):
    """A brief one whose steps take now more and now less time, except in the process `owner`."""

    def __init__(self, owner: int) -> None:
        super().__init__()
        self.delay = 0.0 if owner == os.getpid() else 0.005

    def step(self, action: Any) -> Any:
        time.sleep(self.delay * np.random.default_rng().random())
        return super().step(action)


class WaitingEnv(BriefEnv):
    """A brief one whose steps wait for a file, `go on`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def step(self, action: Any) -> Any:
        deadline = time.monotonic() + 30
        while not (self.folder / "go on").exists():
            assert time.monotonic() < deadline, "nobody came while this step was under way"
            time.sleep(0.005)
        return super().step(action)
