"""Errors that a person can mend: one clear message, exit code 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: a wrong name, value, file or state of the disk. The command line prints it and exits with 2."""


class RunBusyError(UserError):
    """Another process is working on the run: wait for it, and try again."""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that looks most like `name`, or None where nothing comes close."""
    lowered = {candidate.lower(): candidate for candidate in valid}
    matches = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return lowered[matches[0]] if matches else None


def unknown_name(kind: str, name: str, valid: Iterable[str], where: str = "") -> UserError:
    """The error for a name that does not exist: names the nearest valid one, or lists the first few.

    Args:
        kind: what the name stands for, e.g. "task".
        name: the unknown name.
        valid: all valid names.
        where: the file or option it was read from, if any.
    """
    names = list(valid)
    match = nearest(name, names)
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    hint = f"did you mean {match!r}?" if match else f"valid: {shown}"
    prefix = f"{where}: " if where else ""
    return UserError(f"{prefix}unknown {kind} {name!r}; {hint}")


def require(holds: bool, message: str) -> None:
    """Raise a `UserError` with this message unless the condition holds."""
    if not holds:
        raise UserError(message)
