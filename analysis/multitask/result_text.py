"""Tables of text and captions on the comparison of multi-task and single-task agents."""

from __future__ import annotations

from collections.abc import Iterable
from math import comb

import numpy as np
import pandas as pd

from analysis.multitask.answer import signed
from analysis.multitask.comparison import SINGLE
from analysis.multitask.explaining import MIN_ALONE, MIN_TOGETHER, PREDICTORS
from analysis.multitask.grouping import GROUPINGS
from analysis.scores import MIN_SEEDS_FOR_INTERVAL
from analysis.study import PUBLISHED_KIND
from analysis.style import series_name
from analysis.tables import counted
from analysis.words import MISSING, listed, rounded, series_names

PUBLISHED_NOTE = (
    "Published single-task scores stand in for tasks without a single-task run here: those agents learned in another "
    "version of the simulator, by another program, and from other buffers, so a difference from them is not the "
    "effect of learning many tasks alone."
)


def means_table(means: pd.DataFrame) -> pd.DataFrame:
    """The overview of all series as text, one row a series."""
    beside = [
        series_name(algorithm, "", size) if algorithm else MISSING
        for algorithm, size in zip(means["single_algorithm"], means["single_size"], strict=True)
    ]
    shown = pd.DataFrame(
        {
            "model": series_names(means),
            "single-task model": beside,
            "tasks with both": [f"{n} of {m}" for n, m in zip(means["tasks_compared"], means["tasks"], strict=True)],
            "of these published": means["tasks_published"].astype(str),
            "seeds": [_whole(n) for n in means["seeds"]],
            "its seeds": [_whole(n) for n in means["single_seeds"]],
            "mean score": _numbers(means["score"]),
            "mean single-task score": _numbers(means["single_score"]),
            "mean difference": [differing(*row) for row in _three(means, "difference", "low", "high")],
            "over agents": [_span(*row) for row in _three(means, "difference", "agents_low", "agents_high")],
            "p": _p_values(means["p"]),
            "p, Holm": _p_values(means["p_holm"]),
            "higher on": _of(means["higher"], means["tasks_compared"]),
            "better (tested)": means["better"].astype(str),
            "worse (tested)": means["worse"].astype(str),
            "above random on": _of(means["tasks_above_random"], means["tasks_random_known"]),
            "verdict": means["verdict"],
        }
    )
    optional = {"of these published": "0", "over agents": MISSING, "p, Holm": None}
    unused = [name for name, blank in optional.items() if blank is not None and shown[name].eq(blank).all()]
    return shown.drop(columns=[*unused, *(["p, Holm"] if len(means) == 1 else [])])


def comparison_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """The pairs of one series as text, the largest gain first; scores are normalised, 0 to 100."""
    rows = comparison.sort_values("difference", ascending=False, kind="stable", na_position="last")
    single = [
        series_name(algorithm, kind, size) if algorithm else MISSING
        for algorithm, kind, size in rows[SINGLE].itertuples(index=False, name=None)
    ]
    shown = pd.DataFrame(
        {
            "task": rows["task"],
            "multi-task score": _numbers(rows["score"]),
            "seeds": [_whole(n) for n in rows["seeds"]],
            "single-task score": _numbers(rows["single_score"]),
            "its seeds": [_whole(n) for n in rows["single_seeds"]],
            "single-task model": single,
            "at environment step": [MISSING if pd.isna(n) else f"{n:,.0f}" for n in rows["single_step"]],
            "random policy": _numbers(rows["random_score"]),
            "difference": [differing(*r) for r in _three(rows, "difference", "difference_low", "difference_high")],
            "p": _p_values(rows["p"]),
            "p, Holm": _p_values(rows["p_holm"]),
            "notes": rows["note"],
        }
    )
    optional = ["random policy", "p", "p, Holm", "notes"]
    return shown.drop(columns=[column for column in optional if shown[column].isin(["", MISSING]).all()])


def group_table(grouped: pd.DataFrame) -> pd.DataFrame:
    """The groups' mean differences as text."""
    return pd.DataFrame(
        {
            "by": grouped["grouping"],
            "group": grouped["group"],
            "tasks": grouped["tasks"].astype(str),
            "mean difference": [differing(*row) for row in _three(grouped, "difference", "low", "high")],
            "p": _p_values(grouped["p"]),
            "p, corrected": _p_values(grouped["p_bh"]),
            "which": grouped["members"],
        }
    )


