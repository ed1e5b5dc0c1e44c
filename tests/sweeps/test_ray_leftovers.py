"""Ray whose processes were killed: what is left of it is cleared away, and it is started again."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tdmpc2.sweeps import ray_session
from tdmpc2.sweeps.executors import Outcome
from tdmpc2.sweeps.ray_executor import RayExecutor


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """Starts a process that names a folder, as those of Ray name their session's."""
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Path) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", f"--dir={folder}/s"]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_folder_of_a_killed_driver_goes_with_the_processes_that_are_left_of_it(
    start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "LONGEST_TEMPORARY_FOLDER", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, living = tmp_path / "ray-dead", tmp_path / "ray-living"
    for folder in (dead, living):
        (folder / "session" / "logs").mkdir(parents=True)
        (folder / "driver.lock").touch()
    left, others = start(dead), start(living)
    with (living / "driver.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder, own = ray_session._temporary_folder()
    own.close()
    assert not psutil.pid_exists(left.pid)
    assert others.poll() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, "ray-living"])
    assert (living / "session" / "logs").is_dir()


class BrokenSession:
    """A Ray whose raylet was killed."""

    def __init__(self) -> None:
        self.closed = False

    def lost(self) -> list[str]:
        return ["raylet"]

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("stopped", [False, True])
def test_ray_that_lost_a_process_is_started_again_and_its_runs_are_given_back(
    monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    executor, session, starts = RayExecutor(), BrokenSession(), []
    monkeypatch.setattr(executor, "_start", lambda: starts.append("again"))
    executor._session = session  # type: ignore[assignment]
    executor._attempts = {"attempt": SimpleNamespace(name="walker")}  # type: ignore[dict-item]
    executor._stopped = stopped
    assert executor.wait(0.0) == [Outcome("walker", "killed", "Ray's raylet was killed")]
    assert session.closed
    assert starts == ([] if stopped else ["again"])
    assert executor._attempts == {}
