"""TD-MPC2's planning step and update as the reference implementation arranges them: what the benchmark compares with.

Uncompiled, float32, one observation at a time, all Q-functions evaluated and two of them kept, layers and losses one by
one. It is written from ALGORITHM's description and shares no network code with the agent, so it is also an independent
check of the agent: with the same noise both must compute the same. Where the reference's arrangement is not known in
detail, the cheaper one is taken, so that the agent's lead is understated rather than overstated.

Single-task agents with state observations and no termination only.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

from tdmpc2 import TDMPC2
from tdmpc2.agent.learning import Batch, UpdateNoise
from tdmpc2.agent.planner import PlanNoise
from tdmpc2.config import architecture

LOG_2PI = math.log(2 * math.pi)


# --- networks


class GroupSoftmax(nn.Module):
    """SimNorm: softmax over groups of `group` entries of the last axis."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """(..., L) -> (..., L)."""
        return F.softmax(x.view(*x.shape[:-1], -1, self.group), dim=-1).view(x.shape)


def hidden_layers(widths: Sequence[int]) -> list[nn.Module]:
    """Linear, LayerNorm and Mish from each width to the next."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.Mish()]
    return layers


def network(inputs: int, hidden: Sequence[int], outputs: int, simnorm: int | None = None) -> nn.Sequential:
    """Hidden layers, then a linear one; with `simnorm`, LayerNorm and SimNorm in groups of that size follow."""
    layers = [*hidden_layers([inputs, *hidden]), nn.Linear([inputs, *hidden][-1], outputs)]
    if simnorm is not None:
        layers += [nn.LayerNorm(outputs), GroupSoftmax(simnorm)]
    return nn.Sequential(*layers)


