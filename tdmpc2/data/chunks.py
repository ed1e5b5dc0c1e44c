"""Importing the released offline data sets: their chunk files become replay stores, one a task, and a manifest.

A first pass reads the tasks' column of all files, a fiftieth of the data. It tells how many episodes each task has:
stores are made of exactly that size, room on the disk is checked before anything is written, and a file that is
missing, truncated or foreign is found at once, not hours later. Chunks are then copied one after another, in blocks of
consecutive episodes, each checked before it is written.

What is imported counts chunk by chunk. Rows are written beyond the end of each store; only when all of a chunk's are on
disk do the stores' logs name its episodes, and then `import.json` the chunk. An import that ended anywhere, by a fault
or a kill, is first cut back to the chunks that this file names, so that nothing of a chunk is there twice or in part.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdmpc2.data.chunk_files import Chunk, find_chunks, open_chunk
from tdmpc2.data.dataset import COPIES, MANIFEST, Dataset, StoreSource, build, new_folder
from tdmpc2.data.episodes import RECORD, RECORD_BYTES
from tdmpc2.data.files import RowFiles, disk_full_is_user_error, open_for_writing, write_at
from tdmpc2.data.layout import DESCRIPTION, EPISODE_LOG, Layout, create_files, field_path, read_layout, sync_folder
from tdmpc2.errors import UserError, require, unknown_name
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import TASK_SETS, get_task

RELEASED = ("mt30", "mt80")
"""Task sets of the released data."""
PROGRESS = "import.json"
"""What an import in the data set's folder is of, and how many chunks are done; gone when all are."""
_BLOCK_ROWS = 2**18
"""Rows checked and copied at once; some 50 MB of mt80's."""

Progress = Callable[[int, int, int, int], None]
"""Called with the chunk's number, the number of chunks, the chunk's episodes done so far, and its episodes."""


@dataclass(frozen=True)
class _ImportedChunk:
    """A chunk file and what it holds; by this an import that goes on knows its files again."""

    name: str
    size: int
    """Bytes."""
    episodes: dict[str, int]
    """Number of episodes by task; of those tasks that have any."""


@dataclass(frozen=True)
class _Import:
    """What is to be imported, and how far it is."""

    task_set: str
    rows: int
    """Rows of each episode, T+1."""
    chunks: tuple[_ImportedChunk, ...]
    done: int = 0
    """Chunks that are in the stores, from the first on."""

    def episodes(self, chunks: int) -> Counter[str]:
        """Episodes of each task in the first so many chunks."""
        return sum((Counter(chunk.episodes) for chunk in self.chunks[:chunks]), Counter())

    def write(self, folder: Path) -> None:
        """Write `import.json` in the place of the one there, durably."""
        unnamed = folder / f"{PROGRESS}.tmp"
        with unnamed.open("w") as file:
            json.dump(dataclasses.asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unnamed.rename(folder / PROGRESS)
        sync_folder(folder)


def import_chunks(folder: Path, task_set: str, target: Path, name: str, progress: Progress | None = None) -> Dataset:
    """Import released chunk files as a data set, `target/name`; goes on where an import into it was interrupted.

    A task of the set that has no episode in any of the files is left out of the data set. Episodes keep their T steps,
    though T may be less than the task's episode length: mt80's DMControl episodes are cut into five.

    Args:
        folder: where the `chunk_<i>.pt` are; nothing is written there.
        task_set: `mt30` or `mt80`, whose tasks' numbers the files use.
        target: the folder of data sets.
        name: the new data set's name, a folder's.
        progress: called after each block of episodes.

    Raises:
        UserError: a file is missing, truncated, no TensorDict of plain tensors, or of other keys, shapes or dtypes; a
            task's number is not in the set or changes within an episode; a number is NaN or infinite, or, beyond its
            task's dims, not zero, which means that tasks are numbered otherwise (actions and rewards of an episode's
            first row are ignored). Names the file and the fault; of that file, nothing is left in the stores. Also: the
            data set exists, its folder is of an import of other files, another process imports into it, the disk is
            full.
    """
    if task_set not in RELEASED:
        raise unknown_name("task set of released data", task_set, RELEASED, "task_set")
    root = target.resolve() / name
    if (root / PROGRESS).exists() and (root / MANIFEST).exists():  # killed when all was done
        (root / PROGRESS).unlink()
        return Dataset.read(root)
    new_folder(name, target)
    paths = find_chunks(folder)
    wanted = _survey(paths, task_set)
    with disk_full_is_user_error(root, "importing chunks"):
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root):
            done = _begun(root, wanted)
            stores = [_Store.open(root, wanted, task, done.episodes(done.done)[task]) for task in _tasks(wanted)]
            try:
                _require_room(root, wanted, done, stores)
                for number in range(done.done, len(paths)):
                    _import_chunk(paths[number], number, wanted, stores, progress)
                    done = dataclasses.replace(done, done=number + 1)
                    done.write(root)
            finally:
                for store in stores:
                    store.close()
            sources = [StoreSource(store.folder, seed=None, finished=True) for store in stores]
            dataset = build(name, sources, _tasks(wanted), target)
            (root / PROGRESS).unlink()
    return dataset


