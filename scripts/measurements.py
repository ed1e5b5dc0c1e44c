"""How the benchmark measures: repeated, after a warm-up, what is compared taking turns."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line of the table."""

    what: str
    unit: str
    median: float
    quartiles: tuple[float, float]
    repeats: int
    threads: int
    share: float | None = None
    """Share of the machine's float32 matrix-product rate with as many threads; None where that says nothing."""
    faster: float | None = None
    """How many times faster than the baseline, which took turns with it; None where there is none."""
    baseline: str = ""
    """What `faster` compares with."""


def measure(
    action: Callable[[], object], seconds: float, least: int = 5, device: torch.device | None = None
) -> list[float]:
    """Times of an action in seconds: after two warm-up calls, for about `seconds` and at least `least` times."""
    return measure_in_turns([action], seconds, least, device)[0]


def measure_in_turns(
    actions: Sequence[Callable[[], object]], seconds: float, least: int = 5, device: torch.device | None = None
) -> list[list[float]]:
    """Times of each of several actions, which take turns, so that a busy machine slows all of them alike."""

    def once(action: Callable[[], object]) -> float:
        start = time.perf_counter()
        action()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for action in actions:
        once(action), once(action)
    times: list[list[float]] = [[] for _ in actions]
    while len(times[0]) < least or sum(map(sum, times)) < seconds:
        for action, own in zip(actions, times, strict=True):
            own.append(once(action))
    return times


def summarise(
    what: str,
    unit: str,
    values: Sequence[float],
    threads: int,
    share: float | None = None,
    faster: float | None = None,
    baseline: str = "",
) -> Measurement:
    """Median and quartiles of repeated measurements."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Measurement(
        what, unit, float(median), (float(low), float(high)), len(values), threads, share, faster, baseline
    )


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster: the median over turns."""
    return float(np.median(np.asarray(slow) / np.asarray(fast)))


class Product:
    """A float32 matrix product to hold other work against, run in turns with it."""

    def __init__(self, device: torch.device) -> None:
        n = 1024 if device.type == "cpu" else 8192
        self._x, self.flops = torch.randn(n, n, device=device), 2 * n**3

    def run(self) -> torch.Tensor:
        """Multiply once."""
        return self._x @ self._x

    def share(self, flops: int, times: Sequence[float], own: Sequence[float]) -> float:
        """What part of this product's rate other work reached: the median over turns.

        Args:
            flops: of the other work.
            times: of the other work.
            own: of this product, in the same turns.
        """
        return float(np.median((flops / np.asarray(times)) / (self.flops / np.asarray(own))))


def product_rate(device: torch.device, seconds: float, threads: int) -> Measurement:
    """The machine's float32 matrix-product rate, in GFLOP/s."""
    product = Product(device)
    rates = [product.flops / t / 1e9 for t in measure(product.run, seconds, device=device)]
    return summarise("matrix products, float32", "GFLOP/s", rates, threads)


def count_flops(action: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in an action."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()
