"""What the page reads of a sweep: its runs' states, evaluations and logs, each file again only when it has changed."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from tdmpc2.errors import UserError
from tdmpc2.own_tasks import RECORD, enter_record
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.progress import RunView, view_sweep
from tdmpc2.tasks import TASKS

LEAST_SECONDS = 2.0
"""The runs' states are read no more often than this, however many browsers ask."""
LARGEST_SHARE = 0.1
"""Largest share of the time that goes into reading the states: a sweep so large that it takes a second is read every
ten."""
TAIL_BYTES = 16_384
TAIL_LINES = 40
MOST_FILES = 4096
"""Files of which the content is kept; the oldest give way."""
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A sweep as it stood at one moment."""

    views: tuple[RunView, ...] = ()
    damaged: frozenset[str] = frozenset()
    """Names of the runs whose status.json is there and cannot be read."""
    fault: str = ""
    """Why the sweep cannot be read, if it cannot."""
    read_at: float = 0.0
    """Unix time."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The score of one run on one task at one time."""

    task: str
    env_steps: int | None
    """None in a run on a data set, which takes none."""
    updates: int
    score: float
    """Return, or success rate of a task that is scored by it."""


@dataclasses.dataclass(frozen=True)
class EvaluationLog:
    """What an eval.csv tells."""

    evaluations: tuple[Evaluation, ...] = ()
    fault: str = ""
    """What of it cannot be read, and where, if anything."""


Content = TypeVar("Content")


class FileCache(Generic[Content]):
    """What files hold, read again only where size or time of change differ.

    Args:
        read: reads a file; may raise OSError.
        absent: what stands for a file that is not there.
        unreadable: what stands for a file that cannot be opened, from the error's text.
    """

    def __init__(self, read: Callable[[Path], Content], absent: Content, unreadable: Callable[[str], Content]) -> None:
        self._read, self._absent, self._unreadable = read, absent, unreadable
        self._kept: dict[Path, tuple[tuple[int, int, int], Content]] = {}
        self._lock = threading.Lock()

    def get(self, path: Path) -> Content:
        """The content of a file."""
        try:
            stat = path.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            kept = self._kept.get(path)
            if kept is not None and kept[0] == stamp:
                return kept[1]
            content = self._read(path)
        except (FileNotFoundError, NotADirectoryError):
            return self._absent
        except OSError as error:
            return self._unreadable(str(error))
        with self._lock:
            self._kept.pop(path, None)
            while len(self._kept) >= MOST_FILES:
                self._kept.pop(next(iter(self._kept)))
            self._kept[path] = (stamp, content)
        return content


class SweepReader:
    """Reads one sweep for all open pages; may be used by several threads. It writes nothing.

    Args:
        results_dir: folder of all results.
        name: the sweep's name.
    """

    def __init__(self, results_dir: str | os.PathLike[str], name: str) -> None:
        self.folder = SweepFolder(results_dir, name)
        self._lock = threading.Lock()
        self._snapshot = Snapshot()
        self._read_again = -math.inf
        self._evaluations = FileCache(read_evaluations, EvaluationLog(), lambda error: EvaluationLog(fault=error))
        self._tails = FileCache(read_tail, "", str)

    def snapshot(self) -> Snapshot:
        """The runs' states, at most `LEAST_SECONDS` old; older where the sweep is so large that reading takes long."""
        if not self._lock.acquire(blocking=self._snapshot.read_at == 0):
            return self._snapshot  # another page is reading it anew just now
        try:
            start = time.monotonic()
            if start >= self._read_again:
                self._snapshot = self._read()
                end = time.monotonic()
                self._read_again = end + max(LEAST_SECONDS, (end - start) / LARGEST_SHARE)
            return self._snapshot
        finally:
            self._lock.release()

    def _read(self) -> Snapshot:
        try:
            enter_record(self.folder.path / RECORD)  # which tasks of people's own are scored by success
            views = tuple(view_sweep(self.folder))
            return Snapshot(views, self._damaged(views), read_at=time.time())
        except (UserError, OSError) as error:
            return Snapshot(fault=str(error), read_at=time.time())

    def _damaged(self, views: tuple[RunView, ...]) -> frozenset[str]:
        """Of the runs that seem not to have begun, those with a status that cannot be read."""
        silent = [view.entry.name for view in views if view.phase == "" and view.state != "done"]
        present = set(self.folder.run_names()) if silent else set()
        runs = {name: self.folder.run(name) for name in silent if name in present}
        return frozenset(name for name, run in runs.items() if run.status_file.exists() and run.read_status() is None)

    def evaluations(self, run: str) -> EvaluationLog:
        """The evaluations of a run so far, in the order of its eval.csv."""
        return self._evaluations.get(self.folder.run(run).eval_csv)

    def log_tail(self, run: str) -> str:
        """The last lines of a run's log; "" where it has none."""
        return self._tails.get(self.folder.run(run).path / "run.log")


def metric_of(task: str) -> str:
    """What a task is scored by, `return` or `success`; a task that is not known here by its return."""
    return TASKS[task].metric if task in TASKS else "return"


def read_evaluations(path: Path) -> EvaluationLog:
    """Read an eval.csv; a last line without its end is being written, and left out.

    Raises:
        OSError: it cannot be opened.
    """
    text = path.read_bytes().decode(errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = csv.DictReader(lines)
    evaluations, damaged = [], []
    while True:
        try:
            row = next(rows)
            score = float(row[metric_of(row["task"])] or "nan")
            env_steps = int(row["env_steps"]) if row["env_steps"] else None
            updates = int(row["updates"])
        except StopIteration:
            break
        except (KeyError, ValueError, TypeError, csv.Error):
            damaged.append(rows.line_num)
            continue
        if math.isfinite(score):  # a success rate is empty where the environment tells none
            evaluations.append(Evaluation(row["task"], env_steps, updates, score))
    fault = ""
    if damaged:
        fault = f"{path}: {len(damaged)} of its lines cannot be read, the first of them line {damaged[0]}"
    return EvaluationLog(tuple(evaluations), fault)


def read_tail(path: Path) -> str:
    """The last lines of a log, without what only a terminal shows.

    Raises:
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    # A progress bar writes over its line; what stood there last is what a person saw.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    if size > TAIL_BYTES and len(lines) > 1:
        lines = lines[1:]  # begins somewhere within a line
    text = _UNPRINTABLE.sub("", "\n".join(lines)).strip("\n")
    return "\n".join(text.split("\n")[-TAIL_LINES:])
