"""Recomputing, moments in bfloat16, and the arithmetic of an update's memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdmpc2.agent import kernels
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.learning import Batch, draw_update_noise, model_loss, policy_loss
from tdmpc2.agent.memory import LiveBytes, update_memory
from tdmpc2.agent.optimizer import BFloat16Adam, make_adam, round_at_random
from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec

Agents = Callable[..., TDMPC2]
Batches = Callable[..., dict[str, Tensor]]
CPU = torch.device("cpu")


def saved_bytes(compute: Callable[[], Any], besides: list[Tensor]) -> tuple[int, Any]:
    """Bytes that a computation keeps for its backward pass in memory of its own, by autograd's own account."""
    storages: dict[int, int] = {}
    known = {tensor.untyped_storage().data_ptr() for tensor in besides}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    return sum(storages.values()), result


def loss_inputs(agent: TDMPC2, make_batch: Batches, kind: str, size: int) -> tuple[Batch, Any, list[Tensor]]:
    data = Batch.from_mapping(make_batch(kind, size=size, terminated=True), CPU)
    if not agent.spec.multitask:
        data = data._replace(task=None)
    noise = draw_update_noise(agent.model, size, torch.Generator().manual_seed(0))
    lasting = [*agent.model.parameters(), *agent.model.buffers(), *data, *noise]
    return data, noise, [tensor for tensor in lasting if tensor is not None]


# --- recompute


@pytest.mark.parametrize("mode", ["none", "kernels"])
@pytest.mark.parametrize(
    ("kind", "changes"), [("multi", {"episodic": True, "dropout": 0.3}), ("single", {}), ("rgb", {})]
)
def test_recomputing_gives_the_same_losses_and_gradients_bit_for_bit(
    kind: str, changes: dict[str, Any], mode: str, make_agent: Agents, make_batch: Batches
) -> None:
    if mode == "kernels" and not kernels.available():
        pytest.skip(kernels.load().reason)
    seen = []
    for recompute in (False, True):
        agent = make_agent(kind, recompute=recompute, compile=mode, **changes)
        data, noise, _ = loss_inputs(agent, make_batch, kind, 4)
        loss, latents, _ = model_loss(agent.model, data, noise)
        loss.backward(inputs=agent.model.model_parameters())
        pi_loss, scale, _ = policy_loss(agent.model, latents, data.task, torch.tensor(1.0), noise)
        pi_loss.backward(inputs=agent.model.policy_parameters())
        gradients = [p.grad for p in (*agent.model.model_parameters(), *agent.model.policy_parameters())]
        seen.append([loss, latents, pi_loss, scale, *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in seen[0][4:])


@pytest.mark.parametrize(("mode", "least"), [("none", 3.0), ("kernels", 1.5)])
def test_recomputing_keeps_a_fraction(mode: str, least: float, make_agent: Agents, make_batch: Batches) -> None:
    # Of a hidden layer uncompiled: the product, the normalised, Mish's input, exponential and output; recomputed, the
    # last alone. The kernels keep the product and the output. What is not hidden (bins, latents) stays: widths of 64.
    if mode == "kernels" and not kernels.available():
        pytest.skip(kernels.load().reason)
    kept = []
    for recompute in (False, True):
        agent = make_agent(recompute=recompute, compile=mode, mlp_dim=512, enc_dim=512, num_q=5)
        data, noise, lasting = loss_inputs(agent, make_batch, "single", 32)
        kept.append(saved_bytes(lambda a=agent, d=data, n=noise: model_loss(a.model, d, n), lasting)[0])
    assert kept[0] > least * kept[1]


def test_an_agent_that_saves_all_it_can_learns_from_every_kind_of_batch_and_acts(
    make_agent: Agents, make_batch: Batches
) -> None:
    for kind in ("single", "multi", "rgb"):
        agent = make_agent(kind, fresh=True, recompute=True, accumulate=2, optimizer_state="bfloat16")
        batch = make_batch(kind)
        assert all(torch.isfinite(value) for value in agent.update(batch).values())
        assert agent.act(batch["obs"][0], True, batch.get("task")).shape == (4, agent.spec.action_dim)


# --- moments in bfloat16


def one_parameter(
    value: float, n: int, seed: int = 0, eps: float = 1e-8, lr: float = 0.1
) -> tuple[Tensor, BFloat16Adam]:
    parameter = torch.nn.Parameter(torch.full((n,), value))
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_adam([parameter], lr, eps, CPU, generator)
    assert isinstance(optimizer, BFloat16Adam)
    return parameter, optimizer


def test_two_steps_by_hand() -> None:
    # Gradients whose moments are numbers of few bits: nothing is rounded but what is said here.
    # Step 1, g = 10: m = 1, v = 0.1; unbiased 10 and 100; x = 5 - 0.1 * 10 / (10 + 1) = 4.909091 (eps = 1).
    # v = 0.1 lies between the bfloat16 numbers 0.099609375 and 0.10009765625.
    # Step 2, g = 0: m = 0.9, v = 0.999 v; unbiased 0.9 / 0.19 = 4.736842 and v * 0.999 / 0.001999.
    parameter, optimizer = one_parameter(5.0, 1000, eps=1.0)
    parameter.grad = torch.full_like(parameter, 10.0)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((1000,), 5 - 1 / 11), rtol=1e-6, atol=0)
    state = optimizer.state[parameter]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    assert state["step"] == 1
    assert (state["exp_avg"] == 1).all()
    low, high = 0.099609375, 0.10009765625
    assert set(state["exp_avg_sq"].tolist()) == {low, high}
    # (0.1 - low) / (high - low) = 0.8: of a thousand, 800 on average with a deviation of 13.
    assert 740 < (state["exp_avg_sq"] == high).sum() < 860

    second = state["exp_avg_sq"].double()
    before = parameter.detach().clone()
    parameter.grad.zero_()
    optimizer.step()
    expected = before - 0.1 * (0.9 / 0.19) / ((second * 0.999 / 0.001999).sqrt() + 1)
    torch.testing.assert_close(parameter.detach(), expected.float(), rtol=1e-6, atol=0)
    neighbours = {0.8984375, 0.90234375}  # of 0.9
    assert set(state["exp_avg"].tolist()) == neighbours


