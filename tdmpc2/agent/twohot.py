"""Scalars as distributions over bins that are evenly spaced in symlog space."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdmpc2.agent import kernels
from tdmpc2.agent.layers import runs_kernels


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|): compresses large magnitudes (DreamerV3, arXiv 2301.04104)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


class TwoHot(nn.Module):
    """Encodes scalars as weights on two neighbouring bins, and reads them back from logits.

    Args:
        num_bins: K, at least 2.
        vmin: lowest bin, in symlog space.
        vmax: highest bin, in symlog space.
    """

    bins: Tensor
    index: Tensor
    fused = False
    """Whether to use the CPU kernels."""

    def __init__(self, num_bins: int, vmin: float, vmax: float) -> None:
        super().__init__()
        self.num_bins, self.vmin, self.vmax = num_bins, vmin, vmax
        self.bin_size = (vmax - vmin) / (num_bins - 1)
        self.register_buffer("bins", torch.linspace(vmin, vmax, num_bins), persistent=False)
        self.register_buffer("index", torch.arange(num_bins, dtype=torch.float32), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """Two-hot weights of scalars, clamped to the range of the bins: (..., 1) -> (..., K).

        A bin's weight falls linearly from 1 at the bin to 0 at its neighbours, so nothing is indexed: the last bin
        needs no special case. NaN stays NaN, and infinity becomes NaN, for the training loop's guard to find.
        """
        x = x.masked_fill(x.isinf(), torch.nan)
        position = (symlog(x).clamp(self.vmin, self.vmax) - self.vmin) / self.bin_size
        return (1 - (position - self.index).abs()).clamp_min(0)

    def decode(self, logits: Tensor) -> Tensor:
        """Expected scalar: (..., K) -> (..., 1). The expectation is taken in symlog space."""
        if runs_kernels(self.fused, logits):
            return kernels.decode(logits, self.bins)
        return symexp((torch.softmax(logits.float(), dim=-1) * self.bins).sum(dim=-1, keepdim=True))

    def cross_entropy(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Cross-entropy of logits against two-hot weights: (..., K), (..., K) -> (...); leading axes broadcast."""
        return -(weights * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)
