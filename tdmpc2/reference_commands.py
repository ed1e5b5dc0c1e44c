"""The command `tdmpc2 reference`: import, list."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path

from tdmpc2.analysis_process import run_analysis
from tdmpc2.errors import require

REFERENCE = "reference"
"""Folder of all imported curves within that of all results."""
DEFAULT_NAME = "curves"
_RECORD = "reference.json"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `reference` to a command line; `run_command` of each verb takes the options and returns the exit code."""
    reference = subparsers.add_parser("reference", help="published learning curves: import, list")
    verbs = reference.add_subparsers(dest="reference_verb", required=True, metavar="VERB")

    text = "keep published learning curves, to be shown beside one's own"
    add = verbs.add_parser("import", help=text, description=text[0].upper() + text[1:] + ".")
    add.set_defaults(run_command=import_command)
    add.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of ALGORITHM/TASK.csv (columns step, reward or success, seed), a checked-out copy of the "
        "reference project's repository, or that repository's git URL",
    )
    add.add_argument(
        "--name", default=DEFAULT_NAME, metavar="NAME", help=f"made in DIR/{REFERENCE} (default: {DEFAULT_NAME})"
    )

    text = "show the published curves that were imported"
    shown = verbs.add_parser("list", help=text, description=text[0].upper() + text[1:] + ".")
    shown.set_defaults(run_command=list_command)
    for verb in (add, shown):
        verb.add_argument("--results", default="results", metavar="DIR", help="folder of all results")


def import_command(args: argparse.Namespace) -> int:
    """`tdmpc2 reference import SOURCE`."""
    plain = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", args.name)
    require(plain is not None, f"--name: {args.name!r} is no name of a folder: take letters, digits, '.', '_' and '-'")
    folder = Path(args.results) / REFERENCE / args.name
    said = run_analysis(
        "analysis.reference_import",
        ["--output", str(folder), "--", args.source],
        absent="reference import: is done by the package `analysis`, which is not installed here",
    )
    print(said, end="")
    print(f"show it beside a sweep with: make report SWEEP=NAME REFERENCE={shlex.quote(str(folder))}")
    return 0


def list_command(args: argparse.Namespace) -> int:
    """`tdmpc2 reference list`."""
    from rich.console import Console
    from rich.table import Table

    folders = sorted(path.parent for path in (Path(args.results) / REFERENCE).glob(f"[!.]*/{_RECORD}"))
    if not folders:
        print(f"{args.results}: no published curves; `tdmpc2 reference import SOURCE` keeps some")
        return 0
    table = Table(box=None, pad_edge=False)
    for column in ("name", "algorithms", "imported", "source"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for folder in folders:
        try:
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            algorithms = ", ".join(f"{name} ({held['tasks']} tasks)" for name, held in record["algorithms"].items())
            source = str(record["source"]) + (f" at {record['commit'][:12]}" if record["commit"] else "")
            table.add_row(folder.name, algorithms, str(record["imported"])[:10], source)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            table.add_row(folder.name, f"{_RECORD} cannot be read ({type(error).__name__})", "", "")
    console = Console(highlight=False, markup=False, emoji=False)
    console.width = max(console.width, 120)
    console.print(table)
    return 0
