"""Speed of the analysis: loading sweeps, statistics over many resamples, and a whole report."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from measurements import Measurement, measure, summarise

from analysis.results import load_sweep
from analysis.statistics import aggregate, performance_profile
from tdmpc2.config import Config, make_settings
from tdmpc2.tasks import TASKS
from tdmpc2.training.runtime import available_cores

RUNS, EVALUATIONS = 1_000, 5
"""Of the synthetic sweep: runs, and evaluations of each."""
ALGORITHMS, SEEDS, STEPS = 4, 3, 21
"""Of the synthetic published curves, on all tasks."""
RESAMPLES = 2_000
PROJECT = Path(__file__).resolve().parents[1]


def measure_analysis(seconds: float, reference: Path | None = None) -> list[Measurement]:
    """Loading 1,000 runs; aggregates and a performance profile with their intervals; a whole report.

    Args:
        seconds: time spent on each; the report is made once.
        reference: folder of published curves to make the report of; None: synthetic ones.

    Raises:
        subprocess.CalledProcessError: the report was not made.
    """
    results = []
    scores = np.random.default_rng(0).uniform(0, 100, (len(TASKS), SEEDS))
    thresholds = np.linspace(0, 100, 101)
    with tempfile.TemporaryDirectory(prefix="tdmpc2-bench-") as temporary:
        folder = Path(temporary)
        write_sweep(folder / "sweep", RUNS)
        what = f"{len(TASKS)} tasks x {SEEDS} seeds x {RESAMPLES:,} resamples"
        for name, action in (
            (f"load a sweep of {RUNS:,} runs", lambda: load_sweep(folder / "sweep")),
            (f"aggregates with intervals, {what}", lambda: aggregate(scores, resamples=RESAMPLES)),
            (f"performance profile, {what}", lambda: performance_profile(scores, thresholds, resamples=RESAMPLES)),
        ):
            results.append(summarise(name, "s", measure(action, seconds), 1))
        if reference is None:
            write_curves(folder / "curves")
        what = "synthetic curves" if reference is None else str(reference)
        taken = report_seconds(folder / "curves" if reference is None else reference, folder / "report")
        results.append(summarise(f"whole report, {what}", "s", [taken], available_cores()))
    return results


def report_seconds(curves: Path, output: Path) -> float:
    """How long the report on published curves alone takes, in a process of its own."""
    command = [sys.executable, "-m", "analysis.report", "--reference", str(curves.resolve()), "--output", str(output)]
    begin = time.perf_counter()
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def write_sweep(folder: Path, runs: int) -> None:
    """A sweep's folder with finished runs over all tasks, as many seeds as it takes, five evaluations each."""
    names, plan = list(TASKS), []
    settings = dataclasses.asdict(make_settings(Config, {"task": names[0]}))
    own = {"task": "@task", "seed": "@seed"}
    config = yaml.safe_dump({**settings, **own}, sort_keys=False).replace("'", "")
    status = dict.fromkeys(("updates", "total_updates"), 2000) | dict.fromkeys(("env_steps", "total_env_steps"), 4000)
    status_text = json.dumps({"state": "done", **status, "seconds": 60.0, "version": "0", "hardware": "none"})
    for number in range(runs):
        task, seed = names[number % len(names)], 1 + number // len(names)
        run = folder / "runs" / f"{task}-5M-seed{seed}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(config.replace("@task", task).replace("@seed", str(seed)))
        (run / "status.json").write_text(status_text)
        lines = ["env_steps,agent_steps,updates,seconds,task,episodes,return,return_std,success,episode_length"]
        lines += [
            f"{1000 * n},{500 * n},{500 * n},9.5,{task},10,{50.5 * n},1.0,{n / 10},500" for n in range(EVALUATIONS)
        ]
        (run / "eval.csv").write_text("\n".join(lines) + "\n")
        plan.append({"name": run.name, "task": task, "model_size": 5, "seed": seed, "env_steps": 4000})
    (folder / "plan.json").write_text(json.dumps({"name": folder.name, "runs": plan}))


def write_curves(folder: Path) -> None:
    """Published curves of four made-up algorithms on all tasks, rising to a height of their own."""
    rng = np.random.default_rng(0)
    steps = np.arange(STEPS) * 100_000
    for algorithm in range(ALGORITHMS):
        (folder / f"algorithm{algorithm}").mkdir(parents=True)
        for task in TASKS.values():
            column, top = ("reward", 1000.0) if task.metric == "return" else ("success", 1.0)
            heights = top * rng.beta(2 + algorithm, 2) * rng.uniform(0.9, 1.0, SEEDS)
            values = heights[:, None] * (1 - np.exp(-steps / rng.uniform(2e5, 1e6)))  # (seeds, steps)
            rows = [
                f"{step},{value:.4f},{seed}"
                for seed, curve in enumerate(values, start=1)
                for step, value in zip(steps, curve, strict=True)
            ]
            path = folder / f"algorithm{algorithm}" / f"{task.name}.csv"
            path.write_text("\n".join([f"step,{column},seed", *rows]) + "\n")
