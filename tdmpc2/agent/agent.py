"""The TD-MPC2 agent: acts, learns, and saves and loads whole."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tdmpc2.agent import checkpoints
from tdmpc2.agent.execution import Execution, choose_device, choose_execution, share_compiled_code
from tdmpc2.agent.learning import Batch, UpdateNoise, draw_update_noise, model_loss, policy_loss
from tdmpc2.agent.planner import PlanNoise, draw_plan_noise, draw_shift, improve, plan
from tdmpc2.agent.programs import Recorded
from tdmpc2.agent.world_model import WorldModel
from tdmpc2.config import Config, make_settings
from tdmpc2.errors import UserError
from tdmpc2.seeding import Stream, derive_seed
from tdmpc2.spec import AgentSpec

FORMAT = 1
"""Version of the checkpoint format."""

MAX_PLAN_ROWS = {"cpu": 2**9, "cuda": 2**19}
"""Sampled sequences (observations x samples) planned for in one go; larger batches are planned in parts.

It bounds memory. On the CPUs tried, larger parts make no observation faster; with parts of one observation, what is
compiled for one serves any number."""


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
        part = max(1, MAX_PLAN_ROWS[agent.device.type] // agent.config.num_samples)
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
        generator = state["generator"].cpu()
        if generator.shape == self._generator.get_state().shape:
            self._generator.set_state(generator)


class TDMPC2:
    """A TD-MPC2 agent for one task or many.

    Args:
        config: the run's settings.
        spec: the tasks' shapes, lengths and names.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; by default the config's.
        execution: precision and compiling; by default chosen from the config, see `choose_execution`.

    Raises:
        UserError: the device is not there, or the settings do not fit one another or the device.
    """

    def __init__(
        self, config: Config, spec: AgentSpec, device: str | None = None, execution: Execution | None = None
    ) -> None:
        self.config, self.spec = config, spec
        self.device = choose_device(config.device if device is None else device)
        self.execution = execution if execution is not None else choose_execution(config, self.device)
        with torch.random.fork_rng(devices=[]):  # weights follow from the seed, on every device
            torch.manual_seed(derive_seed(config.seed, Stream.MODEL))
            model = WorldModel(config, spec)
        self.model = model.to(self.device)
        self._generator = torch.Generator(self.device).manual_seed(derive_seed(config.seed, Stream.AGENT, 0))
        self._actor = self.actor(derive_seed(config.seed, Stream.AGENT, 1))
        self._scale = torch.ones((), device=self.device)
        self.updates = 0

        self._model_parameters = self.model.model_parameters()
        self._policy_parameters = self.model.policy_parameters()
        encoder = self.model.encoder_parameters()
        groups = [
            {"params": encoder, "lr": config.lr * config.enc_lr_scale},
            {"params": self._model_parameters[len(encoder) :], "lr": config.lr},
        ]
        gpu = self.device.type == "cuda"
        self._model_optimizer = torch.optim.Adam(groups, fused=True, capturable=gpu)
        self._policy_optimizer = torch.optim.Adam(
            self._policy_parameters, lr=config.lr, eps=1e-5, fused=True, capturable=gpu
        )
        _start_moments(self._model_optimizer)
        _start_moments(self._policy_optimizer)

        self._metric_names: tuple[str, ...] = ()
        self.model.use_kernels(self.execution.compile != "none")
        full = self.execution.compile == "full"
        if full:
            share_compiled_code()
        compiled = (improve, model_loss, policy_loss) if full else ()
        self._compiled: dict[str, Callable[..., Any]] = {
            function.__name__: torch.compile(function, dynamic=False) for function in compiled
        }
        self.plan = Recorded(self._run_plan, lambda: []) if full and gpu else self._run_plan
        self._step = Recorded(self._run_step, self._changed_by_step) if full and gpu else self._run_step

    def actor(self, seed: int) -> Actor:
        """An actor on this agent's model with a memory and random stream of its own, e.g. for evaluation."""
        return Actor(self, seed)

    def act(
        self,
        obs: ArrayLike | Tensor,
        first_step: ArrayLike | Tensor,
        task: ArrayLike | Tensor | None = None,
        eval_mode: bool = False,
    ) -> Tensor:
        """Choose an action for each of B environments, by planning (or by the policy prior, with mpc=false).

        Each row of the batch is one environment, step after step: its previous plan is remembered.

        Args:
            obs: (B, *obs_shape).
            first_step: (B,) or a single bool, whether an episode begins here.
            task: (B,) task ids; multi-task agents only.
            eval_mode: without exploration noise.

        Returns:
            (B, A) on the CPU, within [-1, 1].

        Raises:
            ValueError: shapes do not fit.
            FloatingPointError: the model has diverged.
        """
        return self._actor(obs, first_step, task, eval_mode)

    def update(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Learn from a batch of sequences.

        Args:
            batch: obs (H + 1, B, *obs_shape), action (H, B, A), reward (H, B, 1), and, optionally, terminated
                (H, B, 1) and task (B,).

        Returns:
            scalar metrics, as detached tensors on the agent's device.
        """
        data = Batch.from_mapping(batch, self.device)
        if not self.spec.multitask:
            data = data._replace(task=None)
        elif data.task is None:
            raise ValueError("task: a multi-task agent learns from batches with task ids")
        noise = draw_update_noise(self.model, data.reward.shape[1], self._generator)
        values = self._step(data, noise).clone()
        self.updates += 1
        return dict(zip(self._metric_names, values.unbind(), strict=True))

    def _run_plan(
        self, obs: Tensor, previous_mean: Tensor, first_step: Tensor, task: Tensor | None, noise: PlanNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad(), self.execution.products(self.device):
            return plan(self.model, obs, previous_mean, first_step, task, noise, self._compiled.get("improve"))

    def _run_step(self, data: Batch, noise: UpdateNoise) -> Tensor:
        """Change the agent in place, without waiting for the device; returns the metrics, stacked."""
        config, model = self.config, self.model
        if data.task is not None:
            model.renormalise_embeddings(data.task)
        with self.execution.products(self.device):
            loss, latents, metrics = self._compiled.get("model_loss", model_loss)(model, data, noise)
        metrics["grad_norm"] = self._descend(loss, self._model_parameters, self._model_optimizer)
        if data.task is not None:  # the policy's loss looks the moved embeddings up again
            model.renormalise_embeddings(data.task)

        with self.execution.products(self.device):
            loss_of_policy = self._compiled.get("policy_loss", policy_loss)
            pi_loss, scale, pi_metrics = loss_of_policy(model, latents, data.task, self._scale, noise)
        pi_metrics["pi_grad_norm"] = self._descend(pi_loss, self._policy_parameters, self._policy_optimizer)
        self._scale.copy_(scale)

        model.move_targets(config.tau)
        metrics |= pi_metrics
        self._metric_names = tuple(metrics)
        return torch.stack([value.float() for value in metrics.values()])

    def _changed_by_step(self) -> list[Tensor]:
        tensors = [*self.model.parameters(), self._scale]
        for optimizer in (self._model_optimizer, self._policy_optimizer):
            tensors += [tensor for moments in optimizer.state.values() for tensor in moments.values()]
        return tensors

    def _descend(self, loss: Tensor, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Adam) -> Tensor:
        """One step on these parameters alone; returns the gradients' norm before clipping."""
        loss.backward(inputs=parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    # --- saving and loading

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the agent goes on, as tensors and plain values."""
        return {
            "format": FORMAT,
            "config": dataclasses.asdict(self.config),
            "spec": dataclasses.asdict(self.spec),
            "model": self.model.state_dict(),
            "model_optimizer": self._model_optimizer.state_dict(),
            "policy_optimizer": self._policy_optimizer.state_dict(),
            "scale": self._scale.clone(),
            "generator": self._generator.get_state(),
            "actor": self._actor.state_dict(),
            "updates": self.updates,
            "execution": {"precision": self.execution.precision, "compile": self.execution.compile},
        }

    def load_state_dict(self, state: Mapping[str, Any], path: str | os.PathLike[str] = "checkpoint") -> None:
        """Take over what `state_dict` returned.

        Args:
            state: the state.
            path: where it came from, for messages.

        Raises:
            UserError: it is not an agent's state, of another format, or of a model of other shapes.
        """
        _check_format(state, path)
        checkpoints.check_tensors(self.model.state_dict(), state["model"], path)
        self.model.load_state_dict(state["model"])
        _load_moments(self._model_optimizer, state["model_optimizer"])
        _load_moments(self._policy_optimizer, state["policy_optimizer"])
        self._scale.copy_(state["scale"])
        generator = state["generator"].cpu()
        if generator.shape == self._generator.get_state().shape:  # another device's generator cannot be taken over
            self._generator.set_state(generator)
        self._actor.load_state_dict(state["actor"])
        self.updates = int(state["updates"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole state to one file: it is, at every moment, the old one or the new one."""
        checkpoints.write(self.state_dict(), path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over the state in a file written by `save`. Never runs code from it.

        Raises:
            UserError: the file is missing, damaged, unsafe, or of a model of other shapes.
        """
        self.load_state_dict(checkpoints.read(path, self.device), path)

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Any],
        path: str | os.PathLike[str],
        device: str = "auto",
        steps: int | None = None,
        **changes: Any,
    ) -> TDMPC2:
        """The agent whose `state_dict` this is.

        Args:
            state: the state.
            path: where it came from, for messages.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            steps: agent steps that it is loaded for, see `choose_execution`; by default its run's.
            changes: settings to change, e.g. `mpc=False`.

        Raises:
            UserError: it is no agent's state, or does not fit its own settings.
        """
        _check_format(state, path)
        config = make_settings(Config, state["config"] | changes, where=str(path))
        place = choose_device(device)
        agent = cls(config, AgentSpec(**state["spec"]), str(place), choose_execution(config, place, steps))
        agent.load_state_dict(state, path)
        return agent

    @classmethod
    def from_checkpoint(
        cls, path: str | os.PathLike[str], device: str = "auto", steps: int | None = None, **changes: Any
    ) -> TDMPC2:
        """The agent that a file written by `save` holds; arguments and errors as `from_state`."""
        return cls.from_state(checkpoints.read(path), path, device, steps, **changes)


def _check_format(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    names = "format config spec model model_optimizer policy_optimizer scale generator actor updates"
    missing = [name for name in names.split() if name not in state]
    if missing:
        raise UserError(f"{path}: not an agent's checkpoint (missing: {', '.join(missing)})")
    if state["format"] != FORMAT:
        raise UserError(f"{path}: format {state['format']}; this version reads format {FORMAT}")


def _start_moments(optimizer: torch.optim.Adam) -> None:
    """Adam's state before its first step, as that step would make it: a recording needs it in place beforehand."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _load_moments(optimizer: torch.optim.Adam, state: Mapping[str, Any]) -> None:
    """Copy an optimizer's moments into those there are, where a recording changes them; rates and flags stay as set."""
    for index, moments in optimizer.state_dict()["state"].items():
        for name, tensor in moments.items():
            if index in state["state"]:
                tensor.copy_(state["state"][index][name])
            else:  # saved before its first step
                tensor.zero_()


def _tensor(values: ArrayLike | Tensor, device: torch.device) -> Tensor:
    tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    return tensor.to(device)
