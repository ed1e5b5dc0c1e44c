"""Is a multi-task model better than the single-task ones: one row a multi-task series, with its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.multitask.comparison import SINGLE
from analysis.results import SERIES
from analysis.scores import groups
from analysis.significance import adjust, paired_test
from analysis.study import PUBLISHED_KIND
from tdmpc2.tasks import TASK_SETS

Verdict = Literal["better", "worse", "undecided", "not compared"]
MIN_TASKS = 5
"""With fewer tasks no statement is made about tasks at large."""


def compare_means(comparison: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Means over the tasks that have both scores, tested, with a verdict.

    The interval of the mean difference is over tasks (bootstrap), its p by a sign-flip permutation test, corrected over
    the series (Holm). Tasks of one agent share its luck, which neither knows of: so there is an interval over agents
    too. Better or worse is a series whose two intervals do not hold 0, whose corrected p is below alpha, with at least
    `MIN_TASKS` tasks and, on either side, more than one seed somewhere. All else is undecided.

    Args:
        comparison: as `comparison.compare` returns it.
        alpha: 1 - level of the intervals, and the bound of corrected p.

    Returns:
        One row a series (`SERIES`), the largest task set and size first: single_algorithm, single_size (of our runs
        beside it; "" and missing where there are none); tasks; updates; tasks_scored, tasks_random_known (among
        those), tasks_above_random (among these); tasks_compared (with both scores), tasks_published (of these, beside
        a published score); the means score and single_score over them; seeds and single_seeds (the most on any
        task); difference, low, high (over tasks; NaN with fewer than `MIN_TASKS` tasks), agents_low, agents_high (over
        agents), level, p, p_holm; higher and lower (tasks with a positive or negative difference); better and worse
        (tasks, by p_holm of the task); most_gained, gain, most_lost, loss (the extreme tasks and their differences);
        verdict; reason (why it is undecided).
    """
    records = [dict(zip(SERIES, key, strict=True)) | _means(rows, alpha) for key, rows in groups(comparison)]
    columns = [
        *SERIES, "single_algorithm", "single_size", "tasks", "updates", "tasks_scored", "tasks_random_known",
        "tasks_above_random", "tasks_compared", "tasks_published", "score", "single_score", "seeds", "single_seeds",
        "difference", "low", "high", "agents_low", "agents_high", "level", "p", "p_holm", "higher", "lower", "better",
        "worse", "most_gained",
        "gain", "most_lost", "loss", "verdict", "reason",
    ]  # fmt: skip
    if not records:
        return pd.DataFrame(columns=pd.Index(columns))
    table = pd.DataFrame(records)
    table["p_holm"] = adjust(table["p"].to_numpy(float), "holm")
    judged = [_verdict(row, alpha) for row in table.to_dict("records")]
    table["verdict"], table["reason"] = [verdict for verdict, _ in judged], [reason for _, reason in judged]
    whole = dict.fromkeys(("size", "single_size", "updates"), "Int64")
    order = table.assign(single=table["kind"] != "multi", known=~table["task_set"].isin(list(TASK_SETS)))
    by = ["single", "tasks", "known", "task_set", "size", "algorithm"]
    ascending = [True, False, True, True, False, True]
    return order.sort_values(by, ascending=ascending, kind="stable")[columns].astype(whole).reset_index(drop=True)


def _means(rows: pd.DataFrame, alpha: float) -> dict[str, object]:
    """The part of a row of `compare_means` that needs no other series."""
    both = rows[rows["difference"].notna()]
    differences = both["difference"].to_numpy(float)
    beside = rows.loc[~rows["single_kind"].isin(["", PUBLISHED_KIND]), SINGLE]
    test = paired_test(differences, level=1 - alpha) if len(both) else None
    ranked = both.sort_values("difference", kind="stable")
    significant = both["p_holm"] < alpha
    return {
        "single_algorithm": beside["single_algorithm"].iloc[0] if len(beside) else "",
        "single_size": beside["single_size"].iloc[0] if len(beside) else pd.NA,
        "tasks": len(rows),
        "updates": rows["updates"].max(),
        "tasks_scored": int(rows["score"].notna().sum()),
        "tasks_random_known": int(rows["over_random"].notna().sum()),
        "tasks_above_random": int((rows["over_random"] > 0).sum()),
        "tasks_compared": len(both),
        "tasks_published": int((both["single_kind"] == PUBLISHED_KIND).sum()),
        "score": both["score"].mean(),
        "single_score": both["single_score"].mean(),
        "seeds": int(both["seeds"].max()) if len(both) else int(rows["seeds"].max()),
        "single_seeds": int(both["single_seeds"].max()) if len(both) else int(rows["single_seeds"].max()),
        "difference": test.mean if test else np.nan,
        "low": test.low if test and len(both) >= MIN_TASKS else np.nan,
        "high": test.high if test and len(both) >= MIN_TASKS else np.nan,
        "agents_low": rows["agents_low"].iloc[0],
        "agents_high": rows["agents_high"].iloc[0],
        "level": 1 - alpha,
        "p": test.p if test and len(both) > 1 else np.nan,
        "higher": int((differences > 0).sum()),
        "lower": int((differences < 0).sum()),
        "better": int((significant & (differences > 0)).sum()),
        "worse": int((significant & (differences < 0)).sum()),
        "most_gained": ranked["task"].iloc[-1] if len(ranked) else "",
        "gain": ranked["difference"].max(),
        "most_lost": ranked["task"].iloc[0] if len(ranked) else "",
        "loss": ranked["difference"].min(),
    }


def _verdict(row: Mapping[Any, Any], alpha: float) -> tuple[Verdict, str]:
    """The verdict on a series, and what keeps it from being decided."""
    compared = int(row["tasks_compared"])
    if compared == 0:
        return "not compared", "no task has both scores"
    reasons = []
    if compared < MIN_TASKS:
        few = "1 task is" if compared == 1 else f"{compared} tasks are"
        reasons.append(f"{few} too few, at least {MIN_TASKS} are needed")
    alone = [who for who, n in (("multi-task", row["seeds"]), ("single-task", row["single_seeds"])) if n <= 1]
    if alone:
        who = "either side has" if len(alone) > 1 else f"the {alone[0]} side has"
        reasons.append(f"{who} one seed a task, so that luck cannot be told from gain")
    if compared >= MIN_TASKS:
        if row["low"] <= 0 <= row["high"]:
            reasons.append("the interval holds 0")
        elif not row["p_holm"] < alpha:
            reasons.append(f"the permutation test gives no p below {alpha:g}")
    if row["agents_low"] <= 0 <= row["agents_high"]:
        span = f"{row['agents_low']:+.1f} to {row['agents_high']:+.1f}"
        reasons.append(f"agents of other seeds might turn it round (interval over agents: {span})")
    if reasons:
        return "undecided", "; ".join(reasons)
    return ("better" if row["difference"] > 0 else "worse"), ""
