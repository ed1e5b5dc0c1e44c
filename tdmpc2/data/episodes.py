"""Which rows of a replay store are which episode, on disk and in memory.

Rows are numbered from the store's beginning, without gaps and for ever: episode i takes rows `bounds[i]` to
`bounds[i + 1] - 1`. Where a row lies on disk is its number modulo the rows there. The log is a file of three
little-endian int64 a record: first row, number of rows, episode index.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tdmpc2.data.files import open_for_writing, write_at
from tdmpc2.errors import require

RECORD = np.dtype("<i8")
RECORD_BYTES = 3 * RECORD.itemsize


class EpisodeTable:
    """The log of episodes and, kept up with it, how many sequences of a horizon start before each of them."""

    def __init__(self, path: Path, capacity: int, horizon: int, writable: bool) -> None:
        """Read the log.

        A writer that was killed may leave a torn last record, and one that lost power worse: when the log is to be
        written on, records end at the first unsound one, and `Replay.restore` refuses where the checkpoint has more.

        Raises:
            UserError: the log is opened for reading only and a record does not follow from those before it.
        """
        rows = _read_rows(path, capacity, strict=not writable)
        self._file = open_for_writing(path) if writable else None
        self._capacity = capacity
        self._horizon = horizon
        self._bounds = _cumulative(rows)
        self._starts_before = _cumulative(np.maximum(rows - horizon, 0))
        self._set_count(len(rows))

    def _set_count(self, count: int) -> None:
        self.count = count
        """Episodes in the log."""
        self.end = int(self._bounds[count])
        """Number of the next row to be written."""
        self.oldest = self.oldest_at(count)
        """Index of the oldest episode that lies wholly in the newest `capacity` rows."""
        self._passed = int(self._starts_before[self.oldest])
        self.num_starts = int(self._starts_before[count]) - self._passed
        """Sequences that can be sampled."""

    def oldest_at(self, count: int) -> int:
        """The oldest episode that could be sampled when the log held `count` episodes."""
        bounds = self._bounds[: count + 1]
        return int(np.searchsorted(bounds, bounds[-1] - self._capacity))

    def first_row(self, index: int) -> int:
        """Number of the first row of an episode; of the next row to be written for index `count`."""
        return int(self._bounds[index])

    def locate(self, starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where sequences begin.

        Args:
            starts: (B,) in [0, num_starts), counted from the oldest episode on.

        Returns:
            (B,) the sequences' first rows and (B,) the first rows of their episodes.
        """
        starts = starts + self._passed
        # The first episode with more starts up to its end than `starts`; so one without any is never found.
        episode = np.searchsorted(self._starts_before[self.oldest + 1 : self.count + 1], starts, side="right")
        episode += self.oldest
        first = self._bounds[episode]
        return first + starts - self._starts_before[episode], first

    def append(self, rows: int) -> None:
        """Log an episode whose rows are written.

        Raises:
            OSError: the disk is full or broken; the table is as before.
        """
        assert self._file is not None
        write_at(self._file, np.array([self.end, rows, self.count], RECORD), self.count * RECORD_BYTES)
        if self.count + 1 == len(self._bounds):
            self._bounds = np.concatenate([self._bounds, np.zeros_like(self._bounds)])
            self._starts_before = np.concatenate([self._starts_before, np.zeros_like(self._starts_before)])
        self._bounds[self.count + 1] = self.end + rows
        self._starts_before[self.count + 1] = self._starts_before[self.count] + max(rows - self._horizon, 0)
        self._set_count(self.count + 1)

    def truncate(self, count: int) -> None:
        """Forget all episodes but the first `count`, on disk too."""
        assert self._file is not None
        os.ftruncate(self._file.fileno(), count * RECORD_BYTES)
        self._set_count(count)

    def sync(self) -> None:
        """Wait until the disk holds the log."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()


def _read_rows(path: Path, capacity: int, strict: bool) -> np.ndarray:
    log = path.read_bytes()
    records = np.frombuffer(log, RECORD, count=len(log) // RECORD_BYTES * 3).reshape(-1, 3)
    first, rows, index = records.T
    sound = (rows >= 2) & (rows <= capacity) & (index == np.arange(len(records)))
    sound &= first == np.cumsum(rows) - rows
    count = len(records) if sound.all() else int(sound.argmin())
    require(
        count == len(records) or not strict,
        f"{path}: the record of episode {count} does not follow from those before it; the file is damaged",
    )
    return rows[:count]


def _cumulative(numbers: np.ndarray) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(numbers, dtype=np.int64)])
