"""A report's folder: which files the report wrote there, and how a new report takes the older one's place."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.page import INDEX
from tdmpc2.errors import UserError
from tdmpc2.training.provenance import file_hash

RECORD = "report.json"
_STAGING = ".making-"


@dataclass(frozen=True)
class Part:
    """What became of one notebook."""

    state: str
    """done, failed or skipped."""
    seconds: float = 0.0
    """How long it took."""
    made: str = ""
    """When, local time."""
    message: str = ""
    """Why it failed or was skipped."""
    files: tuple[str, ...] = ()
    """What it wrote, relative to the report's folder."""


@dataclass(frozen=True)
class Record:
    """What a report consists of."""

    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What it was made from: results, reference, tasks, seeds."""
    parts: Mapping[str, Part] = field(default_factory=dict)
    """By notebook, in the order of the index page."""
    files: tuple[str, ...] = ()
    """What belongs to no notebook, relative to the folder."""
    sources: tuple[Mapping[str, Any], ...] = ()
    """What its notebooks were made from, see `sources.read_sources`, each with `parts`, the notebooks, and `changed`,
    the runs that went on meanwhile. Several where some pages stayed from an older report."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """sha256 of each file; `publish` adds them."""

    def all_files(self) -> set[str]:
        """Every file that the report wrote."""
        return set(self.files).union(*(part.files for part in self.parts.values()))


def read_record(folder: Path) -> Record:
    """The record of the report in a folder; an empty one where there is none that can be read."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        parts = {
            str(name): Part(**{**part, "files": tuple(map(str, part["files"]))})
            for name, part in content["parts"].items()
        }
        sources = tuple(dict(source) for source in content.get("sources", ()))
        hashes = {str(name): str(value) for name, value in content.get("hashes", {}).items()}
        return Record(dict(content["inputs"]), parts, tuple(map(str, content["files"])), sources, hashes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Record()  # none, or another version's: its files then count as not ours


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside the report's pages, removed in the end; the report's folder is held meanwhile.

    Raises:
        UserError: the folder cannot be written, or another report is being made there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"output {folder}: cannot be written ({error.strerror})") from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"output {folder}: another report is being made there") from error
        for leftover in folder.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a report that was killed
        try:
            staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder)).resolve()
        except OSError as error:
            raise UserError(f"output {folder}: cannot be written ({error.strerror})") from error
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    finally:
        os.close(held)


def publish(staging: Path, folder: Path, record: Record, older: Record) -> None:
    """Move a report into place, the index page last, and remove what only the older one consisted of.

    Args:
        staging: holds the new files as they are to stand in the folder.
        folder: the report's folder.
        record: the new report.
        older: the report that it replaces.
    """
    stale = older.all_files() - record.all_files()
    # Whenever this is cut short, the record still names every file that is ours.
    _write_record(folder, Record(record.inputs, record.parts, (*record.files, *sorted(stale))))
    files = [path for path in staging.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda p: (p.name == INDEX, p.suffix == ".html", p)):
        target = folder / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    for name in sorted(stale):
        path = folder / name
        if path.resolve().is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)
            if path.parent != folder and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()
    written = {path.relative_to(staging).as_posix() for path in files}
    kept = {name: value for name, value in older.hashes.items() if name not in written}
    there = (name for name in sorted(record.all_files()) if (folder / name).is_file())
    hashes = {name: kept.get(name) or file_hash(folder / name) for name in there}
    _write_record(folder, replace(record, hashes=hashes))


def _write_record(folder: Path, record: Record) -> None:
    temporary = folder / f".{RECORD}.tmp"
    parts = {name: asdict(part) for name, part in record.parts.items()}
    content: dict[str, Any] = {"inputs": record.inputs, "parts": parts, "files": record.files}
    content |= {"sources": record.sources, "hashes": record.hashes}
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / RECORD)
