"""MPPI by hand and against a plain-loop second implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.agent import kernels, planner
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.planner import (
    PlanNoise,
    begin_roll_out,
    draw_pair,
    draw_plan_noise,
    draw_shift,
    estimate_value,
    fit_moments,
    plan,
    planning_iterations,
    roll_out_prior,
    shift_plan,
)
from tdmpc2.agent.world_model import WorldModel
from tdmpc2.config import Config
from tdmpc2.spec import AgentSpec


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observe(agent: TDMPC2, batch: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(batch, *agent.spec.obs_shape, generator=generator(seed))


def rows_of(noise: PlanNoise, rows: slice) -> PlanNoise:
    """The noise of some of the batch's observations; the drawn Qs are everyone's."""
    return PlanNoise(
        shift=None,
        prior=noise.prior[:, rows],
        samples=noise.samples[:, :, rows],
        last=noise.last[:, rows],
        members=noise.members,
        choice=noise.choice[rows],
        explore=noise.explore[rows],
    )


# --- moments, warm start, iterations


def test_moments_are_weighted_mean_and_standard_deviation_of_the_elites() -> None:
    actions = torch.tensor([[[[1.0, 0.2]], [[0.0, 0.6]]]])  # B 1, E 2, H 1, A 2
    mean, std = fit_moments(actions, torch.tensor([[0.75, 0.25]]), 0.05, 2.0)
    # 0.75 x 1 = 0.75; variance 0.75 x 0.25^2 + 0.25 x 0.75^2 = 0.1875.
    # 0.15 + 0.15 = 0.3; variance 0.75 x 0.1^2 + 0.25 x 0.3^2 = 0.03.
    torch.testing.assert_close(mean, torch.tensor([[[0.75, 0.3]]]))
    torch.testing.assert_close(std, torch.tensor([[[0.4330127, 0.1732051]]]))


def test_standard_deviation_is_kept_within_its_bounds() -> None:
    actions = torch.tensor([[[[0.5, -1.0]], [[0.5, 1.0]]]])  # population std 0 and 1
    _, std = fit_moments(actions, torch.tensor([[0.5, 0.5]]), 0.05, 0.8)
    torch.testing.assert_close(std, torch.tensor([[[0.05, 0.8]]]))


def test_each_observation_and_step_has_moments_of_its_own() -> None:
    actions = torch.randn(2, 4, 3, 2, generator=generator())
    weight = torch.softmax(torch.randn(2, 4, generator=generator(1)), dim=1)
    mean, std = fit_moments(actions, weight, 0.0, 9.0)
    for b in range(2):
        w = weight[b].double().numpy()
        for t in range(3):
            for i in range(2):
                x = actions[b, :, t, i].double().numpy()
                assert mean[b, t, i].item() == pytest.approx((w * x).sum(), rel=1e-5)
                assert std[b, t, i].item() == pytest.approx(np.sqrt((w * (x - (w * x).sum()) ** 2).sum()), rel=1e-4)


def test_a_shifted_plan_drops_its_first_step_and_ends_in_zeros() -> None:
    mean = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    assert shift_plan(mean).squeeze(-1).tolist() == [[2.0, 3.0, 0.0], [5.0, 6.0, 0.0]]


def test_large_action_spaces_get_two_more_iterations(make_config: Callable[..., Config]) -> None:
    config = make_config()
    assert [planning_iterations(config, A) for A in (1, 19, 20, 38)] == [6, 6, 8, 8]
    spec = AgentSpec(obs_shape=(3,), action_dims=(4, 20), episode_lengths=(500, 500), tasks=("a", "b"))
    noise = draw_plan_noise(WorldModel(config, spec), 1, False, generator())
    assert noise.samples.shape == (8, 3, 1, 28, 20)
    assert noise.members.shape == (8, 2)


# --- what is drawn


def test_two_different_q_functions_are_drawn_uniformly() -> None:
    draw = generator()
    pairs = [tuple(sorted(draw_pair(3, draw).tolist())) for _ in range(900)]
    counts = [pairs.count(pair) for pair in [(0, 1), (0, 2), (1, 2)]]
    assert sum(counts) == 900
    assert min(counts) > 250  # 300 expected, standard deviation 14
    assert sorted(draw_pair(2, draw).tolist()) == [0, 1]


def test_shifts_are_drawn_only_for_pixels_from_seven_positions_each_way(make_agent: Callable[..., TDMPC2]) -> None:
    assert draw_shift(make_agent().model, (4,), generator()) is None
    shift = draw_shift(make_agent("rgb").model, (50, 10), generator())
    assert shift is not None
    assert shift.shape == (50, 10, 2)
    for axis in (0, 1):
        assert shift[..., axis].unique().tolist() == list(range(7))
    assert not torch.equal(shift[..., 0], shift[..., 1])


def test_evaluation_draws_the_same_numbers_but_no_exploration_noise(make_agent: Callable[..., TDMPC2]) -> None:
    model = make_agent().model
    train = draw_plan_noise(model, 3, False, generator())
    evaluation = draw_plan_noise(model, 3, True, generator())
    assert train.explore.abs().min() > 0
    assert (evaluation.explore == 0).all()
    for name in ("prior", "samples", "last", "members", "choice"):
        assert torch.equal(getattr(train, name), getattr(evaluation, name)), name


# --- the value of a sequence


def rewards_by_hand(monkeypatch: pytest.MonkeyPatch, model: WorldModel, alive: tuple[float, ...]) -> torch.Tensor:
    """A model that counts: state 0, 1, 2, 3; reward 2^state; Qs 10 and 30; termination logits by state."""

    def q(z: torch.Tensor, action: torch.Tensor, task: Any, members: torch.Tensor) -> torch.Tensor:
        assert z.unique().item() == 3.0  # the last state
        assert action.unique().item() == 0.25  # the policy's action
        return torch.tensor([10.0, 20.0, 30.0])[members][:, None, None, None].expand(2, *z.shape)

    monkeypatch.setattr(model.two_hot, "decode", lambda scalar: scalar, raising=False)
    monkeypatch.setattr(model, "reward", lambda z, action, task: 2.0**z, raising=False)
    monkeypatch.setattr(model, "next", lambda z, action, task: z + 1, raising=False)
    monkeypatch.setattr(model, "termination", lambda z, task: torch.tensor(alive)[z.long()], raising=False)
    monkeypatch.setattr(model, "pi_action", lambda z, task, eps: torch.full((1, 1, 2), 0.25), raising=False)
    monkeypatch.setattr(model, "Q", q, raising=False)
    return estimate_value(
        model, torch.zeros(1, 1), torch.zeros(1, 1, 3, 2), None, torch.zeros(1, 1, 2), torch.tensor([0, 2])
    )


def test_value_is_discounted_rewards_and_the_mean_of_the_drawn_qs(
    monkeypatch: pytest.MonkeyPatch, make_agent: Callable[..., TDMPC2]
) -> None:
    value = rewards_by_hand(monkeypatch, make_agent().model, (0.0, 9.0, 9.0, 9.0))  # not episodic: logits unread
    # 1 + 0.99 x 2 + 0.9801 x 4 + 0.970299 x (10 + 30) / 2
    torch.testing.assert_close(value, torch.tensor([[26.30638]]))


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ((9.0, -9.0, -9.0, -9.0), 26.30638),  # the current state's termination is not asked for
        ((-9.0, 1e-3, -9.0, -9.0), 1.0),  # ends after the first step, for good
        ((-9.0, 0.0, 0.1, -9.0), 2.98),  # probability 0.5 is no end; 1 + 0.99 x 2
        ((-9.0, -9.0, -9.0, 5.0), 6.9004),  # 1 + 1.98 + 3.9204, no value of the last state
    ],
)
def test_after_a_predicted_termination_nothing_counts(
    monkeypatch: pytest.MonkeyPatch, make_agent: Callable[..., TDMPC2], logits: tuple[float, ...], expected: float
) -> None:
    value = rewards_by_hand(monkeypatch, make_agent(episodic=True).model, logits)
    torch.testing.assert_close(value, torch.tensor([[expected]]))


def test_a_termination_that_is_not_a_number_makes_the_value_nan(
    monkeypatch: pytest.MonkeyPatch, make_agent: Callable[..., TDMPC2]
) -> None:
    value = rewards_by_hand(monkeypatch, make_agent(episodic=True).model, (0.0, float("nan"), -1.0, -1.0))
    assert value.isnan().all()


def plain_value(plain: Any, z: np.ndarray, actions: Any, k: int | None, eps: Any, pair: Any, episodic: bool) -> float:
    """Value of one sequence of actions (H, A) by ALGORITHM section 6."""
    total, factor = 0.0, 1.0
    for action in actions:
        total += factor * plain.decode(plain.reward(z, action, k))
        z = plain.next(z, action, k)
        factor *= plain.gamma(k)
        if episodic and plain.termination(z, k) > 0:
            factor = 0.0
    action = plain.pi(z, k, eps)[0]
    return total + factor * (sum(plain.decode(plain.Q(m, z, action, k)) for m in pair) / 2)


@pytest.mark.parametrize(("kind", "episodic"), [("single", False), ("multi", False), ("multi", True)])
def test_values_agree_with_a_plain_loop_each_task_by_its_own_discount_mask_and_embedding(
    kind: str, episodic: bool, make_agent: Callable[..., TDMPC2], plain_model: type
) -> None:
    agent = make_agent(kind, episodic=episodic, dropout=0.5)  # dropout: must play no part in planning
    model, plain, A = agent.model, plain_model(agent.model), agent.spec.action_dim
    tasks = torch.tensor([0, 2, 1]) if kind == "multi" else None
    actions = torch.rand(3, 5, 3, A, generator=generator(1)) * 2 - 1
    eps = torch.randn(3, 5, A, generator=generator(2))
    z = model.encode(observe(agent, 3), tasks)
    with torch.no_grad():
        value = estimate_value(model, z, actions, None if tasks is None else tasks[:, None], eps, torch.tensor([2, 0]))
    expected = np.zeros((3, 5))
    for b in range(3):
        k = None if tasks is None else int(tasks[b])
        for s in range(5):
            state = z[b].detach().double().numpy()
            expected[b, s] = plain_value(plain, state, actions[b, s].numpy(), k, eps[b, s].numpy(), (2, 0), episodic)
    torch.testing.assert_close(value.double(), torch.as_tensor(expected), rtol=5e-4, atol=1e-3)
    assert expected.std() > 0.1


def test_prior_sequences_follow_the_policy_through_the_model(
    make_agent: Callable[..., TDMPC2], plain_model: type
) -> None:
    agent = make_agent("multi")
    plain, tasks = plain_model(agent.model), torch.tensor([2, 0])
    noise = torch.randn(3, 2, 4, 3, generator=generator())
    z = agent.model.encode(observe(agent, 2), tasks)
    with torch.no_grad():
        sequences, _ = roll_out_prior(agent.model, z, tasks[:, None], noise)
    assert sequences.shape == (2, 4, 3, 3)
    for b in range(2):
        for p in range(4):
            state = z[b].detach().double().numpy()
            for t in range(3):
                action = plain.pi(state, int(tasks[b]), noise[t, b, p].double().numpy())[0]
                torch.testing.assert_close(sequences[b, p, t].double(), torch.as_tensor(action), rtol=1e-3, atol=1e-4)
                state = plain.next(state, action, int(tasks[b]))


# --- work that is shared or spared


COMPILING = [
    "none",
    pytest.param("kernels", marks=pytest.mark.skipif(not kernels.available(), reason=kernels.load().reason)),
]


def states_and_actions(agent: TDMPC2, batch: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Latent states (B, L), sequences (B, S, H, A) and, for a multi-task agent, ids (B, 1)."""
    ids = torch.arange(batch)[:, None] % 3 if agent.spec.multitask else None
    with torch.no_grad():
        z = agent.model.encode(observe(agent, batch), None if ids is None else ids[:, 0])
    actions = torch.rand(batch, count, 3, agent.spec.action_dim, generator=generator(1)) * 2 - 1
    return z, actions, ids


