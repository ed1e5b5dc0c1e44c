"""What a replay store holds and how its files are laid out.

A store is a folder of one flat binary file a field (`obs.memmap`, `action.memmap`, ...), all of the same number of
rows, with the `meta.json` that lets `TensorDict.load_memmap(folder)` read them as well; `episodes.bin`, the log of
episodes; and `replay.json`, this module's own description, which is written last: a folder without it is no store.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic
import torch
from pydantic import BeforeValidator, ConfigDict, Field

from tdmpc2.config import Positive, make_settings
from tdmpc2.errors import UserError, require

FORMAT_VERSION = 1
DESCRIPTION = "replay.json"
EPISODE_LOG = "episodes.bin"


class FieldLayout(NamedTuple):
    """Shape and dtype of one row of a field."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def _dtype_name(dtype: Any) -> Any:
    if isinstance(dtype, torch.dtype):
        return str(dtype).removeprefix("torch.")
    return dtype if isinstance(dtype, str) else np.dtype(dtype).name


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Layout:
    """What a store holds. Refused with a `UserError` where its parts do not fit together."""

    task: str
    """Name of the task."""
    obs_shape: Annotated[tuple[Positive, ...], Field(min_length=1)]
    """Shape of an observation as the agent sees it."""
    obs_dtype: Annotated[Literal["float32", "uint8"], BeforeValidator(_dtype_name)]
    """Dtype of observations; one of torch or NumPy is taken as well."""
    action_dim: Positive
    """Length of an action."""
    capacity: Positive
    """Newest rows that are sampled."""
    slack: Positive
    """Further rows on disk, so that rows a checkpoint can sample outlive the episodes written after it."""
    frame_stack: Positive = 1
    """Frames stacked along an observation's first axis, oldest first; each is stored once."""

    def __post_init__(self) -> None:
        require(
            self.obs_shape[0] % self.frame_stack == 0,
            f"obs_shape: the first axis ({self.obs_shape[0]}) is not a multiple of frame_stack ({self.frame_stack})",
        )

    @property
    def physical_rows(self) -> int:
        """Rows on disk."""
        return self.capacity + self.slack

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of what is stored of an observation: the newest of its stacked frames."""
        return (self.obs_shape[0] // self.frame_stack, *self.obs_shape[1:])

    @property
    def fields(self) -> dict[str, FieldLayout]:
        """Layout of every field's rows, by name."""
        return {
            "obs": FieldLayout(self.frame_shape, self.obs_dtype),
            "action": FieldLayout((self.action_dim,), "float32"),
            "reward": FieldLayout((), "float32"),
            "terminated": FieldLayout((), "bool"),
        }

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all fields together."""
        return sum(field.row_bytes for field in self.fields.values())


def field_path(folder: Path, name: str) -> Path:
    """The file of one field."""
    return folder / f"{name}.memmap"


def create_files(folder: Path, layout: Layout) -> None:
    """Make an empty store's files, all holes: they take disk space as rows are written.

    Raises:
        UserError: the folder holds a store already.
        OSError: the files cannot be made.
    """
    require(not (folder / DESCRIPTION).exists(), f"{folder}: holds a replay store already")
    folder.mkdir(parents=True, exist_ok=True)
    for name, field in layout.fields.items():
        with field_path(folder, name).open("wb") as file:
            file.truncate(layout.physical_rows * field.row_bytes)
    (folder / EPISODE_LOG).write_bytes(b"")
    (folder / "meta.json").write_text(json.dumps(_tensordict_meta(layout)))

    description = {"version": FORMAT_VERSION, **dataclasses.asdict(layout)}
    unnamed = folder / (DESCRIPTION + ".tmp")
    with unnamed.open("w") as file:
        json.dump(description, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    unnamed.rename(folder / DESCRIPTION)
    sync_folder(folder)


def _tensordict_meta(layout: Layout) -> dict[str, Any]:
    # Written here and not by tensordict, whose import takes seconds; a test holds it to what tensordict reads.
    rows = layout.physical_rows
    fields = {
        name: {"device": "cpu", "shape": [rows, *field.shape], "dtype": f"torch.{field.dtype}", "is_nested": False}
        for name, field in layout.fields.items()
    }
    return {
        **fields,
        "shape": [rows],
        "device": "cpu",
        "_type": "<class 'tensordict._td.TensorDict'>",
        "_format_version": 1,
        "_class": "tensordict:TensorDict",
    }


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_layout(folder: Path, expected: Mapping[str, Any]) -> Layout:
    """The layout of the store in a folder, its files checked against it.

    Args:
        folder: the store's folder.
        expected: fields of `Layout` with the values they must have.

    Raises:
        UserError: no store, another format version, another layout than expected, or a file that is missing or of
            the wrong size; names the file and what differs.
    """
    path = folder / DESCRIPTION
    require(path.is_file(), f"{folder}: holds no replay store ({DESCRIPTION} is missing)")
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from None
    require(isinstance(description, dict), f"{path}: does not describe a replay store")
    version = description.pop("version", None)
    require(version == FORMAT_VERSION, f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
    layout: Layout = make_settings(Layout, description, where=str(path))

    asked = make_settings(Layout, {**description, **expected}, where="replay store asked for")
    for name in expected:
        stored, wanted = getattr(layout, name), getattr(asked, name)
        require(stored == wanted, f"{path}: {name} is {stored!r}, but {wanted!r} was asked for")

    for name, field in layout.fields.items():
        data = field_path(folder, name)
        require(data.is_file(), f"{data}: is missing")
        size, wanted = data.stat().st_size, layout.physical_rows * field.row_bytes
        require(size == wanted, f"{data}: {size:,} bytes, but {layout.physical_rows:,} rows take {wanted:,}")
    require((folder / EPISODE_LOG).is_file(), f"{folder / EPISODE_LOG}: is missing")
    return layout
