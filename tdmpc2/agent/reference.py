"""Checkpoints of the reference implementation: read in both of its layouts, written in the new one.

Its old layout, that of all released files, keeps the Q-functions as flat lists `_Qs.params.<j>` and
`_target_Qs.params.<j>`; the new one names their layers, and keeps beside them a copy without gradients.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.world_model import WorldModel
from tdmpc2.config import Config, architecture, make_settings
from tdmpc2.errors import UserError
from tdmpc2.spec import MODEL_SIZES, AgentSpec, Architecture, ObsKind
from tdmpc2.tasks import expand_tasks

Layout = Literal["old", "new"]

PARAMETERS = ("weight", "bias", "ln.weight", "ln.bias")
"""A Q-layer's parameters in the order of the old layout: entry j is parameter j % 4 of layer j // 4."""

ENSEMBLES: Mapping[Layout, Mapping[str, tuple[str, ...]]] = {
    "old": {"_Qs": ("_Qs.params",), "_target_Qs": ("_target_Qs.params",)},
    "new": {"_Qs": ("_Qs.params", "_detach_Qs_params"), "_target_Qs": ("_target_Qs_params",)},
}
"""Under which names each layout keeps an ensemble, the one to read first."""

FIRST_CONVOLUTION = 2
"""Index of the reference's first convolution: a random shift and a scaling come before it."""

PARTS = frozenset(
    "_task_emb _encoder _dynamics _reward _termination _pi _Qs _target_Qs _target_Qs_params _detach_Qs_params".split()
)
"""First words of the weights' names."""

NOT_WEIGHTS = ("_action_masks", "log_std_min", "log_std_dif")
"""Tensors beside the weights, in newer files."""


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """A checkpoint of the reference implementation: its tensors, and what their shapes tell."""

    path: str
    """Where it was read from, for messages."""
    layout: Layout
    """How the Q-functions are kept."""
    tensors: Mapping[str, Tensor]
    """All tensors, under the file's own names."""
    obs: ObsKind
    """Kind of observation."""
    obs_dim: int
    """Length of the (padded) observation; for pixels, its channels."""
    action_dim: int
    """Length of the (padded) action."""
    num_tasks: int
    """Tasks with an embedding of their own; 1 in single-task files."""
    episodic: bool
    """Whether terminations are predicted."""
    num_bins: int
    """Bins of the two-hot regression."""
    num_channels: int | None
    """Channels of the pixel encoder's convolutions."""
    architecture: Mapping[str, int]
    """Widths and depths by the names of `Architecture`; without the encoder's where the observation is pixels."""

    @property
    def model_size(self) -> int:
        """The published size with the nearest `mlp_dim`, which no two of them share."""
        return min(MODEL_SIZES, key=lambda size: abs(MODEL_SIZES[size].mlp_dim - self.architecture["mlp_dim"]))

    def __str__(self) -> str:
        mlp_dim = self.architecture["mlp_dim"]
        published = MODEL_SIZES[self.model_size].mlp_dim == mlp_dim
        size = f"model size {self.model_size}" if published else f"mlp_dim {mlp_dim}"
        tasks = "a single task" if self.num_tasks == 1 else f"{self.num_tasks} tasks"
        episodic = ", with terminations" if self.episodic else ""
        return f"{size}, {tasks}, {self.obs} observations of {self.obs_dim}, actions of {self.action_dim}{episodic}"

    def config(self, tasks: str | tuple[str, ...], **settings: Any) -> Config:
        """Settings that make a model of this file's size for these tasks.

        Widths are left to `model_size` where it has them already, and spelled out where the file's are other ones.

        Args:
            tasks: the tasks or task set that the file was trained on, which it does not name itself.
            settings: further settings; they win over what the file tells.

        Raises:
            UserError: unknown tasks or settings, or a file of impossible widths.
        """
        names = expand_tasks(tasks, where="tasks")
        spec = AgentSpec.from_tasks(names, self.obs)
        values: dict[str, Any] = {
            "task": tasks if isinstance(tasks, str) else ",".join(tasks),
            "obs": self.obs,
            "model_size": self.model_size,
            "episodic": self.episodic,
            "num_bins": self.num_bins,
        }
        if self.num_channels is not None:
            values["num_channels"] = self.num_channels
        if "log_std_min" in self.tensors:
            low, difference = (_scalar(self.path, name, self.tensors) for name in ("log_std_min", "log_std_dif"))
            values |= {"log_std_min": low, "log_std_max": low + difference}
        values |= settings
        if "model_size" not in settings:
            usual = architecture(make_settings(Config, values, where=self.path), spec)
            values = self._other_widths(usual, spec) | values
        return make_settings(Config, values, where=self.path)

    def _other_widths(self, usual: Architecture, spec: AgentSpec) -> dict[str, int]:
        return {
            name: value
            for name, value in self.architecture.items()
            if value != getattr(usual, name) and (name != "task_dim" or (spec.multitask and self.num_tasks > 1))
        }

    def state_dict(self, config: Config, spec: AgentSpec) -> dict[str, Tensor]:
        """The file's weights as a `WorldModel`'s state, float32.

        Args:
            config: the model's settings, e.g. from `config`.
            spec: the tasks' shapes, lengths and names.

        Raises:
            UserError: they do not fit such a model; names the file, the tensors, and what the file holds.
        """
        try:
            with torch.device("meta"):
                expected = WorldModel(config, spec).state_dict()
        except UserError as error:
            raise UserError(f"{self.path}: {error}; the file holds {self}") from None
        ours = _names(expected, self.layout)
        weights = {name: tensor for name, tensor in self.tensors.items() if name not in NOT_WEIGHTS}
        try:
            checkpoints.check_tensors({theirs: expected[name] for theirs, name in ours.items()}, weights, self.path)
        except UserError as error:
            dims = f"observations {spec.obs_shape} and actions of {spec.action_dim}"
            asked = f"the model is for {len(spec.tasks)} task{'s' * spec.multitask}, {dims}"
            raise UserError(f"{error}; the file holds {self}; {asked}") from None
        self._check_masks(spec)
        state: dict[str, Tensor] = {}
        for theirs, name in ours.items():
            tensor = weights[theirs].float()
            if name not in state:
                state[name] = tensor
            elif not torch.allclose(state[name], tensor, rtol=0, atol=0, equal_nan=True):
                raise UserError(f"{self.path}: {theirs} is not the copy of the Q-functions' weights that it should be")
        return state

    def _check_masks(self, spec: AgentSpec) -> None:
        masks = self.tensors.get("_action_masks")
        if masks is None or not spec.multitask:
            return
        expected = (torch.arange(spec.action_dim) < torch.tensor(spec.action_dims)[:, None]).float()
        checkpoints.check_tensors({"_action_masks": expected}, {"_action_masks": masks}, self.path)
        wrong = (masks.float() != expected).any(dim=1).nonzero().flatten().tolist()
        if wrong:
            first = wrong[0]
            raise UserError(
                f"{self.path}: made for other tasks, or in another order: by its _action_masks, task {first} has "
                f"{int(masks[first].sum())} action dims; {spec.tasks[first]} has {spec.action_dims[first]}"
            )


