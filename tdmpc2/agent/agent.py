"""The TD-MPC2 agent: acts, learns, and saves and loads whole."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tdmpc2.agent import checkpoints
from tdmpc2.agent.actor import MAX_PLAN_ROWS, Actor, take_over
from tdmpc2.agent.execution import Execution, choose_device, choose_execution, share_compiled_code
from tdmpc2.agent.learning import Batch, UpdateNoise, draw_update_noise, first_values, model_loss, policy_loss
from tdmpc2.agent.optimizer import load_moments, make_adam
from tdmpc2.agent.parts import check_division, cut, mean_of_parts
from tdmpc2.agent.planner import PlanNoise, improve, plan
from tdmpc2.agent.programs import Recorded
from tdmpc2.agent.replicas import Replicas
from tdmpc2.agent.world_model import WorldModel
from tdmpc2.config import Config, make_settings
from tdmpc2.errors import UserError
from tdmpc2.seeding import Stream, derive_seed
from tdmpc2.spec import AgentSpec

__all__ = ["FORMAT", "MAX_PLAN_ROWS", "TDMPC2", "Actor", "choose_device"]

FORMAT = 1
"""Version of the checkpoint format."""


class TDMPC2:
    """A TD-MPC2 agent for one task or many.

    Args:
        config: the run's settings.
        spec: the tasks' shapes, lengths and names.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; by default the config's.
        execution: precision and compiling; by default chosen from the config, see `choose_execution`.
        replicas: the processes that learn this agent together; by default this one alone.

    Raises:
        UserError: the device is not there, or the settings do not fit one another or the device.
    """

    def __init__(
        self,
        config: Config,
        spec: AgentSpec,
        device: str | None = None,
        execution: Execution | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        self.config, self.spec = config, spec
        self.replicas = Replicas() if replicas is None else replicas
        check_division(config.sequences, config.accumulate, self.replicas)
        self.device = choose_device(config.device if device is None else device)
        self.execution = execution if execution is not None else choose_execution(config, self.device)
        with torch.random.fork_rng(devices=[]):  # weights follow from the seed, on every device
            torch.manual_seed(derive_seed(config.seed, Stream.MODEL))
            model = WorldModel(config, spec)
        self.model = model.to(self.device)
        self._generator = self._stream(0)
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
        low = config.optimizer_state == "bfloat16"
        self._rounding = self._stream(2) if low else None
        self._model_optimizer = make_adam(groups, config.lr, 1e-8, self.device, self._rounding)
        self._policy_optimizer = make_adam(self._policy_parameters, config.lr, 1e-5, self.device, self._rounding)

        self._metric_names: tuple[str, ...] = ()
        self.model.use_kernels(self.execution.compile != "none")
        self.model.recompute_layers(config.recompute)
        full = self.execution.compile == "full"
        if full:
            share_compiled_code()
        compiled = (improve, model_loss, first_values, policy_loss) if full else ()
        self._compiled: dict[str, Callable[..., Any]] = {
            function.__name__: torch.compile(function, dynamic=False) for function in compiled
        }
        # No CUDA graph is recorded of an update in parts: processes wait for one another in it. Nor with memory to be
        # saved: a recording keeps memory of its own, copies what it changes, and knows no generator but the device's.
        saving = config.accumulate > 1 or config.recompute or low
        record = full and self.device.type == "cuda" and self.replicas.count == 1 and not saving
        self.plan = Recorded(self._run_plan, lambda: []) if record else self._run_plan
        self._step = Recorded(self._run_step, self._changed_by_step) if record else self._run_step

    def _stream(self, index: int) -> torch.Generator:
        """A random stream of this agent, on its device."""
        return torch.Generator(self.device).manual_seed(derive_seed(self.config.seed, Stream.AGENT, index))

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
                (H, B, 1) and task (B,). With several replicas, this one's part of the batch, as `Replicas` says.

        Returns:
            scalar metrics of the whole batch, as detached tensors on the agent's device.

        Raises:
            ValueError: a multi-task batch without task ids.
            UserError: the batch cannot be cut into the parts that the settings ask for.
        """
        data = Batch.from_mapping(batch, self.device)
        if not self.spec.multitask:
            data = data._replace(task=None)
        elif data.task is None:
            raise ValueError("task: a multi-task agent learns from batches with task ids")
        whole = data.reward.shape[1] * self.replicas.count
        check_division(whole, self.config.accumulate, self.replicas)
        noise = draw_update_noise(self.model, whole, self._generator)
        values = self._step(data, noise).clone()
        self.updates += 1
        return dict(zip(self._metric_names, values.unbind(), strict=True))

    def _run_plan(
        self, obs: Tensor, previous_mean: Tensor, first_step: Tensor, task: Tensor | None, noise: PlanNoise
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad(), self.execution.products(self.device):
            return plan(self.model, obs, previous_mean, first_step, task, noise, self._compiled.get("improve"))

    def _run_step(self, data: Batch, noise: UpdateNoise) -> Tensor:
        """Change the agent in place, without waiting for the device; returns the metrics, stacked.

        Each loss is computed for one part of the batch after another; as a rule, the whole is the only part.
        """
        model, replicas = self.model, self.replicas
        loss_of_model, values_of, loss_of_policy = (
            self._compiled.get(function.__name__, function) for function in (model_loss, first_values, policy_loss)
        )
        in_parts = self.config.accumulate * replicas.count > 1

        def parts() -> Iterator[tuple[Batch, UpdateNoise]]:
            return cut(data, noise, self.config.accumulate, replicas)

        tasks = None if data.task is None else replicas.gather(data.task)
        if tasks is not None:
            model.renormalise_embeddings(tasks)
        latents, of_model = [], []
        for part, its_noise in parts():
            with self.execution.products(self.device):
                loss, rollout, losses = loss_of_model(model, part, its_noise)
            self._backward(loss, self._model_parameters)
            latents.append(rollout)
            of_model.append(losses)
        metrics = mean_of_parts(of_model)
        metrics["grad_norm"] = self._descend(self._model_parameters, self._model_optimizer)
        if tasks is not None:  # the policy's loss looks the moved embeddings up again
            model.renormalise_embeddings(tasks)

        values: tuple[Tensor, ...] = ()
        if in_parts:  # the running scale, by which each part's loss is divided, follows from all of them
            with self.execution.products(self.device):
                known = [
                    values_of(model, z, part.task, its_noise)
                    for z, (part, its_noise) in zip(latents, parts(), strict=True)
                ]
            values = (replicas.gather(torch.cat(known)),)
        scale, of_policy = self._scale, []
        for z, (part, its_noise) in zip(latents, parts(), strict=True):
            with self.execution.products(self.device):
                loss, scale, pi_metrics = loss_of_policy(model, z, part.task, self._scale, its_noise, *values)
            self._backward(loss, self._policy_parameters)
            of_policy.append(pi_metrics)
        pi_metrics = mean_of_parts(of_policy)
        pi_metrics["pi_grad_norm"] = self._descend(self._policy_parameters, self._policy_optimizer)
        self._scale.copy_(scale)

        model.move_targets(self.config.tau)
        metrics |= pi_metrics
        self._metric_names = tuple(metrics)
        return replicas.mean(torch.stack([value.float() for value in metrics.values()]))

    def _changed_by_step(self) -> list[Tensor]:
        tensors = [*self.model.parameters(), self._scale]
        for optimizer in (self._model_optimizer, self._policy_optimizer):
            tensors += [tensor for moments in optimizer.state.values() for tensor in moments.values()]
        return tensors

    def _backward(self, loss: Tensor, parameters: list[torch.nn.Parameter]) -> None:
        """Add a part's gradient, by its share of the batch, to those of these parameters alone."""
        parts = self.config.accumulate * self.replicas.count
        (loss if parts == 1 else loss / parts).backward(inputs=parameters)

    def _descend(self, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> Tensor:
        """One step along all parts' gradients; returns their norm before clipping."""
        self.replicas.sum_([parameter.grad for parameter in parameters if parameter.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    # --- saving and loading

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the agent goes on, as tensors and plain values; alike in all replicas."""
        rounding = {} if self._rounding is None else {"rounding": self._rounding.get_state()}
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
            **rounding,
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
        load_moments(self._model_optimizer, state["model_optimizer"])
        load_moments(self._policy_optimizer, state["policy_optimizer"])
        self._scale.copy_(state["scale"])
        take_over(self._generator, state["generator"])
        if self._rounding is not None and "rounding" in state:
            take_over(self._rounding, state["rounding"])
        self._actor.load_state_dict(state["actor"])
        self.updates = int(state["updates"])

    @property
    def scale(self) -> Tensor:
        """The running scale that the policy's loss divides values by, a scalar."""
        return self._scale

    def begin_with(self, weights: Mapping[str, Tensor], scale: Tensor) -> None:
        """Take over a model's weights and the running scale, and nothing else, of an agent that learned before."""
        self.model.load_state_dict(weights)
        self._scale.copy_(scale)

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
