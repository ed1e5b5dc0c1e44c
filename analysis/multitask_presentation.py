"""Words and tables on agents that learned from a data set: no number here that is not computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.comparison import PAIR, compare_means
from analysis.presentation import MISSING, listed, ranges, rounded, series_names, states
from analysis.results import SERIES
from analysis.scores import MIN_SEEDS_FOR_INTERVAL, groups, offline, task_order
from analysis.style import human_steps, series_name
from analysis.tables import counted
from tdmpc2.tasks import TASK_SETS, expand_tasks

_TASKS_NAMED = 6
"""Up to so many tasks are named, of more the number is told."""
_REASONS_SHOWN = 5


def heading(runs: pd.DataFrame) -> str:
    """The section's heading: what the offline runs are."""
    return "Multi-task agents" if (runs["kind"] == "multi").any() else "Agents trained offline"


def task_sets(runs: pd.DataFrame) -> list[str]:
    """The task sets of the offline runs, in their order."""
    return [str(name) for name in offline(runs)["task_set"].drop_duplicates()]


def trained_on(runs: pd.DataFrame, task_set: str) -> str:
    """What the agents of a task set learned from: the data set's name, the tasks, the updates.

    Args:
        runs: table of runs (`SweepResults.runs`).
        task_set: one of `task_sets`.
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


def summary(comparison: pd.DataFrame) -> str:
    """How the offline agents do, against a random policy and against the single-task agents, in a paragraph.

    Args:
        comparison: as `comparison.compare_kinds` returns it.
    """
    sentences = []
    for key, rows in groups(compare_means(comparison), SERIES):
        first = rows.iloc[0]
        if not first["tasks_scored"]:
            sentences.append(f"{series_name(*key)} has not been evaluated yet.")
            continue
        clauses = [_against_singles(score, pairs) for (_, score), pairs in groups(rows, ["tasks_compared", "score"])]
        if first["tasks_random_known"]:
            known = "" if first["tasks_random_known"] == first["tasks"] else " where that is known"
            over = counted(int(first["tasks_random_known"]), "task")
            clauses.append(f"above a random policy on {first['tasks_above_random']} of {over}{known}")
        after = human_steps(int(first["updates"]))
        sentences.append(f"{series_name(*key)}, after {after} updates: {'; '.join(clauses)}.")
    if (comparison["seeds"] > 0).any() and comparison["seeds"].max() < MIN_SEEDS_FOR_INTERVAL:
        seeds = "one seed" if comparison["seeds"].max() == 1 else "two seeds"
        sentences.append(f"With {seeds} a model, how far another seed would differ is not known.")
    if comparison["score"].notna().any():
        sentences.insert(0, "Normalised scores, 0 to 100, means over tasks.")
    return " ".join(sentences)


def _against_singles(score: float, pairs: pd.DataFrame) -> str:
    """A mean score beside those of all single-task series that were scored on as many of its tasks."""
    over, tasks = int(pairs["tasks_compared"].iloc[0]), int(pairs["tasks"].iloc[0])
    if over == 0:
        return "no single-task score beside it"
    singles = [
        f"{row['single_score']:.1f} of {series_name(row['single_algorithm'], '', row['single_size'])} single-task "
        f"agents (better on {row['tasks_above_single']} of {over})"
        for row in pairs.to_dict("records")
    ]
    where = counted(over, "task") if over == tasks else f"{over} of {counted(tasks, 'task')}"
    return f"{score:.1f} over {where}, against {listed(singles)}"


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
            "Dashed: the final score of the single-task agent of the size whose colour it has, mean over its seeds, at "
            "the end of its training."
        )
    if comparison["random_score"].notna().any():
        parts.append("Dotted: mean return of a random policy.")
    return " ".join(parts)


def compared_caption(comparison: pd.DataFrame) -> str:
    """What the marks of the compared scores are, and how many seeds and episodes they stand for."""
    parts = ["Normalised scores, 0 to 100: return / 10, success rate times 100; last evaluation of each agent."]
    parts.append(_basis("Multi-task" if (comparison["kind"] == "multi").any() else "Offline", comparison, ""))
    if comparison["single_score"].notna().any():
        parts.append(_basis("single-task", comparison, "single_"))
    parts = [parts[0], "; ".join(parts[1:]) + "."]
    seeds = pd.concat([comparison["seeds"], comparison["single_seeds"].dropna()])
    if seeds.max() > 1:
        parts.append(_spread("Bars are", seeds))
    else:
        parts.append("No bars: one seed says nothing about another.")
    parts.append("All act by planning, without exploration noise.")
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


def comparison_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """The comparison as a table of text, for people; scores are normalised, 0 to 100."""
    one = np.full(len(comparison), 1)
    single = [
        MISSING if pd.isna(size) else series_name(algorithm, "", size)
        for algorithm, size in zip(comparison["single_algorithm"], comparison["single_size"], strict=True)
    ]
    shown = pd.DataFrame(
        {
            "task": comparison["task"],
            "model": series_names(comparison),
            "updates": [MISSING if pd.isna(n) else f"{n:,}" for n in comparison["updates"]],
            "seeds": comparison["seeds"].astype(str),
            "score": rounded(comparison["score"], one),
            "95% interval": ranges(comparison["low"], comparison["high"], one, comparison["low"].notna()),
            "random policy": rounded(comparison["random_score"], one),
            "single-task model": single,
            "its environment steps": [MISSING if pd.isna(n) else f"{n:,}" for n in comparison["single_env_steps"]],
            "its seeds": [MISSING if pd.isna(n) else str(int(n)) for n in comparison["single_seeds"]],
            "its score": rounded(comparison["single_score"], one),
            "its 95% interval": ranges(
                comparison["single_low"], comparison["single_high"], one, comparison["single_low"].notna()
            ),
            "difference": [MISSING if pd.isna(d) else f"{d:+.1f}" for d in comparison["difference"]],
            "notes": comparison["note"],
        }
    )
    optional = ["95% interval", "its 95% interval", "random policy", "notes"]
    return shown.drop(columns=[column for column in optional if shown[column].isin(["", MISSING]).all()])


def means_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """Means over the tasks that have both scores, as a table of text."""
    means = compare_means(comparison)
    one = np.full(len(means), 1)
    paired = means["single_size"].notna()
    return pd.DataFrame(
        {
            "model": series_names(means),
            "single-task model": [
                series_name(key[-2], "", key[-1]) if known else MISSING
                for key, known in zip(means[PAIR].itertuples(index=False, name=None), paired, strict=True)
            ],
            "tasks with both": [f"{n} of {m}" for n, m in zip(means["tasks_compared"], means["tasks"], strict=True)],
            "mean score": rounded(means["score"], one),
            "mean single-task score": rounded(means["single_score"], one),
            "mean difference": [MISSING if pd.isna(d) else f"{d:+.1f}" for d in means["difference"]],
            "better on": [_of(n, m) for n, m in zip(means["tasks_above_single"], means["tasks_compared"], strict=True)],
            "above random on": [
                _of(n, m) for n, m in zip(means["tasks_above_random"], means["tasks_random_known"], strict=True)
            ],
        }
    )


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole}" if whole else MISSING


def file_suffix(task_set: str, all_sets: Sequence[str]) -> str:
    """What tells the files of a task set from those of the others: "" where there is one, else e.g. `-mt30`."""
    if len(all_sets) == 1:
        return ""
    return "-" + "".join(c if c.isalnum() else "-" for c in task_set).strip("-").replace("--", "-")
