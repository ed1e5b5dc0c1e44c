"""What is alike in one agent's task embeddings, and what two agents' have in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.style import series_name
from analysis.task_vectors import TaskEmbeddings, cosine_similarity
from tdmpc2.errors import require
from tdmpc2.tasks import TASKS

Array = NDArray[np.float64]
MIN_COMMON_TASKS = 4
"""Two agents' similarities are compared from so many common tasks (6 pairs) on."""
MIN_TSNE_TASKS = 6
"""t-SNE needs so many tasks to be more than a drawing of its random start."""
INITIAL_BOUND = 0.02
"""Embeddings start uniformly distributed between plus and minus this."""
_SHOWN_SETS = 3


@dataclass(frozen=True)
class Shown:
    """An agent whose embeddings are shown, for all that learned the same tasks."""

    agent: TaskEmbeddings
    """The largest one's first seed."""
    suffix: str
    """What its figures' and tables' names end with: "" for the first, `_mt30` and the like for the others."""


def agent_name(agent: TaskEmbeddings) -> str:
    """An agent's name for people, e.g. `TD-MPC2 5M multi-task (mt30), seed 1`."""
    name = series_name(agent.algorithm, agent.kind, agent.size, agent.task_set)
    return f"{name}, {agent.run if agent.seed is None else f'seed {agent.seed}'}"


def choose_shown(agents: Sequence[TaskEmbeddings]) -> list[Shown]:
    """The agents to show, one for each list of tasks, the longest first, three at most.

    Of agents with the same tasks it is the largest one with the first seed. Finetuned agents, whose rows are but for
    one their source's, are shown only where there are no others.
    """
    candidates = [agent for agent in agents if agent.kind != "finetuned"] or list(agents)
    ranked = sorted(
        candidates,
        key=lambda a: (-len(a.tasks), a.kind, -a.size, a.algorithm, a.seed is None, a.seed or 0),
    )
    first: dict[frozenset[str], TaskEmbeddings] = {}
    for agent in ranked:
        first.setdefault(frozenset(agent.tasks), agent)
    shown: list[Shown] = []
    for agent in list(first.values())[:_SHOWN_SETS]:
        label = "_" + re.sub(r"\W+", "_", agent.task_set or agent.run).strip("_")
        taken = {other.suffix for other in shown}
        shown.append(Shown(agent, "" if not shown else label if label not in taken else f"{label}_{len(shown) + 1}"))
    return shown


