"""The networks' building blocks against formulas written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from tdmpc2.agent import kernels
from tdmpc2.agent.layers import Ensemble, Mish, NormedLinear, PixelEncoder, SimNorm, mish, mlp, shift_images

built = pytest.mark.skipif(not kernels.available(), reason=kernels.load().reason)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- SimNorm


def test_simnorm_is_a_softmax_over_each_group_of_eight() -> None:
    # Group 1: one entry of log 9 among seven zeros: 9/16 and 1/16. Group 2: all equal: 1/8.
    x = torch.tensor([0.0, 0.0, math.log(9.0), 0.0, 0.0, 0.0, 0.0, 0.0] + [3.0] * 8)
    expected = torch.tensor([1 / 16] * 2 + [9 / 16] + [1 / 16] * 5 + [1 / 8] * 8)
    torch.testing.assert_close(SimNorm(8)(x), expected)


def test_simnorm_keeps_leading_axes_and_groups_neighbours_only() -> None:
    x = draw(2, 3, 16)
    y = SimNorm(8)(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y[..., :8].sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(y[..., 8:].sum(-1), torch.ones(2, 3))
    changed = x.clone()
    changed[..., 8:] += draw(2, 3, 8, seed=1)
    assert torch.equal(SimNorm(8)(changed)[..., :8], y[..., :8])


# --- Mish


def mish_by_formula(x: float) -> tuple[float, float]:
    """x tanh(softplus(x)) and its slope tanh(s) + x sigmoid(x) / cosh(s)^2, without overflow."""
    softplus = max(x, 0.0) + math.log1p(math.exp(-abs(x)))
    sigmoid = 1 / (1 + math.exp(-x))
    return x * math.tanh(softplus), math.tanh(softplus) + x * sigmoid / math.cosh(softplus) ** 2


def test_mish_and_its_slope_follow_the_formula_in_float64() -> None:
    x = torch.linspace(-40, 60, 2001, dtype=torch.float64, requires_grad=True)
    expected = [mish_by_formula(value) for value in x.tolist()]
    y = mish(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, torch.tensor([e[0] for e in expected], dtype=torch.float64), rtol=1e-11, atol=0)
    slopes = torch.tensor([e[1] for e in expected], dtype=torch.float64)
    torch.testing.assert_close(slope, slopes, rtol=1e-11, atol=1e-15)


def test_mish_in_float32_is_right_to_float_precision_at_every_scale() -> None:
    x = torch.cat([torch.linspace(-80, 80, 3201), torch.tensor([0.0, 1e-30, -1e-30, 1e4, 1e8])]).requires_grad_()
    y = mish(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    exact = x.detach().double().requires_grad_()
    y64 = F.mish(exact)
    (slope64,) = torch.autograd.grad(y64.sum(), exact)
    # torch's own float64 Mish loses the far negative tail (tanh of a tiny softplus), so compare to 1e-15 there.
    torch.testing.assert_close(y.double(), y64, rtol=1e-6, atol=1e-15)
    torch.testing.assert_close(slope.double(), slope64, rtol=1e-5, atol=1e-7)


def test_mish_known_values() -> None:
    # mish(1) = tanh(log(1 + e)) = ((1+e)^2 - 1) / ((1+e)^2 + 1) = 12.8256182 / 14.8256182
    torch.testing.assert_close(mish(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 0.8650984]))


def test_mish_gradient_is_scaled_by_what_comes_after() -> None:
    x = draw(5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: mish(v) * torch.arange(5.0, dtype=torch.float64), (x,))


def test_mish_keeps_nan() -> None:
    assert mish(torch.tensor([math.nan])).isnan().all()


# --- layers in a row


def plain_normed(
    x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, ln_w: torch.Tensor, ln_b: torch.Tensor
) -> torch.Tensor:
    return F.mish(F.layer_norm(F.linear(x, w, b), ln_w.shape, ln_w, ln_b))


def test_normed_linear_is_linear_then_layer_norm_then_mish_by_hand() -> None:
    layer = NormedLinear(1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [3.0]]))
        layer.bias.copy_(torch.tensor([0.5, 0.5]))
        layer.ln.weight.copy_(torch.tensor([2.0, 2.0]))
        layer.ln.bias.copy_(torch.tensor([3.0, 2.0]))
    # x = 1: linear (1.5, 3.5), normalised (-1, 1) (variance 1), affine (1, 4);
    # mish(1) = 0.8650984, mish(4) = 4 ((1+e^4)^2 - 1) / ((1+e^4)^2 + 1) = 3.9974128.
    torch.testing.assert_close(layer(torch.ones(1)), torch.tensor([0.8650984, 3.9974128]), rtol=2e-5, atol=0)


def test_normed_linear_uses_the_activation_it_is_given() -> None:
    layer = NormedLinear(4, 8, act=SimNorm(8))
    torch.testing.assert_close(layer(draw(3, 4)).sum(-1), torch.ones(3))


def test_mlp_ends_in_a_plain_linear_layer_or_in_a_normed_one_with_the_given_activation() -> None:
    plain = mlp(3, [5, 7], 4)
    assert [type(layer) for layer in plain] == [NormedLinear, NormedLinear, torch.nn.Linear]
    assert [(layer.in_features, layer.out_features) for layer in plain] == [(3, 5), (5, 7), (7, 4)]
    assert all(isinstance(layer.act, Mish) for layer in plain[:2])
    simplicial = mlp(3, [5], 16, act=SimNorm(8))
    assert [type(layer) for layer in simplicial] == [NormedLinear, NormedLinear]
    assert isinstance(simplicial[0].act, Mish)
    torch.testing.assert_close(simplicial(draw(2, 3)).sum(-1), torch.full((2,), 2.0))


# --- the ensemble


@pytest.fixture
def ensemble() -> Ensemble:
    made = Ensemble(members=4, in_features=5, hidden=6, out_features=3)
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=i) * 0.5 + 0.3)
    return made


def separately(ensemble: Ensemble, x: torch.Tensor, member: int, keep: torch.Tensor | None = None) -> torch.Tensor:
    """One member as an ordinary mlp; `keep` multiplies the first linear layer's output."""
    first, second, last = ensemble.layers
    h = F.linear(x, first.weight[member], first.bias[member])
    h = h if keep is None else h * keep
    h = F.mish(F.layer_norm(h, (6,), first.ln.weight[member], first.ln.bias[member]))
    h = plain_normed(h, second.weight[member], second.bias[member], second.ln.weight[member], second.ln.bias[member])
    return F.linear(h, last.weight[member], last.bias[member])


