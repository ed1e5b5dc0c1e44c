"""Words and tables on whether task embeddings follow the dynamics: no number here that is not computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.embeddings.claim import CLASSES, MIN_PAIRS, WITHIN, Claim
from analysis.embeddings.mantel import MIN_TASKS
from analysis.embeddings.structure import agent_name
from analysis.style import SUITE_NAMES
from analysis.tables import counted
from analysis.task_vectors import TaskEmbeddings
from analysis.words import MISSING, with_interval
from tdmpc2.tasks import TASKS

MINUS = "\N{MINUS SIGN}"
LABELS = (
    "Embodiment stands for the dynamics: the body, and the object that it must move. Objective is what the reward asks "
    "for, whichever the body (walk, run, reach, open). Every task of the registry has both labels."
)


def verdict(agent: TaskEmbeddings, claim: Claim) -> str:
    """What one agent's embeddings say about the claim, with the numbers."""
    who = f"{agent_name(agent)}, {counted(len(agent.tasks), 'task')}"
    classes = claim.classes[claim.classes["scope"] == claim.scope].set_index("shares")
    if claim.reason == "few":
        inside = " of the same suite" if claim.scope == WITHIN else ""
        return (
            f"Undecided, too few pairs of tasks ({who}): of {counted(int(classes['pairs'].sum()), 'pair')}{inside}, "
            f"{classes['pairs'].iloc[0]} share the embodiment alone and {classes['pairs'].iloc[1]} the objective "
            "alone; "
            f"at least {MIN_TASKS} tasks and {MIN_PAIRS} pairs of each kind are needed."
        )
    tests = claim.tests[claim.tests["scope"] == claim.scope].set_index("label")
    body, aim = tests.loc["embodiment"].to_dict(), tests.loc["objective"].to_dict()
    opening = {
        "noise": "Undecided, the embeddings cannot be told from random directions",
        "embodiment": "Supported, similarity goes with the embodiment more than with the objective",
        "objective": "Not supported, similarity goes with the objective more than with the embodiment",
        "neither": "Undecided, similarity goes detectably with neither embodiment nor objective",
        "both": "Undecided, similarity goes with both embodiment and objective, with no clear difference",
        "open": "Undecided, the difference between embodiment and objective is not clear",
    }[claim.reason]
    if claim.reason == "noise":
        opening += f" (mean squared similarity {claim.against_random['mean_square']:.4f}, of random directions "
        opening += f"{claim.against_random['random_mean_square']:.4f}, {p_text(claim.against_random['p'])})"
    means = [f"{_interval(row, 'mean', '')} {words}" for row, words in zip(
        classes.loc[["embodiment only", "objective only", "neither"]].to_dict("records"),
        ("where two tasks share the embodiment alone", "where the objective alone", "where neither"),
        strict=True,
    )]  # fmt: skip
    scope = " (within suites)" if claim.scope == WITHIN else ""
    return (
        f"{opening} ({who}). Mean cosine similarity{scope}: {', '.join(means)}. Partial Mantel correlation{scope}: "
        f"{_interval(body, 'partial_r', 'partial_')} with the embodiment ({p_text(float(body['partial_p']))}), "
        f"{_interval(aim, 'partial_r', 'partial_')} with the objective ({p_text(float(aim['partial_p']))}); difference "
        f"of the plain correlations {_interval(body, 'difference', 'difference_')}."
    )


def tests_shown(claim: Claim) -> pd.DataFrame:
    """The Mantel tests as a table of text."""
    rows = claim.tests.to_dict("records")
    return pd.DataFrame(
        {
            "pairs of": [SUITE_NAMES.get(r["scope"], r["scope"]) for r in rows],
            "same": claim.tests["label"],
            "tasks": claim.tests["tasks"].astype(str),
            "pairs": [f"{r['pairs']:,}" for r in rows],
            "that share it": [f"{r['sharing']:,}" for r in rows],
            "Mantel r": [_interval(r, "r", "r_") for r in rows],
            "p": [p_cell(r["p"]) for r in rows],
            "partial r": [_interval(r, "partial_r", "partial_") for r in rows],
            "p of partial r": [p_cell(r["partial_p"]) for r in rows],
            "r embodiment - r objective": [_interval(r, "difference", "difference_") for r in rows],
        }
    )


