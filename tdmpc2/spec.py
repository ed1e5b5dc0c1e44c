"""What an agent must know of its tasks, and the sizes its model comes in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tdmpc2.errors import require
from tdmpc2.tasks import Task, get_task

ObsKind = Literal["state", "rgb"]
FRAME_SHAPE = (9, 64, 64)
"""Pixel observations: three RGB frames of 64 x 64, stacked along the channels."""


@dataclass(frozen=True)
class ModelSize:
    """Widths and depths of one of the five published model sizes."""

    enc_dim: int
    mlp_dim: int
    latent_dim: int
    num_enc_layers: int
    num_q: int


MODEL_SIZES: Mapping[int, ModelSize] = {
    1: ModelSize(enc_dim=256, mlp_dim=384, latent_dim=128, num_enc_layers=2, num_q=2),
    5: ModelSize(enc_dim=256, mlp_dim=512, latent_dim=512, num_enc_layers=2, num_q=5),
    19: ModelSize(enc_dim=1024, mlp_dim=1024, latent_dim=768, num_enc_layers=3, num_q=5),
    48: ModelSize(enc_dim=1792, mlp_dim=1792, latent_dim=768, num_enc_layers=4, num_q=5),
    317: ModelSize(enc_dim=4096, mlp_dim=4096, latent_dim=1376, num_enc_layers=5, num_q=8),
}
"""The five sizes by their name, which is roughly their millions of parameters."""


@dataclass(frozen=True)
class AgentSpec:
    """What an agent must know of its tasks: shapes, lengths, names. One entry a task in each tuple."""

    obs_shape: tuple[int, ...]
    """Shape of an observation; in multi-task, of the zero-padded one."""
    action_dims: tuple[int, ...]
    """Action dims of each task; actions are padded to the largest."""
    episode_lengths: tuple[int, ...]
    """Agent steps in an episode of each task."""
    tasks: tuple[str, ...]
    """Names of the tasks."""
    obs: ObsKind = "state"
    """Kind of observation."""

    def __post_init__(self) -> None:
        lengths = {len(self.tasks), len(self.action_dims), len(self.episode_lengths)}
        require(lengths == {len(self.tasks)}, "AgentSpec: tasks, action_dims and episode_lengths differ in length")
        require(len(self.tasks) > 0, "AgentSpec: at least one task")
        require(len(set(self.tasks)) == len(self.tasks), "AgentSpec: a task is named twice")
        require(min(self.action_dims) > 0 and min(self.obs_shape) > 0, "AgentSpec: dims must be positive")
        require(min(self.episode_lengths) > 0, "AgentSpec: episode lengths must be positive")
        dims = 1 if self.obs == "state" else 3
        require(len(self.obs_shape) == dims, f"AgentSpec: obs={self.obs} needs an obs_shape of {dims} dims")
        size = FRAME_SHAPE[1:]  # the pixel encoder's latent length holds for this size alone
        require(self.obs == "state" or self.obs_shape[1:] == size, f"AgentSpec: pixels must be {size[0]} x {size[1]}")

    @property
    def action_dim(self) -> int:
        """Length of the (padded) action."""
        return max(self.action_dims)

    @property
    def multitask(self) -> bool:
        """Whether the agent has a task embedding."""
        return len(self.tasks) > 1

    @classmethod
    def from_tasks(cls, names: Iterable[str], obs: ObsKind = "state") -> AgentSpec:
        """The spec of an agent for tasks of the registry.

        Raises:
            UserError: a task is unknown, or its observation's length is not known without its simulator.
        """
        tasks: list[Task] = [get_task(name) for name in names]
        unknown = [task.name for task in tasks if obs == "state" and task.obs_dim is None]
        require(not unknown, f"observation length not in the registry: {', '.join(unknown)}")
        shape = (max(task.obs_dim or 0 for task in tasks),) if obs == "state" else FRAME_SHAPE
        return cls(
            obs_shape=shape,
            action_dims=tuple(task.action_dim for task in tasks),
            episode_lengths=tuple(task.episode_length for task in tasks),
            tasks=tuple(task.name for task in tasks),
            obs=obs,
        )


@dataclass(frozen=True)
class Architecture:
    """Widths and depths of one model, all defaults resolved."""

    enc_dim: int
    mlp_dim: int
    latent_dim: int
    num_enc_layers: int
    num_q: int
    task_dim: int
