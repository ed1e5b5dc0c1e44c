"""What a report was made from: the run folders and published curves, each file with its hash.

The record stands in report.json, so that `tdmpc2 sweep verify` can tell whether every number of the report still has
the run folder that it came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tdmpc2
from analysis.reference import published_task
from analysis.study import Study
from tdmpc2.training.provenance import describe_checkout, file_hash

RUN_FILES = ("config.yaml", "eval.csv", "train.csv", "evaluations.csv", "embeddings.csv", "dataset.json", "tasks.json")
"""What the notebooks read of a run's folder, beside its status and the checkpoint's embeddings."""
SWEEP_FILES = ("plan.json", "failures.json", "tasks.json")
CHECKPOINT = "checkpoint/latest.pt"
WITH_EMBEDDINGS = ("multi", "finetuned")
"""Kinds of runs whose checkpoint the report reads."""


def read_sources(study: Study, output: Path) -> dict[str, Any]:
    """The sources of a report on a study, as they are now.

    Args:
        study: what the report is on.
        output: the report's folder.

    Returns:
        made (UTC), program (version and commit), `sweeps` and `runs` (each with its folder, as `path_from` says, and
        its files' sizes and hashes; runs by the names that the tables have, with their state and settings' hash), and
        `published`, the folder of published curves and their files' hashes, None where there are none.
    """
    checkout, _ = describe_checkout(Path(tdmpc2.__file__).resolve().parent)
    program = {name: checkout[name] for name in ("commit", "changed", "unknown") if name in checkout}
    sweeps = [
        {
            "sweep": sweep.name,
            "folder": path_from(output, sweep.folder, sweep.folder),
            "files": _files(sweep.folder, SWEEP_FILES),
        }
        for sweep in study.sweeps
    ]
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "program": {"tdmpc2": tdmpc2.__version__, **program},
        "sweeps": sweeps,
        "runs": [_run(row, study, output) for row in study.runs.to_dict("records")],
        "published": _published(study),
    }


def changed_sources(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of the runs whose files are others in the second of two records of the same study."""
    files = {run["run"]: run["files"] for run in before["runs"]}
    return [run["run"] for run in after["runs"] if run["files"] != files[run["run"]]]


def path_from(output: Path, folder: Path, sweep: Path) -> str:
    """How a report names a folder: relative to itself where both lie below one results folder, which may be moved.

    Args:
        output: the report's folder.
        folder: what to name, in the sweep's folder.
        sweep: the sweep's folder, below that of all results.
    """
    output, folder = output.resolve(), folder.resolve()
    return os.path.relpath(folder, output) if output.is_relative_to(sweep.resolve().parent) else str(folder)


def checkpoint_contents(path: Path) -> str:
    """A hash of a checkpoint's contents from the checksums in its table of contents: a large file need not be read.

    Raises:
        OSError: it cannot be read.
        zipfile.BadZipFile: it is none, or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        listed = [(entry.filename.partition("/")[2], entry.file_size, entry.CRC) for entry in archive.infolist()]
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def _run(row: Mapping[Any, Any], study: Study, output: Path) -> dict[str, Any]:
    folder = Path(str(row["folder"]))
    sweep = next(sweep.folder for sweep in study.sweeps if sweep.name == row["sweep"])
    files = _files(folder, RUN_FILES)
    checkpoint = folder / CHECKPOINT
    if row["kind"] in WITH_EMBEDDINGS and checkpoint.is_file():
        try:
            contents = checkpoint_contents(checkpoint)
        except (OSError, zipfile.BadZipFile):
            contents = "unreadable"  # the notebook says so too
        files[CHECKPOINT] = {"bytes": checkpoint.stat().st_size, "contents": contents}
    return {
        "sweep": row["sweep"],
        "run": row["run"],
        "folder": path_from(output, folder, sweep),
        "state": row["state"],
        "digest": _digest(folder),
        "files": files,
    }


def _digest(folder: Path) -> str:
    """The hash of a run's settings by its status; "" where it has none that can be read."""
    try:
        return str(json.loads((folder / "status.json").read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _files(folder: Path, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    paths = {name: folder / name for name in names if (folder / name).is_file()}
    return {name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for name, path in paths.items()}


def _published(study: Study) -> dict[str, Any] | None:
    if study.reference is None:
        return None
    folder = study.reference.folder.resolve()
    used = [path for path in sorted(folder.glob("*/*.csv")) if published_task(path.stem) in study.tasks]
    return {
        "folder": str(folder),
        "files": {path.relative_to(folder).as_posix(): {"sha256": file_hash(path)} for path in used},
    }