def read_reference(path: str | os.PathLike[str]) -> ReferenceCheckpoint:
    """Read a checkpoint of the reference implementation, in either layout. Never runs code from it.

    Raises:
        UserError: the file is missing, damaged or unsafe, or is none of the reference implementation's.
    """
    model = checkpoints.read(path).get("model")
    if not isinstance(model, Mapping):
        raise UserError(f"{path}: not a checkpoint of the reference implementation (no tensors under 'model')")
    return inspect_reference({str(name): value for name, value in model.items()}, path)


def inspect_reference(model: Mapping[str, Any], path: str | os.PathLike[str]) -> ReferenceCheckpoint:
    """What the entries of a file's `model` tell by their names and shapes.

    Args:
        model: all entries by name; weights may be on the meta device.
        path: where they come from, for messages.

    Raises:
        UserError: an entry is no tensor, or those that tell the model's size are missing or misshapen.
    """
    tensors = {name: value for name, value in model.items() if not _is_bookkeeping(name)}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is not a tensor but a {type(value).__name__}")
    layout: Layout = "old" if any(re.fullmatch(r"_Qs\.params\.\d+", name) for name in tensors) else "new"
    obs: ObsKind = "rgb" if any(name.startswith("_encoder.rgb.") for name in tensors) else "state"
    encoder = f"_encoder.rgb.{FIRST_CONVOLUTION}" if obs == "rgb" else "_encoder.state.0"
    axes = {  # the tensors that tell sizes, and how many axes they have
        f"{encoder}.weight": 4 if obs == "rgb" else 2,
        "_dynamics.0.bias": 1,
        "_dynamics.2.bias": 1,
        "_reward.2.bias": 1,
        "_pi.2.bias": 1,
        "_Qs.params.1" if layout == "old" else "_Qs.params.0.bias": 2,
    }
    if "_task_emb.weight" in tensors:
        axes["_task_emb.weight"] = 2
    missing = [name for name in axes if name not in tensors]
    if missing:
        extra = [name for name in tensors if name.split(".")[0] not in PARTS and name not in NOT_WEIGHTS]
        left_over = f"; left over: {', '.join(extra[:3])}{', ...' if len(extra) > 3 else ''}" if extra else ""
        raise UserError(
            f"{path}: not a checkpoint of the reference implementation; missing: {', '.join(missing)}{left_over}"
        )
    for name, count in axes.items():
        shape = tuple(tensors[name].shape)
        if len(shape) != count or 0 in shape:
            raise UserError(f"{path}: {name} has the impossible shape {shape}")

    first, mlp, latent, bins, policy, q, *embedding = (tuple(tensors[name].shape) for name in axes)
    num_tasks, task_dim = embedding[0] if embedding else (1, 0)
    widths = {"mlp_dim": mlp[0], "latent_dim": latent[0], "num_q": q[0], "task_dim": task_dim}
    if obs == "state":
        layers = sum(bool(re.fullmatch(r"_encoder\.state\.\d+\.weight", name)) for name in tensors)
        widths |= {"enc_dim": first[0], "num_enc_layers": layers}
    return ReferenceCheckpoint(
        path=str(path),
        layout=layout,
        tensors=tensors,
        obs=obs,
        obs_dim=first[1] - task_dim if obs == "state" else first[1],
        action_dim=policy[0] // 2,
        num_tasks=num_tasks,
        episodic=any(name.startswith("_termination.") for name in tensors),
        num_bins=bins[0],
        num_channels=first[0] if obs == "rgb" else None,
        architecture=widths,
    )


