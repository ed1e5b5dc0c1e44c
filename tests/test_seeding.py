"""Random streams: the same number for the same use, another for every other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tdmpc2.seeding import INDICES, Stream, derive_seed


def test_one_use_has_one_seed() -> None:
    assert derive_seed(3, Stream.EVAL_EPISODE, 7, 2) == derive_seed(3, Stream.EVAL_EPISODE, 7, 2)
    assert 0 <= derive_seed(2**31 - 1, Stream.TRAIN_EPISODE, 10**6) < 2**32


def test_every_use_has_a_seed_of_its_own() -> None:
    uses = [
        (seed, stream, *index)
        for seed in range(4)
        for stream in Stream
        for index in itertools.product(range(12), repeat=INDICES[stream])
    ]
    assert len({derive_seed(*use) for use in uses}) == len(uses)
    assert derive_seed(1, Stream.EVAL_EPISODE, 2, 3) != derive_seed(1, Stream.EVAL_EPISODE, 3, 2)


def test_a_stream_takes_its_own_number_of_indices() -> None:
    # numpy's SeedSequence takes [1, 1] and [1, 1, 0] for the same, so the two must not both be uses.
    with pytest.raises(ValueError, match="AGENT takes 1 indices, not 0"):
        derive_seed(1, Stream.AGENT)


def test_streams_keep_their_numbers() -> None:
    names = "MODEL AGENT REPLAY RANDOM_ACTIONS TRAIN_EPISODE EVAL_EPISODE EVAL_AGENT".split()
    assert [Stream[name] for name in names] == list(range(7))


def test_deriving_a_seed_leaves_numpys_global_state_alone() -> None:
    np.random.seed(0)  # noqa: NPY002  # the global state is what is looked at
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    derive_seed(1, Stream.REPLAY)
    assert np.random.rand() == expected  # noqa: NPY002
