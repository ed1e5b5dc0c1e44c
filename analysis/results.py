"""Sweep folders as tidy tables: what was measured, and what became of every run.

Nothing is dropped silently: a run that is missing, failed or cannot be read stands in the table of runs with the
reason, and the others go on.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.tables import counted, read_csv_files
from tdmpc2.errors import UserError, nearest
from tdmpc2.tasks import TASKS, expand_tasks
from tdmpc2.training.folder import RunFolder

ALGORITHM = "tdmpc2"
"""Name of this project's algorithm, as in the folders of published curves; pixel runs are `tdmpc2-pixels`."""
TABLE_COLUMNS = [
    "suite", "domain", "task", "algorithm", "size", "kind", "seed", "env_steps", "metric", "value", "score", "run",
]  # fmt: skip
"""Columns of a tidy table of evaluations; see `SweepResults.table`."""
STATES = ("done", "running", "interrupted", "failed", "not started", "unknown")
"""States of a run; `unknown`: its folder has no readable status."""
LOG_COLUMNS = ["env_steps", "agent_steps", "updates", "seconds", "task"]
"""Columns that eval.csv and train.csv share."""
EPISODE_COLUMNS = ["episode", "episode_length", "return", "success", "terminated"]
"""Columns of train.csv that describe the episode; those after them are losses."""
SILENT_AFTER = 3600.0
"""Seconds without a sign of life after which a running run is remarked upon."""

# The C parser reads a config ten times faster; pyyaml may have been built without it.
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class SweepResults:
    """Everything one sweep has produced so far."""

    name: str
    """Name of the sweep."""
    folder: Path
    """Its folder."""
    table: pd.DataFrame
    """Evaluations, one row a run, task, step and metric, columns `TABLE_COLUMNS`. `env_steps` are environment steps;
    `value` is the mean over the evaluation's episodes of `metric` (return or success); `score` is the normalised score
    of 0 to 100, NaN where the metric is not the one the task is scored by; `kind` is single or multi(-task)."""
    runs: pd.DataFrame
    """One row a run, planned or found: run, planned, task, algorithm, kind, size (millions of parameters), seed, state
    (one of `STATES`), env_steps, total_env_steps, progress (0 to 1), seconds, device, hardware, version, evaluations,
    reason."""
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
    if not _run_names(folder) and not _read_plan(folder)[0]:
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
    plan, notes = _read_plan(folder)
    failures = _read_failures(folder)
    names = list(dict.fromkeys([*plan, *_run_names(folder)]))
    paths = [folder / "runs" / name for name in names]
    rows, problems = read_csv_files(
        [path / "eval.csv" for path in paths],
        required=["env_steps", "task", "return"],
        text=["task"],
    )
    rows, doubled = _drop_repeated(rows)
    for index, count in doubled.items():
        problems.setdefault(index, []).append(f"eval.csv: {counted(count, 'repeated row')}, the last of each kept")
    evaluations = rows["source"].value_counts()
    strange = rows[~rows["task"].isin(list(TASKS))]
    unknown = {int(str(index)): set(tasks.astype(str)) for index, tasks in strange.groupby("source")["task"]}

    records = []
    for index, (name, path) in enumerate(zip(names, paths, strict=True)):
        record = _describe_run(name, path, plan, failures.get(name, ""), now)
        record["evaluations"] = int(evaluations.get(index, 0))
        reasons = [*record.pop("reasons"), *_eval_faults(problems.get(index, []), record["state"])]
        if index in unknown:
            reasons.append(f"eval.csv: unknown task {', '.join(sorted(unknown[index]))}, rows left out")
        record["reason"] = "; ".join(reasons)
        records.append(record)
    runs = pd.DataFrame(records).astype({"size": "Int64", "seed": "Int64", "planned": bool})
    return SweepResults(folder.resolve().name, folder, _tidy(rows, runs), runs, tuple(notes))


def load_training(sweep: SweepResults, max_rows: int = 300) -> pd.DataFrame:
    """The runs' training logs, thinned: for looking at losses, not for scores.

    Args:
        sweep: a loaded sweep.
        max_rows: rows kept of a run, evenly spaced over its episodes.

    Returns:
        task, env_steps, a column for each loss, run, algorithm, kind, size, seed; rows from when learning starts. Runs
        without a readable train.csv, or that do not learn yet, have none.
    """
    paths = [sweep.folder / "runs" / name / "train.csv" for name in sweep.runs["run"]]
    rows, _ = read_csv_files(paths, required=["env_steps", "task"], text=["task"], max_rows=max_rows)
    losses = [column for column in rows if column not in (*LOG_COLUMNS, *EPISODE_COLUMNS, "source")]
    learning = rows[["source", "task", "env_steps", *losses]].dropna(how="all", subset=losses)
    return learning.join(sweep.runs[["run", "algorithm", "kind", "size", "seed"]], on="source").drop(columns="source")


