"""Words and tables on agents that learned from a data set: no number here that is not computed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from analysis.scores import MIN_SEEDS_FOR_INTERVAL, offline, task_order
from analysis.style import series_name
from analysis.tables import counted
from analysis.words import listed, states
from tdmpc2.tasks import TASK_SETS, expand_tasks

_TASKS_NAMED = 6
"""Up to so many tasks are named, of more the number is told."""
_REASONS_SHOWN = 5


def trained_on(runs: pd.DataFrame, task_set: str) -> str:
    """What the agents of a task set learned from: the data set's name, the tasks, the updates.

    Args:
        runs: table of runs (`SweepResults.runs`).
        task_set: name of one of the runs' task sets.
    """
    runs = offline(runs)
    runs = runs[runs["task_set"] == task_set]
    together = runs["kind"].iloc[0] == "multi"
    models = list(
        dict.fromkeys(series_name(*key) for key in zip(runs["algorithm"], runs["kind"], runs["size"], strict=True))
    )
    names = task_order(name for tasks in runs["task"] for name in expand_tasks(str(tasks)))
    tasks = counted(len(names), "task")
    if together and task_set in TASK_SETS:
        tasks = f"the {tasks} of {task_set}"
    if len(names) <= _TASKS_NAMED:
        tasks += f" ({', '.join(names)})"
    found = [f'"{name}"' for name in sorted(set(runs["data"]) - {""})]
    source = f"the data set{'s' if len(found) > 1 else ''} {listed(found)}" if found else "a data set not recorded yet"
    totals = [f"{int(total):,}" for total in sorted(runs["total_updates"].dropna().unique())]
    budget = f"in {listed(totals)} updates" if totals else "in a number of updates that is not recorded yet"
    each = "Each is one agent for" if together else "Each is an agent for one of"
    return (
        f"{listed(models)}. {each} {tasks}, learned offline from {source}, {budget}. No environment step is taken, so "
        "updates are the axis."
    )


def unfinished(runs: pd.DataFrame) -> str:
    """Which offline runs are not done, and why; "" where all are."""
    runs = offline(runs)
    missing = runs[runs["state"] != "done"]
    if missing.empty:
        return ""
    told = missing[missing["reason"] != ""]
    reasons = [f"{name}: {reason}" for name, reason in zip(told["run"], told["reason"], strict=True)]
    more = len(reasons) - _REASONS_SHOWN
    shown = [*reasons[:_REASONS_SHOWN], *([f"and {more} more, see the table of runs"] if more > 0 else [])]
    waiting = (missing["state"] == "not started").any()
    what = "multi-task run" if (runs["kind"] == "multi").all() else "offline run"
    sentences = [
        f"{len(missing)} of {counted(len(runs), what)} not done: {states(missing)}.",
        "A run that has not started waits for its data set, or for its turn." if waiting else "",
        f"{'; '.join(shown)}." if shown else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def curve_caption(comparison: pd.DataFrame) -> str:
    """What the lines of the curves over updates are."""
    parts = ["Evaluation over updates, a line for each model size."]
    most = comparison["seeds"].max()
    if most <= 1:
        parts.append("One seed a line.")
    else:
        parts.append("Thick lines are means over seeds, thin ones single seeds.")
        parts.append(_spread("The shading is", comparison["seeds"]))
    if comparison["single_score"].notna().any():
        parts.append(
            "Dashed: the score of the single-task agent that it is compared with, mean over its seeds, taken where its "
            "buffer ended."
        )
    if comparison["random_score"].notna().any():
        parts.append("Dotted: mean return of a random policy.")
    return " ".join(parts)


def compared_caption(comparison: pd.DataFrame) -> str:
    """What the marks of the compared scores are, and how many seeds and episodes they stand for."""
    parts = ["Normalised scores, 0 to 100: return / 10, success rate times 100."]
    parts.append(_basis("Multi-task" if (comparison["kind"] == "multi").any() else "Offline", comparison, ""))
    if comparison["single_score"].notna().any():
        parts.append(_basis("single-task", comparison, "single_"))
    parts = [parts[0], "; ".join(parts[1:]) + "."]
    seeds = pd.concat([comparison["seeds"], comparison["single_seeds"].dropna()])
    if seeds.max() > 1:
        parts.append(_spread("Bars are", seeds))
    else:
        parts.append("No bars: one seed says nothing about another.")
    return " ".join(parts)


def _basis(who: str, comparison: pd.DataFrame, prefix: str) -> str:
    """Seeds and episodes behind the scores of one side."""
    scored = comparison[comparison[f"{prefix}score"].notna()]
    if scored.empty:
        return f"{who}: no score yet"
    seeds = _span(scored[f"{prefix}seeds"], "seed")
    known = scored[f"{prefix}episodes"].notna()
    per_seed = (scored.loc[known, f"{prefix}episodes"] / scored.loc[known, f"{prefix}seeds"]).round()
    episodes = _span(per_seed, "episode") if known.any() else "an unrecorded number of episodes"
    return f"{who}: {seeds}, {episodes} a seed and task"


def _span(values: pd.Series, noun: str) -> str:
    low, high = int(values.min()), int(values.max())
    return counted(low, noun) if low == high else f"{low} to {counted(high, noun)}"


def _spread(what: str, seeds: pd.Series) -> str:
    if seeds.max() < MIN_SEEDS_FOR_INTERVAL:
        return f"{what} the range of two seeds; two are too few for an interval."
    rest = ", with two seeds their range" if (seeds == 2).any() else ""
    return f"{what} the 95% interval of the mean over seeds (Student's t){rest}."


def file_suffix(part: str, parts: Sequence[str]) -> str:
    """What tells the files of a part of the page from those of the others: "" where there is one, else e.g. `-mt30`."""
    return "" if len(parts) == 1 else "-" + "-".join(re.findall(r"[a-z0-9]+", part.lower()))
