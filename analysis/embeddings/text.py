"""Words and tables on task embeddings: no number here that is not computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.embeddings.claim import SIGNIFICANT, Claim
from analysis.embeddings.claim_text import MINUS, p_cell, several_suites, verdict
from analysis.embeddings.structure import MIN_COMMON_TASKS, MIN_TSNE_TASKS, Shown, agent_name, perplexity
from analysis.study import Study
from analysis.style import series_name
from analysis.tables import counted
from analysis.task_vectors import TaskEmbeddings
from analysis.words import MISSING, listed

_PAIRS_LISTED = 30


def headline(shown: Sequence[Shown], claims: Sequence[Claim], study: Study) -> str:
    """The answer, for the top of the page and the index."""
    if not shown:
        return lacking(study)
    sentences = [
        f"Do task embeddings follow the dynamics more than the objective? {verdict(shown[0].agent, claims[0])}"
    ]
    sentences += [f"{_model(other.agent)}: {claim.word}." for other, claim in zip(shown[1:], claims[1:], strict=True)]
    return " ".join(sentences)


def lacking(study: Study) -> str:
    """Why there are no embeddings to show."""
    runs = study.runs[study.runs["kind"].isin(["multi", "finetuned"])]
    if runs.empty:
        return (
            "No task embeddings: only agents of several tasks have them, and there is no multi-task run. They come "
            "from a sweep with a multi-task stage, or from checkpoints given as the parameter checkpoints."
        )
    return f"No task embeddings yet: of {counted(len(runs), 'multi-task run')}, none has an agent that can be read."


def one_agent(agents: Sequence[TaskEmbeddings]) -> str:
    """Why stability is not known."""
    learned = [agent for agent in agents if agent.kind != "finetuned"]
    if len(learned) > 1:
        return f"No two agents have {MIN_COMMON_TASKS} tasks in common: stability over seeds and sizes is not known."
    return (
        "There is one agent only. How much of this is owed to its seed or its size is not known: that takes agents "
        "of the same tasks with other seeds and sizes."
    )


def agents_shown(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The agents as a table of text.

    Args:
        table: as `structure.agents_table` returns it.
        runs: the study's runs, for their states.
    """
    states = dict(zip(runs["run"], runs["state"], strict=True))
    rows = table.to_dict("records")
    return pd.DataFrame(
        {
            "run": table["run"],
            "model": [series_name(r["algorithm"], r["kind"], r["size"], r["task_set"]) for r in rows],
            "seed": [MISSING if pd.isna(r["seed"]) else str(int(r["seed"])) for r in rows],
            "state": [states.get(r["run"], "checkpoint") for r in rows],
            "tasks": table["tasks"].astype(str),
            "numbers a task": table["dim"].astype(str),
            "length, median (range)": [
                f"{r['norm_median']:.2f} ({r['norm_min']:.2f} to {r['norm_max']:.2f})" for r in rows
            ],
            "length untrained": [f"{r['norm_untrained']:.2f}" for r in rows],
            "mean squared similarity": [f"{r['mean_square']:.4f}" for r in rows],
            "of random directions": [f"{r['random_mean_square']:.4f}" for r in rows],
            "p": [p_cell(r["p"]) for r in rows],
        }
    )


def agents_caption(table: pd.DataFrame) -> str:
    """What the table of agents shows, and which of them have learned no similarity."""
    random = table[~(table["p"] < SIGNIFICANT)]
    words = (
        "Task embeddings by agent. They start at random, each number uniform between -0.02 and 0.02, so that their "
        "similarities are noise at first; a task's is never longer than 1. p: two-sided, for the similarities being "
        "those of random directions."
    )
    if len(random):
        words += f" Not to be told from random directions: {listed([str(run) for run in random['run']])}."
    return words


def not_shown(agents: Sequence[TaskEmbeddings], shown: Sequence[Shown]) -> str:
    """Which agents have no figures of their own, and why; "" where all have."""
    others = len(agents) - len(shown)
    if others == 0:
        return ""
    chosen = listed([f"{agent_name(one.agent)} ({counted(len(one.agent.tasks), 'task')})" for one in shown])
    return (
        f"Shown below: {chosen}; of agents with the same tasks the largest with the first seed, of lists of tasks the "
        f"longest. The {counted(others, 'other agent')} stand{'s' if others == 1 else ''} in the table above"
        f"{', finetuned ones there alone' if any(a.kind == 'finetuned' for a in agents) else ''} and, where enough "
        "tasks are in common, under stability."
    )


def heatmap_caption(agent: TaskEmbeddings) -> str:
    """Below the heatmap."""
    return (
        f"Cosine similarity of the task embeddings of {agent_name(agent)}. Rows and columns stand in the same order, "
        "that of a hierarchical clustering (tree on the left: average linkage on 1 - similarity, optimal leaf order). "
        f"Strips: {'suite and ' if several_suites(agent) else ''}embodiment. Colours are centred at 0; the diagonal "
        "is 1."
    )


