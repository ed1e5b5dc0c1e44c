"""The replay store: episodes on disk, of which the newest are sampled.

Rows. An episode of T agent steps takes T+1 rows: row t holds observation t and the action, reward and terminated flag
that led to it (row 0's are zeros). Rows are numbered from the store's beginning on; row r lies at r modulo
`capacity + slack` on disk, so the files are a ring, and an episode may go around its end. Sampled are all sequences of
horizon + 1 rows of one episode, among the episodes that lie wholly in the newest `capacity` rows.

Exact resume. A checkpoint keeps `state()`; after a kill `restore(state)` truncates the log of episodes to it, and a
deterministic run then writes the same rows to the same places again. What was sampled from then on is sampled again,
because of this invariant:

    No row is overwritten that any checkpoint on disk can still sample. If the oldest episode that the oldest of these
    checkpoints' states can sample begins at row F, then every row ever written has a number below F + capacity + slack.

A run keeps two checkpoints, and goes back to the older one where the newer cannot be read. `add` refuses what would
break the invariant. A full store's checkpoint can sample back to F >= end - capacity, hence at least `slack` rows may
be written after the oldest checkpoint on disk; `room` says how many are left. F moves on only in `mark_checkpoint`,
which is to be called once a new checkpoint is durable, with the state of the one that is the oldest from then on: until
then a kill may go back to the one that was. A resumed store must protect the same rows, so a checkpoint also keeps the
state of the one before it, for `restore`.
The oldest row sampled at present is never older than F, so an episode that is cut off while being written (a kill, a
full disk) damages nothing either: it counts from the moment on at which all its rows and then its record are written.

Threads. One thread adds, restores and closes; others may sample and read meanwhile: a lock keeps each of these whole.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from tdmpc2.config import make_settings
from tdmpc2.data.batches import empty_batch, is_batch
from tdmpc2.data.checks import episode_columns
from tdmpc2.data.closing import Closing
from tdmpc2.data.episodes import EpisodeTable
from tdmpc2.data.files import RowFiles, disk_full_is_user_error
from tdmpc2.data.layout import DESCRIPTION, EPISODE_LOG, Layout, create_files, read_layout
from tdmpc2.errors import UserError, require

EMPTY_STATE: Mapping[str, int] = {"episodes": 0, "rows": 0}
"""State of a store before its first episode: what to restore where a run was killed before its first checkpoint."""


@dataclass(frozen=True)
class Episode:
    """A stored episode."""

    index: int
    """Its number, from the store's first episode on."""
    first_row: int
    """Number of its first row; on disk at this modulo `physical_rows`."""
    rows: int
    """Its rows: agent steps + 1."""


