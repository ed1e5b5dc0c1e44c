"""Whether a report is as it was written, and whether what it was made from is still there, unchanged.

A report's `report.json` names every file that it wrote and every file that it was made from, each with its hash. So
nothing here needs the code that makes reports.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdmpc2.errors import UserError
from tdmpc2.training.provenance import file_hash

RECORD = "report.json"
METRICS = {"return": "return", "success": "success"}
"""Column of eval.csv by a table's `metric`."""
OLDER = "the report is older than the runs"


@dataclass
class _Findings:
    """What is wrong with a report, and what a person should know about it."""

    wrong: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    moved_on: list[str] = field(default_factory=list)
    """Runs that were not done when the report was made, and have changed since."""


@dataclass(frozen=True)
class _Source:
    """A run that a report was made from."""

    name: str
    """As the report's tables call it."""
    folder: Path
    moved_on: bool


def find_reports(sweep: Path) -> list[Path]:
    """The records of the reports on a sweep: its own, and those on several sweeps that stand beside it."""
    own = sweep / "reports" / RECORD
    others = sorted(path for path in sweep.parent.glob(f"*/reports/{RECORD}") if path != own)
    found = [own] if own.is_file() else []
    for path in others:
        try:
            sources = _read(path).get("sources", [])
            folders = {_resolve(path.parent, each["folder"]) for source in sources for each in source["sweeps"]}
        except (UserError, KeyError, TypeError, AttributeError):
            continue  # another sweep's; told where that one is verified
        if sweep.resolve() in folders:
            found.append(path)
    return found


def verify_report(path: Path, left_out: frozenset[str]) -> tuple[list[str], list[str]]:
    """Check a report.

    Args:
        path: its report.json.
        left_out: what an archive that the sweep was unpacked from left out of run folders.

    Returns:
        what is wrong, each with the file, and what a person should know.
    """
    found = _Findings()
    try:
        record = _read(path)
        if "hashes" not in record or "sources" not in record:
            return [], [f"{path}: was made by an older version, which did not record its sources; make it again"]
        _files(path, record, found)
        for source in record["sources"]:
            runs = _sources(path.parent, source, left_out, found)
            published = {name.removesuffix(".csv") for name in (source["published"] or {}).get("files", {})}
            files = [file for part in source["parts"] for file in record["parts"][part]["files"]]
            for file in sorted({file for file in files if file.endswith(".csv") and (path.parent / file).is_file()}):
                _table(path.parent / file, runs, published, found)
    except UserError as error:
        found.wrong.append(str(error))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        found.wrong.append(f"{path}: damaged ({type(error).__name__}: {error})")
    if found.moved_on:
        names = list(dict.fromkeys(found.moved_on))
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        found.notices.append(f"{OLDER}: {', '.join(names[:4])}{more} went on since; make it again")
    return list(dict.fromkeys(found.wrong)), list(dict.fromkeys(found.notices))


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__})") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: damaged (not a record)")
    return record


def _resolve(report: Path, name: str) -> Path:
    """A folder that a report names, absolute or relative to its own."""
    return Path(os.path.normpath(report.resolve() / name))


def _files(path: Path, record: Mapping[str, Any], found: _Findings) -> None:
    """Compare every file that the report wrote."""
    hashes = record["hashes"]
    named = {*record["files"], *(file for part in record["parts"].values() for file in part["files"])}
    for name in sorted(named):
        file = path.parent / name
        if not file.is_file():
            found.wrong.append(f"{file}: gone")
        elif name not in hashes:
            found.wrong.append(f"{file}: the report was cut short while it was put into place; make it again")
        elif file_hash(file) != hashes[name]:
            found.wrong.append(f"{file}: has changed since the report was made")
    failed = [name for name, part in record["parts"].items() if part["state"] == "failed"]
    if failed:
        found.notices.append(f"pages that failed when it was made: {', '.join(failed)}")


# --- what it was made from


def _sources(report: Path, source: Mapping[str, Any], left_out: frozenset[str], found: _Findings) -> dict[str, _Source]:
    """Compare the runs and published curves that notebooks of a report were made from; returns the runs by name."""
    runs = {}
    for each in source["runs"]:
        folder = _resolve(report, each["folder"])
        open_then = each["state"] != "done" or each["run"] in source["changed"]
        changed = _changed(folder, each["files"], left_out)
        if not folder.is_dir():
            if each["files"]:
                found.wrong.append(f"{folder}: gone; the report at {report} has numbers of this run")
        elif open_then:
            found.moved_on += [each["run"]] if changed or _is_done(folder) else []
        else:
            when = f"since the report at {report} was made from it"
            found.wrong += [f"{folder / name}: {what} {when}" for name, what in changed]
            if _status(folder).get("digest", "") != each["digest"]:
                found.wrong.append(f"{folder / 'status.json'}: is of other settings, or damaged, {when}")
        runs[each["run"]] = _Source(each["run"], folder, open_then)
    for each in source["sweeps"]:
        folder = _resolve(report, each["folder"])
        known = {run.folder for run in runs.values()}
        new = [path.parent.name for path in sorted(folder.glob("runs/*/config.yaml")) if path.parent not in known]
        if folder.is_dir() and new:
            found.notices.append(f"runs of {folder} that the report has not: {', '.join(new[:4])}, {len(new)} in all")
        for name, what in _changed(folder, each["files"], left_out) if folder.is_dir() else ():
            found.notices.append(f"{folder / name}: {what} since the report was made")
    _published(source["published"], found)
    return runs


