"""Planning by model-predictive path integral control (MPPI), for a whole batch of observations at once."""

from __future__ import annotations

from collections.abc import Callable
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


class RollOut(NamedTuple):
    """Where action sequences lead in the model, from their first state to their last."""

    z: Tensor
    """(B, S, L) the last latent states."""
    rewards: Tensor
    """(B, S, 1) discounted sums of the predicted rewards."""
    factor: Tensor
    """(B, S, 1) discount of whatever follows; 0 after a predicted termination."""


class Plan(NamedTuple):
    """The distribution over action sequences after an iteration, and what it was fitted to."""

    mean: Tensor
    """(B, H, A)."""
    std: Tensor
    """(B, H, A)."""
    elites: Tensor
    """(B, E, H, A) the best sequences."""
    weight: Tensor
    """(B, E) their weights, summing to 1."""
    valid: Tensor
    """Bool, whether values were numbers."""


def plan(
    model: WorldModel,
    obs: Tensor,
    previous_mean: Tensor,
    first_step: Tensor,
    task: Tensor | None,
    noise: PlanNoise,
    iteration: Callable[..., Plan] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plan one action for each of B observations.

    Args:
        model: the world model.
        obs: (B, *obs_shape).
        previous_mean: (B, H, A) means of the plans made one step earlier.
        first_step: (B,) bool, whether an episode begins here and the previous plan is void.
        task: (B,) task ids; None in single-task models.
        noise: see `PlanNoise`.
        iteration: `improve`, or what a compiler made of it.

    Returns:
        action (B, A); the plan's mean (B, H, A), to warm-start the next; and a bool, whether latent states,
        values and the plan were numbers.
    """
    ids = None if task is None else task[:, None]  # broadcasts against (B, samples)
    z = model.encode(obs, task, noise.shift)
    proposals, known = roll_out_prior(model, z, ids, noise.prior)

    mean = torch.where(first_step[:, None, None], 0.0, shift_plan(previous_mean))
    std = torch.full_like(mean, model.config.max_std)
    valid = torch.isfinite(z).all()
    for i in range(noise.samples.shape[0]):
        result = (iteration or improve)(
            model, z, mean, std, ids, proposals, known, noise.samples[i], noise.last[i], noise.members[i]
        )
        mean, std, valid = result.mean, result.std, valid & result.valid

    # The largest weight / Exp(1) is a draw by weight.
    chosen = (result.weight / noise.choice).argmax(dim=1)
    best = result.elites[torch.arange(obs.shape[0], device=obs.device), chosen, 0]
    action = best + std[:, 0] * noise.explore
    return action.clamp(-1, 1), mean, valid & torch.isfinite(mean).all()


def improve(
    model: WorldModel,
    z: Tensor,
    mean: Tensor,
    std: Tensor,
    ids: Tensor | None,
    proposals: Tensor,
    known: RollOut,
    samples: Tensor,
    last: Tensor,
    members: Tensor,
) -> Plan:
    """One iteration of MPPI: sample sequences, value them and the prior's, fit the distribution to the best.

    Args:
        model: the world model.
        z: (B, L) current latent states.
        mean: (B, H, A) of the distribution so far.
        std: (B, H, A), likewise.
        ids: (B, 1) task ids; None in single-task models.
        proposals: (B, P, H, A) sequences of the policy prior.
        known: where those lead.
        samples: (H, B, S - P, A) standard normal.
        last: (B, S, A) standard normal, for the policy's action in the last state.
        members: (2,) the Q-functions to average.
    """
    config = model.config
    mask = model.action_mask(ids) if model.spec.multitask else None  # (B, 1, A)
    sampled = mean[:, None] + std[:, None] * samples.permute(1, 2, 0, 3)
    actions = torch.cat([proposals, sampled.clamp(-1, 1)], dim=1)  # (B, S, H, A)
    if mask is not None:
        actions = actions * mask.unsqueeze(-2)
    value = estimate_value(model, z, actions, ids, last, members, known)
    valid = ~value.isnan().all(dim=1).any()
    elite_value, elite = value.nan_to_num(nan=0.0).topk(config.num_elites, dim=1)
    elite_actions = actions.gather(1, elite[:, :, None, None].expand(-1, -1, *actions.shape[2:]))
    weight = torch.softmax(config.temperature * elite_value, dim=1)
    mean, std = fit_moments(elite_actions, weight, config.min_std, config.max_std)
    if mask is not None:
        mean, std = mean * mask, std * mask
    return Plan(mean, std, elite_actions, weight, valid)


def shift_plan(mean: Tensor) -> Tensor:
    """Last step's plan seen from this step, with zeros at its end: (B, H, A) -> (B, H, A)."""
    return torch.cat([mean[:, 1:], torch.zeros_like(mean[:, :1])], dim=1)


def begin_roll_out(z: Tensor, count: int) -> RollOut:
    """Before the first action of `count` sequences from each state (B, L); the state is still theirs together."""
    rewards = torch.zeros(z.shape[0], count, 1, device=z.device)
    return RollOut(z[:, None], rewards, torch.ones_like(rewards))


def roll_out_step(model: WorldModel, sofar: RollOut, action: Tensor, ids: Tensor | None) -> RollOut:
    """One action further: (B, S, A). After a predicted termination (probability above 0.5) nothing more counts."""
    rewards = sofar.rewards + sofar.factor * model.two_hot.decode(model.reward(sofar.z, action, ids))
    z = model.next(sofar.z, action, ids)
    factor = sofar.factor * model.discount(ids)
    if model.config.episodic:
        logit = model.termination(z, ids)
        factor = factor * torch.where(logit.isnan(), logit, (logit <= 0).float())  # NaN must not pass for an end
    return RollOut(z, rewards, factor)


def roll_out_prior(model: WorldModel, z: Tensor, ids: Tensor | None, noise: Tensor) -> tuple[Tensor, RollOut]:
    """Action sequences of the policy prior, and where they lead: (B, L), noise (H, B, P, A) -> (B, P, H, A)."""
    horizon, _, count, _ = noise.shape
    state, actions = begin_roll_out(z, count), []
    for t in range(horizon):
        actions.append(model.pi_action(state.z, ids, noise[t]))
        state = roll_out_step(model, state, actions[-1], ids)
    return torch.stack(actions, dim=2), state


def estimate_value(
    model: WorldModel,
    z: Tensor,
    actions: Tensor,
    ids: Tensor | None,
    noise: Tensor,
    members: Tensor,
    known: RollOut | None = None,
) -> Tensor:
    """Value of action sequences: predicted rewards, then two Q-functions at the policy's action, discounted.

    Args:
        model: the world model.
        z: (B, L) current latent states.
        actions: (B, S, H, A).
        ids: (B, 1) task ids; None in single-task models.
        noise: (B, S, A) standard normal, for the policy's action.
        members: (2,) the Q-functions to average.
        known: where the first of the sequences lead, if that is known already.

    Returns:
        (B, S).
    """
    rest = actions if known is None else actions[:, known.z.shape[1] :]
    end = begin_roll_out(z, rest.shape[1])
    for action in rest.unbind(dim=2):
        end = roll_out_step(model, end, action, ids)
    if known is not None:
        end = RollOut(*(torch.cat(pair, dim=1) for pair in zip(known, end, strict=True)))
    last = model.pi_action(end.z, ids, noise)
    q = model.two_hot.decode(model.Q(end.z, last, ids, members=members)).mean(dim=0)
    return (end.rewards + end.factor * q).squeeze(-1)


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
