"""Everything one run has left in its folder, read for looking at it closely."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.results import SERIES, load_training
from analysis.runs import axis_of
from analysis.study import Study
from analysis.tables import counted, read_csv_files
from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASKS, Task, expand_tasks
from tdmpc2.training.folder import RunFolder

EPISODE_COLUMNS = ("episode", "episode_length", "return", "success", "terminated")
"""Columns of train.csv that describe the episode that ended."""
CLOCK_COLUMNS = ("step", "env_steps", "agent_steps", "updates", "seconds", "task", "source")
"""Columns of a table of training that say when a row was written."""
EVALUATION_COLUMNS = (
    "step", "updates", "task", "mpc", "seed", "episodes", "return", "return_std", "success", "value", "std", "score",
    "source",
)  # fmt: skip
"""Columns of `RunRecord.evaluations`."""
LOG_TAIL = 15
"""Lines of run.log that are shown."""


@dataclass(frozen=True)
class RunRecord:
    """One run of a study."""

    name: str
    """As the study names it: RUN, or SWEEP/RUN where there are several sweeps."""
    folder: Path
    """The run's folder; it may not be there."""
    row: Mapping[str, Any]
    """The run's row of `Study.runs`."""
    config: Config | None
    """Its settings; None where they cannot be read."""
    status: Mapping[str, Any]
    """Content of status.json; empty where it cannot be read."""
    training: pd.DataFrame
    """Rows of train.csv: step (on the run's axis), updates, seconds, and all that was logged."""
    evaluations: pd.DataFrame
    """Rows of eval.csv and evaluations.csv, columns `EVALUATION_COLUMNS`: step (on the run's axis), mpc (whether the
    agent planned), value, std (sample standard deviation over the episodes) and score by the task's own metric."""
    problems: tuple[str, ...]
    """What could not be read."""

    @property
    def axis(self) -> str:
        """The column on the run's axis: env_steps, or updates where it learned from data alone."""
        return axis_of(str(self.row["kind"]))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Its tasks, by its settings, by the sweep's plan or, where neither can be read, by its evaluations."""
        if self.config is not None:
            return self.config.tasks
        planned = str(self.row["task"])
        return expand_tasks(planned) if planned else tuple(self.evaluations["task"].unique())

    @property
    def logged(self) -> pd.DataFrame:
        """The evaluations that were made while training: those of eval.csv."""
        return self.evaluations[self.evaluations["source"] == "eval.csv"]


def read_run(study: Study, name: str) -> RunRecord:
    """Read a run's folder; what is missing or damaged is told in `problems`, and the rest is kept.

    Args:
        study: a loaded study.
        name: one of the names in `study.runs`.
    """
    found = study.runs[study.runs["run"] == name].iloc[0]
    row = {str(column): value for column, value in found.items()}
    folder, axis = Path(str(row["folder"])), axis_of(str(row["kind"]))
    config, problems = None, []
    try:
        config = RunFolder(folder).read_config() if folder.is_dir() else None
    except UserError as error:
        problems.append(str(error))
    status = _read_status(folder / "status.json")
    training, faults = _read_training(folder / "train.csv", axis)
    problems += faults
    evaluations, faults = _read_evaluations(folder, axis, config)
    problems += faults
    return RunRecord(name, folder, row, config, status, training, evaluations, tuple(problems))


def _read_status(path: Path) -> Mapping[str, Any]:
    """status.json; what is wrong with it stands among the reasons of the run's row already."""
    try:
        status = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _read_training(path: Path, axis: str) -> tuple[pd.DataFrame, list[str]]:
    rows, faults = read_csv_files([path], required=["updates"], text=["task"])
    if axis not in rows:
        rows[axis] = np.nan
    rows = rows.assign(step=rows[axis].astype(float))
    if "seconds" not in rows:
        rows["seconds"] = np.nan
    known = rows[np.isfinite(rows["step"])].reset_index(drop=True)
    problems = [fault for fault in faults.get(0, []) if not fault.endswith(": missing")]
    if len(known) < len(rows):
        problems.append(f"train.csv: {counted(len(rows) - len(known), 'row')} without {axis} left out")
    return known, problems


def _read_evaluations(folder: Path, axis: str, config: Config | None) -> tuple[pd.DataFrame, list[str]]:
    names = ["eval.csv", "evaluations.csv"]
    paths = [folder / name for name in names]
    rows, faults = read_csv_files(paths, required=["task"], text=["task", "mpc", "video"])
    problems = [fault for index in sorted(faults) for fault in faults[index] if not fault.endswith(": missing")]
    for column in ("updates", "seed", "episodes", "return", "return_std", "success", axis):
        if column not in rows:
            rows[column] = np.nan
    if "mpc" not in rows:
        rows["mpc"] = None
    rows["source"] = np.array(names, dtype=object)[rows["source"].to_numpy(dtype=int)]
    rows["step"] = rows[axis].astype(float)
    training = rows["source"] == "eval.csv"  # evaluates as the run acts, and from the run's own seed
    planned = rows["mpc"].astype(object).map({"True": True, "False": False})
    rows["mpc"] = planned.mask(training, None if config is None else config.mpc)
    rows["seed"] = rows["seed"].mask(training, np.nan if config is None else float(config.seed))

    of_known = rows["task"].isin(list(TASKS)) & np.isfinite(rows["step"])
    unclear = of_known & ~training & rows["mpc"].isna()
    if unclear.any():
        problems.append(f"evaluations.csv: {counted(int(unclear.sum()), 'row')} without mpc left out")
    rows = rows[of_known & ~unclear].reset_index(drop=True)
    tasks = [TASKS[name] for name in rows["task"]]
    success = np.array([task.metric == "success" for task in tasks], dtype=bool)
    rows["value"] = rows["success"].where(success, rows["return"]).astype(float)
    rows["std"] = _success_std(rows["success"], rows["episodes"]).where(success, rows["return_std"]).astype(float)
    scores = [task.score(value) for task, value in zip(tasks, rows["value"], strict=True)]
    rows["score"] = np.array(scores, dtype=float)
    return rows[list(EVALUATION_COLUMNS)], problems


