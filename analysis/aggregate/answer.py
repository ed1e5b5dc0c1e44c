"""The page's answer and what stands below its figures, in sentences: no number here that is not computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.aggregate.comparison import OWN, Ranking, Standing
from analysis.aggregate.selection import Budget, budget_name, of_series, scope_name, series_keys, sides
from analysis.results import is_offline
from analysis.scores import online, task_order
from analysis.statistics import Interval
from analysis.study import PUBLISHED_KIND, Study
from analysis.style import SeriesKey, human_steps, series_name
from analysis.tables import counted
from analysis.words import listed, with_interval
from tdmpc2.tasks import TASKS, caveat

NO_EVALUATION = "No evaluation has been recorded yet, so there is no score to report."
INTERVALS = (
    "Intervals: 95%, stratified bootstrap (seeds drawn anew within each task; of multi-task agents, whole agents), so "
    "they say how much other seeds on the same tasks would differ, not other tasks."
)
NO_PAIRS = "Series are compared where two of them have a score on the same task; there are no two yet."
NO_CURVE = "Curves over environment steps need an evaluation of an agent that acts while it learns; there is none yet."
COMMON_CAPTION = "The same on the tasks that all series of a row's set of tasks have: these rows can be ranked."
_OURS_NAMED = 3
_NAMED = 6


def answer(ranking: Ranking, budget: Budget, warning: str = "") -> str:
    """The answer: which series is best, by how much, and whether that is decided.

    Args:
        ranking: as `comparison.rank` returns it.
        budget: at which it was made.
        warning: what to beware of, as `interpolation_note` returns it.
    """
    if not ranking.standings:
        return NO_EVALUATION
    best, *others = ranking.standings
    at = f"At {budget_name(budget)}" if budget is None else f"After {budget_name(budget)}"
    where = f"over {counted(len(ranking.tasks), 'task')}" if len(ranking.tasks) > 1 else f"on {ranking.tasks[0]}"
    score = f"{_score(best)} {where} ({counted(best.runs, 'run')})"
    if not others:
        sentences = [f"{at}, {_name(best.key)} reaches {score}.", "There is no other series to compare it with."]
        if np.isnan(best.iqm.low):
            sentences.insert(1, _no_interval(len(ranking.tasks)))
    else:
        second = others[0]
        sentences = [
            f"{at}, {_name(best.key)} has the highest interquartile mean of normalised scores (0 to 100): {score}; "
            f"next is {_name(second.key)} with {_score(second)} ({counted(second.runs, 'run')}).",
            _decision(ranking, best, second),
        ]
    ours = [standing for standing in others[1:] if standing.key[1] != PUBLISHED_KIND][:_OURS_NAMED]
    if ours:
        sentences.append(f"Below them: {listed([f'{_name(one.key)} with {_score(one)}' for one in ours])}.")
    if ranking.left_out:
        few = [f"{_name(key)} ({count})" for key, count in ranking.left_out]
        sentences.append(f"Not ranked, with too few of these tasks: {listed(few)}.")
    return " ".join([*sentences, *([warning] if warning else [])])


def _name(key: SeriesKey) -> str:
    return series_name(*key)


def _score(standing: Standing) -> str:
    return f"IQM {with_interval(*standing.iqm)}, mean {with_interval(*standing.mean)}"


def _no_interval(tasks: int) -> str:
    return f"One seed{' a task' if tasks > 1 else ''} gives no interval."


def _decision(ranking: Ranking, best: Standing, second: Standing) -> str:
    """Whether the best is told apart from the second, by the interval of their difference."""
    margin = ranking.margin or Interval(np.nan, np.nan, np.nan)
    tasks = "the task" if len(ranking.tasks) == 1 else f"the {len(ranking.tasks)} tasks"
    difference = f"The difference of interquartile means on {tasks} that all have is {with_interval(*margin)}"
    if np.isnan(margin.low):
        without = [_name(one.key) for one in (best, second) if np.isnan(one.iqm.low)]
        return f"{difference}; one seed a task of {listed(without)} gives no interval, so which is better is undecided."
    if margin.low > 0:
        return f"{difference}: the 95% interval leaves out 0, so the two are told apart."
    return f"{difference}: the 95% interval contains 0, so which of the two is better is undecided."


def budget_note(study: Study, table: pd.DataFrame, budgets: Sequence[Budget], main: Budget, asked: bool) -> str:
    """At which budgets scores are compared, who chose them, and what to beware of.

    Args:
        study: sweeps and published curves.
        table: as `selection.select` returns it.
        budgets: as `selection.choose_budgets` returns it.
        main: as `selection.primary_budget` returns it.
        asked: whether the budgets were given as a parameter.
    """
    sentences = [f"Scores are compared at {listed([budget_name(budget) for budget in budgets])}."]
    if not asked and len(budgets) > 1:
        sentences.append("These budgets were chosen here, from how far the curves reach.")
    if main is not None:
        sentences.append(
            f"The answer is given after {budget_name(main)}: half of the runs here reach as far, and most published "
            "ones go on for longer."
        )
    if len(budgets) > 1:
        sentences.append(
            "Between two evaluations a score is interpolated linearly; a run that ends before a budget has none there."
        )
    sentences.append("An unfinished run's last evaluation counts as it stands.")
    if is_offline(table).any():
        sentences.append("Agents that learned from data alone stand everywhere with their last evaluation.")
    if study.sweeps and len(study.published):
        sentences.append("Published curves are shown on the tasks of these sweeps only.")
    return " ".join(sentences)


def interpolation_note(table: pd.DataFrame, budget: Budget) -> str:
    """A warning where published values at a budget are no measurement; "" elsewhere.

    Args:
        table: as `selection.select` returns it.
        budget: as `selection.primary_budget` returns it.
    """
    published = sides(table)[1]
    later = published.loc[published["env_steps"] > 0, "env_steps"]
    if budget is None or later.empty or budget >= later.min():
        return ""
    return (
        f"Beware: published curves have no evaluation between the untrained agent and {human_steps(int(later.min()))} "
        "steps, so their values here lie on a straight line and are not measured."
    )


def nothing_at(budget: Budget) -> str:
    """What stands in place of an output that no run reaches the budget for."""
    return f"No run has a score at {budget_name(budget)}."


def interval_caption(rows: pd.DataFrame, budget: Budget) -> str:
    """What the interval plot shows.

    Args:
        rows: one budget's rows of `comparison.aggregate_table`.
        budget: which.
    """
    parts = [
        f"Aggregate normalised scores at {budget_name(budget)}. Marks: values over all runs of a series. IQM: mean of "
        "the middle half of runs. Mean and median: over tasks. Optimality gap: how far runs stay below 100 on average "
        "(lower is better). Each panel has a scale of its own.",
        _interval_words(rows, "iqm", "Bars"),
    ]
    return " ".join([*parts, _different_tasks(rows)]).strip()


def aggregate_caption(budget: Budget) -> str:
    """What the table of aggregates holds."""
    return (
        f"Aggregate normalised scores (0 to 100) at {budget_name(budget)}, with 95% stratified bootstrap intervals "
        "over seeds; a run is one seed on one task."
    )


def without_common_tasks(rows: pd.DataFrame, tasks: Mapping[str, Sequence[str]]) -> list[str]:
    """Where series cannot be ranked at all: sets of tasks of which no task is shared by all series.

    Args:
        rows: as `comparison.aggregate_table` returns it.
        tasks: the tasks by scope.
    """
    sentences = []
    unshared = rows[(rows["basis"] == OWN) & rows["shared_tasks"].eq(0)]
    for budget, scope in unshared[["budget", "scope"]].drop_duplicates().itertuples(index=False, name=None):
        name = scope_name(scope, tasks[scope])
        sentences.append(f"{name}, at {budget_name(budget)}: no task has a score of every series, so no ranking.")
    return sentences


def _interval_words(rows: pd.DataFrame, column: str, what: str) -> str:
    known = rows[f"{column}_low"].notna()
    if not known.any():
        return f"No {what.lower()}: one seed a task gives no interval."
    some = "" if known.all() else " No interval where a series has but one seed a task."
    return INTERVALS.replace("Intervals:", f"{what}:") + some


def _different_tasks(rows: pd.DataFrame) -> str:
    tasks = rows[rows["basis"] == OWN].groupby("scope")["tasks"]
    if (tasks.min() < tasks.max()).any():
        return (
            "Series whose name carries a number of tasks are over these tasks only: compare them with others in the "
            "table of common tasks, not here."
        )
    return ""


def profile_caption(rows: pd.DataFrame, budget: Budget) -> str:
    """What the performance profiles show.

    Args:
        rows: as `comparison.profiles` returns it.
        budget: at which.
    """
    parts = [
        f"Performance profiles at {budget_name(budget)}: the share of runs with a normalised score above \u03c4, each "
        "task counting the same. Higher is better.",
        "Bands: 95% at each \u03c4 by itself, stratified bootstrap over seeds."
        if rows["low"].notna().any()
        else "No bands: one seed a task gives no interval.",
        _fewer_tasks(rows),
    ]
    return " ".join(part for part in parts if part)


def _fewer_tasks(rows: pd.DataFrame) -> str:
    """Which series are over fewer tasks than others of the same scope, e.g. `TD-MPC2 pixels: 12 of 104 tasks`."""
    found: dict[str, str] = {}
    for _, part in rows.groupby("scope", sort=False):
        most = int(part["tasks"].max())
        for key in series_keys(part):
            tasks = int(of_series(part, key)["tasks"].max())
            if tasks < most:
                found.setdefault(_name(key), f"{_name(key)} over {tasks} of {most}")
    return f"Not over the same tasks as the others: {listed(list(found.values()))}." if found else ""


def improvement_caption(rows: pd.DataFrame, budget: Budget) -> str:
    """What the probabilities of improvement are.

    Args:
        rows: one budget's rows of `comparison.improvements`.
        budget: which.
    """
    parts = [
        f"Probability at {budget_name(budget)} that a run of the first series scores higher than one of the second on "
        "the same task, mean over the tasks that both have; ties count half. Dotted: 0.5, neither is better.",
        _interval_words(rows, "probability", "Bars"),
    ]
    return " ".join(parts)


def pair_caption(rows: pd.DataFrame, budget: Budget) -> str:
    """What the table of pairs tests.

    Args:
        rows: one budget's rows of `comparison.improvements`.
        budget: which.
    """
    parts = [
        f"Pairs of series at {budget_name(budget)}. Difference: mean over tasks of first minus second, with a 95% "
        "bootstrap interval over tasks. p: sign-flip permutation test over tasks of no difference, two-sided; "
        "corrected (Holm) for the pairs of each row's set of tasks."
    ]
    if (rows["tasks"] < 2).any():
        parts.append("One task allows no test.")
    elif (rows["tasks"] < 6).any():
        fewest = int(rows["tasks"].min())
        parts.append(f"With {fewest} tasks the smallest p that can come out is {2 / 2**fewest:.2g}.")
    return " ".join(parts)


def curve_caption(rows: pd.DataFrame, tasks: Mapping[str, Sequence[str]]) -> str:
    """What the learning curves over many tasks show, and why they end where they do.

    Args:
        rows: as `progress.domain_curves` returns it.
        tasks: the tasks by scope.
    """
    parts = [
        "Mean over tasks of the mean over seeds, over environment steps (agent steps times action repeat). Each curve "
        "is over the same tasks and runs from end to end: it stops no later than the first of its tasks, where most "
        "steps of most runs are kept."
    ]
    short = []
    for scope, part in rows.groupby("scope", sort=False):
        for key in series_keys(part):
            first = of_series(part, key).iloc[0]
            if first["runs_short"]:
                named = f"{first['runs_short']} of {first['runs'] + first['runs_short']}"
                short.append(f"{_name(key)} {named} ({scope_name(str(scope), tasks[str(scope)])})")
    if short:
        more = f" and {len(short) - _NAMED} more curves" if len(short) > _NAMED else ""
        parts.append(f"Runs that end before that are left out: {', '.join(short[:_NAMED])}{more}.")
    if rows["low"].notna().any():
        parts.append("Bands: 95%, stratified bootstrap over seeds.")
    else:
        parts.append("No bands: one seed a task gives no interval.")
    ours = rows["kind"].ne(PUBLISHED_KIND)
    if ours.any() and not ours.all():
        parts.append("Published curves are shown over the steps of the runs here.")
    return " ".join([*parts, _fewer_tasks(rows)]).strip()


def efficiency_caption(rows: pd.DataFrame, budget: float) -> str:
    """What the table of sample efficiency holds.

    Args:
        rows: as `progress.efficiency_table` returns it.
        budget: environment steps of the areas.
    """
    parts = [
        f"Area: mean normalised score from a run's first evaluation to {human_steps(budget)} environment steps, mean "
        "over tasks, with the 95% bootstrap interval over seeds. Reach: share of runs that are ever evaluated at that "
        "score or above; median steps: environment steps until then, runs that never are counting as later than all "
        "others."
    ]
    short = int((rows["runs"] - rows["area_runs"]).max())
    if short:
        parts.append(
            "Runs that end before the budget, or begin after it, have no area; how many have one stands beside it."
        )
    return " ".join(parts)


def simulator_note(table: pd.DataFrame) -> str:
    """Known differences between the simulators of published curves and those here; "" where none matters.

    Args:
        table: as `selection.select` returns it.
    """
    acting = online(table)
    published = acting["kind"] == PUBLISHED_KIND
    both = set(acting.loc[published, "task"]) & set(acting.loc[~published, "task"])
    shared: dict[str, list[str]] = {}
    for task in task_order(both):
        if caveat(TASKS[task]):
            shared.setdefault(caveat(TASKS[task]), []).append(task)
    if not shared:
        return ""
    named = [
        f"{listed(tasks) if len(tasks) <= _NAMED else counted(len(tasks), 'task')}: {text}"
        for text, tasks in shared.items()
    ]
    return f"The simulators of the published curves were not quite those used here. {'. '.join(named)}."
