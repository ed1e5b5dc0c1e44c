"""Keep published learning curves: `python -m analysis.reference_import SOURCE --output RESULTS/reference/NAME`.

SOURCE is a folder of ALGORITHM/TASK.csv, a checked-out copy of the reference project's repository, which has such a
folder `results`, or that repository's URL. The files are copied as they are, with `reference.json` beside them: where
they come from, and what is amiss in them. Exit code 0: imported, or imported already; 2: bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.reference import coverage, load_reference, published_task
from analysis.tables import counted
from tdmpc2.errors import UserError, nearest, require
from tdmpc2.tasks import TASKS

RECORD = "reference.json"
"""Written beside the curves: source, commit (null where not known), imported (date), algorithms (tasks, seeds and last
environment step of each), problems."""
_URL = re.compile(r"(?:https?|ssh|git|file)://.+|[\w.-]+@[\w.-]+:.+")
_REPOSITORY_FOLDER = "results"
"""Where the curves lie in the reference project's repository."""


@dataclass(frozen=True)
class Imported:
    """What an import made or found."""

    folder: Path
    """ALGORITHM/TASK.csv and `reference.json`."""
    record: dict[str, Any]
    """As `reference.json` holds it."""
    fresh: bool
    """False where the same curves had been imported before."""


def import_reference(source: str, folder: Path) -> Imported:
    """Copy published curves into a folder of their own.

    Everything is written into a temporary folder and renamed at the end: there is a whole import or none.

    Args:
        source: folder of ALGORITHM/TASK.csv, a checked-out repository with such a folder `results`, or its git URL.
        folder: where to; its last name is the import's.

    Raises:
        UserError: there is no such source, no curves of known tasks in it, or it cannot be cloned; the folder exists
            with other content, or cannot be written.
    """
    with _checked_out(source) as checkout:
        curves = _curves_folder(checkout, source)
        contents, problems = _read_curves(curves)
        require(bool(contents), f"{_shown(source)}: no ALGORITHM/TASK.csv of a known task in it")
        if os.path.lexists(folder):
            require(_held(folder) == contents, f"{folder} exists already, with other content; give another --name")
            return Imported(folder, _read_record(folder), fresh=False)
        origin = {"source": _shown(source), "commit": _commit(curves, checkout)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".importing-", dir=folder.parent) as temporary:
            staging = Path(temporary) / folder.name
            for name, content in contents.items():
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            reference = load_reference(staging)
            require(len(reference.table) > 0, f"{_shown(source)}: no curve that can be read in it")
            algorithms = {str(row.pop("algorithm")): row for row in coverage(reference.table).to_dict("records")}
            record = {
                **origin,
                "imported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "algorithms": algorithms,
                "problems": [*problems, *reference.problems],
            }
            (staging / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            staging.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return Imported(folder, record, fresh=True)


@contextmanager
def _checked_out(source: str) -> Iterator[Path]:
    """The source as a folder: itself, or a shallow clone that lasts as long as this context."""
    if not _URL.fullmatch(source):
        yield Path(source)
        return
    require(shutil.which("git") is not None, f"{_shown(source)}: a URL is read by git, which is not installed here")
    with tempfile.TemporaryDirectory(prefix="tdmpc2-reference-") as temporary:
        clone = Path(temporary) / "clone"
        command = ["git", "clone", "--quiet", "--depth", "1", "--no-tags", "--", source, str(clone)]
        # Without this, git would wait for a name and password of a repository that is not there.
        environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.startswith(("fatal:", "error:", "ERROR"))]
            reason = said[0].replace(source, _shown(source)) if said else f"exit code {done.returncode}"
            raise UserError(f"{_shown(source)}: cannot be cloned (git: {reason.removeprefix('fatal: ')})")
        yield clone


def _shown(source: str) -> str:
    """A source without a password that its URL may hold; a folder by its whole path."""
    if not _URL.fullmatch(source):
        return str(Path(source).resolve())
    return re.sub(r"^(\w+://)[^/]*@", r"\1", source)


