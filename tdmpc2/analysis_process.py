"""Starting programs of the package `analysis`: each in a process of its own, since nothing in tdmpc2 imports it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence

from tdmpc2.errors import UserError, require


def run_analysis(module: str, arguments: Sequence[str], absent: str, failed: str = "") -> str:
    """Run a module of the analysis package as a program.

    Args:
        module: e.g. `analysis.datasets`.
        arguments: its command line.
        absent: the message where the package is not installed.
        failed: what the message begins with where the program fails; its own last word follows.

    Returns:
        What it wrote to its standard output.

    Raises:
        UserError: the package is not installed, or the program failed.
    """
    packages = ("analysis", module)  # in turn: the second is not looked for where the first is not there
    require(all(importlib.util.find_spec(package) for package in packages), absent)
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise UserError(failed + (said[-1].removeprefix("error: ") if said else f"exit code {done.returncode}"))
    return done.stdout