class Replay(Closing):
    """A replay store in a folder. Made by `create` or `open`; sequences have a horizon that is fixed there."""

    def __init__(self, folder: Path, layout: Layout, horizon: int, writable: bool) -> None:
        """Open the files of a store whose layout is known; use `create` or `open`."""
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, not {horizon}")
        self.folder = folder
        self.layout = layout
        self.horizon = horizon
        self.writable = writable
        self.changes = 0
        """How often what can be sampled has changed: as long as it stays, a generator's state decides the batch."""
        self._lock = threading.Lock()
        self._episodes = EpisodeTable(folder / EPISODE_LOG, layout.capacity, horizon, writable)
        self._rows = RowFiles(folder, layout, writable)
        self._steps = np.arange(horizon + 1)[:, None]
        self._stack = np.arange(1 - layout.frame_stack, 1)
        self.mark_checkpoint()

    @classmethod
    def create(
        cls,
        folder: Path | str,
        *,
        task: str,
        obs_shape: tuple[int, ...],
        obs_dtype: Any,
        action_dim: int,
        capacity: int,
        slack: int,
        frame_stack: int = 1,
        horizon: int = 3,
    ) -> Self:
        """Make an empty store, which takes no disk space to speak of until rows are written.

        Args:
            folder: where; made if need be.
            task: name of the task.
            obs_shape: shape of an observation as the agent sees it.
            obs_dtype: float32 or uint8, as a name or a dtype of torch or NumPy.
            action_dim: length of an action.
            capacity: newest rows that are sampled (an episode of T agent steps has T+1).
            slack: rows that can be written after the oldest checkpoint on disk, at the least; no less than those of an
                episode.
            frame_stack: frames stacked along an observation's first axis, oldest first, an episode's first one
                repeated before it. Each is stored once.
            horizon: agent steps of the sequences that this instance samples; not a property of the files.

        Raises:
            UserError: the folder holds a store already, an argument is out of range, or the disk is full.
        """
        values = {
            "task": task,
            "obs_shape": obs_shape,
            "obs_dtype": obs_dtype,
            "action_dim": action_dim,
            "capacity": capacity,
            "slack": slack,
            "frame_stack": frame_stack,
        }
        layout: Layout = make_settings(Layout, values, where="replay")
        folder = Path(folder)
        needed = layout.physical_rows * layout.row_bytes
        with disk_full_is_user_error(folder, f"making a replay store for up to {needed:,} bytes"):
            create_files(folder, layout)
        return cls(folder, layout, horizon, writable=True)

    @classmethod
    def open(cls, folder: Path | str, *, horizon: int = 3, writable: bool = True, **expected: Any) -> Self:
        """Open a store: to go on writing, after `restore`, or for reading only.

        Args:
            folder: the store's folder.
            horizon: agent steps of the sequences that this instance samples.
            writable: whether episodes are to be added.
            expected: arguments of `create` that the store must have been made with.

        Raises:
            UserError: no store, another format version, another task, shape or size than expected, a file that is
                missing, truncated or damaged; names the file and what differs.
        """
        folder = Path(folder)
        return cls(folder, read_layout(folder, expected), horizon, writable)

    @staticmethod
    def exists(folder: Path | str) -> bool:
        """Whether the folder holds a store; one that was cut off while being created is none."""
        return (Path(folder) / DESCRIPTION).is_file()

    @property
    def num_episodes(self) -> int:
        """Episodes in the newest `capacity` rows."""
        return self._episodes.count - self._episodes.oldest

    @property
    def num_rows(self) -> int:
        """Rows of those episodes."""
        return self._episodes.end - self._episodes.first_row(self._episodes.oldest)

    @property
    def num_starts(self) -> int:
        """Sequences that can be sampled: T - horizon + 1 for each of those episodes, if positive."""
        return self._episodes.num_starts

    def __len__(self) -> int:
        return self.num_rows

    def add(self, obs: Any, action: Any, reward: Any, terminated: Any) -> None:
        """Store an episode of T agent steps. It is stored whole or, where an error is raised, not at all.

        Args:
            obs: (T+1, *obs_shape) of the store's dtype.
            action: (T, action_dim) in [-1, 1]; action[t] led from obs[t] to obs[t+1].
            reward: (T,).
            terminated: (T,) bool.

        Raises:
            ValueError: a wrong shape or dtype.
            UserError: a number is not finite or an action outside [-1, 1] (names field, task and step); the episode is
                longer than the capacity; the disk is full.
            RuntimeError: there is no `room` for it before the next checkpoint, or the store is read-only.
        """
        self._require_writable()
        task, index = self.layout.task, self._episodes.count
        columns = episode_columns(self.layout, index, obs, action, reward, terminated)
        rows = len(columns["obs"])
        capacity = self.layout.capacity
        require(rows <= capacity, f"replay of {task}: an episode of {rows:,} rows, but the capacity is {capacity:,}")
        if rows > self.room:
            raise RuntimeError(
                f"replay of {task}: {rows:,} rows would overwrite some that a checkpoint can sample. There is "
                f"room for {self.room:,}: checkpoint before, or create the store with more slack ({self.layout.slack})"
            )
        writing = f"writing {rows * self.layout.row_bytes:,} bytes of replay"
        with self._lock, disk_full_is_user_error(self.folder, writing):
            self._rows.write(self._episodes.end, columns)
            self._episodes.append(rows)
            self.changes += 1

    def sample(
        self, batch_size: int, generator: torch.Generator, out: dict[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Sequences drawn uniformly, with replacement, from all of the store.

        Args:
            batch_size: B, how many.
            generator: random generator on the CPU, the only thing besides the store that the result depends on.
            out: where to put them, as `empty_batch` makes it; memory of their own if left out.

        Returns:
            As `sequences`; `out`, where it was given.

        Raises:
            UserError: no episode is long enough for a sequence.
            ValueError: `out` is not what `empty_batch` makes, or the store is closed.
        """
        if out is None:
            out = self.empty_batch(batch_size)
        elif not is_batch(out, self.layout, self.horizon, batch_size):
            raise ValueError(f"replay of {self.layout.task}: out must be as empty_batch({batch_size}) makes it")
        with self._lock:
            self._require_open()
            if self.num_starts == 0:
                raise UserError(
                    f"replay of {self.layout.task}: nothing to sample: none of {self.num_episodes} episodes has as "
                    f"many steps as the horizon ({self.horizon})"
                )
            self._gather(torch.randint(self.num_starts, (batch_size,), generator=generator).numpy(), out)
        return out

    def empty_batch(self, batch_size: int, pin_memory: bool = False) -> dict[str, torch.Tensor]:
        """Memory for a batch, of any contents.

        Args:
            batch_size: B, its sequences.
            pin_memory: whether to pin it, so that a GPU copies it while the CPU goes on.

        Returns:
            tensors of the shapes and dtypes that `sequences` gives.
        """
        return empty_batch(self.layout, self.horizon, batch_size, pin_memory)

    def sequences(self, starts: torch.Tensor) -> dict[str, torch.Tensor]:
        """The sequences with given numbers, in [0, num_starts), the oldest first.

        Args:
            starts: (B,) int64.

        Returns:
            obs (horizon+1, B, *obs_shape) of the store's dtype, and the action (horizon, B, action_dim), reward
            (horizon, B, 1) and terminated (horizon, B, 1) that led to obs[1:], float32; all in memory of their own.

        Raises:
            IndexError: a number is out of range.
            ValueError: the store is closed.
        """
        out = self.empty_batch(len(starts))
        with self._lock:
            self._require_open()
            if not bool(((starts >= 0) & (starts < self.num_starts)).all()):
                raise IndexError(f"replay of {self.layout.task}: sequence numbers must be in [0, {self.num_starts})")
            self._gather(starts.numpy(), out)
        return out

    def _gather(self, starts: NDArray[np.int64], out: Mapping[str, torch.Tensor]) -> None:
        row, episode_row = self._episodes.locate(starts)
        rows = row + self._steps
        self._read_observations(rows, episode_row, out["obs"].numpy())
        led_to = rows[1:] % self.layout.physical_rows
        self._rows.read("action", led_to, out["action"].numpy())
        self._rows.read("reward", led_to, out["reward"].numpy()[..., 0])
        terminated = np.empty(led_to.shape, bool)
        self._rows.read("terminated", led_to, terminated)
        out["terminated"].numpy()[..., 0] = terminated

    def _read_observations(
        self, rows: NDArray[np.int64], episode_row: NDArray[np.int64] | int, out: np.ndarray
    ) -> None:
        """Put the observations of rows (*N, B), of episodes that begin at rows (B,), into (*N, B, *obs_shape)."""
        if self.layout.frame_stack > 1:
            rows = np.maximum(rows[..., None] + self._stack, np.asarray(episode_row)[..., None])
        frames = out.reshape(*rows.shape, *self.layout.frame_shape)
        self._rows.read("obs", rows % self.layout.physical_rows, frames)

    def episodes(self) -> Iterator[Episode]:
        """The episodes in the newest `capacity` rows, the oldest first."""
        for index in range(self._episodes.oldest, self._episodes.count):
            first = self._episodes.first_row(index)
            yield Episode(index, first, self._episodes.first_row(index + 1) - first)

    def episode(self, index: int) -> dict[str, torch.Tensor]:
        """What `add` was given for an episode.

        Args:
            index: its index, as `episodes` gives it.

        Returns:
            obs (T+1, *obs_shape) of the store's dtype, action (T, action_dim) and reward (T,) float32, terminated (T,)
            bool; all in memory of their own.

        Raises:
            IndexError: no such episode is in the newest `capacity` rows.
            ValueError: the store is closed.
        """
        with self._lock:
            self._require_open()
            if not self._episodes.oldest <= index < self._episodes.count:
                raise IndexError(
                    f"replay of {self.layout.task}: episode {index} is not stored; those stored are "
                    f"{self._episodes.oldest} to {self._episodes.count - 1}"
                )
            first = self._episodes.first_row(index)
            rows = np.arange(first, self._episodes.first_row(index + 1))
            arrays = {"obs": np.empty((len(rows), *self.layout.obs_shape), self.layout.obs_dtype)}
            self._read_observations(rows, first, arrays["obs"])
            for name in ("action", "reward", "terminated"):
                field = self.layout.fields[name]
                arrays[name] = np.empty((len(rows) - 1, *field.shape), field.dtype)
                self._rows.read(name, rows[1:] % self.layout.physical_rows, arrays[name])
        return {name: torch.from_numpy(values) for name, values in arrays.items()}

    @property
    def room(self) -> int:
        """Rows that can be written before the next checkpoint (an episode of T agent steps has T+1)."""
        return self._protected_row + self.layout.physical_rows - self._episodes.end

    def state(self) -> dict[str, int]:
        """What a checkpoint must keep of the store: numbers of episodes and rows written in all."""
        return {"episodes": self._episodes.count, "rows": self._episodes.end}

    def flush(self) -> None:
        """Wait until the disk holds all episodes: to be called before the checkpoint that counts them is written.

        Raises:
            UserError: the disk is full.
        """
        with disk_full_is_user_error(self.folder, "flushing replay"):
            self._rows.sync()
            self._episodes.sync()

    def mark_checkpoint(self, oldest: Mapping[str, int] | None = None) -> None:
        """Say which is the oldest checkpoint on disk, for good: rows that only older ones sample may be overwritten.

        Args:
            oldest: the state that it holds; by default the present one, where the newest is the only one.
        """
        count = self._episodes.count if oldest is None else oldest["episodes"]
        self._protected_row = self._episodes.first_row(self._episodes.oldest_at(count))

    def restore(self, state: Mapping[str, int], oldest: Mapping[str, int] | None = None) -> None:
        """Go back to a checkpoint's state: episodes logged since are forgotten, on disk too.

        Args:
            state: what `state` gave, or `EMPTY_STATE`.
            oldest: the state of an older checkpoint that stays on disk; by default there is none.

        Raises:
            UserError: the store does not hold the state's episodes (any more).
            RuntimeError: the store is read-only.
        """
        self._require_writable()
        log, count, rows = self.folder / EPISODE_LOG, state["episodes"], state["rows"]
        require(
            0 <= count <= self._episodes.count,
            f"{log}: {self._episodes.count} sound records, but the checkpoint counts {count} episodes",
        )
        found = self._episodes.first_row(count)
        require(found == rows, f"{log}: {count} episodes have {found:,} rows, but the checkpoint counts {rows:,}")
        oldest_row = self._episodes.first_row(self._episodes.oldest_at(count))
        require(
            self._episodes.end <= oldest_row + self.layout.physical_rows,
            f"{self.folder}: rows of the checkpoint at {count} episodes have been overwritten by later ones",
        )
        with self._lock:
            self._episodes.truncate(count)
            self.changes += 1
        self.mark_checkpoint(oldest)

    def close(self) -> None:
        """Close the files. The store cannot be used any more."""
        with self._lock:
            self._rows.close()
            self._episodes.close()
            self.changes += 1

    def _require_open(self) -> None:
        if not self._rows.columns:
            raise ValueError(f"{self.folder}: this replay store is closed")

    def _require_writable(self) -> None:
        if not self.writable:
            raise RuntimeError(f"{self.folder}: this replay store was opened for reading only")
