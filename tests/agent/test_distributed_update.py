"""Two processes that learn one agent together: as one process does, up to rounding, and both of them alike."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.replicas import Replicas
from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec

SECONDS = 600
"""Long enough for a machine with much else to do."""
BATCH, UPDATES, LONG = 8, 4, 1.7
SPECS = {
    "single": AgentSpec(obs_shape=(3,), action_dims=(2,), episode_lengths=(500,), tasks=("a",)),
    "multi": AgentSpec(obs_shape=(4,), action_dims=(3, 1, 2), episode_lengths=(500, 100, 1000), tasks=("a", "b", "c")),
}
LIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "many tasks": ("multi", {"dropout": 0.3, "episodic": True}),
    "accumulating": ("multi", {"dropout": 0.3, "accumulate": 2, "compile": "none"}),
    "saving memory": ("single", {"accumulate": 4, "recompute": True, "optimizer_state": "bfloat16"}),
}


def live(name: str, replicas: Replicas) -> dict[str, Any]:
    """What is to be seen of an agent's first updates: metrics, and its state at the end."""
    kind, changes = LIVES[name]
    spec = SPECS[kind]
    widths = {"enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "num_q": 3}
    settings: dict[str, Any] = {"task": "walker-walk", "model_size": 1, "batch_size": BATCH, "device": "cpu"}
    alone = {"accumulate": 1} if replicas.count == 1 else {}
    agent = TDMPC2(Config(**settings | widths | changes | alone), spec, replicas=replicas)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
        agent.model._Qs.layers[2].weight.mul_(10)  # values far enough apart for a running scale above 1
        if spec.multitask:  # longer than 1: who looks a task up shortens its embedding
            agent.model._task_emb.mul_(LONG / agent.model._task_emb.norm(dim=1, keepdim=True))
    metrics = []
    for _ in range(UPDATES):
        batch = {
            "obs": torch.randn(4, BATCH, *spec.obs_shape, generator=draw),
            "action": torch.rand(3, BATCH, spec.action_dim, generator=draw) * 2 - 1,
            "reward": torch.randn(3, BATCH, 1, generator=draw) * 3,
            "terminated": (torch.rand(3, BATCH, 1, generator=draw) < 0.3).float(),
        }
        own = slice(replicas.rank * BATCH // replicas.count, (replicas.rank + 1) * BATCH // replicas.count)
        batch = {key: values[:, own] for key, values in batch.items()}
        if spec.multitask:  # the two processes see different tasks, and nobody the last one
            batch["task"] = torch.tensor([0] * 4 + [1] * 4)[own]
        metrics.append(agent.update(batch))
    return {"metrics": metrics, "state": agent.state_dict()}


def replica(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=SECONDS)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timeout
    )
    try:
        torch.save({name: live(name, Replicas(rank, 2)) for name in LIVES}, Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each of two real processes saw."""
    folder = tmp_path_factory.mktemp("replicas")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=replica, args=(rank, str(folder))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    return first, second


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        return [tensor for key in sorted(value, key=str) for tensor in tensors(value[key])]
    if isinstance(value, list):
        return [tensor for item in value for tensor in tensors(item)]
    return [value] if isinstance(value, Tensor) else []


@pytest.mark.parametrize("name", LIVES)
def test_both_processes_hold_the_same_agent_bit_for_bit(name: str, both: Any) -> None:
    first, second = (tensors(seen[name]) for seen in both)
    assert len(first) > 100
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", LIVES)
def test_two_processes_learn_what_one_learns_from_the_whole_batch(name: str, both: Any) -> None:
    alone, together = live(name, Replicas()), both[0][name]
    for expected, metrics in zip(alone["metrics"], together["metrics"], strict=True):
        assert list(metrics) == list(expected)
        for key, value in expected.items():
            torch.testing.assert_close(metrics[key], value, rtol=2e-4, atol=2e-6, msg=lambda m, k=key: f"{k}: {m}")
    torch.testing.assert_close(together["state"]["scale"], alone["state"]["scale"], rtol=1e-4, atol=0)
    assert alone["state"]["scale"] > 1  # so its range counts: that of a part alone would be another
    weights = alone["state"]["model"], together["state"]["model"]
    apart = sum((weights[0][key] - weights[1][key]).double().square().sum() for key in weights[0]) ** 0.5
    count = sum(value.numel() for value in weights[0].values())
    assert apart / count**0.5 < 0.01 * 3e-4  # a hundredth of one step of Adam
    assert torch.equal(together["state"]["generator"], alone["state"]["generator"])


def test_embeddings_of_the_other_processs_tasks_are_shortened_too(both: Any) -> None:
    for seen in both:
        norms = seen["many tasks"]["state"]["model"]["_task_emb"].norm(dim=1)
        assert norms[:2].max() <= 1 + 1e-5
        assert norms[2].item() == pytest.approx(LONG, rel=1e-5)  # of no process's tasks


def test_a_batch_size_that_processes_and_parts_do_not_divide_is_refused() -> None:
    config = Config(task="walker-walk", model_size=1, batch_size=6, accumulate=2, device="cpu")
    with pytest.raises(UserError, match=r"^accumulate: 2 x 2 processes does not divide batch_size 6 into equal parts$"):
        TDMPC2(config, SPECS["single"], replicas=Replicas(0, 2))


def test_one_replica_alone_needs_no_process_group_and_copies_nothing() -> None:
    tensor = torch.ones(3)
    assert Replicas().gather(tensor) is tensor
    assert Replicas().mean(tensor) is tensor
    Replicas().sum_([tensor])
    assert tensor.tolist() == [1.0] * 3
