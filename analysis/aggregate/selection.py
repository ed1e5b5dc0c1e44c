"""What is compared: which rows, at which budgets, over which sets of tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.figures import legend_order
from analysis.results import SERIES
from analysis.scores import (
    FINAL_COLUMNS,
    final_scores,
    offline,
    online,
    planned_scores,
    primary,
    run_scores,
    task_order,
)
from analysis.study import PUBLISHED_KIND, Study
from analysis.style import SUITE_NAMES, human_steps
from tdmpc2.errors import require, unknown_name
from tdmpc2.tasks import TASKS

OVERALL = "overall"
"""Name of the scope that is all tasks together; the others are suites."""
COMMON_BUDGET = 1_000_000
"""Environment steps at which series are compared where nothing else is asked for: published curves all reach it."""
Budget = float | None
"""Environment steps, or None for each run's last evaluation."""


def select(study: Study, algorithms: Sequence[str] | None = None) -> pd.DataFrame:
    """The evaluations that are compared: ours, and published ones of the same tasks.

    Args:
        study: sweeps and published curves.
        algorithms: published algorithms to take, by the names of their folders; None: all.

    Returns:
        Rows of `study.table` by the tasks' own metrics. Where sweeps were read, published curves of tasks that were
        neither run nor planned there are left out.

    Raises:
        UserError: an algorithm was not published; the nearest name is given.
    """
    published = study.published
    if algorithms is not None:
        known = sorted(set(published["algorithm"]))
        for name in algorithms:
            if name not in known:
                raise unknown_name("published algorithm", name, known)
        published = published[published["algorithm"].isin(list(algorithms))]
    if study.sweeps:
        ours = {*study.ours["task"], *planned_scores(study.runs)["task"]}
        published = published[published["task"].isin(ours)]
    return primary(pd.concat([study.ours, published])).reset_index(drop=True)


