"""How far a report is, on stderr: a live table on a terminal, else a line for each notebook that is done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from analysis.report_folder import Part
from analysis.tables import counted
from analysis.words import duration

if TYPE_CHECKING:
    from rich.table import Table


class Progress:
    """A context in which notebooks are executed.

    Args:
        names: the notebooks, in the order in which they begin.
        known: seconds that they took last time, as far as that is known.
        jobs: how many are executed at once.
        console: where to write; by default stderr.
    """

    def __init__(
        self, names: Sequence[str], known: Mapping[str, float], jobs: int, console: Console | None = None
    ) -> None:
        self._names, self._known, self._jobs = list(names), dict(known), jobs
        self._console = console if console is not None else Console(stderr=True, highlight=False)
        self._began: dict[str, float] = {}
        self._cells: dict[str, str] = {}
        self._parts: dict[str, Part] = {}
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        else:
            self._print(f"{counted(len(self._names), 'notebook')}, {self._jobs} at a time{self._left()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self.refresh()
            self._live.stop()

    def begin(self, name: str) -> None:
        """A notebook begins."""
        self._began[name] = time.monotonic()

    def cell(self, name: str, done: int, cells: int) -> None:
        """A notebook has executed `done` of its cells."""
        self._cells[name] = f"cell {done + 1} of {cells}"

    def end(self, name: str, part: Part) -> None:
        """A notebook is done, or failed."""
        self._parts[name] = part
        if self._live is None:
            failed = f": {part.message}" if part.message else ""
            count = f"{len(self._parts)} of {len(self._names)}"
            self._print(f"{name}: {_outcome(part)} in {duration(part.seconds)} ({count}{self._left()}){failed}")

    def refresh(self) -> None:
        """Draw the table anew, where there is a terminal."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def remaining(self) -> float | None:
        """Seconds until all is done if each takes as long as last time; None where that cannot be said.

        It cannot where a notebook has no last time, or takes longer than that already.
        """
        now = time.monotonic()
        lanes = [0.0] * self._jobs
        for name in self._names:
            if name in self._parts:
                continue
            if name not in self._known:
                return None
            left = self._known[name] - (now - self._began[name] if name in self._began else 0.0)
            if left <= 0:
                return None
            lanes.sort()
            lanes[0] += left
        return max(lanes)

    def _left(self) -> str:
        left = self.remaining()
        return f", about {duration(left)} left if it takes as long as last time" if left else ""

    def _table(self) -> Table:
        from rich.table import Table

        table = Table(box=None, show_header=False, caption=self._left().removeprefix(", "), caption_justify="left")
        for name in self._names:
            if (part := self._parts.get(name)) is not None:
                table.add_row(name, _outcome(part), duration(part.seconds), part.message)
            elif name in self._began:
                spent = duration(time.monotonic() - self._began[name])
                table.add_row(name, "running", spent, self._cells.get(name, "starting"))
            else:
                table.add_row(name, "waiting", "", "")
        return table

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def _outcome(part: Part) -> str:
    return "failed" if part.state == "failed" else "ok"
