"""A replay store in pieces that never change: rows by their numbers, which a fresh store is made of again.

A segment is a NumPy archive of the raw columns of rows [first, end), as the store's files hold them. The log of
episodes and the store's description go beside it as they are.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdmpc2.config import make_settings
from tdmpc2.data.episodes import RECORD_BYTES, EpisodeTable
from tdmpc2.data.files import RowFiles, disk_full_is_user_error
from tdmpc2.data.layout import DESCRIPTION, EPISODE_LOG, Layout, create_files, read_layout
from tdmpc2.errors import UserError, require
from tdmpc2.training.stored_run import Extent, Segment

PART_BYTES = 64 * 2**20
"""A segment holds about so much at the most, so that memory stays small."""


def extent(folder: Path) -> Extent:
    """What a store holds at present, by its log of episodes.

    Raises:
        UserError: it is no store, or its log is damaged.
    """
    table = EpisodeTable(folder / EPISODE_LOG, read_layout(folder, {}).capacity, horizon=1, writable=False)
    return Extent(table.count, table.end, table.first_row(table.oldest))


def read_description(folder: Path) -> bytes:
    """The store's description, as `make_store` takes it."""
    return (folder / DESCRIPTION).read_bytes()


def read_log(folder: Path, episodes: int) -> bytes:
    """The log of the store's first episodes."""
    with (folder / EPISODE_LOG).open("rb") as log:
        return log.read(episodes * RECORD_BYTES)


def parts(folder: Path, first: int, end: int) -> list[tuple[int, int]]:
    """Rows [first, end) cut into pieces of a size that memory holds."""
    step = max(1, PART_BYTES // read_layout(folder, {}).row_bytes)
    return [(start, min(start + step, end)) for start in range(first, end, step)]


def read_segment(folder: Path, first: int, end: int) -> bytes:
    """Rows [first, end) of a store, none of which has been overwritten."""
    layout = read_layout(folder, {})
    files = RowFiles(folder, layout, writable=False)
    places = np.arange(first, end) % layout.physical_rows
    columns = {name: column[places] for name, column in files.columns.items()}
    files.close()
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=False, **columns)
    return archive.getvalue()


def make_store(
    folder: Path, description: bytes, log: bytes, segments: Sequence[Segment], read: Callable[[str], bytes]
) -> None:
    """Make a store of its pieces, in place of one that is there, whole or not at all.

    Args:
        folder: the store's.
        description: as `read_description` gave it.
        log: as `read_log` gave it.
        segments: the rows; where rows of two share a place on disk, the later ones stand.
        read: gives the content of a segment by its name.

    Raises:
        UserError: a piece is damaged; the disk is full.
    """
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with disk_full_is_user_error(folder, "fetching replay"):
            _fill(fresh, description, log, segments, read)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def make_skeleton(folder: Path, description: bytes, log: bytes, held: Extent) -> None:
    """Make a store that tells how much it holds, without the rows, which read as zeros.

    Raises:
        UserError: a piece is damaged.
    """
    _fill(folder, description, log[: held.episodes * RECORD_BYTES], (), lambda name: b"")


def _fill(
    folder: Path, description: bytes, log: bytes, segments: Sequence[Segment], read: Callable[[str], bytes]
) -> None:
    layout = _layout(description, folder)
    create_files(folder, layout)
    (folder / EPISODE_LOG).write_bytes(log)
    rows = RowFiles(folder, layout, writable=True)
    try:
        for segment in sorted(segments, key=lambda segment: segment.first):
            rows.write(segment.first, _columns(layout, segment, read(segment.name)))
        rows.sync()
    finally:
        rows.close()


def _layout(description: bytes, folder: Path) -> Layout:
    try:
        values = json.loads(description)
        values.pop("version")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: the stored description of the replay is damaged ({error})") from None
    layout: Layout = make_settings(Layout, values, where=f"{folder}: stored description")
    return layout


def _columns(layout: Layout, segment: Segment, content: bytes) -> dict[str, Any]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            columns = {name: np.ascontiguousarray(archive[name]) for name in layout.fields}
    except Exception as error:  # zipfile and NumPy raise a dozen kinds for damaged bytes
        raise UserError(f"{segment.name}: damaged ({error or type(error).__name__})") from None
    for name, field in layout.fields.items():
        expected = (segment.end - segment.first, *field.shape)
        fits = columns[name].shape == expected and columns[name].dtype == np.dtype(field.dtype)
        require(fits, f"{segment.name}: damaged ({name} is {columns[name].shape}, not {expected} of {field.dtype})")
    return columns