def test_second_moments_follow_many_small_changes_that_rounding_to_the_nearest_would_undo() -> None:
    # From v = 1 with gradients of sqrt(2), v goes to 2: 2 - 0.999**n. A step changes it by 0.001 at most, and the
    # numbers of bfloat16 above 1 are 2**-7 apart: each single change, rounded to the nearest, is none.
    n, steps = 400, 1000
    parameter, optimizer = one_parameter(0.0, n)
    state = optimizer.state[parameter]
    state["exp_avg_sq"].fill_(1.0)
    parameter.grad = torch.full_like(parameter, 2**0.5)
    nearest = torch.ones((), dtype=torch.bfloat16)
    for _ in range(steps):
        optimizer.step()
        nearest = (nearest.float() * 0.999 + 0.001 * 2).to(torch.bfloat16)
    assert nearest == 1  # stood still
    expected = 2 - 0.999**steps
    assert state["exp_avg_sq"].float().mean().item() == pytest.approx(expected, abs=0.01)
    assert (state["exp_avg_sq"].float() - expected).abs().max() < 0.3  # none has run away


@pytest.mark.parametrize("value", [1.0, -1.5, 0.0, 2.0**-126, float("inf"), -float("inf")])
def test_what_bfloat16_can_say_is_not_rounded(value: float) -> None:
    noise = torch.tensor([0, 1, 2**15, 2**16 - 1], dtype=torch.int32)
    assert round_at_random(torch.full((4,), value), noise).tolist() == [value] * 4


def test_rounding_goes_up_as_often_as_the_number_is_near_and_never_further() -> None:
    # 1 + 2**-9 is a quarter of the way from 1 to the next number, 1 + 2**-7, in either direction from zero.
    every = torch.arange(2**16, dtype=torch.int32)
    for sign in (1.0, -1.0):
        rounded = round_at_random(torch.full((2**16,), sign * (1 + 2**-9)), every)
        assert (rounded == sign * (1 + 2**-7)).sum() == 2**14
        assert (rounded == sign).sum() == 2**16 - 2**14
    # NaN stays NaN, whatever its bits: adding to those of a GPU's, all ones, would make it zero.
    ones = torch.full((4,), 2**31 - 1, dtype=torch.int32).view(torch.float32)
    assert round_at_random(ones, every[-4:]).isnan().all()