def _is_done(folder: Path) -> bool:
    return bool(_status(folder).get("state") == "done")


def _status(folder: Path) -> dict[str, Any]:
    """A run's status, of whatever version; empty where there is none that can be read."""
    try:
        return _read(folder / "status.json")
    except UserError:
        return {}  # told with the settings


def _changed(folder: Path, files: Mapping[str, Any], left_out: frozenset[str]) -> list[tuple[str, str]]:
    """Files that are not as they were recorded, and what became of them."""
    changed = []
    for name, then in files.items():
        path = folder / name
        if not path.is_file():
            if name.partition("/")[0] not in left_out:
                changed.append((name, "gone"))
        elif path.stat().st_size != then["bytes"] or not _same_content(path, then):
            changed.append((name, "has changed"))
    return changed


def _same_content(path: Path, then: Mapping[str, Any]) -> bool:
    if "sha256" in then:
        return bool(file_hash(path) == then["sha256"])
    try:
        with zipfile.ZipFile(path) as archive:
            listed = [(entry.filename.partition("/")[2], entry.file_size, entry.CRC) for entry in archive.infolist()]
    except (OSError, zipfile.BadZipFile):
        return bool(then["contents"] == "unreadable")
    return bool(hashlib.sha256(repr(listed).encode()).hexdigest() == then["contents"])


def _published(published: Mapping[str, Any] | None, found: _Findings) -> None:
    if published is None:
        return
    folder = Path(published["folder"])
    if not folder.is_dir():
        found.notices.append(f"the published curves that it was compared with are not here: {folder}")
        return
    for name, then in published["files"].items():
        path = folder / name
        if not path.is_file():
            found.wrong.append(f"{path}: gone; the report shows this published curve")
        elif file_hash(path) != then["sha256"]:
            found.wrong.append(f"{path}: has changed since the report was made from it")


# --- the numbers in its tables


def _table(path: Path, runs: Mapping[str, _Source], published: Iterable[str], found: _Findings) -> None:
    """Compare the rows of a table that name the run that they are of."""
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        columns = set(table.fieldnames or ())
        if "run" not in columns:
            return
        rows = list(table)
    unknown = {row["run"] for row in rows} - runs.keys() - set(published)
    found.wrong += [f"{path}: has numbers of {name!r}, which the report was not made from" for name in sorted(unknown)]
    rows = [row for row in rows if row["run"] in runs and not runs[row["run"]].moved_on]
    if {"metric", "value", "env_steps", "updates", "task"} <= columns:
        evaluations = {name: _evaluations(runs[name].folder) for name in {row["run"] for row in rows}}
        for row in rows:
            key = (row["task"], _whole(row["env_steps"]), _whole(row["updates"]), METRICS.get(row["metric"], ""))
            held = evaluations[row["run"]].get(key)
            if held is None or held != _number(row["value"]):
                where = f"{row['task']} at {row['env_steps'] or 'no'} environment steps, {row['updates']} updates"
                is_there = "no such evaluation" if held is None else f"{held:g}"
                found.wrong.append(
                    f"{path}: {row['metric']} {row['value']} of {row['run']} ({where}), but "
                    f"{runs[row['run']].folder / 'eval.csv'} has {is_there}"
                )
    if {"state", "env_steps", "updates", "seconds", "folder"} <= columns:
        for row in rows:
            status = _status(runs[row["run"]].folder)
            for name in ("env_steps", "updates", "seconds"):
                held = status.get(name)
                if held != _number(row[name]):
                    found.wrong.append(f"{path}: {name} {row[name]} of {row['run']}, but its status.json has {held}")


def _evaluations(folder: Path) -> dict[tuple[str, int | None, int | None, str], float]:
    """The values in a run's eval.csv by task, environment steps, updates and metric."""
    values = {}
    try:
        with (folder / "eval.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for column in METRICS.values():
                    value = _number(row.get(column))
                    if value is not None:
                        key = (row["task"], _whole(row["env_steps"]), _whole(row["updates"]), column)
                        values[key] = value
    except (OSError, UnicodeDecodeError, KeyError):
        return {}  # what is wrong with the file is told with the logs
    return values


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None or number % 1 else int(number)
