"""What a run takes of a data set: some tasks, weights of them, and one process's part of every batch."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from tdmpc2.data.dataset import Dataset, StoreSource, build
from tdmpc2.data.multitask import MultitaskReplay, parse_task_weights
from tdmpc2.data.prefetch import Prefetcher
from tdmpc2.data.replay import Replay
from tdmpc2.errors import UserError

DIMS = {"walker-walk": (24, 6), "reacher-easy": (6, 2), "cup-spin": (8, 2)}
EPISODES = [("walker-walk", 5, 1), ("cup-spin", 4, 1), ("walker-walk", 3, 2), ("reacher-easy", 6, 1)]
"""Task, steps of the one episode, and seed of each store; observations are 10 x the store's number and on."""


@pytest.fixture
def four(tmp_path):
    sources = []
    for number, (task, steps, seed) in enumerate(EPISODES):
        folder = tmp_path / "results" / "runs" / str(number)
        obs_dim, action_dim = DIMS[task]
        size = {"capacity": 20, "slack": 10}
        with Replay.create(
            folder, task=task, obs_shape=(obs_dim,), obs_dtype="float32", action_dim=action_dim, **size
        ) as s:
            obs = 10 * number + np.arange(steps + 1, dtype=np.float32)[:, None].repeat(obs_dim, 1)
            s.add(obs, np.ones((steps, action_dim)), np.ones(steps), np.zeros(steps, bool))
        sources.append(StoreSource(folder, seed, finished=True))
    return build("four", sources, tuple(DIMS), tmp_path / "results" / "datasets")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_selected_tasks_have_ids_in_the_order_given_and_only_their_stores(four):
    some = four.select(["cup-spin", "walker-walk"])
    assert [(task.id, task.name, task.obs_dim) for task in some.tasks] == [(0, "cup-spin", 8), (1, "walker-walk", 24)]
    assert [record.path for record in some.stores] == ["../../runs/0", "../../runs/1", "../../runs/2"]
    assert some.spec.tasks == ("cup-spin", "walker-walk")
    assert (four.select(["reacher-easy"]).obs_dim, some.obs_dim) == (6, 24)
    assert Dataset.read(four.folder) == four
    with MultitaskReplay(some, 3) as replay:
        batch = replay.sequences(torch.arange(replay.num_starts))
    assert batch["task"].tolist() == [0] * 2 + [1] * (3 + 1)
    assert batch["obs"][0, :, 0].tolist() == [10, 11, 0, 1, 2, 20]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            ["walker-walk", "walker-run"],
            r"four/dataset\.json: holds no data of 'walker-run'; the nearest is walker-walk",
        ),
        (["mw-pick-place"], "holds no data of 'mw-pick-place'; it has walker-walk, reacher-easy, cup-spin"),
        (["cup-spin", "cup-spin"], "task cup-spin is named twice"),
        ([], "needs at least one task"),
    ],
)
def test_tasks_that_cannot_be_selected_are_named(four, tasks, message):
    with pytest.raises(UserError, match=message):
        four.select(tasks)


def test_fingerprint_is_of_what_the_data_set_holds_and_not_of_where_it_is(four, tmp_path):
    before = four.fingerprint()
    assert len(before) == 64
    shutil.move(tmp_path / "results", tmp_path / "moved")
    moved = Dataset.read(tmp_path / "moved" / "datasets" / "four")
    assert moved.fingerprint() == before
    copied = build(
        "copied",
        [StoreSource(moved.store_folder(r), r.seed, finished=True) for r in moved.stores],
        tuple(DIMS),
        tmp_path / "elsewhere",
        copy=True,
    )
    assert copied.fingerprint() == before


