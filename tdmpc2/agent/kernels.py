"""Fused CPU kernels for what happens between the matrix products: built from kernels.cpp, loaded, differentiable.

They are compiled once by the machine's own C++ compiler, in seconds, into the user's cache folder, for this processor
and this source; every later process loads the file. Where there is no compiler, torch's own operations do the same
work: slower, with the same results to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = (
    "-O3 -march=native -funroll-loops -std=c++17 -shared -fPIC -fno-math-errno -fno-trapping-math -ffp-contract=fast"
).split()
OPENMP = "-fopenmp"
BUILD_SECONDS = 300
EPS = 1e-5
"""Of every LayerNorm."""

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}
DTYPES = frozenset(_NAMES)
"""What the kernels read and write."""


class Availability(NamedTuple):
    """The compiled kernels, or why there are none."""

    library: ctypes.CDLL | None
    reason: str


def cache_folder() -> Path:
    """Where compiled code is kept: $TDMPC2_CACHE, else `tdmpc2` in the user's cache folder."""
    own = os.environ.get("TDMPC2_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(own) if own else Path(base) / "tdmpc2").absolute()  # a bare name would be looked for elsewhere


def find_compiler() -> str | None:
    """The C++ compiler: $CXX, else c++, g++ or clang++ on the path."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


@functools.cache
def load() -> Availability:
    """The kernels, compiled if need be; once a process."""
    compiler = find_compiler()
    if compiler is None:
        named = f"CXX={os.environ['CXX']} names none" if os.environ.get("CXX") else "or name one by CXX"
        return Availability(None, f"no C++ compiler found (install g++ or clang++; {named})")
    try:
        path = _library_path(compiler)
        if not path.exists():
            _build(compiler, path)
        library = _open(path)
    except (OSError, AttributeError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
        output = (error.stderr if isinstance(error, subprocess.CalledProcessError) else "") or str(error)
        return Availability(None, f"{compiler} could not build the kernels: {output.strip()[-500:]}")
    if not _is_right(library):
        return Availability(None, f"{path}: compiled kernels compute something else than torch (compiler: {compiler})")
    return Availability(library, f"compiled by {compiler}")


def available() -> bool:
    """Whether the kernels can be used here."""
    return load().library is not None


def _library_path(compiler: str) -> Path:
    """A name that differs for another source, compiler or processor: `-march=native` code runs only where it fits."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    processor = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith(("model name", "flags", "Feat"))]
        processor += "".join(sorted(set(lines)))
    text = "\n".join([SOURCE.read_text(), version, processor, *FLAGS])
    return cache_folder() / f"kernels-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"


def _build(compiler: str, path: Path) -> None:
    """Compile to a name of this process's own, then rename: others see nothing or all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        built = Path(folder) / path.name
        words = [compiler, *FLAGS, str(SOURCE), "-o", str(built)]
        with_threads = [*words, OPENMP]
        options: Any = {"check": True, "capture_output": True, "text": True, "timeout": BUILD_SECONDS}
        try:
            subprocess.run(with_threads, **options)
        except subprocess.CalledProcessError:  # a clang without OpenMP; one thread then
            subprocess.run(words, **options)
        built.replace(path)


def _open(path: Path) -> ctypes.CDLL:
    try:
        return _declare(ctypes.CDLL(str(path)))
    except (OSError, AttributeError):
        path.unlink(missing_ok=True)  # it would stand in the way of every later build
        raise


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    forward = [_POINTER] * 7 + [_LONG] * 6 + [_FLOAT, _INT]
    backward = [_POINTER] * 11 + [_LONG] * 6 + [_INT]
    for name in ("f32_f32", "f32_bf16", "bf16_f32", "bf16_bf16"):
        getattr(library, f"normed_{name}").argtypes = forward
        getattr(library, f"normed_{name}_backward").argtypes = backward
    for name in ("f32", "bf16"):
        getattr(library, f"decode_{name}").argtypes = [_POINTER] * 3 + [_LONG] * 2 + [_INT]
        getattr(library, f"decode_{name}_backward").argtypes = [_POINTER] * 4 + [_LONG] * 2 + [_INT]
    for name in dir(library):
        if name.startswith(("normed", "decode")):
            getattr(library, name).restype = None
    return library


def _is_right(library: ctypes.CDLL) -> bool:
    """Whether the compiled code agrees with torch on a few rows: compilers have bugs, and caches are copied about."""
    x = torch.linspace(-6, 6, 3 * 24).reshape(3, 24).sin() * 4
    weight, bias = torch.linspace(0.5, 2, 24), torch.linspace(-1, 1, 24)
    normal = torch.nn.functional.layer_norm(x, (24,), weight, bias)
    expected = {0: torch.nn.functional.mish(normal), 8: torch.softmax(normal.unflatten(-1, (-1, 8)), -1).flatten(-2)}
    for group, values in expected.items():
        y = torch.empty_like(x)
        library.normed_f32_f32(
            x.data_ptr(), weight.data_ptr(), bias.data_ptr(), None, y.data_ptr(), None, None,
            1, 3, 24, 24, 0, group, EPS, 1,
        )  # fmt: skip
        if not torch.allclose(y, values, rtol=1e-5, atol=1e-6):
            return False
    return True


def _kernel(name: str, *dtypes: torch.dtype, backward: bool = False) -> Any:
    suffix = "".join(f"_{_NAMES[dtype]}" for dtype in dtypes)
    return getattr(load().library, f"{name}{suffix}{'_backward' if backward else ''}")


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _Rows(NamedTuple):
    """How the rows of a tensor lie in memory."""

    members: int
    rows: int
    n: int
    row_stride: int
    member_stride: int


def _rows(x: Tensor, weight: Tensor) -> tuple[Tensor, _Rows]:
    """The tensor, made contiguous where it must be, and how its rows lie."""
    n = x.shape[-1]
    # An ensemble's rows may lie member beside member, but not upon one another: gradients are written as rows lie.
    if weight.ndim == 2 and x.ndim == 3 and x.stride(2) == 1 and min(x.stride()[:2]) >= n:
        return x, _Rows(x.shape[0], x.shape[1], n, x.stride(1), x.stride(0))
    x, members = x.contiguous(), weight.numel() // n
    rows = x.numel() // (n * members)
    return x, _Rows(members, rows, n, n, rows * n)


def _normed_forward(
    x: Tensor,
    lie: _Rows,
    weight: Tensor,
    bias: Tensor,
    keep: Tensor | None,
    group: int,
    y: Tensor,
    stats: Tensor | None,
) -> None:
    mean, rstd = (None, None) if stats is None else stats.unbind(0)
    _kernel("normed", x.dtype, y.dtype)(
        _pointer(x), _pointer(weight), _pointer(bias), _pointer(keep), _pointer(y), _pointer(mean), _pointer(rstd),
        *lie, group, EPS, torch.get_num_threads(),
    )  # fmt: skip


class _Normed(torch.autograd.Function):
    """LayerNorm, then Mish or SimNorm."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None, group: int, dtype: torch.dtype
    ) -> Tensor:
        x, lie = _rows(x, weight)
        y = torch.empty(x.shape, dtype=dtype)
        stats = torch.empty(2, lie.members * lie.rows)
        _normed_forward(x, lie, weight, bias, keep, group, y, stats)
        ctx.save_for_backward(x, weight, bias, keep, stats)
        ctx.lie, ctx.group, ctx.dtype = lie, group, dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, bias, keep, (mean, rstd) = ctx.saved_tensors
        dy, threads = gradients[0].to(ctx.dtype).contiguous(), torch.get_num_threads()
        dx = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
        dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
        partial = torch.empty(2 * weight.numel() * threads)
        _kernel("normed", x.dtype, ctx.dtype, backward=True)(
            _pointer(dy), _pointer(x), _pointer(weight), _pointer(bias), _pointer(keep), _pointer(mean),
            _pointer(rstd), _pointer(dx), _pointer(dweight), _pointer(dbias), _pointer(partial),
            *ctx.lie, ctx.group, threads,
        )  # fmt: skip
        return dx, dweight, dbias, None, None, None


