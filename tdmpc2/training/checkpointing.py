"""When a run writes its checkpoint, and the two that it keeps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tdmpc2.agent import checkpoints
from tdmpc2.agent.checkpoints import DamagedError
from tdmpc2.errors import UserError, require
from tdmpc2.training.folder import RunFolder

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


class StoredCheckpoint(NamedTuple):
    """A checkpoint that was read."""

    state: dict[str, Any]
    """What it holds."""
    path: Path
    """Its file."""
    fell_back: bool
    """Whether it is the one before the latest, which cannot be read."""


class RunCheckpoints:
    """A run's two checkpoints: the latest, and the one before it for when the latest cannot be read.

    Args:
        folder: the run's folder, claimed.
        note: told of a checkpoint that cannot be used.
    """

    def __init__(self, folder: RunFolder, note: Callable[[str], None]) -> None:
        self._folder, self._note = folder, note
        self._size: int | None = None
        """Bytes of the latest, as it was read or written here; None where there is none."""

    def read(self, names: Sequence[str], kind: str, keep_aside: bool = True) -> StoredCheckpoint | None:
        """The latest checkpoint, or the one before it where that is missing or damaged; None where there is none yet.

        Args:
            names: what it must hold.
            kind: the kind of run that it must be of, for the message.
            keep_aside: whether a damaged file is given another name, so that nothing takes it for a checkpoint.

        Raises:
            UserError: there is none that can be read, or it is of another kind of run; all files are as they were.
        """
        latest, previous = self._folder.checkpoint, self._folder.previous_checkpoint
        if latest.exists():
            try:
                state = _read(latest, names, kind)
            except DamagedError as error:
                fault = str(error)
            else:
                self._size = latest.stat().st_size
                return StoredCheckpoint(state, latest, fell_back=False)
        elif previous.exists():
            fault = f"{latest}: is missing"
        else:
            return None
        anew = "Put a copy of either back, or begin anew in another folder (label= or exp_name=)"
        require(previous.exists(), f"{fault}; there is no {previous.name} before it to go on from. {anew}")
        try:
            state = _read(previous, names, kind)
        except DamagedError as error:
            raise UserError(f"{fault}; nor can the one before it be read: {error}. {anew}") from None
        aside = keep_aside and self._put_aside()
        kept = f"; kept as {self._folder.damaged_checkpoint.name}" if aside else ""
        self._note(f"{fault}{kept}; going on from the checkpoint before it, {previous}")
        return StoredCheckpoint(state, previous, fell_back=True)

    def put_aside_if_changed(self) -> bool:
        """Take the latest checkpoint out of the way if something else cut or removed it since it was read or written.

        Otherwise the next one would make it the one to fall back on, in the place of a sound one.

        Returns:
            whether it was so: the next checkpoint leaves the one before the latest as it is.
        """
        latest = self._folder.checkpoint
        found = latest.stat().st_size if latest.exists() else None
        if found == self._size:
            return False
        self._size = None
        aside = self._put_aside()
        kept = f" ({found:,} bytes; kept as {self._folder.damaged_checkpoint.name})" if aside else " (it is gone)"
        self._note(f"{latest}: was changed by something else while the run was under way{kept}; writing a new one")
        return True

    def write(self, state: Mapping[str, Any]) -> None:
        """Write the latest checkpoint; the one that was becomes the one before it. Killed at any moment, one is whole.

        Raises:
            UserError: the disk is full; both are as they were.
        """
        latest = self._folder.checkpoint
        self.put_aside_if_changed()
        checkpoints.write(state, latest, self._folder.previous_checkpoint)
        self._size = latest.stat().st_size

    def _put_aside(self) -> bool:
        """Rename the latest, over one put aside earlier, so that the disk does not fill; whether there was a latest."""
        latest = self._folder.checkpoint
        if not latest.exists():
            return False
        os.replace(latest, self._folder.damaged_checkpoint)
        checkpoints.sync_folder(latest.parent)
        return True


def _read(path: Path, names: Sequence[str], kind: str) -> dict[str, Any]:
    state = checkpoints.read(path)
    missing = [name for name in names if name not in state]
    require(not missing, f"{path}: not {kind}'s checkpoint (missing: {', '.join(missing)})")
    return state


def read_undamaged(path: Path) -> dict[str, Any]:
    """A checkpoint, for another end than to resume its run: no other agent than the one asked for is taken silently.

    Raises:
        UserError: as `checkpoints.read`; where it is a run's latest and the one before it is sound, it names that.
    """
    try:
        return checkpoints.read(path)
    except DamagedError as error:
        raise UserError(f"{error}{what_else(RunFolder(path.parent.parent), path)}") from None


def what_else(folder: RunFolder, unusable: Path) -> str:
    """What can be given in the place of a run's latest checkpoint, for the end of a message; empty if there is nothing.

    Args:
        folder: a run's folder, or any other.
        unusable: the file that cannot be read.
    """
    if unusable != folder.checkpoint:
        return ""
    try:
        checkpoints.read(folder.previous_checkpoint)
    except UserError:
        return ""
    return f"; the run's checkpoint before it is sound: give checkpoint={folder.previous_checkpoint} in its place"
