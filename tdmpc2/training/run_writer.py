"""Storing a run as it goes on: checkpoint by checkpoint, its records in between, for as long as its lease holds."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tdmpc2.data.layout import DESCRIPTION
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.lease import RENEW_SECONDS, Lease
from tdmpc2.training.replay_segments import extent, parts, read_description, read_log, read_segment
from tdmpc2.training.runtime import StopRequest
from tdmpc2.training.storage import Storage, StorageError
from tdmpc2.training.stored_copy import Copy, file_stamp
from tdmpc2.training.stored_run import RECORDS, STATE, Extent, Segment, StoredCheckpoint, StoredState, prefix

RECORD_SECONDS = 30.0
"""Seconds between two times that a run's records are stored, between its checkpoints."""


class LeaseStop(StopRequest):
    """A request to stop that also is one when the lease is lost."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self.lost = False
        """Whether somebody else has the run now."""

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self.lost or self._request.requested

    @requested.setter
    def requested(self, value: bool) -> None:
        self._request.requested = value


class RunWriter:
    """Stores a run as it goes on.

    Args:
        folder: its folder.
        storage: its storage.
        lease: the right to write there.
        stop: told when that is lost.
    """

    def __init__(self, folder: RunFolder, storage: Storage, lease: Lease, stop: LeaseStop) -> None:
        self.folder, self.lease = folder, lease
        self.state: StoredState | None = None
        """What the storage has, as far as it fits to the folder."""
        self.copy = Copy()
        """What is known in the folder of that."""
        self._storage, self._stop = storage, stop
        self._prefix = prefix(lease.number)
        self._stored_records: dict[str, tuple[int, int] | None] = {}
        self.writing = threading.Lock()
        """Held by who writes the folder or stores it whole: the thread leaves it alone meanwhile."""
        self.uploaded = 0
        """Bytes written to the storage so far."""

    def checkpoint_saved(self) -> None:
        """Store the checkpoint that was just written, or say that it could not be; training goes on."""
        begin, before = time.monotonic(), self.uploaded
        if say_if_not("this checkpoint is not stored, training goes on and the next will be", self._store):
            seconds, size = time.monotonic() - begin, self.uploaded - before
            if size:
                print(f"stored {size:,} bytes in {seconds:.1f} s", file=sys.stderr, flush=True)

    def store_all(self) -> None:
        """Store what is not stored yet.

        Raises:
            StorageError: not all could be; the folder's status says so.
        """
        try:
            self._store()
        except StorageError as error:
            status = self.folder.read_status()
            if status is not None:
                message = f"trained to the end, but not all of it could be stored: {error}"
                self.folder.write_status(dataclasses.replace(status, state="failed", message=message))
            raise

    def store_what_can_be(self) -> None:
        """Store what is not stored yet of a run that was stopped at a checkpoint, as far as that is possible."""
        say_if_not("what came after the last stored checkpoint is on this machine alone", self._store)

    def store_failure(self) -> None:
        """Store the status and the logs of a run that failed, as far as that is possible."""

        def store() -> None:
            with self.writing:
                if self._holds():
                    self._store_records()

        say_if_not("the storage does not know of it", store)

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """Keep the lease, and store the records now and then, in a thread beside the training."""
        end = threading.Event()
        thread = threading.Thread(target=self._renew, args=(end,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def _renew(self, end: threading.Event) -> None:
        told, records_at = False, time.monotonic()
        while not end.wait(RENEW_SECONDS):
            try:
                if not self._holds():
                    return
                self.lease.renew()
                if time.monotonic() - records_at >= RECORD_SECONDS and self.writing.acquire(blocking=False):
                    try:
                        self._store_records()
                    finally:
                        self.writing.release()
                    records_at = time.monotonic()
                told = False
            except (StorageError, OSError) as error:
                if not told:
                    print(f"training goes on without the storage: {error}", file=sys.stderr, flush=True)
                told = True

    def _holds(self) -> bool:
        if not self._stop.lost and not self.lease.holds():
            print("another process has taken over this run; this one stops", file=sys.stderr, flush=True)
            self._stop.lost = True
        return not self._stop.lost

    def _store(self) -> None:
        """Store the folder as it stands: what a state names first, then the state, then the status."""
        with self.writing:
            if not self._holds():
                return
            stamp = file_stamp(self.folder.checkpoint)
            if stamp is None or stamp == self.copy.checkpoint:
                self._store_records()
                return
            state = self._store_checkpoint()
            self._store_records(leaving="status.json")
            if not self._holds():
                return
            self._write(f"{self._prefix}/{STATE}", state.dump())
            self.state = state
            self.copy = dataclasses.replace(
                self.copy, generation=state.generation, serial=state.serial, checkpoint=stamp
            )
            self.copy.write(self.folder)
            self._store_records()
            if self._holds():
                self._delete_what_is_left_over(state)

    def _store_checkpoint(self) -> StoredState:
        """Store the checkpoint and the replay that it counts; the state that names them, which is not yet written."""
        before, number = self.state, self.lease.number
        segments = () if before is None else before.segments
        held = self._store_replay(segments) if (self.folder.replay / DESCRIPTION).is_file() else None
        serial = 1 if before is None else before.serial + 1
        name = f"{self._prefix}/checkpoint-{serial:06d}.pt"
        size = self._storage.upload(self.folder.checkpoint, name)
        self.uploaded += size
        previous = None if before is None else before.checkpoint
        needed = () if held is None else held[1]
        oldest = 0 if held is None else held[0].oldest_row
        if previous is not None and previous.replay is not None:
            oldest = min(oldest, previous.replay.oldest_row)
        kept = tuple(part for part in needed if part.end > oldest)
        return StoredState(
            number, serial, StoredCheckpoint(name, size, None if held is None else held[0]), previous, kept
        )

    def _store_replay(self, stored: tuple[Segment, ...]) -> tuple[Extent, tuple[Segment, ...]]:
        """Store the rows that are not stored yet."""
        store = self.folder.replay
        now = extent(store)
        first = max([now.oldest_row, *(part.end for part in stored)])
        added = []
        for start, end in parts(store, first, now.rows):
            segment = Segment(f"{self._prefix}/rows-{start:012d}-{end:012d}.npz", start, end)
            self._write(segment.name, read_segment(store, start, end))
            added.append(segment)
        self._write(f"{self._prefix}/episodes.bin", read_log(store, now.episodes))
        self._write(f"{self._prefix}/replay.json", read_description(store))
        return now, (*stored, *added)

    def _store_records(self, leaving: str = "") -> None:
        """Store the files of the folder that have changed, the status last."""
        files = [file for file in self.folder.path.iterdir() if file.is_file() and not file.name.startswith(".")]
        for file in sorted(files, key=lambda file: file.name == "status.json"):
            stamp = file_stamp(file)
            if file.name != leaving and stamp != self._stored_records.get(file.name):
                self._write(f"{self._prefix}/{RECORDS}/{file.name}", file.read_bytes())
                self._stored_records[file.name] = stamp

    def _write(self, name: str, content: bytes) -> None:
        self._storage.write(name, content)
        self.uploaded += len(content)

    def _delete_what_is_left_over(self, state: StoredState) -> None:
        """Delete what neither the state nor its records need, of this lease and those before it."""
        own = (f"{self._prefix}/{RECORDS}/", f"{self._prefix}/{STATE}")
        left_over = [
            name
            for name in self._storage.find()
            if name not in state.names and not name.startswith(own) and not self._is_newer(name)
        ]
        self._storage.delete(left_over)

    def _is_newer(self, name: str) -> bool:
        """Whether an object is of this lease's like or of one after it."""
        folder, _, rest = name.partition("/")
        number = rest.removesuffix(".json") if folder == "lease" else folder
        mine = self.lease.number
        return not number.isdigit() or int(number) > mine or (folder == "lease" and int(number) == mine)


def say_if_not(otherwise: str, request: Callable[[], None]) -> bool:
    """Whether a request to the storage went well; says that it did not, and what follows, otherwise."""
    try:
        request()
    except StorageError as error:
        print(f"{otherwise}: {error}", file=sys.stderr, flush=True)
        return False
    return True