@pytest.mark.parametrize("compiling", COMPILING)
@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("kind", ["single", "multi"])
def test_many_actions_from_one_state_lead_where_each_leads_alone(
    kind: str, count: int, compiling: str, make_agent: Callable[..., TDMPC2]
) -> None:
    agent = make_agent(kind, compile=compiling)
    z, actions, ids = states_and_actions(agent, 3, count)
    together, alone = z[:, None], z[:, None].expand(3, count, -1)
    with torch.no_grad():
        for network in (agent.model.next, agent.model.reward):
            got, expected = network(together, actions[:, :, 0], ids), network(alone, actions[:, :, 0], ids)
            assert got.shape == expected.shape
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert count < 2 or not torch.allclose(expected[:, 0], expected[:, 1], atol=1e-3)


@pytest.mark.parametrize("compiling", COMPILING)
@pytest.mark.parametrize("prior", [0, 1, 4, 6])
@pytest.mark.parametrize(("kind", "episodic"), [("single", False), ("multi", True)])
def test_knowing_where_the_priors_sequences_lead_changes_no_value(
    kind: str, episodic: bool, prior: int, compiling: str, make_agent: Callable[..., TDMPC2]
) -> None:
    agent = make_agent(kind, episodic=episodic, compile=compiling)
    z, actions, ids = states_and_actions(agent, 3, 6)
    noise = torch.randn(3, 3, prior, agent.spec.action_dim, generator=generator(2))
    last = torch.randn(3, 6, agent.spec.action_dim, generator=generator(3))
    members = torch.tensor([1, 0])
    with torch.no_grad():
        proposals, known = roll_out_prior(agent.model, z, ids, noise)
        assert proposals.shape == (3, prior, 3, agent.spec.action_dim)
        assert known.z.shape == (3, prior, 16)
        assert known.rewards.shape == known.factor.shape == (3, prior, 1)
        actions = torch.cat([proposals, actions[:, prior:]], dim=1)
        with_it = estimate_value(agent.model, z, actions, ids, last, members, known)
        without = estimate_value(agent.model, z, actions, ids, last, members)
    assert with_it.shape == (3, 6)
    torch.testing.assert_close(with_it, without, rtol=1e-3, atol=1e-3)


