"""What is sampled from a replay store, and what it refuses to store."""

import numpy as np
import pytest
import torch

from tdmpc2.data.replay import Episode, Replay
from tdmpc2.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def all_starts(replay):
    """(episode, step) at which each sequence that can be sampled begins, oldest first."""
    obs = replay.sequences(torch.arange(replay.num_starts))["obs"]
    return [(int(e), int(t)) for e, t in obs[0]]


def assert_sequences_are_whole(batch, horizon):
    """Every column is `horizon` consecutive steps of one encoded episode."""
    episode, step = batch["obs"][0, :, 0], batch["obs"][0, :, 1]
    for t in range(horizon + 1):
        torch.testing.assert_close(batch["obs"][t], torch.stack([episode, step + t], 1), rtol=0, atol=0)
    for t in range(horizon):
        led = step + t + 1
        torch.testing.assert_close(batch["action"][t], torch.stack([episode, led, -led], 1) / 1000, rtol=0, atol=0)
        torch.testing.assert_close(batch["reward"][t, :, 0], 100 * episode + led, rtol=0, atol=0)


def test_sampled_sequence_holds_the_actions_and_rewards_that_led_to_its_observations(make, encode):
    replay = make(horizon=2)
    replay.add(**encode(7, steps=3))
    batch = replay.sequences(torch.tensor([1]))
    assert batch["obs"].tolist() == [[[7, 1]], [[7, 2]], [[7, 3]]]
    torch.testing.assert_close(batch["action"], torch.tensor([[[0.007, 0.002, -0.002]], [[0.007, 0.003, -0.003]]]))
    assert batch["reward"].tolist() == [[[702]], [[703]]]
    assert batch["terminated"].tolist() == [[[0]], [[1]]]


def test_sample_has_the_shapes_and_dtypes_the_agent_learns_from(make, encode):
    replay = make(horizon=4)
    replay.add(**encode(0, steps=9))
    batch = replay.sample(5, generator())
    assert {name: tuple(values.shape) for name, values in batch.items()} == {
        "obs": (5, 5, 2),
        "action": (4, 5, 3),
        "reward": (4, 5, 1),
        "terminated": (4, 5, 1),
    }
    assert {values.dtype for values in batch.values()} == {torch.float32}


def test_valid_starts_are_those_whose_sequence_stays_inside_its_episode(make, encode):
    replay = make(horizon=3)
    for episode, steps in enumerate((4, 2, 3, 5)):  # 4 - 3 + 1 = 2 starts, none, 1, 3
        replay.add(**encode(episode, steps))
    assert all_starts(replay) == [(0, 0), (0, 1), (2, 0), (3, 0), (3, 1), (3, 2)]
    assert (replay.num_starts, replay.num_episodes, len(replay)) == (6, 4, 5 + 3 + 4 + 6)


def test_sequences_never_cross_episodes_wherever_the_ring_has_turned_to(make, encode):
    replay = make(capacity=40, slack=11, horizon=3)
    lengths = np.random.default_rng(0).integers(1, 11, size=200)
    for episode, steps in enumerate(lengths):
        if replay.room < steps + 1:
            replay.mark_checkpoint()
        replay.add(**encode(episode, int(steps)))
        if replay.num_starts:
            batch = replay.sequences(torch.arange(replay.num_starts))
            assert_sequences_are_whole(batch, horizon=3)


def test_sampling_is_uniform_over_starts_not_over_episodes(make, encode):
    replay = make(horizon=3)
    for episode, steps in enumerate((3, 5, 2, 9)):  # 1, 3, 0 and 7 starts
        replay.add(**encode(episode, steps))
    counts = dict.fromkeys(all_starts(replay), 0)
    for e, t in replay.sample(11_000, generator(1))["obs"][0].tolist():
        counts[int(e), int(t)] += 1
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert len(counts) == 11
    assert chi_square < 29.59  # 99.9% quantile with 10 degrees of freedom


