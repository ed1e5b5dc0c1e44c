"""Multi-task data sets: a manifest that names the replay stores of single-task runs, and gives each task its id.

A data set is a folder with `dataset.json`. Nothing is copied into it unless asked for: the manifest names the stores,
relative to itself where both lie below one results folder, so that this can be moved as a whole. It keeps how much
each store held when the data set was built, and a store of which that no longer holds is refused: what an agent
learned from can be told from the manifest alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pydantic
from pydantic import ConfigDict

from tdmpc2.config import Count, Positive, make_settings
from tdmpc2.data.copying import copy_store
from tdmpc2.data.episodes import EpisodeTable
from tdmpc2.data.files import RowFiles, disk_full_is_user_error
from tdmpc2.data.layout import DESCRIPTION, EPISODE_LOG, Layout, read_layout, sync_folder
from tdmpc2.errors import UserError, nearest, require
from tdmpc2.own_tasks import RECORD, enter_record, record_of
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import Metric, file_name, get_task

MANIFEST = "dataset.json"
FORMAT_VERSION = 1
COPIES = "stores"
"""Folder of the copied stores, beside the manifest."""

_ENTRY = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class StoreSource:
    """A replay store that a data set is to be built from."""

    folder: Path
    """The store's folder."""
    seed: int | None
    """Seed of the run that wrote it; None where it is not known."""
    finished: bool
    """Whether nothing is written to it any more: its run is done."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_ENTRY)
class DatasetTask:
    """One task of a data set."""

    id: Count
    """The agent's number for it: its place among the tasks."""
    name: str
    """Name in the registry."""
    obs_dim: Positive
    """Length of its observation; what follows in a batch is zeros."""
    action_dim: Positive
    """Length of its action: the action mask is 1 on so many dims, and 0 on those that follow."""
    episode_length: Positive
    """Agent steps in an episode."""
    metric: Metric
    """What the task is scored by."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_ENTRY)
class StoreRecord:
    """One store of a data set, and what it held when the data set was built."""

    path: str
    """Its folder, absolute or relative to the manifest's."""
    task: str
    """Name of its task."""
    seed: int | None
    """Seed of the run that wrote it, where known."""
    rows: Positive
    """Rows that can be sampled; an episode of T agent steps has T+1."""
    episodes: Positive
    """Episodes that can be sampled."""
    rows_written: Positive
    """Rows ever written. A full store that is written on keeps its other two numbers, but not this one."""

    @property
    def transitions(self) -> int:
        """Agent steps that can be sampled."""
        return self.rows - self.episodes


@dataclass(frozen=True)
class OpenStore:
    """A store opened for reading: its rows are mapped, and read as they are sampled."""

    layout: Layout
    episodes: EpisodeTable
    rows: RowFiles

    @classmethod
    def open(cls, folder: Path, horizon: int) -> Self:
        """Open a store, to count sequences of a horizon.

        Raises:
            UserError: no store, or a file that is missing, truncated or damaged.
        """
        layout = read_layout(folder, {})
        table = EpisodeTable(folder / EPISODE_LOG, layout.capacity, horizon, writable=False)
        return cls(layout, table, RowFiles(folder, layout, writable=False))

    @property
    def held(self) -> dict[str, int]:
        """`rows`, `episodes` and `rows_written` of `StoreRecord`."""
        table = self.episodes
        return {
            "rows": table.end - table.first_row(table.oldest),
            "episodes": table.count - table.oldest,
            "rows_written": table.end,
        }

    def require_dims(self, task: DatasetTask, folder: Path) -> None:
        """Raise a `UserError` unless the store holds state observations and actions of the task's lengths."""
        held = self.layout
        require(
            held.obs_dtype == "float32" and len(held.obs_shape) == 1 and held.frame_stack == 1,
            f"{folder}: holds observations of shape {held.obs_shape} ({held.obs_dtype}); data sets are of states",
        )
        require(
            (held.obs_shape[0], held.action_dim) == (task.obs_dim, task.action_dim),
            f"{folder}: observations of {held.obs_shape[0]} and actions of {held.action_dim} dims, but {task.name} has "
            f"{task.obs_dim} and {task.action_dim}",
        )


