"""Memory for the batches that a replay store samples."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tdmpc2.data.layout import Layout


def batch_layout(layout: Layout, horizon: int, batch_size: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor of a batch; see `Replay.sequences`."""
    steps = (horizon, batch_size)
    return {
        "obs": ((horizon + 1, batch_size, *layout.obs_shape), getattr(torch, layout.obs_dtype)),
        "action": ((*steps, layout.action_dim), torch.float32),
        "reward": ((*steps, 1), torch.float32),
        "terminated": ((*steps, 1), torch.float32),
    }


def empty_batch(layout: Layout, horizon: int, batch_size: int, pin_memory: bool = False) -> dict[str, Tensor]:
    """Memory for a batch, of any contents.

    Args:
        layout: what the store holds.
        horizon: agent steps of the sequences.
        batch_size: B, how many.
        pin_memory: whether to pin it, so that a GPU copies it while the CPU goes on.
    """
    return {
        name: torch.empty(shape, dtype=dtype, pin_memory=pin_memory)
        for name, (shape, dtype) in batch_layout(layout, horizon, batch_size).items()
    }


def is_batch(batch: Mapping[str, Tensor], layout: Layout, horizon: int, batch_size: int) -> bool:
    """Whether these tensors are what `empty_batch` makes."""
    wanted = batch_layout(layout, horizon, batch_size)
    return batch.keys() == wanted.keys() and all(
        batch[name].shape == shape
        and batch[name].dtype == dtype
        and batch[name].device.type == "cpu"
        and batch[name].is_contiguous()
        for name, (shape, dtype) in wanted.items()
    )
