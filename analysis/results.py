"""Sweep folders as tidy tables: what was measured, and what became of every run.

Nothing is dropped silently: a run that is missing, failed or cannot be read stands in the table of runs with the
reason, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.runs import OFFLINE_KINDS, axis_of, describe_run, name_task_sets, read_failures, read_plan
from analysis.tables import counted, read_csv_files
from tdmpc2.errors import UserError, nearest
from tdmpc2.own_tasks import GYM, RECORD, enter_record, read_record
from tdmpc2.tasks import OWN, TASKS, Task

TABLE_COLUMNS = [
    "suite", "domain", "task", "algorithm", "size", "kind", "task_set", "seed", "env_steps", "updates", "metric",
    "value", "episodes", "score", "run",
]  # fmt: skip
"""Columns of a tidy table of evaluations; see `SweepResults.table`."""
TEXT_COLUMNS = ["suite", "domain", "task", "algorithm", "kind", "task_set", "metric", "run"]
"""The columns among them that hold text; none of it is ever missing."""
RUN_COLUMNS = [
    "run", "planned", "task", "data", "algorithm", "kind", "size", "seed", "state", "env_steps", "total_env_steps",
    "updates", "total_updates", "progress", "seconds", "device", "hardware", "version", "task_set", "evaluations",
    "reason",
]  # fmt: skip
"""Columns of a table of runs; see `SweepResults.runs`."""
SERIES = ["algorithm", "kind", "size", "task_set"]
"""What tells one line of a figure from another."""
LOG_COLUMNS = ["env_steps", "agent_steps", "updates", "seconds", "task"]
"""Columns that eval.csv and train.csv share; an offline run's train.csv has not all of them."""
EPISODE_COLUMNS = ["episode", "episode_length", "return", "success", "terminated"]
"""Columns of train.csv that describe the episode; those after them are losses."""
_NAMES_SHOWN = 4


@dataclass(frozen=True)
class SweepResults:
    """Everything one sweep has produced so far."""

    name: str
    """Name of the sweep."""
    folder: Path
    """Its folder."""
    table: pd.DataFrame
    """Evaluations, one row a run, task, step and metric, columns `TABLE_COLUMNS`. `kind` is single, multi (one agent
    learned many tasks from a data set), offline (one task, from a data set) or finetuned. `env_steps` are environment
    steps, missing where an agent takes none (see `runs.OFFLINE_KINDS`): `updates` are the axis then. `task_set` names
    what an offline agent learned ("" for others). `value` is the mean over the evaluation's `episodes` of `metric`
    (return or success); `score` is the normalised score of 0 to 100, NaN where the metric is not the one the task is
    scored by, and in own tasks without a score range."""
    runs: pd.DataFrame
    """One row a run, planned or found: run, planned, task (as in its settings, perhaps several), task_set, data (name
    of the data set it learns from, "" for none or not known yet), algorithm, kind, size (millions of parameters), seed,
    state (one of `runs.STATES`), env_steps, total_env_steps, updates, total_updates, progress (0 to 1, on the run's own
    axis), seconds, device, hardware, version, evaluations, reason."""
    notes: tuple[str, ...]
    """Faults of the sweep as a whole, e.g. a plan that cannot be read."""


def check_sweep_folder(folder: Path) -> None:
    """Refuse a folder that no report can be made of.

    Raises:
        UserError: it does not exist (the nearest existing name is given), or no run is planned or found in it.
    """
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        match = nearest(folder.name, siblings)
        hint = f"; did you mean {folder.parent / match}?" if match else ""
        raise UserError(f"no sweep folder {folder}{hint}")
    if not _run_names(folder) and not read_plan(folder)[0]:
        raise UserError(f"{folder}: no runs in it (neither plan.json nor runs/RUN folders)")