def sides(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a table that our runs made, and the published ones."""
    published = table["kind"] == PUBLISHED_KIND
    return table[~published], table[published]


def own_final_scores(study: Study, table: pd.DataFrame) -> pd.DataFrame:
    """Final scores of our runs that act, beside published values at the same steps: see `scores.final_scores`.

    Args:
        study: whose runs, also those without an evaluation.
        table: as `select` returns it.
    """
    if study.runs.empty:
        return pd.DataFrame(columns=pd.Index([*FINAL_COLUMNS, "note"]))
    ours, published = sides(table)
    return online(final_scores(study.runs, ours, published if len(published) else None))


def choose_budgets(table: pd.DataFrame, budgets: Sequence[float] | None = None) -> list[Budget]:
    """At which budgets to compare; each run's last evaluation (None) always.

    Left to itself: 1M environment steps, where a run of ours reaches it (without any of ours: where a published one
    does), and the step that half of our runs reach or pass, where that lies below every published curve's end.

    Args:
        table: as `select` returns it.
        budgets: environment steps that were asked for; None: choose.

    Returns:
        None, then environment steps, falling.

    Raises:
        UserError: a budget is not a number above 0.
    """
    if budgets is not None:
        for budget in budgets:
            number = isinstance(budget, int | float) and not isinstance(budget, bool) and np.isfinite(budget)
            require(number and budget > 0, f"budgets: {budget!r} is not a number of environment steps above 0")
        return [None, *sorted({float(budget) for budget in budgets}, reverse=True)]
    acting = online(table)
    ours = acting[acting["kind"] != PUBLISHED_KIND]
    reach = float((ours if len(ours) else acting)["env_steps"].max()) if len(acting) else 0.0
    chosen = {float(COMMON_BUDGET)} if reach >= COMMON_BUDGET else set()
    if len(ours) and len(ours) < len(acting):
        chosen |= {own_step(table)} - {0.0}
    elif len(ours) and not chosen:
        chosen = {own_step(table)} - {0.0}
    return [None, *sorted(chosen, reverse=True)]


def own_step(table: pd.DataFrame) -> float:
    """The most environment steps that at least half of our runs reached; 0 without any."""
    return _step_of_half(sides(online(table))[0])


def _step_of_half(rows: pd.DataFrame) -> float:
    """The most environment steps that at least half of these runs reached; 0 without any."""
    last = rows.groupby(["task", "run", "seed"])["env_steps"].max().astype(float).sort_values(ascending=False)
    return float(last.iloc[(len(last) + 1) // 2 - 1]) if len(last) else 0.0


def primary_budget(table: pd.DataFrame, budgets: Sequence[Budget]) -> Budget:
    """The budget that the page's answer is given at.

    Beside published curves, whose runs are mostly longer than ours, it is the largest budget that half of our runs
    reached; otherwise, or where there is none, each run's last evaluation.
    """
    acting = online(table)
    mixed = acting["kind"].eq(PUBLISHED_KIND).any() and acting["kind"].ne(PUBLISHED_KIND).any()
    reached = own_step(table)
    return max((b for b in budgets if b is not None and b <= reached), default=None) if mixed else None


def main_first(budgets: Sequence[Budget], main: Budget) -> list[Budget]:
    """The budgets, the one that the answer is given at first."""
    return [main, *(budget for budget in budgets if budget != main)]


def area_budget(table: pd.DataFrame, budgets: Sequence[Budget]) -> float:
    """Environment steps that areas under curves are taken over.

    The largest budget that is given in steps; where none is, what half of all runs reached.
    """
    return max((budget for budget in budgets if budget is not None), default=_step_of_half(online(table)))


def scores_at(table: pd.DataFrame, budgets: Sequence[Budget]) -> pd.DataFrame:
    """Every run's normalised score on every task at every budget.

    Agents that learned from data alone take no environment step: at every budget they stand with their last evaluation.

    Args:
        table: as `select` returns it.
        budgets: as `choose_budgets` returns it.

    Returns:
        budget (environment steps; NaN: each run's last evaluation) and the columns of `scores.run_scores`.
    """
    fixed = run_scores(offline(table))
    parts = []
    for budget in budgets:
        rows = pd.concat([run_scores(online(table), budget), fixed], ignore_index=True)
        parts.append(rows.assign(budget=np.nan if budget is None else float(budget)))
    rows = pd.concat(parts, ignore_index=True)
    return rows[["budget", *(column for column in rows if column != "budget")]]


def at_budget(rows: pd.DataFrame, budget: Budget) -> pd.DataFrame:
    """The rows of one budget of a table with that column."""
    return rows[rows["budget"].isna() if budget is None else rows["budget"].eq(budget)]


def scopes(rows: pd.DataFrame) -> dict[str, list[str]]:
    """The sets of tasks that scores are aggregated over: all, and each suite where there are several.

    Returns:
        Tasks in reading order by scope: `overall`, then the names of suites as in the registry.
    """
    tasks = task_order(rows["task"])
    suites = {suite: [task for task in tasks if TASKS[task].domain == suite] for suite in SUITE_NAMES}
    present = {suite: names for suite, names in suites.items() if names}
    return {OVERALL: tasks, **(present if len(present) > 1 else {})}


def scope_name(scope: str, tasks: Sequence[str]) -> str:
    """A scope's name for people: the suite's where there is but one."""
    if scope != OVERALL:
        return SUITE_NAMES[scope]
    suites = {TASKS[task].domain for task in tasks}
    return SUITE_NAMES[suites.pop()] if len(suites) == 1 else "Overall"


def budget_name(budget: Budget) -> str:
    """A budget for people: `each run's last evaluation` or `1M environment steps`."""
    if budget is None or np.isnan(budget):
        return "each run's last evaluation"
    return f"{human_steps(budget)} environment steps"


def file_suffix(budget: Budget, main: Budget) -> str:
    """What tells a budget's files from those of the page's main one: "", `_last` or e.g. `_1M`."""
    if budget == main:
        return ""
    return "_last" if budget is None else f"_{human_steps(budget)}"


def series_keys(rows: pd.DataFrame) -> list[tuple[str, str, int | None, str]]:
    """The distinct series of a table, in the order of legends."""
    keys = {
        (algorithm, kind, None if pd.isna(size) else int(size), task_set)
        for algorithm, kind, size, task_set in rows[SERIES].drop_duplicates().itertuples(index=False, name=None)
    }
    return legend_order(keys)


def of_series(rows: pd.DataFrame, key: tuple[str, str, int | None, str]) -> pd.DataFrame:
    """The rows of one series."""
    algorithm, kind, size, task_set = key
    sized = rows["size"].isna() if size is None else rows["size"].eq(size).fillna(False).astype(bool)
    return rows[rows["algorithm"].eq(algorithm) & rows["kind"].eq(kind) & sized & rows["task_set"].eq(task_set)]
