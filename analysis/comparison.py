"""One agent for many tasks against one agent a task: small pure functions on the table of final scores.

All scores are normalised, 0 to 100 (return / 10, success x 100). What is compared is what each agent scored at its own
end: the multi-task agent at its last evaluation, the single-task agent at the end of its training, when the replay
buffer was complete that the multi-task agent learned from; both by planning, without exploration noise. How many seeds
and episodes stand behind a number is in the table, beside it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.results import SERIES, registry_table
from analysis.runs import OFFLINE_KINDS
from analysis.scores import task_order

_SCORED = ["seeds", "episodes", "score", "min", "max", "low", "high"]
COMPARISON_COLUMNS = [
    "suite", "domain", "task", "metric", *SERIES, "updates", *_SCORED,
    "single_algorithm", "single_size", "single_env_steps", *(f"single_{name}" for name in _SCORED),
    "random_score", "difference", "over_random", "note",
]  # fmt: skip
"""Columns of `compare_kinds`."""
PAIR = [*SERIES, "single_algorithm", "single_size"]
"""What tells one comparison from another: an offline series and the single-task series beside it."""


def normalised(final: pd.DataFrame) -> pd.DataFrame:
    """Final scores with min, max, low and high on the scale of `score`, 0 to 100, and `random_score` beside them.

    Args:
        final: as `scores.final_scores` returns it.

    Returns:
        The same rows; mean, std and random_return stay in the metric's own unit.
    """
    factor = final["task"].map(registry_table()["score_scale"]).astype(float)
    scaled = {name: final[name].astype(float) * factor for name in ("min", "max", "low", "high")}
    return final.assign(**scaled, random_score=final["random_return"].astype(float) * factor)


def compare_kinds(final: pd.DataFrame) -> pd.DataFrame:
    """Each offline agent's score on each of its tasks beside the single-task and the random one.

    A row for each task, offline series (kinds multi and offline) and single-task series of that task. Single-task
    agents from pixels are left out: data sets are of states. Where there is no single-task score, or no score of the
    offline agent yet, the row stands all the same, and its note says so.

    Args:
        final: as `scores.final_scores` returns it.

    Returns:
        suite, domain, task, metric, algorithm, kind, size, task_set, updates; seeds and episodes behind the score,
        score, min and max over seeds, low and high (95% interval of the mean over seeds, NaN below three); the same
        of the single-task agent as single_*, with its environment steps; random_score (NaN where it is not known);
        difference (score - single_score), over_random (score - random_score); note.
    """
    scaled = normalised(final)
    is_learned_offline = scaled["kind"].isin(OFFLINE_KINDS)
    is_single = (scaled["kind"] == "single") & ~scaled["algorithm"].str.contains("-pixels")
    single = scaled.loc[is_single, ["task", "algorithm", "size", "env_steps", "note", *_SCORED]]
    single = single.set_index("task").add_prefix("single_").reset_index()
    pairs = scaled[is_learned_offline].merge(single, on="task", how="left")
    pairs["difference"] = pairs["score"] - pairs["single_score"]
    pairs["over_random"] = pairs["score"] - pairs["random_score"]
    pairs["note"] = [
        _note(note, size, single_note)
        for note, size, single_note in zip(pairs["note"], pairs["single_size"], pairs["single_note"], strict=True)
    ]
    place = {task: i for i, task in enumerate(task_order(pairs["task"]))}
    ordered = pairs.assign(place=pairs["task"].map(place)).sort_values(
        ["algorithm", "task_set", "kind", "place", "size", "single_algorithm", "single_size"], kind="stable"
    )
    return ordered[COMPARISON_COLUMNS].reset_index(drop=True)


def _note(own: str, single_size: object, single: object) -> str:
    """What is amiss with a pair: with the offline agent's score, and with the single-task one."""
    if pd.isna(single_size):  # type: ignore[call-overload]  # a scalar
        return "; ".join(part for part in (own, "no single-task run of this task") if part)
    return "; ".join(part for part in (own, f"single-task: {single}" if single else "") if part)


def compare_means(comparison: pd.DataFrame) -> pd.DataFrame:
    """Means over tasks of each comparison, over the tasks that have both scores: else they would be of other tasks.

    Args:
        comparison: as `compare_kinds` returns it.

    Returns:
        One row a pair of series (`PAIR`); single_* missing for an offline series without any single-task series beside
        it. Of the offline series, over all its tasks: tasks, updates (at its last evaluation), tasks_scored,
        tasks_random_known (among those), tasks_above_random (among these). Of the pair: tasks_compared (with both
        scores), tasks_above_single, and the means score, single_score and difference over them (NaN without any).
    """
    own = comparison.drop_duplicates(["task", *SERIES])
    facts = {
        "tasks": pd.Series(1, index=own.index),
        "tasks_scored": own["score"].notna(),
        "tasks_random_known": own["over_random"].notna(),
        "tasks_above_random": own["over_random"] > 0,
    }
    series = [own[name] for name in SERIES]
    totals = pd.DataFrame(facts).astype(np.int64).groupby(series).sum()
    totals.insert(1, "updates", own.groupby(SERIES)["updates"].max())

    both = comparison[comparison["difference"].notna()]
    pairs = comparison.loc[comparison["single_size"].notna(), PAIR].drop_duplicates()
    grouped = both.assign(tasks_above_single=both["difference"] > 0).groupby(PAIR)
    means = grouped[["score", "single_score", "difference"]].mean()
    means.insert(0, "tasks_above_single", grouped["tasks_above_single"].sum())
    means.insert(0, "tasks_compared", grouped.size())
    table = totals.reset_index().merge(pairs, on=SERIES, how="left").merge(means.reset_index(), on=PAIR, how="left")
    return table.fillna({"tasks_compared": 0, "tasks_above_single": 0}).astype(
        {"tasks_compared": np.int64, "tasks_above_single": np.int64}
    )
