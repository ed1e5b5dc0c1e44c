"""Small replay stores whose rows say which episode and step they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdmpc2.data.replay import Replay

LAYOUT = {"task": "walker-walk", "obs_shape": (2,), "obs_dtype": "float32", "action_dim": 3}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Replay]:
    """Makes a store in tmp_path/replay; arguments of `Replay.create` override the small default."""

    def make_store(**changes: Any) -> Replay:
        return Replay.create(tmp_path / "replay", **{**LAYOUT, "capacity": 100, "slack": 50, **changes})

    return make_store


@pytest.fixture
def encode() -> Callable[[int, int], dict[str, np.ndarray]]:
    """Episode `e` of `steps` steps: obs row t is (e, t); action t is (e, t, -t) / 1000; reward t is 100 e + t."""

    def encoded(episode: int, steps: int) -> dict[str, np.ndarray]:
        t = np.arange(1, steps + 1, dtype=np.float32)
        return {
            "obs": np.stack([np.full(steps + 1, episode), np.arange(steps + 1)], 1).astype(np.float32),
            "action": np.stack([np.full(steps, episode), t, -t], 1).astype(np.float32) / 1000,
            "reward": 100 * episode + t,
            "terminated": t == steps,
        }

    return encoded
