"""Agents that must do the same: weights at which that can be seen, and a comparison over several updates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tdmpc2.agent.agent import TDMPC2


def perturb(agent: TDMPC2) -> TDMPC2:
    """Weights as after a little training: in a new model rewards and values are zero everywhere, and all plans tie."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in agent.model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.add_(noise, alpha=0.1 if "ln" in name else 0.05)
    return agent


def assert_same_life(
    one: TDMPC2, other: TDMPC2, make_batch: Callable[..., dict[str, Tensor]], kind: str, size: int = 8
) -> None:
    """Equal metrics over several updates, and steps that differ by a small part of their length."""
    start = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    for seed in range(4):
        batch = make_batch(kind, seed=seed, size=size, terminated=True)
        expected, metrics = one.update(batch), other.update(batch)
        assert list(metrics) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    ends = one.model.state_dict(), other.model.state_dict()
    moved, apart = (
        sum((a[name] - b[name]).double().square().sum().item() for name in a) ** 0.5
        for a, b in ((start, ends[0]), ends)
    )
    assert moved > 0
    assert apart < 2e-3 * moved  # Adam divides tiny gradients by their own size: rounding shows in those entries