def tests_caption(agent: TaskEmbeddings, claim: Claim) -> str:
    """What the table of tests shows."""
    most = claim.tests["permutations"].max()
    exact = claim.tests.loc[claim.tests["permutations"] == most, "exact"].all()
    count = f"{most:,}{' (all there are)' if exact else ''}"
    words = (
        f"Mantel tests on {agent_name(agent)}: correlation over pairs of tasks of their similarity with sharing a "
        f"label; partial: the other label held fixed. p: two-sided, {count} permutations of the tasks. "
        f"{_intervals(claim)}"
    )
    if claim.scope == WITHIN:
        words += (
            " Within suites: pairs are compared with those of the same two suites, and tasks permuted within their "
            "suite, so that differences between suites explain nothing; the verdict rests on this."
        )
    if claim.tests["r"].isna().any():
        words += f" {MISSING}: no pair shares the label, or all do."
    return words


def classes_shown(claim: Claim) -> pd.DataFrame:
    """Mean similarities as a table of text."""
    contrast = "embodiment only - objective only"
    wide: dict[str, list[str]] = {name: [] for name in ("pairs of", *CLASSES, contrast)}
    for scope, rows in claim.classes.groupby("scope", sort=False):
        wide["pairs of"].append(SUITE_NAMES.get(str(scope), str(scope)))
        for row in rows.to_dict("records"):
            shown = _interval(row, "mean", "")
            wide[row["shares"]].append(shown if shown == MISSING else f"{shown} ({row['pairs']:,})")
        wide[contrast].append(_interval(rows.iloc[0].to_dict(), "contrast", "contrast_"))
    return pd.DataFrame(wide)


def classes_caption(claim: Claim) -> str:
    """What the table of mean similarities shows."""
    within = " Within suites: pairs of the same suite alone." if claim.scope == WITHIN else ""
    return f"Mean cosine similarity by what two tasks share (number of pairs). {_intervals(claim)}{within}"


def claim_caption(agent: TaskEmbeddings, claim: Claim) -> str:
    """Below the figure of the claim."""
    pairs = "each pair of tasks of the same suite" if several_suites(agent) else "each pair of tasks"
    words = f"{agent_name(agent)}. Left: a point for {pairs}, by what the two share; diamonds are means."
    if claim.tests["partial_r"].notna().any():
        words += " Right: correlation of similarity with sharing one label, the other held fixed (partial Mantel)."
    return f"{words} {_intervals(claim)}"


def several_suites(agent: TaskEmbeddings) -> bool:
    """Whether the agent's tasks are of more than one suite."""
    return len({TASKS[task].domain for task in agent.tasks}) > 1


def _interval(row: Mapping[Any, Any], value: str, stem: str) -> str:
    text = with_interval(float(row[value]), float(row[f"{stem}low"]), float(row[f"{stem}high"]), digits=2)
    return text.replace("-", MINUS)


def p_text(p: float) -> str:
    """A p-value in a sentence, e.g. `p = 0.012`."""
    if pd.isna(p):
        return "no p-value"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def p_cell(p: float) -> str:
    """A p-value in a table, e.g. `0.012`."""
    return MISSING if pd.isna(p) else p_text(p).removeprefix("p = ").removeprefix("p ")


def _intervals(claim: Claim) -> str:
    """What the intervals are."""
    if claim.tests["tasks"].max() < MIN_TASKS:
        return f"No intervals: fewer than {MIN_TASKS} tasks."
    return "Intervals are 95%, from a bootstrap over tasks; they do not tell what another seed would give."
