import os
import signal

import numpy as np
import pytest

from tdmpc2.envs.make import make_env
from tdmpc2.envs.padding import PaddedEnv
from tdmpc2.envs.vector import make_vector_env
from tdmpc2.errors import UserError

NAMES = ["pendulum-spin", "pendulum-swingup", "pendulum-spin"]  # of equal shapes
SEEDS = [3, 4, 5]


@pytest.mark.parametrize("parallel", [False, True])
def test_environments_do_exactly_what_single_ones_do_and_reset_one_by_one(parallel):
    vector = make_vector_env(NAMES, SEEDS, parallel=parallel)
    single = [make_env(name, seed) for name, seed in zip(NAMES, SEEDS, strict=True)]
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 3, 1)).astype(np.float32)

    def step_all():
        for action in actions:
            observations, rewards, terminated, truncated, info = vector.step(action)
            expected = [env.step(a) for env, a in zip(single, action, strict=True)]
            np.testing.assert_array_equal(observations, [step[0] for step in expected])
            np.testing.assert_array_equal(rewards, [step[1] for step in expected])
            np.testing.assert_array_equal(terminated, [step[2] for step in expected])
            np.testing.assert_array_equal(truncated, [step[3] for step in expected])
            assert info["_success"].all()
            assert np.isnan(info["success"]).all()

    observations, _ = vector.reset()  # the construction seeds' own streams
    np.testing.assert_array_equal(observations, [env.reset()[0] for env in single])
    step_all()

    mask = np.array([False, True, True])
    before = vector.step(np.zeros((3, 1), np.float32))[0]
    for env in single:
        env.step(np.zeros(1))
    observations, _ = vector.reset(seed=[0, 71, 72], options={"reset_mask": mask})
    np.testing.assert_array_equal(observations[0], before[0])
    np.testing.assert_array_equal(observations[1], single[1].reset(seed=71)[0])
    np.testing.assert_array_equal(observations[2], single[2].reset(seed=72)[0])
    step_all()
    vector.close()


def test_the_last_step_of_an_episode_shows_its_own_observation_and_nothing_resets_by_itself():
    vector = make_vector_env(["pendulum-swingup"] * 2, [0, 1])
    single = make_env("pendulum-swingup", 0)
    vector.reset()
    single.reset()
    action = np.zeros((2, 1), np.float32)
    for _ in range(499):
        vector.step(action)
        single.step(action[0])
    observations, _, terminated, truncated, info = vector.step(action)
    assert truncated.all()
    assert not terminated.any()
    assert info["_success"].all()
    np.testing.assert_array_equal(observations[0], single.step(action[0])[0])
    vector.close()


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_an_interrupt_from_the_terminal_leaves_the_workers_alive():
    vector = make_vector_env(["pendulum-swingup"] * 2, [0, 1], parallel=True)
    vector.reset()
    for worker in vector.processes:
        os.kill(worker.pid, signal.SIGINT)
    observations, *_ = vector.step(np.zeros((2, 1), np.float32))
    assert observations.shape == (2, 3)
    vector.close()


MIXED = ["cartpole-swingup", "walker-walk", "cup-spin"]  # observations of 5, 24, 8; actions of 1, 6, 2
DIMS = [(5, 1), (24, 6), (8, 2)]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("shape", [None, (24, 6), (39, 7)])
def test_tasks_of_different_shapes_step_together_each_as_it_does_alone(parallel, shape):
    vector = make_vector_env(MIXED, SEEDS, parallel=parallel, workers=2, shape=shape)
    single = [make_env(name, seed) for name, seed in zip(MIXED, SEEDS, strict=True)]
    obs_dim, action_dim = shape or (24, 6)

    def check(observations, own):
        assert observations.shape == (3, obs_dim)
        for padded, bare, (length, _) in zip(observations, own, DIMS, strict=True):
            np.testing.assert_array_equal(padded[:length], bare)
            assert not padded[length:].any()

    check(
        vector.reset(seed=[7, 8, 9])[0], [env.reset(seed=seed)[0] for env, seed in zip(single, (7, 8, 9), strict=True)]
    )
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 3, action_dim)).astype(np.float32):
        observations, rewards, _, _, info = vector.step(action)
        expected = [env.step(a[:dim]) for env, a, (_, dim) in zip(single, action, DIMS, strict=True)]
        check(observations, [step[0] for step in expected])
        np.testing.assert_array_equal(rewards, [step[1] for step in expected])
        assert info["_success"].all()
    vector.close()


def test_nothing_is_wrapped_where_all_fits_already():
    vector = make_vector_env(NAMES, SEEDS)
    assert not any(isinstance(env, PaddedEnv) for env in vector.envs)
    vector = make_vector_env(NAMES, SEEDS, shape=(3, 1))
    assert not any(isinstance(env, PaddedEnv) for env in vector.envs)
    vector = make_vector_env(MIXED, SEEDS)
    assert [isinstance(env, PaddedEnv) for env in vector.envs] == [True, False, True]


def test_a_task_that_is_larger_than_the_agents_shape_is_refused_before_anything_starts():
    with pytest.raises(UserError, match="walker-walk has observations of 24 and actions of 6 dims; they do not fit"):
        make_vector_env(MIXED, SEEDS, shape=(24, 5), parallel=True)


def test_pixels_are_not_padded():
    with pytest.raises(UserError, match=r"obs=state alone: cartpole-swingup: .*action \(1,\); walker-walk"):
        make_vector_env(["cartpole-swingup", "walker-walk"], [0, 1], obs="rgb")


def test_a_task_of_unknown_length_is_not_guessed_at():
    with pytest.raises(UserError, match=r"observation length not in the registry.*: pick-ycb"):
        make_vector_env(["walker-walk", "pick-ycb"], [0, 1])


@pytest.mark.parametrize(("names", "seeds"), [([], []), (["cartpole-swingup"], [0, 1])])
def test_each_environment_needs_a_seed(names, seeds):
    with pytest.raises(UserError, match="one seed for each name"):
        make_vector_env(names, seeds)


def test_an_unknown_name_is_refused_before_anything_starts():
    with pytest.raises(UserError, match="did you mean 'walker-walk'"):
        make_vector_env(["walker-walk", "walker-wlak"], [0, 1], parallel=True)
