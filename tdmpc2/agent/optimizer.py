"""Adam, and Adam with its moments in bfloat16: half their memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

PIECE = 2**22
"""Parameters that `BFloat16Adam` widens to float32 at a time: a hundred megabytes of working memory or so."""
BETAS = (0.9, 0.999)
LOW_BITS = 2**16 - 1
"""What bfloat16 leaves off a float32."""


class BFloat16Adam(torch.optim.Optimizer):
    """Adam whose moments are kept in bfloat16 and computed with in float32.

    bfloat16 has 8 significant bits. Of a second moment, an update changes a thousandth, which rounding to the nearest
    would undo each time; rounding at random, up with the probability of what is left off, is right on average.

    Args:
        params: parameters or groups of them, as for `torch.optim.Adam`.
        generator: rounds; on the parameters' device.
        lr: learning rate of the groups that name none.
        eps: added to the root of the second moment.
    """

    def __init__(self, params: Any, generator: torch.Generator, lr: float = 3e-4, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})
        self._generator = generator

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # losses are never computed in here
        """Move the parameters that have gradients."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in moved:
                self.state[parameter]["step"] += 1
            for count, alike in itertools.groupby(moved, lambda parameter: int(self.state[parameter]["step"])):
                for piece in _pieces(alike, self.state):
                    self._move(piece, count, group["lr"], group["eps"])

    def _move(self, piece: list[tuple[Tensor, ...]], count: int, lr: float, eps: float) -> None:
        parameters, gradients, first_places, second_places = (list(tensors) for tensors in zip(*piece, strict=True))
        first, second = [place.float() for place in first_places], [place.float() for place in second_places]
        torch._foreach_lerp_(first, gradients, 1 - BETAS[0])
        torch._foreach_mul_(second, BETAS[1])
        torch._foreach_addcmul_(second, gradients, gradients, 1 - BETAS[1])
        unbiased = [1 - beta**count for beta in BETAS]
        divisors = torch._foreach_sqrt(second)
        torch._foreach_div_(divisors, math.sqrt(unbiased[1]))
        torch._foreach_add_(divisors, eps)
        torch._foreach_addcdiv_(parameters, first, divisors, -lr / unbiased[0])

        sizes, device = [len(parameter) for parameter in parameters], parameters[0].device
        bits = torch.randint(
            -(2**31), 2**31, (sum(sizes),), generator=self._generator, device=device, dtype=torch.int32
        )
        # One draw serves both moments, with its lower and its upper half.
        for places, moments, half in ((first_places, first, bits), (second_places, second, bits >> 16)):
            for place, moment, noise in zip(places, moments, (half & LOW_BITS).split(sizes), strict=True):
                place.copy_(round_at_random(moment, noise))


def _pieces(parameters: Iterable[Tensor], state: Mapping[Tensor, Any]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Flat views of parameters, gradients and both moments, in lists of at most `PIECE` numbers of each."""
    piece: list[tuple[Tensor, ...]] = []
    room = PIECE
    for parameter in parameters:
        assert parameter.grad is not None
        moments = state[parameter]
        flat = [x.view(-1) for x in (parameter, parameter.grad.contiguous(), moments["exp_avg"], moments["exp_avg_sq"])]
        start = 0
        while start < parameter.numel():
            if room == 0:
                yield piece
                piece, room = [], PIECE
            rows = slice(start, min(start + room, parameter.numel()))
            piece.append(tuple(x[rows] for x in flat))
            room -= rows.stop - rows.start
            start = rows.stop
    if piece:
        yield piece


def round_at_random(x: Tensor, noise: Tensor) -> Tensor:
    """Round to one of the two bfloat16 neighbours, to each the likelier the nearer it is.

    Args:
        x: float32.
        noise: int32 of its shape, uniform from 0 to 2**16 - 1.

    Returns:
        bfloat16; what is not finite stays what it is.
    """
    bits = x.view(torch.int32)
    # In these bits the next bfloat16 away from zero is 2**16 further; adding carries as often as it should.
    rounded = ((bits + noise) & ~LOW_BITS).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)


def make_adam(
    params: Any, lr: float, eps: float, device: torch.device, rounding: torch.Generator | None
) -> torch.optim.Optimizer:
    """Adam with its state in place, as its first step would make it: a recording needs it beforehand.

    Args:
        params: parameters, or groups of them.
        lr: learning rate of the groups that name none.
        eps: added to the root of the second moment.
        device: where the parameters are.
        rounding: rounds the moments to bfloat16; None keeps them in float32.
    """
    optimizer: torch.optim.Optimizer
    if rounding is not None:
        optimizer = BFloat16Adam(params, rounding, lr, eps)
    else:
        optimizer = torch.optim.Adam(params, lr=lr, eps=eps, fused=True, capturable=device.type == "cuda")
    dtype = None if rounding is None else torch.bfloat16
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device if rounding is None else "cpu"),
                "exp_avg": torch.zeros_like(parameter, dtype=dtype),
                "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype),
            }
    return optimizer


def load_moments(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Copy an optimizer's moments into those there are, where a recording changes them; rates and flags stay as set.

    Either kind takes the other's: float32 is rounded to the nearest bfloat16, once.
    """
    for index, moments in optimizer.state_dict()["state"].items():
        for name, tensor in moments.items():
            if index in state["state"]:
                tensor.copy_(state["state"][index][name])
            else:  # saved before its first step
                tensor.zero_()
