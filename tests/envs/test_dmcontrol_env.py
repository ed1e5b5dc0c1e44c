import dataclasses

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from tdmpc2.envs import dmcontrol
from tdmpc2.envs.make import make_env
from tdmpc2.tasks import TASK_SETS, TASKS


def actions(env: gymnasium.Env, count: int, seed: int = 0) -> np.ndarray:
    shape = (count, *env.action_space.shape)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def rollout(env: gymnasium.Env, count: int, seed: int | None) -> tuple[np.ndarray, list[float]]:
    observations, rewards = [env.reset(seed=seed)[0]], []
    for action in actions(env, count):
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    return np.stack(observations), rewards


@pytest.mark.parametrize("name", TASK_SETS["dmcontrol"])
def test_every_task_has_the_registrys_shapes_and_steps(name):
    env = make_env(name, seed=3)
    observation, info = env.reset()
    assert observation.shape == (TASKS[name].obs_dim,)
    assert observation.dtype == np.float32
    assert observation in env.observation_space
    assert np.isnan(info["success"])
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (TASKS[name].action_dim,), np.float32)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert observation in env.observation_space
    assert isinstance(reward, float)
    assert 0 <= reward <= 2  # two control steps of at most 1
    assert not terminated
    assert not truncated
    assert np.isnan(info["success"])
    env.close()


@pytest.mark.parametrize("name", ["cartpole-swingup", "hopper-hop", "finger-turn-easy", "walker-run-backwards"])
def test_a_step_is_two_of_dm_controls_own_steps_with_rewards_summed(name):
    env = make_env(name, seed=5)
    reference = make_env(name, seed=5).environment  # the dm_control environment, stepped by its own method
    env.reset()
    reference.reset()
    for action in actions(env, 20):
        observation, reward, *_ = env.step(action)
        first, second = reference.step(action), reference.step(action)
        assert reward == first.reward + second.reward
        flat = [value for entry in second.observation.values() for value in np.asarray(entry).ravel()]
        np.testing.assert_array_equal(observation, np.array(flat, dtype=np.float32))


def test_observations_keep_the_order_of_dm_controls_dictionary():
    env = make_env("walker-walk")
    observation, _ = env.reset()
    physics = env.environment.physics
    np.testing.assert_array_equal(observation[:14], physics.orientations().astype(np.float32))
    assert observation[14] == np.float32(physics.torso_height())
    np.testing.assert_array_equal(observation[15:], physics.velocity().astype(np.float32))


def test_actions_are_scaled_to_bounds_other_than_one():
    # The quadruped's legs take commands in [-1, 1] (yaw), [-1, 1.1] (lift) and [-0.8, 0.8] (extend).
    env = make_env("quadruped-walk")
    env.reset()
    for level, yaw, lift, extend in [(-1.0, -1.0, -1.0, -0.8), (1.0, 1.0, 1.1, 0.8), (0.5, 0.5, 0.575, 0.4)]:
        env.step(np.full(12, level))
        np.testing.assert_allclose(env.environment.physics.control(), [yaw, lift, extend] * 4, rtol=1e-12)


def test_actions_outside_the_bounds_are_clipped():
    env = make_env("hopper-hop")
    env.reset()
    env.step(np.array([7.0, -1.5, 0.25, 1.0]))
    np.testing.assert_array_equal(env.environment.physics.control(), [1.0, -1.0, 0.25, 1.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused(bad):
    env = make_env("hopper-hop")
    env.reset()
    with pytest.raises(ValueError, match="hopper-hop: action is not finite"):
        env.step(np.array([0.0, bad, 0.0, 0.0]))


@pytest.mark.parametrize("shape", [(), (3,), (1, 4)])
def test_an_action_of_the_wrong_shape_is_refused(shape):
    env = make_env("hopper-hop")
    env.reset()
    with pytest.raises(ValueError, match=r"hopper-hop: action of shape .*, expected \(4,\)"):
        env.step(np.zeros(shape))


def test_an_episode_is_truncated_at_500_agent_steps_and_must_then_be_reset():
    env = make_env("pendulum-swingup")
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(1))
    env.reset()
    ends = [env.step(np.zeros(1))[2:4] for _ in range(500)]
    assert ends == [(False, False)] * 499 + [(False, True)]
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(1))
    env.reset()
    assert env.step(np.zeros(1))[2:4] == (False, False)


@pytest.mark.parametrize(("discount", "terminated"), [(0.0, True), (1.0, False)])
def test_an_end_inside_the_action_repeat_stops_it(monkeypatch, discount, terminated):
    env = make_env("pendulum-spin")
    env.reset()
    task = env.environment.task
    rewards = iter([0.25, 0.5])
    monkeypatch.setattr(task, "get_reward", lambda physics: next(rewards))
    monkeypatch.setattr(task, "get_termination", lambda physics: discount)
    _, reward, *ends, _ = env.step(np.zeros(1))
    assert reward == 0.25
    assert ends == [terminated, not terminated]
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(1))


# Tasks with hidden state to forget: models changed at reset (reacher, finger, fish), rejection sampling (cup-spin).
@pytest.mark.parametrize("name", ["reacher-hard", "finger-turn-hard", "fish-swim", "cup-spin", "quadruped-run"])
def test_a_seeded_reset_forgets_everything_before_it(name):
    fresh, used = make_env(name, seed=11), make_env(name, seed=4)
    rollout(used, 25, seed=None)
    used.reset()
    first, first_rewards = rollout(fresh, 25, seed=99)
    second, second_rewards = rollout(used, 25, seed=99)
    np.testing.assert_array_equal(first, second)
    assert first_rewards == second_rewards


def test_unseeded_resets_continue_the_stream_of_the_construction_seed():
    def starts(env):
        return [env.reset()[0] for _ in range(3)]

    first = starts(make_env("reacher-easy", seed=8))
    np.testing.assert_array_equal(first, starts(make_env("reacher-easy", seed=8)))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], make_env("reacher-easy", seed=9).reset()[0])


def test_random_actions_follow_from_the_seed():
    samples = [make_env("hopper-hop", seed=seed).action_space.sample() for seed in (6, 6, 7)]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert not np.array_equal(samples[0], samples[2])


def test_observations_are_not_overwritten_by_later_steps():
    env = make_env("cartpole-swingup")
    first, _ = env.reset()
    kept = first.copy()
    env.step(np.ones(1))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("obs_dim", "observation has 5 dims in the simulator, 9"),
        ("action_dim", "action has 1 dims in the simulator, 9"),
    ],
)
def test_dims_that_differ_from_the_registry_are_an_error(field, message):
    wrong = dataclasses.replace(TASKS["cartpole-swingup"], **{field: 9})
    with pytest.raises(RuntimeError, match=f"cartpole-swingup: {message} in the registry"):
        dmcontrol.build(wrong, 0, "state")


def test_a_closed_environment_cannot_be_used_and_closes_twice():
    env = make_env("cartpole-swingup")
    env.reset()
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(1))
    with pytest.raises(RuntimeError, match="cartpole-swingup: the environment was closed"):
        env.reset()


def test_metadata_of_one_environment_is_not_anothers():
    first, second = make_env("cartpole-swingup"), make_env("walker-walk")
    assert first.metadata["render_fps"] == 50  # an agent step is 2 x 0.01 s
    assert second.metadata["render_fps"] == 20  # and 2 x 0.025 s here
    first.metadata["autoreset_mode"] = "changed"
    assert "autoreset_mode" not in second.metadata