def agent_from_reference(
    path: str | os.PathLike[str], tasks: str | tuple[str, ...], device: str = "auto", **settings: Any
) -> TDMPC2:
    """The agent that a checkpoint of the reference implementation holds.

    Such a file has weights alone: optimizers, running scale and random streams are as in a fresh agent.

    Args:
        path: the file.
        tasks: the task, list of tasks or task set it was trained on, in that order; a file does not name them.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        settings: settings of the agent, e.g. `mpc=False`; a `model_size` given here must be the file's.

    Raises:
        UserError: the file is missing, damaged, unsafe, or does not fit these tasks and settings.
    """
    checkpoint = read_reference(path)
    config = checkpoint.config(tasks, **({"device": device} | settings))
    spec = AgentSpec.from_tasks(config.tasks, config.obs)
    state = checkpoint.state_dict(config, spec)  # before an agent is built: a wrong file costs no time or memory
    agent = TDMPC2(config, spec, device)
    agent.model.load_state_dict(state)
    return agent


def write_reference(agent: TDMPC2, path: str | os.PathLike[str]) -> None:
    """Write an agent's weights as the reference implementation saves them, in its new layout.

    Raises:
        UserError: the disk is full; an old file is as it was.
    """
    model, config = agent.model, agent.config
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    written: dict[str, Any] = {theirs: state[name] for theirs, name in _names(state, "new").items()}
    if agent.spec.multitask:
        written["_action_masks"] = model.action_masks.cpu()
    written["log_std_min"] = _as_setting(config.log_std_min)
    written["log_std_dif"] = _as_setting(config.log_std_max - config.log_std_min)
    for prefixes in ENSEMBLES["new"].values():
        for prefix in prefixes:
            written[f"{prefix}.__batch_size"] = torch.Size([model.architecture.num_q])
            written[f"{prefix}.__device"] = None
    checkpoints.write({"model": written}, Path(path))


def _names(state: Mapping[str, Tensor], layout: Layout) -> dict[str, str]:
    """The reference's name of each tensor of a `WorldModel`'s state -> our name. Copies map to what they copy."""
    names: dict[str, str] = {}
    for ours in state:
        part, _, rest = ours.partition(".")
        if part in ENSEMBLES[layout]:
            layer, _, parameter = rest.removeprefix("layers.").partition(".")
            entry = str(4 * int(layer) + PARAMETERS.index(parameter)) if layout == "old" else f"{layer}.{parameter}"
            names |= {f"{prefix}.{entry}": ours for prefix in ENSEMBLES[layout][part]}
        elif rest.startswith("convolutions."):
            _, index, parameter = rest.split(".")
            names[f"_encoder.rgb.{int(index) + FIRST_CONVOLUTION}.{parameter}"] = ours
        elif part == "_encoder":
            names[f"_encoder.state.{rest}"] = ours
        else:
            names["_task_emb.weight" if part == "_task_emb" else ours] = ours
    return names


def _is_bookkeeping(name: str) -> bool:
    """Entries that hold no weights: tensordict's own, and the shapes of one Q-function that its newer versions add."""
    return name.endswith((".__batch_size", ".__device")) or name.startswith("_Qs.module.")


def _scalar(path: str, name: str, tensors: Mapping[str, Tensor]) -> float:
    tensor = tensors.get(name)
    if tensor is None or tensor.numel() != 1:
        found = "is missing" if tensor is None else f"has the shape {tuple(tensor.shape)}"
        raise UserError(f"{path}: {name} {found}; a single number is expected")
    return float(tensor)


def _as_setting(value: float) -> Tensor:
    """A scalar as the reference holds it: an integer where its settings, as usual, say so."""
    return torch.tensor(int(value) if value.is_integer() else value)