def test_same_generator_seed_gives_the_same_batch_and_another_seed_another(make, encode):
    replay = make()
    replay.add(**encode(0, steps=60))
    first, again, other = (replay.sample(32, generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["obs"], other["obs"])


def test_only_episodes_that_lie_wholly_in_the_newest_capacity_rows_are_sampled(make, encode):
    replay = make(capacity=12, slack=8, horizon=3)
    for episode in range(3):  # 5 rows each: rows 0-4, 5-9, 10-14; the newest 12 rows are 3-14
        replay.add(**encode(episode, steps=4))
    assert all_starts(replay) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert list(replay.episodes()) == [Episode(1, 5, 5), Episode(2, 10, 5)]
    assert len(replay) == 10


def test_episode_that_goes_around_the_end_of_the_ring_reads_back_whole(make, encode):
    replay = make(capacity=12, slack=8, horizon=3)
    for episode in range(4):  # 6 rows each: the last takes rows 18 to 23, of 20 on disk
        if replay.room < 6:
            replay.mark_checkpoint()
        replay.add(**encode(episode, steps=5))
    stored, given = replay.episode(3), encode(3, steps=5)
    assert set(stored) == set(given)
    for name, values in given.items():
        np.testing.assert_array_equal(stored[name].numpy(), values)
        assert stored[name].numpy().dtype == values.dtype


def test_evicted_or_future_episode_and_sequence_out_of_range_are_index_errors(make, encode):
    replay = make(capacity=12, slack=8)
    for episode in range(3):
        replay.add(**encode(episode, steps=4))
    with pytest.raises(IndexError, match="those stored are 1 to 2"):
        replay.episode(0)
    with pytest.raises(IndexError, match="episode 3 is not stored"):
        replay.episode(3)
    for start in (-1, replay.num_starts):
        with pytest.raises(IndexError, match="must be in"):
            replay.sequences(torch.tensor([start]))


def test_sampled_tensors_are_not_views_of_the_files(make, encode):
    replay = make(horizon=3)
    replay.add(**encode(0, steps=3))
    for values in replay.sample(1, generator()).values():
        values.fill_(-5)
    for values in replay.episode(0).values():
        values.fill_(1)
    assert_sequences_are_whole(replay.sequences(torch.tensor([0])), horizon=3)


def test_a_batch_is_put_into_the_memory_it_is_given_whatever_was_there(make, encode):
    replay = make(horizon=3)
    replay.add(**encode(0, steps=60))
    out = replay.empty_batch(32)
    for seed in (1, 2):
        places = [values.fill_(77).data_ptr() for values in out.values()]
        batch = replay.sample(32, generator(seed), out=out)
        assert [values.data_ptr() for values in batch.values()] == places
        expected = replay.sample(32, generator(seed))
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda out: out.pop("reward"),
        lambda out: out.update(task=torch.zeros(8)),
        lambda out: out.update(reward=out["reward"][..., 0]),
        lambda out: out.update(terminated=out["terminated"].bool()),
        lambda out: out.update(obs=out["obs"].transpose(0, 1).contiguous().transpose(0, 1)),
        lambda out: out.update(action=out["action"].to("meta")),
    ],
    ids=["missing", "unknown", "shape", "dtype", "strides", "device"],
)
def test_memory_that_does_not_fit_a_batch_is_refused_and_nothing_drawn(make, encode, change):
    replay, stream = make(), generator()
    replay.add(**encode(0, steps=60))
    out = replay.empty_batch(8)
    change(out)
    with pytest.raises(ValueError, match=r"walker-walk: out must be as empty_batch\(8\) makes it"):
        replay.sample(8, stream, out=out)
    assert torch.equal(stream.get_state(), generator().get_state())


def test_sampling_without_any_valid_start_says_why(make, encode):
    replay = make(horizon=3)
    with pytest.raises(UserError, match=r"nothing to sample: none of 0 episodes"):
        replay.sample(1, generator())
    replay.add(**encode(0, steps=2))
    with pytest.raises(UserError, match=r"none of 1 episodes has as many steps as the horizon \(3\)"):
        replay.sample(1, generator())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("field", "row", "step"), [("obs", 0, 0), ("obs", 3, 3), ("action", 2, 3), ("reward", 4, 5)])
def test_number_that_is_not_finite_is_refused_naming_field_task_and_step(make, encode, field, row, step, value):
    replay = make()
    replay.add(**encode(0, steps=5))
    episode = encode(1, steps=5)
    episode[field][row, ...] = value
    with pytest.raises(UserError, match=rf"walker-walk, episode 1: {field} is NaN or infinite at step {step}$"):
        replay.add(**episode)
    assert replay.state() == {"episodes": 1, "rows": 6}


def test_reward_too_large_for_float32_is_refused_as_infinite(make, encode):
    replay, episode = make(), encode(0, steps=5)
    episode["reward"] = episode["reward"].astype(np.float64)
    episode["reward"][1] = 1e39
    with pytest.raises(UserError, match="reward is NaN or infinite at step 2"):
        replay.add(**episode)


