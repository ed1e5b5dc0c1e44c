"""The building blocks of the networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tdmpc2.agent import kernels


def widen(x: Tensor) -> Tensor:
    """float32 where `x` is bfloat16: what is not a matrix product is computed in float32."""
    return x.float() if x.dtype == torch.bfloat16 else x


def runs_kernels(fused: bool, x: Tensor) -> bool:
    """Whether a layer told to be `fused` runs the CPU kernels on this tensor; a compiler fuses by itself."""
    return fused and x.device.type == "cpu" and x.dtype in kernels.DTYPES and not torch.compiler.is_compiling()


def recomputed(layer: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """What the layer makes of its inputs. For the backward pass it keeps these alone, and computes the rest again."""
    if not torch.is_grad_enabled():
        return layer(*inputs)
    # All randomness comes in as inputs: there is no generator to set back.
    return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)


class SimNorm(nn.Module):
    """Softmax over groups of `group` neighbouring entries of the last axis (simplicial normalisation)."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """(..., L) -> (..., L), each group of `group` entries a distribution."""
        return torch.softmax(widen(x).unflatten(-1, (-1, self.group)), dim=-1).flatten(-2)


class _Mish(torch.autograd.Function):
    """x tanh(softplus(x)), with one exponential: tanh(log(1 + e)) = h / (h + 1) for e = exp(x), h = e + e^2 / 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        e = x.clamp_max(20).exp_()  # from 20 on the result is x, to float precision, and e^2 stays finite
        ctx.save_for_backward(x, e)
        h = torch.addcmul(e, e, e, value=0.5)
        return (x * h).div_(h.add_(1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, e = ctx.saved_tensors
        h = torch.addcmul(e, e, e, value=0.5)
        d = h + 1
        slope = torch.addcmul(e, e, e).mul_(x).div_(d)  # x e (e + 1) / (h + 1), then one more division below
        return slope.add_(h).div_(d).mul_(gradient)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) elementwise, as `F.mish`; 2.6 times faster on the CPU tried, 2 to 4 times with gradients."""
    if torch.compiler.is_compiling():  # the compiler differentiates and fuses the same formula by itself
        e = x.clamp_max(20).exp()
        h = e + 0.5 * e * e
        return x * (h / (h + 1))
    return _Mish.apply(x)


class Mish(nn.Module):
    """The activation of every hidden layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return mish(x)


class NormedLinear(nn.Linear):
    """Linear layer, LayerNorm, activation (Mish or SimNorm)."""

    fused = False
    """Whether to use the CPU kernels."""
    recompute = False
    """Whether to keep the input alone for the backward pass."""

    def __init__(self, in_features: int, out_features: int, act: SimNorm | None = None) -> None:
        super().__init__(in_features, out_features)
        self.ln = nn.LayerNorm(out_features, eps=kernels.EPS)
        self.act = act if act is not None else Mish()
        self.group = 0 if act is None else act.group

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return recomputed(self._forward, x) if self.recompute else self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        return self.activate(super().forward(x))

    def activate(self, y: Tensor) -> Tensor:
        """What follows the product: (..., out) -> (..., out). Latent states (SimNorm) are float32."""
        dtype = torch.float32 if self.group and y.dtype == torch.bfloat16 else y.dtype
        if runs_kernels(self.fused, y):
            return kernels.normed(y, self.ln.weight, self.ln.bias, self.group, dtype=dtype)
        return self.act(self.ln(widen(y))).to(dtype)


def mlp(in_features: int, hidden: Sequence[int], out_features: int, act: SimNorm | None = None) -> nn.Sequential:
    """Layers of `NormedLinear`, then a plain linear one, or with `act` one more `NormedLinear` with that activation."""
    widths = [in_features, *hidden]
    layers: list[nn.Module] = [NormedLinear(a, b) for a, b in itertools.pairwise(widths)]
    last = nn.Linear(widths[-1], out_features) if act is None else NormedLinear(widths[-1], out_features, act)
    return nn.Sequential(*layers, last)


class EnsembleLinear(nn.Module):
    """M linear layers evaluated as one batched product."""

    def __init__(self, members: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(members, out_features))


class EnsembleAffine(nn.Module):
    """The scales and offsets of M LayerNorms."""

    def __init__(self, members: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, features))
        self.bias = nn.Parameter(torch.zeros(members, features))


class EnsembleNormedLinear(EnsembleLinear):
    """M `NormedLinear` layers with Mish, evaluated as one batched product."""

    def __init__(self, members: int, in_features: int, out_features: int) -> None:
        super().__init__(members, in_features, out_features)
        self.ln = EnsembleAffine(members, out_features)


