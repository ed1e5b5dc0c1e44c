"""A multi-task agent's task embeddings, as a table."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import torch
from torch import Tensor

from tdmpc2.agent.world_model import WorldModel
from tdmpc2.config import EmbeddingsConfig
from tdmpc2.data.files import disk_full_is_user_error
from tdmpc2.errors import UserError, require
from tdmpc2.tasks import get_task
from tdmpc2.training.folder import write_text
from tdmpc2.training.load_agent import StoredAgent, open_run, read_agent

LABELS = ("task", "domain", "embodiment", "objective")
"""The columns before the numbers e0, e1, ..."""


def export_embeddings(config: EmbeddingsConfig) -> Path:
    """Write the task embeddings of a run's or checkpoint's agent: a row a task, in the agent's order.

    The numbers are the rows as the model uses them, rescaled where longer than 1, to the last digit.

    Args:
        config: which agent, and where to write.

    Returns:
        the CSV file, with the columns of `LABELS` and e0, e1, ..., as many as the embedding is long.

    Raises:
        UserError: there is no such agent, it is one of a single task, the file cannot be written, or is there
            already; in the run's folder, an earlier table is replaced.
    """
    if config.run is not None:
        folder, source = open_run(config.run).path, config.run
        output = folder / "embeddings.csv" if config.output is None else Path(config.output)
        replaceable = output.resolve().is_relative_to(folder.resolve()) and _is_such_a_table(output)
    else:
        assert config.checkpoint is not None and config.output is not None  # the settings' own check  # noqa: PT018
        source, output, replaceable = config.checkpoint, Path(config.output), False
    require(replaceable or not output.exists(), f"output: {output} exists already; name another file")
    stored = read_agent(source, config.task)
    with disk_full_is_user_error(output.parent, "writing the embeddings"):
        try:
            write_text(output, _table(stored))
        except (IsADirectoryError, NotADirectoryError, FileExistsError, PermissionError) as error:
            raise UserError(f"output: {output} cannot be written ({error.strerror})") from None
    return output


def task_embeddings(stored: StoredAgent) -> Tensor:
    """The embeddings of an agent's tasks as its model uses them, (tasks, task_dim) float32.

    Raises:
        UserError: it is an agent of a single task.
    """
    if not stored.spec.multitask:
        raise UserError(f"{stored.origin}: holds an agent of one task, {stored.spec.tasks[0]}, which has no embedding")
    with torch.device("meta"):  # shapes only: the other weights are not needed
        model = WorldModel(stored.config, stored.spec)
    rows = {name: tensor for name, tensor in stored.model.items() if name == "_task_emb"}
    model.load_state_dict(rows, strict=False, assign=True)
    with torch.no_grad():
        return model.embedding(torch.arange(len(stored.spec.tasks)))


def _is_such_a_table(path: Path) -> bool:
    """Whether a file is one that `export_embeddings` wrote, and not another of a run's files."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().startswith(",".join([*LABELS, "e0"]).encode())


def _table(stored: StoredAgent) -> str:
    embeddings = task_embeddings(stored)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*LABELS, *(f"e{i}" for i in range(embeddings.shape[1]))])
    for name, row in zip(stored.spec.tasks, embeddings.tolist(), strict=True):
        task = get_task(name)
        table.writerow([name, task.domain, task.embodiment, task.objective, *map(repr, row)])
    return text.getvalue()