def load_sweep(folder: Path | str, now: float | None = None) -> SweepResults:
    """Read one sweep's folder, `results/NAME`.

    Args:
        folder: the sweep's folder, with `plan.json` (optional) and `runs/RUN/`.
        now: unix time, for remarks on runs that have gone silent; default: the clock.

    Raises:
        UserError: there is no such folder, or no run is planned or found in it.
    """
    folder = Path(folder)
    check_sweep_folder(folder)
    now = time.time() if now is None else now
    own_tasks, amiss = _enter_own_tasks(folder)  # before anything looks a task up
    plan, notes = read_plan(folder)
    notes += amiss
    failures = read_failures(folder)
    names = list(dict.fromkeys([*plan, *_run_names(folder)]))
    paths = [folder / "runs" / name for name in names]
    records = [describe_run(n, p, plan, failures.get(n, ""), now) for n, p in zip(names, paths, strict=True)]
    task_sets = name_task_sets(record["tasks"] for record in records if record["kind"] in OFFLINE_KINDS)
    for record in records:
        record["task_set"] = task_sets[record["tasks"]] if record["kind"] in OFFLINE_KINDS else ""

    unscored = [task for task in own_tasks if TASKS[task].score_range is None]
    if unscored:
        notes.append(
            f"no normalised score of {_some(unscored)}, for which no score range was registered: their values are "
            "shown, and no aggregate holds them"
        )

    rows, problems = _read_evaluations(paths, records)
    evaluations = rows.groupby("source")["step"].nunique()
    for index, record in enumerate(records):
        record["evaluations"] = int(evaluations.get(index, 0))
        reasons = [*record.pop("reasons"), *_worth_telling(problems.get(index, []), record["state"])]
        record["reason"] = "; ".join(reasons)
    runs = pd.DataFrame(records)[RUN_COLUMNS].astype({"size": "Int64", "seed": "Int64", "planned": bool})
    return SweepResults(folder.resolve().name, folder, _tidy(rows, runs), runs, tuple(notes))


def _enter_own_tasks(folder: Path) -> tuple[list[str], list[str]]:
    """Enter the sweep's own tasks, of which its folders tell, in `TASKS`: their names, and what is wrong with them."""
    names: dict[str, None] = {}
    notes = []
    for file in [folder / RECORD, *(folder / "runs" / name / RECORD for name in _run_names(folder))]:
        try:
            notes += [f"{file.parent.name}: {message}" for message in enter_record(file)]
            names.update((task.name, None) for task in read_record(file))
        except UserError as error:
            notes.append(str(error))
    return list(names), notes


def load_training(sweep: SweepResults, max_rows: int = 300) -> pd.DataFrame:
    """The runs' training logs, thinned: for looking at losses, not for scores.

    Args:
        sweep: a loaded sweep.
        max_rows: rows kept of a run, evenly spaced.

    Returns:
        env_steps (NaN for runs that take none), updates, a column for each loss, run, algorithm, kind, size, task_set,
        seed; rows from when learning starts. Runs without a readable train.csv, or that do not learn yet, have none.
    """
    paths = [sweep.folder / "runs" / name for name in sweep.runs["run"]]
    rows, _ = read_csv_files(
        [path / "train.csv" for path in paths], required=["updates"], text=["task"], max_rows=max_rows
    )
    losses = [column for column in rows if column not in (*LOG_COLUMNS, *EPISODE_COLUMNS, "source")]
    if "env_steps" not in rows:
        rows["env_steps"] = np.nan
    learning = rows[["source", "env_steps", "updates", *losses]].dropna(how="all", subset=losses)
    known = learning.join(sweep.runs[["run", *SERIES, "seed"]], on="source").drop(columns="source")
    known.loc[is_offline(known), "env_steps"] = np.nan
    return known[is_offline(known) | known["env_steps"].notna()].reset_index(drop=True)


def is_offline(table: pd.DataFrame) -> pd.Series:
    """Whether each row of a table with `kind` is of an agent that learned from data alone: its axis is updates."""
    return table["kind"].isin(OFFLINE_KINDS)