class Ensemble(nn.Module):
    """M copies of an mlp with two hidden layers, each with its own weights, on the same input.

    Args:
        members: M.
        in_features: length of the input.
        hidden: width of both hidden layers.
        out_features: length of each member's output.
    """

    fused = False
    """Whether to use the CPU kernels."""
    recompute = False
    """Whether to keep each hidden layer's input alone for the backward pass."""

    def __init__(self, members: int, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__()
        self.members = members
        self.layers = nn.ModuleList(
            [
                EnsembleNormedLinear(members, in_features, hidden),
                EnsembleNormedLinear(members, hidden, hidden),
                EnsembleLinear(members, hidden, out_features),
            ]
        )

    def forward(
        self,
        x: Tensor,
        members: Tensor | None = None,
        keep: Tensor | None = None,
        frozen: bool = False,
        constant: int = 0,
    ) -> Tensor:
        """Evaluate all members, or some.

        Args:
            x: (..., in).
            members: (m,) indices of the members to evaluate; None for all M.
            keep: (m, N, hidden) factors of the first layer's dropout, N the product of x's leading axes; None for
                no dropout.
            frozen: whether to treat the parameters as constants, so that gradients reach only `x`.
            constant: number of x's first entries that are constants as well.

        Returns:
            (m, ..., out).
        """

        if members is not None and keep is None and runs_kernels(self.fused, x) and not torch.is_grad_enabled():
            # On the CPU, picking weights by views saves copying them.
            return torch.stack([self._one(x, member) for member in members.tolist()])

        h = x.flatten(0, -2)
        for i in range(len(self.layers)):
            if self.recompute and i < len(self.layers) - 1:
                h = recomputed(self._layer, i, h, members, keep, frozen, constant)
            else:
                h = self._layer(i, h, members, keep, frozen, constant)
        return h.unflatten(1, x.shape[:-1])

    def _layer(
        self, i: int, h: Tensor, members: Tensor | None, keep: Tensor | None, frozen: bool, constant: int
    ) -> Tensor:
        """Layer i: (N, in) -> (m, N, out) for the first, (m, N, in) -> (m, N, out) for the others."""

        def pick(parameter: Tensor) -> Tensor:
            chosen = parameter.detach() if frozen else parameter
            return chosen if members is None else chosen.index_select(0, members)

        layer = self.layers[i]
        assert isinstance(layer, EnsembleLinear)
        weight, bias = pick(layer.weight), pick(layer.bias)
        if i == 0:  # one wide product: all members share the input
            wide, offset = weight.flatten(0, 1), bias.flatten()
            if constant:  # a gradient for all of x would take a product as large as this one
                known = F.linear(h[:, :constant].detach(), wide[:, :constant], offset)
                h = torch.addmm(known, h[:, constant:], wide[:, constant:].T)
            else:
                h = F.linear(h, wide, offset)
            h = h.unflatten(-1, bias.shape).transpose(0, 1)
        else:
            h = torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
        if not isinstance(layer, EnsembleNormedLinear):
            return h
        return self._activate(h, pick(layer.ln.weight), pick(layer.ln.bias), keep if i == 0 else None)

    def _activate(self, h: Tensor, scale: Tensor, offset: Tensor, keep: Tensor | None) -> Tensor:
        if runs_kernels(self.fused, h):
            return kernels.normed(h, scale, offset, keep=keep)
        wide = widen(h) if keep is None else widen(h) * keep
        normal = F.layer_norm(wide, h.shape[-1:], eps=kernels.EPS)
        return mish(torch.addcmul(offset.unsqueeze(1), normal, scale.unsqueeze(1))).to(h.dtype)

    def _one(self, x: Tensor, member: int) -> Tensor:
        """One member's output, without gradients: (..., in) -> (..., out)."""
        h = x
        for layer in self.layers:
            assert isinstance(layer, EnsembleLinear)
            h = F.linear(h, layer.weight[member], layer.bias[member])
            if isinstance(layer, EnsembleNormedLinear):
                h = kernels.normed(h, layer.ln.weight[member], layer.ln.bias[member])
        return h


class PixelEncoder(nn.Module):
    """Four convolutions on stacked RGB frames; the latent's length is 16 x channels.

    Args:
        in_channels: channels of the observation, 9 for three RGB frames.
        channels: channels of every convolution.
        group: group size of the final SimNorm.
    """

    PAD = 3
    """Largest random shift, in pixels."""

    def __init__(self, in_channels: int, channels: int, group: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, channels, 7, stride=2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=1),
            nn.Flatten(),
            SimNorm(group),
        )

    def forward(self, obs: Tensor, shift: Tensor | None = None) -> Tensor:
        """Encode images.

        Args:
            obs: (N, C, 64, 64), values 0 to 255.
            shift: (N, 2) whole pixels from 0 to 2 x PAD, rows then columns, PAD meaning none; None for no shift.

        Returns:
            (N, L).
        """
        if shift is not None:
            obs = shift_images(obs, shift - self.PAD)
        return self.convolutions(obs.float() / 255 - 0.5)


def shift_images(images: Tensor, shift: Tensor) -> Tensor:
    """Move each image by whole pixels, repeating its border.

    Args:
        images: (N, C, S, S).
        shift: (N, 2) pixels to move by, rows then columns.

    Returns:
        (N, C, S, S), where pixel (i, j) is the input's (i + shift[0], j + shift[1]), clamped to the border.
    """
    size = images.shape[-1]
    positions = torch.arange(size, device=images.device)
    rows = (positions + shift[:, :1]).clamp(0, size - 1)
    columns = (positions + shift[:, 1:]).clamp(0, size - 1)
    n, c = torch.arange(images.shape[0], device=images.device), torch.arange(images.shape[1], device=images.device)
    return images[n[:, None, None, None], c[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]
