"""Reading the chunk files of the released offline data sets, without running anything that they say.

`chunk_<i>.pt` is one TensorDict of shape (episodes, T+1), saved by torch.save: a zip archive of a pickle and of the
tensors' bytes. A pickle may name any function of any module and have it called, so this one is read by an unpickler
that knows only the names below, each standing for something that does nothing but keep what the file says of it.
Neither torch.load nor tensordict takes part: tensordict's own types set attributes and lock themselves while they are
unpickled, and their names have changed over its versions. The tensors' bytes are mapped where they lie in the archive.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmpc2.errors import UserError, require

_NAME = re.compile(r"chunk_(0|[1-9][0-9]*)\.pt")
_DTYPES = {"obs": "float32", "action": "float32", "reward": "float32", "task": "int32"}
_MOST_PICKLE_BYTES = 2**20
"""The pickle of a chunk takes one or two kilobytes."""


@dataclass(frozen=True)
class Chunk:
    """The tensors of a chunk file, mapped and read-only: (E episodes, T+1 rows, ...)."""

    path: Path
    obs: NDArray[np.float32]
    """(E, T+1, padded obs dim)."""
    action: NDArray[np.float32]
    """(E, T+1, padded action dim); row t's led to obs t, row 0's is a filler."""
    reward: NDArray[np.float32]
    """(E, T+1), likewise."""
    task: NDArray[np.int32]
    """(E, T+1), the task's number in its set."""