def _success_std(rate: pd.Series, episodes: pd.Series) -> pd.Series:
    """Sample standard deviation of n outcomes of which a share p is 1: sqrt(p (1 - p) n / (n - 1)); NaN for one."""
    n = episodes.where(episodes > 1)
    return (rate * (1 - rate) * n / (n - 1)) ** 0.5


def changed_settings(config: Config) -> pd.DataFrame:
    """Settings that differ from their defaults: setting, value, default. The task has no default and is left out, as
    are the names of folders."""
    rows = [
        (field.name, getattr(config, field.name), field.default)
        for field in dataclasses.fields(config)
        if field.name not in ("task", "results_dir", "exp_name", "label")
        and getattr(config, field.name) != field.default
    ]
    return pd.DataFrame(rows, columns=pd.Index(["setting", "value", "default"]), dtype=object)


def logged_metrics(training: pd.DataFrame) -> dict[str, list[str]]:
    """The metrics of updates that have a value, by subject: losses, gradients, policy and scale (all others)."""
    found: dict[str, list[str]] = {"losses": [], "gradients": [], "policy and scale": []}
    for column in training:
        name = str(column)
        if name in (*CLOCK_COLUMNS, *EPISODE_COLUMNS) or training[name].isna().all():
            continue
        subject = "losses" if name.endswith("_loss") else "gradients" if name.endswith("grad_norm") else None
        found[subject or "policy and scale"].append(name)
    return found


def smoothing_window(rows: int, asked: int | None) -> int:
    """Rows that a smoothed curve averages over; None: a twentieth of the rows, 1 (nothing) below 40 of them.

    Raises:
        UserError: a window that is not a whole number of at least 1 row.
    """
    if asked is None:
        return max(1, rows // 20)
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise UserError(f"smoothing: {asked!r} is not a number of rows; the smallest is 1, which smooths nothing")
    return asked


def smoothed(training: pd.DataFrame, columns: Sequence[str], window: int) -> pd.DataFrame:
    """Centred running means of columns over so many rows with a finite value; `step` as it was."""
    finite = training[list(columns)].astype(float).replace([np.inf, -np.inf], np.nan)
    means = {name: finite[name].dropna().rolling(window, center=True, min_periods=1).mean() for name in columns}
    return pd.DataFrame({"step": training["step"], **means})


def speeds(training: pd.DataFrame) -> pd.DataFrame:
    """Updates a second between one row with updates and the next: step (of the later one), speed.

    The seconds are the run's wall clock, so that evaluations and checkpoints in between count.
    """
    rows = training[["step", "updates", "seconds"]].dropna()
    updates, seconds = rows["updates"].diff(), rows["seconds"].diff()
    moving = (updates > 0) & (seconds > 0)
    return pd.DataFrame({"step": rows["step"], "speed": updates / seconds})[moving].reset_index(drop=True)


def mean_scores(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Mean normalised score over the tasks at each step at which all of them were evaluated: step, updates, score."""
    once = evaluations.drop_duplicates(["task", "step"], keep="last").dropna(subset=["score"])
    by_step = once.groupby("step").agg(updates=("updates", "max"), score=("score", "mean"), tasks=("task", "nunique"))
    return by_step[by_step["tasks"] == once["task"].nunique()].drop(columns="tasks").reset_index()


def random_score(task: Task) -> float:
    """Normalised score of a random policy; 0 where success counts, NaN where the registry does not know it."""
    if task.metric == "success":
        return task.score(0.0)
    return float("nan") if task.random_return is None else task.score(task.random_return)


def others_training(study: Study, record: RunRecord) -> pd.DataFrame:
    """Training logs of the other runs of the same sweep and series (algorithm, kind, size, task set), thinned.

    Returns:
        As `results.load_training`; no rows where there is no other run, or none that learns yet.
    """
    sweep = next(sweep for sweep in study.sweeps if sweep.name == record.row["sweep"])
    same = pd.Series(True, index=sweep.runs.index)
    for name in SERIES:
        own = record.row[name]
        same &= sweep.runs[name].isna() if pd.isna(own) else sweep.runs[name].eq(own).fillna(False).astype(bool)
    others = sweep.runs[same & (sweep.runs["run"] != record.folder.name)].reset_index(drop=True)
    if others.empty:
        return pd.DataFrame(columns=pd.Index(["run", "env_steps", "updates", *SERIES]))
    return load_training(dataclasses.replace(sweep, runs=others))


def log_tail(folder: Path, lines: int = LOG_TAIL) -> list[str]:
    """The last lines of run.log; none where there is none."""
    path = folder / "run.log"
    if not path.is_file():
        return []
    written = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in written if line.strip()][-lines:]
