"""Copies of replay stores, holes left as holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tdmpc2.data.files import write_at
from tdmpc2.data.layout import DESCRIPTION, sync_folder
from tdmpc2.errors import require

_COPIED_AT_ONCE = 16 * 2**20


def copy_store(source: Path, target: Path) -> None:
    """Copy a store's files into a new folder, durably.

    Raises:
        UserError: a file was truncated meanwhile.
        OSError: the folder is there already, or the disk is full.
    """
    target.mkdir()
    files = [path for path in source.iterdir() if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == DESCRIPTION):  # which makes a folder a store: last
        _copy_file(path, target / path.name)
    sync_folder(target)


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file whose holes stay holes: a store takes room on disk only for what it holds."""
    with source.open("rb", buffering=0) as read, target.open("xb", buffering=0) as write:
        size = os.fstat(read.fileno()).st_size
        write.truncate(size)
        for begin, end in _data_ranges(read.fileno(), size):
            while begin < end:
                piece = os.pread(read.fileno(), min(end - begin, _COPIED_AT_ONCE), begin)
                require(len(piece) > 0, f"{source}: was truncated while being copied")
                write_at(write, np.frombuffer(piece, np.uint8), begin)
                begin += len(piece)
        os.fsync(write.fileno())


def _data_ranges(file: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            begin = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole follows
                return
            raise
        end = os.lseek(file, begin, os.SEEK_HOLE)
        yield begin, end
