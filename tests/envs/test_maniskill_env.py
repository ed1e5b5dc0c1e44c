"""ManiSkill: the client against a worker with a made-up simulator, the worker's parts, the real one if it is here."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import numpy as np
import psutil
import pytest
from gymnasium.error import ResetNeeded

from tdmpc2.envs import maniskill
from tdmpc2.envs.make import make_env, why_unavailable
from tdmpc2.envs.maniskill_worker import EngineWithoutRenderer, Nothing, answer, read_message, write_message
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASKS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell script stands for ManiSkill's Python")

FAKE = """
import importlib.util, os, sys
from types import SimpleNamespace
import numpy as np

spec = importlib.util.spec_from_file_location("worker", sys.argv[1])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
FAULT = os.environ.get("FAKE_FAULT", "")

class Simulator:
    # Rewards are the actions' sums. It is solved while the last action's first entry is 1; entries of -1 are mischief.
    action_space, observation_space = SimpleNamespace(shape=(4,)), SimpleNamespace(shape=(51,))
    control_freq = 20

    def reset(self, seed):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.steps = 0
        return self.rng.random(51), {}

    def step(self, action):
        if action[3] == -1:
            raise ArithmeticError("the arm is broken")
        if action[2] == -1:
            print("out of joints", file=sys.stderr, flush=True)
            os._exit(3)
        self.steps += 1
        print("this must not mix with the answers")
        obs = np.full(51, self.steps, np.float64)
        return obs, float(action.sum()), bool(action[0] == 1), False, {"success": bool(action[0] == 1)}

    def render(self):
        return np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)

def make(task, control_mode, pictures):
    assert (task, control_mode) == ("PickCube-v0", "pd_ee_delta_pos"), (task, control_mode)
    if FAULT == "everything" or (FAULT == "pictures" and pictures):
        raise ImportError("no Vulkan for you")
    with open(os.environ["FAKE_LOG"], "a") as log:
        print(os.getpid(), "with pictures" if pictures else "without", file=log)
    return Simulator()

