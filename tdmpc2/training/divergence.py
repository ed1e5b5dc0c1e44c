"""What training does when its numbers stop being numbers: it stops, before they reach a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tdmpc2.agent.agent import TDMPC2

FINITE_CHECK_UPDATES = 100
"""Updates between two checks for NaN on a GPU, where each check waits for the device."""
CHECKED = ("total_loss", "grad_norm", "pi_loss", "pi_grad_norm")
"""Metrics of an update that are checked."""


class DivergedError(RuntimeError):
    """A loss or parameter is no longer a number."""


def losses_are_finite(agent: TDMPC2, metrics: Mapping[str, Tensor]) -> bool:
    """Whether the last update's losses and gradients are numbers; on a GPU, looked at now and then only."""
    if agent.device.type != "cpu" and agent.updates % FINITE_CHECK_UPDATES != 0:
        return True
    return bool(torch.isfinite(torch.stack([metrics[name] for name in CHECKED])).all())


def weights_are_finite(agent: TDMPC2) -> bool:
    """Whether all of the agent's parameters are numbers."""
    weights = [tensor for tensor in agent.model.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in weights]).all())


def diverged(reason: str, when: str, metrics: Mapping[str, Tensor], checkpoint: Path) -> DivergedError:
    """The error that tells what happened, when, and what is left.

    Args:
        reason: what is not a number.
        when: the update, and the environment steps where there are any.
        metrics: the last update's.
        checkpoint: the run's checkpoint, which may not be there yet.
    """
    losses = ", ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())
    kept = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
    last = losses or "none by this process"
    return DivergedError(f"training diverged at {when}: {reason}; last update: {last}; {kept}")
