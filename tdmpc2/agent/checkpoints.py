"""Files of tensors and plain values: written whole or not at all, read without running code from them."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmpc2.errors import UserError


def write(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state so that the file is, at every moment, the old one or the new one, whole.

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
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise UserError(f"{path}: the disk is full; the file is as it was before. {FREE_SPACE}") from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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
        UserError: there is no such file, it is damaged, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself reads damaged tensors without a word
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, OSError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a checkpoint, or a damaged, truncated or unsafe one ({detail})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a checkpoint (holds a {type(state).__name__})")
    return state


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
