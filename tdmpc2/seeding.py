"""Independent random streams from one seed.

Everything random in a run draws from a stream that is named here and derived from (seed, stream, index). So an
episode can be replayed alone, evaluation never disturbs training, and a resumed run draws what it would have drawn.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a random number is for. The numbers are part of every recorded result: never reuse or renumber one."""

    MODEL = 0
    AGENT = 1
    REPLAY = 2
    RANDOM_ACTIONS = 3
    TRAIN_EPISODE = 4
    EVAL_EPISODE = 5
    EVAL_AGENT = 6


INDICES = {
    Stream.MODEL: 0,
    Stream.AGENT: 1,
    Stream.REPLAY: 0,
    Stream.RANDOM_ACTIONS: 0,
    Stream.TRAIN_EPISODE: 1,
    Stream.EVAL_EPISODE: 2,
    Stream.EVAL_AGENT: 1,
}
"""Numbers that tell the uses of a stream apart. Fixed, since (seed, stream) and (seed, stream, 0) give one seed."""


def derive_seed(seed: int, stream: Stream, *index: int) -> int:
    """A 32-bit seed for one use, independent of those for every other (seed, stream, index).

    Args:
        seed: the run's seed, >= 0.
        stream: what it is for.
        index: what tells the uses apart, e.g. the episode's number; as many numbers as `INDICES` says.

    Raises:
        ValueError: another number of indices.
    """
    if len(index) != INDICES[stream]:
        raise ValueError(f"stream {stream.name} takes {INDICES[stream]} indices, not {len(index)}")
    return int(np.random.SeedSequence([seed, int(stream), *index]).generate_state(1)[0])
