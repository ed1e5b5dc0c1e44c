import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest

from tdmpc2.envs import dmcontrol
from tdmpc2.tasks import TASKS

# Values of dm_control's gaussian tolerance, 0.1 at its margin: 0.1 ** (distance / margin) ** 2.


def environment(name: str):
    return dmcontrol.build(TASKS[name], 0, "state").environment


def reward_at(name: str, qpos: Mapping[str, float], qvel: Mapping[str, float]) -> float:
    """The task's reward in a state; joints that are not named stand at 0."""
    env = environment(name)
    with env.physics.reset_context():
        for joint, value in qpos.items():
            env.physics.named.data.qpos[joint] = value
        for joint, value in qvel.items():
            env.physics.named.data.qvel[joint] = value
    return float(env.task.get_reward(env.physics))


@pytest.mark.parametrize(("name", "full_speed"), [("walker-walk-backwards", 1.0), ("walker-run-backwards", 8.0)])
@pytest.mark.parametrize(
    ("height", "tilt", "speed_share", "expected"),
    [
        (1.2, 0.0, -1.0, 1.0),
        (1.2, 0.0, -2.0, 1.0),
        (1.2, 0.0, -0.5, (5 * 0.5 + 1) / 6),  # at the margin of the speed
        (1.2, 0.0, 0.0, 1 / 6),
        (1.2, 0.0, 1.0, 1 / 6),  # forwards counts for nothing
        (0.6, 0.0, -1.0, (3 * 0.1 + 1) / 4),  # at the margin of the height
        (1.2, np.pi, -1.0, 3 / 4),  # head down
        (1.2, np.pi / 2, -1.0, (3 + 0.5) / 4),
    ],
)
def test_backwards_walker(name, full_speed, height, tilt, speed_share, expected):
    qpos = {"rootz": height - 1.3, "rooty": tilt}  # the torso stands at 1.3 where the joints are at 0
    assert reward_at(name, qpos, {"rootx": speed_share * full_speed}) == pytest.approx(expected)


@pytest.mark.parametrize(("speed", "expected"), [(-8, 1.0), (-10, 1.0), (-4, 0.5), (-2, 0.25), (0, 0.0), (8, 0.0)])
def test_cheetah_run_backwards(speed, expected):
    assert reward_at("cheetah-run-backwards", {}, {"rootx": speed}) == pytest.approx(expected)


# Where the cheetah's joints are at 0, its torso stands at 0.7, bfoot at 0.7 - 0.25 - 0.14 = 0.31 and ffoot at
# 0.7 - 0.24 - 0.18 = 0.28. Lifting it by 0.29 puts bfoot at 0.6 (margin: 0.1) and the torso at 0.99; by 0.32 ffoot
# at 0.6 and the torso at 1.02.
@pytest.mark.parametrize(
    ("name", "lift", "speed", "expected"),
    [
        ("cheetah-run-front", 0.89, 6.0, 1.0),
        ("cheetah-run-front", 0.89, 3.0, (5 * 0.5 + 1) / 6),
        ("cheetah-run-front", 0.89, 0.0, 1 / 6),
        ("cheetah-run-front", 0.89, -6.0, 1 / 6),
        ("cheetah-run-front", 0.29, 6.0, (3 * 0.1 + 2 * 0.1 ** (0.21 / 0.6) ** 2) / 5),
        ("cheetah-run-back", 0.92, 9.0, 1.0),
        ("cheetah-run-back", 0.92, 1.5, (5 * 0.25 + 1) / 6),
        ("cheetah-run-back", 0.32, 6.0, (3 * 0.1 + 2 * 0.1 ** (0.18 / 0.6) ** 2) / 5),
    ],
)
def test_cheetah_on_one_foot(name, lift, speed, expected):
    assert reward_at(name, {"rootz": lift}, {"rootx": speed}) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lift", "speed", "expected"),
    [
        (0.71, 0.0, 1.0),  # torso 1.41, ffoot 0.99: their mean is 1.2
        (0.71, -0.5, 1.0),
        (0.71, 0.75, (5 + 0.5) / 6),
        (0.71, -2.0, 5 / 6),
        # torso 0.81, bfoot 0.42, ffoot 0.39: means 0.615 and 0.6
        (0.11, 2.0, 5 * (0.1 + 0.1 ** (0.585 / 0.6) ** 2) / 2 / 6),
    ],
)
def test_cheetah_jump(lift, speed, expected):
    assert reward_at("cheetah-jump", {"rootz": lift}, {"rootx": speed}) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tilt", "speed", "expected"),
    [
        (0.0, -1.0, 1.0),
        (0.0, -3.0, 1.0),
        (0.0, -0.5, 0.5),
        (0.0, 0.0, 0.0),
        (0.0, 2.0, 0.0),
        (np.pi, -1.0, 0.0),  # the foot above the torso
    ],
)
def test_hopper_hop_backwards(tilt, speed, expected):
    reward = reward_at("hopper-hop-backwards", {"rooty": tilt}, {"rootx": speed})
    assert reward == pytest.approx(expected)


