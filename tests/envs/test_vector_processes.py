"""Environments in worker processes: as in this one, and what becomes of the workers."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import tdmpc2.envs.vector
from tdmpc2.envs.vector import ProcessVectorEnv, WorkerDiedError, make_vector_env
from tdmpc2.errors import UserError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes and signals as POSIX has them")


class UnpicklableError(Exception):
    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"{number}: {reason}")


class CountingEnv(gymnasium.Env[Any, Any]):
    """Counts its steps and adds up its actions; ends at step `length`. An action of 9 or more is mischief."""

    def __init__(self, length: int = 100, folder: str = "", owner: int | None = None) -> None:
        if owner not in (None, os.getpid()):
            raise UserError("cannot be built in a worker")
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-10, 10, (1,), np.float32)
        self.length, self.folder = length, folder

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.count, self.sum = 0, float(seed or 0)
        return np.array([0, self.sum], np.float32), {"begun": options["begun"] if options else "so"}

    def step(self, action: Any) -> Any:
        mischief = int(action[0])
        if mischief == 9:
            raise UserError("nine is too much")
        if mischief == 10:
            raise UnpicklableError(10, "far too much")
        if mischief == 11:
            os._exit(3)
        if mischief == 12:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            Path(self.folder, "stuck").touch()
            time.sleep(600)
        if mischief == 13:
            wait_until(Path(self.folder, "go on").exists)
        self.count += 1
        self.sum += float(action[0])
        obs = np.array([self.count, self.sum], np.float32)
        info: dict[str, Any] = {"success": self.sum / 2, "of": {"this": self.count}}
        if self.count == 2:
            info["second"] = np.array([self.sum, 1.0])
        return obs, self.sum, self.count == self.length, self.count == 50, info

    def close(self) -> None:
        if self.folder:
            Path(self.folder, f"closed by {os.getpid()}").touch()


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for 30 s"
        time.sleep(0.01)


def counting(count: int, workers: int, take_part: bool = False, **options: Any) -> ProcessVectorEnv:
    return ProcessVectorEnv([functools.partial(CountingEnv, **options)] * count, workers, take_part)


def actions(*values: float) -> Any:
    return np.array(values, np.float32)[:, None]


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    else:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("take_part", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 4, 9])
def test_any_number_of_workers_does_what_one_process_does(workers, take_part):
    builders = [functools.partial(CountingEnv, length) for length in (2, 3, 4, 2, 3)]
    split = ProcessVectorEnv(builders, workers, take_part)
    whole = SyncVectorEnv(builders, autoreset_mode=AutoresetMode.DISABLED)
    assert len(split.processes) == min(workers, 5) - take_part
    assert split.action_space == whole.action_space
    assert split.observation_space == whole.observation_space
    assert split.metadata["autoreset_mode"] == AutoresetMode.DISABLED

    def same(call: Any) -> Any:
        found, expected = call(split), call(whole)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
        return found

    same(lambda env: env.reset())
    same(lambda env: env.reset(seed=7))
    same(lambda env: env.reset(seed=[5, 6, 7, 8, 9], options={"begun": "by option"}))
    rng = np.random.default_rng(0)
    for _ in range(6):
        action = rng.uniform(-1, 1, (5, 1)).astype(np.float32)
        _, _, terminated, truncated, _ = same(lambda env, action=action: env.step(action))
        if (ended := terminated | truncated).any():
            seeds = rng.integers(100, size=5).tolist()
            same(lambda env, s=seeds, m=ended: env.reset(seed=s, options={"begun": "again", "reset_mask": m}))
    split.close()


def test_what_it_returns_stays_as_it_was_when_the_environments_go_on():
    env = counting(2, 2)
    first, _ = env.reset()
    env.step(actions(1, 2))
    np.testing.assert_array_equal(first, [[0, 0], [0, 0]])
    env.close()


def test_a_step_goes_on_in_the_background_until_it_is_waited_for(tmp_path):
    env = counting(3, 2, folder=str(tmp_path))
    env.reset()
    env.step_async(actions(13, 0, 0))
    (tmp_path / "go on").touch()  # if step_async waited for the step, this would not be reached
    observations, *_ = env.step_wait()
    np.testing.assert_array_equal(observations, [[1, 13], [1, 0], [1, 0]])
    env.close()


def test_calls_out_of_turn_are_refused():
    env = counting(2, 1)
    env.reset()
    with pytest.raises(NoAsyncCallError, match="step_async"):
        env.step_wait()
    env.step_async(actions(1, 1))
    with pytest.raises(AlreadyPendingCallError, match="step_wait"):
        env.step_async(actions(1, 1))
    assert env.step_wait()[1].tolist() == [1, 1]
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.reset()


def test_a_reset_takes_the_place_of_a_step_under_way():
    env = counting(2, 2)
    env.reset()
    env.step_async(actions(1, 1))
    assert env.reset(seed=[3, 4])[0].tolist() == [[0, 3], [0, 4]]
    assert env.step(actions(1, 1))[1].tolist() == [4, 5]
    env.close()


@pytest.mark.parametrize(
    ("mischief", "kind", "message"),
    [(9, UserError, "nine is too much"), (10, RuntimeError, "UnpicklableError: 10: far too much")],
)
def test_an_environments_error_is_raised_here_and_ends_the_workers(mischief, kind, message):
    env = counting(4, 2)
    env.reset()
    with pytest.raises(kind) as caught:
        env.step(actions(0, 0, 0, mischief))
    assert str(caught.value) == message
    assert "test_vector_processes.py" in caught.value.__notes__[0]  # where it happened
    assert not any(process.is_alive() for process in env.processes)
    with pytest.raises(ClosedEnvironmentError):
        env.step(actions(0, 0, 0, 0))
    env.close(terminate=True)


@pytest.mark.parametrize(
    ("mischief", "kind", "message"),
    [(9, UserError, "nine is too much"), (10, UnpicklableError, "10: far too much")],
)
def test_an_error_in_the_owners_own_share_is_raised_as_it_is_and_ends_the_workers(mischief, kind, message):
    env = counting(4, 3, take_part=True)
    env.reset()
    with pytest.raises(kind) as caught:
        env.step(actions(mischief, 0, 0, 0))
    assert str(caught.value) == message
    assert not any(process.is_alive() for process in env.processes)
    with pytest.raises(ClosedEnvironmentError):
        env.step(actions(0, 0, 0, 0))


def test_a_worker_beside_the_owners_own_share_is_named_when_it_dies(tmp_path):
    env = counting(3, 3, take_part=True, folder=str(tmp_path))
    env.reset()
    with pytest.raises(WorkerDiedError, match=r"environment process 2 of 3 died \(exit code 3\)"):
        env.step(actions(0, 11, 0))
    assert env.processes[0].exitcode == 3
    assert not env.processes[1].is_alive()
    assert (tmp_path / f"closed by {os.getpid()}").exists()


def test_an_environment_that_cannot_be_built_in_its_worker_says_why():
    env = counting(2, 2, owner=os.getpid())
    with pytest.raises(UserError, match="cannot be built in a worker"):
        env.reset()
    assert not any(process.is_alive() for process in env.processes)


def test_a_worker_that_dies_is_named_and_ends_the_others():
    env = counting(4, 2)
    env.reset()
    with pytest.raises(WorkerDiedError, match=r"environment process 2 of 2 died \(exit code 3\)"):
        env.step(actions(0, 11, 0, 0))
    assert not any(process.is_alive() for process in env.processes)


def test_a_worker_killed_between_two_steps_is_missed_at_the_next():
    env = counting(2, 2)
    env.reset()
    env.processes[0].kill()
    env.processes[0].join()
    with pytest.raises(WorkerDiedError, match=r"environment process 1 of 2 died \(signal SIGKILL; .* out of memory"):
        env.step(actions(0, 0))
    assert not env.processes[1].is_alive()


def test_closing_lets_environments_close(tmp_path):
    env = counting(2, 2, folder=str(tmp_path))
    env.reset()
    env.close()
    for process in env.processes:
        assert process.exitcode == 0
        assert (tmp_path / f"closed by {process.pid}").exists()


@pytest.mark.parametrize("terminate", [True, False])
def test_closing_ends_a_worker_that_is_stuck_and_deaf_to_requests(monkeypatch, tmp_path, terminate):
    monkeypatch.setattr(tdmpc2.envs.vector, "CLOSE_SECONDS", 0.2)
    env = counting(2, 2, folder=str(tmp_path))
    env.reset()
    env.step_async(actions(0, 12))
    wait_until((tmp_path / "stuck").exists)
    start = time.monotonic()
    env.close(terminate=terminate)
    assert time.monotonic() - start < 10
    assert env.processes[1].exitcode == -signal.SIGKILL
    assert not env.processes[0].is_alive()


def test_no_worker_outlives_its_owner(tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(
        f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_vector_processes import counting
if __name__ == "__main__":
    env = counting(3, 3)
    env.reset()
    print(*(process.pid for process in env.processes), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 3
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in workers))


def test_tasks_side_by_side_share_as_many_workers_as_asked_for():
    vector = make_vector_env(["pendulum-spin"] * 5, list(range(5)), parallel=True, workers=2)
    assert len(vector.processes) == 2
    assert vector.reset()[0].shape == (5, 3)
    vector.close()
