"""`tdmpc2 sweep archive`: a sweep's results in one file, from which another machine can report; see `unpack`.

The file is an ordinary .tar.gz: NAME/... and, last, NAME/archive.json with the size and sha256 of everything before it.
Images and weights, which hardly shrink, are stored in it as they are (measured: 15% saved, at a tenth of the speed).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import tdmpc2
from tdmpc2.data.files import disk_full_is_user_error
from tdmpc2.errors import UserError, require
from tdmpc2.sweeps.folder import SweepFolder, kind_of
from tdmpc2.sweeps.progress import UNFINISHED, view_sweep
from tdmpc2.training.folder import RunFolder

MANIFEST = "archive.json"
VERSION = 1
REPLAY, CHECKPOINT, TENSORBOARD = "replay", "checkpoint", "tensorboard"
"""Folders of a run that are packed on request only."""
COPIED_STORES = "stores"
"""Folder of a data set that holds copies of replay stores."""
SAMPLE = 1 << 16
WORTH_PACKING = 0.75
"""Part of its size to which a sample of a file must shrink for the file to be compressed."""
LARGE = 16 << 20
"""Bytes from which on a file is compressed fast rather than well."""

OnBytes = Callable[[int, int], None]
"""Told how many bytes are packed or unpacked, and of how many."""


@dataclass(frozen=True)
class Archive:
    """An archive that was written."""

    file: Path
    files: int
    bytes: int
    """Of what is in it."""
    notices: tuple[str, ...]
    """What a person should know of what is in it, and of what is not."""


def archive_sweep(
    folder: SweepFolder,
    file: Path,
    *,
    packed: Sequence[str] = (),
    unfinished: bool = False,
    on_bytes: OnBytes = lambda done, total: None,
) -> Archive:
    """Pack a sweep: declaration, plan, runs, data sets' manifests, own tasks and reports.

    Of agents of several tasks whose checkpoint is left out, the task embeddings are packed as embeddings.csv, which
    reports read.

    Args:
        folder: the sweep's folder.
        file: the archive to write; not there yet.
        packed: which of replay, checkpoint and tensorboard to pack as well.
        unfinished: pack runs that a process is working on as they stand.
        on_bytes: told how far it is.

    Raises:
        UserError: no such sweep, the file exists or cannot be written, a run is being worked on, a file changed while
            it was packed, the disk is full.
    """
    require(folder.path.is_dir(), f"{folder.path}: no such sweep folder")
    require(not file.exists(), f"{file}: exists already; name another with --out")
    require(file.parent.is_dir(), f"--out: no folder {file.parent}")
    inside = file.resolve().is_relative_to(folder.path.resolve())
    require(not inside, f"{file}: lies in the folder that is packed; name another with --out")
    views = view_sweep(folder)
    running = [view.entry.name for view in views if view.state == "running"]
    require(
        unfinished or not running,
        f"{len(running)} run(s) of {folder.name} are being worked on: {', '.join(running[:4])}; wait for them, or pack "
        "them as they stand with --unfinished",
    )
    notices = []
    open_runs = [f"{view.entry.name} ({view.state})" for view in views if view.state in UNFINISHED]
    if open_runs:
        notices.append(f"{len(open_runs)} run(s) are not done, and packed as they stand: {', '.join(open_runs[:4])}")
    left_out = {name for name in (REPLAY, CHECKPOINT, TENSORBOARD) if name not in packed} | read_left_out(folder.path)
    notices += _stores_elsewhere(folder) if REPLAY not in left_out else []

    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with tempfile.TemporaryDirectory() as made, disk_full_is_user_error(file.parent, f"packing {folder.name}"):
        members = dict(_members(folder.path, left_out))
        if CHECKPOINT in left_out:
            extracted, lacking = _embeddings(folder, Path(made))
            members |= extracted
            notices += lacking
        try:
            listed = _pack(
                folder.name, members, temporary, sorted(left_out), [v.split(" ")[0] for v in open_runs], on_bytes
            )
            require(not file.exists(), f"{file}: exists already, written meanwhile; name another with --out")
            os.rename(temporary, file)
        except (PermissionError, NotADirectoryError) as error:
            raise UserError(f"{file}: cannot be written ({error.strerror})") from None
        finally:
            temporary.unlink(missing_ok=True)
    return Archive(file, len(listed), sum(each["bytes"] for each in listed.values()), tuple(notices))


def read_left_out(sweep: Path) -> frozenset[str]:
    """What the archive that a sweep was unpacked from left out of its runs' folders; nothing where it was run here.

    Raises:
        UserError: archive.json is damaged.
    """
    try:
        return frozenset(map(str, json.loads((sweep / MANIFEST).read_text(encoding="utf-8"))["left_out"]))
    except FileNotFoundError:
        return frozenset()
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{sweep / MANIFEST}: damaged ({type(error).__name__})") from None


# --- what is packed


def _members(sweep: Path, left_out: set[str]) -> Iterator[tuple[str, Path]]:
    """The files to pack by their names in the sweep's folder, sorted; links are followed, hidden files are not ours."""
    seen = set()
    for place, folders, files in os.walk(sweep, followlinks=True):
        here = Path(place)
        real = here.resolve()
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        parts = here.relative_to(sweep).parts
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not _is_left_out((*parts, f), left_out))
        for name in sorted(files):
            if not name.startswith(".") and (*parts, name) != (MANIFEST,):
                yield PurePosixPath(*parts, name).as_posix(), here / name