def registry_table() -> pd.DataFrame:
    """The task registry by task name: suite, domain, task_metric, score_scale, random_return.

    `suite` is the benchmark suite; `domain` is the embodiment in DMControl (walker, cheetah, ...) and the suite itself
    elsewhere.
    """
    rows = [
        (
            task.name,
            task.domain,
            task.name.split("-")[0] if task.domain == "dmcontrol" else task.domain,
            task.metric,
            task.score_scale,
            np.nan if task.random_return is None else task.random_return,
        )
        for task in TASKS.values()
    ]
    columns = ["task", "suite", "domain", "task_metric", "score_scale", "random_return"]
    return pd.DataFrame(rows, columns=pd.Index(columns)).set_index("task")


def add_registry(table: pd.DataFrame) -> pd.DataFrame:
    """Complete a table of task, metric, value by suite, domain and normalised score, in `TABLE_COLUMNS`.

    Rows of tasks that the registry does not know are left out; callers report them.
    """
    table = table[table["task"].isin(list(TASKS))].join(registry_table(), on="task")
    table["score"] = (table["value"] * table["score_scale"]).where(table["metric"] == table["task_metric"])
    return table[TABLE_COLUMNS].reset_index(drop=True)


def _tidy(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Evaluation rows of known runs, one row a metric."""
    identity = runs[["run", "algorithm", "kind", "size", "seed"]]
    joined = rows.join(identity, on="source")
    joined = joined[joined["seed"].notna()].astype({"env_steps": np.int64})
    if "success" not in joined:
        joined["success"] = np.nan
    keys = ["task", "run", "algorithm", "kind", "size", "seed", "env_steps"]
    table = joined.melt(keys, ["return", "success"], var_name="metric", value_name="value")
    table = add_registry(table[np.isfinite(table["value"].astype(float))])
    return table.sort_values(["task", "run", "metric", "env_steps"], kind="stable", ignore_index=True)


def _drop_repeated(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[int, int]]:
    """Keep the last row for each run, task and step; count the others per run."""
    repeated = rows.duplicated(["source", "task", "env_steps"], keep="last")
    counts = rows.loc[repeated, "source"].value_counts()
    return rows[~repeated], {int(str(source)): int(count) for source, count in counts.items()}


def _run_names(folder: Path) -> list[str]:
    runs = folder / "runs"
    return sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []


def _read_plan(folder: Path) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """The planned runs by name, and what is wrong with the plan."""
    path = folder / "plan.json"
    if not path.exists():
        return {}, ["no plan.json: runs that never started cannot be known, only those found are reported"]
    try:
        runs = json.loads(path.read_text())["runs"]
        return {str(run["name"]): dict(run) for run in runs}, []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, [f"plan.json cannot be read ({_brief(error)}): only the runs found are reported"]


def _read_failures(folder: Path) -> Mapping[str, str]:
    """Why runs were given up, by name: the sweep's own record, for runs that could not write it themselves."""
    failures, _ = _read_mapping(folder / "failures.json")
    return {str(name): str(reason) for name, reason in failures.items()}


def _describe_run(
    name: str, path: Path, plan: Mapping[str, Mapping[str, Any]], failure: str, now: float
) -> dict[str, Any]:
    """One row of the table of runs, with `reasons` still a list."""
    planned = plan.get(name)
    status: Mapping[str, Any] = {}
    reasons: list[str] = []
    if plan and planned is None:
        reasons.append("not in plan.json")
    identity = _identity({**_variant(name), **planned}) if planned else None
    if not path.is_dir():
        state = "failed" if failure else "not started"
        reasons.extend([failure] if failure else [])
    else:
        status, fault = _read_mapping(path / "status.json")
        state = str(status.get("state", "unknown"))
        if fault:
            reasons.append(fault)
        elif state not in STATES:
            reasons.append(f"status.json: unknown state {state!r}")
            state = "unknown"
        gone = state == "running" and _is_gone(path, status)
        if failure and (gone or state in ("interrupted", "unknown")):
            state = "failed"
        elif gone:
            state = "interrupted"
        reasons.extend(_state_reasons(state, status, gone, failure, now))
        config, fault = _read_mapping(path / "config.yaml")
        own = _identity(config) if not fault else None
        if own is None:
            reasons.append(fault or "config.yaml: task, model_size or seed missing or not valid")
        elif identity is not None and own["key"] != identity["key"]:
            reasons.append("config.yaml differs from plan.json: " + _difference(own["key"], identity["key"]))
        identity = own or identity

    env_steps = _number(status.get("env_steps"), 0.0)
    total = _number(status.get("total_env_steps"), _number((planned or {}).get("env_steps"), np.nan))
    known = identity or {"task": "", "algorithm": "", "kind": "", "size": None, "seed": None}
    return {
        "run": name,
        "planned": planned is not None,
        **{field: known[field] for field in ("task", "algorithm", "kind", "size", "seed")},
        "state": state,
        "env_steps": int(env_steps),
        "total_env_steps": total,
        "progress": min(1.0, env_steps / total) if total > 0 else np.nan,
        "seconds": _number(status.get("seconds"), np.nan),
        **{field: str(status.get(field, "")) for field in ("device", "hardware", "version")},
        "reasons": reasons,
    }


def _identity(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Task, algorithm, kind, size and seed from a config or a plan's entry; None where one is missing or not valid."""
    try:
        tasks = expand_tasks(str(settings["task"]))
        size, seed = int(settings["model_size"]), int(settings["seed"])
    except (KeyError, TypeError, ValueError, UserError):
        return None
    pixels = "-pixels" if settings.get("obs") == "rgb" else ""
    label = f" {settings['label']}" if settings.get("label") else ""
    return {
        "task": str(settings["task"]),
        "algorithm": f"{ALGORITHM}{pixels}{label}",
        "kind": "multi" if len(tasks) > 1 else "single",
        "size": size,
        "seed": seed,
        "key": {"task": tasks, "model_size": size, "seed": seed},
    }


def _variant(name: str) -> dict[str, str]:
    """Observation kind and label from a run's name, TASK[-rgb]-SIZEM[-LABEL]-seedN; a plan's entry has neither."""
    match = re.search(r"(-rgb)?-\d+M(?:-(?P<label>.+))?-seed\d+$", name)
    return {"obs": "rgb" if match and match[1] else "state", "label": (match and match["label"]) or ""}


def _difference(own: Mapping[str, Any], planned: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {own[key]!r}, planned {planned[key]!r}" for key in own if own[key] != planned[key])


def _is_gone(path: Path, status: Mapping[str, Any]) -> bool:
    """Whether the process of a run that calls itself running has ended; only known on the machine it ran on."""
    return status.get("host") == socket.gethostname() and not RunFolder(path).is_claimed()


def _state_reasons(state: str, status: Mapping[str, Any], gone: bool, failure: str, now: float) -> list[str]:
    """Why a run is in its state, where that needs a reason."""
    message = str(status.get("message") or "").strip()
    if state == "failed":
        return [failure or message or "no reason recorded"]
    if gone:
        return ["its process ended without a word, perhaps killed"]
    if state == "interrupted":
        return [message or "no reason recorded"]
    silent = now - _number(status.get("updated"), np.nan)
    if state == "running" and silent > SILENT_AFTER:
        return [f"no sign of life for {silent / 3600:.1f} h; it may have been killed"]
    return []


def _eval_faults(faults: Sequence[str], state: str) -> list[str]:
    """Faults of eval.csv that are worth telling: a run that did not come to its first evaluation lacks it rightly."""
    if faults == ["eval.csv: missing"] and state not in ("done", "unknown"):
        return ["no evaluation yet"] if state == "running" else []
    return list(faults)


def _read_mapping(path: Path) -> tuple[Mapping[str, Any], str]:
    """A YAML or JSON mapping, and what is wrong with it ("" if nothing)."""
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_YAML_LOADER)
    except FileNotFoundError:
        return {}, f"{path.name}: missing"
    except (OSError, ValueError, yaml.YAMLError) as error:
        return {}, f"{path.name}: cannot be read ({_brief(error)})"
    return (values, "") if isinstance(values, dict) else ({}, f"{path.name}: not a mapping of names to values")


def _brief(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _number(value: Any, default: float) -> float:
    """A finite number, or the default for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return float(value) if np.isfinite(value) else default
