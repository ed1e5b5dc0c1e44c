"""How much memory an update takes, found by going through it with tensors that have shapes but no contents."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tdmpc2.agent.learning import Batch, UpdateNoise, first_values, model_loss, policy_loss
from tdmpc2.agent.optimizer import PIECE
from tdmpc2.agent.parts import Part, check_division, cut
from tdmpc2.agent.replicas import Replicas
from tdmpc2.agent.world_model import WorldModel
from tdmpc2.config import Config
from tdmpc2.spec import AgentSpec

STEP_BYTES = 10 * 4 * PIECE
"""Memory in which a step with bfloat16 moments works: some ten tensors of `PIECE` numbers."""


class LiveBytes(TorchDispatchMode):
    """Within it, the memory of all tensors that are made is counted, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """Most bytes that were alive at a time."""
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the memory of its results."""
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return results

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave these tensors' memory out, and that of all views of them."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._seen[storage._cdata] = weakref.ref(storage)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen and self._seen[key]() is not None:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def update_memory(config: Config, spec: AgentSpec, batch_size: int, replicas: int = 1) -> dict[str, int]:
    """Bytes of device memory that learning takes, from shapes alone: nothing of that size is allocated.

    Losses and backward passes are gone through operation by operation, as a GPU runs them uncompiled, in float32.
    Left out are the libraries' own memory (about 1.5 GB on a GPU), gaps that the allocator cannot fill, and the
    bfloat16 copies that products in bfloat16 make of weights. The CPU kernels keep less than is said here.

    Args:
        config: the settings; besides the model's, `accumulate`, `recompute` and `optimizer_state` decide.
        spec: the tasks.
        batch_size: sequences in the whole batch.
        replicas: processes that share the batch, each on a device of its own.

    Returns:
        `parameters`, `target_qs`, `moments` (the optimizers'), `batch` (this process's sequences) and `noise` (the
        whole batch's) last through the update. `gradients`, the model's, and `activations`, what one part's model
        loss keeps for its backward pass, come and go; `transient` is the most that these and all intermediate results
        take at a time, less than their sum, as gradients come while activations go. `total` is that and what lasts.

    Raises:
        UserError: the batch cannot be cut into equal parts.
    """
    team = Replicas(0, replicas)
    check_division(batch_size, config.accumulate, team)
    with torch.device("meta"):
        model = WorldModel(config, spec)
    model.recompute_layers(config.recompute)
    data, noise = _batch(model, batch_size // replicas), _noise(model, batch_size)
    learned = [*model.model_parameters(), *model.policy_parameters()]
    low = config.optimizer_state == "bfloat16"
    lasting = {
        "parameters": _bytes(learned),
        "target_qs": _bytes(model._target_Qs.parameters()),
        "moments": sum(2 * (2 if low else 4) * parameter.numel() for parameter in learned),
        "batch": _bytes(data),
        "noise": _bytes(noise),
    }
    gradients = _bytes(model.model_parameters())
    activations, transient = _walk(model, data, noise, config.accumulate, team)
    if low:
        transient = max(transient, gradients + STEP_BYTES)
    passing = {"gradients": gradients, "activations": activations, "transient": transient}
    return lasting | passing | {"total": sum(lasting.values()) + transient}


def _walk(model: WorldModel, data: Batch, noise: UpdateNoise, accumulate: int, team: Replicas) -> tuple[int, int]:
    """Go through an update: bytes kept by a model loss, and most bytes alive at a time, inputs and weights left out."""
    live, kept, latents = LiveBytes(), 0, []

    def walked() -> Iterator[Part]:
        return itertools.islice(cut(data, noise, accumulate, team), 2)  # all later parts are as the second

    live.ignore([*model.parameters(), *model.buffers()])
    live.ignore(x for x in (*data, *noise) if x is not None)
    parts = accumulate * team.count
    with live:
        for part, its_noise in walked():
            before = live.now
            loss, rollout, _ = model_loss(model, part, its_noise)
            kept = max(kept, live.now - before)
            (loss / parts).backward(inputs=model.model_parameters())
            latents.append(rollout)
            del loss
        model.zero_grad(set_to_none=True)
        if parts > 1:
            for z, (part, its_noise) in zip(latents, walked(), strict=True):
                first_values(model, z, part.task, its_noise)
        scale = torch.ones((), device="meta")
        for z, (part, its_noise) in zip(latents, walked(), strict=True):
            loss, _, _ = policy_loss(model, z, part.task, scale, its_noise)
            (loss / parts).backward(inputs=model.policy_parameters())
            del loss
    return kept, live.peak + (accumulate - len(latents)) * _bytes(latents[:1])


def _batch(model: WorldModel, size: int) -> Batch:
    H, spec = model.config.horizon, model.spec
    kind = torch.float32 if spec.obs == "state" else torch.uint8
    return Batch(
        obs=torch.empty(H + 1, size, *spec.obs_shape, dtype=kind, device="meta"),
        action=torch.empty(H, size, spec.action_dim, device="meta"),
        reward=torch.empty(H, size, 1, device="meta"),
        terminated=torch.empty(H, size, 1, device="meta"),
        task=torch.empty(size, dtype=torch.long, device="meta") if spec.multitask else None,
    )


def _noise(model: WorldModel, batch: int) -> UpdateNoise:
    """Of the shapes that `draw_update_noise` draws; generators need a real device."""
    H, A, size = model.config.horizon, model.spec.action_dim, model.architecture
    dropout, pixels = model.config.dropout > 0, model.spec.obs == "rgb"

    def normal(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    def whole(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.long, device="meta")

    return UpdateNoise(
        shift=whole(H + 1, batch, 2) if pixels else None,
        target_eps=normal(H, batch, A),
        target_members=whole(2),
        keep=normal(size.num_q, H * batch, size.mlp_dim) if dropout else None,
        policy_eps=normal(H + 1, batch, A),
        policy_members=whole(2),
        policy_keep=normal(2, (H + 1) * batch, size.mlp_dim) if dropout else None,
    )


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)
