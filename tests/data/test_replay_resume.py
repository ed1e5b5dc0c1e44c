"""A store that was killed at any moment goes on as one that never was."""

import errno
import os

import numpy as np
import pytest
import torch

from tdmpc2.data.replay import EMPTY_STATE, Replay
from tdmpc2.errors import UserError

EPISODES = 60


class KilledError(BaseException):
    """Stands for SIGKILL: nothing after it runs in the store."""


def lengths(seed):
    return np.random.default_rng(seed).integers(1, 10, size=EPISODES)


def train(replay, encode, steps, checkpoint, samples, checkpoint_every):
    """A deterministic run from a checkpoint on: add an episode, sample a batch, now and then checkpoint.

    Returns the checkpoints it made; `samples` takes the batch drawn after each episode.
    """
    generator = torch.Generator()
    generator.set_state(checkpoint["generator"])
    for episode in range(checkpoint["replay"]["episodes"], EPISODES):
        if replay.room < steps[episode] + 1 or episode % checkpoint_every == 0:
            replay.flush()
            checkpoint.update(replay=replay.state(), generator=generator.get_state())
            replay.mark_checkpoint()
        replay.add(**encode(episode, int(steps[episode])))
        if replay.num_starts:
            samples[episode] = replay.sample(8, generator)