def test_parameters_longer_than_a_piece_move_as_shorter_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from tdmpc2.agent import optimizer as room

    def moved(piece: int) -> list[Tensor]:
        monkeypatch.setattr(room, "PIECE", piece)
        draw = torch.Generator().manual_seed(1)
        parameters = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((7, 5), (3,), (4, 4), ())]
        optimizer = make_adam([{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:]}], 0.2, 1e-5, CPU, draw)
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    whole, pieces = moved(1000), moved(10)
    assert all(torch.allclose(a, b, rtol=0, atol=2e-3) for a, b in zip(whole, pieces, strict=True))


def test_losses_with_moments_in_bfloat16_stay_near_those_in_float32(make_agent: Agents, make_batch: Batches) -> None:
    ends = []
    for kept in ("float32", "bfloat16"):
        agent = make_agent(fresh=True, lr=1e-3, optimizer_state=kept)
        losses = [agent.update(make_batch(seed=seed % 4))["total_loss"].item() for seed in range(60)]
        ends.append(sum(losses[-8:]) / 8)
        assert ends[-1] < 0.9 * sum(losses[:8]) / 8
    assert ends[1] == pytest.approx(ends[0], rel=0.05)


def test_an_agent_with_moments_in_bfloat16_resumes_bit_for_bit(
    make_agent: Agents, make_batch: Batches, tmp_path: Path
) -> None:
    def learn(agent: TDMPC2, seeds: range) -> list[Tensor]:
        metrics = [value for seed in seeds for value in agent.update(make_batch(seed=seed)).values()]
        moments = [x for state in agent._model_optimizer.state.values() for x in state.values()]
        return [*metrics, *agent.model.state_dict().values(), *moments]

    agent = make_agent(optimizer_state="bfloat16")
    learn(agent, range(2))
    agent.save(tmp_path / "agent.pt")
    resumed = TDMPC2.from_checkpoint(tmp_path / "agent.pt", device="cpu")
    other = make_agent(optimizer_state="bfloat16", seed=5)
    other.load(tmp_path / "agent.pt")
    expected = learn(agent, range(2, 5))
    assert any(x.dtype == torch.bfloat16 for x in expected)
    for again in (resumed, other):
        assert all(torch.equal(a, b) for a, b in zip(expected, learn(again, range(2, 5)), strict=True))


def test_a_run_may_change_how_its_moments_are_kept(make_agent: Agents, make_batch: Batches, tmp_path: Path) -> None:
    kinds = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
    for before, after in (tuple(kinds), tuple(kinds)[::-1]):
        agent = make_agent(optimizer_state=kinds[before])
        agent.update(make_batch())
        agent.save(tmp_path / "agent.pt")
        changed = TDMPC2.from_checkpoint(tmp_path / "agent.pt", device="cpu", optimizer_state=kinds[after])
        for old, new in zip(
            agent._model_optimizer.state.values(), changed._model_optimizer.state.values(), strict=True
        ):
            assert new["exp_avg"].dtype == after
            torch.testing.assert_close(new["exp_avg_sq"].float(), old["exp_avg_sq"].float(), rtol=2**-8, atol=1e-30)
        assert torch.isfinite(changed.update(make_batch(seed=1))["total_loss"])


def test_moments_in_float32_are_torchs_own_and_their_checkpoints_as_ever(
    make_agent: Agents, make_batch: Batches
) -> None:
    agent = make_agent()
    agent.update(make_batch())
    assert type(agent._model_optimizer) is type(agent._policy_optimizer) is torch.optim.Adam
    assert all(group["fused"] for group in agent._model_optimizer.param_groups)
    assert list(agent.state_dict()) == (
        "format config spec model model_optimizer policy_optimizer scale generator actor updates execution".split()
    )


# --- the arithmetic


@pytest.mark.parametrize(
    ("kind", "changes"), [("single", {}), ("multi", {"episodic": True}), ("single", {"recompute": True})]
)
def test_estimated_activations_are_what_autograd_keeps(
    kind: str, changes: dict[str, Any], make_agent: Agents, make_batch: Batches
) -> None:
    agent = make_agent(kind, compile="none", mlp_dim=64, enc_dim=48, **changes)
    data, noise, lasting = loss_inputs(agent, make_batch, kind, 32)
    kept, _ = saved_bytes(lambda: model_loss(agent.model, data, noise), lasting)
    assert update_memory(agent.config, agent.spec, 32)["activations"] == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"accumulate": 4, "recompute": True}])
