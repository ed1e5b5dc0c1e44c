"""Measure the workbench's speed on this machine: `make bench`, or `python scripts/benchmark.py --help`.

Everything is measured after a warm-up and repeated; the table shows the median and the quartiles. Beside the agent's
times stand two figures that a slow or busy machine leaves as they are: how many times faster they are than a plain
baseline (scripts/baseline.py: the same mathematics, arranged as the reference implementation arranges it), which took
turns with them, and the share of the machine's own float32 matrix-product rate that they reach with the same threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from agent_speed import SHAPES, measure_agent, measure_start, shape_of
from analysis_speed import measure_analysis
from baseline import Baseline
from environment_speed import measure_environments, tasks_here
from evaluation_speed import measure_evaluation
from measurements import Measurement, measure, measure_in_turns, product_rate, ratio, summarise
from offline_speed import measure_multitask_evaluation, measure_offline
from rich.console import Console
from rich.table import Table
from sweep_speed import measure_sweeps

import tdmpc2
from tdmpc2 import TDMPC2, Config
from tdmpc2.agent.execution import choose_device, choose_execution
from tdmpc2.agent.learning import Batch
from tdmpc2.config import make_settings
from tdmpc2.data.replay import Replay
from tdmpc2.training.collector import Collector
from tdmpc2.training.runtime import available_cores, describe_hardware, prepare_process

TASK = "walker-walk"
REPLAY_ROWS = 1_000_000
BATCH, HORIZON = 256, 3
PARTS = ("agent", "online", "offline", "start", "evaluation", "environments", "replay", "analysis", "sweeps")
"""What can be measured apart."""


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


def end_to_end(
    size: int, threads: int, seconds: float, device: str, settings: dict[str, str]
) -> tuple[list[float], float, float]:
    """The online loop on a full replay: act, environment, sample, update.

    Returns:
        agent steps a second; the process's peak memory in MiB; how many times faster than with the baseline.
    """
    prepare_process(threads)
    with tempfile.TemporaryDirectory(prefix="tdmpc2-bench-") as folder, filled_replay(Path(folder)) as replay:
        config: Config = make_settings(Config, {"task": TASK, "model_size": size, **settings})
        agent = TDMPC2(config, shape_of("walker"), device)
        collector = Collector(TASK, num_envs=1, seed=0, obs="state", episodic=False)
        generator = torch.Generator().manual_seed(0)

        def step_environment(action: np.ndarray) -> None:
            for episode in collector.step(action):
                replay.add(*episode.arrays())

        def step() -> None:
            step_environment(agent.act(collector.obs, collector.first_step).numpy())
            agent.update(replay.sample(BATCH, generator))

        times = measure(step, seconds, device=agent.device)
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        baseline = Baseline(agent)
        mean = torch.zeros(HORIZON, agent.spec.action_dim, device=agent.device)

        def baseline_step() -> None:
            nonlocal mean
            obs = torch.as_tensor(collector.obs[0]).float().to(agent.device)
            action, mean = baseline.act(obs, mean, bool(collector.first_step[0]))
            step_environment(action[None].cpu().numpy())
            baseline.update(Batch.from_mapping(replay.sample(BATCH, generator), agent.device))

        ours, plain = measure_in_turns([step, baseline_step], seconds, device=agent.device)
        collector.close()
    memory = kilobytes / (1024 if sys.platform == "linux" else 1024**2)
    return [1 / t for t in times], memory, ratio(plain, ours)


def measure_end_to_end(
    size: int, threads: int, seconds: float, device: str, settings: dict[str, str]
) -> list[Measurement]:
    """`end_to_end` in a process of its own, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rates, memory, faster = pool.apply(end_to_end, (size, threads, seconds, device, settings))
    what = f"online, size {size}, {TASK}"
    return [
        summarise(what, "agent steps/s", rates, threads, faster=faster, baseline="the plain baseline"),
        summarise(f"{what}: peak memory", "MiB", [memory], threads),
    ]


def show(results: Sequence[Measurement], title: str, console: Console) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    for name in ("threads", "median", "quartiles", "unit", "faster", "than", "of matrix rate", "repeats"):
        table.add_column(name, justify="left" if name in ("unit", "than") else "right")
    for r in results:
        share = "" if r.share is None else f"{r.share:.0%}"
        faster = "" if r.faster is None else f"{r.faster:.2f} x"
        low, high = (f"{q:,.4g}" for q in r.quartiles)
        table.add_row(
            r.what, str(r.threads), f"{r.median:,.4g}", f"{low} - {high}", r.unit, faster, r.baseline, share,
            str(r.repeats),
        )  # fmt: skip
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
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["walker"], help="tasks (default: walker)")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of CPU threads (default: 1 and all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time spent on each measurement (default: 5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", help="auto, float32, tf32 or bfloat16")
    parser.add_argument("--compile", default="auto", help="auto, none, kernels or full")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts (default: all)")
    parser.add_argument(
        "--reference", type=Path, metavar="DIR", help="published curves to report on (default: made up)"
    )
    parser.add_argument("--output", type=Path, default=Path("results/bench"), help="folder of the JSON record")
    options = parser.parse_args()
    device = choose_device(options.device)
    settings = {"precision": options.precision, "compile": options.compile}
    execution = choose_execution(make_settings(Config, {"task": TASK, **settings}), device)
    console = Console(width=None if sys.stdout.isatty() else 160)
    results: list[Measurement] = []
    for threads in options.threads or sorted({1, available_cores()}):
        prepare_process(threads)
        console.print(f"measuring with {threads} thread(s) ...")
        results.append(product_rate(device, options.seconds, threads))
        for size in options.sizes:
            if "agent" in options.only:
                for shape in options.shapes:
                    results += measure_agent(size, shape, device, options.seconds, threads, settings)
            if "online" in options.only:
                results += measure_end_to_end(size, threads, options.seconds, str(device), settings)
            if "offline" in options.only:
                results += measure_offline(size, options.seconds, threads, device, settings)
    prepare_process(1)
    if "start" in options.only:
        console.print("measuring starts ...")
        for size in options.sizes:
            results += measure_start(size, device, 1, execution.compile)
    if "evaluation" in options.only:
        console.print("measuring evaluation ...")
        size = options.sizes[0]
        results += measure_evaluation(options.seconds, 1, size, device=str(device), settings=settings)
        results += measure_multitask_evaluation(options.seconds, 1, size, str(device), settings)
    if "environments" in options.only:
        console.print("measuring environments ...")
        names, lacking = tasks_here()
        for name, reason in lacking.items():
            console.print(f"not measured: {name}: {reason}")
        results += measure_environments(names, options.seconds)
    if "replay" in options.only:
        console.print("measuring replay ...")
        results += measure_replay(options.seconds)
    if "analysis" in options.only:
        console.print("measuring the analysis ...")
        results += measure_analysis(options.seconds, options.reference)
    if "sweeps" in options.only:
        console.print("measuring a sweep of 10,000 simulated runs ...")
        results += measure_sweeps()

    hardware, when = describe_hardware(device), time.strftime("%Y-%m-%d-%H%M%S")
    show(results, f"{hardware}; {execution}; torch {torch.__version__}; commit {commit()}", console)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{when}.json"
    record = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "version": tdmpc2.__version__,
        "torch": torch.__version__,
        "device": str(device),
        "hardware": hardware,
        "execution": str(execution),
        "time": when,
        "results": [dataclasses.asdict(r) for r in results],
    }
    path.write_text(json.dumps(record, indent=1))
    console.print(f"record: {path}")


if __name__ == "__main__":
    main()
