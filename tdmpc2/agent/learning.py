"""One update: the model's losses and the policy's, as pure functions of model, batch and noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tdmpc2.agent.planner import draw_pair, draw_shift
from tdmpc2.agent.world_model import WorldModel


class Batch(NamedTuple):
    """B sequences of H steps."""

    obs: Tensor
    """(H + 1, B, *obs_shape)."""
    action: Tensor
    """(H, B, A)."""
    reward: Tensor
    """(H, B, 1)."""
    terminated: Tensor
    """(H, B, 1), 1.0 where the step ended its episode by termination."""
    task: Tensor | None
    """(B,) task ids; None in single-task models."""

    @classmethod
    def from_mapping(cls, batch: Mapping[str, Tensor], device: torch.device) -> Batch:
        """A batch from named tensors, moved to the device; `terminated` and `task` may be absent."""
        obs, reward = batch["obs"], batch["reward"].to(device, torch.float32, non_blocking=True)
        terminated, task = batch.get("terminated"), batch.get("task")
        return cls(
            obs=obs.to(device, torch.float32 if obs.is_floating_point() else obs.dtype, non_blocking=True),
            action=batch["action"].to(device, torch.float32, non_blocking=True),
            reward=reward,
            terminated=torch.zeros_like(reward) if terminated is None else terminated.to(reward, non_blocking=True),
            task=None if task is None else task.to(device, torch.long, non_blocking=True),
        )


class UpdateNoise(NamedTuple):
    """Everything random in one update, drawn beforehand."""

    shift: Tensor | None
    """(H + 1, B, 2) shifts of pixel observations; None for states."""
    target_eps: Tensor
    """(H, B, A) standard normal, for the policy's actions in the TD targets."""
    target_members: Tensor
    """(2,) target Q-functions of the TD targets."""
    keep: Tensor | None
    """(M, H B, hidden) dropout factors of the Q-functions in the value loss; None without dropout."""
    policy_eps: Tensor
    """(H + 1, B, A) standard normal, for the policy loss."""
    policy_members: Tensor
    """(2,) Q-functions of the policy loss."""
    policy_keep: Tensor | None
    """(2, (H + 1) B, hidden) dropout factors in the policy loss; None without dropout."""


def draw_update_noise(model: WorldModel, batch: int, generator: torch.Generator) -> UpdateNoise:
    """Draw the noise of an update on `batch` sequences."""
    config, size, A = model.config, model.architecture, model.spec.action_dim
    H, device = config.horizon, generator.device

    def dropout(*shape: int) -> Tensor | None:
        return None if config.dropout == 0 else draw_keep(shape, config.dropout, generator)

    return UpdateNoise(
        shift=draw_shift(model, (H + 1, batch), generator),
        target_eps=torch.randn(H, batch, A, generator=generator, device=device),
        target_members=draw_pair(size.num_q, generator),
        keep=dropout(size.num_q, H * batch, size.mlp_dim),
        policy_eps=torch.randn(H + 1, batch, A, generator=generator, device=device),
        policy_members=draw_pair(size.num_q, generator),
        policy_keep=dropout(2, (H + 1) * batch, size.mlp_dim),
    )


def draw_keep(shape: tuple[int, ...], dropout: float, generator: torch.Generator) -> Tensor:
    """Dropout factors: 0 with this probability, else 1 / (1 - dropout), independently."""
    keep = torch.empty(shape, device=generator.device)
    if generator.device.type != "cpu" or dropout > 0.1:
        return keep.bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)
    # One draw a factor takes as long as a tenth of a small model's update. The gaps between rare zeros are geometric.
    keep.fill_(1 / (1 - dropout))
    flat, last = keep.view(-1), -1
    draws = int(flat.numel() * dropout * 1.1) + 16
    while last < flat.numel():
        uniform = torch.rand(draws, generator=generator, dtype=torch.float64)
        gaps = torch.log1p(-uniform).div_(math.log1p(-dropout)).floor_().clamp_max_(flat.numel()).long()
        zeros = (gaps + 1).cumsum(0) + last
        flat[zeros[zeros < flat.numel()]] = 0.0
        last = int(zeros[-1])
    return keep


def step_weights(rho: float, steps: int, device: torch.device) -> Tensor:
    """rho ** t for t = 0 .. steps - 1."""
    return rho ** torch.arange(steps, device=device, dtype=torch.float32)


@torch.no_grad()
def td_targets(model: WorldModel, next_z: Tensor, batch: Batch, noise: UpdateNoise) -> Tensor:
    """r + gamma (1 - terminated) min of two target Qs at the policy's action: next_z (H, B, L) -> (H, B, 1)."""
    action = model.pi_action(next_z, batch.task, noise.target_eps)
    logits = model.Q(next_z, action, batch.task, target=True, members=noise.target_members)
    q = model.two_hot.decode(logits).amin(dim=0)
    return batch.reward + model.discount(batch.task) * (1 - batch.terminated) * q


