"""A run in object storage: what is kept of it there, and bringing that to a run's folder.

Each lease of a run (see `lease`) writes below a number of its own. `state.json` there, which is replaced last,
names what belongs together, wherever it lies:

    lease/000002.json                 who works on the run
    000001/rows-000000000000-....npz  replay, in pieces that never change
    000002/state.json                 the checkpoint that stands, the one before it, and their replay
    000002/checkpoint-000007.pt       checkpoints by their number
    000002/{replay.json,episodes.bin} the replay's description and log of episodes
    000002/records/...                settings, status, CSV files, log: the files of the run's folder

So somebody who reads finds a state that fits together, whenever a machine dies, and a process that lost its lease
writes where nobody looks.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import pydantic

from tdmpc2.config import Count
from tdmpc2.errors import UserError, require
from tdmpc2.training.folder import Status
from tdmpc2.training.lease import latest
from tdmpc2.training.storage import Storage, StoredObject

STATE = "state.json"
RECORDS = "records"
VERSION = 1


@dataclass(frozen=True)
class Segment:
    """Rows [first, end) of a store, kept under a name."""

    name: str
    first: int
    end: int


@dataclass(frozen=True)
class Extent:
    """How much of a store a checkpoint counts, and the oldest row that it can sample."""

    episodes: Count
    rows: Count
    oldest_row: Count


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint in the storage."""

    name: str
    """Its object's."""
    size: int
    """Bytes."""
    replay: Extent | None = None
    """What it counts of the replay; None offline."""


@dataclass(frozen=True)
class StoredState:
    """What belongs together; the content of a state.json."""

    generation: int
    """Number of the lease that wrote it."""
    serial: int
    """How often the run's state was written, by all its leases."""
    checkpoint: StoredCheckpoint
    previous: StoredCheckpoint | None = None
    """The checkpoint before, for when the other cannot be read."""
    segments: tuple[Segment, ...] = ()
    """Rows of replay that one of the two can sample, and some more."""

    def dump(self) -> bytes:
        """As it is stored."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=1).encode()

    @classmethod
    def load(cls, content: bytes, where: str) -> StoredState:
        """The state that was stored.

        Raises:
            UserError: it is damaged, or of another version of the format.
        """
        try:
            values = json.loads(content)
            version = values.pop("version", None)
            require(version == VERSION, f"{where}: format version {version}, this program reads {VERSION}")
            return pydantic.TypeAdapter(cls).validate_python(values)
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{where}: damaged ({str(error).splitlines()[0]})") from None

    @property
    def log(self) -> str:
        """Name of the replay's log of episodes."""
        return f"{prefix(self.generation)}/episodes.bin"

    @property
    def description(self) -> str:
        """Name of the replay's description."""
        return f"{prefix(self.generation)}/replay.json"

    @property
    def checkpoints(self) -> tuple[StoredCheckpoint, ...]:
        """The one or two that it names, the newest first."""
        return (self.checkpoint,) if self.previous is None else (self.checkpoint, self.previous)

    @property
    def names(self) -> set[str]:
        """Names of all objects that it needs, its own and the records aside."""
        held = {checkpoint.name for checkpoint in self.checkpoints} | {segment.name for segment in self.segments}
        return held | ({self.log, self.description} if self.checkpoint.replay is not None else set())

    def at_previous(self) -> StoredState:
        """The state at the checkpoint before, without what came after it."""
        assert self.previous is not None
        extent = self.previous.replay
        kept = () if extent is None else tuple(part for part in self.segments if part.end <= extent.rows)
        return dataclasses.replace(self, checkpoint=self.previous, previous=None, segments=kept)


def prefix(generation: int) -> str:
    """What the names of one lease's objects begin with."""
    return f"{generation:06d}"


class StoredRun:
    """What the storage has of a run, by one listing of its objects.

    Args:
        storage: the run's.

    Raises:
        StorageError: the storage cannot be reached.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.objects = storage.find()

    def _newest(self, name: str) -> int | None:
        numbers = [key.partition("/")[0] for key in self.objects if key.partition("/")[2] == name]
        return max((int(number) for number in numbers if number.isdigit()), default=None)

    @property
    def generation(self) -> int:
        """Number of the lease that wrote the newest records; 0 where there are none.

        Those of a lease are whole from its first status or its first state on.
        """
        return max(self._newest(f"{RECORDS}/status.json") or 0, self._newest(STATE) or 0)

    @property
    def records(self) -> dict[str, StoredObject]:
        """The newest files of the run's folder, by their names in the storage; none where it has not begun."""
        start = f"{prefix(self.generation)}/{RECORDS}/"
        return {name: there for name, there in self.objects.items() if name.startswith(start)}

    @property
    def lease(self) -> int:
        """Number of the lease that stands; 0 where there never was one."""
        return latest(self.objects)

    def status(self) -> Status | None:
        """The run's newest status; None where it has none that can be read."""
        number = self._newest(f"{RECORDS}/status.json")
        content = None if number is None else self.storage.read(f"{prefix(number)}/{RECORDS}/status.json")
        try:
            return None if content is None else Status(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def state(self) -> StoredState | None:
        """The run's newest state; None where it has no checkpoint.

        Raises:
            UserError: it is damaged.
            StorageError: the storage cannot be reached.
        """
        number = self._newest(STATE)
        if number is None:
            return None
        name = f"{prefix(number)}/{STATE}"
        content = self.storage.read(name)
        require(content is not None, f"{self.storage.url}/{name}: was deleted while it was read; try again")
        assert content is not None
        return StoredState.load(content, f"{self.storage.url}/{name}")