def _tasks(wanted: _Import) -> list[str]:
    """Tasks that have episodes, in the order of their set."""
    totals = wanted.episodes(len(wanted.chunks))
    return [task for task in TASK_SETS[wanted.task_set] if totals[task] > 0]


def _open(path: Path, task_set: str) -> Chunk:
    spec = AgentSpec.from_tasks(TASK_SETS[task_set])
    return open_chunk(path, spec.obs_shape[0], spec.action_dim)


def _survey(paths: Sequence[Path], task_set: str) -> _Import:
    """What files hold, by their tasks' column."""
    tasks, rows, chunks = TASK_SETS[task_set], 0, []
    for path in paths:
        chunk = _open(path, task_set)
        total, found = chunk.task.shape
        rows = rows or found
        require(found == rows, f"{path}: its episodes have {found} rows, those of {paths[0].name} {rows}")
        counts = np.zeros(len(tasks), np.int64)
        at_once = max(1, _BLOCK_ROWS // rows)
        for begin in range(0, total, at_once):
            numbers = _task_numbers(chunk, slice(begin, begin + at_once), task_set)
            counts += np.bincount(numbers, minlength=len(tasks))
        episodes = {task: count for task, count in zip(tasks, counts.tolist(), strict=True) if count}
        chunks.append(_ImportedChunk(path.name, path.stat().st_size, episodes))
    return _Import(task_set, rows, tuple(chunks))


def _task_numbers(chunk: Chunk, block: slice, task_set: str) -> np.ndarray:
    """The task's number in its set of each of a block of episodes, checked."""
    rows = chunk.task[block]
    numbers, last = rows[:, 0], len(TASK_SETS[task_set]) - 1
    constant = (rows == numbers[:, None]).all(axis=1)
    if not constant.all():
        where = f"{chunk.path}: episode {block.start + int(constant.argmin())}"
        raise UserError(f"{where}: the task changes within the episode")
    known = (numbers >= 0) & (numbers <= last)
    if not known.all():
        wrong = int(known.argmin())
        where = f"{chunk.path}: episode {block.start + wrong}"
        raise UserError(f"{where}: task {numbers[wrong]}, but those of {task_set} are numbered 0 to {last}")
    return numbers


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep other imports out of a folder."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{root}: another process is importing into it") from None
    finally:
        os.close(descriptor)


def _begun(root: Path, wanted: _Import) -> _Import:
    """How far the import in a folder is; begins it where there is none."""
    path = root / PROGRESS
    if not path.exists():
        require(not (root / COPIES).exists(), f"{root / COPIES}: is not of an import; delete it or choose another name")
        wanted.write(root)
        return wanted
    try:
        recorded = json.loads(path.read_text())
        done = recorded.pop("done")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{path}: is damaged; delete {root} and import again") from None
    asked = json.loads(json.dumps(dataclasses.asdict(wanted)))
    asked.pop("done")
    same = recorded == asked and isinstance(done, int) and 0 <= done <= len(wanted.chunks)
    require(same, f"{path}: is of other chunk files than these; delete {root} or choose another name")
    return dataclasses.replace(wanted, done=done)


def _require_room(root: Path, wanted: _Import, done: _Import, stores: Sequence[_Store]) -> None:
    rest = wanted.episodes(len(wanted.chunks)) - done.episodes(done.done)
    needed = sum(rest[store.layout.task] * store.episode_bytes for store in stores)
    free = shutil.disk_usage(root).free
    require(
        needed <= free,
        f"{root}: the disk has {free:,} bytes free, but what is still to be imported takes {needed:,}: free space, or "
        f"import to another disk",
    )


