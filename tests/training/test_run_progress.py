"""Signs of life."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tdmpc2.training.folder import RunFolder
from tdmpc2.training.progress import RunProgress, format_duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock shows: its only entry, in seconds."""
    now = [1000.0]
    monkeypatch.setattr("tdmpc2.training.progress.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def make(tiny: Any) -> Any:
    def progress(show: bool = False) -> tuple[RunProgress, RunFolder]:
        config = tiny(steps=1000)
        folder = RunFolder.of(config)
        folder.path.mkdir(parents=True, exist_ok=True)
        return RunProgress(folder, config, show), folder

    return progress


def test_the_status_says_running_before_anything_else_happens(make):
    _, folder = make()
    status = folder.read_status()
    assert (status.state, status.phase, status.agent_steps, status.message) == ("running", "starting", 0, "")
    assert (status.total_agent_steps, status.total_env_steps) == (1000, 2000)
    assert status.hardware != ""


def test_the_status_is_written_every_other_second_in_environment_steps_too(make, clock):
    progress, folder = make()
    clock[0] += 1
    progress.update("learning", 600, 500)
    assert folder.read_status().agent_steps == 0
    clock[0] += 1
    progress.update("learning", 610, 510)
    status = folder.read_status()
    assert (status.agent_steps, status.env_steps, status.updates, status.phase) == (610, 1220, 510, "learning")
    assert status.seconds == 2.0


def test_the_time_left_follows_from_the_updates_of_late(make, clock):
    progress, _ = make()
    assert progress.seconds_left() is None
    for second in range(0, 300, 2):
        clock[0] = 1000.0 + second
        progress.update("learning", 0, 0 if second == 0 else second + (200 if second > 150 else 0))
    # Of the last 120 seconds, which lie behind the jump, each had one update; 1000 - 498 are left.
    assert progress.speed() == pytest.approx(1.0)
    assert progress.seconds_left() == pytest.approx(1000 - 498)


def test_a_random_phase_has_no_speed_yet(make, clock):
    progress, folder = make()
    for _ in range(5):
        clock[0] += 10
        progress.update("acting at random", 500, 0)
    assert progress.speed() is None
    assert folder.read_status().seconds_left is None


@pytest.mark.parametrize("state", ["done", "failed", "interrupted"])
def test_a_finished_run_has_no_time_left(make, clock, state):
    progress, folder = make()
    for updates in (100, 200, 300):
        clock[0] += 10
        progress.update("learning", updates, updates)
    assert folder.read_status().seconds_left == pytest.approx(70)
    progress.finish(state, "why")
    status = folder.read_status()
    assert (status.state, status.seconds_left, status.message, status.updates) == (state, None, "why", 300)


def test_a_resumed_run_starts_from_its_checkpoint(make, clock):
    progress, folder = make()
    clock[0] += 100
    progress.evaluated(12.5)
    progress.update("learning", 700, 600)

    clock[0] += 1000  # nobody worked on it
    resumed, _ = make()
    status = folder.read_status()  # until the checkpoint is read, what was last told
    assert (status.state, status.agent_steps, status.updates) == ("running", 700, 600)
    assert status.seconds == 100
    resumed.begin(torch.device("cpu"), 650, 550, 90.0)
    clock[0] += 3
    resumed.finish("interrupted")
    status = folder.read_status()
    assert (status.agent_steps, status.updates, status.seconds) == (650, 550, 93.0)
    assert status.last_return == 12.5


def test_without_a_terminal_a_line_comes_now_and_then_with_speed_and_time_left(make, clock, capsys):
    progress, _ = make(show=True)
    for second in range(0, 64, 4):
        clock[0] = 1000.0 + second
        progress.update("learning", second + 10, second)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # in a minute
    assert "pendulum-swingup-1M-seed1: learning" in lines[-1]
    assert "/2,000 env steps" in lines[-1]
    assert "(1 a second)" in lines[-1]
    assert lines[-1].endswith("min left")


def test_a_quiet_run_writes_nothing_to_the_terminal(make, clock, capsys):
    progress, _ = make(show=False)
    clock[0] += 100
    progress.update("learning", 10, 10)
    progress.note("resuming")
    progress.finish("done")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (89, "89 s"),
        (90, "2 min"),
        (720, "12 min"),
        (12_000, "3 h 20 min"),
        (3600, "1 h 00 min"),
        (47.9 * 3600, "47 h 54 min"),
        (52 * 3600, "2 d 4 h"),
    ],
)
def test_durations_are_told_as_people_tell_them(seconds, text):
    assert format_duration(seconds) == text