def explained_table(explained: pd.DataFrame) -> pd.DataFrame:
    """The regressions as text, one row a predictor."""
    alone = _three(explained, "alone", "alone_low", "alone_high")
    together = _three(explained, "together", "together_low", "together_high")
    shown = pd.DataFrame(
        {
            "predictor": explained["predictor"].map(PREDICTORS),
            "tasks": explained["tasks"].astype(str),
            "standard deviation": rounded(explained["deviation"], np.full(len(explained), 3)),
            "rank correlation": [MISSING if pd.isna(v) else signed(v, 2) for v in explained["rank_correlation"]],
            "its p": _p_values(explained["rank_p"]),
            "slope alone": [differing(*row) for row in alone],
            "p alone": _p_values(explained["alone_p"]),
            "slope with the others": [differing(*row) for row in together],
            "p with the others": _p_values(explained["together_p"]),
            "p, Holm": _p_values(explained["together_p_holm"]),
        }
    )
    fitted = ["slope with the others", "p with the others", "p, Holm"]
    return shown.drop(columns=fitted) if explained["together"].isna().all() else shown


def overview_caption(means: pd.DataFrame) -> str:
    """What the rows of the overview figure are."""
    text = "Mean over tasks of multi-task minus single-task score, each model beside the single-task agents."
    if means["low"].notna().any():
        text += f" Bars: {means['level'].iloc[0]:.0%} interval over tasks (bootstrap)."
    if means["low"].isna().any():
        text += " No bar: fewer than 5 tasks, or no spread over them."
    return text + " Hollow: undecided."


def difference_caption(rows: pd.DataFrame, alpha: float) -> str:
    """What the marks of the differences task by task are."""
    compared = rows[rows["difference"].notna()]
    with_bar = compared["difference_low"].notna()
    parts = ["Multi-task minus single-task score, means over seeds, the largest gain first."]
    if with_bar.any():
        parts.append(f"Bars: {1 - alpha:.0%} interval over seeds (Welch's t).")
    if not with_bar.all():
        few = counted(MIN_SEEDS_FOR_INTERVAL, "seed")
        parts.append(f"Hollow: fewer than {few} on a side, no interval; another seed may differ by any amount.")
    if (compared["single_kind"] == PUBLISHED_KIND).any():
        parts.append("Diamonds: against a published single-task score.")
    missing = len(rows) - len(compared)
    if missing:
        parts.append(f"{counted(missing, 'task')} without one of the scores: in the table only.")
    return " ".join(parts)


def tests_note(rows: pd.DataFrame, alpha: float) -> str:
    """What the tests of single tasks can show with so many seeds."""
    tested = rows[rows["p"].notna()]
    if tested.empty:
        return "No test of single tasks: it needs at least two seeds on both sides."
    least = min(smallest_p(int(n), int(m)) for n, m in zip(tested["seeds"], tested["single_seeds"], strict=True))
    text = (
        "p: two-sample permutation test over seeds; p, Holm: corrected over the "
        f"{counted(len(tested), 'task')} that were tested."
    )
    if least * len(tested) > alpha:
        most, others = int(tested["seeds"].max()), int(tested["single_seeds"].max())
        text += (
            f" {most} against {others} seeds cannot give p below {least:.3g} on a task, and so, corrected, no task can "
            f"be found different at {alpha:g}: read single tasks as hints, the mean over tasks as the test."
        )
    return text


def smallest_p(n: int, m: int) -> float:
    """The smallest p that a two-sided permutation test of n against m seeds can give."""
    return (2 if n == m else 1) / comb(n + m, n)


def group_caption(grouped: pd.DataFrame, alpha: float) -> str:
    """What the rows of the groups' figure are."""
    return (
        f"Mean differences by group, the number of tasks in brackets. Bars: {1 - alpha:.0%} interval of the mean over "
        "the group's tasks (Student's t), from three tasks on. p: sign-flip permutation test over the group's tasks, "
        "corrected within each grouping (Benjamini and Hochberg); n tasks cannot give p below 2 / 2^n. Tasks that "
        "share their embodiment or objective with no other stand together."
    )