def agents_table(agents: Sequence[TaskEmbeddings], *, draws: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """Every agent's embeddings, in numbers, against what they are before learning.

    Untrained embeddings point in random directions, where the mean squared cosine similarity of two is 1 / dim.

    Args:
        agents: the agents.
        draws: sets of random directions to compare with.
        seed: of the draws.

    Returns:
        One row an agent: run, algorithm, kind, size, task_set, seed, tasks, dim; norm_min, norm_median, norm_max, and
        norm_untrained, a row's root mean square length at the start; mean_square, mean squared similarity over pairs;
        random_mean_square, that of random directions; p, two-sided p-value for the agent's embeddings being such
        ((count + 1) / (draws + 1)), NaN where there is only one pair of tasks.
    """
    rows = []
    for agent in agents:
        tasks, dim = agent.vectors.shape
        norms = np.linalg.norm(agent.vectors, axis=1)
        mean_square = _mean_square(cosine_similarity(agent.vectors)[None])[0]
        random = _random_mean_squares(tasks, dim, draws, seed) if tasks > 2 else np.full(1, np.nan)
        tail = min((random >= mean_square).sum(), (random <= mean_square).sum())
        rows.append(
            {
                **{name: getattr(agent, name) for name in ("run", "algorithm", "kind", "size", "task_set", "seed")},
                "tasks": tasks,
                "dim": dim,
                "norm_min": norms.min(),
                "norm_median": np.median(norms),
                "norm_max": norms.max(),
                "norm_untrained": np.sqrt(dim * INITIAL_BOUND**2 / 3),
                "mean_square": mean_square,
                "random_mean_square": 1 / dim,
                "p": min(1.0, 2 * (tail + 1) / (draws + 1)) if tasks > 2 else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _random_mean_squares(tasks: int, dim: int, draws: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, draws, 200):
        directions = rng.standard_normal((min(200, draws - start), tasks, dim))
        directions /= np.linalg.norm(directions, axis=2, keepdims=True)
        found.append(_mean_square(directions @ directions.transpose(0, 2, 1)))
    return np.concatenate(found)


def _mean_square(similarity: Array) -> Array:
    """Mean squared similarity of two different tasks, (draws, tasks, tasks) -> (draws,)."""
    tasks = similarity.shape[1]
    return ((similarity**2).sum(axis=(1, 2)) - tasks) / (tasks * (tasks - 1))


def similarity_table(agent: TaskEmbeddings) -> pd.DataFrame:
    """Cosine similarities as a table: task, and a column for each task, in the agent's order."""
    matrix = pd.DataFrame(cosine_similarity(agent.vectors), columns=pd.Index(agent.tasks))
    matrix.insert(0, "task", list(agent.tasks))
    return matrix


def cluster(similarity: Array) -> Array:
    """Hierarchical clustering: average linkage on 1 - similarity, leaves in optimal order (Bar-Joseph et al. 2001).

    Args:
        similarity: (tasks, tasks), symmetric, 1 on the diagonal, at least two tasks.

    Returns:
        scipy's linkage matrix, (tasks - 1, 4).
    """
    from scipy.cluster.hierarchy import linkage

    distances = np.clip(1 - similarity[np.triu_indices(len(similarity), 1)], 0, None)
    return np.asarray(linkage(distances, method="average", optimal_ordering=True))


def leaf_order(tree: Array) -> NDArray[np.intp]:
    """The tasks in the order of a clustering's leaves, (tasks,)."""
    from scipy.cluster.hierarchy import leaves_list

    return np.asarray(leaves_list(tree), np.intp)


def principal_components(vectors: Array) -> tuple[Array, Array]:
    """Two principal components: positions (tasks, 2) and shares of variance (2,); zeros where there is none.

    The sign of an axis means nothing; it is chosen so that the largest position is positive.
    """
    centred = vectors - vectors.mean(axis=0)
    left, spread, _ = np.linalg.svd(centred, full_matrices=False)
    positions, variance = np.zeros((len(vectors), 2)), np.zeros(2)
    count = min(2, len(spread))
    positions[:, :count] = left[:, :count] * spread[:count]
    positions *= np.where(positions[np.abs(positions).argmax(axis=0), [0, 1]] < 0, -1, 1)
    total = (spread**2).sum()
    if total > 0:
        variance[:count] = spread[:count] ** 2 / total
    return positions, variance


def perplexity(tasks: int) -> float:
    """t-SNE's perplexity for so many tasks: a third of the others, between 2 and 30."""
    return float(min(30.0, max(2.0, (tasks - 1) / 3)))


def tsne_maps(similarity: Array, seeds: Sequence[int]) -> dict[int, Array]:
    """t-SNE (van der Maaten & Hinton 2008) of 1 - similarity from random starts: positions (tasks, 2) by seed."""
    from sklearn.manifold import TSNE

    distances = np.clip(1 - similarity, 0, None)
    np.fill_diagonal(distances, 0)
    settings = {"metric": "precomputed", "init": "random", "perplexity": perplexity(len(distances)), "n_jobs": 1}
    return {
        seed: np.asarray(TSNE(**settings, random_state=seed).fit_transform(distances), dtype=np.float64)
        for seed in seeds
    }


def nearest_neighbours(agent: TaskEmbeddings, k: int) -> pd.DataFrame:
    """Each task's nearest others, in the agent's order.

    Returns:
        task, rank (from 1), neighbour, similarity, same_embodiment, same_objective; fewer than k ranks where there are
        fewer other tasks.

    Raises:
        UserError: k is less than 1.
    """
    require(k >= 1, f"neighbours: must be at least 1, not {k}")
    similarity = cosine_similarity(agent.vectors)
    rows = []
    for index, order in enumerate(_neighbours(similarity, k)):
        task = TASKS[agent.tasks[index]]
        for rank, other in enumerate(order, start=1):
            neighbour = TASKS[agent.tasks[other]]
            shares = neighbour.embodiment == task.embodiment, neighbour.objective == task.objective
            rows.append((task.name, rank, neighbour.name, similarity[index, other], *shares))
    columns = ["task", "rank", "neighbour", "similarity", "same_embodiment", "same_objective"]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def neighbour_shares(neighbours: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """How often the nearest other task shares a label, among the tasks that have another one to share it with.

    Args:
        neighbours: as `nearest_neighbours` returns it.
        tasks: the agent's tasks.

    Returns:
        One row a label (embodiment, objective): label, tasks (that have another of the same label), share (of these,
        whose nearest shares it; NaN without any), chance (what a random other task would give).
    """
    nearest = neighbours[neighbours["rank"] == 1].set_index("task")
    rows = []
    for label in ("embodiment", "objective"):
        own = pd.Series([getattr(TASKS[task], label) for task in tasks], index=list(tasks))
        others = own.map(own.value_counts()) - 1
        having = others[others > 0]
        share = nearest.loc[having.index, f"same_{label}"].mean() if len(having) else np.nan
        chance = (having / (len(tasks) - 1)).mean() if len(having) else np.nan
        rows.append((label, len(having), share, chance))
    return pd.DataFrame(rows, columns=pd.Index(["label", "tasks", "share", "chance"]))


def stability(agents: Sequence[TaskEmbeddings], k: int) -> pd.DataFrame:
    """How much two agents agree on which tasks are alike, for every two agents with enough tasks in common.

    Finetuned agents are left out: their rows are but for one their source's.

    Args:
        agents: the agents.
        k: nearest others to compare.

    Returns:
        run, other, name, other_name, relation (`another seed`, `another size`, `other tasks`, `another model`), tasks
        (in common), correlation (Spearman's, of the similarities of all pairs of common tasks), overlap (mean share of
        the k nearest that both have), chance (the overlap of random neighbours).
    """
    from scipy.stats import spearmanr

    learned = [agent for agent in agents if agent.kind != "finetuned"]
    counts = Counter(map(agent_name, learned))
    # agents of several sweeps may share a name
    names = {a: agent_name(a) + (f" ({a.run})" if counts[agent_name(a)] > 1 else "") for a in learned}
    rows = []
    for index, agent in enumerate(learned):
        for other in learned[index + 1 :]:
            common = [task for task in agent.tasks if task in other.tasks]
            if len(common) < MIN_COMMON_TASKS:
                continue
            matrices = [cosine_similarity(a.vectors[[a.tasks.index(task) for task in common]]) for a in (agent, other)]
            upper = np.triu_indices(len(common), 1)
            near = [_neighbours(matrix, k) for matrix in matrices]
            shared = [len(set(a) & set(b)) / len(a) for a, b in zip(*near, strict=True)]
            rows.append(
                {
                    "run": agent.run,
                    "other": other.run,
                    "name": names[agent],
                    "other_name": names[other],
                    "relation": _relation(agent, other),
                    "tasks": len(common),
                    "correlation": float(spearmanr(matrices[0][upper], matrices[1][upper]).statistic),
                    "overlap": float(np.mean(shared)),
                    "chance": near[0].shape[1] / (len(common) - 1),
                }
            )
    columns = ["run", "other", "name", "other_name", "relation", "tasks", "correlation", "overlap", "chance"]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def _relation(agent: TaskEmbeddings, other: TaskEmbeddings) -> str:
    if set(agent.tasks) != set(other.tasks):
        return "other tasks"
    if agent.algorithm != other.algorithm:
        return "another model"
    return "another size" if agent.size != other.size else "another seed"


def _neighbours(similarity: Array, k: int) -> NDArray[np.intp]:
    """The k nearest others of each task, nearest first, (tasks, min(k, tasks - 1)); of equals, the earlier one."""
    others = similarity.copy()
    np.fill_diagonal(others, -np.inf)
    return np.argsort(-others, axis=1, kind="stable")[:, : min(k, len(similarity) - 1)]
