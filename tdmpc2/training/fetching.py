"""Bringing a run from object storage to a folder: to go on with it, to learn from it, or to look at it."""

from __future__ import annotations

import dataclasses
import fcntl
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tdmpc2.errors import UserError, require
from tdmpc2.training.folder import RunFolder, Status
from tdmpc2.training.lease import expiry
from tdmpc2.training.storage import Storage
from tdmpc2.training.stored_copy import Copy, file_stamp
from tdmpc2.training.stored_run import StoredCheckpoint, StoredRun, StoredState

LOG = "run.log"
"""The log of a run's output, which its process holds open while it fetches."""
PATIENCE_SECONDS = 10.0
"""How long to wait for a process that only brings records to the same folder."""


@contextmanager
def unclaimed(folder: RunFolder, patience: float = PATIENCE_SECONDS) -> Iterator[bool]:
    """Keep processes of this machine off a run's folder; whether that worked within so many seconds."""
    folder.path.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (folder.path / ".lock").open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                yield False
            else:
                yield True
            return


def fetch_records(
    stored: StoredRun, folder: RunFolder, known: Mapping[str, str] | None = None, leaving: str = ""
) -> dict[str, str]:
    """Bring the newest records of a run to its folder.

    Args:
        stored: the run.
        folder: the folder, where no process works.
        known: versions of records that are there, which are not fetched.
        leaving: a record to leave out.

    Returns:
        the versions that are there now.

    Raises:
        StorageError: the storage cannot be reached.
    """
    versions = dict(known or {})
    found = {name: there for name, there in stored.records.items() if name.rpartition("/")[2] != leaving}
    for name in sorted(found, key=lambda name: name.endswith("/status.json")):  # the status last, as it was written
        file = folder.path / name.rpartition("/")[2]
        if versions.get(name) != found[name].version or not file.exists():
            try:
                stored.storage.download(name, file)
            except FileNotFoundError:  # replaced by a newer lease's; the next look finds that
                continue
        versions[name] = found[name].version
    return {name: version for name, version in versions.items() if name in found}


def fetch_replay(stored: StoredRun, state: StoredState, folder: RunFolder) -> None:
    """Make a run's replay store of its pieces.

    Raises:
        UserError: a piece is missing or damaged; the disk is full.
        StorageError: the storage cannot be reached.
    """
    from tdmpc2.data.episodes import RECORD_BYTES
    from tdmpc2.training.replay_segments import make_store

    extent = state.checkpoint.replay
    require(extent is not None, f"{stored.storage.url}: this run has no replay of its own")
    assert extent is not None
    where, storage = stored.storage.url, stored.storage

    def read(name: str) -> bytes:
        content = storage.read(name)
        if content is None:
            raise UserError(f"{where}/{name}: is gone")
        return content

    log = read(state.log)[: extent.episodes * RECORD_BYTES]
    make_store(folder.replay, read(state.description), log, state.segments, read)


def fetch_checkpoints(stored: StoredRun, state: StoredState, folder: RunFolder) -> StoredState:
    """Bring a run's checkpoints to its folder.

    Returns:
        the state of the newest one that can be read.

    Raises:
        UserError: none can be read.
        StorageError: the storage cannot be reached.
    """
    from tdmpc2.agent import checkpoints

    shutil.rmtree(folder.checkpoint.parent, ignore_errors=True)
    previous = folder.checkpoint.with_name("previous.pt")
    if state.previous is not None:
        _download(stored, state.previous, previous)
    try:
        _download(stored, state.checkpoint, folder.checkpoint)
        checkpoints.read(folder.checkpoint)
    except UserError as error:
        if state.previous is None or not previous.exists():
            raise
        print(f"{error}; going on from the checkpoint before it", file=sys.stderr, flush=True)
        previous.replace(folder.checkpoint)
        checkpoints.read(folder.checkpoint)
        return state.at_previous()
    return state


def _download(stored: StoredRun, checkpoint: StoredCheckpoint, file: Path) -> None:
    try:
        stored.storage.download(checkpoint.name, file)
    except FileNotFoundError:
        if file.name != "previous.pt":  # whose absence matters only if the other cannot be read
            raise UserError(f"{stored.storage.url}/{checkpoint.name}: is gone") from None


def fetch_run(
    stored: StoredRun,
    state: StoredState,
    folder: RunFolder,
    check: Callable[[], None],
    checkpoint: bool = True,
    replay: bool = True,
) -> tuple[StoredState, Copy]:
    """Bring a run to its folder, in place of an older copy there.

    Args:
        stored: the run.
        state: its state.
        folder: the folder, where no process works.
        check: called between parts; raises to give up.
        checkpoint: whether to bring the checkpoints.
        replay: whether to bring the replay.

    Returns:
        the state that the folder now holds, and the note of that in the folder.

    Raises:
        UserError: the folder holds a run of another origin; a part is damaged or missing; the disk is full.
        StorageError: the storage cannot be reached.
    """
    from tdmpc2.data.layout import DESCRIPTION

    copy = Copy.read(folder)
    has_replay = (folder.replay / DESCRIPTION).is_file()
    if copy is None and (folder.checkpoint.exists() or has_replay):
        raise UserError(
            f"{folder.path}: holds a run that did not come from {stored.storage.url}, where there is one too; move one "
            "of them away"
        )
    copy = copy if copy is not None else Copy()
    if (copy.generation, copy.serial) != (state.generation, state.serial):
        until = copy.lease_until
        Copy(serial=-1).write(folder)
        shutil.rmtree(folder.checkpoint.parent, ignore_errors=True)
        shutil.rmtree(folder.replay, ignore_errors=True)
        has_replay = False
        for record in (folder.train_csv, folder.eval_csv, folder.status_file):
            record.unlink(missing_ok=True)
        versions = fetch_records(stored, folder, leaving=LOG)
        copy = Copy(state.generation, state.serial, versions=versions, lease_until=until)
    check()
    if checkpoint and not folder.checkpoint.exists():
        state = fetch_checkpoints(stored, state, folder)
        copy = dataclasses.replace(copy, checkpoint=file_stamp(folder.checkpoint))
    check()
    if replay and state.checkpoint.replay is not None and not has_replay:
        fetch_replay(stored, state, folder)
    copy.write(folder)
    return state, copy


def pull_records(storage: Storage, folder: RunFolder) -> Status | None:
    """Bring the newest records of a run to a folder where it can be looked at, unless this machine wrote them.

    Args:
        storage: the run's.
        folder: its folder.

    Returns:
        the run's status; None where it has not begun.

    Raises:
        StorageError: the storage cannot be reached.
    """
    stored = StoredRun(storage)
    number = stored.lease
    until = expiry(storage, number) if number else None
    if not stored.records:
        return None
    with unclaimed(folder, patience=0) as free:
        copy = Copy.read(folder)
        if not free or (copy is None and folder.checkpoint.exists()):
            return folder.read_status()
        copy = copy if copy is not None else Copy()
        if stored.generation > copy.lease or folder.read_status() is None:
            log = file_stamp(folder.path / LOG)
            untouched = log is None or log == copy.log
            versions = fetch_records(stored, folder, copy.versions, leaving="" if untouched else LOG)
            # A checkpoint of ours may count more of the logs than there is of them now.
            serial = -1 if copy.lease else copy.serial
            log = file_stamp(folder.path / LOG) if untouched else copy.log
            copy = dataclasses.replace(copy, serial=serial, versions=versions, log=log, lease=0)
        dataclasses.replace(copy, lease_until=until).write(folder)
    return folder.read_status()
