"""MyoSuite's environments: the package's own steps, within our time limit and from our seeds."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from tdmpc2.envs.make import make_env
from tdmpc2.tasks import TASK_SETS, TASKS


def actions(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 39)).astype(np.float32)


def rollout(env: gymnasium.Env, count: int, seed: int | None) -> tuple[Any, list[float]]:
    observations, rewards = [env.reset(seed=seed)[0]], []
    for action in actions(count):
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    return np.stack(observations), rewards


@pytest.mark.parametrize("name", ["myo-reach", "myo-key-turn-hard"])
def test_spaces_are_the_registrys_and_success_is_a_number(name):
    env = make_env(name, seed=3)
    assert env.action_space == env.environment.action_space == gymnasium.spaces.Box(-1, 1, (39,), np.float32)
    observation, info = env.reset()
    assert observation.shape == (TASKS[name].obs_dim,)
    assert observation.dtype == np.float32
    assert observation in env.observation_space
    assert info == {"success": 0.0}
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert observation in env.observation_space
    assert isinstance(reward, float)
    assert (terminated, truncated) == (False, False)
    assert info["success"] in (0.0, 1.0)
    env.close()


@pytest.mark.parametrize("name", ["myo-reach-hard", "myo-pen-twirl-hard"])
def test_a_step_is_one_of_the_packages_own(name):
    env = make_env(name, seed=1)
    raw = gymnasium.make(TASKS[name].backend)
    observation, _ = env.reset(seed=5)
    np.testing.assert_array_equal(observation, raw.reset(seed=5)[0])
    for action in actions(15):
        observation, reward, *_, info = env.step(action)
        expected, raw_reward, terminated, _, raw_info = raw.step(action)
        np.testing.assert_array_equal(observation, expected)
        assert reward == raw_reward
        assert info["success"] == float(raw_info["solved"])
        if terminated:
            break


@pytest.mark.parametrize("name", ["myo-reach", "myo-pen-twirl"])  # the package ends pen-twirl at 50
def test_an_episode_goes_on_to_100_agent_steps_whatever_happens_and_must_then_be_reset(name):
    env = make_env(name)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(39))
    env.reset()
    solved = iter([False] * 60 + [True] * 30 + [False] * 10)
    env.environment.step = lambda action: (np.zeros(TASKS[name].obs_dim), 1.5, True, False, {"solved": next(solved)})
    steps = [env.step(np.zeros(39))[1:] for _ in range(100)]
    assert [reward for reward, *_ in steps] == [1.5] * 100
    assert [(terminated, truncated) for _, terminated, truncated, _ in steps] == [(False, False)] * 99 + [(False, True)]
    assert [info["success"] for *_, info in steps] == [0.0] * 60 + [1.0] * 30 + [0.0] * 10
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(39))


def test_targets_are_drawn_anew_in_every_episode_of_the_hard_tasks_and_never_in_the_others():
    for name in ("myo-reach-hard", "myo-pose-hard", "myo-obj-hold-hard"):
        env = make_env(name, seed=4)
        assert len(np.unique([env.reset()[0] for _ in range(3)], axis=0)) == 3
    env = make_env("myo-reach", seed=4)
    assert len(np.unique([env.reset()[0] for _ in range(3)], axis=0)) == 1


def test_unseeded_resets_continue_the_stream_of_the_construction_seed():
    def starts(seed):
        env = make_env("myo-reach-hard", seed=seed)
        return np.stack([env.reset()[0] for _ in range(3)])

    first = starts(8)
    np.testing.assert_array_equal(first, starts(8))
    assert not np.array_equal(first[0], starts(9)[0])
    env = make_env("myo-reach-hard", seed=9)
    np.testing.assert_array_equal(env.reset(seed=8)[0], first[0])
    np.testing.assert_array_equal(env.reset()[0], first[1])


# The object's size and the key's range are changed in the model itself, which a reset does not load anew.
@pytest.mark.parametrize("name", ["myo-obj-hold-hard", "myo-key-turn-hard", "myo-pose-hard"])
def test_a_seeded_reset_forgets_everything_before_it(name):
    fresh, used = make_env(name, seed=11), make_env(name, seed=4)
    rollout(used, 25, seed=None)
    used.reset()
    first, first_rewards = rollout(fresh, 10, seed=99)
    second, second_rewards = rollout(used, 10, seed=99)
    np.testing.assert_array_equal(first, second)
    assert first_rewards == second_rewards


def test_neither_other_environments_nor_numpys_global_stream_have_a_part_in_it():
    alone, alone_rewards = rollout(make_env("myo-reach-hard", seed=2), 10, seed=None)

    env, other = make_env("myo-reach-hard", seed=2), make_env("myo-reach-hard", seed=3)
    np.random.seed(123)  # noqa: NPY002  # it is the global stream that is meant
    rollout(other, 5, seed=None)
    observations, rewards = rollout(env, 10, seed=None)
    np.testing.assert_array_equal(observations, alone)
    assert rewards == alone_rewards


def test_the_registry_has_a_fixed_and_a_random_variant_of_each_skill():
    backends = {TASKS[name].backend for name in TASK_SETS["myosuite"]}
    assert {backend.replace("Random", "Fixed") for backend in backends} & backends == {
        backend for backend in backends if "Fixed" in backend
    }
    assert len(backends) == 10
