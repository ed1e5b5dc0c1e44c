"""The claim that task embeddings are alike where the dynamics are, more than where the objective is.

The dynamics of a task are its embodiment's (body and object to be moved), see `tdmpc2.tasks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.embeddings.mantel import MIN_TASKS, Estimate, MantelTest, Pairs, bootstrap_means, make_pairs, mantel_test
from analysis.embeddings.structure import agents_table
from analysis.task_vectors import TaskEmbeddings, cosine_similarity
from tdmpc2.errors import require
from tdmpc2.tasks import TASKS

SIGNIFICANT = 0.05
MIN_PAIRS = 3
"""So many pairs must share the embodiment alone, and the objective alone, for the claim to be judged."""
CLASSES = ("embodiment only", "objective only", "both", "neither")
"""What two tasks may share."""
ALL, WITHIN = "all tasks", "within suites"
"""Scopes of a test besides the single suites: `within suites` compares pairs of the same two suites with one another,
so that suites as a whole explain nothing."""
Word = Literal["supported", "not supported", "undecided"]
Reason = Literal["few", "noise", "embodiment", "objective", "neither", "both", "open"]


@dataclass(frozen=True)
class Claim:
    """What one agent's embeddings say about the claim."""

    tests: pd.DataFrame
    """Mantel tests, one row a scope (`ALL`, `WITHIN`, suites) and label: scope, label, tasks, pairs, sharing (pairs
    that share the label); r, r_low, r_high, p; partial_r, partial_low, partial_high, partial_p (the other label held
    fixed); difference, difference_low, difference_high (r of embodiment less r of objective); permutations, exact."""
    classes: pd.DataFrame
    """Mean similarity, one row a scope and class: scope, shares (one of `CLASSES`), pairs, mean, low, high; contrast,
    contrast_low, contrast_high: the class `embodiment only` less `objective only`. In the scope `WITHIN`, pairs of the
    same suite alone."""
    pairs: pd.DataFrame
    """All pairs of tasks: task, other, similarity, shares, same_suite."""
    against_random: dict[str, float]
    """The agent's row of `structure.agents_table`: mean_square, random_mean_square and p."""
    scope: str
    """The scope that decides: `WITHIN` where there are several suites, else `ALL`."""
    word: Word
    """The verdict."""
    reason: Reason
    """Why: too few pairs that tell the labels apart; similarity like that of random directions; similarity follows the
    embodiment more, or the objective; it goes with neither; with both, with no clear difference; anything else."""


def judge_claim(agent: TaskEmbeddings, *, permutations: int = 10_000, resamples: int = 2_000, seed: int = 0) -> Claim:
    """Judge the claim by one agent's embeddings.

    It is supported where sharing the embodiment goes with similarity when the objective is held fixed (partial Mantel
    test), and its correlation exceeds the objective's with 95% confidence; not supported where the same holds with the
    two exchanged; else undecided.

    Args:
        agent: the agent's embeddings.
        permutations: of each Mantel test.
        resamples: draws of tasks for each interval.
        seed: of both.

    Raises:
        UserError: `permutations` is less than 1.
    """
    require(permutations >= 1, f"permutations: must be at least 1, not {permutations}")
    similarity = cosine_similarity(agent.vectors)
    suites = np.array([TASKS[task].domain for task in agent.tasks], dtype=object)
    names = list(dict.fromkeys(suites))
    everything = np.ones(len(suites), dtype=bool)
    scopes: list[tuple[str, NDArray[np.bool_], bool]] = [(ALL, everything, False)]
    if len(names) > 1:
        scopes.append((WITHIN, everything, True))
        scopes += [(name, suites == name, False) for name in names if (suites == name).sum() >= MIN_TASKS]

    tests, classes = [], []
    for scope, chosen, within in scopes:
        pairs = _pairs(agent, similarity, chosen, suites if within else None)
        test = mantel_test(pairs, permutations=permutations, resamples=resamples, seed=seed)
        tests += _test_rows(scope, pairs, test)
        counted = suites[pairs.first] == suites[pairs.second] if within else np.ones(len(pairs.first), dtype=bool)
        groups = _classes(pairs) & counted
        means = bootstrap_means(pairs, groups, resamples=resamples, seed=seed)
        classes += _class_rows(scope, groups, means)
    table, means_table = pd.DataFrame(tests), pd.DataFrame(classes)
    scope = WITHIN if len(names) > 1 else ALL
    row = agents_table([agent]).iloc[0]
    random = {name: float(row[name]) for name in ("mean_square", "random_mean_square", "p")}
    word, reason = judge(table[table["scope"] == scope], means_table[means_table["scope"] == scope], random["p"])
    return Claim(table, means_table, _pair_table(agent, similarity, suites), random, scope, word, reason)


