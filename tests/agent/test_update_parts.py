"""An update in parts is the undivided one, up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from same_life import assert_same_life, perturb
from torch import Tensor

from tdmpc2.agent import agent as agent_module
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.learning import Batch, draw_update_noise
from tdmpc2.agent.parts import cut
from tdmpc2.agent.replicas import Replicas
from tdmpc2.config import Config
from tdmpc2.errors import UserError

Agents = Callable[..., TDMPC2]
Batches = Callable[..., dict[str, Tensor]]


@pytest.mark.parametrize(
    ("kind", "accumulate", "changes"),
    [
        ("single", 2, {"dropout": 0.3}),
        ("single", 8, {"entropy_coef": 0.1}),
        ("multi", 4, {"dropout": 0.3, "episodic": True, "lr": 1e-3}),
        ("rgb", 2, {}),
        ("single", 4, {"grad_clip_norm": 1e-3, "dropout": 0}),
        ("multi", 2, {"compile": "none", "recompute": True}),
    ],
)
def test_an_accumulated_update_is_that_of_the_undivided_batch(
    kind: str, accumulate: int, changes: dict[str, Any], make_agent: Agents, make_batch: Batches
) -> None:
    whole = perturb(make_agent(kind, fresh=True, batch_size=8, **changes))
    divided = perturb(make_agent(kind, fresh=True, batch_size=8, accumulate=accumulate, **changes))
    assert_same_life(whole, divided, make_batch, kind)
    torch.testing.assert_close(divided._scale, whole._scale, rtol=1e-4, atol=0)


def test_the_running_scale_is_of_the_whole_batch_and_divides_every_part(
    make_agent: Agents, make_batch: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The values at t = 0 are large enough for a range above 1; of a part alone the range would be another.
    seen: list[tuple[int, Tensor]] = []
    policy_loss = agent_module.policy_loss

    def recorded(*args: Any) -> Any:
        loss, scale, metrics = policy_loss(*args)
        seen.append((args[1].shape[1], scale))
        return loss, scale, metrics

    monkeypatch.setattr(agent_module, "policy_loss", recorded)
    whole, divided = make_agent(batch_size=8), make_agent(batch_size=8, accumulate=4)
    for agent in (whole, divided):
        agent.update(make_batch(size=8))
    sizes, scales = zip(*seen, strict=True)
    assert sizes == (8, 2, 2, 2, 2)
    assert scales[0] > 1.001
    for scale in scales[1:]:
        torch.testing.assert_close(scale, scales[0], rtol=1e-4, atol=0)


def test_policy_losses_of_the_parts_use_latents_made_before_the_models_step(
    make_agent: Agents, make_batch: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Tensor] = []
    used: list[Tensor] = []
    model_loss, policy_loss = agent_module.model_loss, agent_module.policy_loss

    def making(*args: Any) -> Any:
        total, latents, losses = model_loss(*args)
        made.append(latents.clone())
        return total, latents, losses

    def using(*args: Any) -> Any:
        used.append(args[1].clone())
        return policy_loss(*args)

    monkeypatch.setattr(agent_module, "model_loss", making)
    monkeypatch.setattr(agent_module, "policy_loss", using)
    make_agent(batch_size=4, accumulate=2, lr=0.1).update(make_batch())
    assert len(made) == 2
    assert all(torch.equal(a, b) for a, b in zip(made, used, strict=True))


def test_embeddings_of_every_parts_tasks_are_shortened(make_agent: Agents, make_batch: Batches) -> None:
    agent = make_agent("multi", task_dim=2, batch_size=4, accumulate=4, lr=1e-9)
    with torch.no_grad():
        agent.model._task_emb.copy_(torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 5.0]]))
    agent.update(make_batch("multi") | {"task": torch.tensor([0, 0, 2, 2])})
    norms = agent.model._task_emb.norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 10.0, 1.0]), rtol=1e-5, atol=0)


# --- cutting


@pytest.mark.parametrize(("accumulate", "size"), [(1, 6), (3, 2), (6, 1)])
def test_each_sequence_keeps_its_own_noise_however_a_batch_is_cut(
    accumulate: int, size: int, make_agent: Agents, make_batch: Batches
) -> None:
    # Numbers that say whose they are: sequence b of 12, step t, are marked 100 t + b in every tensor.
    H, B = 3, 12
    model = make_agent("multi", batch_size=12).model
    data = Batch.from_mapping(make_batch("multi", size=B, terminated=True), torch.device("cpu"))
    noise = draw_update_noise(model, B, torch.Generator().manual_seed(0))

    def marks(steps: int) -> Tensor:
        return 100.0 * torch.arange(steps)[:, None] + torch.arange(B)

    def marked(tensor: Tensor, steps: int) -> Tensor:
        return marks(steps)[..., None].expand(tensor.shape)

    data = Batch(
        obs=marked(data.obs, H + 1),
        action=marked(data.action, H),
        reward=marked(data.reward, H),
        terminated=marked(data.terminated, H),
        task=torch.arange(B),
    )
    noise = noise._replace(
        shift=marked(torch.empty(H + 1, B, 2), H + 1),
        target_eps=marked(noise.target_eps, H),
        policy_eps=marked(noise.policy_eps, H + 1),
        keep=marks(H).reshape(1, -1, 1).expand(noise.keep.shape),
        policy_keep=marks(H + 1).reshape(1, -1, 1).expand(noise.policy_keep.shape),
    )
    for rank in range(2):
        own = slice(rank * 6, rank * 6 + 6)
        mine = Batch(*(x[:, own] for x in data[:4]), task=data.task[own])
        parts = list(cut(mine, noise, accumulate, Replicas(rank, 2)))
        assert len(parts) == accumulate
        for i, (part, its) in enumerate(parts):
            sequences = 6 * rank + size * i + torch.arange(size)
            assert torch.equal(part.task, sequences)
            for tensor, steps in (
                *((x, H) for x in (part.action, part.reward, part.terminated, its.target_eps)),
                *((x, H + 1) for x in (part.obs, its.policy_eps, its.shift)),
            ):
                expected = 100.0 * torch.arange(steps)[:, None] + sequences
                assert torch.equal(tensor, expected[..., None].expand(tensor.shape))
            for tensor, steps in ((its.keep, H), (its.policy_keep, H + 1)):
                expected = (100.0 * torch.arange(steps)[:, None] + sequences).flatten()
                assert torch.equal(tensor, expected[:, None].expand(tensor.shape))
                assert tensor.is_contiguous()  # the kernels read them so
            assert its.target_members is noise.target_members


def test_an_undivided_batch_is_neither_cut_nor_copied_nor_computed_twice(
    make_agent: Agents, make_batch: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Tensor:
        raise AssertionError("an undivided update knows its values at t = 0 from the loss itself")

    monkeypatch.setattr(agent_module, "first_values", never)
    agent = make_agent()
    data = Batch.from_mapping(make_batch(), torch.device("cpu"))
    noise = draw_update_noise(agent.model, 4, torch.Generator().manual_seed(0))
    ((same_data, same_noise),) = cut(data, noise, 1, Replicas())
    assert same_data is data
    assert same_noise is noise
    agent.update(make_batch())


# --- batches that cannot be divided


def test_a_batch_size_that_accumulate_does_not_divide_is_refused_when_the_agent_is_made(
    make_config: Callable[..., Config], specs: Any
) -> None:
    with pytest.raises(UserError, match=r"^accumulate: 3 does not divide batch_size 4 into equal parts$"):
        TDMPC2(make_config(accumulate=3), specs["single"])
    with pytest.raises(UserError, match=r"^accumulate: 2 x 4 processes does not divide batch_size 4 "):
        TDMPC2(make_config(accumulate=2), specs["single"], replicas=Replicas(0, 4))


@pytest.mark.parametrize(
    ("settings", "accumulate", "divides"),
    [({}, 256, True), ({}, 512, False), ({"task": "mt30"}, 512, True), ({"data": "some", "steps": 1}, 512, True)],
)
def test_the_default_batch_size_is_the_one_that_must_be_divisible(
    settings: dict[str, Any], accumulate: int, divides: bool, make_config: Callable[..., Config], specs: Any
) -> None:
    config = make_config(batch_size=None, accumulate=accumulate, **settings)  # 256 for one task online, else 1024
    if divides:
        assert TDMPC2(config, specs["single"]).config.accumulate == accumulate
    else:
        with pytest.raises(UserError, match="batch_size 256"):
            TDMPC2(config, specs["single"])


def test_a_batch_of_another_size_that_cannot_be_divided_is_refused_and_changes_nothing(
    make_agent: Agents, make_batch: Batches
) -> None:
    agent = make_agent(accumulate=2)
    before = [tensor.clone() for tensor in agent.model.state_dict().values()]
    stream = agent._generator.get_state()
    with pytest.raises(UserError, match="accumulate: 2 does not divide batch_size 5"):
        agent.update(make_batch(size=5))
    assert all(torch.equal(a, b) for a, b in zip(before, agent.model.state_dict().values(), strict=True))
    assert torch.equal(agent._generator.get_state(), stream)
    assert agent.updates == 0
    assert torch.isfinite(agent.update(make_batch(size=6))["total_loss"])


@pytest.mark.parametrize(("rank", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_is_not_among_the_replicas_is_a_fault(rank: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} is not among {count}"):
        Replicas(rank, count)