def test_the_estimated_total_is_what_a_real_update_reaches(
    changes: dict[str, Any], make_agent: Agents, make_batch: Batches
) -> None:
    agent = make_agent("multi", compile="none", mlp_dim=64, enc_dim=48, batch_size=32, **changes)
    batch = make_batch("multi", size=32, terminated=True)
    agent.update(batch)
    state = [x for o in (agent._model_optimizer, agent._policy_optimizer) for s in o.state.values() for x in s.values()]
    live = LiveBytes()
    live.ignore([*agent.model.parameters(), *agent.model.buffers(), *state, *batch.values()])
    with live:
        agent.update(batch)
    estimate = update_memory(agent.config, agent.spec, 32)
    assert estimate["noise"] + estimate["transient"] == pytest.approx(live.peak, rel=0.1)


def test_live_bytes_counts_what_lives_once_and_forgets_what_is_freed() -> None:
    outside = torch.zeros(1000)
    live = LiveBytes()
    live.ignore([outside])
    with live:
        a = torch.ones(250)  # 1,000 bytes
        view, other = a[:100], outside[10:]
        assert live.now == 1000
        b = a + 1
        assert live.now == 2000
        del a
        assert live.now == 2000  # the view still holds it
        del view
        assert live.now == 1000
        del b, other
    assert (live.now, live.peak) == (0, 2000)


def test_the_bytes_of_what_lasts_by_hand(specs: dict[str, AgentSpec]) -> None:
    # Size 5 with mt80's shapes: 5,389,930 parameters, of which 3,156,985 Q and 582,668 policy (ALGORITHM section 1).
    # A batch of 64: obs 4 x 64 x 39, action 3 x 64 x 6, reward and terminated 3 x 64 each, tasks 64 x 8 bytes.
    # Noise: eps 3 and 4 x 64 x 6, dropout 5 x 192 x 512 and 2 x 256 x 512, two pairs of 8 bytes each.
    names = Config(task="mt80").tasks
    config = Config(task="mt80", model_size=5, batch_size=64)
    memory = update_memory(config, AgentSpec.from_tasks(names), 64)
    assert memory["parameters"] == 4 * 5_389_930
    assert memory["target_qs"] == 4 * 3_156_985
    assert memory["moments"] == 8 * 5_389_930
    assert memory["gradients"] == 4 * (5_389_930 - 582_668)
    assert memory["batch"] == 4 * (4 * 64 * 39 + 3 * 64 * 6 + 2 * 3 * 64) + 64 * 8
    assert memory["noise"] == 4 * (7 * 64 * 6 + 5 * 192 * 512 + 2 * 256 * 512) + 2 * 2 * 8
    lasting = sum(memory[name] for name in ("parameters", "target_qs", "moments", "batch", "noise"))
    assert memory["total"] == lasting + memory["transient"]
    assert memory["transient"] >= memory["activations"]
    low = update_memory(dataclasses.replace(config, optimizer_state="bfloat16"), AgentSpec.from_tasks(names), 64)
    assert low["moments"] == 4 * 5_389_930


def test_each_saving_saves(specs: dict[str, AgentSpec]) -> None:
    def total(replicas: int = 1, **changes: Any) -> int:
        config = Config(task="walker-walk", model_size=19, **changes)
        return update_memory(config, specs["multi"], 1024, replicas)["total"]

    plain = total()
    assert total(accumulate=4) < plain
    assert total(recompute=True) < plain
    assert total(accumulate=4, recompute=True) < min(total(accumulate=4), total(recompute=True))
    assert total(replicas=4) < plain


def test_a_batch_that_cannot_be_divided_has_no_memory(specs: dict[str, AgentSpec]) -> None:
    config = Config(task="walker-walk", accumulate=3, batch_size=9)
    with pytest.raises(UserError, match="accumulate: 3 does not divide batch_size 10"):
        update_memory(config, specs["single"], 10)
