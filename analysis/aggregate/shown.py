"""Tables of aggregate scores as text, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.aggregate.comparison import OTHER
from analysis.aggregate.progress import THRESHOLDS
from analysis.aggregate.selection import of_series, scope_name, series_keys
from analysis.results import is_offline
from analysis.scores import task_order
from analysis.style import human_steps, series_name
from analysis.words import MISSING, series_names, with_interval

STATISTICS = {"iqm": "IQM", "mean": "mean", "median": "median", "optimality_gap": "optimality gap"}


def aggregates(rows: pd.DataFrame, tasks: Mapping[str, Sequence[str]], with_budget: bool = False) -> pd.DataFrame:
    """Aggregate scores with intervals.

    Args:
        rows: rows of `comparison.aggregate_table`.
        tasks: the tasks by scope.
        with_budget: whether to name each row's budget.
    """
    columns = {
        "at": ["last evaluation" if np.isnan(step) else f"{human_steps(step)} steps" for step in rows["budget"]],
        "tasks of": [scope_name(scope, tasks[scope]) for scope in rows["scope"]],
        "series": series_names(rows),
        "tasks": rows["tasks"].astype(str),
        "runs": [
            f"{n} of {n + short}" if short else str(n)
            for n, short in zip(rows["runs"], rows["runs_short"], strict=True)
        ],
        "seeds a task": _spans(rows["seeds_min"], rows["seeds_max"]),
        "taken at": _steps(rows),
        **{label: _intervals(rows, name) for name, label in STATISTICS.items()},
    }
    # beside other budgets there is no room for what follows from the budget
    return pd.DataFrame(columns).drop(columns=["seeds a task", "taken at"] if with_budget else ["at"])


def _spans(low: pd.Series, high: pd.Series) -> list[str]:
    return [f"{a:g}" if a == b else f"{a:g} to {b:g}" for a, b in zip(low, high, strict=True)]


def _steps(rows: pd.DataFrame) -> list[str]:
    """Where scores were taken, e.g. `2M to 4M env. steps`, `500k updates`."""
    texts = []
    for low, high, by_updates in zip(rows["step_min"], rows["step_max"], is_offline(rows), strict=True):
        ends = list(dict.fromkeys([human_steps(low), human_steps(high)]))
        texts.append(f"{' to '.join(ends)} {'updates' if by_updates else 'env. steps'}")
    return texts


def _intervals(rows: pd.DataFrame, column: str, digits: int = 1) -> list[str]:
    ends = zip(rows[column], rows[f"{column}_low"], rows[f"{column}_high"], strict=True)
    return [with_interval(value, low, high, digits) for value, low, high in ends]


def improvements(rows: pd.DataFrame, tasks: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Pairs of series: probability of improvement, difference and test.

    Args:
        rows: one budget's rows of `comparison.improvements`.
        tasks: the tasks by scope.
    """
    return pd.DataFrame(
        {
            "tasks of": [scope_name(scope, tasks[scope]) for scope in rows["scope"]],
            "first": series_names(rows),
            "second": [series_name(*key) for key in rows[OTHER].itertuples(index=False, name=None)],
            "tasks of both": rows["tasks"].astype(str),
            "P(first > second)": _intervals(rows, "probability", digits=2),
            "difference of means": _intervals(rows, "difference"),
            "p": [_p_value(p) for p in rows["p"]],
            "p, Holm": [_p_value(p) for p in rows["p_holm"]],
        }
    )


def _p_value(p: float) -> str:
    if np.isnan(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def efficiency(
    rows: pd.DataFrame, tasks: Mapping[str, Sequence[str]], thresholds: Sequence[float] = THRESHOLDS
) -> pd.DataFrame:
    """Sample efficiency.

    Args:
        rows: as `progress.efficiency_table` returns it.
        tasks: the tasks by scope.
        thresholds: the normalised scores it is about.
    """
    columns: dict[str, list[str]] = {
        "tasks of": [scope_name(scope, tasks[scope]) for scope in rows["scope"]],
        "series": series_names(rows),
        "tasks": [str(n) for n in rows["tasks"]],
        "runs": [str(n) for n in rows["runs"]],
        "runs with an area": [str(n) for n in rows["area_runs"]],
        "area": _intervals(rows, "area"),
    }
    for level in thresholds:
        columns[f"reach {level:g}"] = [f"{share:.0%}" for share in rows[f"reach_{level:g}"]]
        columns[f"median steps to {level:g}"] = [
            "not by half" if np.isnan(steps) else f"{human_steps(float(f'{steps:.3g}'))}"
            for steps in rows[f"steps_to_{level:g}"]
        ]
    shown = pd.DataFrame(columns)
    return shown.drop(columns="runs with an area") if rows["runs"].eq(rows["area_runs"]).all() else shown


def task_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Normalised scores, a row a task and a column a series: the mean over runs and, of several, the range.

    Args:
        rows: as `comparison.task_table` returns it.
    """
    tasks = task_order(rows["task"])
    columns: dict[str, list[str]] = {"task": tasks}
    for key in series_keys(rows):
        own = of_series(rows, key).set_index("task")
        texts = {
            str(task): f"{mean:.1f}" if runs == 1 else f"{mean:.1f} ({low:.1f} to {high:.1f})"
            for task, mean, low, high, runs in zip(
                own.index, own["mean"], own["min"], own["max"], own["runs"], strict=True
            )
        }
        columns[series_name(*key)] = [texts.get(task, MISSING) for task in tasks]
    return pd.DataFrame(columns)
