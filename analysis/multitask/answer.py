"""The answer in words: is a multi-task model better than the single-task ones. All numbers come from the tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.multitask.overview import MIN_TASKS
from analysis.results import SERIES
from analysis.scores import offline
from analysis.study import Study
from analysis.style import human_steps, series_name
from analysis.tables import counted
from analysis.words import listed, states

NOTHING = "No agent that learned several tasks from a data set is among the runs"


def p_value(p: float) -> str:
    """A p-value in words, e.g. `p = 0.031`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign; one that rounds to nothing has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def answer(study: Study, means: pd.DataFrame) -> str:
    """The page's answer, in a few sentences.

    Args:
        study: what was loaded.
        means: as `overview.compare_means` returns it.
    """
    if means.empty:
        return f"{NOTHING}, so that there is nothing to compare. {_needed(study)}"
    compared = means[means["tasks_compared"] > 0]
    if compared.empty:
        waiting = offline(study.runs)
        return (
            f"Nothing can be compared yet: no task has both a multi-task and a single-task score "
            f"({counted(len(waiting), 'multi-task run')}: {states(waiting)})."
        )
    if len(means) == 1:
        return verdict_sentence(means.iloc[0].to_dict())
    counts = [
        (name, int((means["verdict"] == name).sum())) for name in ("better", "worse", "undecided", "not compared")
    ]
    tally = listed([f"{n} {_TALLY[name]}" for name, n in counts if n])
    lead = compared.iloc[0].to_dict()
    return f"Of {len(means)} multi-task models beside single-task agents, {tally}. {verdict_sentence(lead)}"


_TALLY = {
    "better": "better in the mean over their tasks",
    "worse": "worse",
    "undecided": "undecided",
    "not compared": "not comparable yet",
}


def verdict_sentence(row: Mapping[Any, Any]) -> str:
    """The verdict on one series, with its numbers.

    Args:
        row: one row of `overview.compare_means`.
    """
    name = series_name(*(row[part] for part in SERIES))
    if row["verdict"] == "not compared":
        return f"{name} cannot be compared yet: {row['reason']}."
    beside = _beside(row)
    over = counted(int(row["tasks_compared"]), "task")
    if row["tasks_compared"] < row["tasks"]:
        over = f"{row['tasks_compared']} of its {counted(int(row['tasks']), 'task')}"
    ends = f" [{row['level']:.0%} interval: {signed(row['low'])} to {signed(row['high'])}]"
    interval = "" if pd.isna(row["low"]) else ends
    test = f", permutation {p_value(row['p'])}" if pd.notna(row["p"]) else ""
    if pd.notna(row["p_holm"]) and row["p_holm"] != row["p"]:
        test += f" ({p_value(row['p_holm'])} corrected over the models)"
    numbers = (
        f"mean difference {signed(row['difference'])} of normalised score, 0 to 100{interval}, over {over} "
        f"({row['score']:.1f} against {row['single_score']:.1f}{test})"
    )
    if row["verdict"] == "undecided":
        lead = f"Whether {name} is better or worse than {beside} is undecided: {numbers}; {row['reason']}."
    else:
        lead = f"{name} is {row['verdict']} than {beside}: {numbers}."
    return f"{lead} {_tasks_sentence(row)}"


def _beside(row: Mapping[Any, Any]) -> str:
    published, compared = int(row["tasks_published"]), int(row["tasks_compared"])
    if published == compared:
        return "published single-task TD-MPC2"
    ours = f"{series_name(row['single_algorithm'], '', row['single_size'])} single-task agents"
    return f"{ours} (published ones on {counted(published, 'task')})" if published else ours


def _tasks_sentence(row: Mapping[Any, Any]) -> str:
    """On how many tasks it scores higher, how many of these hold, and which tasks differ most."""
    if row["tasks_compared"] == 1:
        return f"The task is {row['most_gained']}."
    counts = f"It scores higher on {row['higher']} and lower on {row['lower']} of {row['tasks_compared']} tasks"
    if min(row["seeds"], row["single_seeds"]) > 1:
        counts += f"; corrected for many tests, better on {row['better']} and worse on {row['worse']}"
    extremes = []
    if row["gain"] > 0:
        extremes.append(f"largest gain: {row['most_gained']} ({signed(row['gain'])})")
    if row["loss"] < 0:
        extremes.append(f"largest loss: {row['most_lost']} ({signed(row['loss'])})")
    return f"{counts}; {', '.join(extremes)}." if extremes else f"{counts}."


def _needed(study: Study) -> str:
    """What the comparison needs that the study lacks."""
    if not study.sweeps:
        return "It needs a sweep with single-task runs and a multi-task run that learns from their replay buffers."
    singles = study.runs[study.runs["kind"] == "single"]
    have = f"There are {counted(len(singles), 'single-task run')} of {counted(singles['task'].nunique(), 'task')}; "
    lead = have if len(singles) else ""
    text = (
        f"{lead}it needs a multi-task run in the sweep (multitask in its YAML file), which learns from their buffers."
    )
    if singles.empty:
        text = "It needs single-task runs, and a multi-task run in the sweep that learns from their replay buffers."
    return text[0].upper() + text[1:]


def basis(row: Mapping[Any, Any]) -> str:
    """What the verdict on a series stands on, below its heading."""
    updates = "" if pd.isna(row["updates"]) else f" after {human_steps(int(row['updates']))} updates"
    parts = [f"Multi-task: {counted(int(row['seeds']), 'seed')}{updates}"]
    if row["tasks_compared"]:
        parts.append(f"single-task: {counted(int(row['single_seeds']), 'seed')} (the most on any task)")
    if row["tasks_random_known"]:
        known = counted(int(row["tasks_random_known"]), "task")
        parts.append(f"above a random policy on {row['tasks_above_random']} of {known} where that is known")
    missing = int(row["tasks"]) - int(row["tasks_compared"])
    if missing:
        parts.append(f"{counted(missing, 'task')} without one of the two scores, see the table's notes")
    return "; ".join(parts) + "."


def rule(alpha: float) -> str:
    """How a verdict is come to."""
    return (
        f"A model counts as better or worse only where the {1 - alpha:.0%} interval of its mean difference (bootstrap "
        "over tasks) does not hold 0, the sign-flip permutation test over tasks, corrected over the models (Holm), has "
        f"p below {alpha:g}, at least {MIN_TASKS} tasks have both scores, each side has more than one seed, and the "
        "interval over agents does not hold 0 either. Up to five tasks cannot give p below 0.06. The interval over "
        "tasks is of the mean over tasks like these. That over agents is of these tasks with agents of other seeds: "
        "the scores of one multi-task agent rise and fall together, so whole agents are drawn."
    )
