"""The benchmark's baseline computes what the agent computes: each checks the other."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same_life import perturb

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.learning import Batch, UpdateNoise, draw_update_noise
from tdmpc2.agent.planner import draw_plan_noise, plan
from tdmpc2.config import Config
from tdmpc2.spec import AgentSpec

METRICS = {
    *("consistency_loss", "reward_loss", "value_loss", "total_loss", "grad_norm"),
    *("pi_loss", "pi_entropy", "pi_scaled_entropy", "pi_scale", "pi_grad_norm"),
}


@pytest.fixture(scope="module")
def baseline_of() -> Callable[[TDMPC2], Any]:
    """The class, loaded from its file: scripts/ is no package."""
    path = Path(__file__).parents[2] / "scripts" / "baseline.py"
    spec = importlib.util.spec_from_file_location("baseline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Baseline


def walker_of_size_1(**changes: Any) -> TDMPC2:
    spec = AgentSpec(obs_shape=(24,), action_dims=(6,), episode_lengths=(500,), tasks=("walker-walk",))
    return perturb(TDMPC2(Config(task="walker-walk", model_size=1, device="cpu", **changes), spec))


def random_batch(agent: TDMPC2, size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    H, A = agent.config.horizon, agent.spec.action_dim
    return {
        "obs": torch.randn(H + 1, size, *agent.spec.obs_shape, generator=draw),
        "action": torch.rand(H, size, A, generator=draw) * 2 - 1,
        "reward": torch.randn(H, size, 1, generator=draw) * 3,
        "terminated": (torch.rand(H, size, 1, generator=draw) < 0.3).float(),
    }


def check_plans_agree(agent: TDMPC2, baseline: Any, eval_mode: bool) -> None:
    """Three steps of an episode, each warm-started by the agent's plan of the one before."""
    draw = torch.Generator().manual_seed(1)
    mean = torch.full((agent.config.horizon, agent.spec.action_dim), 0.5)  # void at the first step
    for step in range(3):
        obs = torch.randn(*agent.spec.obs_shape, generator=draw)
        noise = draw_plan_noise(agent.model, 1, eval_mode, draw)
        with torch.no_grad():
            expected = plan(agent.model, obs[None], mean[None], torch.tensor([step == 0]), None, noise)
        action, own_mean = baseline.act(obs, mean, step == 0, noise)
        torch.testing.assert_close(action, expected[0][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(own_mean, expected[1][0], rtol=1e-4, atol=1e-4)
        mean = expected[1][0]


def next_noise(agent: TDMPC2, size: int) -> UpdateNoise:
    """The noise that the agent's next update on `size` sequences is going to draw."""
    draw = torch.Generator()
    draw.set_state(agent.state_dict()["generator"])
    return draw_update_noise(agent.model, size, draw)


def check_updates_agree(agent: TDMPC2, baseline: Any, size: int, updates: int) -> None:
    start = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    for i in range(updates):
        batch = random_batch(agent, size, seed=i)
        noise = next_noise(agent, size)
        expected = agent.update(batch)
        own = baseline.update(Batch.from_mapping(batch, torch.device("cpu")), noise)
        assert set(own) == METRICS
        for name in METRICS:
            assert own[name].item() == pytest.approx(expected[name].item(), rel=1e-4, abs=1e-6), name
    end, own_weights = agent.model.state_dict(), baseline.weights()
    assert set(own_weights) == set(end)
    for name in end:  # held against how far the weights moved, not against how large they are
        moved, difference = (end[name] - start[name]).norm(), (own_weights[name] - end[name]).norm()
        assert moved > 0, name
        assert difference < 1e-3 * moved, f"{name}: off by {difference / moved:.2%} of the way"


@pytest.mark.parametrize("eval_mode", [False, True])
def test_baseline_plans_as_the_agent_does(
    make_agent: Callable[..., TDMPC2], baseline_of: Callable[[TDMPC2], Any], eval_mode: bool
) -> None:
    agent = perturb(make_agent(fresh=True))
    check_plans_agree(agent, baseline_of(agent), eval_mode)


def test_baseline_plans_as_the_agent_does_at_a_real_size(baseline_of: Callable[[TDMPC2], Any]) -> None:
    agent = walker_of_size_1()
    check_plans_agree(agent, baseline_of(agent), eval_mode=False)


def test_large_action_spaces_get_two_more_iterations_in_both(
    make_config: Callable[..., Config], baseline_of: Callable[[TDMPC2], Any]
) -> None:
    spec = AgentSpec(obs_shape=(3,), action_dims=(20,), episode_lengths=(500,), tasks=("humanoid-walk",))
    agent = perturb(TDMPC2(make_config(task="humanoid-walk", iterations=2), spec))
    check_plans_agree(agent, baseline_of(agent), eval_mode=False)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_baseline_learns_as_the_agent_does(
    make_agent: Callable[..., TDMPC2], baseline_of: Callable[[TDMPC2], Any], dropout: float
) -> None:
    agent = make_agent(dropout=dropout)
    check_updates_agree(agent, baseline_of(agent), size=8, updates=5)
    assert agent.state_dict()["scale"] > 1  # values spread widely enough for the running scale to count


def test_baseline_learns_as_the_agent_does_at_a_real_size(baseline_of: Callable[[TDMPC2], Any]) -> None:
    agent = walker_of_size_1()
    check_updates_agree(agent, baseline_of(agent), size=16, updates=3)


def test_baseline_has_weights_of_its_own(
    make_agent: Callable[..., TDMPC2], baseline_of: Callable[[TDMPC2], Any]
) -> None:
    agent = make_agent()
    before = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    scale = agent.state_dict()["scale"].clone()
    baseline = baseline_of(agent)
    for name, tensor in baseline.weights().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    baseline.update(Batch.from_mapping(random_batch(agent, 4), torch.device("cpu")))
    for name, tensor in agent.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    torch.testing.assert_close(agent.state_dict()["scale"], scale, rtol=0, atol=0)


def test_without_noise_the_baseline_draws_its_own(
    make_agent: Callable[..., TDMPC2], baseline_of: Callable[[TDMPC2], Any]
) -> None:
    agent = make_agent(dropout=0.5)
    batch = Batch.from_mapping(random_batch(agent, 4), torch.device("cpu"))
    obs, mean = torch.randn(3, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 2)

    def outcome(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            baseline = baseline_of(agent)
            action, plan_mean = baseline.act(obs, mean, True)
            assert action.shape == (2,)
            assert plan_mean.shape == (3, 2)
            assert action.abs().max() <= 1
            metrics = baseline.update(batch)
            return action, metrics["value_loss"], metrics["pi_loss"]

    first, same, other = outcome(0), outcome(0), outcome(1)
    for a, b, c in zip(first, same, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert not torch.equal(a, c)


def test_own_dropout_acts_in_updates_and_never_in_plans(
    make_agent: Callable[..., TDMPC2], baseline_of: Callable[[TDMPC2], Any]
) -> None:
    def outcome(dropout: float) -> tuple[torch.Tensor, torch.Tensor]:
        agent = make_agent(dropout=dropout)  # the same weights each time
        baseline = baseline_of(agent)
        batch = Batch.from_mapping(random_batch(agent, 4), torch.device("cpu"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the TD targets are drawn before any dropout: they are the same
            action, _ = baseline.act(torch.ones(3), torch.zeros(3, 2), True)
            return baseline.update(batch)["value_loss"], action

    (without, plan_without), (dropped, plan_dropped) = outcome(0.0), outcome(0.5)
    assert without != dropped
    torch.testing.assert_close(plan_without, plan_dropped, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "changes"), [("multi", {}), ("rgb", {}), ("single", {"episodic": True})])
def test_other_kinds_of_agent_are_refused(
    make_agent: Callable[..., TDMPC2], baseline_of: Callable[[TDMPC2], Any], kind: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="single-task"):
        baseline_of(make_agent(kind, **changes))