@pytest.mark.parametrize(("name", "radius"), [("reacher-three-easy", 0.05), ("reacher-three-hard", 0.015)])
@pytest.mark.parametrize(
    ("qpos", "finger"),
    [
        ([0, 0, 0], (0.27, 0.0)),  # three links of 0.09 in a line
        ([np.pi / 2, 0, 0], (0.0, 0.27)),
        ([np.pi / 2, -np.pi / 2, 0], (0.18, 0.09)),
        ([0, 0, np.pi / 2], (0.18, 0.09)),
    ],
)
def test_reacher_three_is_rewarded_where_the_finger_touches_the_target(name, radius, qpos, finger):
    env = environment(name)
    env.reset()
    physics = env.physics
    for gap, expected in [(0.0, 1.0), (-0.001, 1.0), (0.001, 0.0)]:
        offset = radius + 0.01 + gap if gap else 0.0  # the finger's own radius is 0.01
        with physics.reset_context():
            physics.data.qpos[:] = qpos
            physics.named.model.geom_pos["target", ["x", "y"]] = finger[0] - offset, finger[1]
        assert env.task.get_reward(physics) == expected
        np.testing.assert_allclose(env.task.get_observation(physics)["to_target"], [-offset, 0.0], atol=1e-12)


def test_reacher_three_observes_position_vector_to_target_and_velocity_and_bounds_its_joints():
    env = environment("reacher-three-easy")
    observation = env.reset().observation
    assert {key: entry.shape for key, entry in observation.items()} == {
        "position": (3,),
        "to_target": (2,),
        "velocity": (3,),
    }
    assert list(observation) == ["position", "to_target", "velocity"]
    model = env.physics.named.model
    np.testing.assert_array_equal(model.jnt_limited[["shoulder0", "shoulder1", "wrist"]], [False, True, True])
    np.testing.assert_allclose(model.jnt_range[["shoulder1", "wrist"]], np.deg2rad([[-80, 80], [-80, 80]]))


# The cup's inside is centred at (0, 0.55); the ball stands at (0, 0.2) where its joints are at 0.
@pytest.mark.parametrize(
    ("ball", "velocity", "expected"),
    [
        ((0.0, 0.35), (6.0, 0.0), 0.0),  # inside the cup
        ((0.0, 0.35 - 0.25), (0.0, 3.0), (0.5 + 2 * 0.5) / 3),  # both at their margins
        ((0.3, 0.35 - 0.4), (3.6, -4.8), 1.0),  # distance 0.5, speed 6
        ((0.3, 0.35 - 0.4), (0.0, 0.0), 1 / 3),
        ((-0.15, 0.35 + 0.2), (0.0, -6.0), (0.5 + 2) / 3),
    ],
)
def test_cup_spin(ball, velocity, expected):
    qpos = dict(zip(("ball_x", "ball_z"), ball, strict=True))
    qvel = dict(zip(("ball_x", "ball_z"), velocity, strict=True))
    assert reward_at("cup-spin", qpos, qvel) == pytest.approx(expected)


def test_cup_spin_starts_inside_the_cup_in_nine_episodes_of_ten():
    env = environment("cup-spin")
    inside = []
    for _ in range(200):
        env.reset()
        assert env.physics.data.ncon == 0
        inside.append(env.physics.in_target())
    assert 0.82 < np.mean(inside) < 0.98  # 0.9, with a standard error of 0.021


@pytest.mark.parametrize(("velocity", "expected"), [(9, 1.0), (-12, 1.0), (-4.5, 0.5), (3, 1 / 3), (0, 0.0)])
def test_pendulum_spin(velocity, expected):
    assert reward_at("pendulum-spin", {}, {"hinge": velocity}) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "geom", "half_length"),
    [("walker-walk-backwards", "floor", 500), ("cheetah-run-backwards", "ground", 200)],
)
def test_the_floor_is_twice_as_long(name, geom, half_length):
    assert environment(name).physics.named.model.geom_size[geom, 0] == half_length


# The registry's random returns are means over ten episodes with a new action in every control step, no repeat.
# Tolerances: about four standard errors of the difference to a mean over two or three episodes.
@pytest.mark.parametrize(
    ("name", "episodes", "tolerance"),
    [
        ("cheetah-jump", 2, 5.0),  # an episode's standard deviation is 1.4
        ("cheetah-run-front", 2, 0.6),  # 0.2
        ("cheetah-run-back", 2, 0.6),  # 0.2
        ("walker-run-backwards", 2, 10.0),
        ("pendulum-spin", 5, 100.0),  # 45
    ],
)
def test_random_return_is_near_the_registrys(name, episodes, tolerance):
    task = dataclasses.replace(TASKS[name], action_repeat=1, episode_length=1000)
    env = dmcontrol.build(task, 1, "state")
    returns = []
    for _ in range(episodes):
        env.reset()
        returns.append(sum(env.step(env.action_space.sample())[1] for _ in range(1000)))
    assert np.mean(returns) == pytest.approx(task.random_return, abs=tolerance)
