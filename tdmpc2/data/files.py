"""Writing and reading the rows of a replay store: written with pwrite, read through memory maps."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tdmpc2.data.layout import Layout, field_path
from tdmpc2.errors import UserError


@contextmanager
def disk_full_is_user_error(folder: Path, doing: str) -> Iterator[None]:
    """Turn the operating system's "no space left" into a message that says what to do.

    Args:
        folder: the store's folder.
        doing: what is being done, e.g. "writing 48,096 bytes".

    Raises:
        UserError: the disk, or the user's quota on it, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{folder}: disk full while {doing}: free space and run the same command again to resume"
        ) from error


def open_for_writing(path: Path) -> FileIO:
    """An existing file, open for reading and writing without a buffer of its own."""
    return FileIO(path, "r+")


def write_at(file: FileIO, values: np.ndarray, offset: int) -> None:
    """Write all of a contiguous array's bytes at an offset, whatever number the system takes at a time.

    Raises:
        OSError: the disk is full or broken; part of the bytes may have been written.
    """
    remaining = values.data.cast("B")
    while remaining:
        written = os.pwrite(file.fileno(), remaining, offset)
        remaining, offset = remaining[written:], offset + written


class RowFiles:
    """The field files of a store as a ring: row r stands at r modulo the number of rows on disk."""

    def __init__(self, folder: Path, layout: Layout, writable: bool) -> None:
        self._rows = layout.physical_rows
        self._files: dict[str, FileIO] = {}
        self.columns: dict[str, np.ndarray] = {}
        """All rows of each field, (rows, *field shape), to be read only; empty once closed."""
        for name, field in layout.fields.items():
            path = field_path(folder, name)
            if writable:
                self._files[name] = open_for_writing(path)
            shape = (self._rows, *field.shape)
            # A shared map keeps no file open (a data set has hundreds) and does not count as the process's own memory,
            # but torch can share only a file that may be written. Nothing here writes through it: on a full disk that
            # would end the process by SIGBUS.
            mapped = torch.from_file(
                str(path),
                shared=os.access(path, os.W_OK),
                size=int(np.prod(shape)),
                dtype=getattr(torch, field.dtype),
            )
            self.columns[name] = mapped.view(shape).numpy()
            self.columns[name].flags.writeable = False

    def write(self, first_row: int, columns: Mapping[str, np.ndarray]) -> None:
        """Write rows from `first_row` on, around the end of the files where need be.

        Args:
            first_row: number of the first row.
            columns: contiguous arrays (rows, *field shape) of the fields' dtypes, at most as many rows as on disk.

        Raises:
            OSError: the disk is full or broken; some rows may have been written.
        """
        start = first_row % self._rows
        for name, values in columns.items():
            row_bytes = values.nbytes // len(values)
            before_end = values[: self._rows - start]
            write_at(self._files[name], before_end, start * row_bytes)
            if len(before_end) < len(values):
                write_at(self._files[name], values[len(before_end) :], 0)

    def sync(self) -> None:
        """Wait until the disk holds all that was written."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def read(self, name: str, places: NDArray[np.int64], out: np.ndarray) -> None:
        """Copy rows of a field.

        NumPy does so in the calling thread alone and without Python's lock, so that a thread that reads ahead neither
        holds up the one that computes nor starts a second pool of torch's threads.

        Args:
            name: the field.
            places: where the rows stand on disk, in [0, rows on disk), of any shape.
            out: contiguous (*places' shape, *field shape) of the field's dtype.
        """
        self.columns[name].take(places, axis=0, out=out, mode="clip")  # any other mode copies through a buffer

    def close(self) -> None:
        """Close the files; the maps go with the last array that uses them."""
        for file in self._files.values():
            file.close()
        self.columns.clear()
