"""What a run's folder has of its storage's."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pydantic

from tdmpc2.training.folder import RunFolder, write_text


@dataclass(frozen=True)
class Copy:
    """What a folder has of the storage's; kept in the folder."""

    generation: int = 0
    serial: int = 0
    """The state that its checkpoint is, or goes on from; 0 where it has none, -1 while one is being fetched."""
    lease: int = 0
    """Number of the last lease by which this machine trained the run; what is here may be ahead of the storage."""
    checkpoint: tuple[int, int] | None = None
    """Time (ns) and size of the checkpoint's file that the storage has."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Versions of the records that were fetched, by their names in the storage."""
    log: tuple[int, int] | None = None
    """Time (ns) and size of the log that was fetched; one that a process here writes to is another."""
    lease_until: float | None = None
    """Until when a process somewhere holds the run, as Unix time, when that was last asked."""

    @staticmethod
    def file(folder: RunFolder) -> Path:
        """Where it is kept."""
        return folder.path / ".storage.json"

    @classmethod
    def read(cls, folder: RunFolder) -> Copy | None:
        """A folder's; None where it never had anything to do with a storage."""
        try:
            values = json.loads(cls.file(folder).read_text())
            return pydantic.TypeAdapter(cls).validate_python(values)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError):  # damaged: what is there is of the storage, but not known how new
            return cls(serial=-1)

    def write(self, folder: RunFolder) -> None:
        """Keep it in a folder."""
        write_text(self.file(folder), json.dumps(dataclasses.asdict(self)))


def file_stamp(file: Path) -> tuple[int, int] | None:
    """Time (ns) and size of a file; None where there is none."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size


def leased_elsewhere(folder: RunFolder, now: float) -> bool:
    """Whether, when it was last asked, some process held the run by the storage, for longer than till now.

    Args:
        folder: the run's folder.
        now: Unix time.
    """
    copy = Copy.read(folder)
    return copy is not None and copy.lease_until is not None and copy.lease_until > now
