"""The squashed Gaussian of the policy prior, and the discount."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_2PI_HALF = 0.5 * math.log(2 * math.pi)


def bound_log_std(raw: Tensor, low: float, high: float) -> Tensor:
    """Squash an unbounded output into log standard deviations between `low` and `high`."""
    return low + 0.5 * (high - low) * (torch.tanh(raw) + 1)


def squashed_gaussian(mean: Tensor, log_std: Tensor, eps: Tensor, action_dims: Tensor | int) -> dict[str, Tensor]:
    """Sample a = tanh(mean + eps exp(log_std)) and its entropy, estimated from that one sample.

    In multi-task models, mean, log_std and eps are masked beforehand.

    Args:
        mean: (..., A), before the tanh.
        log_std: (..., A).
        eps: (..., A), standard normal.
        action_dims: the task's own number of action dims, a number or (..., 1).

    Returns:
        action (..., A); mean (..., A), the deterministic action tanh(mean); log_std; entropy (..., 1), minus the
        log-probability; scaled_entropy (..., 1), the entropy times the Gaussian part of the log-probability for
        each action dim, relative to the whole.
    """
    gaussian = (-0.5 * eps.square() - log_std - LOG_2PI_HALF).sum(dim=-1, keepdim=True)
    action = torch.tanh(mean + eps * log_std.exp())
    log_prob = gaussian - torch.log(F.relu(1 - action.square()) + 1e-6).sum(dim=-1, keepdim=True)
    return {
        "action": action,
        "mean": torch.tanh(mean),
        "log_std": log_std,
        "entropy": -log_prob,
        "scaled_entropy": -log_prob * (gaussian * action_dims) / (log_prob + 1e-8),
    }


def discount(episode_length: int, denom: float = 5.0, low: float = 0.95, high: float = 0.995) -> float:
    """Discount for episodes of T agent steps: clip((T/denom - 1) / (T/denom), low, high)."""
    fraction = episode_length / denom
    return min(max((fraction - 1) / fraction, low), high)