def test_ensemble_equals_separate_mlps(ensemble: Ensemble) -> None:
    x = draw(2, 7, 5, seed=9)
    together = ensemble(x)
    assert together.shape == (4, 2, 7, 3)
    for member in range(4):
        torch.testing.assert_close(together[member], separately(ensemble, x, member), rtol=1e-5, atol=1e-6)


def test_ensemble_evaluates_the_members_asked_for_in_their_order(ensemble: Ensemble) -> None:
    x = draw(7, 5, seed=9)
    chosen = ensemble(x, members=torch.tensor([3, 1]))
    assert chosen.shape == (2, 7, 3)
    torch.testing.assert_close(chosen, ensemble(x)[[3, 1]], rtol=1e-6, atol=1e-6)


def test_only_the_chosen_members_get_gradients(ensemble: Ensemble) -> None:
    ensemble(draw(7, 5), members=torch.tensor([2, 0])).sum().backward()
    for parameter in ensemble.parameters():
        touched = parameter.grad.flatten(1).abs().sum(1) > 0
        assert touched.tolist() == [True, False, True, False]


def test_frozen_blocks_gradients_to_parameters_but_not_to_the_input(ensemble: Ensemble) -> None:
    x = draw(7, 5).requires_grad_()
    frozen = ensemble(x, frozen=True)
    torch.testing.assert_close(frozen, ensemble(x))
    frozen.square().sum().backward()
    assert all(parameter.grad is None for parameter in ensemble.parameters())
    by_frozen = x.grad.clone()
    x.grad = None
    ensemble(x).square().sum().backward()
    assert by_frozen.abs().min() > 0
    torch.testing.assert_close(by_frozen, x.grad)


