"""The largest model learns, for real: every number of it is computed."""

from __future__ import annotations

import math

import pytest
import torch

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.memory import update_memory
from tdmpc2.config import Config
from tdmpc2.spec import AgentSpec

GB = 10**9
LIBRARIES = 1.5 * GB
"""Left to the CUDA context and the libraries' working memory."""


def test_size_317_on_80_tasks_fits_24_gb_at_the_papers_batch() -> None:
    # Dropout's factors alone are 8 x 3,072 x 4,096 numbers; see results/records/memory.md.
    spec = AgentSpec.from_tasks(Config(task="mt80").tasks)
    plain = update_memory(Config(task="mt80", model_size=317), spec, 1024)
    assert plain["parameters"] == pytest.approx(4 * 317e6, rel=0.01)
    assert plain["total"] < 24 * GB - LIBRARIES
    saving = Config(task="mt80", model_size=317, accumulate=4, recompute=True, optimizer_state="bfloat16")
    assert update_memory(saving, spec, 1024)["total"] < 8 * GB - LIBRARIES


@pytest.mark.slow
def test_an_update_of_size_317_on_80_tasks_moves_every_part_and_its_losses_are_numbers() -> None:
    # About 7 GB of memory. At first all rewards and values are zero, so their cross-entropy is known: zero logits are
    # uniform over 101 bins.
    config = Config(
        task="mt80",
        model_size=317,
        batch_size=8,
        accumulate=2,
        recompute=True,
        optimizer_state="bfloat16",
        device="cpu",
    )
    agent = TDMPC2(config, AgentSpec.from_tasks(config.tasks))
    assert agent.model.parameter_counts()["total"] == pytest.approx(317e6, rel=0.01)
    draw = torch.Generator().manual_seed(0)
    batch = {
        "obs": torch.randn(4, 8, 39, generator=draw),
        "action": torch.rand(3, 8, 6, generator=draw) * 2 - 1,
        "reward": torch.rand(3, 8, 1, generator=draw),
        "task": torch.arange(8) * 10,
    }
    # A corner of each is enough to see it move; a copy of all would be another 2 GB.
    corners = {name: parameter.detach().flatten()[:1000].clone() for name, parameter in agent.model.named_parameters()}
    metrics = agent.update(batch)
    assert all(torch.isfinite(value) for value in metrics.values())
    rho = (1 + 0.5 + 0.25) / 3
    assert metrics["reward_loss"].item() == pytest.approx(rho * math.log(101), rel=1e-4)
    assert metrics["value_loss"].item() == pytest.approx(rho * math.log(101), rel=1e-4)
    for name, parameter in agent.model.named_parameters():
        assert torch.isfinite(parameter).all(), name
    moved = {
        name
        for name, parameter in agent.model.named_parameters()
        if not torch.equal(parameter.detach().flatten()[:1000], corners[name])
    }
    # Zero weights of the last layer let no gradient through to the layers before it: those of R and Q move next time.
    for part in (
        "_encoder.0.weight",
        "_encoder.4.weight",
        "_dynamics.0.weight",
        "_reward.2.weight",
        "_Qs.layers.2.weight",
    ):
        assert part in moved, part
    assert {"_task_emb", "_pi.0.weight", "_target_Qs.layers.2.weight"} <= moved
