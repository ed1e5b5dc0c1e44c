"""Sampling from a data set: uniform over all sequences of all stores, or by task; rows exact, padded with zeros."""

from collections import Counter

import numpy as np
import psutil
import pytest
import torch
from scipy.stats import chisquare

from tdmpc2.data.dataset import StoreSource, build
from tdmpc2.data.multitask import MultitaskReplay, draw_sequences
from tdmpc2.data.prefetch import Prefetcher
from tdmpc2.data.replay import Replay
from tdmpc2.errors import UserError

DIMS = {"walker-walk": (24, 6), "reacher-easy": (6, 2), "pendulum-swingup": (3, 1)}
TASKS = ("reacher-easy", "walker-walk", "pendulum-swingup")
H = 2
STORES = [("walker-walk", [5, 1, 2]), ("pendulum-swingup", [9]), ("walker-walk", [3]), ("reacher-easy", [2, 1, 20, 4])]
"""Task and steps of the episodes of each store; an episode of T steps has T - 1 sequences of two steps, if positive."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def write_store(folder, task, lengths, number, **changes):
    """A store, and its episodes as they were added."""
    obs_dim, action_dim = DIMS[task]
    rng = np.random.default_rng(number)
    size = {"capacity": 100, "slack": 50, **changes}
    episodes = []
    with Replay.create(
        folder, task=task, obs_shape=(obs_dim,), obs_dtype="float32", action_dim=action_dim, **size
    ) as store:
        for steps in lengths:
            episodes.append(
                {
                    "obs": rng.normal(size=(steps + 1, obs_dim)).astype(np.float32),
                    "action": rng.uniform(-1, 1, (steps, action_dim)).astype(np.float32),
                    "reward": rng.normal(size=steps).astype(np.float32),
                    "terminated": np.arange(1, steps + 1) == steps,
                }
            )
            if store.room <= steps:
                store.mark_checkpoint()
            store.add(**episodes[-1])
    return episodes


def build_from(root, stores, tasks=TASKS, **first):
    """A data set of these stores, the first one of another size if so said, and the episodes of each."""
    written = [
        write_store(root / "runs" / str(number), task, lengths, number, **({} if number else first))
        for number, (task, lengths) in enumerate(stores)
    ]
    sources = [StoreSource(root / "runs" / str(number), seed=number, finished=True) for number in range(len(stores))]
    return build("tiny", sources, tasks, root / "datasets"), written


@pytest.fixture
def tiny(tmp_path):
    return build_from(tmp_path, STORES)


def padded(values, dim):
    return np.pad(values, [(0, 0), (0, dim - values.shape[1])])


def expected_sequences(written, stores, tasks=TASKS, obs_dim=24, action_dim=6):
    """All sequences in the order of their numbers: by task id, then store, then age."""
    sequences = []
    for task in tasks:
        for episode in (e for (of, _), store in zip(stores, written, strict=True) if of == task for e in store):
            for t in range(len(episode["reward"]) - H + 1):
                sequences.append(
                    {
                        "obs": padded(episode["obs"][t : t + H + 1], obs_dim),
                        "action": padded(episode["action"][t : t + H], action_dim),
                        "reward": episode["reward"][t : t + H, None],
                        "terminated": episode["terminated"][t : t + H, None].astype(np.float32),
                        "task": np.int64(tasks.index(task)),
                    }
                )
    return sequences


def assert_batch_is(batch, sequences):
    for name, values in batch.items():
        wanted = np.stack([sequence[name] for sequence in sequences], axis=0 if name == "task" else 1)
        assert values.dtype == torch.from_numpy(wanted).dtype, name
        np.testing.assert_array_equal(values.numpy(), wanted, err_msg=name)


def test_every_sequence_is_the_stored_rows_of_one_episode_padded_with_zeros(tiny):
    dataset, written = tiny
    replay = MultitaskReplay(dataset, H)
    assert replay.num_starts == (1 + 19 + 3) + (4 + 1) + 2 + 8
    sequences = expected_sequences(written, STORES)
    assert_batch_is(replay.sequences(torch.arange(replay.num_starts)), sequences)
    scattered = torch.tensor([37, 0, 23, 37, 30, 27, 28, 5])
    assert_batch_is(replay.sequences(scattered), [sequences[i] for i in scattered])


def number_of_each(batch, sequences):
    """Which sequence each of a batch is; every one is compared whole."""
    by_first_row = {sequence["obs"][0].tobytes(): number for number, sequence in enumerate(sequences)}
    numbers = [by_first_row[row.tobytes()] for row in batch["obs"][0].numpy()]
    assert_batch_is(batch, [sequences[number] for number in numbers])
    return numbers


def test_all_sequences_of_all_stores_are_equally_likely(tiny):
    dataset, written = tiny
    batch = MultitaskReplay(dataset, H).sample(38 * 500, generator())
    counts = Counter(number_of_each(batch, expected_sequences(written, STORES)))
    assert len(counts) == 38
    assert chisquare(list(counts.values())).pvalue > 0.01


def test_weights_are_the_probabilities_of_tasks_and_uniform_within_each(tiny):
    dataset, written = tiny
    weights = {"pendulum-swingup": 6, "walker-walk": 2, "reacher-easy": 0}
    batch = MultitaskReplay(dataset, H, weights).sample(16_000, generator(1))
    counts = Counter(number_of_each(batch, expected_sequences(written, STORES)))
    # Numbers 0 to 22 are reacher's, the 7 that follow walker's, the 8 last pendulum's.
    assert min(counts) == 23
    assert chisquare([counts[n] for n in range(23, 38)], [4000 / 7] * 7 + [12_000 / 8] * 8).pvalue > 0.01


def test_draw_is_uniform_where_the_remainder_of_32_random_bits_is_not():
    total = 3 * 2**26  # a third of these numbers would get 22 of the 2^32, the others 21: 0.34375 of all
    numbers = draw_sequences(200_000, np.array([0, total]), None, generator())
    assert (numbers < total // 3).mean() == pytest.approx(1 / 3, abs=4 * 0.00105)
    assert numbers.max() > 0.9999 * total


def test_generator_alone_decides_the_batch(tiny):
    dataset, _ = tiny
    left, right = (MultitaskReplay(dataset, H).sample(64, generator(5)) for _ in range(2))
    other = MultitaskReplay(dataset, H).sample(64, generator(6))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert not torch.equal(left["obs"], other["obs"])


def test_ring_store_that_went_around_gives_its_newest_episodes(tmp_path):
    # 21 rows are sampled, of 33 on disk; 7 episodes of 6 rows wrap, and the newest 3 are whole in the last 21 rows.
    # The other store has 150 on disk.
    stores = [("pendulum-swingup", [5] * 7), ("reacher-easy", [4])]
    dataset, written = build_from(tmp_path, stores, ("reacher-easy", "pendulum-swingup"), capacity=21, slack=12)
    replay = MultitaskReplay(dataset, H)
    sequences = expected_sequences([written[0][-3:], written[1]], stores, ("reacher-easy", "pendulum-swingup"), 6, 2)
    assert replay.num_starts == 3 + 3 * 4
    assert_batch_is(replay.sequences(torch.arange(15).roll(-3)), sequences[3:] + sequences[:3])


def test_given_memory_is_filled_whole_whatever_was_in_it(tiny):
    dataset, written = tiny
    replay = MultitaskReplay(dataset, H)
    out = replay.empty_batch(32)
    for values in out.values():
        values.fill_(77)
    assert replay.sample(32, generator(), out) is out
    number_of_each(out, expected_sequences(written, STORES))
    for wrong in (replay.empty_batch(31), {**out, "task": out["task"].int()}, {k: out[k] for k in out if k != "task"}):
        with pytest.raises(ValueError, match=r"out must be as empty_batch\(32\) makes it"):
            replay.sample(32, generator(), wrong)


def test_horizon_that_no_episode_of_a_weighted_task_is_long_enough_for_is_refused(tiny):
    dataset, _ = tiny
    with pytest.raises(UserError, match="nothing to sample: no episode has as many steps as the horizon \\(21\\)"):
        MultitaskReplay(dataset, 21).sample(4, generator())
    weights = {"reacher-easy": 1, "walker-walk": 1, "pendulum-swingup": 0}
    with pytest.raises(UserError, match="weights: walker-walk has no episode as long as the horizon \\(10\\)"):
        MultitaskReplay(dataset, 10, weights)
    # Without weights, the tasks and stores that have no sequence so long are simply never drawn.
    assert MultitaskReplay(dataset, 10).sample(64, generator())["task"].unique().tolist() == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"walker-wlak": 1}, "weights: unknown task 'walker-wlak'; did you mean 'walker-walk'"),
        ({"walker-walk": -1}, "weights: walker-walk: -1 is not a number of 0 or more"),
        ({"walker-walk": float("nan")}, "weights: walker-walk: nan is not a number"),
        ({"walker-walk": 0}, "at least one must be above 0"),
        ({"walker-walk": None}, "weights: none for walker-walk"),
    ],
)
def test_weights_that_make_no_probabilities_are_refused(tiny, changes, message):
    weights = {**dict.fromkeys(TASKS, 0.0), **changes}
    with pytest.raises(UserError, match=message):
        MultitaskReplay(tiny[0], H, {name: weight for name, weight in weights.items() if weight is not None})


def test_sequence_numbers_out_of_range_are_refused(tiny):
    replay = MultitaskReplay(tiny[0], H)
    for number in (-1, 38):
        with pytest.raises(IndexError, match=r"must be in \[0, 38\)"):
            replay.sequences(torch.tensor([0, number]))


def test_prefetcher_gives_the_batches_that_sampling_gives(tiny):
    dataset, _ = tiny
    with MultitaskReplay(dataset, H) as replay:
        stream = generator(3)
        wanted = [replay.sample(16, stream) for _ in range(5)]
        drawn = generator(3)
        with Prefetcher(replay, 16, drawn, torch.device("cpu")) as prefetcher:
            for batch in wanted:
                got = prefetcher.next()
                assert got.keys() == batch.keys()
                assert all(torch.equal(got[name], batch[name]) for name in batch)
            assert torch.equal(prefetcher.state(), stream.get_state())
        assert torch.equal(drawn.get_state(), stream.get_state())


def test_closed_data_set_is_not_sampled_and_a_batch_drawn_ahead_is_void(tiny):
    replay = MultitaskReplay(tiny[0], H)
    with Prefetcher(replay, 4, generator(), torch.device("cpu")) as prefetcher:
        prefetcher.next()
        before = replay.changes
        replay.close()
        assert replay.changes != before
        with pytest.raises(ValueError, match="data set tiny: is closed"):
            prefetcher.next()
    with pytest.raises(ValueError, match="data set tiny: is closed"):
        replay.sequences(torch.tensor([0]))


def test_only_sampled_rows_come_into_memory(tmp_path):
    # A store of 1.3 GB, nearly all holes.
    dataset, _ = build_from(tmp_path, STORES[:1], ("walker-walk",), capacity=10_000_000, slack=100)
    before = psutil.Process().memory_info().rss
    with MultitaskReplay(dataset, H) as replay:
        replay.sample(1024, generator())
        assert psutil.Process().memory_info().rss - before < 32 * 2**20