def test_before_its_first_action_a_sequence_has_no_reward_and_counts_in_full() -> None:
    z = torch.rand(2, 16)
    begin = begin_roll_out(z, 5)
    assert torch.equal(begin.z[:, 0], z)
    assert (begin.rewards == 0).all()
    assert (begin.factor == 1).all()
    assert begin.rewards.shape == begin.factor.shape == (2, 5, 1)


# --- whole plans


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_a_whole_plan_agrees_with_a_plain_loop(kind: str, make_agent: Callable[..., TDMPC2], plain_model: type) -> None:
    S, E, P, H, N = 12, 4, 3, 3, 3
    agent = make_agent(kind, num_samples=S, num_elites=E, num_pi_trajs=P, iterations=N)
    model, plain, A = agent.model, plain_model(agent.model), agent.spec.action_dim
    task = torch.tensor([2]) if kind == "multi" else None
    k = None if task is None else 2
    obs, previous = observe(agent, 1), torch.rand(1, H, A, generator=generator(3)) * 2 - 1
    noise = draw_plan_noise(model, 1, False, generator(4))
    with torch.no_grad():
        action, mean, valid = plan(model, obs, previous, torch.tensor([False]), task, noise)

    draws = {name: value.double().numpy() for name, value in noise._asdict().items() if value is not None}
    z0, mask = plain.encode(obs[0].numpy(), k), plain.mask(k)
    proposals = np.zeros((P, H, A))
    for p in range(P):
        z = z0
        for t in range(H):
            proposals[p, t] = plain.pi(z, k, draws["prior"][t, 0, p])[0]
            z = plain.next(z, proposals[p, t], k)
    m = np.concatenate([previous[0, 1:].numpy(), np.zeros((1, A))])
    std = np.full((H, A), 2.0)
    for i in range(N):
        sampled = [np.clip(m + std * draws["samples"][i, :, 0, s], -1, 1) for s in range(S - P)]
        actions = np.concatenate([proposals, sampled]) * mask
        pair = noise.members[i].tolist()
        values = np.array(
            [plain_value(plain, z0, actions[s], k, draws["last"][i, 0, s], pair, False) for s in range(S)]
        )
        elites = np.argsort(-values)[:E]
        weights = np.exp(0.5 * (values[elites] - values[elites].max()))
        weights /= weights.sum()
        m = sum(w * actions[e] for w, e in zip(weights, elites, strict=True)) * mask
        variance = sum(w * (actions[e] - m) ** 2 for w, e in zip(weights, elites, strict=True))
        std = np.clip(np.sqrt(variance), 0.05, 2) * mask
    # The draw of one elite: the largest weight / Exp(1).
    chosen = elites[np.argmax(weights / draws["choice"][0])]
    expected = np.clip(actions[chosen, 0] + std[0] * draws["explore"][0], -1, 1)

    torch.testing.assert_close(mean[0].double(), torch.as_tensor(m), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(action[0].double(), torch.as_tensor(expected), rtol=1e-3, atol=1e-3)
    assert valid


def test_a_batch_of_different_tasks_plans_for_each_as_if_it_were_alone(make_agent: Callable[..., TDMPC2]) -> None:
    agent = make_agent("multi", iterations=2)
    obs, tasks, first = observe(agent, 3), torch.tensor([2, 0, 1]), torch.tensor([True, False, False])
    previous = torch.rand(3, 3, 3, generator=generator(3)) * 2 - 1
    noise = draw_plan_noise(agent.model, 3, False, generator())
    with torch.no_grad():
        together = plan(agent.model, obs, previous, first, tasks, noise)
        for b in range(3):
            row = slice(b, b + 1)
            alone = plan(agent.model, obs[row], previous[row], first[row], tasks[row], rows_of(noise, row))
            torch.testing.assert_close(together[0][row], alone[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together[1][row], alone[1], rtol=1e-4, atol=1e-4)


def test_planning_is_a_pure_function_of_its_noise(make_agent: Callable[..., TDMPC2]) -> None:
    agent = make_agent()
    obs, previous, first = observe(agent, 2), torch.zeros(2, 3, 2), torch.tensor([True, True])
    noise = draw_plan_noise(agent.model, 2, False, generator())
    random_state = torch.get_rng_state()
    with torch.no_grad():
        once = plan(agent.model, obs, previous, first, None, noise)
        again = plan(agent.model, obs, previous, first, None, noise)
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (previous == 0).all()


def test_a_first_step_forgets_the_previous_plan_and_only_its_own(make_agent: Callable[..., TDMPC2]) -> None:
    agent = make_agent()
    obs, noise = observe(agent, 2), draw_plan_noise(agent.model, 2, True, generator())
    previous = torch.tensor([0.9, -0.9]).expand(2, 3, 2)
    with torch.no_grad():
        mixed = plan(agent.model, obs, previous, torch.tensor([True, False]), None, noise)[1]
        void = plan(agent.model, obs, torch.zeros(2, 3, 2), torch.tensor([False, False]), None, noise)[1]
        warm = plan(agent.model, obs, previous, torch.tensor([False, False]), None, noise)[1]
    assert torch.equal(mixed[0], void[0])
    assert torch.equal(mixed[1], warm[1])
    assert not torch.equal(warm[0], void[0])


@pytest.mark.parametrize("eval_mode", [False, True])
def test_actions_stay_in_range_and_masked_dims_are_exactly_zero(
    eval_mode: bool, make_agent: Callable[..., TDMPC2]
) -> None:
    agent = make_agent("multi", min_std=1.5, iterations=2)  # wide: without clipping, actions would leave the range
    tasks = torch.arange(30) % 3
    noise = draw_plan_noise(agent.model, 30, eval_mode, generator())
    with torch.no_grad():
        action, mean, _ = plan(
            agent.model, observe(agent, 30), torch.ones(30, 3, 3), torch.zeros(30).bool(), tasks, noise
        )
    own = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])[tasks]
    assert (action[~own] == 0).all()
    assert (mean.transpose(1, 2)[~own] == 0).all()
    assert action.abs().max() <= 1
    assert (action[own].abs() > 0).all()


