"""How an agent's arithmetic is carried out: where, in which precision, compiled by what."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tdmpc2.agent import kernels
from tdmpc2.config import CompileMode, Config, Precision
from tdmpc2.errors import UserError

COMPILE_PAYS_AFTER = 20_000
"""Agent steps from which compiling pays on a GPU with `compile=auto`: an estimate, no GPU was at hand. It assumes two
minutes of compiling and 6 ms saved by each step's plan and update, launched one kernel at a time."""


@dataclass(frozen=True)
class Execution:
    """What was chosen for an agent, and why."""

    precision: Precision
    """`float32`, `tf32` or `bfloat16`; never `auto`."""
    compile: CompileMode
    """`none`, `kernels` or `full`; never `auto`."""
    why: dict[str, str] = field(default_factory=dict, compare=False)
    """The reason for each choice that was left to `auto`."""
    notice: str = field(default="", compare=False)
    """What the user should know once: an expected means is missing, or the choice is slow here."""

    def __str__(self) -> str:
        return f"{self.precision}, compile={self.compile}"

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Around whatever computes with the model: matrix products in bfloat16, if so chosen."""
        if self.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    @contextmanager
    def products(self, device: torch.device) -> Iterator[None]:
        """As `autocast`, and float32 products as TensorFloat-32 within, if so chosen."""
        if device.type != "cuda":
            with self.autocast(device):
                yield
            return
        switches: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]  # its stub lacks conv
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "tf32" if self.precision == "tf32" else "ieee"
            with self.autocast(device):
                yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value


def share_compiled_code() -> None:
    """Keep what torch.compile makes beside the kernels, on disk, for every later process of this user."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    name = "TORCHINDUCTOR_CACHE_DIR"
    if os.environ.get(name, default_cache_dir()) == default_cache_dir():  # torch itself sets it to that, early on
        os.environ[name] = str(kernels.cache_folder() / "inductor")


def choose_device(device: str = "auto") -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` stands for on this machine.

    Raises:
        UserError: a GPU is asked for that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: {device} is not there ({torch.cuda.device_count()} GPUs visible); try device=auto")
    return chosen


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices by instructions of its own."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and any(
        getattr(torch.cpu, test)() for test in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def choose_execution(config: Config, device: torch.device, steps: int | None = None) -> Execution:
    """Decide what `auto` stands for. It follows from settings and machine alone, so equal runs decide alike.

    Args:
        config: the settings.
        device: where the agent lives.
        steps: agent steps or updates ahead, by which compiling on a GPU must pay; by default the config's.

    Raises:
        UserError: what is asked for is not to be had here; says what is.
    """
    why: dict[str, str] = {}
    notices: list[str] = []
    precision = _choose_precision(config.precision, device, why, notices)
    compiling = _choose_compile(config, device, config.total_updates if steps is None else steps, why, notices)
    return Execution(precision, compiling, why, "; ".join(notices))


def resume_execution(config: Config, device: torch.device, recorded: Mapping[str, str] | None) -> Execution:
    """What `auto` stood for when the run began, so that a resumed run goes on with the same arithmetic.

    Args:
        config: the settings.
        device: where the agent lives now.
        recorded: `precision` and `compile` of the checkpoint; None without one.

    Raises:
        UserError: as `choose_execution`.
    """
    if recorded is None:
        return choose_execution(config, device)
    settings: Any = {name: recorded[name] for name in ("precision", "compile") if getattr(config, name) == "auto"}
    try:
        return choose_execution(dataclasses.replace(config, **settings), device)
    except UserError as error:
        chosen = choose_execution(config, device)
        notice = f"the run began with {', '.join(settings.values())}, and goes on with {chosen}: {error}"
        return dataclasses.replace(chosen, notice=notice)


def _choose_precision(wanted: Precision, device: torch.device, why: dict[str, str], notices: list[str]) -> Precision:
    cuda = device.type == "cuda"
    if wanted == "auto":
        if cuda:
            why["precision"] = "TensorFloat-32, as the published runs on GPUs"
            return "tf32"
        why["precision"] = (
            "bfloat16 is faster on this processor, but not yet shown to cost no returns: precision=bfloat16 uses it"
            if has_fast_bfloat16(device)
            else "this processor has no bfloat16 products"
        )
        return "float32"
    if wanted == "tf32" and not cuda:
        raise UserError("precision: tf32 is for GPUs; on a CPU float32 or bfloat16")
    if wanted == "bfloat16" and not has_fast_bfloat16(device):
        if cuda:
            raise UserError("precision: this GPU has no bfloat16 products; float32 or auto")
        notices.append("this processor has no bfloat16 products: precision=bfloat16 is slower here than float32")
    return wanted


def _choose_compile(
    config: Config, device: torch.device, steps: int, why: dict[str, str], notices: list[str]
) -> CompileMode:
    wanted = config.compile
    if device.type == "cuda":
        if wanted == "kernels":
            raise UserError("compile: kernels are for the CPU; on a GPU none, full or auto")
        if wanted != "auto":
            return wanted
        pays = steps >= COMPILE_PAYS_AFTER
        why["compile"] = (
            f"{steps:,} agent steps or updates, {'at least' if pays else 'fewer than'} {COMPILE_PAYS_AFTER:,}"
        )
        return "full" if pays else "none"
    if wanted == "none":
        return wanted
    found = kernels.load()
    if found.library is None:
        if wanted == "auto":
            why["compile"] = found.reason
            notices.append(f"running uncompiled, which is slower: {found.reason}")
            return "none"
        raise UserError(f"compile: {wanted} is not to be had here: {found.reason}; compile=none works everywhere")
    if wanted == "auto":
        why["compile"] = "faster than torch.compile on the CPUs tried, without its minutes of compiling"
        return "kernels"
    return wanted
