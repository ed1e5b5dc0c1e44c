"""Training a run whose truth is in object storage: fetched, claimed, trained, and stored checkpoint by checkpoint."""

from __future__ import annotations

import dataclasses
import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tdmpc2.agent import checkpoints
from tdmpc2.config import Config
from tdmpc2.errors import RunBusyError, UserError, require
from tdmpc2.training.fetching import fetch_run, pull_records, unclaimed
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.lease import LEASE_SECONDS, Lease
from tdmpc2.training.replay_segments import extent
from tdmpc2.training.run import train as train_in_folder
from tdmpc2.training.run_writer import LeaseStop, RunWriter, say_if_not
from tdmpc2.training.runtime import Stopped, StopRequest
from tdmpc2.training.storage import Storage
from tdmpc2.training.stored_copy import Copy
from tdmpc2.training.stored_run import StoredRun, StoredState


class Train(Protocol):
    """What trains a run in its folder; see `tdmpc2.training.run.train`."""

    def __call__(
        self, config: Config, show_progress: bool, stop: StopRequest | None, saved: Callable[[], None]
    ) -> RunFolder:
        """Train to the end, calling `saved` after each checkpoint, or raise."""


def train_stored(
    config: Config,
    url: str,
    show_progress: bool = True,
    stop: StopRequest | None = None,
    train: Train | None = None,
) -> RunFolder:
    """Train one run to its end, or go on with it, from what the storage has of it, wherever it was trained before.

    The storage is claimed as the folder is. After each checkpoint all that it needs is stored; between them the status
    and the logs are. Where the storage cannot be reached for a while, training goes on and says so.

    Args:
        config: the run's settings, which decide its folder: working space, that may be lost.
        url: the storage of the run's experiment.
        show_progress: whether to write to the terminal.
        stop: set from elsewhere to stop the run.
        train: what trains it; by default the real training.

    Returns:
        the run's folder.

    Raises:
        UserError: as `train`; or the folder holds a run that is not the storage's.
        RunBusyError: somebody else works on the run, or has taken it over.
        StorageError: the storage cannot be reached at the beginning, or not all of the run could be stored in the end.
        Stopped: a stop was requested.
    """
    train = train if train is not None else train_in_folder
    folder, experiment = RunFolder.of(config), Storage(url)
    storage = experiment.below(f"runs/{config.run_name}")
    linked = LeaseStop(stop if stop is not None else StopRequest())
    status = StoredRun(storage).status()
    if status is not None and status.state == "done":
        here = pull_records(storage, folder)
        require(
            here is not None and here.state == "done",
            f"{folder.path}: holds a run that is not the one of {storage.url}, which is done; move one of them away",
        )
        return train(config, show_progress, linked, lambda: None)
    lease = Lease.take(storage, linked.check, LEASE_SECONDS)
    writer = RunWriter(folder, storage, lease, linked)
    try:
        with writer.renewing():
            with writer.writing, _free(folder):
                _prepare(writer, StoredRun(storage), linked.check)
            fetch_inputs(config, experiment, linked.check)
            try:
                train(config, show_progress, linked, writer.checkpoint_saved)
            except Stopped:
                writer.store_what_can_be()
                raise
            except Exception:
                writer.store_failure()
                raise
            writer.store_all()
    except Stopped:
        if not linked.lost:
            raise
    finally:
        if not linked.lost:
            say_if_not("the run's lease could not be given back, and becomes void by itself", lease.release)
    if linked.lost:
        raise RunBusyError(f"{storage.url}: another process has taken over this run; this one stopped")
    return folder


@contextmanager
def _free(folder: RunFolder) -> Iterator[None]:
    """Write to a folder that no process of this machine works on."""
    with unclaimed(folder) as free:
        if not free:
            raise RunBusyError(f"{folder.path}: another process is working on this run; wait for it or stop it first")
        yield


# --- before training


