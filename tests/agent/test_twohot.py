"""Two-hot regression against values worked out by hand: bins are -10, -9.8, ..., 10 in symlog space."""

from __future__ import annotations

import math

import pytest
import torch

from tdmpc2.agent.twohot import TwoHot, symexp, symlog


@pytest.fixture
def two_hot() -> TwoHot:
    return TwoHot(101, -10.0, 10.0)


def scalar(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.0, 0.0),
        (1.0, 0.6931472),  # log 2
        (-1.0, -0.6931472),
        (99.0, 4.6051702),  # log 100
        (1e-8, 1e-8),  # log(1 + x) = x near 0: no cancellation
        (-22025.4658, -10.0),  # e^10 = 22026.4658
    ],
)
def test_symlog_is_signed_log_of_one_plus_magnitude(x: float, expected: float) -> None:
    assert symlog(torch.tensor(x)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("x", "expected"), [(0.0, 0.0), (0.6931472, 1.0), (-4.6051702, -99.0), (10.0, 22025.4658), (1e-8, 1e-8)]
)
def test_symexp_is_the_inverse_of_symlog(x: float, expected: float) -> None:
    assert symexp(torch.tensor(x)).item() == pytest.approx(expected, rel=1e-5)


def test_symexp_undoes_symlog_over_ten_orders_of_magnitude() -> None:
    x = torch.cat([-torch.logspace(-5, 5, 41), torch.zeros(1), torch.logspace(-5, 5, 41)]).double()
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-12, atol=0)


# symlog(e^s - 1) = s, so the scalar e^s - 1 lies at position (s + 10) / 0.2 among the bins.
@pytest.mark.parametrize(
    ("x", "weights"),
    [
        (0.0, {50: 1.0}),
        (math.expm1(0.2), {51: 1.0}),
        (-math.expm1(0.2), {49: 1.0}),
        (math.expm1(0.25), {51: 0.75, 52: 0.25}),  # position 51.25
        (-math.expm1(0.25), {48: 0.25, 49: 0.75}),  # position 48.75
        (1.0, {53: 0.5342641, 54: 0.4657359}),  # log 2 = 0.6931472, position 53.4657359
        (math.expm1(9.9), {99: 0.5, 100: 0.5}),
        (math.expm1(10), {100: 1.0}),
        (-math.expm1(10), {0: 1.0}),
        (1e9, {100: 1.0}),
        (-1e9, {0: 1.0}),
    ],
)
def test_encode_spreads_a_scalar_over_its_two_neighbouring_bins(
    two_hot: TwoHot, x: float, weights: dict[int, float]
) -> None:
    expected = torch.zeros(101)
    for index, weight in weights.items():
        expected[index] = weight
    encoded = two_hot.encode(scalar(x))
    assert encoded.shape == (1, 101)
    torch.testing.assert_close(encoded[0], expected, rtol=0, atol=2e-5)  # positions near 100 carry 1e-5 in float32


def test_an_exact_hit_on_the_last_bin_is_a_valid_distribution(two_hot: TwoHot) -> None:
    x = scalar(math.expm1(10.0), 1e30, -math.expm1(10.0), -1e30)  # the ends, and beyond: all weight on the end bin
    encoded = two_hot.encode(x)
    assert encoded.argmax(-1).tolist() == [100, 100, 0, 0]
    assert (encoded >= 0).all()
    torch.testing.assert_close(encoded.sum(-1), torch.ones(4), rtol=0, atol=1e-6)


def test_every_encoding_is_a_distribution_over_at_most_two_bins(two_hot: TwoHot) -> None:
    x = torch.linspace(-9.99, 9.99, 1999).double()
    encoded = two_hot.encode(symexp(x).float()[:, None])
    assert (encoded >= 0).all()
    torch.testing.assert_close(encoded.sum(-1), torch.ones(len(x)), rtol=0, atol=1e-5)
    assert ((encoded > 1e-4).sum(-1) <= 2).all()


@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_never_encoded_as_one(two_hot: TwoHot, x: float) -> None:
    encoded = two_hot.encode(scalar(1.0, x))
    assert encoded[1].isnan().all()
    assert torch.isfinite(encoded[0]).all()


def test_decode_takes_the_expectation_in_symlog_space(two_hot: TwoHot) -> None:
    logits = torch.full((3, 101), -1e4)
    logits[0, 60] = 0.0  # bin 60 is 2: e^2 - 1
    logits[1, [55, 60]] = torch.tensor([math.log(3.0), 0.0])  # 3/4 of 1 and 1/4 of 2 is 1.25: e^1.25 - 1
    logits[2, 45] = 7.0  # bin 45 is -1: 1 - e
    expected = scalar(6.3890561, 2.4903430, -1.7182818)
    torch.testing.assert_close(two_hot.decode(logits), expected, rtol=1e-5, atol=0)


def test_equal_logits_decode_to_zero(two_hot: TwoHot) -> None:
    decoded = two_hot.decode(torch.full((2, 3, 101), 5.0))
    torch.testing.assert_close(decoded, torch.zeros(2, 3, 1), rtol=0, atol=1e-5)


def test_decoding_the_log_of_an_encoding_gives_the_scalar_back(two_hot: TwoHot) -> None:
    x = torch.tensor([-20000.0, -345.6, -1.0, -0.01, 0.0, 0.3, 2.0, 77.7, 5000.0, 22000.0])[:, None]
    logits = two_hot.encode(x).log().clamp_min(-1e4)
    torch.testing.assert_close(two_hot.decode(logits), x, rtol=2e-5, atol=1e-5)


def test_decode_of_bfloat16_logits_keeps_float32_precision(two_hot: TwoHot) -> None:
    assert two_hot.decode(torch.zeros(1, 101, dtype=torch.bfloat16)).dtype == torch.float32


def test_cross_entropy_by_hand(two_hot: TwoHot) -> None:
    small = TwoHot(3, -1.0, 1.0)  # bins -1, 0, 1
    logits = torch.tensor([[0.0, math.log(2.0), math.log(5.0)]])  # probabilities 1/8, 2/8, 5/8
    weights = torch.tensor([[0.0, 0.25, 0.75]])
    # -(0.25 log(1/4) + 0.75 log(5/8)) = 0.3465736 + 0.3525027
    assert small.cross_entropy(logits, weights).item() == pytest.approx(0.6990763, rel=1e-6)
    # Equal logits: log 101, whatever the target.
    uniform = two_hot.cross_entropy(torch.zeros(101), two_hot.encode(torch.tensor([3.7])))
    assert uniform.item() == pytest.approx(4.6151205, rel=1e-5)


def test_cross_entropy_broadcasts_one_target_over_an_ensemble() -> None:
    small = TwoHot(3, -1.0, 1.0)
    logits = torch.randn(5, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    weights = small.encode(torch.tensor([[0.1, -0.2, 0.3, 0.4], [0.5, 0.6, -5.0, 5.0]])[..., None])
    together = small.cross_entropy(logits, weights)
    assert together.shape == (5, 2, 4)
    for m in range(5):
        torch.testing.assert_close(together[m], small.cross_entropy(logits[m], weights))
