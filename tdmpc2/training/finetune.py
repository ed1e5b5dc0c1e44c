"""Finetuning: an agent of many tasks goes on to learn one of them, or one that is new to it, online.

The agent keeps its form: zero-padded observations and actions, and a task embedding. A new task gets a row of its own,
the last, in the table of embeddings. Weights and target Q-functions are taken over; the optimizers begin anew, since
moments of many tasks' gradients say little about one's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.execution import Execution
from tdmpc2.config import Config, architecture, make_settings
from tdmpc2.errors import UserError, require, unknown_name
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import Task, get_task, nearest_task
from tdmpc2.training.embeddings import task_embeddings
from tdmpc2.training.load_agent import StoredAgent, read_agent

MODEL_SETTINGS = "num_bins vmin vmax simnorm_dim log_std_min log_std_max episodic".split()
"""Settings that must be the checkpoint's for its weights to mean what they did; its widths and depths aside."""
CHOICES = ("mean", "zero", "nearest")
"""What `embedding_from` can be besides a task."""


class TaskOfMany:
    """What an environment of one task and an agent of many exchange. Where the agent has that task alone: as it is.

    Args:
        spec: the agent's.
        task: the task, one of the agent's.
    """

    def __init__(self, spec: AgentSpec, task: Task) -> None:
        self._spec, self._task = spec, task
        self.id = spec.tasks.index(task.name) if spec.multitask else None
        """The agent's number for the task; None where it has no other."""

    def observe(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Observations as the agent sees them: (N, own dim) -> (N, padded dim)."""
        if self.id is None:
            return obs
        return np.pad(obs, ((0, 0), (0, self._spec.obs_shape[0] - obs.shape[1])))

    def action(self, action: Tensor) -> Tensor:
        """The agent's actions as the environment takes them: (N, padded dim) -> (N, own dim)."""
        return action if self.id is None else action[:, : self._task.action_dim]

    def batch(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A batch of the task's replay as the agent learns from it: padded, and with the task's number (B,)."""
        if self.id is None:
            return batch
        obs, action = batch["obs"], batch["action"]
        return {
            **batch,
            "obs": F.pad(obs, (0, self._spec.obs_shape[0] - obs.shape[-1])),
            "action": F.pad(action, (0, self._spec.action_dim - action.shape[-1])),
            "task": torch.full((obs.shape[1],), self.id),
        }


def check_finetuning(config: Config) -> None:
    """Check, before anything starts, that a run can begin from its checkpoint.

    Raises:
        UserError: the checkpoint is missing or damaged, is no multi-task agent's, or does not fit the settings; no
            embedding can be chosen.
    """
    source = _source(config)
    _settings(config, source)
    _spec(config, source.spec)
    _embedding(config, source)


def begin_finetuning(config: Config, execution: Execution, device: str) -> tuple[TDMPC2, str]:
    """The agent that a finetuning run begins with.

    Args:
        config: the run's settings, `checkpoint` among them.
        execution: precision and compiling.
        device: where the agent is to live.

    Returns:
        the agent, which has made no update; and a line that says what it began from.

    Raises:
        UserError: as `check_finetuning`.
    """
    source = _source(config)
    spec = _spec(config, source.spec)
    agent = TDMPC2(_settings(config, source), spec, device, execution)
    row, origin = _embedding(config, source)
    embeddings, own = source.model["_task_emb"], spec.tasks.index(config.tasks[0])
    table = torch.cat([embeddings[:own], row[None], embeddings[own + 1 :]])
    # A file of the reference implementation has no running scale: that of a fresh agent stays.
    scale = source.content["scale"] if isinstance(source.content, Mapping) else agent.scale
    agent.begin_with({**source.model, "_task_emb": table}, scale)
    return agent, f"finetuning {config.checkpoint} on {config.tasks[0]}, its embedding begins as {origin}"


def resume_finetuning(state: Mapping[str, Any], path: Any, execution: Execution, device: str) -> TDMPC2:
    """An agent of the form that a finetuning run's checkpoint needs, whether or not its source is still there.

    Args:
        state: the agent's, as in the checkpoint.
        path: the checkpoint's, for messages.
        execution: precision and compiling.
        device: where the agent is to live.
    """
    return TDMPC2(make_settings(Config, state["config"], str(path)), AgentSpec(**state["spec"]), device, execution)


def _source(config: Config) -> StoredAgent:
    assert config.checkpoint is not None
    source = read_agent(config.checkpoint, config.checkpoint_tasks)
    require(
        source.spec.multitask,
        f"checkpoint: {source.origin} holds an agent of {source.spec.tasks[0]} alone; finetuning begins with an agent "
        "of many tasks",
    )
    return source


def _settings(config: Config, source: StoredAgent) -> Config:
    """The run's settings with the checkpoint's model."""
    there = {name: getattr(source.config, name) for name in ("model_size", *MODEL_SETTINGS)}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    widths = dataclasses.asdict(architecture(source.config, source.spec))
    for name, value in {**there, **widths}.items():
        given = getattr(config, name)
        if given != value and (given != defaults[name] or name == "model_size"):
            raise UserError(f"{name}: {given}, but {source.origin} has {value}; give {name}={value}")
    return dataclasses.replace(config, **there, **widths)


def _spec(config: Config, spec: AgentSpec) -> AgentSpec:
    """The checkpoint's tasks, with the run's after them where it is new."""
    task = get_task(config.tasks[0])
    if task.name in spec.tasks:
        return spec
    obs_dim = task.obs_dim or 0
    require(obs_dim > 0, f"task: the observation's length of {task.name} is not known, so it cannot be finetuned on")
    require(
        obs_dim <= spec.obs_shape[0] and task.action_dim <= spec.action_dim,
        f"task: {task.name} has observations of {obs_dim} and actions of {task.action_dim} dims; {config.checkpoint} "
        f"has room for {spec.obs_shape[0]} and {spec.action_dim}",
    )
    return AgentSpec(
        obs_shape=spec.obs_shape,
        action_dims=(*spec.action_dims, task.action_dim),
        episode_lengths=(*spec.episode_lengths, task.episode_length),
        tasks=(*spec.tasks, task.name),
    )


def _embedding(config: Config, source: StoredAgent) -> tuple[Tensor, str]:
    """The row that the run's task begins with, (task_dim,), and what it is, in words."""
    table = task_embeddings(source)
    wanted, tasks = config.embedding_from, source.spec.tasks
    if wanted == "mean":
        return table.mean(dim=0), f"the mean of {len(tasks)}"
    if wanted == "zero":
        return torch.zeros_like(table[0]), "zero"
    if wanted not in (*CHOICES, *tasks):
        raise unknown_name("task", wanted, [*CHOICES, *tasks], f"embedding_from ({config.checkpoint})")
    name = nearest_task(config.tasks[0], tasks) if wanted == "nearest" else wanted
    return table[tasks.index(name)], f"that of {name}"
