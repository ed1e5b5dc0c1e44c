"""What a data set holds: episodes, transitions, disk, and how the returns are spread, task by task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tdmpc2.data.dataset import Dataset, OpenStore

_SUMMED_AT_ONCE = 2**20


@dataclass(frozen=True)
class TaskSummary:
    """What a data set holds of one task."""

    task: str
    stores: int
    episodes: int
    transitions: int
    """Agent steps."""
    disk_bytes: int
    """Room that its stores take on disk, holes not counted."""
    return_min: float
    """Smallest return of an episode; likewise the quartiles, mean and largest."""
    return_q25: float
    return_median: float
    return_q75: float
    return_max: float
    return_mean: float


Returns = Mapping[str, NDArray[np.float64]]
"""Returns of episodes, (episodes,), by task."""


def describe(dataset: Dataset, returns: Returns | None = None) -> list[TaskSummary]:
    """What the data set holds of each task, in the order of ids. Of the rows, only rewards are read.

    Args:
        dataset: the data set.
        returns: its `episode_returns`, where they are known already.

    Raises:
        UserError: a store is gone or has changed, as `Dataset.open_store` says.
    """
    returns = episode_returns(dataset) if returns is None else returns
    summaries = []
    for task in dataset.tasks:
        records = [record for record in dataset.stores if record.task == task.name]
        low, q25, median, q75, high = np.quantile(returns[task.name], [0, 0.25, 0.5, 0.75, 1]).tolist()
        summaries.append(
            TaskSummary(
                task=task.name,
                stores=len(records),
                episodes=sum(record.episodes for record in records),
                transitions=sum(record.transitions for record in records),
                disk_bytes=sum(_disk_bytes(dataset.store_folder(record)) for record in records),
                return_min=low,
                return_q25=q25,
                return_median=median,
                return_q75=q75,
                return_max=high,
                return_mean=float(returns[task.name].mean()),
            )
        )
    return summaries


def episode_returns(dataset: Dataset) -> Returns:
    """The returns of all episodes, by task: (episodes,), store after store, the oldest episode first.

    Raises:
        UserError: a store is gone or has changed, as `Dataset.open_store` says.
    """
    returns: dict[str, list[NDArray[np.float64]]] = {task.name: [] for task in dataset.tasks}
    for record in dataset.stores:
        returns[record.task].extend(_store_returns(dataset.open_store(record)))
    return {name: np.concatenate(parts) for name, parts in returns.items()}


def _store_returns(store: OpenStore) -> Iterator[NDArray[np.float64]]:
    """Returns of a store's episodes, as many of them at a time as have about a million rows."""
    table = store.episodes
    bounds = np.array([table.first_row(index) for index in range(table.oldest, table.count + 1)])
    begin = 0
    while begin < len(bounds) - 1:
        # Up to the last episode that still ends within the rows summed at once; at least one.
        end = max(begin + 1, int(np.searchsorted(bounds, bounds[begin] + _SUMMED_AT_ONCE, side="right")) - 1)
        rows = np.arange(bounds[begin], bounds[end])
        reward = np.empty(len(rows), np.float32)
        store.rows.read("reward", rows % store.layout.physical_rows, reward)
        first = bounds[begin:end] - bounds[begin]
        reward[first] = 0  # no reward led to an episode's first row, whatever a file from elsewhere says there
        yield np.add.reduceat(reward, first, dtype=np.float64)
        begin = end


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())
