"""Prefetching changes when a batch is drawn, and never which one."""

import os
import signal
import sys
import threading

import numpy as np
import pytest
import torch

from tdmpc2.data import prefetch
from tdmpc2.data.prefetch import Prefetcher
from tdmpc2.data.replay import Replay
from tdmpc2.errors import UserError

CPU = torch.device("cpu")
B = 6
PIXELS = {"obs_shape": (9, 4, 4), "obs_dtype": "uint8", "frame_stack": 3}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def begin():
    """Makes prefetchers that are closed at the end."""
    made = []

    def make(replay, stream=None, device=CPU, size=B):
        made.append(Prefetcher(replay, size, stream or generator(), device))
        return made[-1]

    yield make
    for prefetcher in made:
        prefetcher.close()


def copied(batch):
    return {name: values.clone() for name, values in batch.items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


def before_each_draw(monkeypatch, action):
    """Calls `action(n)` before the n-th draw from any store, from 1 on."""
    original, calls = Replay.sample, 0

    def sample(*args, **kwargs):
        nonlocal calls
        calls += 1
        action(calls)
        return original(*args, **kwargs)

    monkeypatch.setattr(Replay, "sample", sample)


def pixel_episode(episode, steps, encode):
    frames = np.random.default_rng(episode).integers(0, 256, size=(steps + 1, 3, 4, 4), dtype=np.uint8)
    rows = np.arange(steps + 1)
    return {
        **encode(episode, steps),
        "obs": np.concatenate([frames[np.maximum(rows - back, 0)] for back in (2, 1, 0)], axis=1),
    }


def learn(replay, draw, episodes, state=lambda: torch.zeros(0)):
    """A run as training has it: an episode, then 0 to 4 batches; returns batches and the stream's state after each."""
    drawn = []
    for number, episode in enumerate(episodes):
        if replay.room < len(episode["obs"]):
            replay.mark_checkpoint()
        replay.add(**episode)
        for _ in range(number % 5 if replay.num_starts else 0):
            drawn.append((copied(draw()), state()))
    return drawn


@pytest.mark.parametrize("layout", [{}, PIXELS])
def test_batches_and_saved_streams_are_those_without_prefetching(tmp_path, make, encode, begin, layout):
    """Episodes come in between, of unequal lengths, several times around the ring."""
    lengths = np.random.default_rng(0).integers(1, 11, size=60)
    encoded = pixel_episode if layout else lambda e, steps, encode: encode(e, steps)
    episodes = [encoded(e, int(steps), encode) for e, steps in enumerate(lengths)]
    size = {"capacity": 40, "slack": 15, **layout}
    plain, stream = make(**size), generator(3)
    expected = learn(plain, lambda: plain.sample(B, stream), episodes, stream.get_state)

    replay = Replay.create(
        tmp_path / "other", **{"task": "t", "obs_shape": (2,), "obs_dtype": "float32"} | size, action_dim=3
    )
    prefetcher = begin(replay, generator(3))
    found = learn(replay, prefetcher.next, episodes, prefetcher.state)
    assert len(found) == len(expected) > 100
    for (batch, state), (wanted, wanted_state) in zip(found, expected, strict=True):
        assert_equal(batch, wanted)
        assert torch.equal(state, wanted_state)


@pytest.mark.parametrize("added", [0, 1])
def test_a_run_that_goes_on_from_a_saved_state_draws_what_one_that_was_never_stopped_does(make, encode, begin, added):
    replay = make()
    replay.add(**encode(0, steps=30))
    untouched, state = generator(5), generator(5).get_state()
    for episode in range(1, 5):
        expected = [replay.sample(B, untouched) for _ in range(3)]
        prefetcher = begin(replay)  # of another seed; the one before it is never closed, as if killed
        prefetcher.load_state(state)
        for batch in expected:
            assert_equal(prefetcher.next(), batch)
        state = prefetcher.state()
        for _ in range(added):
            replay.add(**encode(episode, steps=20))


def test_loading_a_state_throws_away_what_was_drawn_ahead(make, encode, begin):
    replay = make()
    replay.add(**encode(0, steps=40))
    prefetcher = begin(replay)
    start = prefetcher.state()
    first = copied(prefetcher.next())
    prefetcher.load_state(start)
    assert torch.equal(prefetcher.state(), start)
    assert_equal(prefetcher.next(), first)


def test_a_batch_drawn_before_the_store_went_back_to_a_checkpoint_is_not_used(make, encode, begin):
    replay, stream = make(), generator()
    replay.add(**encode(0, steps=5))
    state = replay.state()
    prefetcher = begin(replay)
    for episode in (1, 2):
        replay.add(**encode(episode, steps=5))
        assert_equal(prefetcher.next(), replay.sample(B, stream))
        replay.restore(state)
        assert_equal(prefetcher.next(), replay.sample(B, stream))


def test_the_next_batch_is_drawn_by_one_other_thread_while_the_caller_is_busy(make, encode, begin, monkeypatch):
    replay = make()
    replay.add(**encode(0, steps=40))
    drawn_by, second = [], threading.Event()

    def note(call):
        drawn_by.append(threading.current_thread())
        if call == 2:
            second.set()

    before_each_draw(monkeypatch, note)
    prefetcher = begin(replay)
    prefetcher.next()
    assert second.wait(timeout=10)  # nobody has asked for it
    prefetcher.next()
    prefetcher.close()
    assert len(drawn_by) == 3
    assert set(drawn_by) == {drawn_by[0]} != {threading.current_thread()}


def test_a_batch_stays_as_it_is_until_the_next_and_its_memory_is_used_again(make, encode, begin):
    replay = make()
    replay.add(**encode(0, steps=40))
    prefetcher = begin(replay)
    places = []
    for _ in range(6):
        batch = prefetcher.next()
        before = copied(batch)
        prefetcher.state()
        prefetcher._ahead.drawing.result()  # the next one is complete
        assert_equal(batch, before)
        places.append({name: values.data_ptr() for name, values in batch.items()})
    assert places[0] == places[2] == places[4]
    assert places[1] == places[3] == places[5]
    assert not set(places[0].values()) & set(places[1].values())


def test_a_fault_in_the_thread_reaches_the_caller_as_it_is_and_loses_no_batch(make, encode, begin, monkeypatch):
    replay = make()
    replay.add(**encode(0, steps=40))
    stream = generator(2)
    expected = [replay.sample(B, stream) for _ in range(3)]
    fault = OSError("the disk is gone")
    gather = Replay._gather
    calls = 0

    def fail_at_second(*args):  # after the random numbers are drawn
        nonlocal calls
        calls += 1
        if calls == 2:
            raise fault
        return gather(*args)

    monkeypatch.setattr(Replay, "_gather", fail_at_second)
    prefetcher = begin(replay, generator(2))
    assert_equal(prefetcher.next(), expected[0])
    state = prefetcher.state()
    with pytest.raises(OSError, match="the disk is gone") as caught:
        prefetcher.next()
    assert caught.value is fault
    assert torch.equal(prefetcher.state(), state)
    assert_equal(prefetcher.next(), expected[1])
    assert_equal(prefetcher.next(), expected[2])


def test_a_store_with_nothing_to_sample_says_so_and_serves_once_it_has(make, encode, begin):
    replay = make()
    prefetcher = begin(replay)
    with pytest.raises(UserError, match="nothing to sample: none of 0 episodes"):
        prefetcher.next()
    replay.add(**encode(0, steps=10))
    assert_equal(prefetcher.next(), replay.sample(B, generator()))


def test_closing_ends_the_thread_and_leaves_the_stream_as_if_nothing_was_drawn_ahead(make, encode, begin):
    replay = make()
    replay.add(**encode(0, steps=40))
    stream, plain = generator(4), generator(4)
    before = set(threading.enumerate())
    prefetcher = begin(replay, stream)
    prefetcher.next()
    replay.sample(B, plain)
    (thread,) = set(threading.enumerate()) - before
    prefetcher.close()
    assert not thread.is_alive()
    assert torch.equal(stream.get_state(), plain.get_state())
    assert torch.equal(prefetcher.state(), plain.get_state())
    prefetcher.close()
    with pytest.raises(ValueError, match="prefetcher is closed"):
        prefetcher.next()


def test_a_store_is_not_closed_under_a_draw_nor_sampled_once_closed(make, encode, begin, monkeypatch):
    """Memory that is no longer mapped must not be read: that would end the process."""
    replay = make()
    replay.add(**encode(0, steps=40))
    drawing, go_on = threading.Event(), threading.Event()
    gather = Replay._gather

    def slowly(*args):
        drawing.set()
        assert go_on.wait(timeout=10)
        gather(*args)

    prefetcher = begin(replay)
    monkeypatch.setattr(Replay, "_gather", slowly)
    caller = threading.Thread(target=prefetcher.next)
    closer = threading.Thread(target=replay.close)
    caller.start()
    assert drawing.wait(timeout=10)
    closer.start()
    closer.join(timeout=0.2)
    assert closer.is_alive()  # the draw is under way
    go_on.set()
    caller.join(timeout=10)
    closer.join(timeout=10)
    assert not closer.is_alive()
    for _ in range(2):
        with pytest.raises(ValueError, match="this replay store is closed"):
            prefetcher.next()


def test_an_interrupt_while_waiting_for_a_batch_loses_nothing(make, encode, begin, monkeypatch):
    replay = make()
    replay.add(**encode(0, steps=40))
    stream = generator(6)
    expected = [replay.sample(B, stream) for _ in range(3)]
    go_on = threading.Event()
    before_each_draw(monkeypatch, lambda call: call != 2 or go_on.wait(timeout=60))
    prefetcher = begin(replay, generator(6))
    assert_equal(prefetcher.next(), expected[0])
    state = prefetcher.state()

    # A shell has the commands that it starts in the background ignore Ctrl-C, and pytest may be one of them.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def be_interrupted():
        threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
        prefetcher.next()

    try:
        with pytest.raises(KeyboardInterrupt):
            be_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not go_on.is_set()
    assert torch.equal(prefetcher.state(), state)
    go_on.set()
    for batch in expected[1:]:
        assert_equal(prefetcher.next(), batch)


class FakeEvent:
    """Stands for a CUDA event: notes when it is recorded and waited for."""

    log: list[tuple[str, int]]

    def __init__(self, blocking):
        assert blocking  # waiting takes no CPU time
        self.index = len({index for _, index in self.log})
        self.log.append(("made", self.index))

    def record(self, stream):
        assert stream == "the current stream"
        assert threading.current_thread() is threading.main_thread()
        self.log.append(("record", self.index))

    def synchronize(self):
        assert threading.current_thread() is threading.main_thread()
        self.log.append(("wait", self.index))


def test_memory_that_a_gpu_may_still_read_is_drawn_into_only_after_waiting_for_its_event(
    make, encode, begin, monkeypatch
):
    """CUDA is asked by the caller alone: from another thread it would spoil a graph that is being captured."""
    replay = make()
    replay.add(**encode(0, steps=40))
    stream = generator()
    expected = [replay.sample(B, stream) for _ in range(8)]
    FakeEvent.log = []
    pinned = []
    empty_batch = Replay.empty_batch

    def unpinned(replay, batch_size, pin_memory=False):
        pinned.append(pin_memory)
        return empty_batch(replay, batch_size)

    monkeypatch.setattr(Replay, "empty_batch", unpinned)
    monkeypatch.setattr(prefetch.torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(prefetch.torch.cuda, "current_stream", lambda device: "the current stream")
    sample = Replay.sample

    def logged(replay, batch_size, generator, out):
        index = next(i for i, buffers in enumerate(prefetcher._buffers) if buffers is out)
        FakeEvent.log.append(("draw", index))
        return sample(replay, batch_size, generator, out)

    monkeypatch.setattr(Replay, "sample", logged)
    prefetcher = begin(replay, generator(), torch.device("cuda"))
    assert pinned == [True] * 3
    sets = []
    for number, batch in enumerate(expected):
        if number == 5:
            prefetcher.load_state(prefetcher.state())  # what was drawn ahead was never handed out
        found = prefetcher.next()
        assert_equal(found, batch)
        sets.append(next(i for i, buffers in enumerate(prefetcher._buffers) if buffers is found))
    prefetcher.close()

    assert sets == [(sets[0] + i) % 3 for i in range(8)]
    log, may_be_read, recorded = FakeEvent.log, set(), None
    for what, index in log:
        if what == "record":
            may_be_read.add(index)
            recorded = index
        elif what == "wait":
            may_be_read.discard(index)
            assert index != recorded  # the GPU may still be at the batch before this one
        elif what == "draw":
            assert index not in may_be_read
    assert [what for what, _ in log].count("draw") == 8 + 2  # one thrown away, one left at the end


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_drawing_starts_no_threads_of_torchs(make, encode, begin):
    """A second pool of threads would compete with the one that learns."""
    replay = make(obs_shape=(2000,))
    replay.add(**encode(0, steps=60) | {"obs": np.ones((61, 2000), np.float32)})
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        prefetcher = begin(replay, size=256)
        before = len(os.listdir("/proc/self/task"))
        for _ in range(3):
            prefetcher.next()
        assert len(os.listdir("/proc/self/task")) == before + 1
    finally:
        torch.set_num_threads(threads)