def components_caption(agent: TaskEmbeddings, variance: np.ndarray) -> str:
    """Below the map of principal components."""
    return (
        f"Task embeddings of {agent_name(agent)} on their first two principal components, which hold "
        f"{variance.sum():.0%} of the variance: what is near here may be far apart in the others. Names stand where "
        "they do not overlap; colours are for the most frequent embodiments."
    )


def tsne_caption(agent: TaskEmbeddings, seeds: Sequence[int]) -> str:
    """Below the t-SNE maps."""
    return (
        f"t-SNE of the task embeddings of {agent_name(agent)} (cosine distance, perplexity "
        f"{perplexity(len(agent.tasks)):.0f}) from {counted(len(seeds), 'random start')}. Believe what all maps show "
        "alike: places, directions and distances between groups mean nothing."
    )


def too_few_for_tsne(agent: TaskEmbeddings) -> str:
    """Why there is no t-SNE map."""
    return (
        f"No t-SNE map of {agent_name(agent)}: {counted(len(agent.tasks), 'task')}; with fewer than {MIN_TSNE_TASKS} "
        "it shows its random start and little else."
    )


def neighbours_shown(neighbours: pd.DataFrame) -> pd.DataFrame:
    """Nearest others of each task as a table of text, a row a task."""
    cells = [
        f"{r['neighbour']} {_signed(r['similarity'])}{_sharing(r['same_embodiment'], r['same_objective'])}"
        for r in neighbours.to_dict("records")
    ]
    wide = neighbours.assign(cell=cells).pivot_table(index="task", columns="rank", values="cell", aggfunc="first")
    wide = wide.loc[neighbours["task"].drop_duplicates()]
    names = {rank: "nearest" if rank == 1 else f"{_ordinal(int(rank))} nearest" for rank in wide.columns}
    return wide.rename(columns=names).rename_axis(columns=None).reset_index()


def neighbours_caption(agent: TaskEmbeddings, shares: pd.DataFrame) -> str:
    """What the table of neighbours shows, and how often the nearest shares a label."""
    words = [
        f"Nearest tasks of each task of {agent_name(agent)}, with the cosine similarity. E: same embodiment, O: same "
        "objective."
    ]
    for row in shares.to_dict("records"):
        if row["tasks"] == 0:
            words.append(f"No two tasks share the {row['label']}.")
        else:
            having = counted(int(row["tasks"]), "task")
            words.append(
                f"Of {having} that could share the {row['label']}, {row['share']:.0%} share it with their nearest "
                f"({row['chance']:.0%} by chance)."
            )
    return " ".join(words)


def stability_sentence(table: pd.DataFrame) -> str:
    """How much agents agree, by what sets them apart."""
    parts = []
    for relation, rows in table.groupby("relation", sort=False):
        r = rows["correlation"]
        spread = f" ({_signed(r.min())} to {_signed(r.max())})" if len(rows) > 1 else ""
        parts.append(
            f"{relation} ({counted(len(rows), 'pair')} of agents): rank correlation of similarities "
            f"{_signed(r.mean())}{spread}, {rows['overlap'].mean():.0%} of the nearest tasks in common "
            f"({rows['chance'].mean():.0%} by chance)"
        )
    return f"Agents that differ by {'; by '.join(parts)}."


def stability_shown(table: pd.DataFrame) -> pd.DataFrame:
    """The agreement of two agents as a table of text, the longest lists cut."""
    rows = table.head(_PAIRS_LISTED)
    return pd.DataFrame(
        {
            "agent": rows["name"],
            "other": rows["other_name"],
            "differ by": rows["relation"],
            "common tasks": rows["tasks"].astype(str),
            "rank correlation": [_signed(r) for r in rows["correlation"]],
            "nearest in common": [f"{share:.0%}" for share in rows["overlap"]],
            "by chance": [f"{share:.0%}" for share in rows["chance"]],
        }
    )


def stability_figure_caption(table: pd.DataFrame) -> str:
    """Below the heatmap of agreement."""
    tasks = sorted(set(table["tasks"]))
    common = f"{tasks[0]}" if len(tasks) == 1 else f"{tasks[0]} to {tasks[-1]}"
    blank = " White: fewer than " + str(MIN_COMMON_TASKS) + " tasks in common, or the same agent."
    return (
        f"Spearman's rank correlation of the similarities of all pairs of common tasks ({common} tasks), for every two "
        f"agents: 1 where they agree entirely, 0 where not at all.{blank}"
    )


def stability_caption(table: pd.DataFrame) -> str:
    """What the table of agreement shows."""
    cut = f" The first {_PAIRS_LISTED} of {len(table):,}; the CSV holds all." if len(table) > _PAIRS_LISTED else ""
    return (
        "Agreement of every two agents on which tasks are alike: Spearman's correlation of the similarities of all "
        f"pairs of common tasks, and the mean share of nearest tasks that both have.{cut}"
    )


def _model(agent: TaskEmbeddings) -> str:
    return f"{agent_name(agent)} ({counted(len(agent.tasks), 'task')})"


def _signed(value: float) -> str:
    return MISSING if pd.isna(value) else f"{value:.2f}".replace("-", MINUS)


def _sharing(embodiment: bool, objective: bool) -> str:
    letters = ("E" if embodiment else "") + ("O" if objective else "")
    return f" {letters}" if letters else ""


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
