"""Speed of acting and learning, beside the plain baseline, beside uncompiled float32, and from a process's start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

import torch
from baseline import Baseline
from measurements import Measurement, Product, count_flops, measure_in_turns, ratio, summarise

from tdmpc2 import TDMPC2, AgentSpec, Config
from tdmpc2.agent.learning import Batch
from tdmpc2.config import make_settings
from tdmpc2.tasks import expand_tasks

HORIZON = 3
SHAPES = {"cartpole": "cartpole-swingup", "walker": "walker-walk", "dog": "dog-run", "mt80": "mt80"}
"""Tasks that stand for the shapes of observations and actions."""


def shape_of(name: str) -> AgentSpec:
    """The spec of a task or task set."""
    return AgentSpec.from_tasks(expand_tasks(SHAPES[name]))


def random_batch(spec: AgentSpec, size: int) -> dict[str, torch.Tensor]:
    """A batch of random sequences."""
    batch = {
        "obs": torch.randn(HORIZON + 1, size, *spec.obs_shape),
        "action": torch.rand(HORIZON, size, spec.action_dim) * 2 - 1,
        "reward": torch.rand(HORIZON, size, 1),
        "terminated": torch.zeros(HORIZON, size, 1),
    }
    if spec.multitask:
        batch["task"] = torch.randint(len(spec.tasks), (size,))
    return batch


def measure_agent(
    size: int, shape: str, device: torch.device, seconds: float, threads: int, settings: dict[str, str]
) -> list[Measurement]:
    """Act, for one observation and for ten, and update, in turns with the baseline or, in multi-task, with
    `compile=none precision=float32`.

    Args:
        size: model size.
        shape: a name of `SHAPES`.
        device: where.
        seconds: time for each of the three.
        threads: CPU threads, for the record.
        settings: precision and compile.
    """
    spec = shape_of(shape)
    values = {"task": SHAPES[shape], "model_size": size, "device": str(device), **settings}
    config: Config = make_settings(Config, values)
    agent = TDMPC2(config, spec)
    batch = random_batch(spec, config.batch_size or 256)
    obs = torch.randn(10, *spec.obs_shape)
    task = torch.zeros(10, dtype=torch.long) if spec.multitask else None
    actors = {count: agent.actor(seed=count) for count in (1, 10)}

    def act(actor_of: TDMPC2, count: int) -> Callable[[], object]:
        actor = actors[count] if actor_of is agent else actor_of.actor(seed=count)
        return lambda: actor(obs[:count], True, None if task is None else task[:count])

    plain_act: Callable[[], object]
    plain_update: Callable[[], object]
    if spec.multitask:
        beside = "uncompiled float32"
        plain = TDMPC2(Config(task=SHAPES[shape], model_size=size, device=str(device), compile="none",
                              precision="float32"), spec)  # fmt: skip
        plain_act, plain_update = act(plain, 1), lambda: plain.update(batch)
    else:
        beside = "the plain baseline"
        baseline = Baseline(agent)
        one, mean = obs[0].to(device), torch.zeros(HORIZON, spec.action_dim, device=device)
        on_device = Batch.from_mapping(batch, device)
        plain_act, plain_update = lambda: baseline.act(one, mean, True), lambda: baseline.update(on_device)

    chosen = f"size {size}, {shape}"
    counted = agent
    if agent.execution.compile == "full":  # the counter does not see into compiled code
        counted = TDMPC2(Config(task=SHAPES[shape], model_size=size, device=str(device), compile="none"), spec)
    flops = [count_flops(act(counted, 1)), count_flops(lambda: counted.update(batch))]
    product = Product(device)

    def in_turns(action: Callable[[], object], other: Callable[[], object], least: int = 5) -> list[list[float]]:
        return measure_in_turns([action, other, product.run], seconds, least, device)

    ours, plain_times, products = in_turns(act(agent, 1), plain_act)
    ten, one_again, ten_products = in_turns(act(agent, 10), act(agent, 1), least=3)
    updates, plain_updates, update_products = in_turns(lambda: agent.update(batch), plain_update)
    return [
        summarise(f"act, {chosen}", "ms", [t * 1e3 for t in ours], threads, product.share(flops[0], ours, products),
                  faster=ratio(plain_times, ours), baseline=beside),
        summarise(f"act for 10, each, {chosen}", "ms", [t / 10 * 1e3 for t in ten], threads,
                  product.share(10 * flops[0], ten, ten_products), faster=10 * ratio(one_again, ten),
                  baseline="one at a time"),
        summarise(f"update, {chosen}", "ms", [t * 1e3 for t in updates], threads,
                  product.share(flops[1], updates, update_products), faster=ratio(plain_updates, updates),
                  baseline=beside),
    ]  # fmt: skip


START = """
import time
start = time.perf_counter()
import sys, torch
from tdmpc2 import TDMPC2, AgentSpec, Config
from tdmpc2.training.runtime import prepare_process
sys.path.insert(0, sys.argv[1])
size, device, threads, mode = sys.argv[2:]
prepare_process(int(threads))
spec = AgentSpec.from_tasks(["walker-walk"])
agent = TDMPC2(Config(task="walker-walk", model_size=size, device=device, compile=mode), spec)
from agent_speed import random_batch
agent.act(torch.randn(1, 24), True)
agent.update(random_batch(spec, 256))
print(time.perf_counter() - start)
"""


def measure_start(size: int, device: torch.device, threads: int, mode: str, repeats: int = 3) -> list[Measurement]:
    """Seconds from a process's start to the end of its first plan and update, with an empty cache and a filled one."""
    with tempfile.TemporaryDirectory(prefix="tdmpc2-bench-") as cache:
        variables = {**os.environ, "TDMPC2_CACHE": cache}
        variables.pop("TORCHINDUCTOR_CACHE_DIR", None)
        words = [sys.executable, "-c", START, sys.path[0], str(size), str(device), str(threads), mode]
        times = [
            float(subprocess.run(words, env=variables, check=True, capture_output=True, text=True).stdout)
            for _ in range(repeats + 1)
        ]
    what = f"start to first update, size {size}, compile={mode}"
    return [
        summarise(f"{what}, empty cache", "s", times[:1], threads),
        summarise(f"{what}, filled cache", "s", times[1:], threads),
    ]
