"""Reading data larger than memory: the system is told which pages of the mapped files are needed, all at once.

By itself it reads a page when it is touched, and 128 KiB around it. A batch of 1,024 sequences touches thousands of
pages: it would wait for the disk thousands of times, one after another, and read hundreds of megabytes to use ten.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

import numpy as np
import psutil
from numpy.typing import NDArray

MADV_RANDOM, MADV_WILLNEED, MADV_DONTNEED = 1, 3, 4
PROCESS_MADVISE = 440
"""Number of the system call, on every architecture of Linux from 5.10 on."""
MOST_RANGES = 1024
"""That one call takes."""
MEMORY_SHARE = 0.5
"""Data sets that take more than this share of the machine's memory are not expected to stay in it."""


def outgrows_memory(size: int) -> bool:
    """Whether so many bytes of files are too many to stay in the page cache."""
    return size > MEMORY_SHARE * psutil.virtual_memory().total


class ReadAhead:
    """Advises the system on the mapped files of this process.

    Where that cannot be done (an older Linux, another system, a sandbox that forbids the call) nothing is, and reading
    is only slower.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
        self._process = -1
        if self._libc is not None:
            try:
                self._process = os.pidfd_open(os.getpid())
            except OSError:  # not in this kernel, or not in this sandbox
                self._libc = None

    def expect_random(self, mapped: NDArray[np.generic]) -> None:
        """Have the system read no more of a mapped file than the pages that are touched."""
        self._advise(mapped, MADV_RANDOM)

    def let_go(self, mapped: NDArray[np.generic]) -> None:
        """Take a mapped file out of this process's memory. Its pages stay cached for as long as there is room."""
        self._advise(mapped, MADV_DONTNEED)

    def _advise(self, mapped: NDArray[np.generic], advice: int) -> None:
        if self._libc is not None:
            self._libc.madvise(ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(mapped.nbytes), advice)

    def begin(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> bool:
        """Begin to read what lies between these addresses, without waiting for it.

        Args:
            start: (n,) first addresses, within mapped files.
            end: (n,) addresses after the last byte.

        Returns:
            whether the system took the advice.
        """
        if self._libc is None or self._process < 0:
            return False
        first_page = start & ~(mmap.PAGESIZE - 1)
        ranges = np.ascontiguousarray(np.stack([first_page, end - first_page], 1), np.uint64)  # struct iovec
        for begin in range(0, len(ranges), MOST_RANGES):
            piece = ranges[begin : begin + MOST_RANGES]
            place, count = ctypes.c_void_p(piece.ctypes.data), ctypes.c_size_t(len(piece))
            if self._libc.syscall(PROCESS_MADVISE, self._process, place, count, MADV_WILLNEED, 0) < 0:
                self.close()
                return False
        return True

    def close(self) -> None:
        """Advise no more."""
        if self._process >= 0:
            os.close(self._process)
            self._process = -1
