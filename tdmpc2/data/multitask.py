"""Sampling from all stores of a data set at once.

The sequences of all stores are numbered through, task after task, so that those of one task have numbers without a gap:
a number is drawn, a binary search tells its store, and the store's log of episodes tells its rows. Only these are read,
through memory maps; in memory are the logs (16 bytes an episode) and nothing else. A batch that falls on few stores
costs no more where a data set has many.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tdmpc2.data.closing import Closing
from tdmpc2.data.dataset import Dataset
from tdmpc2.data.paging import ReadAhead, outgrows_memory
from tdmpc2.data.prefetch import WHOLE, part_of
from tdmpc2.errors import UserError, nearest, require, unknown_name

ROW_FIELDS = ("obs", "action")
"""Fields whose rows are wide. Of data larger than memory these are read page by page; the others soon stay in it."""

LET_GO_BATCHES = 8
"""Batches after which data larger than memory are taken out of the process's, of which they would fill ever more: where
a page is touched, the system maps those around it that it has in its cache."""


class MultitaskReplay(Closing):
    """All stores of a data set, opened for reading. It can stand where `Prefetcher` takes a store.

    Args:
        dataset: the data set.
        horizon: H, agent steps of the sequences that are sampled.
        weights: relative probability of each task, by name; all sequences of a task are equally likely. If left out,
            all sequences of all tasks are.

    Raises:
        UserError: a store is gone or has changed, as `Dataset.open_store` says; `weights` names an unknown task,
            leaves one out, or has a negative or no positive number.
    """

    def __init__(self, dataset: Dataset, horizon: int = 3, weights: Mapping[str, float] | None = None) -> None:
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, not {horizon}")
        self.dataset = dataset
        self.horizon = horizon
        self.changes = 0
        """How often what can be sampled has changed; see `Replay.changes`."""
        self._lock = threading.Lock()
        ids = {task.name: task.id for task in dataset.tasks}
        records = sorted(dataset.stores, key=lambda record: ids[record.task])  # is stable
        self._stores = [dataset.open_store(record, horizon) for record in records]
        self._physical_rows = np.array([store.layout.physical_rows for store in self._stores])
        self._task_of_store = np.array([ids[record.task] for record in records])
        self._bounds = np.cumsum([0, *(store.episodes.num_starts for store in self._stores)])
        """Number of each store's first sequence, and of all sequences."""
        task_bounds = np.searchsorted(self._task_of_store, np.arange(len(ids) + 1))
        self._task_bounds = self._bounds[task_bounds]
        """Number of each task's first sequence, and of all sequences."""
        self._cumulative = None if weights is None else self._cumulative_weights(weights)
        self._steps = np.arange(horizon + 1)
        size = sum(column.nbytes for store in self._stores for column in store.rows.columns.values())
        self._read_ahead = ReadAhead() if outgrows_memory(size) else None
        self._batches = 0
        if self._read_ahead is not None:
            for store in self._stores:
                for name in ROW_FIELDS:
                    self._read_ahead.expect_random(store.rows.columns[name])

    def _cumulative_weights(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        names = [task.name for task in self.dataset.tasks]
        for name in weights:
            if name not in names:
                raise unknown_name("task", name, names, "weights")
        missing = [name for name in names if name not in weights]
        require(not missing, f"weights: none for {', '.join(missing)}; a task that is not to be sampled has weight 0")
        for name, count in zip(names, np.diff(self._task_bounds).tolist(), strict=True):
            weight = weights[name]
            require(math.isfinite(weight) and weight >= 0, f"weights: {name}: {weight} is not a number of 0 or more")
            require(weight == 0 or count > 0, f"weights: {name} has no episode as long as the horizon ({self.horizon})")
        cumulative = np.cumsum([weights[name] for name in names], dtype=np.float64)
        require(bool(cumulative[-1] > 0), "weights: at least one must be above 0")
        return cumulative / cumulative[-1]

    @property
    def num_starts(self) -> int:
        """Sequences that can be sampled, of all stores."""
        return int(self._bounds[-1])

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator,
        out: dict[str, Tensor] | None = None,
        part: tuple[int, int] = WHOLE,
    ) -> dict[str, Tensor]:
        """Sequences drawn with replacement: uniformly from all, or by the tasks' weights.

        Args:
            batch_size: B, how many.
            generator: random generator on the CPU, the only thing besides the data that the result depends on.
            out: where to put them, as `empty_batch` makes it; memory of their own if left out.
            part: (rank, world): the numbers of the whole batch are drawn, but only the rank-th of `world` equal parts
                of it is read. So processes whose generators are alike have, one after another, the whole batch.

        Returns:
            As `sequences`, of B / world sequences; `out`, where it was given.

        Raises:
            UserError: no episode is long enough for a sequence.
            ValueError: `out` is not what `empty_batch` makes, the data set is closed, or there is no such part.
        """
        own = part_of(batch_size, part)
        size = own.stop - own.start
        if out is None:
            out = self.empty_batch(size)
        elif not self._is_batch(out, size):
            raise ValueError(f"data set {self.dataset.name}: out must be as empty_batch({size}) makes it")
        with self._lock:
            self._require_open()
            if self.num_starts == 0:
                raise UserError(
                    f"data set {self.dataset.name}: nothing to sample: no episode has as many steps as the horizon "
                    f"({self.horizon})"
                )
            numbers = draw_sequences(batch_size, self._task_bounds, self._cumulative, generator)
            self._gather(numbers[own], out)
        return out

    def sequences(self, starts: Tensor) -> dict[str, Tensor]:
        """The sequences with given numbers, in [0, num_starts): by task id, then store, then age.

        Args:
            starts: (B,) int64.

        Returns:
            obs (H+1, B, largest obs dim), and the action (H, B, largest action dim), reward (H, B, 1) and terminated
            (H, B, 1) that led to obs[1:], float32, zeros beyond a task's own dims; task (B,) int64, the tasks' ids. All
            in memory of their own.

        Raises:
            IndexError: a number is out of range.
            ValueError: the data set is closed.
        """
        out = self.empty_batch(len(starts))
        with self._lock:
            self._require_open()
            if not bool(((starts >= 0) & (starts < self.num_starts)).all()):
                raise IndexError(f"data set {self.dataset.name}: sequence numbers must be in [0, {self.num_starts})")
            self._gather(starts.numpy(), out)
        return out

    def empty_batch(self, batch_size: int, pin_memory: bool = False) -> dict[str, Tensor]:
        """Memory for a batch, of any contents.

        Args:
            batch_size: B, its sequences.
            pin_memory: whether to pin it, so that a GPU copies it while the CPU goes on.

        Returns:
            tensors of the shapes and dtypes that `sequences` gives.
        """
        return {
            name: torch.empty(shape, dtype=dtype, pin_memory=pin_memory)
            for name, (shape, dtype) in self._batch_layout(batch_size).items()
        }

    def _batch_layout(self, batch_size: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        steps = (self.horizon, batch_size)
        return {
            "obs": ((self.horizon + 1, batch_size, self.dataset.obs_dim), torch.float32),
            "action": ((*steps, self.dataset.action_dim), torch.float32),
            "reward": ((*steps, 1), torch.float32),
            "terminated": ((*steps, 1), torch.float32),
            "task": ((batch_size,), torch.int64),
        }

    def _is_batch(self, batch: Mapping[str, Tensor], batch_size: int) -> bool:
        wanted = self._batch_layout(batch_size)
        return batch.keys() == wanted.keys() and all(
            (batch[name].shape, batch[name].dtype, batch[name].device.type) == (*layout, "cpu")
            and batch[name].is_contiguous()
            for name, layout in wanted.items()
        )

    def _gather(self, starts: NDArray[np.int64], out: Mapping[str, Tensor]) -> None:
        store_of = np.searchsorted(self._bounds, starts, side="right") - 1  # finds none without sequences
        order = np.argsort(store_of, kind="stable")
        begins = np.flatnonzero(np.diff(store_of[order], prepend=-1))
        pieces = [slice(*ends) for ends in pairwise([*begins.tolist(), len(order)])]
        stores = [self._stores[index] for index in store_of[order[begins]]]
        # What can be done for the whole batch at once is: with hundreds of stores, each call for one of them counts.
        local = (starts - self._bounds[store_of])[order]
        row = np.empty_like(local)
        for store, piece in zip(stores, pieces, strict=True):
            row[piece], _ = store.episodes.locate(local[piece])
        places = (row[:, None] + self._steps) % self._physical_rows[store_of[order], None]
        if self._read_ahead is not None:
            self._begin_reading(places[:, 0], store_of[order])

        B, L = places.shape
        obs = np.zeros((B, L, self.dataset.obs_dim), np.float32)
        action = np.zeros((B, L, self.dataset.action_dim), np.float32)
        reward, terminated = np.empty((B, L), np.float32), np.empty((B, L), bool)
        for store, piece in zip(stores, pieces, strict=True):
            at, columns = places[piece], store.rows.columns
            obs[piece, :, : columns["obs"].shape[1]] = columns["obs"].take(at, 0)
            action[piece, :, : columns["action"].shape[1]] = columns["action"].take(at, 0)
            reward[piece] = columns["reward"].take(at)
            terminated[piece] = columns["terminated"].take(at)

        out["obs"].numpy()[:, order] = obs.swapaxes(0, 1)
        out["action"].numpy()[:, order] = action[:, 1:].swapaxes(0, 1)
        out["reward"].numpy()[:, order, 0] = reward[:, 1:].T
        out["terminated"].numpy()[:, order, 0] = terminated[:, 1:].T
        out["task"].numpy()[:] = self._task_of_store[store_of]

    def _begin_reading(self, place: NDArray[np.int64], store_of: NDArray[np.int64]) -> None:
        """Have the disk at work on all of a batch's observations and actions, (B,) places in (B,) stores, at once."""
        assert self._read_ahead is not None
        self._batches += 1
        if self._batches % LET_GO_BATCHES == 0:
            for store in self._stores:
                for column in store.rows.columns.values():
                    self._read_ahead.let_go(column)
        starts, ends = [], []
        for name in ROW_FIELDS:
            columns = [store.rows.columns[name] for store in self._stores]
            base = np.array([column.ctypes.data for column in columns])[store_of]
            row_bytes = np.array([column.strides[0] for column in columns])[store_of]
            last = np.minimum(place + len(self._steps), self._physical_rows[store_of])  # the ring's end may come first
            starts.append(base + place * row_bytes)
            ends.append(base + last * row_bytes)
        self._read_ahead.begin(np.concatenate(starts), np.concatenate(ends))

    def close(self) -> None:
        """Close the files. The data set cannot be sampled any more."""
        with self._lock:
            if self._read_ahead is not None:
                self._read_ahead.close()
            for store in self._stores:
                store.rows.close()
                store.episodes.close()
            self._stores.clear()
            self.changes += 1

    def _require_open(self) -> None:
        if not self._stores:
            raise ValueError(f"data set {self.dataset.name}: is closed")


def draw_sequences(
    batch_size: int,
    task_bounds: NDArray[np.int64],
    cumulative_weights: NDArray[np.float64] | None,
    generator: torch.Generator,
) -> NDArray[np.int64]:
    """Numbers of sequences, drawn with replacement.

    Args:
        batch_size: B, how many.
        task_bounds: (tasks + 1,) the number of each task's first sequence, and of all sequences.
        cumulative_weights: (tasks,) probability of each task and those before it, the last one 1; a task of weight
            above 0 has sequences. None: all sequences are equally likely.
        generator: random generator on the CPU.

    Returns:
        (B,) in [0, task_bounds[-1]).
    """
    # The remainder of a number below 2^63: no sequence is likelier than another by more than the bound / 2^63.
    # torch.randint takes that of a number below 2^32, and at 250 million sequences some are likelier by 1 in 17.
    numbers = torch.empty(batch_size, dtype=torch.int64).random_(generator=generator).numpy()
    if cumulative_weights is None:
        return numbers % task_bounds[-1]
    uniform = torch.rand(batch_size, dtype=torch.float64, generator=generator).numpy()
    task = np.searchsorted(cumulative_weights, uniform, side="right")  # finds none of weight 0
    begin = task_bounds[task]
    return begin + numbers % (task_bounds[task + 1] - begin)


def parse_task_weights(text: str, dataset: Dataset) -> Mapping[str, float] | None:
    """What the setting `task_weights` says, as `MultitaskReplay` takes it.

    Args:
        text: `transitions`, `tasks`, or weights of some tasks as in `walker-walk:2,cup-spin:0.5`, the others' being 1.
        dataset: the data set.

    Returns:
        a weight for each task of the data set, by name; None where all transitions are to be equally likely.

    Raises:
        UserError: none of these, a task that the data set lacks or that has two weights, or a weight that is not a
            number of 0 or more.
    """
    if text == "transitions":
        return None
    weights = {task.name: 1.0 for task in dataset.tasks}
    if text == "tasks":
        return weights
    given: dict[str, float] = {}
    for entry in text.split(","):
        name, colon, number = (part.strip() for part in entry.partition(":"))
        if not colon:
            word = nearest(name, ["transitions", "tasks"])
            hint = f"did you mean {word!r}?" if word else "valid: 'transitions', 'tasks', or TASK:WEIGHT,..."
            raise UserError(f"task_weights: {entry.strip()!r} is no weight of a task; {hint}")
        if name not in weights:
            raise unknown_name("task", name, weights, "task_weights")
        require(name not in given, f"task_weights: {name} has two weights")
        try:
            given[name] = float(number)
        except ValueError:
            raise UserError(f"task_weights: {name}: {number!r} is not a number") from None
        require(
            math.isfinite(given[name]) and given[name] >= 0,
            f"task_weights: {name}: {number} is not a number of 0 or more",
        )
    weights |= given
    require(any(weights.values()), "task_weights: at least one must be above 0")
    return weights
