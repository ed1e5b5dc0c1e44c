"""Which processes belong to the drivers under fire, also after their parents have died."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import psutil

T = TypeVar("T")


class Processes:
    """Follows the drivers and all that descend from them; `look` is to be called several times a second."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}

    def add(self, pid: int) -> None:
        """Follow a driver."""
        self._known[pid] = psutil.Process(pid)

    def look(self) -> None:
        """Take in the children that came, and forget the dead."""
        self._known = {pid: process for pid, process in self._known.items() if _lives(process)}
        parents = {process.pid: process.info["ppid"] for process in psutil.process_iter(["ppid"])}
        grown = True
        while grown:
            new = [pid for pid, parent in parents.items() if parent in self._known and pid not in self._known]
            for pid in new:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._known[pid] = psutil.Process(pid)
            grown = any(pid in self._known for pid in new)

    def alive(self) -> list[psutil.Process]:
        """All that live, the drivers included."""
        return [process for process in self._known.values() if _lives(process)]

    def lives(self, pid: int) -> bool:
        """Whether a process lives and is one of them."""
        return pid in self._known and _lives(self._known[pid])

    def named(self, name: str) -> list[psutil.Process]:
        """Those of a program's name, such as raylet."""
        return [process for process in self.alive() if _tells(process.name) == name]

    def titled(self, title: str) -> list[psutil.Process]:
        """Those that show a title in place of their command line, such as a run's in a Ray worker."""
        return [process for process in self.alive() if (_tells(process.cmdline) or [""])[0].rstrip() == title]

    def end(self) -> list[str]:
        """Kill all that live; their command lines."""
        lines = [f"{process.pid} {' '.join(_tells(process.cmdline) or [])[:120]}" for process in self.alive()]
        send(self.alive(), signal.SIGKILL)
        return lines


def send(processes: Iterable[psutil.Process], number: int) -> None:
    """Send a signal to processes, which may end meanwhile."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def wait_for_death(process: psutil.Process, seconds: float) -> bool:
    """Whether a process is dead within a time; one that nobody has waited for is."""
    deadline = time.monotonic() + seconds
    while _lives(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def using(folder: str) -> list[str]:
    """Command lines of all living processes, ours apart, that stand in a folder or name it."""
    found = []
    for process in psutil.process_iter():
        if process.pid != os.getpid() and _lives(process):
            words, place = _tells(process.cmdline) or [], _tells(process.cwd) or ""
            if place.startswith(folder) or any(folder in word for word in words):
                found.append(f"{process.pid} {' '.join(words)[:120]}")
    return found


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _tells(question: Callable[[], T]) -> T | None:
    """What a process tells of itself; None where it is gone or not ours to ask."""
    try:
        return question()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return None
