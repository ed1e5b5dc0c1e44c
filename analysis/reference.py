"""Published learning curves: folders ALGORITHM/TASK.csv with columns step, reward or success, seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.results import add_registry
from analysis.tables import counted, read_csv_files
from tdmpc2.errors import UserError, nearest
from tdmpc2.tasks import TASKS

VALUE_COLUMNS = {"reward": "return", "success": "success"}
"""Metric by the name of the published files' value column."""


@dataclass(frozen=True)
class Reference:
    """Published curves."""

    folder: Path
    """Where they were read from."""
    table: pd.DataFrame
    """As `SweepResults.table`, with kind `published`, size missing, and run ALGORITHM/FILE."""
    problems: tuple[str, ...]
    """What was not taken as it stands: unknown files, unreadable rows, seeds recorded twice."""


def check_reference_folder(folder: Path) -> None:
    """Refuse a folder without published curves.

    Raises:
        UserError: it does not exist (the nearest existing name is given) or holds no ALGORITHM/TASK.csv.
    """
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        match = nearest(folder.name, siblings)
        raise UserError(f"no reference folder {folder}" + (f"; did you mean {folder.parent / match}?" if match else ""))
    if not _files(folder):
        hint = f"; did you mean {folder.resolve().parent}?" if list(folder.glob("*.csv")) else ""
        raise UserError(f"{folder}: no ALGORITHM/TASK.csv in it{hint}")


def load_reference(folder: Path | str) -> Reference:
    """Read published curves. MyoSuite's files, named myo-hand-TASK, become the tasks myo-TASK.

    A seed that stands twice in a file at the same step is averaged there, and reported.

    Args:
        folder: holds ALGORITHM/TASK.csv with columns step (environment steps), reward or success, seed.

    Raises:
        UserError: as `check_reference_folder`.
    """
    folder = Path(folder)
    check_reference_folder(folder)
    problems: list[str] = []
    paths, tasks = [], []
    for path in _files(folder):
        task = path.stem.replace("myo-hand-", "myo-", 1)
        if task not in TASKS:
            problems.append(f"{path.relative_to(folder)}: unknown task, left out")
            continue
        paths.append(path)
        tasks.append(task)
    names = [f"{path.parent.name}/{path.stem}" for path in paths]
    rows, faults = read_csv_files(paths, required=["step", "seed"], appended=False)
    for index, messages in faults.items():
        problems.extend(f"{paths[index].parent.name}/{message}" for message in messages)

    present = [column for column in VALUE_COLUMNS if column in rows]
    table = rows.melt(["source", "step", "seed"], present, var_name="metric", value_name="value")
    table = table[np.isfinite(table["value"].astype(float))]
    empty = sorted(set(range(len(paths))) - set(table["source"]) - faults.keys())
    problems.extend(f"{names[index]}: no reward or success in it" for index in empty)
    table["metric"] = table["metric"].map(VALUE_COLUMNS)
    keys = ["source", "step", "seed", "metric"]
    repeated = table.loc[table.duplicated(keys), "source"].value_counts().sort_index()
    problems.extend(
        f"{names[int(str(source))]}: seed and step repeated in {counted(count, 'row')}; averaged"
        for source, count in repeated.items()
    )
    table = table.groupby(keys)["value"].mean().reset_index()

    source = table["source"].to_numpy(dtype=int)
    table = table.assign(
        env_steps=table["step"].astype(np.int64),
        seed=table["seed"].astype("Int64"),
        run=np.array(names, dtype=object)[source],
        task=np.array(tasks, dtype=object)[source],
        algorithm=np.array([path.parent.name for path in paths], dtype=object)[source],
        kind="published",
        size=pd.array([pd.NA] * len(table), dtype="Int64"),
    )
    return Reference(folder, add_registry(table), tuple(problems))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.csv"))
