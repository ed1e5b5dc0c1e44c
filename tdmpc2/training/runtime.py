"""The process and the machine that a run runs on."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

SWEEP_COMMAND = "TDMPC2_SWEEP_COMMAND"
"""Environment variable by which a sweep tells its runs' processes the command that started it."""


def prepare_process(threads: int | None, processes: int = 1) -> None:
    """Set the number of CPU threads, ask for deterministic algorithms, and let the allocator keep its memory.

    Every update allocates and frees the same large tensors. glibc hands such blocks back to the kernel at once, and
    the kernel zeroes them page by page when they are asked for again: a sixth of an update's time, where measured.

    Args:
        threads: CPU threads; by default all cores, or this process's share of them.
        processes: how many such processes share this machine.
    """
    import torch  # takes seconds; the sweeps' driver needs only the rest of this module

    torch.set_num_threads(threads or max(1, available_cores() // processes))
    torch.use_deterministic_algorithms(True, warn_only=True)
    # That also fills all new memory, for code that reads what it never wrote. None here does, and the filling costs an
    # eighth of a plan's and an update's time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it is there
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_hardware(device: torch.device | None = None) -> str:
    """The machine in a line, for records: processor, cores, memory, and the device where it is a GPU."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    memory = psutil.virtual_memory().total / 2**30
    parts = [f"{name}, {available_cores()} cores, {memory:.0f} GiB"]
    if device is not None and device.type == "cuda":
        import torch

        parts.append(torch.cuda.get_device_name(device))
    return "; ".join(parts)


class StopRequest:
    """Whether somebody asked the run to stop: true after the first SIGTERM or Ctrl-C."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raises `Stopped` if a stop was requested."""
        if self.requested:
            raise Stopped


class Stopped(Exception):  # noqa: N818  # not an error
    """The run was asked to stop and did, between two steps."""


@contextmanager
def stop_on_signals(request: StopRequest | None = None) -> Iterator[StopRequest]:
    """Turn the first SIGTERM or SIGINT into a request, which the loops heed between two steps; the second kills.

    Args:
        request: what to set; by default a new one.
    """
    request = request if request is not None else StopRequest()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True

    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        previous = {number: signal.signal(number, on_signal) for number in numbers}
    except ValueError:  # signals are the main thread's alone; elsewhere the caller sets the request
        previous = {}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
