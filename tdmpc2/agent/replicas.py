"""Several processes that learn one agent together, each from its own part of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Replicas:
    """The processes that hold a replica of the agent; by default this one alone, and then nothing here costs anything.

    With several, torch.distributed's process group must be up (gloo for the CPU, nccl for GPUs), every process must
    make its agent from the same settings, load the same state, and update equally often: each update waits for all.
    """

    rank: int = 0
    """This process's number, from 0."""
    count: int = 1
    """How many there are. Of a batch of B sequences, number r has those from r B / count on, B / count of them."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(f"rank {self.rank} is not among {self.count} replicas")

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all replicas; the result is the same in all of them, bit for bit."""
        if self.count > 1:
            pending = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in pending:
                work.wait()

    def gather(self, tensor: Tensor) -> Tensor:
        """All replicas' tensors, (n, ...) each, one after another: (count x n, ...)."""
        if self.count == 1:
            return tensor
        all_of_them = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(all_of_them, tensor.contiguous())
        return torch.cat(all_of_them)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of the replicas' tensors."""
        if self.count == 1:
            return tensor
        total = tensor.clone()
        self.sum_([total])
        return total / self.count
