"""How many parameters the models of runs have: their actual count, not the label of their size."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from tdmpc2.config import Config, architecture, make_settings
from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec

# What decides a model's shape; the other settings of a run are left unread, so that a run made by another version,
# with settings that are not known here, still has its parameters counted.
_SHAPING = (
    "task", "obs", "episodic", "model_size", "enc_dim", "mlp_dim", "latent_dim", "num_enc_layers", "num_q", "task_dim",
    "num_channels", "simnorm_dim", "num_bins",
)  # fmt: skip
# The C parser is ten times faster; pyyaml may have been built without it.
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def count_parameters(folders: Iterable[str]) -> dict[str, int | None]:
    """Learned parameters of the models that runs train.

    The models are made without memory for their weights, so size 317 costs no more than size 1, and models of equal
    shape are counted once.

    Args:
        folders: the runs' folders; their config.yaml is read.

    Returns:
        Parameters by folder (target Q-functions are copies and not counted); None where config.yaml is missing or
        damaged, or where the registry does not know a task's observation.
    """
    known: dict[Hashable, int] = {}
    return {folder: _count(Path(folder), known) for folder in dict.fromkeys(folders)}


def _count(folder: Path, known: dict[Hashable, int]) -> int | None:
    try:
        config = _read_shape(folder / "config.yaml")
        spec = AgentSpec.from_tasks(config.tasks, config.obs)
        shape = architecture(config, spec)
    except UserError:  # the caller says that the size's label stands in
        return None
    key = (shape, spec.obs, spec.obs_shape, spec.action_dims, config.episodic, config.num_channels, config.num_bins)
    if key not in known:
        known[key] = _count_made(config, spec)
    return known[key]


def _read_shape(path: Path) -> Config:
    """The settings of a config.yaml that decide the model's shape, all others at their defaults."""
    try:
        values = yaml.load(path.read_text(), Loader=_YAML_LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a mapping of settings")
    return make_settings(Config, {name: values[name] for name in _SHAPING if name in values}, where=str(path))


def _count_made(config: Config, spec: AgentSpec) -> int:
    import torch

    from tdmpc2.agent.world_model import WorldModel

    with torch.device("meta"):
        return WorldModel(config, spec).parameter_counts()["total"]