def find_chunks(folder: Path) -> list[Path]:
    """The chunk files of a folder, `chunk_0.pt`, `chunk_1.pt` and so on.

    Raises:
        UserError: there are none, or numbers are missing between them.
    """
    require(folder.is_dir(), f"{folder}: is no folder")
    found = {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    require(len(found) > 0, f"{folder}: holds no chunk_<i>.pt")
    missing = sorted(set(range(max(found))) - found.keys())
    require(
        not missing,
        f"{folder}: chunk_{max(found)}.pt is there, but not {', '.join(f'chunk_{i}.pt' for i in missing)}: "
        f"chunks are numbered from 0 on without gaps",
    )
    return [found[number] for number in range(len(found))]


def open_chunk(path: Path, obs_dim: int, action_dim: int) -> Chunk:
    """Map a chunk file; nothing of its tensors is read yet.

    Args:
        path: the file.
        obs_dim: length that its observations must have.
        action_dim: length that its actions must have.

    Raises:
        UserError: the file is damaged, truncated or of another kind, or names anything but a TensorDict of obs, action,
            reward and task of the right shapes and dtypes. Nothing that it names is called.
    """
    entries = _read_entries(path)
    absent, surplus = _DTYPES.keys() - entries.keys(), entries.keys() - _DTYPES.keys()
    require(
        not absent and not surplus,
        f"{path}: must hold obs, action, reward and task"
        + "".join(
            f"; {what}: {', '.join(sorted(map(str, names)))}"
            for what, names in (("missing", absent), ("too many", surplus))
            if names
        ),
    )
    tensors = {name: _map(path, name, entry) for name, entry in entries.items()}
    for name, values in tensors.items():
        require(str(values.dtype) == _DTYPES[name], f"{path}: {name} is {values.dtype}, expected {_DTYPES[name]}")
    leading = tensors["task"].shape
    require(
        len(leading) == 2 and leading[0] >= 1 and leading[1] >= 2,
        f"{path}: task is of shape {leading}, expected (episodes, T+1)",
    )
    shapes = {"obs": (*leading, obs_dim), "action": (*leading, action_dim), "reward": leading}
    for name, shape in shapes.items():
        require(tensors[name].shape == shape, f"{path}: {name} is of shape {tensors[name].shape}, expected {shape}")
    return Chunk(path, **tensors)


class _Kept:
    """Something that a pickle names: only keeps the arguments and the state that the pickle gives it."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.args = (type(self), state)


def _known_names() -> dict[str, Any]:
    """What stands for the names that chunks may hold. Made anew for each file, so that none changes them for the next.

    The names are those that tensordict 0.1.2, 0.2.1, 0.8.3 and 0.15.3 were seen writing, and 0.3's dictionary.
    """

    class TensorDict(_Kept):
        pass

    class Tensor(_Kept):
        pass

    class Other(_Kept):
        pass

    return {
        # The TensorDict itself, which old versions make from its class and a state, new ones by a function.
        "tensordict.tensordict.TensorDict": TensorDict,  # 0.1, 0.2
        "tensordict._td.TensorDict": TensorDict,  # from 0.3 on
        "tensordict._reductions._make_td": TensorDict,  # from 0.5 on: called with the class and the state
        # Its entries: a dictionary, in 0.2 to 0.4 one of tensordict's own.
        "tensordict.utils._StringOnlyDict": dict,
        # A tensor: storage, offset, size, stride, and what does not matter for data, in a dictionary that is empty.
        "torch._utils._rebuild_tensor_v2": Tensor,
        "collections.OrderedDict": dict,
        "torch.FloatStorage": np.dtype("<f4"),
        "torch.DoubleStorage": np.dtype("<f8"),
        "torch.HalfStorage": np.dtype("<f2"),
        "torch.IntStorage": np.dtype("<i4"),
        "torch.LongStorage": np.dtype("<i8"),
        "torch.ShortStorage": np.dtype("<i2"),
        "torch.CharStorage": np.dtype("i1"),
        "torch.ByteStorage": np.dtype("u1"),
        "torch.BoolStorage": np.dtype("?"),
        # What a TensorDict keeps beside its entries: batch size, device, and in 0.2 a set of locks.
        "torch.Size": tuple,
        "torch.device": Other,
        "builtins.set": set,
        "__builtin__.set": set,
    }


@dataclass(frozen=True)
class _Storage:
    """Where a tensor's numbers are: so many of a dtype, in the archive's record of this name."""

    record: str
    dtype: np.dtype[Any]
    numel: int


@dataclass(frozen=True)
class _Entry:
    """A tensor of a file: which part of a storage it is, counted in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    begin: int
    """Where the storage's bytes begin in the file."""


class _Unpickler(pickle.Unpickler):
    """Resolves known names to what keeps their data, and refuses all others."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data))
        self._path = path
        self.names = _known_names()

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name."""
        known = self.names.get(f"{module}.{name}")
        if known is None:
            raise UserError(
                f"{self._path}: names {module}.{name}, which is no part of a TensorDict of plain tensors; refused, and "
                f"not run"
            )
        return known

    def persistent_load(self, pid: Any) -> _Storage:
        """The place of a storage."""
        kind, dtype, record, _, numel = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise ValueError(f"unknown reference {pid!r}")
        return _Storage(str(record), dtype, int(numel))


def _read_entries(path: Path) -> dict[str, _Entry]:
    """The tensors that a file holds, by name, each within the file's bounds."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            return _entries_of(archive, file, path)
    except zipfile.BadZipFile:
        raise UserError(f"{path}: is truncated, or no file that torch.save wrote; download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _entries_of(archive: zipfile.ZipFile, file: Any, path: Path) -> dict[str, _Entry]:
    pickles = [info for info in archive.infolist() if re.fullmatch(r"[^/]+/data\.pkl", info.filename)]
    require(len(pickles) == 1, f"{path}: is a zip archive, but none that torch.save wrote")
    require(pickles[0].file_size <= _MOST_PICKLE_BYTES, f"{path}: its pickle is too large for a TensorDict's")
    prefix = pickles[0].filename.removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.namelist():
        with archive.open(f"{prefix}byteorder") as record:
            require(record.read(16) == b"little", f"{path}: its numbers are not little-endian")

    unpickler = _Unpickler(archive.read(pickles[0]), path)
    try:
        saved = unpickler.load()
        require(isinstance(saved, unpickler.names["tensordict._td.TensorDict"]), f"{path}: does not hold a TensorDict")
        _, state = saved.args  # the class, and the attributes by name
        tensors = dict(state["_tensordict"])
        for name, tensor in tensors.items():
            is_tensor = isinstance(tensor, unpickler.names["torch._utils._rebuild_tensor_v2"])
            require(is_tensor, f"{path}: {name} is not a plain tensor")
        return {name: _entry(archive, file, prefix, tensor.args) for name, tensor in tensors.items()}
    except (UserError, zipfile.BadZipFile, OSError):
        raise
    except Exception as error:  # a pickle that was tampered with fails in any way there is; here it is one fault
        raise UserError(f"{path}: is not what torch.save writes of a TensorDict ({repr(error)[:200]})") from None


def _entry(archive: zipfile.ZipFile, file: Any, prefix: str, args: tuple[Any, ...]) -> _Entry:
    storage, offset, shape, stride = args[0], int(args[1]), tuple(map(int, args[2])), tuple(map(int, args[3]))
    if not isinstance(storage, _Storage) or len(shape) != len(stride):
        raise ValueError("a tensor without storage, or of another number of strides than of axes")
    info = archive.getinfo(f"{prefix}data/{storage.record}")
    # The archive's directory has no place of the bytes, only that of the header before them, which has two lengths.
    file.seek(info.header_offset)
    magic, name_bytes, extra_bytes = struct.unpack("<4s22xHH", file.read(30))
    begin = info.header_offset + 30 + name_bytes + extra_bytes
    end = file.seek(0, io.SEEK_END)
    bytes_needed = storage.numel * storage.dtype.itemsize
    if magic != b"PK\3\4" or info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"record {storage.record} is compressed or has no header")
    if bytes_needed > info.file_size or begin + info.file_size > end:
        raise ValueError(f"record {storage.record} has {info.file_size} bytes, its tensor {bytes_needed}")
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if min((offset, storage.numel, *shape, *stride)) < 0 or (math.prod(shape) > 0 and last >= storage.numel):
        raise ValueError(f"a tensor reaches beyond its storage of {storage.numel} numbers")
    return _Entry(storage, offset, shape, stride, begin)


def _map(path: Path, name: str, entry: _Entry) -> np.ndarray:
    dtype = entry.storage.dtype
    require(math.prod(entry.shape) > 0, f"{path}: {name} is of shape {entry.shape}, and so holds nothing")
    numbers = np.memmap(path, dtype, "r", entry.begin, (entry.storage.numel,))
    strides = tuple(step * dtype.itemsize for step in entry.stride)
    return np.lib.stride_tricks.as_strided(numbers[entry.offset :], entry.shape, strides, writeable=False)