class QFunction(nn.Module):
    """One Q-function, with dropout behind its first linear layer."""

    def __init__(self, inputs: int, hidden: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.dropout = nn.Dropout(dropout)
        self.rest = nn.Sequential(
            nn.LayerNorm(hidden), nn.Mish(), *hidden_layers([hidden, hidden]), nn.Linear(hidden, outputs)
        )

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """(..., in) -> (..., K). `keep` (..., hidden) holds dropout factors that were drawn beforehand, or None."""
        h = self.first(x)
        return self.rest(self.dropout(h) if keep is None else h * keep)


class QEnsemble:
    """M Q-functions, evaluated together by vmap over their stacked parameters."""

    def __init__(self, members: Sequence[QFunction]) -> None:
        self.size = len(members)
        self.parameters, _ = stack_module_state(list(members))
        self.skeleton = copy.deepcopy(members[0]).to("meta").eval()

    def __call__(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(..., in) -> (M, ..., K). `keep` is (M, ..., hidden), or None."""

        def one(parameters: dict[str, Tensor], factors: Tensor | None) -> Tensor:
            return functional_call(self.skeleton, parameters, (x, factors))

        in_dims = (0, None if keep is None else 0)
        return torch.vmap(one, in_dims=in_dims, randomness="different")(self.parameters, keep)

    def requires_grad_(self, required: bool) -> None:
        """Switch the parameters' gradients on or off."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(required)


def by_agent_names(part: nn.Module | QEnsemble, prefix: str) -> dict[str, Tensor]:
    """Parameters, detached, by the agent's names: layer i's linear part is `prefix`.i, its LayerNorm `prefix`.i.ln."""
    parameters = part.parameters if isinstance(part, QEnsemble) else dict(part.named_parameters())
    module = part.skeleton if isinstance(part, QEnsemble) else part
    named = {}
    for kind, infix in ((nn.Linear, ""), (nn.LayerNorm, ".ln")):
        for i, path in enumerate(path for path, layer in module.named_modules() if isinstance(layer, kind)):
            for suffix in ("weight", "bias"):
                named[f"{prefix}.{i}{infix}.{suffix}"] = parameters[f"{path}.{suffix}"].detach()
    return named


# --- noise: drawn beforehand as the agent's, or drawn as it is needed


class PlanDraws:
    """The noise of planning for one observation: `noise`, drawn for a batch of 1, or with None drawn on each call."""

    def __init__(self, noise: PlanNoise | None) -> None:
        self.noise = noise

    def prior(self, t: int, like: Tensor) -> Tensor:
        """(P, A) standard normal, for step t of the policy's sequences."""
        return torch.randn_like(like) if self.noise is None else self.noise.prior[t, 0]

    def samples(self, iteration: int, like: Tensor) -> Tensor:
        """(H, S - P, A) standard normal, for the sampled sequences."""
        return torch.randn_like(like) if self.noise is None else self.noise.samples[iteration, :, 0]

    def last(self, iteration: int, like: Tensor) -> Tensor:
        """(S, A) standard normal, for the policy's last action."""
        return torch.randn_like(like) if self.noise is None else self.noise.last[iteration, 0]

    def pair(self, iteration: int, members: int, device: torch.device) -> Tensor:
        """(2,) different Q-functions."""
        return torch.randperm(members, device=device)[:2] if self.noise is None else self.noise.members[iteration]

    def choice(self, like: Tensor) -> Tensor:
        """(E,) standard exponential, to draw an elite."""
        return torch.empty_like(like).exponential_() if self.noise is None else self.noise.choice[0]

    def explore(self, like: Tensor) -> Tensor:
        """(A,) standard normal."""
        return torch.randn_like(like) if self.noise is None else self.noise.explore[0]


class UpdateDraws:
    """The noise of an update: `noise`, or with None drawn on each call."""

    def __init__(self, noise: UpdateNoise | None) -> None:
        self.noise = noise

    def target_eps(self, like: Tensor) -> Tensor:
        """(H, B, A) standard normal."""
        return torch.randn_like(like) if self.noise is None else self.noise.target_eps

    def target_pair(self, members: int, device: torch.device) -> Tensor:
        """(2,) different target Q-functions."""
        return torch.randperm(members, device=device)[:2] if self.noise is None else self.noise.target_members

    def keep(self, horizon: int) -> Tensor | None:
        """(M, H, B, hidden) dropout factors of the value loss; None lets the Q-functions draw their own."""
        if self.noise is None or self.noise.keep is None:
            return None
        return self.noise.keep.unflatten(1, (horizon, -1))

    def policy_eps(self, like: Tensor) -> Tensor:
        """(H + 1, B, A) standard normal."""
        return torch.randn_like(like) if self.noise is None else self.noise.policy_eps

    def policy_pair(self, members: int, device: torch.device) -> Tensor:
        """(2,) different Q-functions."""
        return torch.randperm(members, device=device)[:2] if self.noise is None else self.noise.policy_members

    def policy_keep(self, members: int, steps: int) -> Tensor | None:
        """(M, H + 1, B, hidden) dropout factors of the policy loss, of which the drawn pair's alone matter; or None."""
        if self.noise is None or self.noise.policy_keep is None:
            return None
        drawn = self.noise.policy_keep.unflatten(1, (steps, -1))
        return drawn.new_ones(members, *drawn.shape[1:]).index_copy_(0, self.noise.policy_members, drawn)


# --- the agent


class Baseline:
    """A second agent that starts from copies of an agent's weights and running scale, with fresh optimizers.

    Args:
        agent: a single-task agent with state observations that predicts no terminations. It is left as it is.

    Raises:
        ValueError: the agent is of another kind.
    """

    def __init__(self, agent: TDMPC2) -> None:
        if agent.spec.multitask or agent.spec.obs != "state" or agent.config.episodic:
            raise ValueError("agent: the baseline covers single-task agents with states and without terminations only")
        self.config, self.spec, self.device = agent.config, agent.spec, agent.device
        config, A = agent.config, agent.spec.action_dim
        size = architecture(config, agent.spec)
        L, K, hidden, simnorm = size.latent_dim, config.num_bins, [size.mlp_dim] * 2, config.simnorm_dim
        encoder_hidden = [size.enc_dim] * max(size.num_enc_layers - 1, 1)

        def ensemble() -> QEnsemble:
            members = [QFunction(L + A, size.mlp_dim, K, config.dropout) for _ in range(size.num_q)]
            return QEnsemble([member.to(self.device) for member in members])

        self.encoder = network(self.spec.obs_shape[0], encoder_hidden, L, simnorm).to(self.device)
        self.dynamics = network(L + A, hidden, L, simnorm).to(self.device)
        self.reward = network(L + A, hidden, K).to(self.device)
        self.pi = network(L, hidden, 2 * A).to(self.device)
        self.Qs, self.target_Qs = ensemble(), ensemble()
        self.target_Qs.requires_grad_(False)

        state = agent.state_dict()
        for name, parameter in self.weights().items():
            parameter.copy_(state["model"][name])
        self.scale = state["scale"].clone()
        self.bins = torch.linspace(config.vmin, config.vmax, K, device=self.device)
        length = self.spec.episode_lengths[0] / config.discount_denom
        self.gamma = min(max((length - 1) / length, config.discount_min), config.discount_max)

        encoder = list(self.encoder.parameters())
        rest = [*self.dynamics.parameters(), *self.reward.parameters(), *self.Qs.parameters.values()]
        self.model_parameters = encoder + rest
        groups = [{"params": encoder, "lr": config.lr * config.enc_lr_scale}, {"params": rest, "lr": config.lr}]
        self.model_optimizer = torch.optim.Adam(groups)
        self.policy_optimizer = torch.optim.Adam(self.pi.parameters(), lr=config.lr, eps=1e-5)

    def weights(self) -> dict[str, Tensor]:
        """The parameters themselves, detached, by the names of the agent's `model.state_dict()`."""
        parts: dict[str, nn.Module | QEnsemble] = {
            "_encoder": self.encoder,
            "_dynamics": self.dynamics,
            "_reward": self.reward,
            "_pi": self.pi,
            "_Qs.layers": self.Qs,
            "_target_Qs.layers": self.target_Qs,
        }
        return {name: tensor for prefix, part in parts.items() for name, tensor in by_agent_names(part, prefix).items()}

    # --- scalars and the policy prior

    def decode(self, logits: Tensor) -> Tensor:
        """Expected scalars of two-hot logits: (..., K) -> (..., 1)."""
        x = (F.softmax(logits, dim=-1) * self.bins).sum(dim=-1, keepdim=True)
        return torch.sign(x) * (torch.exp(torch.abs(x)) - 1)

    def encode_two_hot(self, x: Tensor) -> Tensor:
        """Two-hot weights of scalars: (..., 1) -> (..., K)."""
        low, high, count = self.config.vmin, self.config.vmax, self.config.num_bins
        symlog = torch.sign(x) * torch.log(1 + torch.abs(x))
        position = (symlog.clamp(low, high) - low) * ((count - 1) / (high - low))
        below = position.floor().clamp(max=count - 2)  # the last bin is the upper neighbour of the one before
        index, share = below.long(), position - below
        weights = torch.zeros(*x.shape[:-1], count, device=x.device)
        return weights.scatter_(-1, index, 1 - share).scatter_(-1, index + 1, share)

    def cross_entropy(self, logits: Tensor, x: Tensor) -> Tensor:
        """Mean cross-entropy of logits (..., K) against scalars (..., 1)."""
        return -(self.encode_two_hot(x) * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()

    def policy_gaussian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the policy prior before the tanh: (..., L) -> 2 x (..., A)."""
        mean, raw = self.pi(z).chunk(2, dim=-1)
        low, high = self.config.log_std_min, self.config.log_std_max
        return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1)

    # --- planning

    @torch.no_grad()
    def act(
        self, obs: Tensor, previous_mean: Tensor, first_step: bool, noise: PlanNoise | None = None
    ) -> tuple[Tensor, Tensor]:
        """Plan one action for one observation.

        Args:
            obs: (obs_dim,).
            previous_mean: (H, A), mean of the plan made one step earlier.
            first_step: whether an episode begins here and the previous plan is void.
            noise: drawn for a batch of 1; None draws it from torch's global generator, with exploration.

        Returns:
            action (A,) and the plan's mean (H, A).
        """
        config, A, draws = self.config, self.spec.action_dim, PlanDraws(noise)
        H, S, P = config.horizon, config.num_samples, config.num_pi_trajs
        start = self.encoder(obs.to(self.device).unsqueeze(0))

        actions = torch.empty(H, S, A, device=self.device)
        z = start.repeat(P, 1)
        for t in range(H):
            mean, log_std = self.policy_gaussian(z)
            actions[t, :P] = torch.tanh(mean + draws.prior(t, mean) * log_std.exp())
            if t < H - 1:
                z = self.dynamics(torch.cat([z, actions[t, :P]], dim=-1))

        z = start.repeat(S, 1)
        mean = torch.zeros(H, A, device=self.device)
        std = torch.full_like(mean, config.max_std)
        if not first_step:
            mean[:-1] = previous_mean[1:]
        for iteration in range(config.iterations + (2 if A >= 20 else 0)):
            eps = draws.samples(iteration, actions[:, P:])
            actions[:, P:] = (mean.unsqueeze(1) + std.unsqueeze(1) * eps).clamp(-1, 1)
            value = self.estimate_value(z, actions, iteration, draws).nan_to_num(0)
            elite_value, elite = torch.topk(value.squeeze(1), config.num_elites)
            elite_actions = actions[:, elite]
            score = torch.exp(config.temperature * (elite_value - elite_value.max()))
            score = score / score.sum()
            weight = score.view(1, -1, 1)
            mean = (weight * elite_actions).sum(dim=1)
            std = (weight * (elite_actions - mean.unsqueeze(1)) ** 2).sum(dim=1).sqrt()
            std = std.clamp(config.min_std, config.max_std)

        chosen = (score / draws.choice(score)).argmax()
        action = elite_actions[0, chosen]
        return (action + std[0] * draws.explore(action)).clamp(-1, 1), mean

    def estimate_value(self, z: Tensor, actions: Tensor, iteration: int, draws: PlanDraws) -> Tensor:
        """Discounted rewards and the final value of action sequences: (S, L), (H, S, A) -> (S, 1)."""
        total, factor = torch.zeros(len(z), 1, device=z.device), 1.0
        for action in actions:
            total = total + factor * self.decode(self.reward(torch.cat([z, action], dim=-1)))
            z = self.dynamics(torch.cat([z, action], dim=-1))
            factor *= self.gamma
        mean, log_std = self.policy_gaussian(z)
        action = torch.tanh(mean + draws.last(iteration, mean) * log_std.exp())
        logits = self.Qs(torch.cat([z, action], dim=-1))
        return total + factor * self.decode(logits[draws.pair(iteration, self.Qs.size, z.device)]).mean(dim=0)

    # --- learning

    def update(self, batch: Batch, noise: UpdateNoise | None = None) -> dict[str, Tensor]:
        """Learn from a batch of sequences.

        Args:
            batch: on the agent's device.
            noise: everything random; None draws it from torch's global generator.

        Returns:
            scalar metrics by the agent's names, detached.
        """
        draws = UpdateDraws(noise)
        self.Qs.skeleton.train()
        latents, metrics = self.update_model(batch, draws)
        metrics |= self.update_policy(latents, draws)
        self.Qs.skeleton.eval()
        with torch.no_grad():
            for name, parameter in self.Qs.parameters.items():
                self.target_Qs.parameters[name].lerp_(parameter, self.config.tau)
        return metrics

    @torch.no_grad()
    def td_target(self, next_z: Tensor, batch: Batch, draws: UpdateDraws) -> Tensor:
        """r + gamma (1 - terminated) min of two target Qs at the policy's action: (H, B, L) -> (H, B, 1)."""
        mean, log_std = self.policy_gaussian(next_z)
        action = torch.tanh(mean + draws.target_eps(mean) * log_std.exp())
        logits = self.target_Qs(torch.cat([next_z, action], dim=-1))
        q = self.decode(logits[draws.target_pair(self.Qs.size, next_z.device)]).amin(dim=0)
        return batch.reward + self.gamma * (1 - batch.terminated) * q

    def update_model(self, batch: Batch, draws: UpdateDraws) -> tuple[Tensor, dict[str, Tensor]]:
        """Move all but the policy; returns the latent rollout (H + 1, B, L), detached, and metrics."""
        config, H = self.config, self.config.horizon
        with torch.no_grad():
            next_z = self.encoder(batch.obs[1:])
            targets = self.td_target(next_z, batch, draws)

        consistency = reward = value = torch.zeros((), device=self.device)
        rollout = [self.encoder(batch.obs[0])]
        for t in range(H):
            rollout.append(self.dynamics(torch.cat([rollout[t], batch.action[t]], dim=-1)))
            consistency = consistency + config.rho**t * F.mse_loss(rollout[t + 1], next_z[t])
        latents = torch.stack(rollout)

        inputs = latents[:-1]
        reward_logits = self.reward(torch.cat([inputs, batch.action], dim=-1))
        q_logits = self.Qs(torch.cat([inputs, batch.action], dim=-1), draws.keep(H))
        for t in range(H):
            reward = reward + config.rho**t * self.cross_entropy(reward_logits[t], batch.reward[t])
            for member in range(self.Qs.size):
                value = value + config.rho**t * self.cross_entropy(q_logits[member, t], targets[t])
        losses = {
            "consistency_loss": consistency / H,
            "reward_loss": reward / H,
            "value_loss": value / (H * self.Qs.size),
        }
        total = (
            config.consistency_coef * losses["consistency_loss"]
            + config.reward_coef * losses["reward_loss"]
            + config.value_coef * losses["value_loss"]
        )
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model_parameters, config.grad_clip_norm)
        self.model_optimizer.step()
        self.model_optimizer.zero_grad(set_to_none=True)
        metrics = {name: loss.detach() for name, loss in losses.items()}
        return latents.detach(), metrics | {"total_loss": total.detach(), "grad_norm": norm}

    def update_policy(self, latents: Tensor, draws: UpdateDraws) -> dict[str, Tensor]:
        """Move the policy and the running scale; returns metrics."""
        config, steps = self.config, len(latents)
        self.Qs.requires_grad_(False)
        mean, log_std = self.policy_gaussian(latents)
        eps = draws.policy_eps(mean)
        action = torch.tanh(mean + eps * log_std.exp())
        gaussian = (-0.5 * eps**2 - log_std - 0.5 * LOG_2PI).sum(dim=-1, keepdim=True)
        log_prob = gaussian - torch.log(F.relu(1 - action**2) + 1e-6).sum(dim=-1, keepdim=True)
        scaled_entropy = -log_prob * (gaussian * self.spec.action_dim) / (log_prob + 1e-8)

        logits = self.Qs(torch.cat([latents, action], dim=-1), draws.policy_keep(self.Qs.size, steps))
        q = self.decode(logits[draws.policy_pair(self.Qs.size, latents.device)]).mean(dim=0)
        self.update_scale(q[0].detach())
        weight = config.rho ** torch.arange(steps, device=self.device)
        loss = -((config.entropy_coef * scaled_entropy + q / self.scale).mean(dim=(1, 2)) * weight).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.pi.parameters(), config.grad_clip_norm)
        self.policy_optimizer.step()
        self.policy_optimizer.zero_grad(set_to_none=True)
        self.Qs.requires_grad_(True)
        return {
            "pi_loss": loss.detach(),
            "pi_entropy": -log_prob.detach().mean(),
            "pi_scaled_entropy": scaled_entropy.detach().mean(),
            "pi_scale": self.scale.clone(),
            "pi_grad_norm": norm,
        }

    def update_scale(self, values: Tensor) -> None:
        """Move the running scale towards the 5th-to-95th percentile range of values, at least 1."""
        ordered = values.flatten().sort().values

        def percentile(share: float) -> Tensor:
            position = share * (len(ordered) - 1)
            below = int(position)
            return torch.lerp(ordered[below], ordered[min(below + 1, len(ordered) - 1)], position - below)

        self.scale.lerp_((percentile(0.95) - percentile(0.05)).clamp(min=1.0), self.config.tau)
