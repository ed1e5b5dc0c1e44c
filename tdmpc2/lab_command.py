"""The command `tdmpc2 lab`: JupyterLab on copies of the report's notebooks."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tdmpc2.errors import UserError, require

TEMPLATES = Path(__file__).resolve().parents[1] / "notebooks"
KERNEL = "python3"
"""The kernel that the templates name."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `lab` to a command line; what it does not know is handed on to JupyterLab."""
    lab = subparsers.add_parser(
        "lab",
        help="open JupyterLab on the report's notebooks",
        description="Open JupyterLab on copies of the report's notebooks, in RESULTS/lab.",
        epilog="All other options are JupyterLab's, e.g. --no-browser --port 8899.",
        allow_abbrev=False,  # an abbreviation may be an option of JupyterLab
    )
    lab.add_argument("--results", default="results", metavar="DIR", help="folder of all results")
    lab.set_defaults(run_command=open_lab, handed_on=[])


def open_lab(options: argparse.Namespace) -> int:
    """Copy the notebooks and become JupyterLab; returns only by an exception.

    Raises:
        UserError: the templates or JupyterLab are not there, or the folder cannot be written.
    """
    require(importlib.util.find_spec("jupyterlab") is not None, "JupyterLab is not installed; `make setup` installs it")
    folder = (Path(options.results) / "lab").resolve()
    for line in copy_notebooks(folder):
        print(line, file=sys.stderr)
    data = folder / ".jupyter"
    _write_kernel(data / "kernels" / KERNEL, Path.cwd())
    paths = [str(data), *filter(None, [os.environ.get("JUPYTER_PATH")])]
    become_lab(folder, options.handed_on, {**os.environ, "JUPYTER_PATH": os.pathsep.join(paths)})
    return 0


def copy_notebooks(folder: Path) -> list[str]:
    """Copy the templates that are not in a folder yet; returns what there is to say, a line each.

    Raises:
        UserError: there are no templates, or the folder cannot be written.
    """
    templates = sorted(TEMPLATES.glob("*.ipynb"))
    require(bool(templates), f"no notebooks in {TEMPLATES}; the lab is opened from a checkout of the project")
    lines = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for template in templates:
            copy = folder / template.name
            if not copy.exists():
                shutil.copyfile(template, copy)
            elif copy.read_bytes() != template.read_bytes():
                lines.append(f"{copy}: left as it is (it differs from the template; delete it for a fresh copy)")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    return lines


def _write_kernel(folder: Path, working: Path) -> None:
    """Define the notebooks' kernel: this interpreter, in the folder that the command was given in.

    A kernel begins in its notebook's folder, where the notebooks' `results/NAME` would lead nowhere. And a kernel of
    the same name that is registered on this machine may be another environment's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    enter = f"--IPKernelApp.exec_lines=import os; os.chdir({str(working)!r}); del os"
    kernel = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", enter],
        "display_name": "Python 3",
        "language": "python",
    }
    (folder / "kernel.json").write_text(json.dumps(kernel, indent=1) + "\n", encoding="utf-8")


def become_lab(folder: Path, arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Replace this process by JupyterLab.

    Args:
        folder: what it shows.
        arguments: handed to it as they are.
        environment: its environment variables.
    """
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}", *arguments]
    os.execve(sys.executable, command, environment)
