"""The task embeddings that agents of several tasks have learned, from wherever these agents are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.runs import name_task_sets
from analysis.study import Study
from analysis.tables import counted, read_csv_files
from tdmpc2.errors import UserError, require
from tdmpc2.tasks import TASKS
from tdmpc2.training.folder import RunFolder

if TYPE_CHECKING:
    from tdmpc2.training.load_agent import StoredAgent

TASKSET = "::"
"""Stands between a checkpoint's path and the tasks it was trained on."""
Rows = tuple[tuple[str, ...], NDArray[np.float64]]
"""Tasks and their embeddings, a row a task."""


@dataclass(frozen=True, eq=False)  # arrays have no plain equality: an agent equals itself alone
class TaskEmbeddings:
    """The task embeddings of one agent."""

    run: str
    """The run's name; of a further checkpoint, its file's."""
    algorithm: str
    """E.g. `tdmpc2`."""
    kind: str
    """`multi`, or `finetuned` where the agent was finetuned from another."""
    size: int
    """Millions of parameters."""
    task_set: str
    """Name of the tasks that it learned together, e.g. `mt30`; "" of finetuned runs."""
    seed: int | None
    """Seed of its run; None where a checkpoint does not tell."""
    tasks: tuple[str, ...]
    """Its tasks, in the agent's order; those alone that the study is about."""
    vectors: NDArray[np.float64]
    """(tasks, dim), as the model uses them: rescaled where longer than 1."""


def load_embeddings(study: Study) -> tuple[list[TaskEmbeddings], list[str]]:
    """The task embeddings of a study's multi-task runs, and of those that were finetuned from one.

    A finetuned agent has its source's rows, of which it has changed its own task's alone. Each agent is read from its
    run's checkpoint, or from the run's embeddings.csv where that is newer (or there is no checkpoint).

    Args:
        study: sweeps, restricted to some tasks.

    Returns:
        The embeddings in the order of the runs, and what is lacking: a sentence a run whose agent is not there yet,
        cannot be read, or has fewer than two of the study's tasks.
    """
    found, problems = [], []
    for row in study.runs.to_dict("records"):
        if row["kind"] not in ("multi", "finetuned"):
            continue
        try:
            tasks, vectors = _restricted(_read_run(Path(str(row["folder"]))), study.tasks)
        except UserError as error:
            problems.append(f"{row['run']} ({row['state']}): {error}")
            continue
        agent = TaskEmbeddings(
            run=str(row["run"]),
            algorithm=str(row["algorithm"]),
            kind=str(row["kind"]),
            size=int(row["size"]),
            task_set=str(row["task_set"]),
            seed=int(row["seed"]),
            tasks=tasks,
            vectors=vectors,
        )
        found.append(agent)
    return found, problems


def load_checkpoints(sources: Sequence[str], tasks: Sequence[str]) -> tuple[list[TaskEmbeddings], list[str]]:
    """The task embeddings of further agents, e.g. released ones.

    Args:
        sources: run folders or checkpoints, as `tdmpc2.training.load_agent.read_agent` takes them; PATH::TASKS where
            the file does not name its tasks, e.g. `mt80-317M.pt::mt80`.
        tasks: tasks to restrict them to.

    Returns:
        The embeddings, and a sentence for each source that cannot be read or has fewer than two of the tasks.
    """
    found, problems = [], []
    for source in sources:
        path, _, named = source.partition(TASKSET)
        try:
            stored = _read_agent(path, named or None)
            held, vectors = _restricted(_rows(stored), tasks)
        except UserError as error:
            problems.append(f"{source}: {error}")
            continue
        # a file of the reference implementation has no settings: its seed is not known
        seed = None if stored.updates is None else stored.config.seed
        kind = "finetuned" if stored.config.checkpoint else "multi"
        task_set = name_task_sets([stored.spec.tasks])[stored.spec.tasks]
        name = Path(path).name if Path(path).is_dir() else Path(path).stem
        found.append(TaskEmbeddings(name, "tdmpc2", kind, stored.model_size, task_set, seed, held, vectors))
    return found, problems


def cosine_similarity(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of the angle between every two rows, (tasks, dim) -> (tasks, tasks), 1 on the diagonal.

    A row of zeros has no direction: its similarity to all others is 0.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = np.divide(vectors, norms, out=np.zeros_like(vectors, dtype=np.float64), where=norms > 0)
    similarity = np.clip(directions @ directions.T, -1.0, 1.0)
    np.fill_diagonal(similarity, 1.0)
    return similarity


def nearness(vectors: NDArray[np.float64], k: int = 3) -> NDArray[np.float64]:
    """How near each task is to others: mean cosine similarity to the k nearest ones, (tasks, dim) -> (tasks,).

    Where there are fewer than k others, the mean over these; NaN where there is none.
    """
    count = len(vectors)
    if count < 2:
        return np.full(count, np.nan)
    similarity = cosine_similarity(vectors)
    np.fill_diagonal(similarity, -np.inf)
    return -np.sort(-similarity, axis=1)[:, : min(k, count - 1)].mean(axis=1)


def _read_run(folder: Path) -> Rows:
    table, checkpoint = folder / "embeddings.csv", RunFolder(folder).checkpoint
    if table.is_file() and not (checkpoint.is_file() and checkpoint.stat().st_mtime > table.stat().st_mtime):
        return _read_table(table)
    require(checkpoint.is_file(), "no agent yet (neither checkpoint/latest.pt nor embeddings.csv)")
    return _rows(_read_agent(str(folder), None))


def _read_table(path: Path) -> Rows:
    """An embeddings.csv, as `tdmpc2 embeddings` writes it."""
    rows, problems = read_csv_files(
        [path], required=["task", "e0"], text=["task", "domain", "embodiment", "objective"], appended=False
    )
    numbers = [str(name) for name in rows if str(name)[:1] == "e" and str(name)[1:].isdigit()]
    vectors = rows[numbers].to_numpy(np.float64)
    tasks = tuple(str(task) for task in rows["task"])
    faults = list(problems.get(0, []))
    faults += [f"{path.name}: unknown task {task}" for task in tasks if task not in TASKS]
    if len(set(tasks)) < len(tasks):
        faults.append(f"{path.name}: a task has two rows")
    if not np.isfinite(vectors).all():
        faults.append(f"{path.name}: a number is missing or not finite")
    require(not faults, f"{'; '.join(faults)}; write it again by `tdmpc2 embeddings run={path.parent}`")
    return tasks, vectors


def _read_agent(source: str, tasks: str | None) -> StoredAgent:
    from tdmpc2.training.load_agent import read_agent  # torch takes seconds to import

    return read_agent(source, tasks)


def _rows(stored: StoredAgent) -> Rows:
    from tdmpc2.training.embeddings import task_embeddings

    vectors = task_embeddings(stored).numpy().astype(np.float64)
    require(bool(np.isfinite(vectors).all()), f"{stored.origin}: an embedding is not finite")
    return stored.spec.tasks, vectors


def _restricted(rows: Rows, tasks: Sequence[str]) -> Rows:
    held = [index for index, task in enumerate(rows[0]) if task in set(tasks)]
    require(len(held) > 1, f"only {counted(len(held), 'task')} of the agent is among those asked for")
    return tuple(rows[0][index] for index in held), rows[1][held]
