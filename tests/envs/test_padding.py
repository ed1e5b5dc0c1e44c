"""Environments in the shape of larger tasks: nothing but zeros is added, nothing of their own is changed."""

from __future__ import annotations

import numpy as np
import pytest

from tdmpc2.envs.make import make_env
from tdmpc2.envs.padding import PaddedEnv, pad_env
from tdmpc2.errors import UserError


def test_a_padded_environment_does_what_the_bare_one_does_and_adds_zeros_on_the_right() -> None:
    bare = make_env("reacher-easy", 3)  # observations of 6, actions of 2
    padded = pad_env(make_env("reacher-easy", 3), (39, 5), "reacher-easy", 3)
    assert padded.observation_space.shape == (39,)
    assert padded.action_space.shape == (5,)
    draw = np.random.default_rng(0)
    observations = [(padded.reset(seed=7)[0], bare.reset(seed=7)[0])]
    for _ in range(500):
        action = draw.uniform(-1, 1, 5).astype(np.float32)
        obs, *outcome, info = padded.step(action)
        own, *expected, own_info = bare.step(action[:2])
        observations.append((obs, own))
        assert outcome == expected
        assert info.keys() == own_info.keys()
    assert outcome[1:] == [False, True]  # the last step is at the time limit
    for obs, own in observations:  # kept until now: no observation is overwritten by a later one
        assert obs.dtype == np.float32
        np.testing.assert_array_equal(obs[:6], own)
        np.testing.assert_array_equal(obs[6:], np.zeros(33))


def test_what_a_task_does_not_use_of_an_action_has_no_effect() -> None:
    rewards = []
    for filler in (-1.0, 1.0):
        env = pad_env(make_env("cup-spin", 1), (8, 6), "cup-spin", 1)
        env.reset(seed=1)
        action = np.array([0.5, -0.5, *[filler] * 4], np.float32)
        rewards.append([env.step(action)[1] for _ in range(50)])
    assert rewards[0] == rewards[1]


def test_an_environment_that_has_the_shape_already_is_left_as_it_is() -> None:
    env = make_env("pendulum-spin", 0)
    assert pad_env(env, (3, 1), "pendulum-spin", 0) is env
    assert isinstance(pad_env(env, (3, 2), "pendulum-spin", 0), PaddedEnv)  # a longer action alone is enough
    assert isinstance(pad_env(env, (4, 1), "pendulum-spin", 0), PaddedEnv)


@pytest.mark.parametrize("shape", [(2, 1), (3, 0)])
def test_a_shape_that_is_too_small_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="task pendulum-spin has observations of 3 and actions of 1 dims; they do not"):
        pad_env(make_env("pendulum-spin", 0), shape, "pendulum-spin", 0)


def test_an_action_of_the_tasks_own_length_is_refused_since_it_cannot_be_told_from_a_mistake() -> None:
    env = pad_env(make_env("pendulum-spin", 0), (3, 4), "pendulum-spin", 0)
    env.reset()
    with pytest.raises(ValueError, match=r"action of shape \(1,\), expected \(4,\)"):
        env.step(np.zeros(1))


def test_random_actions_of_a_padded_environment_follow_from_its_seed() -> None:
    def draw(seed: int) -> list[float]:
        return pad_env(make_env("pendulum-spin", 0), (3, 4), "pendulum-spin", seed).action_space.sample().tolist()

    assert draw(1) == draw(1) != draw(2)
