"""Losses and updates against a plain-loop second implementation and steps taken by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.agent import agent as agent_module
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.learning import (
    Batch,
    UpdateNoise,
    draw_keep,
    draw_update_noise,
    model_loss,
    policy_loss,
    step_weights,
    td_targets,
    update_scale,
)

Batches = Callable[..., dict[str, torch.Tensor]]
Agents = Callable[..., TDMPC2]
CPU = torch.device("cpu")
KINDS = [("single", False), ("multi", False), ("multi", True)]


def batch_and_noise(
    agent: TDMPC2, make_batch: Batches, kind: str, terminated: bool = True, size: int = 4
) -> tuple[Batch, UpdateNoise]:
    batch = Batch.from_mapping(make_batch(kind, terminated=terminated, size=size), CPU)
    return batch, draw_update_noise(agent.model, size, torch.Generator().manual_seed(7))


# --- the running scale and the weights of time


@pytest.mark.parametrize(
    ("values", "scale", "expected"),
    [
        # 21 values 0 to 20: the percentiles are entries 1 and 19, the range 18; 1 + 0.01 x 17
        (range(21), 1.0, 1.17),
        # 6 values: positions 0.25 and 4.75 between the entries, so 2.5 and 47.5; 1 + 0.01 x 44
        ((0, 10, 20, 30, 40, 50), 1.0, 1.44),
        ((0, 10, 20, 30, 40, 50), 50.0, 49.95),  # 50 + 0.01 x (45 - 50)
        ((7, 7, 7, 7), 1.0, 1.0),  # a range of 0 counts as 1
        ((7, 7.5, 7.2), 3.0, 2.98),  # 3 + 0.01 x (1 - 3)
    ],
)
def test_running_scale_averages_the_5th_to_95th_percentile_range(values: Any, scale: float, expected: float) -> None:
    shuffled = torch.tensor(list(values), dtype=torch.float32)[torch.randperm(len(values))]
    updated = update_scale(torch.tensor(scale), shuffled[:, None], 0.01)
    assert updated.shape == ()
    assert updated.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 64, 256, 257])
def test_running_scale_interpolates_percentiles_as_numpy_does(count: int) -> None:
    values = 30 * torch.randn(count, 1, generator=torch.Generator().manual_seed(count))
    low, high = np.quantile(values.double().numpy(), [0.05, 0.95], method="linear")
    expected = 3.0 + 0.01 * (max(high - low, 1.0) - 3.0)
    assert update_scale(torch.tensor(3.0), values, 0.01).item() == pytest.approx(expected, rel=1e-6)
    assert update_scale(torch.tensor(3.0), values, 1.0).item() == pytest.approx(max(high - low, 1.0), rel=1e-6)


def test_later_steps_weigh_powers_of_rho() -> None:
    assert step_weights(0.5, 4, CPU).tolist() == [1.0, 0.5, 0.25, 0.125]


# --- noise


def test_an_updates_noise_has_the_shapes_and_statistics_it_promises(make_agent: Agents) -> None:
    agent = make_agent(dropout=0.25)
    noise = draw_update_noise(agent.model, 50, torch.Generator().manual_seed(0))
    assert noise.shift is None
    assert noise.target_eps.shape == (3, 50, 2)
    assert noise.policy_eps.shape == (4, 50, 2)
    assert noise.keep is not None
    assert noise.policy_keep is not None
    assert noise.keep.shape == (3, 150, 16)
    assert noise.policy_keep.shape == (2, 200, 16)
    # Factors are 0 or 1 / 0.75, and 1 on average: 7200 draws, standard deviation of the mean 0.007.
    assert noise.keep.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert noise.keep.mean().item() == pytest.approx(1.0, abs=0.03)
    assert not torch.equal(noise.keep[0], noise.keep[1])


def test_without_dropout_no_factors_are_drawn_and_pixels_get_a_shift_for_each_image(make_agent: Agents) -> None:
    noise = draw_update_noise(make_agent("rgb", dropout=0).model, 5, torch.Generator().manual_seed(0))
    assert noise.keep is None
    assert noise.policy_keep is None
    assert noise.shift is not None
    assert noise.shift.shape == (4, 5, 2)
    assert len(noise.shift.flatten(0, 1).unique(dim=0)) > 5


# Up to 0.1 the gaps between dropped entries are drawn, above it every entry by itself.
DROPOUTS = [0.001, 0.01, 0.1, 0.11, 0.5]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dropout", DROPOUTS)
def test_dropout_drops_at_its_rate_and_scales_what_it_keeps(dropout: float) -> None:
    n = 1_000_000
    keep = draw_keep((2, 500, 1000), dropout, seeded())
    assert keep.shape == (2, 500, 1000)
    assert keep.is_contiguous()
    assert keep.dtype == torch.float32
    dropped = keep == 0
    assert abs(dropped.sum().item() - n * dropout) < 4 * (n * dropout * (1 - dropout)) ** 0.5
    factors = keep[~dropped].unique()
    assert len(factors) == 1
    assert factors.item() == pytest.approx(1 / (1 - dropout), rel=1e-7)


@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("lag", [1, 2, 3, 16, 1000])
def test_dropped_entries_are_independent_of_their_neighbours(lag: int, dropout: float) -> None:
    n = 2_000_000
    dropped = draw_keep((n,), dropout, seeded(1)) == 0
    both = (dropped[lag:] & dropped[:-lag]).sum().item()
    expected = n * dropout**2
    # Pairs overlap, but far apart they are nearly independent of one another: 5 standard deviations, a little wide.
    assert abs(both - expected) < 5 * (expected * (1 + 2 * dropout)) ** 0.5 + 3


@pytest.mark.parametrize("dropout", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3)])
def test_every_entry_of_a_short_tensor_is_dropped_alike_the_first_and_the_last_too(
    shape: tuple[int, ...], dropout: float
) -> None:
    draw, times = seeded(), 3000
    dropped = torch.stack([draw_keep(shape, dropout, draw).flatten() == 0 for _ in range(times)])
    deviation = (times * dropout * (1 - dropout)) ** 0.5
    assert (dropped.sum(dim=0) - times * dropout).abs().max() < 4.5 * deviation
    # How many are dropped together is binomial: its variance, known to 1 / sqrt(times / 2) = 2.6 %, says so.
    n = dropped.shape[1]
    variance = dropped.sum(dim=1).double().var().item()
    assert variance == pytest.approx(n * dropout * (1 - dropout), rel=0.25 if n == 1 else 0.15)


@pytest.mark.parametrize("dropout", [1e-12, 0.01, 0.5])
def test_nothing_to_drop_from_is_no_fault(dropout: float) -> None:
    assert draw_keep((2, 0, 3), dropout, seeded()).shape == (2, 0, 3)
    assert (draw_keep((5,), 1e-12, seeded()) == 1).all()


@pytest.mark.parametrize("dropout", [0.01, 0.5])
def test_dropout_follows_from_its_generator_alone(dropout: float) -> None:
    draw, again, other = seeded(1), seeded(1), seeded(2)
    torch.manual_seed(0)
    first = [draw_keep((40, 50), dropout, draw) for _ in range(2)]
    torch.manual_seed(1)
    second = [draw_keep((40, 50), dropout, again) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], draw_keep((40, 50), dropout, other))


def test_gaps_between_dropped_entries_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # At 0.1 a gap of k or more has probability 0.9^k: u = 0.2 lies between 1 - 0.9^2 = 0.19 and 1 - 0.9^3 = 0.271, a
    # gap of 2; 0 is a gap of none; 0.3 lies between 0.271 and 0.344, a gap of 3. So entries 2, 3 and 7 are dropped.
    def fixed(count: int, **rest: Any) -> torch.Tensor:
        return torch.tensor([0.2, 0.0, 0.3] + [0.999999] * (count - 3), dtype=torch.float64)

    monkeypatch.setattr(torch, "rand", fixed)
    keep = draw_keep((3, 4), 0.1, seeded())
    assert keep.dtype == torch.float32
    torch.testing.assert_close(keep, torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]) / 0.9)


def test_a_run_of_drops_longer_than_was_drawn_for_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda count, **rest: torch.zeros(count, dtype=torch.float64))
    assert (draw_keep((1000,), 0.01, seeded()) == 0).all()


# --- losses


def plain_rollout(plain: Any, batch: Batch, b: int, k: int | None) -> list[np.ndarray]:
    z = [plain.encode(batch.obs[0, b].double().numpy(), k)]
    for t in range(3):
        z.append(plain.next(z[-1], batch.action[t, b].double().numpy(), k))
    return z


def plain_model_losses(plain: Any, batch: Batch, noise: UpdateNoise, episodic: bool) -> dict[str, float]:
    """ALGORITHM section 5, steps 1 to 3, one sequence, step and Q-function after another."""
    H, B, M, L = 3, batch.reward.shape[1], 3, 16
    loss = dict.fromkeys(("consistency_loss", "reward_loss", "value_loss", "termination_loss"), 0.0)
    for b in range(B):
        k = None if batch.task is None else int(batch.task[b])
        z = plain_rollout(plain, batch, b, k)
        for t in range(H):
            rho = 0.5**t
            action, reward = batch.action[t, b].double().numpy(), float(batch.reward[t, b])
            ended = float(batch.terminated[t, b])
            next_z = plain.encode(batch.obs[t + 1, b].double().numpy(), k)
            next_action = plain.pi(next_z, k, noise.target_eps[t, b].double().numpy())[0]
            pair = [plain.decode(plain.Q(m, next_z, next_action, k, target=True)) for m in noise.target_members]
            target = reward + plain.gamma(k) * (1 - ended) * min(pair)
            loss["consistency_loss"] += rho * ((z[t + 1] - next_z) ** 2).sum() / (L * B * H)
            loss["reward_loss"] += rho * plain.cross_entropy(plain.reward(z[t], action, k), reward) / (B * H)
            for m in range(M):
                keep = noise.keep[m, t * B + b].double().numpy()  # time first, then sequences
                logits = plain.Q(m, z[t], action, k, keep=keep)
                loss["value_loss"] += rho * plain.cross_entropy(logits, target) / (B * H * M)
            if episodic:
                logit = plain.termination(z[t + 1], k)
                p = 1 / (1 + np.exp(-logit))
                loss["termination_loss"] -= (ended * np.log(p) + (1 - ended) * np.log(1 - p)) / (B * H)
    loss["total_loss"] = (
        20 * loss["consistency_loss"] + 0.1 * loss["reward_loss"] + 0.1 * loss["value_loss"] + loss["termination_loss"]
    )
    if not episodic:
        del loss["termination_loss"]
    return loss


@pytest.mark.parametrize(("kind", "episodic"), KINDS)
def test_model_losses_agree_with_a_plain_loop(
    kind: str, episodic: bool, make_agent: Agents, make_batch: Batches, plain_model: type
) -> None:
    agent = make_agent(kind, episodic=episodic, dropout=0.3)
    batch, noise = batch_and_noise(agent, make_batch, kind)
    total, latents, losses = model_loss(agent.model, batch, noise)
    plain = plain_model(agent.model)
    expected = plain_model_losses(plain, batch, noise, episodic)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=3e-4), name
    assert total.item() == losses["total_loss"].item()
    assert not latents.requires_grad
    for b in range(4):
        k = None if batch.task is None else int(batch.task[b])
        rollout = np.stack(plain_rollout(plain, batch, b, k))
        torch.testing.assert_close(latents[:, b].double(), torch.as_tensor(rollout), rtol=1e-3, atol=1e-5)


def test_loss_weights_are_those_of_the_config(make_agent: Agents, make_batch: Batches) -> None:
    weights = {"consistency_coef": 3.0, "reward_coef": 5.0, "value_coef": 7.0, "termination_coef": 11.0}
    agent = make_agent(episodic=True, **weights)
    total, _, losses = model_loss(agent.model, *batch_and_noise(agent, make_batch, "single"))
    parts = [losses[name.replace("coef", "loss")] * weight for name, weight in weights.items()]
    torch.testing.assert_close(total.detach(), sum(parts))


def test_a_terminated_step_takes_its_reward_alone_as_target(make_agent: Agents, make_batch: Batches) -> None:
    agent = make_agent("multi")
    batch, noise = batch_and_noise(agent, make_batch, "multi")
    next_z = agent.model.encode(batch.obs[1:], batch.task)
    targets = td_targets(agent.model, next_z, batch, noise)
    ended = batch.terminated.bool()
    assert ended.any()
    assert torch.equal(targets[ended], batch.reward[ended])
    assert (targets[~ended] != batch.reward[~ended]).all()


def test_targets_use_the_target_networks_and_carry_no_gradient(make_agent: Agents, make_batch: Batches) -> None:
    agent = make_agent()
    batch, noise = batch_and_noise(agent, make_batch, "single")
    next_z = torch.rand(3, 4, 16, requires_grad=True)
    before = td_targets(agent.model, next_z, batch, noise)
    assert not before.requires_grad
    with torch.no_grad():
        for parameter in agent.model._Qs.parameters():
            parameter.add_(1.0)
    assert torch.equal(td_targets(agent.model, next_z, batch, noise), before)


def test_consistency_targets_carry_no_gradient(make_agent: Agents, make_batch: Batches) -> None:
    # Only the first observation's encoding gets gradients: with a constant dynamics network there are none at all.
    agent = make_agent(reward_coef=0, value_coef=0)
    with torch.no_grad():
        agent.model._dynamics[-1].weight.zero_()
    total, _, _ = model_loss(agent.model, *batch_and_noise(agent, make_batch, "single"))
    total.backward()
    assert total.item() > 0
    assert all((p.grad == 0).all() for p in agent.model.encoder_parameters())


def test_the_model_loss_has_no_gradient_for_policy_and_targets_and_one_for_all_else(
    make_agent: Agents, make_batch: Batches
) -> None:
    agent = make_agent("multi", episodic=True)
    model = agent.model
    total, _, _ = model_loss(model, *batch_and_noise(agent, make_batch, "multi"))
    total.backward()
    assert all(p.grad is None for p in [*model._pi.parameters(), *model._target_Qs.parameters()])
    for name, parameter in model.named_parameters():
        if not name.startswith(("_pi", "_target_Qs")):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_policy_loss_agrees_with_a_plain_loop(
    kind: str, make_agent: Agents, make_batch: Batches, plain_model: type
) -> None:
    agent = make_agent(kind, dropout=0.3, entropy_coef=0.01)
    batch, noise = batch_and_noise(agent, make_batch, kind)
    latents = torch.rand(4, 4, 16, generator=torch.Generator().manual_seed(2))
    loss, scale, metrics = policy_loss(agent.model, latents, batch.task, torch.tensor(2.5), noise)

    plain, entropy, q = plain_model(agent.model), np.zeros((4, 4)), np.zeros((4, 4))
    for t in range(4):
        for b in range(4):
            k, z = None if batch.task is None else int(batch.task[b]), latents[t, b].double().numpy()
            action, entropy[t, b] = plain.pi(z, k, noise.policy_eps[t, b].double().numpy())
            for i, m in enumerate(noise.policy_members.tolist()):
                keep = noise.policy_keep[i, t * 4 + b].double().numpy()
                q[t, b] += plain.decode(plain.Q(m, z, action, k, keep=keep)) / 2
    low, high = np.percentile(q[0], [5, 95])
    expected_scale = 2.5 + 0.01 * (max(high - low, 1.0) - 2.5)
    per_step = [0.5**t * (0.01 * entropy[t] + q[t] / expected_scale).mean() for t in range(4)]
    assert scale.item() == pytest.approx(expected_scale, rel=1e-4)
    assert loss.item() == pytest.approx(-sum(per_step) / 4, rel=5e-4)
    assert metrics["pi_scaled_entropy"].item() == pytest.approx(entropy.mean(), rel=1e-4)


def test_the_policy_loss_has_no_gradient_for_the_q_functions_and_the_world_model(
    make_agent: Agents, make_batch: Batches
) -> None:
    agent = make_agent("multi")
    model = agent.model
    batch, noise = batch_and_noise(agent, make_batch, "multi")
    loss, scale, _ = policy_loss(model, torch.rand(4, 4, 16), batch.task, torch.tensor(1.0), noise)
    loss.backward()
    assert not scale.requires_grad
    for name, parameter in model.named_parameters():
        if name.startswith("_pi"):
            assert parameter.grad.abs().sum() > 0, name
        elif name != "_task_emb":  # reached through the policy's input; the update asks for no such gradient, see below
            assert parameter.grad is None, name


def test_the_policys_gradient_comes_through_the_action_into_q(make_agent: Agents, make_batch: Batches) -> None:
    agent = make_agent(entropy_coef=0)
    _, noise = batch_and_noise(agent, make_batch, "single")
    loss, _, _ = policy_loss(agent.model, torch.rand(4, 4, 16), None, torch.tensor(1.0), noise)
    grads = torch.autograd.grad(loss, agent.model.policy_parameters())
    assert all(g.abs().sum() > 0 for g in grads)


# --- updates


def snapshot(agent: TDMPC2) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in agent.model.named_parameters()}


def test_the_policys_step_moves_the_policy_and_nothing_else(make_agent: Agents, make_batch: Batches) -> None:
    # Without weight on the model's losses its gradients are zero, so only the policy's step and the targets move.
    agent = make_agent("multi", consistency_coef=0, reward_coef=0, value_coef=0, task_dim=2)
    with torch.no_grad():
        agent.model._task_emb.mul_(0.1)  # short enough not to be rescaled
    before = snapshot(agent)
    for seed in range(3):
        agent.update(make_batch("multi", seed=seed))
    for name, parameter in agent.model.named_parameters():
        if name.startswith("_pi"):
            assert not torch.equal(parameter, before[name]), name
        elif not name.startswith("_target_Qs"):
            assert torch.equal(parameter, before[name]), name


def test_the_models_step_moves_no_policy_parameter(
    make_agent: Agents, make_batch: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent("multi", episodic=True)

    def without_gradient(*args: Any) -> Any:
        loss, scale, metrics = policy_loss(*args)
        return loss * 0, scale, metrics

    monkeypatch.setattr(agent_module, "policy_loss", without_gradient)
    before = snapshot(agent)
    for seed in range(3):
        agent.update(make_batch("multi", seed=seed))
    for name, parameter in agent.model.named_parameters():
        if name.startswith("_pi"):
            assert torch.equal(parameter, before[name]), name
        else:
            assert not torch.equal(parameter, before[name]), name


class AdamByHand:
    """Adam (Kingma and Ba, algorithm 1) with betas 0.9 and 0.999."""

    def __init__(self, eps: float) -> None:
        self.eps, self.t, self.m, self.v = eps, 0, {}, {}

    def step(self, parameters: dict[str, torch.Tensor], grads: dict[str, torch.Tensor], lr: Callable) -> None:
        self.t += 1
        norm = torch.sqrt(sum(g.double().square().sum() for g in grads.values())).item()
        for name, g in grads.items():
            g = g.double() * min(1.0, self.clip / (norm + 1e-6))
            self.m[name] = 0.9 * self.m.get(name, 0.0) + 0.1 * g
            self.v[name] = 0.999 * self.v.get(name, 0.0) + 0.001 * g.square()
            m, v = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - 0.999**self.t)
            parameters[name].sub_((lr(name) * m / (v.sqrt() + self.eps)).float())

    clip: float


@pytest.mark.parametrize(("kind", "clip"), [("single", 20.0), ("single", 1e-4), ("multi", 20.0)])
def test_updates_equal_steps_taken_by_hand(
    kind: str, clip: float, make_agent: Agents, make_batch: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(kind, grad_clip_norm=clip, lr=1e-2, dropout=0.2)
    if kind == "multi":
        with torch.no_grad():
            agent.model._task_emb.mul_(0.01)  # no rescaling here: it has tests of its own
    model = copy.deepcopy(agent.model)
    drawn: list[UpdateNoise] = []

    def recorded(*args: Any) -> UpdateNoise:
        drawn.append(draw_update_noise(*args))
        return drawn[-1]

    monkeypatch.setattr(agent_module, "draw_update_noise", recorded)
    named = dict(model.named_parameters())
    policy = {name for name in named if name.startswith("_pi")}
    rest = {name for name in named if not name.startswith(("_pi", "_target_Qs"))}
    adam, pi_adam = AdamByHand(1e-8), AdamByHand(1e-5)
    adam.clip = pi_adam.clip = clip
    scale = torch.tensor(1.0)

    for i in range(3):
        raw = make_batch(kind, seed=i)
        metrics = agent.update(raw)
        batch = Batch.from_mapping(raw, CPU)

        loss, latents, _ = model_loss(model, batch, drawn[i])
        names = sorted(rest)
        grads = dict(zip(names, torch.autograd.grad(loss, [named[n] for n in names]), strict=True))
        with torch.no_grad():
            adam.step(named, grads, lambda n: 0.3 * 1e-2 if n.startswith("_encoder") else 1e-2)
        pi_loss, scale, _ = policy_loss(model, latents, batch.task, scale, drawn[i])
        names = sorted(policy)
        pi_grads = dict(zip(names, torch.autograd.grad(pi_loss, [named[n] for n in names]), strict=True))
        with torch.no_grad():
            pi_adam.step(named, pi_grads, lambda n: 1e-2)
            for name in rest:
                if name.startswith("_Qs"):
                    target = named[name.replace("_Qs", "_target_Qs", 1)]
                    target.copy_(0.99 * target + 0.01 * named[name])

        norm = torch.sqrt(sum(g.square().sum() for g in grads.values()))
        torch.testing.assert_close(metrics["grad_norm"], norm, rtol=1e-3, atol=0)  # before clipping
        assert metrics["total_loss"].item() == pytest.approx(loss.item(), rel=1e-3)
        assert metrics["pi_loss"].item() == pytest.approx(pi_loss.item(), rel=1e-3)
        assert metrics["pi_scale"].item() == pytest.approx(scale.item(), rel=1e-4)
    assert agent.updates == 3
    for name, parameter in agent.model.named_parameters():
        torch.testing.assert_close(parameter, named[name], rtol=1e-3, atol=3e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_the_encoder_learns_at_its_scaled_rate(make_agent: Agents, make_batch: Batches) -> None:
    # Adam's first step is the learning rate wherever the gradient is not tiny: 3e-4, and 0.3 x 3e-4 in the encoder.
    agent = make_agent()
    before = snapshot(agent)
    agent.update(make_batch())
    step = {name: (p.detach() - before[name]).abs().median().item() for name, p in agent.model.named_parameters()}
    assert step["_encoder.0.weight"] == pytest.approx(9e-5, rel=0.02)
    assert step["_dynamics.0.weight"] == pytest.approx(3e-4, rel=0.02)
    assert step["_Qs.layers.2.weight"] == pytest.approx(3e-4, rel=0.02)
    assert step["_pi.0.weight"] == pytest.approx(3e-4, rel=0.05)  # eps is 1e-5 there


def test_update_keeps_embeddings_it_looked_up_at_norm_one_and_leaves_others(
    make_agent: Agents, make_batch: Batches
) -> None:
    agent = make_agent("multi", task_dim=2, lr=0.1)
    rows = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 0.999]])
    with torch.no_grad():
        agent.model._task_emb.copy_(rows)
    for seed in range(3):
        agent.update(make_batch("multi", seed=seed) | {"task": torch.tensor([0, 2, 2, 0])})
        norms = agent.model._task_emb.norm(dim=1)
        assert norms[0] <= 1 + 1e-6
        assert norms[2] <= 1 + 1e-6
        assert torch.equal(agent.model._task_emb[1], rows[1])  # no gradient yet, no lookup: untouched


def test_a_long_embedding_is_shortened_before_it_is_moved(make_agent: Agents, make_batch: Batches) -> None:
    agent = make_agent("multi", task_dim=2, lr=0.1)
    with torch.no_grad():
        agent.model._task_emb.copy_(torch.tensor([[30.0, 40.0], [0.1, 0.1], [0.1, 0.1]]))
    agent.update(make_batch("multi") | {"task": torch.zeros(4, dtype=torch.long)})
    # First to (0.6, 0.8), then by Adam's first step, 0.1 up or down each, then again to norm 1 where it is longer.
    moved = torch.tensor([[0.5, 0.7], [0.5, 0.9], [0.7, 0.7], [0.7, 0.9]])
    possible = moved / moved.norm(dim=1, keepdim=True).clamp_min(1)
    assert (agent.model._task_emb[0].detach() - possible).abs().amax(dim=1).min() < 1e-4


def test_update_returns_finite_detached_scalars(make_agent: Agents, make_batch: Batches) -> None:
    metrics = make_agent(episodic=True).update(make_batch(terminated=True))
    assert {"consistency_loss", "reward_loss", "value_loss", "termination_loss", "total_loss", "pi_loss"} <= set(
        metrics
    )
    assert {"grad_norm", "pi_grad_norm", "pi_scale", "pi_entropy", "pi_scaled_entropy"} <= set(metrics)
    for name, value in metrics.items():
        assert value.shape == (), name
        assert not value.requires_grad, name
        assert torch.isfinite(value), name


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_no_number_shows_in_the_loss(reward: float, make_agent: Agents, make_batch: Batches) -> None:
    batch = make_batch()
    batch["reward"][1, 2] = reward
    metrics = make_agent().update(batch)
    assert metrics["reward_loss"].isnan()
    assert metrics["value_loss"].isnan()
    assert metrics["total_loss"].isnan()


def test_updates_lower_the_loss_on_a_batch_seen_again_and_again(make_agent: Agents, make_batch: Batches) -> None:
    agent, batch = make_agent(fresh=True, lr=1e-2), make_batch()
    losses = [agent.update(batch)["total_loss"].item() for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])


def test_a_batch_without_terminations_is_one_where_nothing_terminated(make_agent: Agents, make_batch: Batches) -> None:
    batch = make_batch()
    without = make_agent().update(batch)
    with_zeros = make_agent().update(batch | {"terminated": torch.zeros(3, 4, 1, dtype=torch.bool)})
    assert all(torch.equal(without[name], with_zeros[name]) for name in without)


def test_batches_of_double_precision_are_taken(make_agent: Agents, make_batch: Batches) -> None:
    batch = make_batch()
    single, double = make_agent(), make_agent()
    a, b = single.update(batch), double.update({name: x.double() for name, x in batch.items()})
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_multi_task_batch_needs_task_ids(make_agent: Agents, make_batch: Batches) -> None:
    batch = make_batch("multi")
    del batch["task"]
    with pytest.raises(ValueError, match="task"):
        make_agent("multi").update(batch)


def test_a_single_task_agent_takes_a_batch_of_any_task_id(make_agent: Agents, make_batch: Batches) -> None:
    # Replay of a multi-task set carries ids; the agent has one task only.
    metrics = make_agent().update(make_batch() | {"task": torch.full((4,), 5)})
    assert torch.isfinite(metrics["total_loss"])
