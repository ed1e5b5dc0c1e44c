import os
import signal

import numpy as np
import pytest

from tdmpc2.envs.make import make_env
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


def test_tasks_of_different_shapes_are_refused():
    with pytest.raises(
        UserError, match=r"different shapes.*cartpole-swingup: observation \(5,\), action \(1,\); walker"
    ):
        make_vector_env(["cartpole-swingup", "walker-walk"], [0, 1])


@pytest.mark.parametrize(("names", "seeds"), [([], []), (["cartpole-swingup"], [0, 1])])
def test_each_environment_needs_a_seed(names, seeds):
    with pytest.raises(UserError, match="one seed for each name"):
        make_vector_env(names, seeds)


def test_an_unknown_name_is_refused_before_anything_starts():
    with pytest.raises(UserError, match="did you mean 'walker-walk'"):
        make_vector_env(["walker-walk", "walker-wlak"], [0, 1], parallel=True)
