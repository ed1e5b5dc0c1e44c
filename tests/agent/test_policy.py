"""The squashed Gaussian policy and the discounts, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.policy import bound_log_std, discount, squashed_gaussian


def test_log_prob_entropy_and_scaled_entropy_without_masks() -> None:
    info = squashed_gaussian(
        mean=torch.tensor([[0.5, -0.2]]),
        log_std=torch.tensor([[0.0, -math.log(2.0)]]),
        eps=torch.tensor([[1.0, -2.0]]),
        action_dims=2,
    )
    # Before the tanh: 0.5 + 1 x 1 = 1.5 and -0.2 - 2 x 0.5 = -1.2.
    torch.testing.assert_close(info["action"], torch.tensor([[0.9051483, -0.8336546]]))
    torch.testing.assert_close(info["mean"], torch.tensor([[0.4621172, -0.1973753]]))  # tanh(0.5), tanh(-0.2)
    # Gaussian: (-1/2 - 0) + (-4/2 + log 2) - 2 x 0.9189385 = -3.6447299.
    # log(1 - a^2 + 1e-6): log 0.1807076 = -1.7108748 and log 0.3050210 = -1.1873747.
    # log-prob = -3.6447299 + 2.8982495 = -0.7464804
    assert info["entropy"].item() == pytest.approx(0.7464804, abs=2e-6)
    assert info["scaled_entropy"].item() == pytest.approx(7.2894598, rel=1e-5)  # -(-3.6447299 x 2 dims)


def test_log_prob_entropy_and_scaled_entropy_with_a_mask() -> None:
    # One own dim of three. Masked dims have mean, log_std and eps 0: each adds -0.9189385 to the Gaussian part.
    info = squashed_gaussian(
        mean=torch.tensor([0.5, 0.0, 0.0]),
        log_std=torch.zeros(3),
        eps=torch.tensor([1.0, 0.0, 0.0]),
        action_dims=torch.tensor([1.0]),
    )
    assert info["action"].tolist()[1:] == [0.0, 0.0]
    # Gaussian: -1/2 - 3 x 0.9189385 = -3.2568156; tanh terms -1.7108748 + 2 log(1 + 1e-6) = -1.7108728
    assert info["entropy"].item() == pytest.approx(1.5459428, abs=2e-6)
    assert info["scaled_entropy"].item() == pytest.approx(3.2568156, rel=1e-5)  # times 1 own dim, not 3


def test_the_models_policy_masks_mean_log_std_and_noise_of_each_task(make_agent: Callable[..., TDMPC2]) -> None:
    model = make_agent("multi").model
    last = model._pi[-1]
    with torch.no_grad():  # a policy that ignores its input: mean 0.3 and raw log-std 0 everywhere
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.3, 0.3, 0.3, 0.0, 0.0, 0.0]))
    eps = torch.tensor([[2.0, -1.0, 5.0]]).repeat(3, 1)
    action, info = model.pi(torch.zeros(3, 16), torch.tensor([0, 1, 2]), eps)
    # log_std = -10 + 12/2 (0 + 1) = -4, std = 0.0183156: tanh(0.3 + 2 std), tanh(0.3 - std), tanh(0.3 + 5 std)
    own = torch.tensor([math.tanh(0.3 + e * math.exp(-4)) for e in (2.0, -1.0, 5.0)])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    torch.testing.assert_close(action, own * mask)
    assert (action[mask == 0] == 0).all()
    torch.testing.assert_close(info["mean"], math.tanh(0.3) * mask)
    torch.testing.assert_close(info["log_std"], -4 * mask)
    # Gaussian part: own dims -eps^2/2 + 4, all three dims -0.9189385; times 3, 1 and 2 own dims.
    gaussian = torch.tensor([12 - 15, 4 - 2, 8 - 2.5]) - 3 * 0.9189385
    expected = -gaussian * torch.tensor([3.0, 1.0, 2.0])
    torch.testing.assert_close(info["scaled_entropy"].squeeze(-1), expected, rtol=1e-4, atol=1e-4)


def test_a_saturated_action_has_finite_log_prob_and_gradient() -> None:
    mean = torch.tensor([60.0], requires_grad=True)
    info = squashed_gaussian(mean, torch.zeros(1), torch.zeros(1), 1)
    # a = 1: relu(0) + 1e-6, so the tanh term is -log 1e-6 = 13.8155106; -0.9189385 + 13.8155106
    assert -info["entropy"].item() == pytest.approx(12.8965721, rel=1e-6)
    info["scaled_entropy"].sum().backward()
    assert torch.isfinite(mean.grad).all()


def test_log_std_is_squashed_between_its_bounds() -> None:
    raw = torch.tensor([-1e9, 0.0, 1.0, 1e9])
    # -10 + 6 (tanh(1) + 1) = -4 + 6 x 0.7615942
    torch.testing.assert_close(bound_log_std(raw, -10.0, 2.0), torch.tensor([-10.0, -4.0, 0.5695650, 2.0]))


def test_a_policy_without_given_noise_samples_and_zero_noise_gives_the_deterministic_action(
    make_agent: Callable[..., TDMPC2],
) -> None:
    model, z = make_agent().model, torch.rand(5, 16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = model.pi(z)[0], model.pi(z)[0]
    assert not torch.equal(first, second)
    action, info = model.pi(z, eps=torch.zeros(5, 2))
    torch.testing.assert_close(action, info["mean"])


def test_the_planners_short_cut_gives_the_policys_action(make_agent: Callable[..., TDMPC2]) -> None:
    for kind, task in (("single", None), ("multi", torch.tensor([2, 0, 1, 1]))):
        model = make_agent(kind).model
        z, eps = torch.rand(4, 16), torch.randn(4, model.spec.action_dim)
        assert torch.equal(model.pi_action(z, task, eps), model.pi(z, task, eps)[0])


@pytest.mark.parametrize(
    ("episode_length", "expected"),
    [
        (500, 0.99),  # 100 -> 99/100
        (100, 0.95),  # 20 -> 19/20
        (150, 0.9666667),  # 30 -> 29/30
        (250, 0.98),
        (1000, 0.995),
        (5000, 0.995),  # 0.999, clipped
        (99, 0.95),
        (5, 0.95),  # 0, clipped
        (1, 0.95),  # -4, clipped
    ],
)
def test_discount_follows_the_episode_length(episode_length: int, expected: float) -> None:
    assert discount(episode_length) == pytest.approx(expected, abs=1e-7)


def test_each_task_has_its_own_discount_and_mask(make_agent: Callable[..., TDMPC2]) -> None:
    model = make_agent("multi").model
    task = torch.tensor([2, 0, 1, 0])
    torch.testing.assert_close(model.discount(task), torch.tensor([[0.995], [0.99], [0.95], [0.99]]))
    assert model.action_mask(task).tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]]
    single = make_agent().model
    assert single.discount(None).tolist() == pytest.approx([0.99])
    assert single.action_mask(None).tolist() == [1, 1]
