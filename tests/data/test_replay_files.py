"""A store's files: sparse, readable by tensordict, and refused where they are not what was asked for."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from tdmpc2.data.replay import Replay
from tdmpc2.errors import UserError

WALKER = {"task": "walker-walk", "obs_shape": (24,), "obs_dtype": "float32", "action_dim": 6}


@pytest.fixture
def folder(make, encode):
    replay = make()
    for episode in range(3):
        replay.add(**encode(episode, steps=4))
    replay.flush()
    replay.close()
    return replay.folder


def test_empty_store_of_a_million_rows_takes_almost_no_disk_space(tmp_path):
    Replay.create(tmp_path / "replay", **WALKER, capacity=1_000_000, slack=10_000)
    stats = [path.stat() for path in (tmp_path / "replay").iterdir()]
    assert sum(stat.st_size for stat in stats) > 1_010_000 * (24 * 4 + 6 * 4 + 4 + 1)
    assert sum(stat.st_blocks * 512 for stat in stats) < 200_000


def test_tensordict_reads_the_same_rows(folder, encode):
    from tensordict import TensorDict

    rows = TensorDict.load_memmap(folder, allow_pickle=False)
    assert rows.batch_size == torch.Size([150])
    assert set(rows.keys()) == {"obs", "action", "reward", "terminated"}
    for episode in range(3):
        stored, given = rows[5 * episode : 5 * episode + 5], encode(episode, steps=4)
        np.testing.assert_array_equal(stored["obs"].numpy(), given["obs"])
        for name in ("action", "reward", "terminated"):
            assert not stored[name][0].any()
            np.testing.assert_array_equal(stored[name][1:].numpy(), given[name])


def test_episode_log_is_first_row_rows_and_index_as_int64(folder):
    log = np.fromfile(folder / "episodes.bin", "<i8").reshape(-1, 3)
    assert log.tolist() == [[0, 5, 0], [5, 5, 1], [10, 5, 2]]


def test_store_opens_with_what_it_was_made_with(folder):
    expected = {"task": "walker-walk", "obs_shape": (2,), "obs_dtype": torch.float32, "action_dim": 3}
    replay = Replay.open(folder, **expected, capacity=100, slack=50, frame_stack=1)
    assert replay.state() == {"episodes": 3, "rows": 15}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("task", "walker-run", "task is 'walker-walk', but 'walker-run' was asked for"),
        ("obs_shape", (3,), r"obs_shape is \(2,\), but \(3,\) was asked for"),
        ("obs_dtype", np.uint8, "obs_dtype is 'float32', but 'uint8' was asked for"),
        ("action_dim", 6, "action_dim is 3, but 6 was asked for"),
        ("capacity", 99, "capacity is 100, but 99 was asked for"),
        ("slack", 51, "slack is 50, but 51 was asked for"),
        ("frame_stack", 2, "frame_stack is 1, but 2 was asked for"),
    ],
)
def test_store_of_another_layout_is_refused_naming_the_file_and_what_differs(folder, name, value, message):
    with pytest.raises(UserError, match=r"replay\.json: " + message):
        Replay.open(folder, **{name: value})


def test_expecting_an_unknown_property_names_the_nearest(folder):
    with pytest.raises(UserError, match="unknown setting 'capcity'; did you mean 'capacity'"):
        Replay.open(folder, capcity=100)


def test_folder_without_a_store_is_refused(tmp_path):
    assert not Replay.exists(tmp_path)
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"holds no replay store \(replay\.json is missing\)"):
            Replay.open(folder)


def edit_description(folder, **changes):
    path = folder / "replay.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "format version 2, this program reads 1"),
        ({"capacity": "many"}, "capacity: "),
        ({"obs_dtype": "float16"}, "obs_dtype: "),
        ({"surprise": 1}, "unknown setting 'surprise'"),
        ({"obs_shape": []}, "obs_shape: "),
    ],
)
def test_description_that_is_not_understood_is_refused(folder, changes, message):
    edit_description(folder, **changes)
    with pytest.raises(UserError, match=r"replay\.json: " + message):
        Replay.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}'])
def test_description_cut_off_or_foreign_is_refused(folder, text):
    (folder / "replay.json").write_text(text)
    with pytest.raises(UserError, match=r"replay\.json: "):
        Replay.open(folder)


@pytest.mark.parametrize("name", ["obs", "action", "reward", "terminated"])
def test_truncated_or_missing_field_file_is_refused(folder, name):
    path = folder / f"{name}.memmap"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(UserError, match=rf"{name}\.memmap: {size - 1:,} bytes, but 150 rows take {size:,}"):
        Replay.open(folder)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}\.memmap: is missing"):
        Replay.open(folder)


def test_missing_episode_log_is_refused(folder):
    (folder / "episodes.bin").unlink()
    with pytest.raises(UserError, match=r"episodes\.bin: is missing"):
        Replay.open(folder)


@pytest.mark.parametrize("record", [(6, 5, 1), (5, 5, 2), (5, 1, 1), (5, 101, 1), (5, -5, 1), (5, 2**62, 1)])
def test_episode_log_that_points_elsewhere_is_refused_by_readers(folder, record):
    log = np.fromfile(folder / "episodes.bin", "<i8").reshape(-1, 3)
    log[1] = record
    log.tofile(folder / "episodes.bin")
    with pytest.raises(UserError, match=r"episodes\.bin: the record of episode 1 does not follow"):
        Replay.open(folder, writable=False)


def test_creating_over_a_store_is_refused_and_leaves_it_as_it_was(folder, make):
    with pytest.raises(UserError, match="holds a replay store already"):
        make()
    assert Replay.open(folder).num_episodes == 3


def test_creation_that_was_cut_off_is_no_store_and_can_be_made_again(folder, make):
    (folder / "replay.json").unlink()  # it is written last
    assert not Replay.exists(folder)
    assert make().state() == {"episodes": 0, "rows": 0}


@pytest.mark.parametrize(
    ("name", "value"),
    [("capacity", 0), ("slack", 0), ("action_dim", 0), ("obs_dtype", "float64"), ("obs_shape", ()), ("frame_stack", 3)],
)
def test_layout_that_makes_no_sense_is_refused(make, name, value):
    with pytest.raises(UserError, match=name):
        make(**{name: value})


def test_store_can_be_moved_and_read_where_it_cannot_be_written(folder, tmp_path):
    moved = shutil.move(folder, tmp_path / "elsewhere")
    for path in moved.iterdir():
        path.chmod(0o444)
    assert Replay.open(moved, writable=False).episode(2)["obs"][1].tolist() == [2, 1]


def test_reading_survives_files_that_the_system_lets_nobody_write(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert Replay.open(folder, writable=False).episode(2)["obs"][1].tolist() == [2, 1]