def steps_on_axis(table: pd.DataFrame) -> pd.Series:
    """Each row's place on its own kind's axis: updates or environment steps."""
    return table["updates"].where(is_offline(table), table["env_steps"])


def registry_table() -> pd.DataFrame:
    """The task registry by task name: suite, domain, task_metric, score_low, score_scale, random_return.

    `suite` is the benchmark suite, `own` for people's own tasks; `domain` is the embodiment in DMControl (walker,
    cheetah, ...), the name's first part of own tasks, and the suite itself elsewhere. The normalised score of a value
    of the task's metric is (value - score_low) * score_scale: NaN in own tasks without a score range.
    """
    rows = [
        (
            task.name,
            task.domain,
            _domain(task),
            task.metric,
            task.score_low,
            task.score_scale,
            np.nan if task.random_return is None else task.random_return,
        )
        for task in TASKS.values()
    ]
    columns = ["task", "suite", "domain", "task_metric", "score_low", "score_scale", "random_return"]
    return pd.DataFrame(rows, columns=pd.Index(columns)).set_index("task")


def _domain(task: Task) -> str:
    if task.domain == OWN:
        return task.name.removeprefix(GYM).split("-")[0]
    return task.name.split("-")[0] if task.domain == "dmcontrol" else task.domain


def add_registry(table: pd.DataFrame) -> pd.DataFrame:
    """Complete a table of task, metric, value by suite, domain and normalised score, in `TABLE_COLUMNS`.

    Rows of tasks that the registry does not know are left out; callers report them. Columns that describe offline
    runs may be absent: then there is none in the table.
    """
    table = table[table["task"].isin(list(TASKS))].join(registry_table(), on="task")
    scores = (table["value"] - table["score_low"]) * table["score_scale"]
    table["score"] = scores.where(table["metric"] == table["task_metric"])
    for column, absent in (("task_set", ""), ("updates", pd.NA), ("episodes", pd.NA)):
        if column not in table:
            table[column] = absent
    whole = dict.fromkeys(("size", "env_steps", "updates", "episodes"), "Int64")
    return table[TABLE_COLUMNS].astype({**whole, **dict.fromkeys(TEXT_COLUMNS, "str")}).reset_index(drop=True)


def _read_evaluations(
    paths: Sequence[Path], records: Sequence[Mapping[str, Any]]
) -> tuple[pd.DataFrame, dict[int, list[str]]]:
    """The rows of all runs' eval.csv that can be used, with `step` on the run's own axis, and what is amiss by run."""
    rows, problems = read_csv_files(
        [path / "eval.csv" for path in paths],
        required=["env_steps", "updates", "task", "return"],
        text=["task"],
        blank=["env_steps", "updates"],
    )

    def report(index: Any, message: str) -> None:
        problems.setdefault(int(index), []).append(f"eval.csv: {message}")

    for column in ("env_steps", "updates"):
        rows[column] = rows[column].astype(float).where(rows[column].astype(float) % 1 == 0)
    by_updates = np.array([axis_of(record["kind"]) == "updates" for record in records], dtype=bool)
    offline = by_updates[rows["source"].to_numpy(dtype=int)]
    rows["step"] = rows["updates"].where(offline, rows["env_steps"])
    rows["env_steps"] = rows["env_steps"].mask(offline)  # no environment step is taken
    for index, count in rows.loc[rows["step"].isna(), "source"].value_counts().items():
        report(index, f"{counted(count, 'unreadable row')} left out")
    rows = rows[rows["step"].notna()]

    repeated = rows.duplicated(["source", "task", "step"], keep="last")
    for index, count in rows.loc[repeated, "source"].value_counts().items():
        report(index, f"{counted(count, 'repeated row')}, the last of each kept")
    rows = rows[~repeated]

    strange: dict[tuple[int, bool], list[str]] = {}
    for index, task in sorted(rows[["source", "task"]].astype({"task": str}).drop_duplicates().to_numpy().tolist()):
        own = records[index]["tasks"]
        if task not in TASKS or (own and task not in own):
            strange.setdefault((index, task in TASKS), []).append(task)
    for (index, known), tasks in strange.items():
        what = f"rows of {_some(tasks)}, not among the run's tasks," if known else f"unknown task {_some(tasks)}, rows"
        report(index, f"{what} left out")
    if strange:
        left_out = pd.MultiIndex.from_tuples([(index, task) for (index, _), tasks in strange.items() for task in tasks])
        rows = rows[~pd.MultiIndex.from_frame(rows[["source", "task"]].astype({"task": str})).isin(left_out)]
    offline_rows = rows[by_updates[rows["source"].to_numpy(dtype=int)]]
    for index, group in _with_gaps(offline_rows, records).groupby("source"):
        record = records[int(str(index))]
        for message in _missing_tasks(group, record["tasks"], running=record["state"] == "running"):
            report(index, message)
    return rows.reset_index(drop=True), problems


