"""Drawing the next batch while the current one is learned from.

It does not change which batches come. A batch follows from what the store holds and from the random stream at the
moment it is asked for. One drawn ahead is handed out only if the store has not changed since; if an episode was added,
it is thrown away, the stream goes back to before it, and it is drawn again. Likewise, what a checkpoint keeps is the
stream before the batch that nobody has used yet.

For a GPU, batches are gathered straight into pinned memory, so that `values.to(device, non_blocking=True)` is a copy
which the CPU does not wait for. The copy may read that memory much later. So it is drawn into again only once the GPU
has passed an event, recorded when the next batch was asked for. Only the caller's thread records and waits: CUDA calls
from another thread would spoil a CUDA graph that is being captured.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from tdmpc2.data.closing import Closing

BUFFERS = 2
"""Sets of buffers: one to learn from, one to draw into."""
PINNED_BUFFERS = 3
"""And one more where a GPU may still be at the update before, so that the CPU can prepare the next meanwhile."""
WHOLE = (0, 1)
"""The part of a batch that is all of it: (rank, world)."""


def part_of(batch_size: int, part: tuple[int, int]) -> slice:
    """Which sequences of a batch are a process's own where several share it.

    Args:
        batch_size: B, sequences of the whole batch.
        part: (rank, world), the rank-th of `world` equal parts, counted from 0.

    Raises:
        ValueError: there is no such part, or B is no multiple of `world`.
    """
    rank, world = part
    if not 0 <= rank < world:
        raise ValueError(f"part {rank} of {world}: must be one of 0 to {world - 1}")
    if batch_size % world:
        raise ValueError(f"a batch of {batch_size} cannot be split into {world} equal parts")
    size = batch_size // world
    return slice(rank * size, (rank + 1) * size)


class Sampled(Protocol):
    """What batches are drawn from: `Replay`, or many stores as one, `MultitaskReplay`."""

    changes: int
    """How often what can be sampled has changed."""

    def sample(
        self, batch_size: int, generator: torch.Generator, out: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """A batch, in buffers made by `empty_batch` where `out` is given."""

    def empty_batch(self, batch_size: int, pin_memory: bool = False) -> dict[str, Tensor]:
        """Buffers for a batch."""


class SampledInParts(Sampled, Protocol):
    """What parts of batches are drawn from: `MultitaskReplay`."""

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator,
        out: dict[str, Tensor] | None = None,
        part: tuple[int, int] = WHOLE,
    ) -> dict[str, Tensor]:
        """A part of a batch, in buffers made by `empty_batch` for so many sequences."""


class _Ahead(NamedTuple):
    """A batch being drawn, or drawn, that nobody has asked for yet."""

    drawing: Future[dict[str, Tensor]]
    changes: int
    """`Sampled.changes` when it was begun."""
    stream: Tensor
    """The generator's state before it."""


class Prefetcher(Closing):
    """Samples batches from a replay store, the next one in a thread of its own.

    It is to be used by the thread that adds to the store, and closed before the store is.

    Args:
        replay: the store.
        batch_size: B, sequences in a batch.
        generator: random generator on the CPU, which nobody else uses from now on until `close`.
        device: where the batches are learned from; for a GPU they lie in pinned memory.
        part: (rank, world): only the rank-th of `world` equal parts of each batch is read and handed out, see
            `MultitaskReplay.sample`. A single store, `Replay`, has no parts.

    Raises:
        ValueError: there is no such part of such a batch.
    """

    def __init__(
        self,
        replay: Sampled | SampledInParts,
        batch_size: int,
        generator: torch.Generator,
        device: torch.device,
        part: tuple[int, int] = WHOLE,
    ) -> None:
        self._replay, self._batch_size, self._generator, self._device = replay, batch_size, generator, device
        self._part = part
        own = part_of(batch_size, part)
        pinned = device.type == "cuda"
        count = PINNED_BUFFERS if pinned else BUFFERS
        self._buffers = [replay.empty_batch(own.stop - own.start, pin_memory=pinned) for _ in range(count)]
        self._read = [torch.cuda.Event(blocking=True) for _ in range(count)] if pinned else []
        """For each set of buffers, passed when the GPU is done with the batch that was in it last."""
        self._current = 0
        """The set of buffers that was handed out last."""
        self._ahead: _Ahead | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")  # started by the first batch
        self._closed = False

    def next(self) -> dict[str, Tensor]:
        """What `replay.sample(batch_size, generator)`, of this part, would give now; the batch after it is begun.

        Returns:
            as `Replay.sequences`, in memory that is good until the next call. On a GPU that means: work on it is to be
            launched, on the current stream, before the next call.

        Raises:
            ValueError: the prefetcher or the store is closed.
            Exception: what `Replay.sample` raises, there or in the thread; the random stream is as before.
        """
        if self._closed:
            raise ValueError("this prefetcher is closed")
        if self._read:
            self._read[self._current].record(torch.cuda.current_stream(self._device))
        if self._ahead is not None and self._ahead.changes != self._replay.changes:
            self._discard()
        ahead = self._ahead or self._draw_ahead()
        try:
            batch = ahead.drawing.result()
        except Exception:  # whatever it is: what was not handed out is drawn again by the next call
            self._discard()
            raise
        self._ahead = None
        self._current = (self._current + 1) % len(self._buffers)
        self._draw_ahead()
        return batch

    def _draw_ahead(self) -> _Ahead:
        into = (self._current + 1) % len(self._buffers)
        if self._read:
            self._read[into].synchronize()
        stream, changes = self._generator.get_state(), self._replay.changes
        drawing = self._thread.submit(self._sample, self._buffers[into])
        self._ahead = _Ahead(drawing, changes, stream)
        return self._ahead

    def _sample(self, out: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._part == WHOLE:
            return self._replay.sample(self._batch_size, self._generator, out)
        return cast(SampledInParts, self._replay).sample(self._batch_size, self._generator, out, self._part)

    def _discard(self) -> None:
        """Forget the batch drawn ahead, and whatever went wrong with it: it is drawn again where it is asked for."""
        if self._ahead is not None:
            self._ahead.drawing.exception()  # waits until the thread is done with generator and buffers
            self._generator.set_state(self._ahead.stream)
            self._ahead = None

    def state(self) -> Tensor:
        """State of the random stream before the next batch, whether that is drawn already or not."""
        return self._generator.get_state() if self._ahead is None else self._ahead.stream

    def load_state(self, state: Tensor) -> None:
        """Go on from what `state` gave, with the store as it was then."""
        self._discard()
        self._generator.set_state(state)

    def close(self) -> None:
        """End the thread, and leave the generator as if nothing had been drawn ahead."""
        self._closed = True
        self._discard()
        self._thread.shutdown()
