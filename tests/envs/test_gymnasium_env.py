"""Gymnasium environments as tasks: scaled actions, terminations, time limits, seeds, success and worker processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from tdmpc2 import own_tasks, tasks
from tdmpc2.envs.gymnasium_env import _fit
from tdmpc2.envs.make import make_env, why_unavailable
from tdmpc2.envs.vector import make_vector_env
from tdmpc2.errors import UserError
from tdmpc2.own_tasks import load_tasks_file, read_record, record_of, register_task
from tdmpc2.tasks import TASKS, enter_task, get_task

FILE = """
from tdmpc2.own_tasks import register_task

register_task("swing-mine", "Pendulum-v1", score_range=(-1600, 0), episode_length=4, action_repeat=2)
"""


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Own tasks of one test are unknown to the next."""
    monkeypatch.setattr(own_tasks, "_registered", {})
    monkeypatch.setattr(own_tasks, "_loaded_files", set())
    before = set(TASKS)
    yield
    for name in set(TASKS) - before:
        del tasks._tasks[name]


class Counter(gymnasium.Env[Any, Any]):
    """Observes its step; the reward is the first action it is given; ends as it is told."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float64)
    action_space = Box(np.array([-2.0, 0.0], np.float32), np.array([4.0, 1.0], np.float32))

    def __init__(self, terminates_at: int = 99, truncates_at: int = 99, succeeds: bool | None = None) -> None:
        self.terminates_at, self.truncates_at, self.succeeds = terminates_at, truncates_at, succeeds
        self.seeds: list[int | None] = []
        self.given: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seeds.append(seed)
        self.steps = 0
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        self.given.append(action)
        self.steps += 1
        info = {} if self.succeeds is None else {"is_success": self.succeeds}
        ends = self.steps == self.terminates_at, self.steps == self.truncates_at
        return np.full(1, self.steps), float(action[0]), *ends, info


def built(counter: Counter, **options: Any) -> Any:
    register_task("counter", lambda seed: counter, **{"episode_length": 5, **options})
    return make_env("counter", seed=11)


def test_actions_are_scaled_from_minus_one_and_one_to_the_bounds() -> None:
    counter = Counter()
    env = built(counter)
    env.reset(seed=0)
    for action in ([-1.0, -1.0], [1.0, 1.0], [0.0, 0.5], [9.0, -9.0]):
        env.step(np.array(action))
    assert [list(given) for given in counter.given] == [[-2.0, 0.0], [4.0, 1.0], [1.0, 0.75], [4.0, 0.0]]
    assert env.action_space == Box(-1.0, 1.0, (2,), np.float32)
    assert counter.given[0].dtype == np.float32


def test_rewards_of_a_repeated_action_are_summed() -> None:
    env = built(Counter(), action_repeat=3)
    env.reset(seed=0)
    obs, reward, *_ = env.step(np.array([1.0, 0.0]))
    assert (float(obs[0]), reward) == (3.0, 12.0)
    assert obs.dtype == np.float32


def test_terminations_are_reported_and_end_the_episode() -> None:
    env = built(Counter(terminates_at=2))
    env.reset(seed=0)
    ends = [env.step(np.zeros(2))[2:4] for _ in range(2)]
    assert ends == [(False, False), (True, False)]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2))


def test_a_time_limit_and_the_environments_own_end_truncate() -> None:
    env = built(Counter(truncates_at=4))
    env.reset(seed=0)
    assert [env.step(np.zeros(2))[3] for _ in range(4)] == [False, False, False, True]
    own_tasks._registered.clear()
    del tasks._tasks["counter"]
    env = built(Counter())
    env.reset(seed=0)
    assert [env.step(np.zeros(2))[3] for _ in range(5)] == [False, False, False, False, True]


def test_the_first_reset_takes_the_construction_seed_and_later_ones_go_on() -> None:
    counter = Counter()
    env = built(counter)
    for seed in (None, None, 3, None):
        env.reset(seed=seed)
    assert counter.seeds == [11, None, 3, None]


def test_success_is_told_by_either_key_and_nan_where_there_is_none() -> None:
    env = built(Counter(succeeds=True), metric="success")
    assert env.reset(seed=0)[1]["success"] == 0.0
    assert env.step(np.zeros(2))[4]["success"] == 1.0
    own_tasks._registered.clear()
    del tasks._tasks["counter"]
    env = built(Counter())
    assert math.isnan(env.reset(seed=0)[1]["success"])
    assert math.isnan(env.step(np.zeros(2))[4]["success"])


def test_the_same_seed_gives_the_same_episode_and_another_seed_another() -> None:
    env = make_env("gym:InvertedPendulum-v5", seed=1)
    actions = np.linspace(-0.1, 0.1, 4)[:, None]

    def life(seed: int) -> list[Any]:
        numbers = [env.reset(seed=seed)[0]]
        return numbers + [env.step(action)[0] for action in actions]

    first, again, other = life(7), life(7), life(8)
    env.close()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_mujoco_task_that_falls_over_terminates() -> None:
    env = make_env("gym:InvertedPendulum-v5")
    env.reset(seed=0)
    ends: list[bool] = []
    while not any(ends[-1:]):
        *_, terminated, truncated, info = env.step(np.ones(1))
        assert not truncated
        assert math.isnan(info["success"])
        ends.append(terminated)
    env.close()
    assert 1 < len(ends) < 1000


def test_worker_processes_load_the_tasks_file_too(tmp_path: Path) -> None:
    file = tmp_path / "swing.py"
    file.write_text(FILE)
    load_tasks_file(file)
    env = make_vector_env(["swing-mine"] * 2, seeds=[1, 2], parallel=True)
    try:
        env.reset(seed=[1, 2])  # type: ignore[arg-type]  # a list is what vector environments take
        for _ in range(4):
            *_, truncated, _ = env.step(np.zeros((2, 1), np.float32))
    finally:
        env.close()
    assert truncated.tolist() == [True, True]


def test_a_task_known_from_a_folder_alone_names_the_file_to_load(tmp_path: Path) -> None:
    register_task("counter", lambda seed: Counter(), episode_length=5)
    get_task("counter")
    (tmp_path / "tasks.json").write_text(record_of(["counter", "walker-walk"]))
    own_tasks._registered.clear()
    del tasks._tasks["counter"]
    (told,) = read_record(tmp_path / "tasks.json")
    enter_task(told)
    assert "tasks_file=" in why_unavailable("counter")
    with pytest.raises(UserError, match="counter cannot be run: the code that defines it has not been loaded"):
        make_env("counter")


def test_pixels_are_refused() -> None:
    with pytest.raises(UserError, match="obs=rgb: gym:InvertedPendulum-v5 runs from states only"):
        make_env("gym:InvertedPendulum-v5", obs="rgb")


def test_pictures_keep_their_proportions_on_black() -> None:
    white = np.full((10, 20, 3), 255, np.uint8)
    fitted = _fit(white, 40, 40)  # twice as wide as tall: half of the height stays black
    assert fitted.shape == (40, 40, 3)
    assert (fitted[10:30] == 255).all()
    assert (fitted[:10] == 0).all()
    assert (fitted[30:] == 0).all()