def _with_gaps(rows: pd.DataFrame, records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of runs of which a task was never evaluated, or not at every step: of a whole sweep mostly none."""
    if rows.empty:
        return rows
    by_run = rows.groupby("source")
    found, evaluations = by_run["task"].nunique(), by_run["step"].nunique()
    planned = np.array([len(records[int(str(index))]["tasks"]) for index in found.index])
    # Each task stands once at a step: a run without gaps has tasks x steps rows.
    gaps = (found < planned) | (by_run.size() < found * evaluations)
    return rows[rows["source"].isin(found.index[gaps])]


def _missing_tasks(rows: pd.DataFrame, tasks: Sequence[str], running: bool) -> list[str]:
    """Which of a run's tasks its evaluations lack; the last evaluation of a running run may not be whole yet."""
    found = set(rows["task"])
    never = [task for task in tasks if task not in found]
    messages = [f"no evaluation of {_some(never)}"] if never else []
    per_step = rows.groupby("step")["task"].nunique()
    short = per_step[per_step < len(found)]
    if running:
        short = short[short.index != per_step.index.max()]
    if len(short):
        last = short.index.max()
        lacking = sorted(found - set(rows.loc[rows["step"] == last, "task"]))
        which = f"{counted(len(short), 'evaluation')} without all tasks" if len(short) > 1 else "an evaluation"
        messages.append(
            f"{which}{', the last' if len(short) > 1 else ''} at {int(last):,} updates lacks {_some(lacking)}"
        )
    return messages


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _tidy(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Evaluation rows of known runs, one row a metric."""
    joined = rows.join(runs[["run", *SERIES, "seed"]], on="source")
    joined = joined[joined["seed"].notna()]
    for column in ("success", "episodes"):
        if column not in joined:
            joined[column] = np.nan
    # A damaged count of episodes is no reason to lose the score.
    joined["episodes"] = joined["episodes"].where(joined["episodes"] % 1 == 0)
    keys = ["task", "run", *SERIES, "seed", "env_steps", "updates", "episodes"]
    table = joined.melt(keys, ["return", "success"], var_name="metric", value_name="value")
    table = add_registry(table[np.isfinite(table["value"].astype(float))])
    order = table.assign(step=steps_on_axis(table))
    return order.sort_values(["task", "run", "metric", "step"], kind="stable", ignore_index=True)[TABLE_COLUMNS]


def _worth_telling(faults: Sequence[str], state: str) -> list[str]:
    """Faults of eval.csv that are worth telling: a run that did not come to its first evaluation lacks it rightly."""
    if faults == ["eval.csv: missing"] and state not in ("done", "unknown"):
        return ["no evaluation yet"] if state == "running" else []
    return list(faults)


def _run_names(folder: Path) -> list[str]:
    runs = folder / "runs"
    return sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