worker.make = make
sys.argv = sys.argv[1:]
sys.exit(worker.main())
"""


@pytest.fixture
def workers(monkeypatch, tmp_path) -> Any:
    """Has the fake worker started in place of the real one; gives its log: process number, and with pictures or not."""
    script, python, log = tmp_path / "fake.py", tmp_path / "python", tmp_path / "log"
    script.write_text(FAKE)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv(maniskill.PYTHON_VARIABLE, str(python))
    monkeypatch.setenv("FAKE_LOG", str(log))
    monkeypatch.setattr(maniskill, "_renders", None)

    def started() -> list[tuple[int, str]]:
        lines = [line.split(" ", 1) for line in log.read_text().splitlines()] if log.exists() else []
        return [(int(pid), how) for pid, how in lines]

    yield started
    for pid, _ in started():
        wait_until(lambda pid=pid: gone(pid))


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for 30 s"
        time.sleep(0.01)


def test_spaces_are_the_registrys_and_an_episode_comes_over_the_wire(workers):
    env = make_env("pick-cube", seed=3)
    assert env.action_space.shape == (4,)
    assert env.metadata["render_fps"] == 10  # an agent step is 2 control steps of 1/20 s
    observation, info = env.reset()
    np.testing.assert_array_equal(observation, np.random.default_rng(3).random(51).astype(np.float32))
    assert observation.dtype == np.float32
    assert info == {"success": 0.0}
    observation, reward, *ends, info = env.step(np.array([0.5, 0.25, -0.5, 0.0]))
    assert observation.tolist() == [2.0] * 51  # two control steps
    assert reward == 0.5  # of 0.25 each
    assert (ends, info) == ([False, False], {"success": 0.0})
    observation[0] = 9  # what was received can be written into
    env.close()


def test_the_first_episode_is_the_construction_seeds_and_the_stream_goes_on_from_there(workers):
    env = make_env("pick-cube", seed=3)
    starts = [env.reset()[0], env.reset()[0]]
    stream = np.random.default_rng(3)
    for start in starts:
        np.testing.assert_array_equal(start, stream.random(51).astype(np.float32))
    np.testing.assert_array_equal(env.reset(seed=3)[0], starts[0])
    env.close()


def test_an_episode_goes_on_after_success_to_100_agent_steps_and_must_then_be_reset(workers):
    env = make_env("pick-cube")
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(4))
    env.reset()
    steps = [env.step([level, 0, 0, 0])[2:] for level in [1] * 60 + [0.5] * 40]
    assert [step[:2] for step in steps] == [(False, False)] * 99 + [(False, True)]
    assert [info["success"] for *_, info in steps] == [1.0] * 60 + [0.0] * 40
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(4))
    env.close()


def test_pictures_are_brought_to_the_size_of_videos(workers):
    env = make_env("pick-cube")
    env.reset()
    picture = env.render()
    assert picture.shape == (384, 384, 3)
    assert picture.dtype == np.uint8
    # Four rows of two pixels; each is 96 x 192 now.
    assert picture[95, 191].tolist() == [0, 1, 2]
    assert picture[95, 192].tolist() == [3, 4, 5]
    assert picture[96, 0].tolist() == [6, 7, 8]
    env.close()


def test_without_a_renderer_the_task_runs_and_says_that_there_are_no_pictures(monkeypatch, workers):
    monkeypatch.setenv("FAKE_FAULT", "pictures")
    first, second = make_env("pick-cube"), make_env("pick-cube")
    assert [how for _, how in workers()] == ["without", "without"]
    first.reset()
    first.step(np.zeros(4))
    with pytest.raises(UserError, match="pick-cube: no pictures here: ManiSkill2 renders on a Vulkan device alone"):
        first.render()
    first.close()
    second.close()


def test_where_the_renderer_has_worked_a_later_failure_is_not_taken_for_a_missing_one(monkeypatch, workers):
    make_env("pick-cube").close()
    monkeypatch.setenv("FAKE_FAULT", "pictures")
    with pytest.raises(RuntimeError, match="no Vulkan for you"):
        make_env("pick-cube")


def test_a_simulator_that_cannot_be_made_says_why_and_leaves_nothing_running(monkeypatch, workers):
    monkeypatch.setenv("FAKE_FAULT", "everything")
    with pytest.raises(RuntimeError) as caught:
        make_env("pick-cube")
    assert str(caught.value) == "pick-cube: ManiSkill2's worker: ImportError: no Vulkan for you"
    assert workers() == []


def test_an_error_of_the_simulator_is_raised_here_and_ends_the_worker(workers):
    env = make_env("pick-cube")
    env.reset()
    with pytest.raises(RuntimeError) as caught:
        env.step([0, 0, 0, -1])
    assert str(caught.value) == "pick-cube: ManiSkill2's worker: ArithmeticError: the arm is broken"
    with pytest.raises(RuntimeError, match="was closed, or an error has ended it"):
        env.reset()
    env.close()


def test_a_worker_that_ends_by_itself_is_told_with_what_it_said_last(workers):
    env = make_env("pick-cube")
    env.reset()
    with pytest.raises(RuntimeError) as caught:
        env.step([0, 0, -1, 0])
    assert str(caught.value) == "pick-cube: ManiSkill2's worker: died (exit code 3); it said: out of joints"
    env.close()


def test_a_worker_that_was_killed_between_two_steps_is_missed_at_the_next(workers):
    env = make_env("pick-cube")
    env.reset()
    [(pid, _)] = workers()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(pid))
    with pytest.raises(RuntimeError, match=r"died \(signal SIGKILL; the system may have run out of memory\)"):
        env.step(np.zeros(4))
    env.close()
    env.close()


def test_after_ctrl_c_no_answer_is_taken_for_another_ones(monkeypatch, workers):
    env = make_env("pick-cube")
    env.reset()

    def interrupted(stream):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(maniskill, "read_message", interrupted)
        with pytest.raises(KeyboardInterrupt):
            env.step(np.zeros(4))
    with pytest.raises(RuntimeError, match="was closed, or an error has ended it"):
        env.step(np.zeros(4))
    env.close()


def test_closing_ends_the_worker(workers):
    env = make_env("pick-cube")
    env.close()
    env.close()
    [(pid, _)] = workers()
    assert not psutil.pid_exists(pid)
    with pytest.raises(RuntimeError, match="pick-cube: the environment was closed"):
        env.reset()


VECTOR = """
import os, signal, sys
import numpy as np
from tdmpc2.envs.vector import make_vector_env

