"""Measure the workbench's speed on this machine: `make bench`, or `python scripts/benchmark.py --help`.

Everything is measured after a warm-up and repeated; the table shows the median and the quartiles. Beside the agent's
times stands the share of the machine's own float32 matrix-product rate that they reach, measured in the same run with
the same threads, so that a slow or busy machine does not pass for slow code.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import tdmpc2
from tdmpc2 import TDMPC2, AgentSpec, Config, make_env
from tdmpc2.agent.agent import choose_device
from tdmpc2.data.replay import Replay
from tdmpc2.training.collector import Collector
from tdmpc2.training.runtime import available_cores, describe_hardware, prepare_process

TASK = "walker-walk"
ENVIRONMENTS = ("cartpole-swingup", "walker-walk", "cheetah-run", "humanoid-run", "dog-run")
REPLAY_ROWS = 1_000_000
BATCH, HORIZON = 256, 3


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
    """Share of the machine's matrix-product rate with as many threads; None where that says nothing."""


def measure(
    action: Callable[[], object], seconds: float, least: int = 5, device: torch.device | None = None
) -> list[float]:
    """Times of an action in seconds: after two warm-up calls, for about `seconds` and at least `least` times."""

    def once() -> float:
        start = time.perf_counter()
        action()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once(), once()
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        times.append(once())
    return times


def summarise(what: str, unit: str, values: Sequence[float], threads: int, share: float | None = None) -> Measurement:
    """Median and quartiles of repeated measurements."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Measurement(what, unit, float(median), (float(low), float(high)), len(values), threads, share)


def product_rate(device: torch.device, seconds: float, threads: int) -> Measurement:
    """The machine's float32 matrix-product rate, in GFLOP/s."""
    n = 1024 if device.type == "cpu" else 8192
    x = torch.randn(n, n, device=device)
    times = measure(lambda: x @ x, seconds, device=device)
    return summarise("matrix products, float32", "GFLOP/s", [2 * n**3 / t / 1e9 for t in times], threads)