def _is_current(folder: RunFolder, state: StoredState | None) -> bool:
    """Whether a folder goes on from just what the storage has."""
    copy = Copy.read(folder)
    return state is not None and copy is not None and (copy.generation, copy.serial) == (state.generation, state.serial)


def _prepare(writer: RunWriter, stored: StoredRun, check: Callable[[], None]) -> None:
    """Bring the run's folder to where the storage is, unless it is there or ahead of it."""
    folder, state = writer.folder, stored.state()
    copy = Copy()
    if state is not None:
        if _is_current(folder, state) and not _can_go_on(folder, state):
            Copy(serial=-1).write(folder)
        writer.state, copy = fetch_run(stored, state, folder, check)
    writer.copy = dataclasses.replace(copy, lease=writer.lease.number)
    writer.copy.write(folder)


def _can_go_on(folder: RunFolder, state: StoredState) -> bool:
    """Whether a folder's newest checkpoint can be read, and is no older than the storage's."""
    try:
        replay = checkpoints.read(folder.checkpoint).get("replay")
        if state.checkpoint.replay is None:
            return True
        held = extent(folder.replay)
    except UserError:
        return False
    known = state.checkpoint.replay.rows
    return isinstance(replay, dict) and replay.get("rows", -1) >= known and held.rows >= known


def fetch_inputs(config: Config, experiment: Storage, check: Callable[[], None]) -> None:
    """Bring what a run learns from to this machine: the data set that its experiment built, or the run it begins with.

    Raises:
        UserError: a part is damaged or missing; the disk is full.
        StorageError: the storage cannot be reached.
    """
    home = Path(config.results_dir) / config.exp_name
    if config.checkpoint is not None:
        source = Path(config.checkpoint)
        if source.resolve().parent == (home / "runs").resolve():
            _fetch_source(RunFolder(source), experiment.below(f"runs/{source.name}"))
    if config.data is not None and "/" not in config.data:
        fetch_dataset(config.data, home, experiment, config.tasks, check)


def _fetch_source(folder: RunFolder, storage: Storage) -> None:
    stored = StoredRun(storage)
    state = stored.state()
    if state is None:
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder.path / ".fetch.lock"), _free(folder):
        fetch_run(stored, state, folder, lambda: None, replay=False)


def fetch_dataset(
    name: str, home: Path, experiment: Storage, tasks: tuple[str, ...] | None, check: Callable[[], None]
) -> None:
    """Bring a data set that the experiment built, if it is one, with the stores that it names.

    Args:
        name: the data set's.
        home: folder of the experiment's results.
        experiment: its storage.
        tasks: those whose stores are needed; all by default.
        check: called between stores; raises to give up.

    Raises:
        UserError: a store is damaged or missing; the disk is full.
        StorageError: the storage cannot be reached.
    """
    from tdmpc2.data.dataset import MANIFEST, Dataset

    target = home / "datasets" / name
    names = [found for found in experiment.find(f"datasets/{name}") if found.count("/") == 2]
    if not any(found.endswith(f"/{MANIFEST}") for found in names):
        return
    with _one_at_a_time(home / "datasets" / ".fetch.lock"):
        for found in sorted(names, key=lambda found: found.endswith(f"/{MANIFEST}")):
            experiment.download(found, target / found.rpartition("/")[2])
        dataset = Dataset.read(target)
        for record in dataset.stores:
            if tasks is not None and record.task not in tasks:
                continue
            check()
            source = dataset.store_folder(record).parent
            if source.parent.resolve() != (home / "runs").resolve():
                continue  # no run of this experiment: it has to be on this machine
            _fetch_store(RunFolder(source), experiment.below(f"runs/{source.name}"))


def _fetch_store(folder: RunFolder, storage: Storage) -> None:
    """Bring the replay of a run that is done, unless it is there."""
    stored = StoredRun(storage)
    state = stored.state()
    require(state is not None, f"{storage.url}: has no replay of this run, which a data set names")
    assert state is not None
    with _free(folder):
        fetch_run(stored, state, folder, lambda: None, checkpoint=False)


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