if __name__ == "__main__":
    env = make_vector_env(["pick-cube"] * 2, [0, 1], parallel=True, workers=2)
    env.reset(seed=[3, 4])
    print(env.step(np.full((2, 4), 0.25))[1].tolist(), flush=True)
    pids = [int(line.split()[0]) for line in open(os.environ["FAKE_LOG"])]
    if sys.argv[1] == "kill worker":
        os.kill(pids[-1], signal.SIGKILL)
        try:
            env.step(np.zeros((2, 4)))
        except RuntimeError as error:
            print(error, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("deed", ["kill worker", "only itself"])
def test_in_processes_a_killed_worker_is_named_and_none_outlives_its_owner(workers, tmp_path, deed):
    script = tmp_path / "owner.py"
    script.write_text(VECTOR)
    done = subprocess.run([sys.executable, script, deed], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    lines = done.stdout.splitlines()
    assert lines[0] == "[2.0, 2.0]"
    if deed == "kill worker":
        assert lines[1].startswith("pick-cube: ManiSkill2's worker: died (signal SIGKILL")
    assert len(workers()) == 3  # one to learn the spaces from
    for pid, _ in workers():
        wait_until(lambda pid=pid: gone(pid))


def test_a_python_that_is_not_where_the_variable_says_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(maniskill.PYTHON_VARIABLE, str(tmp_path / "python"))
    reason = why_unavailable("pick-cube")
    assert reason.startswith(f"ManiSkill2 is not installed where TDMPC2_MANISKILL_PYTHON says, {tmp_path / 'python'};")


@pytest.mark.parametrize("array", [None, np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::2], np.zeros((0, 4)), 2.5])
def test_messages_are_read_as_they_were_written(array):
    stream = io.BytesIO()
    write_message(stream, {"command": "step", "text": "line\nbreak"}, None if array is None else np.asarray(array))
    write_message(stream, {"command": "next"})
    stream.seek(0)
    message, found = read_message(stream)
    assert (message["command"], message["text"]) == ("step", "line\nbreak")
    if array is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, np.asarray(array).reshape(found.shape))
        assert found.dtype == np.asarray(array).dtype
    assert read_message(stream) == ({"command": "next"}, None)


@pytest.mark.parametrize("kept", [0, 5, -3])
def test_a_message_that_was_broken_off_is_the_end(kept):
    stream = io.BytesIO()
    write_message(stream, {"command": "step"}, np.zeros(4))
    with pytest.raises(EOFError):
        read_message(io.BytesIO(stream.getvalue()[:kept]))


def test_an_unknown_command_is_refused():
    with pytest.raises(ValueError, match="unknown command 'fly'"):
        answer(None, {"command": "fly"}, None)


def test_what_stands_for_the_renderer_swallows_everything():
    renderer = Nothing("a", log=1)
    assert renderer.create_material().set_base_color([1, 0, 0]) is renderer
    renderer.color = 3

    class Engine:
        def set_renderer(self, renderer: Any) -> None:
            raise AssertionError("it was given a renderer")

        def create_scene(self, config: int) -> str:
            return f"scene {config}"

    engine = EngineWithoutRenderer(Engine())
    engine.set_renderer(renderer)
    assert engine.create_scene(2) == "scene 2"


def test_the_worker_stands_alone():
    code = textwrap.dedent(f"""
        import runpy, sys
        runpy.run_path({str(maniskill.WORKER)!r}, run_name="worker")
        print([name for name in sys.modules if name.split(".")[0] in ("tdmpc2", "gymnasium", "mani_skill2", "torch")])
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(maniskill.find_python() is None, reason="ManiSkill2's environment is not installed")
def test_the_real_pick_cube_repeats_an_episode_from_its_seed():
    from tdmpc2.task_commands import check_task

    assert check_task("pick-cube") == ""
    env = make_env("pick-cube", seed=1)
    assert env.observation_space.shape == (TASKS["pick-cube"].obs_dim,)
    first, second = env.reset()[0], env.reset()[0]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(env.reset(seed=1)[0], first)
    _, reward, *ends, info = env.step(np.zeros(4))
    assert 0 < reward < 10  # dense, of two control steps; a normalised one would stay below 2
    assert (ends, info) == ([False, False], {"success": 0.0})
    env.close()
