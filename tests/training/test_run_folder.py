"""A run's folder: one run, one process at a time."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from tdmpc2.errors import UserError
from tdmpc2.training.folder import RunFolder, Status, write_text

STATUS = Status(
    state="running",
    agent_steps=500,
    total_agent_steps=1000,
    env_steps=1000,
    total_env_steps=2000,
    updates=0,
    seconds=1.5,
    seconds_left=None,
    phase="acting at random",
    last_return=None,
    message="",
    digest="0123",
    version="0.1.0",
    device="cpu",
    hardware="a machine",
    pid=1,
    host="here",
    updated=1e9,
)


def test_the_folder_is_named_by_experiment_task_size_label_and_seed(tiny):
    config = tiny(results_dir="results", exp_name="paper", label="wide", seed=3)
    assert RunFolder.of(config).path == Path("results/paper/runs/pendulum-swingup-1M-wide-seed3")


def test_the_resolved_settings_are_written_into_the_folder(tiny):
    config = tiny(lr=1e-5, steps=100)
    folder = RunFolder.of(config)
    folder.claim(config)
    assert folder.read_config() == config
    folder.release()


def test_a_second_process_is_refused_while_the_first_is_there_and_told_which_it_is(tiny):
    config = tiny()
    first, second = RunFolder.of(config), RunFolder.of(config)
    assert not second.is_claimed()
    first.claim(config)
    assert second.is_claimed()
    with pytest.raises(UserError, match=rf"process {os.getpid()} is working on this run; wait for it or stop it"):
        second.claim(config)
    assert second.is_claimed()  # the refusal changed nothing
    first.release()
    assert not second.is_claimed()
    second.claim(config)
    second.release()


def test_looking_whether_a_run_is_claimed_never_keeps_it_from_starting(tiny):
    config = tiny()
    folder = RunFolder.of(config)
    folder.claim(config)
    folder.release()
    looking, looked = threading.Event(), threading.Event()

    def look() -> None:
        with (folder.path / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            looking.set()
            time.sleep(0.02)
        looked.set()

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    folder.claim(config)
    assert looked.is_set()
    thread.join()
    folder.release()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 1e-3}, ["lr=0.0003 there, lr=0.001 now"]),
        ({"batch_size": 16, "mpc": False}, ["batch_size=8 there, batch_size=16 now", "mpc=True there, mpc=False now"]),
        ({"steps": 500}, ["steps=None there, steps=500 now"]),
    ],
)
def test_a_run_with_other_settings_is_refused_and_the_settings_are_named(tiny, changes, named):
    old = tiny()
    folder = RunFolder.of(old)
    folder.claim(old)
    folder.release()
    before = folder.config_file.read_bytes()
    with pytest.raises(UserError, match="holds a run with other settings") as refusal:
        folder.claim(tiny(**changes))
    for text in (*named, "another label= or exp_name="):
        assert text in str(refusal.value)
    assert folder.config_file.read_bytes() == before
    assert not folder.is_claimed()


def test_settings_that_leave_the_results_as_they_are_may_change(tiny):
    old = tiny()
    folder = RunFolder.of(old)
    folder.claim(old)
    folder.release()
    folder.claim(tiny(threads=2, checkpoint_freq=7, device="auto"))
    folder.release()


@pytest.mark.parametrize("content", ["task: [", "- a\n- b\n", "task: pendulum-swingup\nlearning_rate: 1\n", ""])
def test_damaged_settings_are_named_with_their_file(tiny, content):
    config = tiny()
    folder = RunFolder.of(config)
    folder.path.mkdir(parents=True)
    folder.config_file.write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml: "):
        folder.claim(config)
    assert folder.config_file.read_text() == content


def test_a_folder_without_settings_is_no_runs_folder(tmp_path):
    with pytest.raises(UserError, match=r"not a run's folder \(no config.yaml\)"):
        RunFolder(tmp_path).read_config()


def test_a_file_in_the_folders_place_is_a_clear_error(tiny, tmp_path):
    (tmp_path / "default").write_text("a file")
    with pytest.raises(UserError, match="cannot be made the run's folder"):
        RunFolder.of(tiny()).claim(tiny())


def test_what_a_killed_process_was_writing_is_cleared_away(tiny):
    config = tiny()
    folder = RunFolder.of(config)
    folder.checkpoint.parent.mkdir(parents=True)
    leftovers = [folder.checkpoint.parent / ".latest.pt.123.tmp", folder.path / ".status.json.123.456.tmp"]
    for path in (*leftovers, folder.checkpoint):
        path.write_bytes(b"half")
    folder.claim(config)
    folder.release()
    assert not any(path.exists() for path in leftovers)
    assert folder.checkpoint.read_bytes() == b"half"


def test_the_status_is_read_as_it_was_written(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_status() is None
    folder.write_status(STATUS)
    assert folder.read_status() == STATUS
    folder.write_status(dataclasses.replace(STATUS, seconds_left=12.5, last_return=-1.0))
    assert folder.read_status().seconds_left == 12.5


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "done"}', '{"colour": 1}'])
def test_a_damaged_status_counts_as_none(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.status_file.write_text(content)
    assert folder.read_status() is None


def test_a_text_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "text"
    write_text(path, "old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
