"""Fixtures of tiny runs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tiny_runs import EPISODE_LENGTH, TINY, Script, ScriptedEnv, assert_identical, shortened_tasks

import tdmpc2.tasks
from tdmpc2.agent import checkpoints
from tdmpc2.config import NOT_IDENTITY, Config
from tdmpc2.data.replay import Replay
from tdmpc2.training.folder import RunFolder


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """Training sets these for the process."""
    threads, deterministic = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(deterministic)


@pytest.fixture
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> int:
    """Makes the episodes of all tasks end after 20 agent steps."""
    monkeypatch.setattr(tdmpc2.tasks, "TASKS", shortened_tasks())
    return EPISODE_LENGTH


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """Makes the config of a tiny run in tmp_path."""

    def make(**changes: Any) -> Config:
        return Config(**{**TINY, "results_dir": str(tmp_path), **changes})

    return make


@pytest.fixture
def words(tmp_path: Path) -> Callable[..., list[str]]:
    """Makes the command line's `key=value` words of a tiny run in tmp_path."""

    def make(**changes: Any) -> list[str]:
        return [f"{k}={v}" for k, v in {**TINY, "results_dir": str(tmp_path), **changes}.items()]

    return make


@pytest.fixture
def rows() -> Callable[..., list[dict[str, str]]]:
    """Reads a CSV file, by default without the one column that differs from run to run."""

    def read(path: Path, without: tuple[str, ...] = ("seconds",)) -> list[dict[str, str]]:
        with path.open(newline="") as file:
            return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]

    return read


@pytest.fixture
def contents(rows: Callable[..., list[dict[str, str]]]) -> Callable[..., dict[str, Any]]:
    """Everything that a run has learned and recorded, but for times and places."""

    def read(folder: RunFolder) -> dict[str, Any]:
        state = checkpoints.read(folder.checkpoint)
        del state["seconds"], state["logs"]  # a log's length depends on how the seconds are written
        state.pop("replay_before", None)  # tells when the checkpoint before was written, which is no outcome
        for name in NOT_IDENTITY:
            del state["agent"]["config"][name]
        with Replay.open(folder.replay, writable=False) as replay:
            stored = {episode.index: replay.episode(episode.index) for episode in replay.episodes()}
        return {"checkpoint": state, "replay": stored, "train": rows(folder.train_csv), "eval": rows(folder.eval_csv)}

    return read


@pytest.fixture
def identical() -> Callable[[Any, Any], None]:
    """Asserts that two nested values are equal, bit by bit."""
    return assert_identical


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts scripted environments in the place of the simulators."""

    def use(script: Callable[[int], Script], dims: tuple[int, int] = (3, 1)) -> None:
        def make(names: Any, seeds: Any, obs: str = "state", **_: Any) -> SyncVectorEnv:
            builders = [lambda: ScriptedEnv(script, dims) for _ in names]
            return SyncVectorEnv(builders, autoreset_mode=AutoresetMode.DISABLED)

        for module in ("collector", "evaluation"):
            monkeypatch.setattr(f"tdmpc2.training.{module}.make_vector_env", make)

    return use
