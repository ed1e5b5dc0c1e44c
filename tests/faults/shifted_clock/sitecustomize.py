"""Shifts the wall clock of every Python process that starts with this folder on its path, by the seconds in a file.

Only what Python code reads jumps: `time.time` and its kin. Monotonic time goes on, as it does when a machine's clock is
set. libfaketime, which shifts whole processes, does not serve: under it Python's own `time.sleep` fails.
"""

from __future__ import annotations

import os
import time
from typing import Any

SHIFT_FILE = "TDMPC2_CLOCK_SHIFT_FILE"
_seconds, _nanoseconds = time.time, time.time_ns


def _follow(path: str) -> None:
    """From now on, show the time shifted by what the file holds at the moment."""
    file = os.open(path, os.O_RDONLY)

    def shift() -> int:
        return int(os.pread(file, 20, 0) or b"0")

    def with_default(convert: Any) -> Any:
        return lambda seconds=None: convert(time.time() if seconds is None else seconds)

    strftime = time.strftime
    time.time = lambda: _seconds() + shift()
    time.time_ns = lambda: _nanoseconds() + shift() * 10**9
    time.gmtime, time.localtime = with_default(time.gmtime), with_default(time.localtime)
    time.strftime = lambda form, moment=None: strftime(form, time.localtime() if moment is None else moment)


if SHIFT_FILE in os.environ:
    _follow(os.environ[SHIFT_FILE])