def start_checkpoint():
    return {"replay": EMPTY_STATE, "generator": torch.Generator().manual_seed(1).get_state()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("checkpoint_every", [7, 1000])
def test_restored_store_samples_what_an_unkilled_one_does(tmp_path, encode, monkeypatch, seed, checkpoint_every):
    layout = {"task": "t", "obs_shape": (2,), "obs_dtype": "float32", "action_dim": 3, "capacity": 30, "slack": 11}
    steps = lengths(seed)
    expected, samples = {}, {}
    with Replay.create(tmp_path / "unkilled", **layout) as replay:
        train(replay, encode, steps, start_checkpoint(), expected, checkpoint_every)

    real_pwrite, rng = os.pwrite, np.random.default_rng(100 + seed)
    writes_left = 0

    def pwrite(descriptor, data, offset):
        nonlocal writes_left
        writes_left -= 1
        if writes_left < 0:
            real_pwrite(descriptor, data[: len(data) // 2], offset)
            raise KilledError
        return real_pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    checkpoint, kills = start_checkpoint(), 0
    Replay.create(tmp_path / "killed", **layout).close()
    finished = False
    while not finished:
        writes_left = int(rng.integers(1, 90))
        replay = Replay.open(tmp_path / "killed", **layout)
        replay.restore(checkpoint["replay"])
        try:
            train(replay, encode, steps, checkpoint, samples, checkpoint_every)
            finished = True
        except KilledError:
            kills += 1
        finally:
            replay.close()
    assert kills >= 3
    assert samples.keys() == expected.keys()
    for episode, batch in expected.items():
        for name, values in batch.items():
            assert torch.equal(values, samples[episode][name]), (episode, name)


@pytest.mark.parametrize("seed", range(4))
def test_a_store_goes_back_to_either_of_the_two_checkpoints_on_disk(tmp_path, encode, seed):
    layout = {"task": "t", "obs_shape": (2,), "obs_dtype": "float32", "action_dim": 3, "capacity": 30, "slack": 31}
    steps, rng = lengths(seed), np.random.default_rng(100 + seed)
    expected, samples = {}, {}
    with Replay.create(tmp_path / "undisturbed", **layout) as replay:
        train(replay, encode, steps, start_checkpoint(), expected, 1000)

    Replay.create(tmp_path / "disturbed", **layout).close()
    older, newer, from_older = None, start_checkpoint() | {"before": EMPTY_STATE}, 0
    while newer["replay"]["episodes"] < EPISODES:
        replay = Replay.open(tmp_path / "disturbed", **layout)
        if older is not None and rng.random() < 0.5:  # the newer one is damaged
            from_older += newer["replay"]["episodes"] > older["replay"]["episodes"]
            newer = older
            replay.restore(newer["replay"])
        else:
            replay.restore(newer["replay"], newer["before"])
        generator = torch.Generator()
        generator.set_state(newer["generator"])
        end = min(EPISODES, newer["replay"]["episodes"] + int(rng.integers(1, 9)))
        for episode in range(newer["replay"]["episodes"], end):
            while replay.room < steps[episode] + 1 or rng.random() < 0.2:
                replay.flush()
                state = {"replay": replay.state(), "before": newer["replay"], "generator": generator.get_state()}
                replay.mark_checkpoint(newer["replay"])
                older, newer = newer, state
            replay.add(**encode(episode, int(steps[episode])))
            if replay.num_starts:
                samples[episode] = replay.sample(8, generator)
        if end == EPISODES:
            newer = {"replay": {"episodes": EPISODES}}
        replay.close()
    assert from_older >= 2
    assert samples.keys() == expected.keys()
    for episode, batch in expected.items():
        assert all(torch.equal(values, samples[episode][name]) for name, values in batch.items()), episode


def fill(replay, encode, first, count, steps=4):
    for episode in range(first, first + count):
        replay.add(**encode(episode, steps))


def test_all_room_can_be_used_without_touching_what_the_checkpoint_samples(make, encode):
    replay = make(capacity=20, slack=10)
    fill(replay, encode, 0, 4)
    state, before = replay.state(), replay.sequences(torch.arange(replay.num_starts))
    replay.mark_checkpoint(state)
    assert replay.room == 10  # the checkpoint samples all 20 rows; 10 more lie on disk
    fill(replay, encode, 4, 2)
    assert replay.room == 0
    replay.restore(state)
    after = replay.sequences(torch.arange(replay.num_starts))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_more_rows_than_slack_are_refused_until_the_next_checkpoint(make, encode):
    replay = make(capacity=20, slack=9)
    fill(replay, encode, 0, 4)
    replay.mark_checkpoint()
    fill(replay, encode, 4, 1)
    with pytest.raises(RuntimeError, match=r"walker-walk: 5 rows would overwrite .* room for 4: checkpoint before"):
        fill(replay, encode, 5, 1)
    assert replay.state() == {"episodes": 5, "rows": 25}
    replay.mark_checkpoint()
    fill(replay, encode, 5, 1)


def test_room_follows_the_checkpoint_that_is_on_disk_not_the_state_asked_for(make, encode):
    replay = make(capacity=20, slack=10)
    fill(replay, encode, 0, 4)
    state = replay.state()
    replay.mark_checkpoint(state)
    fill(replay, encode, 4, 1)
    replay.state()  # a checkpoint is being written, but not yet on disk
    assert replay.room == 5
    replay.mark_checkpoint(state)
    assert replay.room == 5


def test_a_restored_store_protects_what_the_older_checkpoint_samples(make, encode):
    replay = make(capacity=20, slack=10)
    fill(replay, encode, 0, 4)
    older, before = replay.state(), replay.sequences(torch.arange(replay.num_starts))
    fill(replay, encode, 4, 1)
    newer = replay.state()
    replay.mark_checkpoint(older)
    replay.close()

    again = Replay.open(replay.folder)
    again.restore(newer, older)
    assert again.room == 5  # 30 rows on disk; all 20 of the older checkpoint and the 5 since are in use
    fill(again, encode, 5, 1)
    with pytest.raises(RuntimeError, match="rows would overwrite some that a checkpoint can sample"):
        fill(again, encode, 6, 1)
    again.restore(older)
    after = again.sequences(torch.arange(again.num_starts))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_restore_forgets_later_episodes_on_disk_too(make, encode):
    replay = make()
    fill(replay, encode, 0, 3)
    state = replay.state()
    fill(replay, encode, 3, 2)
    replay.restore(state)
    replay.close()
    assert Replay.open(replay.folder, writable=False).state() == state == {"episodes": 3, "rows": 15}


def test_restore_refuses_a_checkpoint_that_counts_more_episodes_than_the_log(make, encode):
    replay = make()
    fill(replay, encode, 0, 2)
    with pytest.raises(UserError, match=r"episodes\.bin: 2 sound records, but the checkpoint counts 3"):
        replay.restore({"episodes": 3, "rows": 15})


def test_restore_refuses_a_checkpoint_of_other_episodes(make, encode):
    replay = make()
    fill(replay, encode, 0, 2)
    with pytest.raises(UserError, match=r"2 episodes have 10 rows, but the checkpoint counts 12"):
        replay.restore({"episodes": 2, "rows": 12})


def test_restore_refuses_a_checkpoint_whose_rows_are_gone(make, encode):
    replay = make(capacity=20, slack=10)
    fill(replay, encode, 0, 4)
    old = replay.state()
    for episode in range(4, 8):
        replay.mark_checkpoint()
        fill(replay, encode, episode, 1)
    with pytest.raises(UserError, match="rows of the checkpoint at 4 episodes have been overwritten"):
        replay.restore(old)


def test_torn_last_record_of_a_killed_writer_is_ignored(make, encode):
    replay = make()
    fill(replay, encode, 0, 2)
    with (replay.folder / "episodes.bin").open("ab") as log:
        log.write(b"\x0a\x00\x00\x00\x00\x00\x00")
    assert Replay.open(replay.folder, writable=False).num_episodes == 2
    again = Replay.open(replay.folder)
    fill(again, encode, 2, 1)
    assert Replay.open(replay.folder, writable=False).num_episodes == 3


def test_unsound_records_after_the_checkpoint_do_not_stop_a_resume_but_a_reader(make, encode):
    replay = make()
    fill(replay, encode, 0, 2)
    state = replay.state()
    with (replay.folder / "episodes.bin").open("ab") as log:
        log.write(bytes(24))  # what a power cut can leave
    with pytest.raises(UserError, match=r"episodes\.bin: the record of episode 2 does not follow"):
        Replay.open(replay.folder, writable=False)
    again = Replay.open(replay.folder)
    again.restore(state)
    again.close()
    assert Replay.open(replay.folder, writable=False).state() == state


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("failing_write", range(5))  # four fields, then the log
def test_full_disk_changes_nothing_that_is_visible(make, encode, monkeypatch, failing_write, code):
    replay = make(capacity=20, slack=10)
    fill(replay, encode, 0, 4)
    replay.mark_checkpoint()
    fill(replay, encode, 4, 1)
    state, before = replay.state(), replay.sequences(torch.arange(replay.num_starts))

    real_pwrite, calls = os.pwrite, 0

    def pwrite(descriptor, data, offset):
        nonlocal calls
        calls += 1
        if calls > failing_write:
            if len(data) > 1 and calls == failing_write + 1:
                return real_pwrite(descriptor, data[: len(data) // 2], offset)  # the disk takes half
            raise OSError(code, os.strerror(code))
        return real_pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    # 5 rows of 2 x 4 + 3 x 4 + 4 + 1 bytes
    message = r"replay: disk full while writing 125 bytes of replay: free space and run the same command again"
    with pytest.raises(UserError, match=message):
        fill(replay, encode, 5, 1)
    monkeypatch.undo()

    for store in (replay, Replay.open(replay.folder, writable=False)):
        after = store.sequences(torch.arange(store.num_starts))
        assert store.state() == state
        assert all(torch.equal(before[name], after[name]) for name in before)
    fill(replay, encode, 5, 1)
    assert replay.episode(5)["obs"].tolist() == encode(5, 4)["obs"].tolist()


def test_other_disk_errors_are_not_taken_for_a_full_disk(make, encode, monkeypatch):
    replay = make()

    def pwrite(descriptor, data, offset):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="broken"):
        fill(replay, encode, 0, 1)
