"""An update in parts: of a batch too large for one device, over processes, and one after another within each.

A part sees its own sequences, and of the whole batch's noise what belongs to them. So the parts' gradients add up to
the whole batch's, however it was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tdmpc2.agent.learning import Batch, UpdateNoise
from tdmpc2.agent.replicas import Replicas
from tdmpc2.errors import require

Part = tuple[Batch, UpdateNoise]


def check_division(batch_size: int, accumulate: int, replicas: Replicas) -> None:
    """Check that a batch can be cut into equal parts.

    Args:
        batch_size: sequences in the whole batch.
        accumulate: parts that each process computes one after another.
        replicas: the processes.

    Raises:
        UserError: it cannot; names the settings.
    """
    processes = f" x {replicas.count} processes" if replicas.count > 1 else ""
    require(
        batch_size % (accumulate * replicas.count) == 0,
        f"accumulate: {accumulate}{processes} does not divide batch_size {batch_size} into equal parts",
    )


def cut(data: Batch, noise: UpdateNoise, accumulate: int, replicas: Replicas) -> Iterator[Part]:
    """The parts that this process computes, in turn; data and noise as they are where there is but one in all.

    Each is cut when its turn comes: the dropout factors, the largest part of the noise, are copied.

    Args:
        data: this process's sequences.
        noise: that of all processes' sequences.
        accumulate: number of parts; it divides the number of sequences.
        replicas: the processes.
    """
    if accumulate * replicas.count == 1:
        yield data, noise
        return
    own = data.reward.shape[1]
    size, before = own // accumulate, replicas.rank * own
    for start in range(0, own, size):
        here, overall = slice(start, start + size), slice(before + start, before + start + size)
        yield _sequences(data, here), _noise_of(noise, overall)


def _sequences(data: Batch, rows: slice) -> Batch:
    return Batch(
        obs=data.obs[:, rows],
        action=data.action[:, rows],
        reward=data.reward[:, rows],
        terminated=data.terminated[:, rows],
        task=None if data.task is None else data.task[rows],
    )


def _noise_of(noise: UpdateNoise, rows: slice) -> UpdateNoise:
    batch = noise.target_eps.shape[1]

    def factors(keep: Tensor | None) -> Tensor | None:
        if keep is None:
            return None
        of_rows = keep.unflatten(1, (-1, batch))[:, :, rows]  # its rows are time x batch
        return of_rows.flatten(1, 2).contiguous()  # as the kernels read them; flattened alone, one row's are not

    return UpdateNoise(
        shift=None if noise.shift is None else noise.shift[:, rows],
        target_eps=noise.target_eps[:, rows],
        target_members=noise.target_members,
        keep=factors(noise.keep),
        policy_eps=noise.policy_eps[:, rows],
        policy_members=noise.policy_members,
        policy_keep=factors(noise.policy_keep),
    )


def mean_of_parts(metrics: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The whole batch's metrics from those of its equal parts, each a mean over its sequences."""
    if len(metrics) == 1:
        return dict(metrics[0])
    return {name: torch.stack([part[name] for part in metrics]).mean() for name in metrics[0]}
