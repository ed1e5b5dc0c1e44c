"""What a sweep consists of and what became of its runs, in words and tables of text."""

from __future__ import annotations

import time

import pandas as pd

from analysis.results import SweepResults, is_offline
from analysis.study import Study
from analysis.tables import counted
from analysis.words import MISSING, duration, listed, states
from tdmpc2.tasks import TASKS


def facts(study: Study) -> dict[str, str]:
    """What a report was made from: value by fact."""
    runs = study.runs
    known = {
        "Sweeps": ", ".join(str(sweep.folder) for sweep in study.sweeps) or "none",
        "Published curves": "none given" if study.reference is None else str(study.reference.folder),
        "Tasks": "all" if len(study.tasks) == len(TASKS) else listed(study.tasks),
    }
    if len(runs):
        known |= {
            "Hardware of the runs": _distinct(runs["hardware"]),
            "Device": _distinct(runs["device"]),
            "Project version of the runs": _distinct(runs["version"]),
            "Training time, all runs": duration(float(runs["seconds"].sum())),
        }
    return {**known, "Report made": time.strftime("%Y-%m-%d %H:%M %Z")}


def _distinct(values: pd.Series) -> str:
    """Distinct non-empty texts, each with how many runs have it where they differ."""
    counts = values[values != ""].value_counts()
    if counts.empty:
        return "not recorded"
    return str(counts.index[0]) if len(counts) == 1 else "; ".join(f"{name} ({n} runs)" for name, n in counts.items())


def runs_caption(sweep: SweepResults) -> str:
    """What is missing, in a sentence."""
    runs = sweep.runs
    missing = runs[runs["state"] != "done"]
    remarked = runs[(runs["state"] == "done") & (runs["reason"] != "")]
    parts = list(sweep.notes)
    if missing.empty:
        parts.append("Every run that was found is done." if sweep.notes else "Every run is done; nothing is missing.")
    else:
        parts.append(f"{counted(len(missing), 'run')} of {len(runs)} not done: {states(missing)}.")
    if len(remarked):
        parts.append(f"{counted(len(remarked), 'finished run')} with a remark.")
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts)


def runs_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs as a table of text, those with something to tell first."""
    order = {state: position for position, state in enumerate(["failed", "unknown", "interrupted", "not started"])}
    rank = runs["state"].map(order).fillna(len(order)) + (runs["reason"] == "")
    runs = runs.assign(rank=rank).sort_values("rank", kind="stable")
    shown = pd.DataFrame(
        {
            "run": runs["run"],
            "state": runs["state"],
            "progress": [MISSING if pd.isna(p) else f"{p:.0%}" for p in runs["progress"]],
            "environment steps": _progress(runs, "env_steps").mask(is_offline(runs), MISSING),
            "updates": _progress(runs, "updates").where(is_offline(runs), MISSING),
            "evaluations": runs["evaluations"].astype(str),
            "time": [MISSING if pd.isna(s) else duration(s) for s in runs["seconds"]],
            "remarks": runs["reason"],
        }
    )
    unused = [c for c in ("environment steps", "updates") if shown[c].eq(MISSING).all() and len(shown)]
    return shown.drop(columns=unused)


def _progress(runs: pd.DataFrame, axis: str) -> pd.Series:
    """How far runs are on an axis, e.g. `500 of 3,000`."""
    texts = [
        f"{done:,}" + ("" if pd.isna(total) else f" of {int(total):,}")
        for done, total in zip(runs[axis], runs[f"total_{axis}"], strict=True)
    ]
    return pd.Series(texts, index=runs.index, dtype=object)