def _curves_folder(checkout: Path, source: str) -> Path:
    """The folder that holds ALGORITHM/TASK.csv: the source itself, or `results` in it."""
    if not checkout.is_dir():
        siblings = [p.name for p in checkout.parent.iterdir() if p.is_dir()] if checkout.parent.is_dir() else []
        match = nearest(checkout.name, siblings)
        hint = f"; did you mean {checkout.parent / match}?" if match else ""
        raise UserError(f"{source}: neither a folder nor a git URL{hint}")
    for folder in (checkout, checkout / _REPOSITORY_FOLDER):
        if not folder.is_symlink() and any(published_task(path.stem) in TASKS for path in folder.glob("*/*.csv")):
            return folder
    raise UserError(f"{_shown(source)}: no ALGORITHM/TASK.csv of a known task in it, nor in its folder `results`")


def _read_curves(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """The files ALGORITHM/TASK.csv of known tasks by their path, and what was left out; no link is followed."""
    contents: dict[str, bytes] = {}
    problems = []
    for algorithm in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if algorithm.is_symlink():
            problems.append(f"{algorithm.name}: a link, left out")
            continue
        for path in sorted(algorithm.glob("*.csv")) if algorithm.is_dir() else []:
            name = f"{algorithm.name}/{path.name}"
            if published_task(path.stem) not in TASKS:
                problems.append(f"{name.removesuffix('.csv')}: unknown task, left out")
            elif not stat.S_ISREG(path.lstat().st_mode):
                problems.append(f"{name.removesuffix('.csv')}: not a plain file, left out")
            else:
                try:
                    contents[name] = path.read_bytes()
                except OSError as error:
                    raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return contents, problems


def _held(folder: Path) -> dict[str, bytes] | None:
    """The curves of an import; None where the folder is none."""
    if not (folder / RECORD).is_file():
        return None
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*.csv")}


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RECORD}: cannot be read ({error}); remove {folder} to import anew") from error
    return dict(record)


def _commit(curves: Path, checkout: Path) -> str | None:
    """The commit that curves were taken from, where they lie in a checked-out repository."""

    def git(*words: str) -> str | None:
        command = ["git", "-c", "core.fsmonitor=false", "-C", str(curves), *words]  # runs no program of the repository
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    # A folder of curves may also lie, unversioned, somewhere in another project's repository.
    if not top or Path(top).resolve() not in (curves.resolve(), checkout.resolve(), curves.resolve().parent):
        return None
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", ".")
    return f"{commit}, with local changes" if commit and changed else commit


def _show(imported: Imported) -> None:
    """Print what there is of each algorithm, and how much is amiss."""
    from rich.console import Console
    from rich.table import Table

    record, console = imported.record, Console(highlight=False, markup=False, emoji=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("algorithm", no_wrap=True)
    for column in ("tasks", "seeds", "environment steps"):
        table.add_column(column, justify="right")
    for name, held in record["algorithms"].items():
        table.add_row(name, *(f"{held[key]:,}" for key in ("tasks", "seeds", "env_steps")))
    console.print(table)
    console.print(f"{imported.folder}: {'imported' if imported.fresh else 'already imported'}", soft_wrap=True)
    if record["problems"]:
        by_algorithm = Counter(re.split("[/:]", problem)[0] for problem in record["problems"])
        listed = ", ".join(f"{name} {count}" for name, count in by_algorithm.items())
        amiss = counted(len(record["problems"]), "remark")
        console.print(f"{amiss} on what is amiss ({listed}): {imported.folder / RECORD}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.reference_import", description="Keep published curves.")
    parser.add_argument("source", help="folder of ALGORITHM/TASK.csv, a checked-out repository, or its git URL")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make, RESULTS/reference/NAME")
    options = parser.parse_args(arguments)
    try:
        _show(import_reference(options.source, options.output))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