def test_fingerprint_tells_other_tasks_order_seeds_and_rows_apart(four, tmp_path):
    sources = [StoreSource(four.store_folder(r), r.seed, finished=True) for r in four.stores]
    others = [four.select(list(DIMS)[:2]), four.select([*DIMS][::-1])]
    reseeded = [*sources[:3], StoreSource(sources[3].folder, 9, finished=True)]
    others.append(build("reseeded", reseeded, tuple(DIMS), tmp_path / "sets"))
    # Which sequences a seed draws depends on the stores' order.
    others.append(build("reordered", [sources[2], *sources[:2], sources[3]], tuple(DIMS), tmp_path / "sets"))
    with Replay.open(sources[3].folder) as store:
        store.add(np.zeros((2, 6), np.float32), np.zeros((1, 2)), np.zeros(1), np.zeros(1, bool))
    others.append(build("longer", sources, tuple(DIMS), tmp_path / "sets"))
    assert len({four.fingerprint(), *(other.fingerprint() for other in others)}) == 6


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("transitions", None),
        ("tasks", {"walker-walk": 1, "reacher-easy": 1, "cup-spin": 1}),
        ("walker-walk:2,cup-spin:0.5", {"walker-walk": 2, "reacher-easy": 1, "cup-spin": 0.5}),
        (" reacher-easy : 0 , walker-walk:1e-2", {"walker-walk": 0.01, "reacher-easy": 0, "cup-spin": 1}),
    ],
)
def test_task_weights_are_read(four, text, weights):
    assert parse_task_weights(text, four) == weights
    MultitaskReplay(four, 2, parse_task_weights(text, four)).close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task", "'task' is no weight of a task; did you mean 'tasks'"),
        ("", "'' is no weight of a task; valid: 'transitions', 'tasks', or TASK:WEIGHT"),
        ("walker-walk:2,", "'' is no weight of a task"),
        ("walker-wlak:2", "unknown task 'walker-wlak'; did you mean 'walker-walk'"),
        ("walker-walk:2,walker-walk:3", "walker-walk has two weights"),
        ("walker-walk:two", "walker-walk: 'two' is not a number"),
        ("walker-walk:-1", "walker-walk: -1 is not a number of 0 or more"),
        ("walker-walk:nan", "walker-walk: nan is not a number of 0 or more"),
        ("walker-walk:0,cup-spin:0,reacher-easy:0", "at least one must be above 0"),
    ],
)
def test_task_weights_that_make_no_sense_are_refused_by_the_settings_name(four, text, message):
    with pytest.raises(UserError, match="^task_weights: " + message):
        parse_task_weights(text, four)


@pytest.mark.parametrize("weights", [None, {"walker-walk": 3.0, "reacher-easy": 1.0, "cup-spin": 0.0}])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_parts_of_all_ranks_are_the_whole_batch_and_leave_the_same_stream(four, weights, world):
    replay = MultitaskReplay(four, 2, weights)
    stream = generator(4)
    whole = replay.sample(12, stream)
    streams = [generator(4) for _ in range(world)]
    parts = [replay.sample(12, own, part=(rank, world)) for rank, own in enumerate(streams)]
    for name, values in whole.items():
        axis = 0 if name == "task" else 1
        assert all(part[name].shape[axis] == 12 // world for part in parts)
        assert torch.equal(torch.cat([part[name] for part in parts], dim=axis), values), name
    assert all(torch.equal(own.get_state(), stream.get_state()) for own in streams)


def test_parts_that_do_not_exist_are_refused(four):
    replay = MultitaskReplay(four, 2)
    for part, message in [((2, 2), "part 2 of 2"), ((-1, 2), "part -1 of 2"), ((0, 5), "cannot be split into 5")]:
        with pytest.raises(ValueError, match=message):
            replay.sample(12, generator(), part=part)
        with pytest.raises(ValueError, match=message):
            Prefetcher(replay, 12, generator(), torch.device("cpu"), part=part)
    with pytest.raises(ValueError, match=r"out must be as empty_batch\(6\) makes it"):
        replay.sample(12, generator(), replay.empty_batch(12), part=(0, 2))


def test_prefetcher_hands_out_its_part_of_every_batch(four):
    with MultitaskReplay(four, 2) as replay:
        stream = generator(3)
        wanted = [replay.sample(8, stream) for _ in range(4)]
        for rank in range(2):
            drawn = generator(3)
            with Prefetcher(replay, 8, drawn, torch.device("cpu"), part=(rank, 2)) as prefetcher:
                own = slice(4 * rank, 4 * rank + 4)
                for batch in wanted:
                    found = prefetcher.next()
                    assert torch.equal(found["obs"], batch["obs"][:, own])
                    assert torch.equal(found["task"], batch["task"][own])
            assert torch.equal(drawn.get_state(), stream.get_state())