# --- planning with known values


def plan_with_values(
    monkeypatch: pytest.MonkeyPatch, agent: TDMPC2, values: torch.Tensor, noise: PlanNoise, batch: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A plan where sample s has value `values[s]`; returns (action, mean, valid) and the last samples (B, S, H, A)."""
    seen: dict[str, torch.Tensor] = {}

    def value(model: WorldModel, z: torch.Tensor, actions: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen["actions"] = actions
        return values.expand(batch, -1)

    monkeypatch.setattr(planner, "estimate_value", value)
    obs = observe(agent, 1).expand(batch, -1)
    with torch.no_grad():
        result = plan(agent.model, obs, torch.zeros(batch, 3, 2), torch.ones(batch).bool(), None, noise)
    return (*result, seen["actions"])


FEW: Mapping[str, int] = {"num_samples": 4, "num_elites": 2, "num_pi_trajs": 1, "iterations": 1}


def test_the_action_is_an_elite_drawn_by_its_weight(
    monkeypatch: pytest.MonkeyPatch, make_agent: Callable[..., TDMPC2]
) -> None:
    agent, batch = make_agent(**FEW), 4000
    noise = draw_plan_noise(agent.model, batch, True, generator())
    same = {name: getattr(noise, name)[..., :1, :, :].expand_as(getattr(noise, name)) for name in ("prior", "samples")}
    # The best two are samples 2 and 0; softmax(0.5 x difference): 2 log 3 apart, so 3/4 and 1/4.
    values = torch.tensor([5.0, -3.0, 5.0 + 2 * float(np.log(3)), 4.0])
    action, mean, _, actions = plan_with_values(monkeypatch, agent, values, noise._replace(**same), batch)
    candidates = actions[0, :, 0]
    drawn = [int((action == candidate).all(dim=1).sum()) for candidate in candidates]
    assert drawn[1] == drawn[3] == 0
    assert drawn[0] + drawn[2] == batch
    assert drawn[2] == pytest.approx(3000, abs=100)  # standard deviation 27
    torch.testing.assert_close(mean[0], 0.75 * actions[0, 2] + 0.25 * actions[0, 0])


def test_exploration_adds_noise_of_the_plans_first_standard_deviation_and_evaluation_none(
    monkeypatch: pytest.MonkeyPatch, make_agent: Callable[..., TDMPC2]
) -> None:
    agent = make_agent(**FEW)
    noise = draw_plan_noise(agent.model, 1, True, generator())
    values = torch.tensor([0.0, 7.0, 7.0, 0.0])  # samples 1 and 2, equally
    greedy, _, _, actions = plan_with_values(monkeypatch, agent, values, noise)
    assert any(torch.equal(greedy[0], actions[0, s, 0]) for s in (1, 2))
    # Of two equally weighted numbers the standard deviation is half their distance, here at least 0.05.
    std = ((actions[0, 1, 0] - actions[0, 2, 0]).abs() / 2).clamp_min(0.05)
    noisy = plan_with_values(monkeypatch, agent, values, noise._replace(explore=torch.tensor([[0.3, -0.4]])))[0]
    torch.testing.assert_close(noisy[0], (greedy[0] + std * torch.tensor([0.3, -0.4])).clamp(-1, 1))
    far = plan_with_values(monkeypatch, agent, values, noise._replace(explore=torch.tensor([[99.0, -99.0]])))[0]
    assert far.tolist() == [[1.0, -1.0]]


def test_a_value_that_is_not_a_number_counts_as_zero(
    monkeypatch: pytest.MonkeyPatch, make_agent: Callable[..., TDMPC2]
) -> None:
    agent = make_agent(**(FEW | {"num_elites": 1}))
    noise, nan = draw_plan_noise(agent.model, 1, True, generator()), float("nan")
    action, _, valid, actions = plan_with_values(monkeypatch, agent, torch.tensor([-2.0, -1.0, nan, -3.0]), noise)
    assert torch.equal(action[0], actions[0, 2, 0])  # 0 is the best of -2, -1, 0, -3
    assert valid
    action, _, valid, actions = plan_with_values(monkeypatch, agent, torch.tensor([-2.0, 0.5, nan, -3.0]), noise)
    assert torch.equal(action[0], actions[0, 1, 0])  # and 0 is not better than 0.5
    assert valid


def test_a_plan_whose_values_are_all_nan_is_marked_as_invalid(
    monkeypatch: pytest.MonkeyPatch, make_agent: Callable[..., TDMPC2]
) -> None:
    agent = make_agent(**FEW)
    noise = draw_plan_noise(agent.model, 1, True, generator())
    assert not plan_with_values(monkeypatch, agent, torch.full((4,), float("nan")), noise)[2]


def test_a_plan_with_an_action_that_is_not_a_number_is_marked_as_invalid(
    monkeypatch: pytest.MonkeyPatch, make_agent: Callable[..., TDMPC2]
) -> None:
    agent = make_agent(**FEW)
    noise = draw_plan_noise(agent.model, 1, True, generator())
    broken = noise._replace(prior=torch.full_like(noise.prior, float("nan")))
    # The policy's sequence is NaN; its value counts as 0, which is better than -1: it becomes an elite.
    values = torch.tensor([float("nan"), -1.0, -1.0, -1.0])
    assert not plan_with_values(monkeypatch, agent, values, broken)[2]


@pytest.mark.parametrize("prior", [0, 32])
def test_planning_works_without_and_with_nothing_but_prior_sequences(
    prior: int, make_agent: Callable[..., TDMPC2]
) -> None:
    action = make_agent(num_pi_trajs=prior).act(torch.zeros(2, 3), True)
    assert action.shape == (2, 2)
    assert torch.isfinite(action).all()
