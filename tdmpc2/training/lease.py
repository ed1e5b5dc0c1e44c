"""Who is working on a run, where its machines share no disk: a lease in the storage, renewed while the work goes on.

Leases are numbered, `lease/000001.json` and on; the highest stands. A new one is made by creating the next number,
which the storage grants to one alone. So of two that take over a lease at once one succeeds, and a holder that slept
through its own end finds the higher number before it writes. A holder is taken for dead when its lease has not changed
for as long as it lasts, by the watch of who waits: clocks of different machines are not compared.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pydantic

from tdmpc2.errors import RunBusyError
from tdmpc2.training.storage import Storage

LEASE_SECONDS = 60.0
"""A lease that was not renewed for so long is void."""
RENEW_SECONDS = 15.0
"""Seconds between two renewals."""
LOOK_SECONDS = 2.0
"""Seconds between two looks at somebody else's lease."""
FOLDER = "lease"


class Lease:
    """The right to write a run's state, until somebody takes it over.

    Args:
        storage: the run's.
        number: the lease's, higher than all before it.
        seconds: how long it lasts after a renewal.
    """

    def __init__(self, storage: Storage, number: int, seconds: float) -> None:
        self._storage, self.number, self._seconds = storage, number, seconds
        self._renewals = 0
        self._token = uuid.uuid4().hex

    @classmethod
    def take(cls, storage: Storage, check: Callable[[], None], seconds: float = LEASE_SECONDS) -> Lease:
        """Take the run's lease; where somebody holds it, wait for as long as a dead one's takes to become void.

        Args:
            storage: the run's.
            check: called while waiting; raises to give up.
            seconds: how long the lease lasts after a renewal.

        Raises:
            RunBusyError: somebody else is working on the run.
            StorageError: the storage cannot be reached.
        """
        watched: tuple[int, bytes | None] | None = None
        since = begin = time.monotonic()
        while True:
            number = latest(storage.find(FOLDER))
            content = storage.read(_name(number)) if number else None
            state = _parse(content)
            if (number, content) != watched:
                watched, since = (number, content), time.monotonic()
            waits = seconds if state is None else state.seconds
            if number == 0 or (state is not None and _is_over(state)) or time.monotonic() - since > waits:
                lease = cls(storage, number + 1, seconds)
                if storage.create(_name(lease.number), lease._content()):
                    return lease
            elif time.monotonic() - begin > 1.5 * waits:
                who = "another process" if state is None else f"process {state.pid} on {state.host}"
                raise RunBusyError(f"{storage.url}: {who} is working on this run; wait for it or stop it first")
            check()
            time.sleep(min(LOOK_SECONDS, waits / 5))

    def holds(self) -> bool:
        """Whether nobody has taken it over.

        Raises:
            StorageError: the storage cannot be reached.
        """
        return latest(self._storage.find(FOLDER)) == self.number

    def renew(self) -> None:
        """Say that the work goes on.

        Raises:
            StorageError: the storage cannot be reached.
        """
        self._renewals += 1
        self._storage.write(_name(self.number), self._content())

    def release(self) -> None:
        """Let others have the run, at once.

        Raises:
            StorageError: the storage cannot be reached; the lease becomes void by itself.
        """
        self._storage.write(_name(self.number), self._content(released=True))

    def _content(self, released: bool = False) -> bytes:
        content = _Content(
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            token=self._token,
            renewals=self._renewals,
            seconds=self._seconds,
            expires=time.time() + self._seconds,
            released=released,
        )
        return json.dumps(asdict(content)).encode()


def latest(names: Iterable[str]) -> int:
    """The number of the lease that stands, among a run's objects; 0 where there never was one."""
    ours = [name for name in names if name.startswith(f"{FOLDER}/")]
    numbers = [name.rpartition("/")[2].removesuffix(".json") for name in ours]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def expiry(storage: Storage, number: int) -> float | None:
    """Until when a lease lasts, as Unix time by its holder's clock; None where it was released or is not there.

    Raises:
        StorageError: the storage cannot be reached.
    """
    state = _parse(storage.read(_name(number)))
    return None if not state or state.released else state.expires


def _name(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


@dataclass(frozen=True)
class _Content:
    """A lease as it is stored."""

    host: str
    pid: int
    machine: str
    token: str
    renewals: int
    seconds: float
    expires: float
    released: bool


def _parse(content: bytes | None) -> _Content | None:
    """A lease's fields; None of one that is damaged or not there."""
    try:
        return pydantic.TypeAdapter(_Content).validate_json(content or b"")
    except ValueError:
        return None


def _machine() -> str:
    """This machine since its start, and the space that its process numbers belong to; "" where that is not told."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{boot.read_text().strip()} {os.readlink(space)}"
    except OSError:
        return ""


def _is_over(state: _Content) -> bool:
    """Whether the holder gave it back, or was a process of this machine and is no more."""
    machine = _machine()
    return state.released or (machine != "" and state.machine == machine and not psutil.pid_exists(state.pid))
