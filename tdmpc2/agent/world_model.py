"""The world model: encoder, dynamics, reward, termination, policy prior and Q-functions, for one task or many."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdmpc2.agent.layers import Ensemble, EnsembleLinear, NormedLinear, PixelEncoder, SimNorm, mlp, widen
from tdmpc2.agent.policy import bound_log_std, discount, squashed_gaussian
from tdmpc2.agent.twohot import TwoHot
from tdmpc2.config import Config, architecture
from tdmpc2.spec import AgentSpec


class WorldModel(nn.Module):
    """All networks of an agent.

    Inputs may have any leading axes. `task` holds task ids whose shape broadcasts against those axes from the right,
    (B,) as a rule; it is None in single-task models.

    Args:
        config: the run's settings.
        spec: the tasks' shapes, lengths and names.
    """

    action_masks: Tensor
    action_dims: Tensor
    discounts: Tensor

    def __init__(self, config: Config, spec: AgentSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.architecture = size = architecture(config, spec)
        A, L, D, K = spec.action_dim, size.latent_dim, size.task_dim, config.num_bins
        hidden = [size.mlp_dim] * 2

        self._task_emb = nn.Parameter(torch.empty(len(spec.tasks), D)) if spec.multitask else None
        self._encoder: nn.Module
        if spec.obs == "state":
            depth = max(size.num_enc_layers - 1, 1)
            self._encoder = mlp(spec.obs_shape[0] + D, [size.enc_dim] * depth, L, act=SimNorm(config.simnorm_dim))
        else:
            self._encoder = PixelEncoder(spec.obs_shape[0], config.num_channels, config.simnorm_dim)
        self._dynamics = mlp(L + A + D, hidden, L, act=SimNorm(config.simnorm_dim))
        self._reward = mlp(L + A + D, hidden, K)
        self._termination = mlp(L + D, hidden, 1) if config.episodic else None
        self._pi = mlp(L + D, hidden, 2 * A)
        self._Qs = Ensemble(size.num_q, L + A + D, size.mlp_dim, K)
        self._target_Qs = Ensemble(size.num_q, L + A + D, size.mlp_dim, K).requires_grad_(False)
        self.two_hot = TwoHot(K, config.vmin, config.vmax)
        self._initialise()

        masks = torch.arange(A) < torch.tensor(spec.action_dims)[:, None]
        gammas = [
            discount(length, config.discount_denom, config.discount_min, config.discount_max)
            for length in spec.episode_lengths
        ]
        self.register_buffer("action_masks", masks.float(), persistent=False)
        self.register_buffer("action_dims", torch.tensor(spec.action_dims).float()[:, None], persistent=False)
        self.register_buffer("discounts", torch.tensor(gammas)[:, None], persistent=False)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | EnsembleLinear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self._task_emb is not None:
            nn.init.uniform_(self._task_emb, -0.02, 0.02)
        # Rewards and values start at zero everywhere: the logits do not depend on the input.
        nn.init.zeros_(self._reward[-1].weight)  # type: ignore[arg-type]  # a linear layer
        nn.init.zeros_(self._Qs.layers[-1].weight)  # type: ignore[arg-type]  # an ensemble layer
        self._target_Qs.load_state_dict(self._Qs.state_dict())

    def use_kernels(self, fused: bool) -> None:
        """Choose between the CPU kernels and torch's own operations for what lies between the matrix products."""
        for module in self.modules():
            if isinstance(module, NormedLinear | Ensemble | TwoHot):
                module.fused = fused

    def recompute_layers(self, recompute: bool) -> None:
        """Choose between computing hidden layers again for the backward pass and keeping what they computed."""
        for module in self.modules():
            if isinstance(module, NormedLinear | Ensemble):
                module.recompute = recompute

    # --- what a task decides

    def embedding(self, task: Tensor) -> Tensor:
        """Task embeddings, l2-norm at most 1: (...) ids -> (..., task_dim).

        A longer row is shortened by a factor that carries no gradient, as if the row had been shortened in place.
        """
        assert self._task_emb is not None
        rows = self._task_emb[task]
        return rows * _shortening(rows)

    @torch.no_grad()
    def renormalise_embeddings(self, task: Tensor) -> None:
        """Shorten, in place, the embeddings of these tasks that are longer than 1."""
        if self._task_emb is not None:
            looked_up = torch.zeros_like(self._task_emb[:, :1]).index_fill_(0, task, 1.0)
            self._task_emb.mul_(torch.lerp(torch.ones_like(looked_up), _shortening(self._task_emb), looked_up))

    def action_mask(self, task: Tensor | None) -> Tensor:
        """1 on the task's own action dims, 0 elsewhere: (...) ids -> (..., A); (A,) without ids."""
        return self.action_masks[0 if task is None else task]

    def discount(self, task: Tensor | None) -> Tensor:
        """Discount of each task: (...) ids -> (..., 1); (1,) without ids."""
        return self.discounts[0 if task is None else task]

    def _join(self, x: Tensor, task: Tensor | None, action: Tensor | None = None) -> Tensor:
        parts = [x]
        if self._task_emb is not None:
            if task is None:
                raise ValueError("a multi-task model needs task ids")
            embedding = self.embedding(task)
            parts.append(embedding.expand(*x.shape[:-1], embedding.shape[-1]))
        if action is not None:
            parts.append(action)
        return torch.cat(parts, dim=-1) if len(parts) > 1 else x

    # --- the networks

    def encode(self, obs: Tensor, task: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Latent state of an observation: (..., *obs_shape) -> (..., L).

        Args:
            obs: float32 states, or uint8 pixels.
            task: task ids.
            shift: (..., 2) random shifts of pixel observations, see `PixelEncoder`; None for none.
        """
        if self.spec.obs == "state":
            return self._encoder(self._join(obs, task))
        leading = obs.shape[:-3]
        z = self._encoder(obs.reshape(-1, *obs.shape[-3:]), None if shift is None else shift.reshape(-1, 2))
        return z.reshape(*leading, -1)

    def _through(self, network: nn.Sequential, z: Tensor, action: Tensor, task: Tensor | None) -> Tensor:
        if z.shape[:-1] == action.shape[:-1]:
            return network(self._join(z, task, action))
        # Many actions from one state: what the first layer makes of the state is computed once.
        first = network[0]
        assert isinstance(first, NormedLinear)
        state = self._join(z, task)
        of_state, of_action = first.weight.split([state.shape[-1], action.shape[-1]], dim=1)
        return network[1:](first.activate(F.linear(action, of_action) + widen(F.linear(state, of_state, first.bias))))

    def next(self, z: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        """Latent state after an action: (..., L), (..., A) -> (..., L). Leading axes broadcast."""
        return self._through(self._dynamics, z, action, task)

    def reward(self, z: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        """Logits of the reward: (..., L), (..., A) -> (..., K). Leading axes broadcast."""
        return self._through(self._reward, z, action, task)

    def termination(self, z: Tensor, task: Tensor | None = None) -> Tensor:
        """Logit of having terminated: (..., L) -> (..., 1). Episodic models only."""
        if self._termination is None:
            raise ValueError("this model predicts no terminations: it was built with episodic=false")
        return widen(self._termination(self._join(z, task)))

    def _policy_gaussian(self, z: Tensor, task: Tensor | None, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, raw = widen(self._pi(self._join(z, task))).chunk(2, dim=-1)
        log_std = bound_log_std(raw, self.config.log_std_min, self.config.log_std_max)
        if self.spec.multitask:
            mask = self.action_mask(task)
            return mean * mask, log_std * mask, eps * mask
        return mean, log_std, eps

    def pi(
        self, z: Tensor, task: Tensor | None = None, eps: Tensor | None = None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Sample the policy prior: (..., L) -> action (..., A) and what `squashed_gaussian` returns beside it.

        Args:
            z: latent states.
            task: task ids.
            eps: (..., A) standard normal noise; None draws it from torch's global generator.
        """
        if eps is None:
            eps = torch.randn(*z.shape[:-1], self.spec.action_dim, device=z.device)
        mean, log_std, eps = self._policy_gaussian(z, task, eps)
        info = squashed_gaussian(mean, log_std, eps, self.action_dims[0 if task is None else task])
        return info["action"], info

    def pi_action(self, z: Tensor, task: Tensor | None, eps: Tensor) -> Tensor:
        """The action of `pi` alone, without the entropies: planning needs no more. Leading axes broadcast."""
        mean, log_std, eps = self._policy_gaussian(z, task, eps)
        return torch.tanh(mean + eps * log_std.exp())

    def Q(  # noqa: N802  # the field's name
        self,
        z: Tensor,
        action: Tensor,
        task: Tensor | None = None,
        target: bool = False,
        *,
        members: Tensor | None = None,
        keep: Tensor | None = None,
        frozen: bool = False,
    ) -> Tensor:
        """Logits of the Q-functions: (..., L), (..., A) -> (M, ..., K).

        Args:
            z: latent states.
            action: actions.
            task: task ids.
            target: whether to evaluate the target Q-functions.
            members: (m,) indices of the Q-functions to evaluate; None for all.
            keep: dropout factors, see `Ensemble`.
            frozen: whether parameters, states and tasks are constants, so that gradients reach only the actions.
        """
        ensemble = self._target_Qs if target else self._Qs
        x = self._join(z, task, action)
        return ensemble(x, members, keep, frozen, x.shape[-1] - action.shape[-1] if frozen else 0)

    # --- parameters

    def policy_parameters(self) -> list[nn.Parameter]:
        """What the policy's optimizer moves."""
        return list(self._pi.parameters())

    def encoder_parameters(self) -> list[nn.Parameter]:
        """What the model's optimizer moves at the encoder's rate."""
        return list(self._encoder.parameters())

    def model_parameters(self) -> list[nn.Parameter]:
        """What the model's optimizer moves: all but the policy and the targets, the encoder's first."""
        first = self.encoder_parameters()
        apart = {id(p) for p in [*first, *self._pi.parameters(), *self._target_Qs.parameters()]}
        return first + [p for p in self.parameters() if id(p) not in apart]

    @torch.no_grad()
    def move_targets(self, rate: float) -> None:
        """Target Q-functions <- target + rate (Q - target)."""
        torch._foreach_lerp_(list(self._target_Qs.parameters()), list(self._Qs.parameters()), rate)

    def parameter_counts(self) -> dict[str, int]:
        """Learned parameters of each part and in total (target Q-functions are copies, not counted)."""

        def count(module: nn.Module | None) -> int:
            return 0 if module is None else sum(p.numel() for p in module.parameters())

        counts = {
            "encoder": count(self._encoder),
            "dynamics": count(self._dynamics),
            "reward": count(self._reward),
            "policy": count(self._pi),
            "q": count(self._Qs),
            "task_embedding": 0 if self._task_emb is None else self._task_emb.numel(),
            "termination": count(self._termination),
        }
        return counts | {"total": sum(counts.values())}


def _shortening(rows: Tensor) -> Tensor:
    """(..., D) -> (..., 1): the factor that brings each row to norm at most 1, without gradient."""
    norm = rows.detach().norm(dim=-1, keepdim=True)
    return torch.where(norm > 1, 1 / (norm + 1e-7), 1.0)
