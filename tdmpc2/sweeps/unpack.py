"""`tdmpc2 sweep unpack`: the results of a sweep out of an archive, whole and checked, or not at all."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tdmpc2.data.files import disk_full_is_user_error
from tdmpc2.errors import UserError, require
from tdmpc2.sweeps.archive import MANIFEST, VERSION, OnBytes

BLOCK = 1 << 20


def unpack_archive(file: Path, results: Path, on_bytes: OnBytes = lambda done, total: None) -> Path:
    """Unpack an archive into a folder of results, whole or not at all.

    Args:
        file: what `archive_sweep` wrote.
        results: folder of all results; made where there is none.
        on_bytes: told how many bytes of the file are read.

    Returns:
        the sweep's folder.

    Raises:
        UserError: no archive, or a damaged one; one with members that do not belong there; the sweep exists already;
            the disk is full.
    """
    require(file.is_file(), f"{file}: no such file")
    try:
        results.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=results))
    except OSError as error:
        raise UserError(f"--results {results}: cannot be written ({error.strerror})") from None
    try:
        with disk_full_is_user_error(results, f"unpacking {file.name}"), _damage_is_user_error(file):
            name = _unpack(file, staging, results, on_bytes)
        target = results / name
        _refuse_existing(target)
        os.rename(staging / name, target)
    finally:
        shutil.rmtree(staging)
    return target


@contextmanager
def _damage_is_user_error(file: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not an archive of a sweep, or a damaged one ({error})") from None


def _unpack(file: Path, staging: Path, results: Path, on_bytes: OnBytes) -> str:
    """Unpack into a folder, and compare what came out with the archive's own list; returns the sweep's name."""
    found: dict[str, dict[str, Any]] = {}
    name = ""
    size = file.stat().st_size
    with file.open("rb") as raw, gzip.open(raw) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            fits = member.isreg() and len(parts) > 1 and ".." not in parts and not member.name.startswith("/")
            require(fits, f"{file}: {member.name!r} does not belong in an archive of a sweep; nothing was unpacked")
            if not name:
                name = parts[0]
                _refuse_existing(results / name)
            inner = PurePosixPath(*parts[1:]).as_posix()
            require(
                parts[0] == name and inner not in found and not any(part.startswith(".") for part in parts),
                f"{file}: {member.name!r} does not belong in an archive of {name}; nothing was unpacked",
            )
            target = staging / tarfile.data_filter(member, str(staging)).name
            content = tar.extractfile(member)
            assert content is not None  # a plain file has one
            target.parent.mkdir(parents=True, exist_ok=True)
            found[inner] = {"bytes": member.size, "sha256": _write(content, target, member.size)}
            os.utime(target, (member.mtime, member.mtime))
            on_bytes(raw.tell(), size)
    _compare(file, staging / name / MANIFEST, found)
    return name


def _refuse_existing(target: Path) -> None:
    require(
        not target.exists() and not target.is_symlink(),
        f"{target}: exists already; nothing was unpacked. Name another folder with --results",
    )


def _write(content: IO[bytes], target: Path, size: int) -> str:
    """Write a member, with holes where it is empty (a replay buffer that is not full); returns its hash."""
    total = hashlib.sha256()
    with target.open("xb") as file:
        while block := content.read(BLOCK):
            total.update(block)
            if block.count(0) == len(block):
                file.seek(len(block), os.SEEK_CUR)
            else:
                file.write(block)
        file.truncate(size)
    return total.hexdigest()


def _compare(file: Path, manifest: Path, found: dict[str, dict[str, Any]]) -> None:
    """Refuse what is not what was packed."""
    require(manifest.is_file(), f"{file}: not an archive of a sweep, or a truncated one (no {MANIFEST} in it)")
    try:
        record = json.loads(manifest.read_text(encoding="utf-8"))
        version, listed = record["version"], dict(record["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: its {MANIFEST} is damaged ({type(error).__name__})") from None
    require(version == VERSION, f"{file}: format version {version}, this program reads {VERSION}")
    del found[MANIFEST]
    differ = sorted(name for name in {*listed, *found} if listed.get(name) != found.get(name))
    require(
        not differ,
        f"{file}: {len(differ)} file(s) in it are not as they were packed: {', '.join(differ[:4])}; "
        "nothing was unpacked",
    )
