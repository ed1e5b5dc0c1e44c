"""What the nodes of a cluster must have in common with the machine that a sweep is run from."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from tdmpc2.errors import UserError

Facts = Mapping[str, str]
"""Of a machine: `host`; `python`, its version; `version` of tdmpc2 and `source`, the hash of its files; `sees`:
whether a file is there. All but the host must be the same."""
Probe = Callable[[str], dict[str, str]]
MARKER = ".shared-"
"""Start of the name of the file that every node must see."""


def make_probe() -> Probe:
    """A function that finds out the facts of the machine on which it is called, given the path of a file.

    It is one within a function, and imports what it needs, because its code then travels with it: it also works where
    tdmpc2 is missing or old.
    """

    def probe(marker: str) -> dict[str, str]:
        import hashlib
        import importlib.util
        import platform
        import socket
        from pathlib import Path

        facts = {"host": socket.gethostname(), "python": ".".join(platform.python_version_tuple()[:2])}
        facts["sees"] = "yes" if not marker or Path(marker).exists() else "no"
        found = importlib.util.find_spec("tdmpc2")
        if found is None or found.origin is None:
            return {**facts, "version": "", "source": ""}
        import tdmpc2

        digest = hashlib.sha256()
        folder = Path(found.origin).parent
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".py", ".cpp", ".csv"):
                digest.update(f"{file.relative_to(folder).as_posix()}\n".encode() + file.read_bytes())
        return {**facts, "version": tdmpc2.__version__, "source": digest.hexdigest()[:12]}

    return probe


def why_unfit(here: Facts, there: Facts) -> str | None:
    """Why runs cannot be executed on a node; None where they can.

    Args:
        here: facts of the machine that the sweep is run from.
        there: of the node.
    """
    if there["python"] != here["python"]:
        return f"it has Python {there['python']}, here is {here['python']}"
    if not there["version"]:
        return "tdmpc2 is not installed there, in the Python that Ray runs with"
    if there["version"] != here["version"]:
        return f"it has tdmpc2 {there['version']}, here is {here['version']}"
    if there["source"] != here["source"]:
        return f"its code of tdmpc2 differs ({there['source']} there, {here['source']} here): install the same commit"
    if there["sees"] != "yes":
        return "it does not see the results folder: share it at the same path, or keep the sweep in storage (--storage)"
    return None


def place_marker(folder: Path) -> Path:
    """Make a file in a sweep's folder by which a node can tell that it sees the very same folder.

    Args:
        folder: the sweep's folder, which no other process is running; markers of earlier drivers are removed.

    Returns:
        the file; who made it removes it at the end.

    Raises:
        UserError: it cannot be written.
    """
    marker = folder.absolute() / f"{MARKER}{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{MARKER}*"):
            old.unlink()
        marker.touch()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror})") from None
    return marker