def groups_lacking(comparison: pd.DataFrame) -> str:
    """Why there are no groups to show."""
    compared = comparison["difference"].notna().sum()
    if not compared:
        return "No groups: no task has both scores."
    return f"No groups: {counted(int(compared), 'task')} with both scores, of one {' or one '.join(GROUPINGS)} alone."


def explaining_caption(explained: pd.DataFrame, share: float) -> str:
    """What the regressions are, and how far they can be read."""
    parts = ["Each dot is a task; the extreme ones are named."] if explained["alone"].notna().any() else []
    parts.append(
        "Slopes are points of the difference for one standard deviation of the predictor, by least squares, with "
        "intervals by bootstrap over tasks and p by permutation."
    )
    if pd.notna(share):
        parts.append(f"Together the predictors account for {share:.0%} of the variance over tasks.")
    if (explained["predictor"] == "single_score").any():
        parts.append(
            "The single-task score is part of the difference, with a minus sign: its own noise, and the top of the "
            "scale, make that slope negative even where nothing was gained or lost."
        )
    parts.append("What goes together is not thereby the cause.")
    return " ".join(parts)


def explaining_lacking(explained: pd.DataFrame) -> list[str]:
    """What could not be fitted, and why, a sentence each."""
    known = {row["predictor"]: row for row in explained.to_dict("records")}
    if not known:
        return ["Nothing to fit: no task has both scores."]
    sentences = []
    for name, label in PREDICTORS.items():
        if name not in known:
            why = {"nearness": "no task embeddings could be read", "data_share": "the data set is not recorded"}
            sentences.append(f"No {label}: {why.get(name, 'no task has both scores')}.")
        elif pd.isna(known[name]["alone"]):
            tasks = int(known[name]["tasks"])
            few = f"{counted(tasks, 'task')}, at least {MIN_ALONE} are needed"
            sentences.append(
                f"No fit on {label}: {few if tasks < MIN_ALONE else 'it, or the difference, never varies'}."
            )
    if explained["together"].isna().all():
        fittable = [name for name, row in known.items() if pd.notna(row["alone"])]
        tasks = min((int(known[name]["tasks"]) for name in fittable), default=0)
        reason = (
            "a single predictor is left" if len(fittable) == 1 and tasks >= MIN_TOGETHER
            else f"it needs at least {MIN_TOGETHER} tasks for which all predictors are known"
        )  # fmt: skip
        sentences.append(f"No fit of all predictors together: {reason}.")
    return sentences


def differing(value: float, low: float, high: float) -> str:
    """A difference with its interval, e.g. `+4.2 [+1.1, +7.3]`."""
    if pd.isna(value):
        return MISSING
    return signed(value) if pd.isna(low) else f"{signed(value)} [{signed(low)}, {signed(high)}]"


def _span(_: float, low: float, high: float) -> str:
    return MISSING if pd.isna(low) else f"{signed(low)} to {signed(high)}"


def _three(rows: pd.DataFrame, *names: str) -> Iterable[tuple[float, float, float]]:
    return rows[list(names)].astype(float).itertuples(index=False, name=None)


def _numbers(values: pd.Series) -> list[str]:
    return rounded(values, np.full(len(values), 1))


def _whole(value: float) -> str:
    return MISSING if pd.isna(value) else f"{int(value)}"


def _p_values(values: pd.Series) -> list[str]:
    return [MISSING if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" for p in values]


def _of(part: pd.Series, whole: pd.Series) -> list[str]:
    return [f"{n} of {m}" if m else MISSING for n, m in zip(part, whole, strict=True)]


def published_note(comparison: pd.DataFrame) -> str:
    """The caveat where published scores stand in; "" where none does."""
    tasks = comparison.loc[comparison["single_kind"] == PUBLISHED_KIND, "task"].drop_duplicates().tolist()
    if not tasks:
        return ""
    named = f" ({listed(tasks)})" if len(tasks) <= 6 else ""
    return f"{counted(len(tasks), 'task')}{named}: {PUBLISHED_NOTE[0].lower()}{PUBLISHED_NOTE[1:]}"
