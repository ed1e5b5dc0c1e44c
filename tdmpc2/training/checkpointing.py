"""When a run writes its checkpoint, and reading it again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tdmpc2.agent import checkpoints
from tdmpc2.errors import require

CHECKPOINT_SECONDS = 600.0
"""A checkpoint is written at least this often, however slow the run."""


class CheckpointClock:
    """Tells when the next checkpoint is due.

    Args:
        every: steps, or updates, between two.
        count: how many the run has made by the last one.
    """

    def __init__(self, every: int, count: int) -> None:
        self._every = every
        self.written(count)

    def written(self, count: int) -> None:
        """A checkpoint was just written, after so many."""
        self._count, self._time = count, time.monotonic()

    def is_due(self, count: int) -> bool:
        """Whether one is to be written, after so many."""
        return count - self._count >= self._every or time.monotonic() - self._time > CHECKPOINT_SECONDS


def read_checkpoint(path: Path, names: Sequence[str], kind: str) -> dict[str, Any] | None:
    """A run's checkpoint; None where it has none yet.

    Args:
        path: the file.
        names: what it must hold.
        kind: the kind of run that it must be of, for the message.

    Raises:
        UserError: it is damaged, or of another kind.
    """
    if not path.exists():
        return None
    state = checkpoints.read(path)
    missing = [name for name in names if name not in state]
    require(not missing, f"{path}: not {kind}'s checkpoint (missing: {', '.join(missing)})")
    return state
