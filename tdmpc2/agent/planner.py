"""Planning by model-predictive path integral control (MPPI), for a whole batch of observations at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tdmpc2.agent.layers import PixelEncoder
from tdmpc2.agent.world_model import WorldModel
from tdmpc2.config import Config


class PlanNoise(NamedTuple):
    """Everything random in one planning step, drawn beforehand, so that planning itself is a pure function."""

    shift: Tensor | None
    """(B, 2) shifts of pixel observations; None for states."""
    prior: Tensor
    """(H, B, P, A) standard normal, for the sequences that the policy prior rolls out."""
    samples: Tensor
    """(N, H, B, S - P, A) standard normal, for the sampled sequences of each iteration."""
    last: Tensor
    """(N, B, S, A) standard normal, for the policy's action in the last latent state."""
    members: Tensor
    """(N, 2) the two Q-functions of each iteration."""
    choice: Tensor
    """(B, E) standard exponential, to draw one elite by its weight."""
    explore: Tensor
    """(B, A) standard normal, added to the action with the plan's first std; zeros in evaluation."""


def planning_iterations(config: Config, action_dim: int) -> int:
    """Iterations of MPPI: two more for large action spaces."""
    return config.iterations + 2 * (action_dim >= 20)


def draw_pair(members: int, generator: torch.Generator) -> Tensor:
    """Two different ensemble members, uniformly at random: (2,)."""
    return torch.randperm(members, generator=generator, device=generator.device)[:2]


def draw_plan_noise(model: WorldModel, batch: int, eval_mode: bool, generator: torch.Generator) -> PlanNoise:
    """Draw the noise to plan for `batch` observations.

    In evaluation the same numbers are drawn and the exploration noise is zeroed, so one compiled plan serves both.
    """
    config, A = model.config, model.spec.action_dim
    N, H, S, P = planning_iterations(config, A), config.horizon, config.num_samples, config.num_pi_trajs
    device = generator.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    explore = normal(batch, A)
    return PlanNoise(
        shift=draw_shift(model, (batch,), generator),
        prior=normal(H, batch, P, A),
        samples=normal(N, H, batch, S - P, A),
        last=normal(N, batch, S, A),
        members=torch.stack([draw_pair(model.architecture.num_q, generator) for _ in range(N)]),
        choice=torch.empty(batch, config.num_elites, device=device).exponential_(generator=generator),
        explore=torch.zeros_like(explore) if eval_mode else explore,
    )


