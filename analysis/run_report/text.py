"""Words of the report on one run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.run_report.choice import Choice
from analysis.run_report.figures import MAX_RUN_LINES
from analysis.run_report.record import RunRecord, mean_scores, random_score, speeds
from analysis.run_report.signs import Finding, Sign
from analysis.style import series_name
from analysis.tables import counted
from analysis.words import MISSING, duration, listed, with_interval
from tdmpc2.tasks import TASKS
from tdmpc2.training.folder import RunFolder

UNITS = {"env_steps": "environment steps", "updates": "updates"}
_STATES = {
    "done": "is done,",
    "running": "is running,",
    "interrupted": "was interrupted",
    "failed": "failed",
    "not started": "was not started, it stands",
    "unknown": "is in an unknown state,",
}
_TASKS_LISTED = 12


def training_caption(training: pd.DataFrame, axis: str = "env_steps") -> str:
    """What the lines of a training figure are; `axis` is env_steps or updates."""
    runs = training["run"].nunique()
    over = UNITS[axis]
    if runs <= MAX_RUN_LINES:
        return f"{counted(runs, 'run')}, a line each, over {over}; losses start when learning does."
    return (
        f"{counted(runs, 'run')} over {over}. Line: median over runs; shading: 10th to 90th percentile; "
        "losses start when learning does."
    )


def headline(record: RunRecord, choice: Choice, findings: Sequence[Finding]) -> str:
    """The run, its state, its score and the gravest sign."""
    row, unit = record.row, UNITS[record.axis]
    total = row[f"total_{record.axis}"]
    of_all = "" if pd.isna(total) else f" of {int(total):,}"
    state = f"{_STATES[str(row['state'])]} at {int(row[record.axis]):,}{of_all} {unit}."
    parts = [f"{record.name} ({choice.reason}) {state}", _score_sentence(record)]
    if record.training.empty and record.evaluations.empty:
        return f"{' '.join(parts)} Nothing is logged yet, so there are no signs to read."
    signs = [sign for finding in findings for sign in finding.verdict or ()]
    more = f" ({counted(len(signs) - 1, 'more sign')} below)" if len(signs) > 1 else ""
    parts.append(
        f"Most important sign: {sign_text(signs[0], record)}{more}." if signs else nothing_conspicuous(findings)
    )
    return " ".join(parts)


def nothing_conspicuous(findings: Sequence[Finding]) -> str:
    """That no rule found a sign, and how many of them could not tell."""
    judged = sum(finding.verdict is not None for finding in findings)
    if judged == len(findings):
        return "Nothing conspicuous."
    return f"Nothing conspicuous by {judged} of {len(findings)} rules; too little is recorded for the others."


def _score_sentence(record: RunRecord) -> str:
    scores = mean_scores(record.logged)
    if scores.empty:
        if record.logged["value"].notna().any():
            return "The evaluations have no normalised score: no score range is registered for the task."
        return "No evaluation is recorded."
    levels = [random_score(TASKS[task]) for task in record.logged["task"].unique()]
    level = f", a random policy {np.mean(levels):.1f}" if np.isfinite(levels).all() else ""
    over = f", mean over {len(levels)} tasks" if len(levels) > 1 else ""
    at = f"at {scores['step'].iloc[-1]:,.0f} {UNITS[record.axis]}"
    return f"Normalised score of the last evaluation, {at}{over}: {scores['score'].iloc[-1]:.1f} of 100{level}."


def run_facts(record: RunRecord, choice: Choice) -> pd.DataFrame:
    """What the run is and how far it has come: columns fact, value."""
    row, status = record.row, record.status
    axis = record.axis
    total = row[f"total_{axis}"]
    names = list(record.tasks)
    more = f" and {len(names) - _TASKS_LISTED} more" if len(names) > _TASKS_LISTED else ""
    speed = speeds(record.training)
    facts: dict[str, Any] = {
        "Run": f"{record.name}, {choice.reason}",
        "Folder": record.folder,
        "Agent": series_name(str(row["algorithm"]), str(row["kind"]), row["size"], str(row["task_set"]))
        if row["algorithm"]
        else "",
        "Tasks" if len(names) > 1 else "Task": ", ".join(names[:_TASKS_LISTED]) + more,
        "Data set": row["data"],
        "Seed": "" if pd.isna(row["seed"]) else int(row["seed"]),
        "State": row["state"],
        "Reason or remark": row["reason"],
        "Progress": f"{int(row[axis]):,}" + ("" if pd.isna(total) else f" of {int(total):,}") + f" {UNITS[axis]}",
        "Updates": f"{int(row['updates']):,}" if axis == "env_steps" and row["updates"] else "",
        "Phase": status.get("phase", ""),
        "Time spent": "" if pd.isna(row["seconds"]) else duration(float(row["seconds"])),
        "Speed": f"{speed['speed'].median():.3g} updates a second (median over the log)" if len(speed) else "",
        "Last sign of life": _clock(status.get("updated")),
        "Hardware": row["hardware"],
        "Device": row["device"],
        "Execution": status.get("execution", ""),
        "Project version": row["version"],
        "Checkpoint": _checkpoint(record),
    }
    shown = {name: str(value) for name, value in facts.items() if str(value)}
    return pd.DataFrame({"fact": list(shown), "value": list(shown.values())})


def _clock(seconds: Any) -> str:
    if not isinstance(seconds, int | float) or not np.isfinite(seconds):
        return ""
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(seconds))


def _checkpoint(record: RunRecord) -> str:
    path = RunFolder(record.folder).checkpoint
    if not path.is_file():
        return "none"
    found = path.stat()
    return f"{path.relative_to(record.folder)}, {found.st_size / 2**20:.1f} MiB, written {_clock(found.st_mtime)}"


def sign_text(sign: Sign, record: RunRecord) -> str:
    """A sign in words, with its step."""
    return f"{sign.text} (from {sign.step:,.0f} {UNITS[record.axis]})"


def sign_sentences(record: RunRecord, findings: Sequence[Finding]) -> list[str]:
    """All signs, the gravest first."""
    texts = [sign_text(sign, record) for finding in findings for sign in finding.verdict or ()]
    return [f"{text[0].upper()}{text[1:]}." for text in texts]


def rules_table(record: RunRecord, findings: Sequence[Finding]) -> pd.DataFrame:
    """Every rule, what it looks for, and what it said."""
    said = [
        "too little recorded"
        if finding.verdict is None
        else "; ".join(f"from {sign.step:,.0f} {UNITS[record.axis]}" for sign in finding.verdict) or "not seen"
        for finding in findings
    ]
    return pd.DataFrame(
        {
            "rule": [finding.rule.name for finding in findings],
            "named when": [finding.rule.meaning for finding in findings],
            "here": said,
        }
    )


def no_updates(record: RunRecord) -> str:
    """Why there is nothing of the updates in the log."""
    if record.row["updates"]:
        return "Nothing is logged yet: train.csv gets a row when an episode ends."
    return "Nothing is logged: the run has made no update yet."


def returns_caption(record: RunRecord, window: int, published: bool) -> str:
    """What the figure of returns shows."""
    parts = []
    if len(record.logged):
        episodes = record.logged["episodes"].dropna()
        many = f" of {counted(int(episodes.iloc[-1]), 'episode')}" if len(episodes) else ""
        parts.append(
            f"Blue: evaluations{many}, mean; shading: \N{PLUS-MINUS SIGN} one standard deviation of the episodes."
        )
    if "return" in record.training and record.training["return"].notna().any():
        smooth = f", their running mean over {window} episodes as a line" if window > 1 else ""
        parts.append(f"Orange: single training episodes, which explore{smooth}.")
    parts += ["Dashed: published curves, mean over seeds."] if published else []
    return " ".join([*parts, f"The axis counts {UNITS[record.axis]}."])


def metrics_caption(record: RunRecord, window: int, others: int) -> str:
    """What the panels of logged metrics show."""
    what = "Each row of train.csv is the mean over the updates since the row before."
    smooth = f" Thick: running mean over {window} rows." if window > 1 else ""
    behind = f" Grey: {counted(others, 'other run')} of the same series in this sweep." if others else ""
    return f"{what}{smooth}{behind} The axis counts {UNITS[record.axis]}."


def gradient_table(record: RunRecord, columns: Sequence[str]) -> pd.DataFrame:
    """Gradient norms before clipping, unrounded: metric, rows, median, highest, threshold, share of rows at or above.

    The log keeps means over updates: a row at or above the threshold has at least one clipped update.
    """
    clip = np.nan if record.config is None else record.config.grad_clip_norm
    rows = []
    for name in columns:
        norm = record.training[name].dropna()
        share = np.nan if np.isnan(clip) else float((norm >= clip).mean())
        rows.append((name, len(norm), norm.median(), norm.max(), clip, share))
    names = ["metric", "rows", "median", "highest", "threshold", "share_at_threshold"]
    return pd.DataFrame(rows, columns=pd.Index(names))


def gradient_text(gradients: pd.DataFrame) -> pd.DataFrame:
    """`gradient_table` as text."""
    return pd.DataFrame(
        {
            "metric": gradients["metric"],
            "rows": [f"{n:,}" for n in gradients["rows"]],
            "median": [f"{v:.3g}" for v in gradients["median"]],
            "highest": [f"{v:.3g}" for v in gradients["highest"]],
            "clipping threshold": [MISSING if pd.isna(v) else f"{v:g}" for v in gradients["threshold"]],
            "rows at or above it": [MISSING if pd.isna(v) else f"{v:.1%}" for v in gradients["share_at_threshold"]],
        }
    )


def last_by_task(record: RunRecord) -> pd.DataFrame:
    """Each task's last evaluation while training, the highest score first, with a random policy's score."""
    last = record.logged[record.logged["score"].notna()].sort_values("step", kind="stable")
    last = last.drop_duplicates("task", keep="last")
    last = last.assign(random=[random_score(TASKS[task]) for task in last["task"]])
    return last.sort_values("score", ascending=False, kind="stable", ignore_index=True)


def task_table(last: pd.DataFrame, axis: str) -> pd.DataFrame:
    """`last_by_task` as text."""
    return pd.DataFrame(
        {
            "task": last["task"],
            "metric": [TASKS[task].metric for task in last["task"]],
            "value (std)": [
                _with_std(value, std, task)
                for value, std, task in zip(last["value"], last["std"], last["task"], strict=True)
            ],
            "episodes": [MISSING if pd.isna(n) else f"{int(n)}" for n in last["episodes"]],
            "normalised score": [f"{score:.1f}" for score in last["score"]],
            "random policy": [MISSING if pd.isna(score) else f"{score:.1f}" for score in last["random"]],
            UNITS[axis]: [f"{step:,.0f}" for step in last["step"]],
        }
    )


def planning_table(compared: pd.DataFrame, axis: str) -> pd.DataFrame:
    """`planning.compare_planning` as text."""
    columns: dict[str, list[str]] = {"task": list(compared["task"])}
    columns[UNITS[axis]] = [f"{step:,.0f}" for step in compared["step"]]
    for name, label in (("planning", "planning (std)"), ("policy", "policy alone (std)")):
        values = zip(compared[name], compared[f"{name}_std"], compared["task"], strict=True)
        columns[label] = [_with_std(value, std, task) for value, std, task in values]
        columns[f"episodes, {name}"] = [str(n) for n in compared[f"{name}_episodes"]]
    ends = zip(compared["difference"], compared["low"], compared["high"], compared["task"], strict=True)
    columns["planning - policy"] = [with_interval(d, low, high, _digits(task)) for d, low, high, task in ends]
    return pd.DataFrame(columns)


def planning_sentence(compared: pd.DataFrame, axis: str) -> str:
    """How much planning adds, at each task's last comparison."""
    gains = compared["planning_score"] - compared["policy_score"]
    if len(compared) == 1:
        row = compared.iloc[0]
        at = f"At {row['step']:,.0f} {UNITS[axis]}"
        clear = pd.isna(row["low"]) or row["low"] <= 0 <= row["high"]
        sure = "" if pd.isna(row["low"]) else " The 95% interval of the difference " + (
            "holds zero: it is undecided." if clear else "leaves zero out."
        )  # fmt: skip
        return (
            f"{at}, planning scores {row['planning_score']:.1f} and the policy alone {row['policy_score']:.1f} "
            f"(normalised): {gains.iloc[0]:+.1f} points.{sure}"
        )
    better = int(((compared["low"] > 0) & (gains > 0)).sum())
    worse = int(((compared["high"] < 0) & (gains < 0)).sum())
    return (
        f"Planning adds {gains.mean():+.1f} points of normalised score on average over {len(compared)} tasks; the 95% "
        f"interval of the difference is above zero on {better} of them and below it on {worse}."
    )


def no_planning(record: RunRecord) -> str:
    """Why there is no comparison, in a sentence."""
    modes = {bool(mode) for mode in record.evaluations["mpc"].dropna()}
    there = [name for mode, name in ((True, "planning"), (False, "the policy alone")) if mode in modes]
    had = f"only of {listed(there)}" if len(there) == 1 else "of both, but at different steps" if there else "none"
    return f"A comparison needs evaluations of planning and of the policy alone at the same step; recorded: {had}."


def _digits(task: str) -> int:
    return 1 if TASKS[task].metric == "return" else 2


def _with_std(value: float, std: float, task: str) -> str:
    digits = _digits(task)
    return f"{value:.{digits}f}" + ("" if pd.isna(std) else f" ({std:.{digits}f})")