@dataclass(frozen=True)
class Dataset:
    """A data set, as its manifest says. Whether the stores are still there and as they were, `open_store` checks."""

    folder: Path
    """Folder of the manifest, links resolved."""
    name: str
    tasks: tuple[DatasetTask, ...]
    """In the order of their ids."""
    stores: tuple[StoreRecord, ...]

    def __post_init__(self) -> None:
        where = self.folder / MANIFEST
        require(len(self.tasks) > 0, f"{where}: a data set needs at least one task")
        for place, task in enumerate(self.tasks):
            require(task.id == place, f"{where}: {task.name} has id {task.id}, but is task number {place} in the list")
        names = [task.name for task in self.tasks]
        _require_once(names, f"{where}: task")
        _require_once((record.path for record in self.stores), f"{where}: store")
        for record in self.stores:
            require(record.task in names, f"{where}: {record.path} is of {record.task}, which is not among its tasks")
        empty = [name for name in names if all(record.task != name for record in self.stores)]
        require(not empty, f"{where}: no replay store of {', '.join(empty)}; leave the task out, or add its runs")

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """The data set in a folder, from its manifest alone.

        Raises:
            UserError: no manifest, one of an unknown format or damaged, or its tasks and stores do not fit together.
        """
        folder = Path(folder).resolve()
        path = folder / MANIFEST
        require(path.is_file(), f"{folder}: holds no data set ({MANIFEST} is missing)")
        enter_record(folder / RECORD)
        try:
            manifest = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path}: is not valid JSON ({error})") from None
        require(isinstance(manifest, dict), f"{path}: does not describe a data set")
        version = manifest.pop("version", None)
        require(version == FORMAT_VERSION, f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
        require(
            manifest.keys() == {"name", "tasks", "stores"}
            and isinstance(manifest["name"], str)
            and _are_objects(manifest["tasks"])
            and _are_objects(manifest["stores"]),
            f"{path}: must have a name, and lists of tasks and stores, and nothing else",
        )
        tasks = (make_settings(DatasetTask, v, f"{path}: task {i}") for i, v in enumerate(manifest["tasks"]))
        stores = (make_settings(StoreRecord, v, f"{path}: store {i}") for i, v in enumerate(manifest["stores"]))
        return cls(folder, manifest["name"], tuple(tasks), tuple(stores))

    @property
    def obs_dim(self) -> int:
        """Length of the padded observation."""
        return max(task.obs_dim for task in self.tasks)

    @property
    def action_dim(self) -> int:
        """Length of the padded action."""
        return max(task.action_dim for task in self.tasks)

    @property
    def spec(self) -> AgentSpec:
        """What an agent of these tasks must know of them."""
        return AgentSpec(
            obs_shape=(self.obs_dim,),
            action_dims=tuple(task.action_dim for task in self.tasks),
            episode_lengths=tuple(task.episode_length for task in self.tasks),
            tasks=tuple(task.name for task in self.tasks),
        )

    def task(self, name: str) -> DatasetTask:
        """The task of a name, one of `tasks`."""
        return next(task for task in self.tasks if task.name == name)

    def select(self, tasks: Sequence[str]) -> Self:
        """The data set of some of these tasks, their ids in the order given; on disk nothing changes.

        Raises:
            UserError: a task that the data set lacks (names the nearest that it has), or that is named twice, or none.
        """
        names = [task.name for task in self.tasks]
        for name in tasks:
            if name not in names:
                match = nearest(name, names)
                shown = f"the nearest is {match}" if match else f"it has {', '.join(names)}"
                raise UserError(f"{self.folder / MANIFEST}: holds no data of {name!r}; {shown}")
        chosen = tuple(dataclasses.replace(self.task(name), id=place) for place, name in enumerate(tasks))
        stores = tuple(record for record in self.stores if record.task in tasks)
        return dataclasses.replace(self, tasks=chosen, stores=stores)

    def fingerprint(self) -> str:
        """A hash of the tasks and of what each store holds, 64 hexadecimal digits; a data set that is moved keeps it.

        Neither name nor paths count. The order of stores does: which sequences a seed draws depends on it.
        """
        tasks = [dataclasses.astuple(task) for task in self.tasks]
        stores = [(r.task, r.seed, r.rows, r.episodes, r.rows_written) for r in self.stores]
        return hashlib.sha256(json.dumps([tasks, stores]).encode()).hexdigest()

    def store_folder(self, record: StoreRecord) -> Path:
        """Where a store must be."""
        return Path(os.path.normpath(self.folder / record.path))

    def open_store(self, record: StoreRecord, horizon: int = 1) -> OpenStore:
        """Open a store, after seeing that it is there and as it was.

        Args:
            record: one of `stores`.
            horizon: agent steps of the sequences that are counted.

        Raises:
            UserError: the store is gone, has changed since the data set was built, is of another task or of other dims
                than its task's, or is damaged; says what to do.
        """
        folder, where = self.store_folder(record), self.folder / MANIFEST
        require(
            (folder / DESCRIPTION).is_file(),
            f"{where}: the replay store of {record.task} (seed {record.seed}) is gone: no {folder / DESCRIPTION}. Move "
            f"it back there, or build a new data set from where it is now",
        )
        store = OpenStore.open(folder, horizon)
        require(store.layout.task == record.task, f"{folder}: is of {store.layout.task}, {where} says {record.task}")
        store.require_dims(self.task(record.task), folder)
        for name, held in store.held.items():
            recorded = getattr(record, name)
            require(
                held == recorded,
                f"{folder}: has changed since {where} was built: {name.replace('_', ' ')}: {held:,}, then "
                f"{recorded:,}. Build a new data set from it as it is now",
            )
        return store

    def check(self) -> None:
        """Raise a `UserError` unless all stores are there and as they were, as `open_store` does."""
        for record in self.stores:
            self.open_store(record)


def build(name: str, stores: Sequence[StoreSource], tasks: Sequence[str], folder: Path, copy: bool = False) -> Dataset:
    """Write the manifest of a new data set, `folder/name/dataset.json`.

    Args:
        name: the data set's name, a folder's.
        stores: the stores, each of one of the tasks; several of one task are of several seeds, say.
        tasks: names of the tasks in the order of their ids.
        folder: the folder of data sets. Stores below its parent, the results folder, are named relative to the
            manifest, others by absolute path.
        copy: copy the stores below the manifest's folder, which then can be moved alone.

    Raises:
        UserError: the data set exists; a store is not finished, not there, empty, of a task that is not among these,
            or of other dims than its task's; a task is unknown, named twice or without a store; the disk is full.
    """
    target = new_folder(name, folder)
    for source in stores:
        require(
            source.finished,
            f"{source.folder}: is still being written, its run is not done: finish the run, or leave it out",
        )
    opened = [OpenStore.open(source.folder, horizon=1) for source in stores]
    records = tuple(map(_record, opened, stores, (_path_of(source.folder, target) for source in stores)))
    listed = tuple(_task(place, task, opened) for place, task in enumerate(tasks))
    dataset = Dataset(target, name, listed, records)
    for source, store in zip(stores, opened, strict=True):
        store.require_dims(dataset.task(store.layout.task), source.folder)

    held = sum(record.rows * store.layout.row_bytes for record, store in zip(records, opened, strict=True))
    with disk_full_is_user_error(target, f"copying {held:,} bytes of replay" if copy else "writing the manifest"):
        target.mkdir(parents=True, exist_ok=True)
        if copy:
            dataset = _with_copies(dataset)
        if own := record_of(tasks):  # so that own tasks are known to who only reads the data
            (target / RECORD).write_text(own)
        _write(dataset)
    return dataset


def new_folder(name: str, folder: Path) -> Path:
    """The folder of a new data set below the folder of data sets, links resolved; nothing is made.

    Raises:
        UserError: the name is none for a folder, or the data set exists.
    """
    is_name = name != "" and Path(name).name == name and not name.startswith(".")
    require(is_name, f"{name!r} is no name for a data set's folder")
    target = folder.resolve() / name
    manifest = target / MANIFEST
    require(not manifest.exists(), f"{manifest}: exists already; choose another name, or delete that data set")
    return target


def _record(store: OpenStore, source: StoreSource, path: str) -> StoreRecord:
    require(store.held["episodes"] > 0, f"{source.folder}: is empty; leave it out")
    return StoreRecord(path=path, task=store.layout.task, seed=source.seed, **store.held)


def _path_of(store: Path, target: Path) -> str:
    store = store.resolve()
    results = target.parent.parent
    return os.path.relpath(store, target) if store.is_relative_to(results) else str(store)


def _task(place: int, name: str, opened: Iterable[OpenStore]) -> DatasetTask:
    task = get_task(name, where="tasks")
    # A task whose observation's length is not in the registry has that of its first store, as the others must.
    obs_dim = task.obs_dim or next((s.layout.obs_shape[0] for s in opened if s.layout.task == name), 1)
    return DatasetTask(
        id=place,
        name=name,
        obs_dim=obs_dim,
        action_dim=task.action_dim,
        episode_length=task.episode_length,
        metric=task.metric,
    )


def _require_once(names: Iterable[str], what: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    require(not twice, f"{what} {', '.join(twice)} is named twice")


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _with_copies(dataset: Dataset) -> Dataset:
    """Copy the stores of a data set below its folder; all of them or none."""
    copies = dataset.folder / COPIES
    require(not copies.exists(), f"{copies}: left by a build that was interrupted; delete it and build again")
    copies.mkdir()
    records = []
    try:
        for place, record in enumerate(dataset.stores):
            copied = dataclasses.replace(record, path=f"{COPIES}/{place:03}-{file_name(record.task)}")
            copy_store(dataset.store_folder(record), dataset.folder / copied.path)
            records.append(copied)
        result = dataclasses.replace(dataset, stores=tuple(records))
        result.check()
    except BaseException:
        shutil.rmtree(copies)
        raise
    return result


def _write(dataset: Dataset) -> None:
    manifest = {
        "version": FORMAT_VERSION,
        "name": dataset.name,
        "tasks": [dataclasses.asdict(task) for task in dataset.tasks],
        "stores": [dataclasses.asdict(record) for record in dataset.stores],
    }
    path = dataset.folder / MANIFEST
    unnamed = dataset.folder / f"{MANIFEST}.{os.getpid()}.tmp"
    try:
        with unnamed.open("w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.link(unnamed, path)  # unlike a renaming, this does not replace one that another build has just written
    except FileExistsError:
        raise UserError(f"{path}: exists already; another build has just written it") from None
    finally:
        unnamed.unlink(missing_ok=True)
    sync_folder(dataset.folder)
