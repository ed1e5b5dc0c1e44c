"""A tiny data set of three tasks whose observations and actions differ in length."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tdmpc2.data.dataset import Dataset, StoreSource, build
from tdmpc2.data.replay import Replay
from tdmpc2.tasks import get_task

TASKS = ("pendulum-swingup", "cartpole-swingup", "cup-catch")
"""Observations of 3, 5 and 8 dims; actions of 1, 1 and 2."""


def write_store(folder: Path, name: str, episodes: int, steps: int, seed: int = 0) -> Path:
    """A replay store of a task with random episodes."""
    task, random = get_task(name), np.random.default_rng(seed)
    assert task.obs_dim is not None
    layout = {"task": name, "obs_shape": (task.obs_dim,), "obs_dtype": "float32", "action_dim": task.action_dim}
    rows = episodes * (steps + 1)
    with Replay.create(folder, **layout, capacity=rows, slack=rows) as store:
        for _ in range(episodes):
            obs = random.normal(size=(steps + 1, task.obs_dim)).astype(np.float32)
            action = random.uniform(-1, 1, (steps, task.action_dim)).astype(np.float32)
            reward = random.uniform(0, 1, steps).astype(np.float32)
            store.add(obs, action, reward, np.zeros(steps, bool))
        store.flush()
        store.mark_checkpoint()
    return folder


def make_data(results: Path, name: str = "trio", tasks: tuple[str, ...] = TASKS, episodes: int = 4) -> Dataset:
    """A data set `results/datasets/NAME` with a store for each task, four episodes of 20 steps in each."""
    stores = [
        StoreSource(write_store(results / "stores" / f"{name}-{task}", task, episodes, 20, seed), 1, True)
        for seed, task in enumerate(tasks)
    ]
    return build(name, stores, tasks, results / "datasets")