@dataclass
class _Store:
    """The store of one task while it is being imported into. Its terminated flags stay holes, which read as False."""

    folder: Path
    layout: Layout
    rows: int
    """Rows of each episode."""
    episodes: int
    """Episodes that the log names."""
    files: RowFiles
    written: int = 0
    """Episodes whose rows are written beyond those."""

    @classmethod
    def open(cls, root: Path, wanted: _Import, name: str, episodes: int) -> _Store:
        """Open a task's store, made if need be, and cut it back to its first so many episodes."""
        task = get_task(name)
        folder = root / COPIES / f"{TASK_SETS[wanted.task_set].index(name):03}-{name}"
        total = wanted.episodes(len(wanted.chunks))[name]
        layout = Layout(
            task=name,
            obs_shape=(task.obs_dim or 0,),
            obs_dtype="float32",
            action_dim=task.action_dim,
            capacity=total * wanted.rows,
            slack=1,
        )
        if not (folder / DESCRIPTION).exists():
            create_files(folder, layout)
        found = read_layout(folder, {})
        require(found == layout, f"{folder}: is not as the import made it; delete {root} and import again")
        _cut_back(folder, layout, episodes, wanted.rows)
        return cls(folder, layout, wanted.rows, episodes, RowFiles(folder, layout, writable=True))

    @property
    def episode_bytes(self) -> int:
        """Room that an episode takes on disk."""
        return self.rows * (self.layout.row_bytes - self.layout.fields["terminated"].row_bytes) + RECORD_BYTES

    def write(self, columns: dict[str, np.ndarray]) -> None:
        """Write rows of whole episodes; they do not count before `commit`."""
        self.files.write((self.episodes + self.written) * self.rows, columns)
        self.written += len(columns["reward"]) // self.rows

    def commit(self) -> None:
        """Name the episodes written in the log, once they are on disk."""
        if self.written == 0:
            return
        self.files.sync()
        index = np.arange(self.episodes, self.episodes + self.written)
        records = np.stack([index * self.rows, np.full_like(index, self.rows), index], axis=1).astype(RECORD)
        with open_for_writing(self.folder / EPISODE_LOG) as log:
            write_at(log, records, self.episodes * RECORD_BYTES)
            os.fsync(log.fileno())
        self.episodes, self.written = self.episodes + self.written, 0

    def forget(self, episodes: int) -> None:
        """Go back to the first so many episodes, on disk too."""
        _cut_back(self.folder, self.layout, episodes, self.rows)
        self.episodes, self.written = episodes, 0

    def close(self) -> None:
        """Close the files."""
        self.files.close()


def _cut_back(folder: Path, layout: Layout, episodes: int, rows: int) -> None:
    """Leave a store as it was when it held its first so many episodes: what was written since becomes holes again."""
    log = folder / EPISODE_LOG
    held, kept = log.stat().st_size, episodes * RECORD_BYTES
    require(
        held >= kept, f"{log}: {held // RECORD_BYTES} episodes, but {folder.parent.parent / PROGRESS} counts {episodes}"
    )
    os.truncate(log, kept)
    for name, field in layout.fields.items():
        path = field_path(folder, name)
        os.truncate(path, episodes * rows * field.row_bytes)
        os.truncate(path, layout.physical_rows * field.row_bytes)


def _import_chunk(
    path: Path, number: int, wanted: _Import, stores: Sequence[_Store], progress: Progress | None
) -> None:
    """Copy a chunk's episodes to the stores; all of them or, where an error is raised, none."""
    chunk = _open(path, wanted.task_set)
    total, at_once = len(chunk.task), max(1, _BLOCK_ROWS // wanted.rows)
    store_of = {TASK_SETS[wanted.task_set].index(store.layout.task): store for store in stores}
    before = [store.episodes for store in stores]
    try:
        for begin in range(0, total, at_once):
            end = min(begin + at_once, total)
            numbers = _task_numbers(chunk, slice(begin, end), wanted.task_set)
            for task in np.unique(numbers).tolist():
                store = store_of[task]
                store.write(_columns(chunk, begin + np.flatnonzero(numbers == task), store.layout))
            if progress is not None:
                progress(number, len(wanted.chunks), end, total)
        for store in stores:
            store.commit()
    except BaseException:
        for store, episodes in zip(stores, before, strict=True):
            store.forget(episodes)
        raise


def _columns(chunk: Chunk, episodes: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    """Rows to be stored of some episodes of a chunk, of one task, checked: (episodes x rows, ...) a field."""
    # Consecutive episodes, the usual case, are taken as they lie and copied only once.
    first, last = int(episodes[0]), int(episodes[-1])
    chosen = slice(first, last + 1) if last - first + 1 == len(episodes) else episodes
    obs_dim, action_dim = layout.obs_shape[0], layout.action_dim
    sources = {"obs": chunk.obs[chosen], "action": chunk.action[chosen], "reward": chunk.reward[chosen]}
    columns = {
        "obs": np.ascontiguousarray(sources["obs"][..., :obs_dim]),
        "action": np.array(sources["action"][..., :action_dim], order="C"),
        "reward": np.array(sources["reward"], order="C"),
    }
    columns["action"][:, 0] = columns["reward"][:, 0] = 0  # fillers, whatever they are

    def require_rows(sound: np.ndarray, first_row: int, fault: str) -> None:
        if not sound.all():
            rows = sound.reshape(*sound.shape[:2], -1).all(axis=2)
            episode, row = np.unravel_index(int(rows.argmin()), rows.shape)
            where = f"episode {episodes[episode]} (of {layout.task}), row {row + first_row}"
            raise UserError(f"{chunk.path}: {where}: {fault}")

    for name, values in columns.items():
        require_rows(np.isfinite(values), 0, f"{name} is NaN or infinite")
    padding = {"obs": (sources["obs"][..., obs_dim:], 0), "action": (sources["action"][:, 1:, action_dim:], 1)}
    for name, (values, first_row) in padding.items():
        dims = columns[name].shape[-1]
        fault = f"{name} is not zero beyond the task's {dims} dims: the file's tasks are numbered otherwise"
        require_rows(values == 0, first_row, fault)
    return {name: values.reshape(-1, *layout.fields[name].shape) for name, values in columns.items()}