def test_action_outside_its_bounds_is_refused_and_one_off_by_rounding_is_not(make, encode):
    replay, episode = make(), encode(0, steps=5)
    episode["action"][3, 1] = np.float32(-1 - 5e-7)
    replay.add(**episode)
    episode["action"][3, 1] = -1.00001
    with pytest.raises(UserError, match=r"walker-walk, episode 1: action is outside \[-1, 1\] at step 4"):
        replay.add(**episode)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("obs", lambda x: x[:-1], r"obs is of shape \(5, 2\), expected \(6, 2\)"),
        ("obs", lambda x: x.astype(np.float64), "obs is float64, the store holds float32"),
        ("action", lambda x: x[:, :2], r"action is of shape \(5, 2\), expected \(5, 3\)"),
        ("action", lambda x: x.astype(str), "action is .* expected real numbers"),
        ("reward", lambda x: x[:0], "reward must be of shape"),
        ("reward", lambda x: x[:, None], "reward is of shape"),
        ("terminated", lambda x: x.astype(np.float32), "terminated is float32, expected bool"),
    ],
)
def test_wrong_shape_or_dtype_is_refused(make, encode, field, change, message):
    replay, episode = make(), encode(0, steps=5)
    episode[field] = change(episode[field])
    with pytest.raises(ValueError, match=message):
        replay.add(**episode)
    assert len(replay) == 0


def test_episode_longer_than_the_capacity_is_refused(make, encode):
    with pytest.raises(UserError, match="an episode of 11 rows, but the capacity is 10"):
        make(capacity=10).add(**encode(0, steps=10))


def stacked(frames, stack):
    """Observations as an environment stacks them: oldest frame first, frame 0 repeated before itself."""
    rows = np.arange(len(frames))
    return np.concatenate([frames[np.maximum(rows - back, 0)] for back in reversed(range(stack))], axis=1)


PIXELS = {"obs_shape": (9, 4, 4), "obs_dtype": torch.uint8, "frame_stack": 3}


def pixel_episode(episode, steps, encode):
    frames = np.random.default_rng(episode).integers(0, 256, size=(steps + 1, 3, 4, 4), dtype=np.uint8)
    return {**encode(episode, steps), "obs": stacked(frames, 3)}


def test_frame_stacks_are_rebuilt_exactly_from_frames_stored_once(make, encode):
    replay = make(capacity=20, slack=10, horizon=2, **PIXELS)
    given = {}
    for e in range(12):  # around the ring several times
        given[e] = pixel_episode(e, 4, encode)
        if replay.room < 5:
            replay.mark_checkpoint()
        replay.add(**given[e])
    assert replay.num_episodes == 4
    for e in range(8, 12):
        np.testing.assert_array_equal(replay.episode(e)["obs"].numpy(), given[e]["obs"])
    batch = replay.sequences(torch.arange(replay.num_starts))  # 3 starts an episode
    assert batch["obs"].dtype == torch.uint8
    for start in range(12):
        e, t = 8 + start // 3, start % 3
        np.testing.assert_array_equal(batch["obs"][:, start].numpy(), given[e]["obs"][t : t + 3])
    frame_file = replay.folder / "obs.memmap"
    assert frame_file.stat().st_size == 30 * 3 * 4 * 4


@pytest.mark.parametrize(("row", "channel", "step"), [(0, 0, 0), (3, 4, 3)])
def test_observations_that_are_no_stack_of_consecutive_frames_are_refused(make, encode, row, channel, step):
    replay, episode = make(**PIXELS), pixel_episode(0, 4, encode)
    episode["obs"][row, channel, 2, 1] ^= 1
    with pytest.raises(UserError, match=f"episode 0: obs is not the last 3 frames, .* at step {step}"):
        replay.add(**episode)


def test_read_only_store_samples_the_same_and_cannot_be_changed(make, encode):
    replay = make()
    for e in range(3):
        replay.add(**encode(e, steps=6))
    reader = Replay.open(replay.folder, writable=False)
    first, again = replay.sample(16, generator()), reader.sample(16, generator())
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(RuntimeError, match="reading only"):
        reader.add(**encode(3, steps=6))
    with pytest.raises(RuntimeError, match="reading only"):
        reader.restore(replay.state())
