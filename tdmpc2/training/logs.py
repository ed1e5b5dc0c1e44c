"""What a run writes down: CSV files, TensorBoard events and, where asked for, Weights & Biases."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.training.folder import RunFolder

LOSSES = (
    "consistency_loss",
    "reward_loss",
    "value_loss",
    "termination_loss",
    "total_loss",
    "grad_norm",
    "pi_loss",
    "pi_grad_norm",
    "pi_entropy",
    "pi_scaled_entropy",
    "pi_scale",
)
"""Metrics of an update, in the order of their columns."""

CLOCK = ("env_steps", "agent_steps", "updates", "seconds", "task")
TRAIN_COLUMNS = (*CLOCK, "episode", "episode_length", "return", "success", "terminated", *LOSSES)
OFFLINE_TRAIN_COLUMNS = ("updates", "seconds", *LOSSES)
EVAL_COLUMNS = (*CLOCK, "episodes", "return", "return_std", "success", "episode_length")


class CsvLog:
    """A CSV file that grows by rows, and can be cut back to the length it had at a checkpoint.

    Args:
        path: the file.
        columns: its columns.
        length: bytes to keep of what is there; 0 starts afresh.

    Raises:
        UserError: the file is shorter than that.
    """

    def __init__(self, path: Path, columns: Sequence[str], length: int) -> None:
        self._columns = columns
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", newline="")
        size = os.fstat(self._file.fileno()).st_size
        if size < length:
            self._file.close()
            raise UserError(
                f"{path}: {size} bytes, but the checkpoint counts {length}: it was cut or removed since, and the run "
                "cannot go on without it. Put a copy back, or begin anew in another folder (label= or exp_name=)"
            )
        self._file.truncate(length)
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
        if length == 0:
            self._writer.writeheader()
            self._file.flush()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; what is absent or not a number becomes an empty field."""
        self._writer.writerow({column: _field(row.get(column)) for column in self._columns})
        self._file.flush()

    def length(self) -> int:
        """Bytes written so far, safely on disk."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _field(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.7g}" if isinstance(value, float) else value


class RunningMeans:
    """Means of the updates' metrics since they were last taken, added up on the device without waiting for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take in one update's metrics."""
        self._count += 1
        if not self._sums:
            self._sums = {name: value.clone() for name, value in metrics.items()}
        else:  # one launch on a GPU
            torch._foreach_add_(list(self._sums.values()), [metrics[name] for name in self._sums])

    def take(self) -> dict[str, float]:
        """The means, by name; begins anew."""
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"sums": {name: total.clone() for name, total in self._sums.items()}, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take over what `state_dict` returned."""
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self._count = state["count"]


class EventLog:
    """TensorBoard events and Weights & Biases, over environment steps; offline, over updates.

    Args:
        folder: folder of the events.
        config: the run's settings.
        start: where on that axis the run resumes; later events of an earlier process are void. None: all are.

    Raises:
        UserError: Weights & Biases is asked for and not installed, or not logged in.
    """

    def __init__(self, folder: Path, config: Config, start: int | None) -> None:
        self._axis = "updates" if config.offline else "env_steps"
        self._wandb = start_wandb(config, folder.parent) if config.wandb else None
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        # TensorBoard drops what stands at the purge step too, but a checkpoint comes after its own step's episodes.
        self._events = SummaryWriter(str(folder), purge_step=0 if start is None else start + 1)

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row under `kind/`."""
        step = int(row[self._axis])
        numbers = {
            f"{kind}/{name}": float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and name != self._axis and not math.isnan(value)
        }
        for name, value in numbers.items():
            self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({**numbers, self._axis: step})

    def flush(self) -> None:
        """Write out what is pending: a run that is killed after a checkpoint does not write it again."""
        self._events.flush()

    def close(self) -> None:
        """Write out what is pending, and end."""
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


class RunLogs:
    """All that a run writes down as it goes: train.csv, eval.csv and events.

    Args:
        folder: the run's folder.
        config: its settings.
        columns: columns of train.csv.
        lengths: bytes of the CSV files to keep, by a checkpoint's `lengths`; None begins anew.
        start: where on the axis of the events the run resumes; None begins anew.

    Raises:
        UserError: a file is shorter than that; Weights & Biases cannot be used.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        columns: Sequence[str],
        lengths: Mapping[str, int] | None,
        start: int | None,
    ) -> None:
        lengths = {"train": 0, "eval": 0} if lengths is None else lengths
        self._by_task = len(config.tasks) > 1
        self._train = CsvLog(folder.train_csv, columns, lengths["train"])
        self._eval = CsvLog(folder.eval_csv, EVAL_COLUMNS, lengths["eval"])
        self._events = EventLog(folder.tensorboard, config, start)

    def write_train(self, row: Mapping[str, Any]) -> None:
        """Append a row to train.csv."""
        self._train.write(row)
        self._events.write("train", row)

    def write_eval(self, row: Mapping[str, Any]) -> None:
        """Append a row, of one task, to eval.csv."""
        self._eval.write(row)
        self._events.write(f"eval/{row['task']}" if self._by_task else "eval", row)

    def flush(self) -> None:
        """Write out what is pending."""
        self._events.flush()

    def lengths(self) -> dict[str, int]:
        """Bytes of the CSV files, safely on disk."""
        return {"train": self._train.length(), "eval": self._eval.length()}

    def close(self) -> None:
        """Write out what is pending, and end."""
        self._train.close()
        self._eval.close()
        self._events.close()


def check_wandb() -> ModuleType:
    """The package wandb, ready to log.

    Raises:
        UserError: it is not installed, or nobody is logged in.
    """
    try:
        wandb = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise  # installed, but broken
        raise UserError("wandb=true needs the package: pip install -e '.[wandb]' in the project's folder") from None
    if os.environ.get("WANDB_MODE") not in ("offline", "disabled") and not wandb.login(prompt=False, verify=False):
        raise UserError("wandb=true: nobody is logged in; run `wandb login` first, or set WANDB_MODE=offline")
    return wandb


def start_wandb(config: Config, folder: Path) -> Any:
    """Begin, or resume, the Weights & Biases run that belongs to this config."""
    return check_wandb().init(
        project=config.wandb_project,
        entity=config.wandb_entity,
        group=config.exp_name,
        name=config.run_name,
        id=f"{config.exp_name}-{config.run_name}-{config.digest()}",
        resume="allow",
        dir=str(folder),
        config=dataclasses.asdict(config),
    )
