"""Planning against policy: what MPPI adds to acting by the policy prior's mean alone."""

from __future__ import annotations

import shlex

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.run_report.record import RunRecord
from analysis.scores import task_order
from tdmpc2.config import EvaluateConfig
from tdmpc2.errors import UserError

COMPARED_COLUMNS = [
    "task", "step", "planning", "planning_std", "planning_episodes", "policy", "policy_std", "policy_episodes",
    "difference", "low", "high", "planning_score", "policy_score",
]  # fmt: skip
"""Columns of `compare_planning`."""
SUGGESTED_EPISODES = 10


def compare_planning(evaluations: pd.DataFrame) -> pd.DataFrame:
    """Planning and policy side by side, wherever both were evaluated on a task at the same step.

    Evaluations with different seeds are pooled; of several with the same seed, which begin alike, the one with the
    most episodes counts.

    Args:
        evaluations: see `RunRecord.evaluations`.

    Returns:
        One row a task and step, columns `COMPARED_COLUMNS`: mean and sample standard deviation over the episodes by the
        task's own metric, episodes; difference (planning - policy) with its 95% interval (Welch's t), NaN with fewer
        than two episodes or without any spread; normalised scores.
    """
    known = evaluations[evaluations["mpc"].notna() & evaluations["value"].notna() & (evaluations["episodes"] > 0)]
    once = known.sort_values("episodes", kind="stable").drop_duplicates(["task", "step", "mpc", "seed"], keep="last")
    rows = []
    for (task, step), group in once.groupby(["task", "step"]):
        planned = group["mpc"].astype(bool)
        if planned.all() or not planned.any():
            continue
        n, mean, std, score = _pooled(group[planned])
        m, other, other_std, other_score = _pooled(group[~planned])
        low, high = _welch(mean - other, std, n, other_std, m)
        rows.append((task, step, mean, std, n, other, other_std, m, mean - other, low, high, score, other_score))
    table = pd.DataFrame(rows, columns=pd.Index(COMPARED_COLUMNS))
    order = {task: place for place, task in enumerate(task_order(table["task"]))}
    table = table.assign(place=table["task"].map(order)).sort_values(["place", "step"], ignore_index=True)
    return table[COMPARED_COLUMNS]


def latest(compared: pd.DataFrame) -> pd.DataFrame:
    """Each task's comparison at its last step."""
    return compared.sort_values("step", kind="stable").drop_duplicates("task", keep="last").sort_index()


def _pooled(rows: pd.DataFrame) -> tuple[int, float, float, float]:
    """Episodes, mean, sample standard deviation and mean score of several evaluations together."""
    n = rows["episodes"].to_numpy(float)
    means, stds = rows["value"].to_numpy(float), rows["std"].to_numpy(float)
    total = n.sum()
    mean = float((n * means).sum() / total)
    within = np.where(n > 1, (n - 1) * stds**2, 0.0).sum()
    variance = (within + (n * (means - mean) ** 2).sum()) / (total - 1) if total > 1 else np.nan
    score = float((n * rows["score"].to_numpy(float)).sum() / total)
    return int(total), mean, float(np.sqrt(variance)), score


def _welch(difference: float, std: float, n: int, other_std: float, m: int) -> tuple[float, float]:
    """95% interval of a difference of two means with unequal variances (B. L. Welch, Biometrika 34, 1947)."""
    if n < 2 or m < 2:
        return np.nan, np.nan
    a, b = std**2 / n, other_std**2 / m
    if not a + b > 0:
        return np.nan, np.nan
    freedom = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1))
    half = float(stdtrit(freedom, 0.975)) * np.sqrt(a + b)
    return difference - half, difference + half


def recording_command(record: RunRecord, step: float | None) -> str:
    """The commands that record what is missing for a comparison.

    Args:
        record: the run.
        step: the step of its checkpoint, on its axis; what was evaluated there already is not asked for again. None
            where it is not known: both modes are.
    """
    there = record.evaluations[record.evaluations["step"] == step] if step is not None else record.evaluations.iloc[:0]
    modes = [mode for mode in (True, False) if not (there["mpc"] == mode).any()] or [True, False]
    command = evaluate_command(record)
    return "\n".join(f"{command} mpc={str(mode).lower()} episodes={SUGGESTED_EPISODES}" for mode in modes)


def evaluate_command(record: RunRecord) -> str:
    """The command that evaluates a run, without its settings."""
    return f"tdmpc2 evaluate {shlex.quote(f'run={record.folder}')}"


def check_episodes(episodes: int) -> int:
    """The parameter `episodes`.

    Raises:
        UserError: it is not a whole number of at least 0.
    """
    if isinstance(episodes, bool) or not isinstance(episodes, int) or episodes < 0:
        raise UserError(f"episodes: {episodes!r} is not a number of episodes; 0 shows what is recorded")
    return episodes


def evaluate_both(record: RunRecord, episodes: int) -> None:
    """Evaluate the run's latest checkpoint by planning and by its policy, into evaluations.csv in its folder.

    Raises:
        UserError: as `evaluate_run`: there is no checkpoint, or a task cannot be run here.
    """
    from tdmpc2.training.evaluate_run import evaluate_run

    for mode in (True, False):
        evaluate_run(EvaluateConfig(run=str(record.folder), mpc=mode, episodes=episodes), show_progress=False)
