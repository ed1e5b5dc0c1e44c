"""Files of tensors and plain values: written whole or not at all, read without running code from them."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tdmpc2.errors import UserError


class DamagedError(UserError):
    """A file that is not, byte for byte, what was once written: empty, cut off, changed, or not to be read."""


def write(state: Mapping[str, Any], path: str | os.PathLike[str], previous: Path | None = None) -> None:
    """Write a state so that the file is, at every moment, the old one or the new one, whole.

    Args:
        state: what to write.
        path: the file.
        previous: a name in the same folder under which the old file stays, if there is one; in the place of the file
            that had it until now. Where the file system has no hard links, it is the old one's only name for a moment.

    Raises:
        UserError: the disk is full; the old file is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _name_also(path, previous)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise UserError(f"{path}: the disk is full; the file is as it was before. {FREE_SPACE}") from error
        raise
    sync_folder(path.parent)


def _name_also(path: Path, name: Path) -> None:
    """Give a file a second name in one step, or another one where it cannot have two."""
    link = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError as error:  # file systems without hard links say so in many ways
        if is_disk_full(error):
            raise
        os.replace(path, name)
        return
    try:
        os.replace(link, name)
    finally:
        link.unlink(missing_ok=True)  # the renaming does nothing where both are names of one file already


def sync_folder(folder: Path) -> None:
    """Wait until the disk holds the names of a folder's files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


FREE_SPACE = "Free some space and run the same command again to go on."


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error comes from a full disk or an exhausted quota (torch.save wraps it in a RuntimeError)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def read(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what `write` wrote.

    Raises:
        DamagedError: it is not, byte for byte, what was written.
        UserError: there is no such file, it may not be read, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with path.open("rb") as file:
            _check_sums(file, path)
        state = torch.load(path, map_location=device, weights_only=True)
    except RuntimeError as error:  # from the reader: a header, which no checksum covers, is damaged
        raise DamagedError(_unreadable(path, error)) from None
    except (pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise UserError(_unreadable(path, error)) from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a checkpoint (holds a {type(state).__name__})")
    return state


def _check_sums(file: BinaryIO, path: Path) -> None:
    """Compare all that a file holds with its checksums: torch.load itself reads damaged tensors without a word."""
    try:
        with zipfile.ZipFile(file) as archive:
            odd = [entry.filename for entry in archive.infolist() if not _is_plain(entry)]
            damaged = odd[0] if odd else archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, OSError) as error:
        raise DamagedError(_unreadable(path, error)) from None


def _is_plain(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is uncompressed and no folder: torch gives a "folder" any contents, whatever its checksum."""
    msdos_folder = 0x10
    return entry.compress_type == zipfile.ZIP_STORED and not entry.external_attr & msdos_folder


def _unreadable(path: Path, error: Exception) -> str:
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path}: not a checkpoint, or a damaged, truncated or unsafe one ({detail})"


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Check that a file's tensors fit a model.

    Raises:
        UserError: names are missing or left over, or shapes differ; names them.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    faults = []
    for title, names in (("missing", missing), ("left over", extra), ("other shapes", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            faults.append(f"{title}: {', '.join(names[:3])}{more}")
    if faults:
        raise UserError(f"{path}: does not fit this model; {'; '.join(faults)}")
