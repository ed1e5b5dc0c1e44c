"""Acting with an agent's model: planning step after step, for many environments at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tdmpc2.agent.planner import draw_plan_noise, draw_shift

if TYPE_CHECKING:
    from tdmpc2.agent.agent import TDMPC2

MAX_PLAN_ROWS = {"cpu": 2**9, "cuda": 2**19}
"""Sampled sequences (observations x samples) planned for in one go; larger batches are planned in parts.

It bounds memory. On the CPUs tried, larger parts make no observation faster; with parts of one observation, what is
compiled for one serves any number. It holds for models up to `PLAN_WIDTH` wide; wider ones plan for fewer."""

PLAN_WIDTH = 512
"""Width of the hidden layers, that of size 5, up to which parts have `MAX_PLAN_ROWS` rows."""


class Actor:
    """Acts with an agent's model, with a memory and a random stream of its own.

    The memory is the previous plan of each of B environments; so evaluation and training each act through their own.
    """

    def __init__(self, agent: TDMPC2, seed: int) -> None:
        self._agent = agent
        self._generator = torch.Generator(agent.device).manual_seed(seed)
        spec, config = agent.spec, agent.config
        self._mean = torch.zeros(0, config.horizon, spec.action_dim, device=agent.device)

    @torch.no_grad()
    def __call__(
        self,
        obs: ArrayLike | Tensor,
        first_step: ArrayLike | Tensor,
        task: ArrayLike | Tensor | None = None,
        eval_mode: bool = False,
    ) -> Tensor:
        """Choose an action for each of B environments; see `TDMPC2.act`."""
        agent, spec = self._agent, self._agent.spec
        observations = _tensor(obs, agent.device)
        if spec.obs == "state":
            observations = observations.float()
        if observations.ndim != len(spec.obs_shape) + 1 or observations.shape[1:] != spec.obs_shape:
            raise ValueError(f"obs: expected (B, {', '.join(map(str, spec.obs_shape))}), got {observations.shape}")
        batch = observations.shape[0]
        first = _tensor(first_step, agent.device).to(torch.bool).expand(batch)
        if spec.multitask and task is None:
            raise ValueError("task: a multi-task agent needs the task id of each observation")
        ids = _tensor(task, agent.device).long().expand(batch) if spec.multitask and task is not None else None
        if self._mean.shape[0] != batch:
            if not first.all():
                raise ValueError(
                    f"obs: {batch} observations after {self._mean.shape[0]}; only first steps can change the number"
                )
            self._mean = self._mean.new_zeros(batch, *self._mean.shape[1:])
        step = self._plan if agent.config.mpc else self._follow_policy
        wider = max(1.0, agent.model.architecture.mlp_dim / PLAN_WIDTH)
        part = max(1, int(MAX_PLAN_ROWS[agent.device.type] / wider) // agent.config.num_samples)
        actions = [
            step(observations[rows], first[rows], None if ids is None else ids[rows], eval_mode, rows)
            for rows in (slice(start, start + part) for start in range(0, batch, part))
        ]
        whole = torch.cat(actions).cpu()
        if not torch.isfinite(whole).all():
            raise FloatingPointError("the model's latent states, values or actions are not numbers: it has diverged")
        return whole

    def _plan(self, obs: Tensor, first: Tensor, task: Tensor | None, eval_mode: bool, rows: slice) -> Tensor:
        noise = draw_plan_noise(self._agent.model, obs.shape[0], eval_mode, self._generator)
        action, self._mean[rows], valid = self._agent.plan(obs, self._mean[rows], first, task, noise)
        return torch.where(valid, action, torch.nan)  # found where the actions are fetched, without waiting here

    def _follow_policy(self, obs: Tensor, first: Tensor, task: Tensor | None, eval_mode: bool, rows: slice) -> Tensor:
        model = self._agent.model
        eps = torch.randn(obs.shape[0], model.spec.action_dim, generator=self._generator, device=obs.device)
        shift = draw_shift(model, (obs.shape[0],), self._generator)
        with self._agent.execution.products(obs.device):
            return model.pi_action(model.encode(obs, task, shift), task, torch.zeros_like(eps) if eval_mode else eps)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed actor needs to go on as if it had never stopped."""
        return {"mean": self._mean.clone(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._mean = state["mean"].to(self._agent.device, copy=True)
        take_over(self._generator, state["generator"])


def take_over(generator: torch.Generator, state: Tensor) -> None:
    """Set a generator to a saved state; another device's cannot be taken over, and then it stays as it is."""
    state = state.cpu()
    if state.shape == generator.get_state().shape:
        generator.set_state(state)


def _tensor(values: ArrayLike | Tensor, device: torch.device) -> Tensor:
    tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    return tensor.to(device)