def _is_left_out(parts: tuple[str, ...], left_out: set[str]) -> bool:
    of_run = len(parts) == 3 and parts[0] == "runs" and parts[2] in left_out
    copies = len(parts) == 3 and parts[0] == "datasets" and parts[2] == COPIED_STORES and REPLAY in left_out
    return of_run or copies


def _embeddings(folder: SweepFolder, made: Path) -> tuple[dict[str, Path], list[str]]:
    """The task embeddings of agents of several tasks, which otherwise are in their checkpoints alone."""
    members, lacking = {}, []
    for name in folder.run_names():
        run = folder.run(name)
        table = run.path / "embeddings.csv"
        if not run.checkpoint.is_file() or not _has_embeddings(run):
            continue
        if table.is_file() and table.stat().st_mtime >= run.checkpoint.stat().st_mtime:
            continue
        from tdmpc2.config import EmbeddingsConfig
        from tdmpc2.training.embeddings import export_embeddings

        try:
            output = made / f"{name}.csv"
            members[f"runs/{name}/embeddings.csv"] = export_embeddings(
                EmbeddingsConfig(run=str(run.path), output=str(output))
            )
        except UserError as error:
            lacking.append(f"{name}: without its task embeddings ({error})")
    return members, lacking


def _has_embeddings(run: RunFolder) -> bool:
    try:
        config = run.read_config()
    except UserError:
        return False  # packed as it stands; `verify` says what is wrong with it
    return kind_of(config) == "finetune" or len(config.tasks) > 1


def _stores_elsewhere(folder: SweepFolder) -> list[str]:
    """Data sets with replay stores that are not below the sweep's folder."""
    from tdmpc2.data.dataset import MANIFEST as DATASET
    from tdmpc2.data.dataset import Dataset

    notices = []
    for manifest in sorted((folder.path / "datasets").glob(f"*/{DATASET}")):
        dataset = Dataset.read(manifest.parent)
        sweep = folder.path.resolve()
        outside = [r.path for r in dataset.stores if not dataset.store_folder(r).resolve().is_relative_to(sweep)]
        if outside:
            notices.append(f"{manifest}: {len(outside)} of its replay stores lie elsewhere, not packed: {outside[0]}")
    return notices


# --- packing


class _GzipStream(io.RawIOBase):
    """A gzip file whose level may change as it grows: each change begins another member, which gzip allows."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._level = file, 6
        self._member = self._begin()

    def _begin(self) -> gzip.GzipFile:
        return gzip.GzipFile(filename="", mode="wb", compresslevel=self._level, fileobj=self._file, mtime=0)

    def set_level(self, level: int) -> None:
        """Compress what follows at this level, 0 for not at all."""
        if level != self._level:
            self._member.close()
            self._level = level
            self._member = self._begin()

    def writable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def write(self, data: Any) -> int:
        """See `io.RawIOBase`."""
        return self._member.write(data)

    def close(self) -> None:
        """See `io.RawIOBase`."""
        if not self.closed:
            self._member.close()
        super().close()


class _HashingReader:
    """Reads a file and hashes what was read."""

    def __init__(self, file: IO[bytes], on_read: Callable[[int], None]) -> None:
        self._file, self._on_read = file, on_read
        self.hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.hash.update(data)
        self._on_read(len(data))
        return data


def _pack(
    name: str,
    members: dict[str, Path],
    file: Path,
    left_out: list[str],
    unfinished: list[str],
    on_bytes: OnBytes,
) -> dict[str, dict[str, Any]]:
    """Write the archive; returns size and hash of each member."""
    total = sum(path.stat().st_size for path in members.values())
    done = 0
    listed: dict[str, dict[str, Any]] = {}

    def count(size: int) -> None:
        nonlocal done
        done += size
        on_bytes(done, total)

    with (
        file.open("wb") as raw,
        _GzipStream(raw) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for member, path in sorted(members.items()):
            with path.open("rb") as source:
                stat = os.fstat(source.fileno())
                stream.set_level(_level(source, stat.st_size))
                reader = _HashingReader(source, count)
                try:
                    tar.addfile(_info(f"{name}/{member}", stat.st_size, stat.st_mtime), reader)
                except OSError as error:
                    if error.errno is not None:
                        raise
                    raise UserError(f"{path}: was cut while it was packed; try again when nothing writes it") from None
            listed[member] = {"bytes": stat.st_size, "sha256": reader.hash.hexdigest()}
        manifest = {
            "version": VERSION,
            "name": name,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "tdmpc2": tdmpc2.__version__,
            "left_out": left_out,
            "unfinished": unfinished,
            "files": listed,
        }
        text = json.dumps(manifest, indent=1).encode()
        stream.set_level(6)
        tar.addfile(_info(f"{name}/{MANIFEST}", len(text), time.time()), io.BytesIO(text))
    with file.open("rb") as written:
        os.fsync(written.fileno())
    return listed


def _info(name: str, size: int, modified: float) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, modified, 0o644
    return info


def _level(file: IO[bytes], size: int) -> int:
    """The level to compress a file at, by four samples of it; the file is left at its beginning."""
    sample = b""
    for part in range(4):
        file.seek(max(0, size - SAMPLE) * part // 3)
        sample += file.read(SAMPLE)
    file.seek(0)
    if len(zlib.compress(sample, 1)) > WORTH_PACKING * len(sample):
        return 0
    return 1 if size > LARGE else 6
