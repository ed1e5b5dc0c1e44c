"""What must hold of a sweep when it is over, however it was disturbed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from tdmpc2.agent import checkpoints
from tdmpc2.config import NOT_IDENTITY
from tdmpc2.data.replay import Replay
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.training.folder import RunFolder

DIFFERENT_BY_NATURE = frozenset({"seconds", "logs", "replay_before"})
"""Of a checkpoint: the time that the run took, lengths of logs that write it down, and when the one before was made."""
LEFTOVERS = (".*.tmp", "*.tmp", ".*.partial")


def differences(undisturbed: SweepFolder, disturbed: SweepFolder) -> list[str]:
    """How the runs of a sweep differ, bit by bit, from those of one that nobody disturbed; empty where they do not.

    Compared are train.csv and eval.csv but for the seconds, the last checkpoint and all rows of the replay.
    """
    names = undisturbed.run_names()
    found = [] if disturbed.run_names() == names else [f"its runs are {', '.join(disturbed.run_names())}"]
    for name in names:
        run = disturbed.run(name)
        status = run.read_status()
        if status is None or status.state != "done":
            found.append(f"{name}: {'no status' if status is None else status.state}, not done")
        else:
            there, here = _contents(undisturbed.run(name)), _contents(run)
            found += [f"{name}/{difference}" for difference in _compare(there, here)]
    return found


def _contents(run: RunFolder) -> dict[str, Any]:
    """Everything that a run has learned and recorded, but for times."""
    state = {name: value for name, value in checkpoints.read(run.checkpoint).items() if name not in DIFFERENT_BY_NATURE}
    agent = dict(state["agent"])
    agent["config"] = {name: value for name, value in agent["config"].items() if name not in NOT_IDENTITY}
    found = {"checkpoint": {**state, "agent": agent}, "train": _rows(run.train_csv), "eval": _rows(run.eval_csv)}
    if run.replay.exists():
        with Replay.open(run.replay, writable=False) as replay:
            found["replay"] = {str(episode.index): replay.episode(episode.index) for episode in replay.episodes()}
    return found


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return [{name: text for name, text in row.items() if name != "seconds"} for row in csv.DictReader(lines)]


def _compare(there: Any, here: Any, where: str = "") -> list[str]:
    """Places where two nested values differ, the first few."""
    if type(there) is not type(here):
        return [f"{where}: {type(here).__name__}, undisturbed {type(there).__name__}"]
    if isinstance(there, dict):
        if there.keys() != here.keys():
            return [f"{where}: {sorted(map(str, here))}, undisturbed {sorted(map(str, there))}"]
        parts = [(there[key], here[key], f"{where}/{key}" if where else str(key)) for key in there]
    elif isinstance(there, list | tuple):
        if len(there) != len(here):
            return [f"{where}: {len(here)} entries, undisturbed {len(there)}"]
        parts = [(one, other, f"{where}/{i}") for i, (one, other) in enumerate(zip(there, here, strict=True))]
    elif isinstance(there, torch.Tensor):
        same = there.dtype == here.dtype and there.shape == here.shape
        return [] if same and there.numpy().tobytes() == here.numpy().tobytes() else [f"{where}: another tensor"]
    elif hasattr(there, "tobytes"):
        same = there.dtype == here.dtype and there.shape == here.shape
        return [] if same and there.tobytes() == here.tobytes() else [f"{where}: another array"]
    else:
        return [] if there == here else [f"{where}: {here!r}, undisturbed {there!r}"]
    return [difference for part in parts for difference in _compare(*part)][:3]


def processes_that_finished(run: RunFolder) -> set[int]:
    """Processes that trained a run to its end, by the events that each of them wrote into a file of its own.

    A process that is killed between its last evaluation and its last checkpoint is among them, rightly or not; one
    that finds the run done, and makes nothing of it, is not.
    """
    from tensorboard.backend.event_processing import event_file_loader  # type: ignore[import-untyped]

    config, found = run.read_config(), set()
    for file in run.tensorboard.glob("events.out.tfevents.*"):
        for event in event_file_loader.EventFileLoader(str(file)).Load():
            is_evaluation = any(value.tag.startswith("eval") for value in event.summary.value)
            if is_evaluation and event.step >= _last_step(config):
                found.add(int(file.name.split(".")[-2]))
    return found


def _last_step(config: Any) -> int:
    from tdmpc2.tasks import get_task

    if config.offline:
        return int(config.total_updates)
    return int(config.agent_steps * get_task(config.tasks[0]).action_repeat)


def leftovers(sweep: SweepFolder, temporary: Path) -> list[str]:
    """Files of a sweep that were to be temporary, and what lies in the folder of temporary files."""
    found = {str(path.relative_to(sweep.path)) for form in LEFTOVERS for path in sweep.path.rglob(form)}
    return sorted(found) + sorted(path.name for path in temporary.iterdir())