def test_dropout_acts_on_the_first_layer_only_and_before_its_layer_norm(ensemble: Ensemble) -> None:
    x = draw(2, 3, 5, seed=9)
    keep = (torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(3)) < 0.7).float() / 0.7
    got = ensemble(x, members=torch.tensor([1, 3]), keep=keep)
    for row, member in enumerate((1, 3)):
        expected = separately(ensemble, x, member, keep[row].unflatten(0, (2, 3)))
        torch.testing.assert_close(got[row], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(got, ensemble(x, members=torch.tensor([1, 3])), atol=1e-2)


def value_and_gradients(module: torch.nn.Module, x: torch.Tensor, **rest: object) -> list[torch.Tensor]:
    """A module's output, and the gradients of a fixed function of it for the input and all parameters."""
    x = x.detach().requires_grad_()
    y = module(x, **rest)
    (y * draw(*y.shape, seed=77)).sum().backward()
    gradients = [x.grad.clone(), *(parameter.grad.clone() for parameter in module.parameters())]
    module.zero_grad()
    return [y.detach(), *gradients]


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=built)])
@pytest.mark.parametrize("constant", [0, 3, 5])
def test_entries_called_constant_change_no_value_and_get_no_gradient(
    ensemble: Ensemble, constant: int, fused: bool
) -> None:
    ensemble.fused = fused
    x, members = draw(2, 7, 5), torch.tensor([3, 0])
    plain = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(ensemble(plain, members, frozen=True).square().sum(), plain)
    given = x.clone().requires_grad_()
    y = ensemble(given, members, frozen=True, constant=constant)
    torch.testing.assert_close(y, ensemble(x, members), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(y.square().sum(), given)
    torch.testing.assert_close(gradient[..., constant:], expected[..., constant:], rtol=1e-4, atol=1e-6)
    assert (gradient[..., :constant] == 0).all()


# --- the CPU kernels within the layers


@built
@pytest.mark.parametrize(("hidden", "act"), [(13, None), (24, None), (16, SimNorm(8)), (12, SimNorm(4))])
def test_kernels_change_no_value_and_no_gradient_of_a_layer(hidden: int, act: SimNorm | None) -> None:
    layer = NormedLinear(5, hidden, act)
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=i) * 0.5 + 0.3)
    plain = value_and_gradients(layer, draw(3, 4, 5))
    layer.fused = True
    for got, expected in zip(value_and_gradients(layer, draw(3, 4, 5)), plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@built
@pytest.mark.parametrize("members", [None, [2, 0]])
@pytest.mark.parametrize("dropout", [False, True])
def test_kernels_change_no_value_and_no_gradient_of_an_ensemble(
    ensemble: Ensemble, dropout: bool, members: list[int] | None
) -> None:
    x, count = draw(2, 7, 5), 4 if members is None else 2
    keep = (draw(count, 14, 6, seed=3) > -0.5).float() * 1.3 if dropout else None
    rest = {"members": None if members is None else torch.tensor(members), "keep": keep}
    plain = value_and_gradients(ensemble, x, **rest)
    ensemble.fused = True
    for got, expected in zip(value_and_gradients(ensemble, x, **rest), plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # the way without gradients is another one, member by member; dropout counts there as well
        torch.testing.assert_close(ensemble(x, **rest), plain[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=built)])
def test_hidden_layers_hand_on_bfloat16_and_latent_states_are_float32(fused: bool) -> None:
    hidden, latent = NormedLinear(8, 16), NormedLinear(8, 16, SimNorm(8))
    hidden.fused = latent.fused = fused
    y = draw(3, 16)
    for layer, dtype in ((hidden, torch.bfloat16), (latent, torch.float32)):
        assert layer.activate(y.bfloat16()).dtype == dtype
        assert layer.activate(y).dtype == torch.float32
        # Within, all is float32: only the input's rounding counts, and the output's, where that is bfloat16.
        exact = layer.activate(y.bfloat16().float())
        rounding = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(layer.activate(y.bfloat16()).float(), exact, rtol=rounding, atol=1e-6)


# --- pixels


def shifted_by_padding(image: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """Pad by 3 repeated border pixels, then cut out 64 x 64 at an offset of (3 + row, 3 + column)."""
    padded = F.pad(image[None].float(), (3, 3, 3, 3), mode="replicate")[0]
    return padded[:, 3 + row : 67 + row, 3 + column : 67 + column]


def test_shift_repeats_the_border_and_moves_all_channels_of_an_image_together() -> None:
    images = torch.randint(256, (3, 9, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    moves = torch.tensor([[-3, 2], [0, 0], [3, -1]])
    shifted = shift_images(images, moves)
    assert shifted.dtype == torch.uint8
    for image, move, result in zip(images, moves.tolist(), shifted, strict=True):
        torch.testing.assert_close(result.float(), shifted_by_padding(image, *move), rtol=0, atol=0)


def test_a_shift_of_three_down_repeats_the_last_row() -> None:
    ramp = torch.arange(64.0)[:, None].expand(1, 1, 64, 64)
    moved = shift_images(ramp, torch.tensor([[3, 0]]))
    assert moved[0, 0, :, 5].tolist() == [*range(3, 64), 63, 63, 63]


@pytest.fixture
def seen_by_convolutions() -> Callable[..., torch.Tensor]:
    def seen(obs: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        encoder = PixelEncoder(in_channels=9, channels=4, group=8)
        inputs: list[torch.Tensor] = []
        encoder.convolutions[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        encoder(obs, shift)
        return inputs[0]

    return seen


def test_pixels_are_scaled_from_bytes_to_half_a_unit_around_zero(
    seen_by_convolutions: Callable[..., torch.Tensor],
) -> None:
    obs = torch.zeros(1, 9, 64, 64, dtype=torch.uint8)
    obs[:, 1], obs[:, 2] = 255, 51
    seen = seen_by_convolutions(obs)
    assert seen.dtype == torch.float32
    assert seen[0, 0].unique().tolist() == [-0.5]
    assert seen[0, 1].unique().tolist() == [0.5]
    assert seen[0, 2].unique().item() == pytest.approx(-0.3)  # 51/255 = 0.2


def test_a_shift_index_of_three_is_none_and_zero_is_three_up(seen_by_convolutions: Callable[..., torch.Tensor]) -> None:
    obs = torch.randint(256, (2, 9, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = seen_by_convolutions(obs, torch.tensor([[3, 3], [0, 6]]))
    torch.testing.assert_close(seen[0], obs[0].float() / 255 - 0.5)
    torch.testing.assert_close(seen[1], shifted_by_padding(obs[1], -3, 3) / 255 - 0.5)


def test_pixel_encoder_gives_512_numbers_in_groups_that_sum_to_one() -> None:
    # 64 -> (64-7)/2+1 = 29 -> (29-5)/2+1 = 13 -> (13-3)/2+1 = 6 -> 6-3+1 = 4: 32 x 4 x 4 = 512.
    z = PixelEncoder(in_channels=9, channels=32, group=8)(torch.zeros(2, 9, 64, 64, dtype=torch.uint8))
    assert z.shape == (2, 512)
    torch.testing.assert_close(z.unflatten(-1, (64, 8)).sum(-1), torch.ones(2, 64))


def test_pixel_encoder_has_relus_between_its_convolutions_and_none_after_the_last() -> None:
    encoder = PixelEncoder(in_channels=9, channels=4, group=8)
    images = draw(2, 9, 64, 64) * 100 + 128
    h = images / 255 - 0.5
    filters = [module for module in encoder.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [(f.kernel_size, f.stride) for f in filters] == [
        ((k, k), (s, s)) for k, s in [(7, 2), (5, 2), (3, 2), (3, 1)]
    ]
    for i, conv in enumerate(filters):
        h = F.conv2d(h if i == 0 else h.relu(), conv.weight, conv.bias, stride=conv.stride)
    expected = h.flatten(1).unflatten(-1, (8, 8)).softmax(-1).flatten(1)
    torch.testing.assert_close(encoder(images), expected)