def judge(tests: pd.DataFrame, classes: pd.DataFrame, random_p: float) -> tuple[Word, Reason]:
    """The verdict and its reason.

    Args:
        tests: rows of one scope of `Claim.tests`.
        classes: rows of the same scope of `Claim.classes`.
        random_p: p-value for the embeddings being random directions.
    """
    pairs = classes.set_index("shares")["pairs"]
    if tests["tasks"].iloc[0] < MIN_TASKS or pairs[list(CLASSES[:2])].min() < MIN_PAIRS:
        return "undecided", "few"
    if not random_p < SIGNIFICANT:
        return "undecided", "noise"
    rows = tests.set_index("label")
    clear = (rows["partial_p"] < SIGNIFICANT) & (rows["partial_r"] > 0)
    difference = rows.iloc[0]
    if clear["embodiment"] and difference["difference_low"] > 0:
        return "supported", "embodiment"
    if clear["objective"] and difference["difference_high"] < 0:
        return "not supported", "objective"
    if not clear.any():
        return "undecided", "neither"
    return "undecided", "both" if clear.all() else "open"


def _pairs(
    agent: TaskEmbeddings,
    similarity: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    suites: NDArray[np.object_] | None,
) -> Pairs:
    tasks = [TASKS[task] for task, is_in in zip(agent.tasks, chosen, strict=True) if is_in]
    return make_pairs(
        similarity[np.ix_(chosen, chosen)],
        [task.embodiment for task in tasks],
        [task.objective for task in tasks],
        None if suites is None else [str(suite) for suite in suites],
    )


def _classes(pairs: Pairs) -> NDArray[np.bool_]:
    """(classes, pairs): which pairs share what, in the order of `CLASSES`."""
    body, aim = pairs.embodiment > 0, pairs.objective > 0
    return np.stack([body & ~aim, ~body & aim, body & aim, ~body & ~aim])


def _test_rows(scope: str, pairs: Pairs, test: MantelTest) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for label, found, shared in (
        ("embodiment", test.embodiment, pairs.embodiment),
        ("objective", test.objective, pairs.objective),
    ):
        rows.append(
            {
                "scope": scope,
                "label": label,
                "tasks": pairs.tasks,
                "pairs": len(pairs.similarity),
                "sharing": int(shared.sum()),
                **_columns("r", "r", found.r),
                "p": found.p,
                **_columns("partial_r", "partial", found.partial),
                "partial_p": found.partial_p,
                **_columns("difference", "difference", test.difference),
                "permutations": test.permutations,
                "exact": test.exact,
            }
        )
    return rows


def _class_rows(scope: str, groups: NDArray[np.bool_], means: Sequence[Estimate]) -> list[dict[str, object]]:
    return [
        {
            "scope": scope,
            "shares": name,
            "pairs": int(members.sum()),
            "mean": mean.value,
            "low": mean.low,
            "high": mean.high,
            **_columns("contrast", "contrast", means[-1]),
        }
        for name, members, mean in zip(CLASSES, groups, means[:-1], strict=True)
    ]


def _columns(value: str, stem: str, estimate: Estimate) -> dict[str, float]:
    return {value: estimate.value, f"{stem}_low": estimate.low, f"{stem}_high": estimate.high}


def _pair_table(agent: TaskEmbeddings, similarity: NDArray[np.float64], suites: NDArray[np.object_]) -> pd.DataFrame:
    pairs = _pairs(agent, similarity, np.ones(len(suites), dtype=bool), None)
    names = np.array(agent.tasks, dtype=object)
    return pd.DataFrame(
        {
            "task": names[pairs.first],
            "other": names[pairs.second],
            "similarity": pairs.similarity,
            "shares": np.array(CLASSES, dtype=object)[_classes(pairs).argmax(axis=0)],
            "same_suite": suites[pairs.first] == suites[pairs.second],
        }
    )
