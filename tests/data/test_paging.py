"""Reading ahead changes when pages are read, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tdmpc2.data import multitask, paging
from tdmpc2.data.dataset import Dataset, StoreSource, build
from tdmpc2.data.multitask import MultitaskReplay
from tdmpc2.data.paging import ReadAhead, outgrows_memory
from tdmpc2.data.replay import Replay


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Two stores whose rows are numbered; the first one's ring has come round."""
    stores = []
    for number, capacity in enumerate((60, 500)):
        folder = tmp_path / f"store{number}"
        layout = {"task": "cartpole-swingup", "obs_shape": (5,), "obs_dtype": "float32", "action_dim": 1}
        with Replay.create(folder, **layout, capacity=capacity, slack=21) as store:
            for episode in range(7):
                rows = 1000 * number + 21 * episode + np.arange(21, dtype=np.float32)
                action = (rows[1:, None] / 2000).astype(np.float32)
                store.add(np.tile(rows[:, None], 5), action, rows[1:], np.zeros(20, bool))
                store.flush()
                store.mark_checkpoint()
        stores.append(StoreSource(folder, number, finished=True))
    return build("two", stores, ["cartpole-swingup"], tmp_path / "datasets")


def test_batches_are_the_same_where_the_system_is_told_what_is_read(data, monkeypatch):
    told: list[int] = []
    begin = ReadAhead.begin

    def counted(self: ReadAhead, start: np.ndarray, end: np.ndarray) -> bool:
        told.append(len(start))
        assert ((end - start) > 0).all()
        return begin(self, start, end)

    monkeypatch.setattr(ReadAhead, "begin", counted)
    with MultitaskReplay(data) as replay:
        every = torch.arange(replay.num_starts)
        plain = replay.sequences(every)
    assert told == []
    monkeypatch.setattr(multitask, "outgrows_memory", lambda size: True)
    with MultitaskReplay(data) as replay:
        rounds = [replay.sequences(every) for _ in range(multitask.LET_GO_BATCHES + 1)]  # let go of once
    assert told == [2 * len(every)] * len(rounds)  # observations and actions
    for ahead in rounds:
        for name, tensor in plain.items():
            assert torch.equal(ahead[name], tensor), name


def test_data_outgrow_memory_at_half_of_it(monkeypatch):
    monkeypatch.setattr(paging.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 1000}))
    assert not outgrows_memory(500)
    assert outgrows_memory(501)


@pytest.mark.skipif(sys.platform != "linux", reason="a system call of Linux")
def test_advice_on_memory_that_is_not_mapped_is_refused_and_then_given_up(tmp_path):
    path = tmp_path / "rows"
    np.zeros(100_000, np.float32).tofile(path)
    mapped = np.memmap(path, np.float32, "r")
    ahead = ReadAhead()
    if ahead._process < 0:
        pytest.skip("this kernel has no handles of processes")
    ahead.expect_random(mapped)
    here = np.array([mapped.ctypes.data])
    assert ahead.begin(np.repeat(here, 3000), np.repeat(here + 4000, 3000))  # more than one call takes
    assert not ahead.begin(np.array([0]), np.array([4096]))
    assert not ahead.begin(here, here + 4000)
    ahead.close()