def normed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    group: int = 0,
    keep: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """LayerNorm over the last axis, then Mish, or with `group` SimNorm over groups of that size.

    Args:
        x: (rows..., n), or (M, rows, n) for an ensemble; float32 or bfloat16.
        weight: (n,) scales, or (M, n).
        bias: (n,) offsets, or (M, n).
        group: 0 for Mish.
        keep: contiguous factors on `x` before all else, of its shape; None for none.
        dtype: of the result; by default `x`'s.

    Returns:
        of x's shape, contiguous.
    """
    weight, bias, dtype = weight.contiguous(), bias.contiguous(), dtype or x.dtype
    if torch.is_grad_enabled():
        return _Normed.apply(x, weight, bias, keep, group, dtype)
    x, lie = _rows(x, weight)
    y = torch.empty(x.shape, dtype=dtype)
    _normed_forward(x, lie, weight, bias, keep, group, y, None)
    return y


class _Decode(torch.autograd.Function):
    """Two-hot expectation."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, bins: Tensor) -> Tensor:
        logits = logits.contiguous()
        n = logits.shape[-1]
        out = logits.new_empty(*logits.shape[:-1], 1, dtype=torch.float32)
        _kernel("decode", logits.dtype)(
            _pointer(logits), _pointer(bins), _pointer(out), out.numel(), n, torch.get_num_threads()
        )
        ctx.save_for_backward(logits, bins)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        logits, bins = ctx.saved_tensors
        dout, dlogits = gradients[0].contiguous(), torch.empty_like(logits)
        _kernel("decode", logits.dtype, backward=True)(
            _pointer(dout), _pointer(logits), _pointer(bins), _pointer(dlogits), dout.numel(), logits.shape[-1],
            torch.get_num_threads(),
        )  # fmt: skip
        return dlogits, None


def decode(logits: Tensor, bins: Tensor) -> Tensor:
    """symexp of the expected bin under softmax: logits (..., K) float32 or bfloat16, bins (K,) -> (..., 1) float32."""
    return _Decode.apply(logits, bins)