def draw_shift(model: WorldModel, leading: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
    """Random shifts for pixel observations with these leading axes: (*leading, 2); None for states."""
    if model.spec.obs == "state":
        return None
    return torch.randint(2 * PixelEncoder.PAD + 1, (*leading, 2), generator=generator, device=generator.device)


def plan(
    model: WorldModel, obs: Tensor, previous_mean: Tensor, first_step: Tensor, task: Tensor | None, noise: PlanNoise
) -> tuple[Tensor, Tensor, Tensor]:
    """Plan one action for each of B observations.

    Args:
        model: the world model.
        obs: (B, *obs_shape).
        previous_mean: (B, H, A) means of the plans made one step earlier.
        first_step: (B,) bool, whether an episode begins here and the previous plan is void.
        task: (B,) task ids; None in single-task models.
        noise: see `PlanNoise`.

    Returns:
        action (B, A); the plan's mean (B, H, A), to warm-start the next; and a bool, whether latent states,
        values and the plan were numbers.
    """
    config = model.config
    ids = None if task is None else task[:, None]  # broadcasts against (B, samples)
    mask = model.action_mask(ids) if model.spec.multitask else None  # (B, 1, A)
    z = model.encode(obs, task, noise.shift)
    proposals = roll_out_prior(model, z, ids, noise.prior)

    mean = torch.where(first_step[:, None, None], 0.0, shift_plan(previous_mean))
    std = torch.full_like(mean, config.max_std)
    valid = torch.isfinite(z).all()
    for iteration in range(noise.samples.shape[0]):
        sampled = mean[:, None] + std[:, None] * noise.samples[iteration].permute(1, 2, 0, 3)
        actions = torch.cat([proposals, sampled.clamp(-1, 1)], dim=1)  # (B, S, H, A)
        if mask is not None:
            actions = actions * mask.unsqueeze(-2)
        value = estimate_value(model, z, actions, ids, noise.last[iteration], noise.members[iteration])
        valid = valid & ~value.isnan().all(dim=1).any()
        elite_value, elite = value.nan_to_num(nan=0.0).topk(config.num_elites, dim=1)
        elite_actions = actions.gather(1, elite[:, :, None, None].expand(-1, -1, *actions.shape[2:]))
        weight = torch.softmax(config.temperature * elite_value, dim=1)
        mean, std = fit_moments(elite_actions, weight, config.min_std, config.max_std)
        if mask is not None:
            mean, std = mean * mask, std * mask

    # The largest weight / Exp(1) is a draw by weight.
    chosen = (weight / noise.choice).argmax(dim=1)
    action = elite_actions[torch.arange(obs.shape[0], device=obs.device), chosen, 0] + std[:, 0] * noise.explore
    return action.clamp(-1, 1), mean, valid & torch.isfinite(mean).all()


def shift_plan(mean: Tensor) -> Tensor:
    """Last step's plan seen from this step, with zeros at its end: (B, H, A) -> (B, H, A)."""
    return torch.cat([mean[:, 1:], torch.zeros_like(mean[:, :1])], dim=1)


def roll_out_prior(model: WorldModel, z: Tensor, ids: Tensor | None, noise: Tensor) -> Tensor:
    """Action sequences of the policy prior in the model: (B, L), noise (H, B, P, A) -> (B, P, H, A)."""
    horizon, batch, count, _ = noise.shape
    z = z[:, None].expand(batch, count, z.shape[-1])
    actions = []
    for t in range(horizon):
        actions.append(model.pi_action(z, ids, noise[t]))
        if t + 1 < horizon:
            z = model.next(z, actions[-1], ids)
    return torch.stack(actions, dim=2)


def estimate_value(
    model: WorldModel, z: Tensor, actions: Tensor, ids: Tensor | None, noise: Tensor, members: Tensor
) -> Tensor:
    """Value of action sequences: predicted rewards, then two Q-functions at the policy's action, discounted.

    After a predicted termination (probability above 0.5) nothing more counts.

    Args:
        model: the world model.
        z: (B, L) current latent states.
        actions: (B, S, H, A).
        ids: (B, 1) task ids; None in single-task models.
        noise: (B, S, A) standard normal, for the policy's action.
        members: (2,) the Q-functions to average.

    Returns:
        (B, S).
    """
    gamma = model.discount(ids)
    z = z[:, None].expand(*actions.shape[:2], z.shape[-1])
    total = torch.zeros(*actions.shape[:2], 1, device=z.device)
    factor = torch.ones_like(total)
    for action in actions.unbind(dim=2):
        total = total + factor * model.two_hot.decode(model.reward(z, action, ids))
        z = model.next(z, action, ids)
        factor = factor * gamma
        if model.config.episodic:
            logit = model.termination(z, ids)
            factor = factor * torch.where(logit.isnan(), logit, (logit <= 0).float())  # NaN must not pass for an end
    last = model.pi_action(z, ids, noise)
    q = model.two_hot.decode(model.Q(z, last, ids, members=members)).mean(dim=0)
    return (total + factor * q).squeeze(-1)


def fit_moments(actions: Tensor, weight: Tensor, min_std: float, max_std: float) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation of elites.

    Args:
        actions: (B, E, H, A).
        weight: (B, E), summing to 1 over the elites.
        min_std: lower bound of the standard deviation.
        max_std: upper bound of the standard deviation.

    Returns:
        mean and std, each (B, H, A).
    """
    w = weight[:, :, None, None]
    mean = (w * actions).sum(dim=1)
    variance = (w * (actions - mean[:, None]).square()).sum(dim=1)
    return mean, variance.sqrt().clamp(min_std, max_std)
