import os
import subprocess
import sys

import numpy as np
import pytest

from tdmpc2.envs.make import make_env
from tdmpc2.envs.rendering import import_without_gl, switch_rendering_on
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASK_SETS


@pytest.fixture
def opengl():
    import_without_gl()
    try:
        switch_rendering_on()
    except UserError as error:
        pytest.skip(str(error))


def python(code: str, **env: str) -> str:
    inherited = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    result = subprocess.run([sys.executable, "-c", code], env=inherited | env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


STATE_THEN_RGB = """
import os, sys
from tdmpc2 import UserError, make_env
env = make_env("pendulum-spin")
env.reset()
env.step([0.5])
assert not any(name.startswith("OpenGL") for name in sys.modules)
assert os.environ.get("MUJOCO_GL") in (None, "off")
for render in (lambda: make_env("pendulum-spin", obs="rgb"), env.render):
    try:
        render()
    except UserError as error:
        print(error)
env.step([0.5])
"""


def test_state_observations_need_no_opengl_and_pixels_say_what_to_install():
    # This platform does not exist, so neither EGL nor OSMesa can be loaded.
    messages = python(STATE_THEN_RGB, PYOPENGL_PLATFORM="none").splitlines()
    assert len(messages) == 2
    for message in messages:
        assert message.startswith("no OpenGL to render with")
        assert "libegl1 and libgl1-mesa-dri" in message
        assert "libosmesa6" in message


def test_rendering_that_the_user_switched_off_stays_off():
    messages = python(STATE_THEN_RGB, MUJOCO_GL="off").splitlines()
    assert messages == ["MUJOCO_GL=off switches rendering off; unset it, or set it to egl or osmesa"] * 2


def test_an_opengl_that_the_user_chose_and_mujoco_cannot_load_is_named():
    code = """
from tdmpc2 import UserError, make_env
for _ in range(2):
    try:
        make_env("pendulum-spin")
    except UserError as error:
        print(error)
"""
    messages = python(code, MUJOCO_GL="nonsense").splitlines()
    assert len(messages) == 2
    for message in messages:
        assert message.startswith("MUJOCO_GL=nonsense cannot be loaded")


def test_pixel_observations_are_three_frames_the_first_one_repeated(opengl):
    env = make_env("cartpole-swingup", seed=2, obs="rgb")
    start, _ = env.reset()
    assert start.shape == (9, 64, 64)
    assert start.dtype == np.uint8
    assert start in env.observation_space
    np.testing.assert_array_equal(start[:3], start[3:6])
    np.testing.assert_array_equal(start[:3], start[6:])
    previous = start
    for _ in range(4):
        observation, *_ = env.step(np.ones(1))
        np.testing.assert_array_equal(observation[:6], previous[3:])  # the oldest frame goes, the newest comes last
        assert not np.array_equal(observation[6:], previous[6:])
        previous = observation
    np.testing.assert_array_equal(env.reset(seed=2)[0], start)
    env.close()


def test_pixels_show_the_scene_upright_with_channels_first(opengl):
    env = make_env("reacher-easy", obs="rgb")
    env.reset()
    physics = env.environment.physics
    with physics.reset_context():  # seen from above: the arm points right, the red target lies above the middle
        physics.data.qpos[:] = 0
        physics.named.model.geom_pos["target", ["x", "y"]] = 0.0, 0.15
    red, _, blue = env.step(np.zeros(2))[0][6:].astype(int)
    redness = red - blue  # rows, columns; the floor is blue
    above, below = redness[8:28, 24:40].mean(), redness[36:56, 24:40].mean()
    left, right = redness[28:36, 16:28].mean(), redness[28:36, 36:48].mean()
    assert above > below + 20
    assert right > left + 20
    env.close()


def test_render_gives_a_picture_of_its_own_size_and_leaves_the_rollout_alone(opengl):
    watched, unwatched = (make_env("hopper-hop", seed=1, obs="rgb") for _ in range(2))
    watched.reset()
    unwatched.reset()
    picture = watched.render()
    assert picture.shape == (384, 384, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 5  # not blank
    np.testing.assert_array_equal(watched.step(np.ones(4))[0], unwatched.step(np.ones(4))[0])
    watched.close()
    unwatched.close()


def test_closing_one_environment_leaves_the_others_renderer_working(opengl):
    first, second = make_env("cartpole-swingup", obs="rgb"), make_env("pendulum-spin", obs="rgb")
    first.reset()
    start, _ = second.reset(seed=5)
    first.close()
    with pytest.raises(RuntimeError, match="closed"):
        first.render()
    np.testing.assert_array_equal(second.reset(seed=5)[0], start)
    second.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", TASK_SETS["dmcontrol"])
def test_every_dmcontrol_task_has_pixels_that_show_it_moving(opengl, name):
    env = make_env(name, seed=1, obs="rgb")
    frames = [env.reset(seed=1)[0][6:]]
    frames += [env.step(np.ones(env.action_space.shape))[0][6:] for _ in range(2)]
    for frame in frames:
        assert frame.shape == (3, 64, 64)
        assert frame.dtype == np.uint8
        assert frame.std() > 5  # not of one colour
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])
    env.close()


def test_shadows_of_other_simulators_are_drawn_on_a_small_map_and_the_scene_stays_as_it_is(opengl):
    pytest.importorskip("metaworld")
    env = make_env("mw-reach", seed=1)
    before, _ = env.reset(seed=1)
    picture = env.render()
    assert picture.shape == (384, 384, 3)
    assert picture.std() > 5
    assert env.environment.model.vis.quality.shadowsize == 1024  # MuJoCo's own 4,096 take 64 MB an environment
    np.testing.assert_array_equal(env.reset(seed=1)[0], before)
    env.close()