def model_loss(model: WorldModel, batch: Batch, noise: UpdateNoise) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss of everything but the policy (ALGORITHM: steps 1 to 3 of an update).

    Returns:
        the total, a scalar; the latent rollout (H + 1, B, L), detached; the losses by name.
    """
    config, two_hot = model.config, model.two_hot
    shift = noise.shift
    with torch.no_grad():
        next_z = model.encode(batch.obs[1:], batch.task, None if shift is None else shift[1:])
        targets = td_targets(model, next_z, batch, noise)

    z = model.encode(batch.obs[0], batch.task, None if shift is None else shift[0])
    rollout = [z]
    for action in batch.action.unbind(0):
        z = model.next(z, action, batch.task)
        rollout.append(z)
    latents = torch.stack(rollout)

    rho = step_weights(config.rho, config.horizon, latents.device)

    def over_time(loss: Tensor) -> Tensor:
        return (rho * loss).mean()

    before = latents[:-1]
    reward_logits = model.reward(before, batch.action, batch.task)
    q_logits = model.Q(before, batch.action, batch.task, keep=noise.keep)
    losses = {
        "consistency_loss": over_time((latents[1:] - next_z).square().mean(dim=(1, 2))),
        "reward_loss": over_time(two_hot.cross_entropy(reward_logits, two_hot.encode(batch.reward)).mean(dim=1)),
        "value_loss": over_time(two_hot.cross_entropy(q_logits, two_hot.encode(targets)).mean(dim=(0, 2))),
    }
    total = (
        config.consistency_coef * losses["consistency_loss"]
        + config.reward_coef * losses["reward_loss"]
        + config.value_coef * losses["value_loss"]
    )
    if config.episodic:
        logit = model.termination(latents[1:], batch.task)
        losses["termination_loss"] = F.binary_cross_entropy_with_logits(logit, batch.terminated)
        total = total + config.termination_coef * losses["termination_loss"]
    losses["total_loss"] = total
    return total, latents.detach(), {name: loss.detach() for name, loss in losses.items()}


@torch.no_grad()
def first_values(model: WorldModel, latents: Tensor, task: Tensor | None, noise: UpdateNoise) -> Tensor:
    """What `policy_loss` finds as values at t = 0, for the running scale: (H + 1, B, L) -> (B, 1)."""
    first, B = latents[0], latents.shape[1]
    action = model.pi_action(first, task, noise.policy_eps[0])
    keep = None if noise.policy_keep is None else noise.policy_keep[:, :B].contiguous()
    logits = model.Q(first, action, task, members=noise.policy_members, keep=keep)
    return model.two_hot.decode(logits).mean(dim=0)


def policy_loss(
    model: WorldModel,
    latents: Tensor,
    task: Tensor | None,
    scale: Tensor,
    noise: UpdateNoise,
    values: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss of the policy prior (ALGORITHM: step 5), with gradients for its parameters only.

    Args:
        model: the world model.
        latents: (H + 1, B, L), detached.
        task: (B,) task ids, or None.
        scale: scalar, the running scale before this update.
        noise: see `UpdateNoise`.
        values: the whole batch's `first_values`, where these latents are a part of it; None where they are all.

    Returns:
        the loss, the running scale after this update, and metrics by name.
    """
    config = model.config
    action, info = model.pi(latents, task, noise.policy_eps)
    logits = model.Q(latents, action, task, members=noise.policy_members, keep=noise.policy_keep, frozen=True)
    q = model.two_hot.decode(logits).mean(dim=0)
    scale = update_scale(scale, q[0].detach() if values is None else values, config.tau)
    objective = (config.entropy_coef * info["scaled_entropy"] + q / scale).mean(dim=(1, 2))
    loss = -(step_weights(config.rho, len(objective), latents.device) * objective).mean()
    metrics = {
        "pi_loss": loss.detach(),
        "pi_entropy": info["entropy"].detach().mean(),
        "pi_scaled_entropy": info["scaled_entropy"].detach().mean(),
        "pi_scale": scale,
    }
    return loss, scale, metrics


def update_scale(scale: Tensor, values: Tensor, rate: float) -> Tensor:
    """Moving average of the values' 5th-to-95th percentile range, which counts as at least 1: scalar -> scalar."""
    ordered, last = values.flatten().float().sort().values, values.numel() - 1
    low, high = (_between(ordered, q * last) for q in (0.05, 0.95))
    return torch.lerp(scale, (high - low).clamp_min(1.0), rate)


def _between(ordered: Tensor, position: float) -> Tensor:
    """Linear interpolation between neighbours; torch.quantile would wait for the device to check its arguments."""
    below = int(position)
    return torch.lerp(ordered[below], ordered[min(below + 1, len(ordered) - 1)], position - below)