def count_flops(action: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in an action."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def walker_batch() -> dict[str, torch.Tensor]:
    """A batch of random sequences of the walker's shape."""
    return {
        "obs": torch.randn(HORIZON + 1, BATCH, 24),
        "action": torch.rand(HORIZON, BATCH, 6) * 2 - 1,
        "reward": torch.rand(HORIZON, BATCH, 1),
        "terminated": torch.zeros(HORIZON, BATCH, 1),
    }


def measure_agent(size: int, device: torch.device, seconds: float, threads: int, rate: float) -> list[Measurement]:
    """Act, for one observation and for ten, and update."""
    agent = TDMPC2(Config(task=TASK, model_size=size), AgentSpec.from_tasks([TASK]), str(device))
    batch = walker_batch()
    actors = {count: agent.actor(seed=count) for count in (1, 10)}
    cases: list[tuple[str, int, Callable[[], object]]] = [
        (f"act, size {size}", 1, lambda: actors[1](torch.randn(1, 24), True)),
        (f"act for 10, each, size {size}", 10, lambda: actors[10](torch.randn(10, 24), True)),
        (f"update, size {size}", 1, lambda: agent.update(batch)),
    ]
    results = []
    for what, per, action in cases:
        flops = count_flops(action)
        times = measure(action, seconds, device=device)
        share = flops / statistics.median(times) / 1e9 / rate
        results.append(summarise(what, "ms", [t / per * 1e3 for t in times], threads, share))
    return results


def measure_environments(seconds: float) -> list[Measurement]:
    """Agent steps a second of single environments under random actions."""
    results = []
    for name in ENVIRONMENTS:
        env = make_env(name, seed=0)
        env.reset()
        actions = [env.action_space.sample() for _ in range(64)]

        def steps(env=env, actions=actions) -> None:  # type: ignore[no-untyped-def]  # bound now, not when called
            for action in actions:
                if env.step(action)[3]:
                    env.reset()

        times = measure(steps, seconds / len(ENVIRONMENTS))
        results.append(summarise(f"environment, {name}", "agent steps/s", [len(actions) / t for t in times], 1))
        env.close()
    return results


def filled_replay(folder: Path) -> Replay:
    """A replay store of 1,000,000 rows of the walker's shape, full."""
    replay = Replay.create(
        folder,
        task=TASK,
        obs_shape=(24,),
        obs_dtype="float32",
        action_dim=6,
        capacity=REPLAY_ROWS,
        slack=20_000,
        horizon=HORIZON,
    )
    rng = np.random.default_rng(0)
    obs, action = rng.standard_normal((501, 24), np.float32), rng.uniform(-1, 1, (500, 6)).astype(np.float32)
    reward, terminated = rng.random(500, np.float32), np.zeros(500, bool)
    while replay.state()["rows"] < REPLAY_ROWS:
        if replay.room < 501:
            replay.mark_checkpoint()
        replay.add(obs, action, reward, terminated)
    return replay


def measure_replay(seconds: float) -> list[Measurement]:
    """Sampling a batch, and adding an episode, at 1,000,000 rows."""
    with tempfile.TemporaryDirectory(prefix="tdmpc2-bench-") as folder, filled_replay(Path(folder)) as replay:
        generator = torch.Generator().manual_seed(0)
        times = measure(lambda: replay.sample(BATCH, generator), seconds)
        what = f"replay: sample {BATCH} x {HORIZON + 1} of {REPLAY_ROWS:,} rows"
        return [summarise(what, "ms", [t * 1e3 for t in times], torch.get_num_threads())]


def end_to_end(size: int, threads: int, seconds: float, device: str) -> tuple[list[float], float]:
    """Agent steps a second of the online loop on a full replay, and the process's peak memory in MiB.

    A step is what it is in training: act, environment, sample, update.
    """
    prepare_process(threads)
    with tempfile.TemporaryDirectory(prefix="tdmpc2-bench-") as folder, filled_replay(Path(folder)) as replay:
        agent = TDMPC2(Config(task=TASK, model_size=size), AgentSpec.from_tasks([TASK]), device)
        collector = Collector(TASK, num_envs=1, seed=0, obs="state", episodic=False)
        generator = torch.Generator().manual_seed(0)

        def step() -> None:
            for episode in collector.step(agent.act(collector.obs, collector.first_step).numpy()):
                replay.add(*episode.arrays())
            agent.update(replay.sample(BATCH, generator))

        times = measure(step, seconds, device=agent.device)
        collector.close()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [1 / t for t in times], kilobytes / (1024 if sys.platform == "linux" else 1024**2)


def measure_end_to_end(size: int, threads: int, seconds: float, device: str) -> list[Measurement]:
    """`end_to_end` in a process of its own, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rates, memory = pool.apply(end_to_end, (size, threads, seconds, device))
    return [
        summarise(f"online, size {size}, {TASK}", "agent steps/s", rates, threads),
        summarise(f"online, size {size}: peak memory", "MiB", [memory], threads),
    ]


def show(results: Sequence[Measurement], title: str, console: Console) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    for name in ("threads", "median", "quartiles", "unit", "of matrix rate", "repeats"):
        table.add_column(name, justify="left" if name == "unit" else "right")
    for r in results:
        share = "" if r.share is None else f"{r.share:.0%}"
        low, high = (f"{q:,.4g}" for q in r.quartiles)
        table.add_row(r.what, str(r.threads), f"{r.median:,.4g}", f"{low} - {high}", r.unit, share, str(r.repeats))
    console.print(table)


def commit() -> str:
    """The checkout's commit, marked where files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def main() -> None:
    """Measure everything, print the table and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 5], help="model sizes (default: 1 5)")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of CPU threads (default: 1 and all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time spent on each measurement (default: 5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--output", type=Path, default=Path("results/bench"), help="folder of the JSON record")
    options = parser.parse_args()
    device = choose_device(options.device)
    console = Console(width=None if sys.stdout.isatty() else 120)
    results: list[Measurement] = []
    for threads in options.threads or sorted({1, available_cores()}):
        prepare_process(threads)
        console.print(f"measuring with {threads} thread(s) ...")
        rate = product_rate(device, options.seconds, threads)
        results.append(rate)
        for size in options.sizes:
            results += measure_agent(size, device, options.seconds, threads, rate.median)
            results += measure_end_to_end(size, threads, options.seconds, str(device))
    prepare_process(1)
    console.print("measuring environments and replay ...")
    results += measure_environments(options.seconds)
    results += measure_replay(options.seconds)

    hardware, when = describe_hardware(device), time.strftime("%Y-%m-%d-%H%M%S")
    show(results, f"{hardware}; torch {torch.__version__}; commit {commit()}", console)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{when}.json"
    record = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "version": tdmpc2.__version__,
        "torch": torch.__version__,
        "device": str(device),
        "hardware": hardware,
        "time": when,
        "results": [dataclasses.asdict(r) for r in results],
    }
    path.write_text(json.dumps(record, indent=1))
    console.print(f"record: {path}")


if __name__ == "__main__":
    main()
