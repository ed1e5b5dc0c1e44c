"""Measure what a large sweep costs its driver, and how soon `status` answers; a part of scripts/benchmark.py.

The sweep is real but for its runs: 104 tasks, five sizes and twenty seeds go through the command line's own planning,
checks, execution and display. A run's body writes its settings and statuses as training does, and takes milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from measurements import Measurement, summarise

from tdmpc2.config import Config
from tdmpc2.spec import MODEL_SIZES
from tdmpc2.sweeps.executors import Outcome
from tdmpc2.sweeps.planning import PlannedRun
from tdmpc2.sweeps.tables import DRAWING_SHARE
from tdmpc2.training.folder import State, Status, write_text
from tdmpc2.training.runtime import StopRequest

NAME = "scale"
SEEDS = 20
SIDE_BY_SIDE = 64
"""Runs under way at a time."""
RUN_SECONDS = 3600.0
"""What a run is taken to last, where its overhead is told as a share."""
FAILING = 100
"""About one run in so many fails."""
COMMANDS = 5
"""Times that a command is called."""
RAY_RUNS = 6
TERMINAL: dict[str, Any] = {"force_terminal": True, "width": 160, "height": 50, "highlight": False, "markup": False}
_MACHINE: dict[str, Any] = {"device": "cpu", "hardware": "simulated", "host": "here", "execution": "float32"}


class SimulatedRuns:
    """An executor whose runs begin and end as fast as they are asked for, so many side by side.

    Every second call of `wait` ends nothing, as most do in a sweep of long runs. Between two calls the driver alone
    works, so that is when its time is taken.

    Args:
        side_by_side: runs under way at a time.
    """

    def __init__(self, side_by_side: int) -> None:
        self._side_by_side = side_by_side
        self._waiting: deque[PlannedRun] = deque()
        self._begun: dict[str, PlannedRun] = {}
        self._calls = itertools.count()
        self._idle = False
        self._left_at: float | None = None
        self.idle_ticks: list[float] = []
        """CPU seconds of the driver after calls in which nothing ended, with all places taken."""
        self.other_ticks: list[float] = []
        self.own_seconds = 0.0
        """CPU seconds of the runs' bodies."""

    def check(self, runs: Sequence[PlannedRun]) -> list[str]:
        """See `Executor`."""
        return []

    def submit(self, run: PlannedRun) -> None:
        """See `Executor`."""
        self._waiting.append(run)

    def under_way(self) -> Collection[str]:
        """See `TellsWhatRuns`."""
        return self._begun.keys()

    def wait(self, timeout: float) -> list[Outcome]:
        """See `Executor`; never waits."""
        entered = time.process_time()
        if self._left_at is not None:
            (self.idle_ticks if self._idle else self.other_ticks).append(entered - self._left_at)
        while self._waiting and len(self._begun) < self._side_by_side:
            run = self._waiting.popleft()
            begin_run(run)
            self._begun[run.name] = run
        self._idle = next(self._calls) % 2 == 0 and len(self._begun) == self._side_by_side
        outcomes = [] if self._idle else [self._end(next(iter(self._begun)))]
        self._left_at = time.process_time()
        self.own_seconds += self._left_at - entered
        return outcomes

    def _end(self, name: str) -> Outcome:
        run = self._begun.pop(name)
        if sum(map(ord, name)) % FAILING == 0:
            write_status(run, "failed", run.config.total_updates // 2)
            return Outcome(name, "refused", "the environment could not be built")
        write_status(run, "done", run.config.total_updates)
        return Outcome(name, "done")

    def stop(self) -> None:
        """See `Executor`."""

    def close(self) -> None:
        """See `Executor`."""


def begin_run(run: PlannedRun) -> None:
    """What a run leaves in its folder when it begins: its settings and a first status."""
    write_text(run.folder.config_file, yaml.dump(dict(vars(run.config)), Dumper=yaml.CSafeDumper, sort_keys=False))
    write_status(run, "running", run.config.total_updates // 3)


def write_status(run: PlannedRun, state: State, updates: int) -> None:
    """A status as training writes it, of a run that lasts `RUN_SECONDS`."""
    total = run.config.total_updates
    left = RUN_SECONDS * (1 - updates / total)
    status = Status(
        state=state,
        agent_steps=updates,
        total_agent_steps=total,
        env_steps=updates * run.entry.env_steps // total,
        total_env_steps=run.entry.env_steps,
        updates=updates,
        total_updates=total,
        seconds=RUN_SECONDS - left,
        seconds_left=left if state == "running" else None,
        phase="learning",
        last_return=500.0,
        message="",
        digest=run.config.digest(),
        version="simulated",
        pid=os.getpid(),
        updated=time.time(),
        **_MACHINE,
    )
    run.folder.write_status(status)


def declare(folder: Path, seeds: int) -> None:
    """Write the declaration of the sweep: every task and size, so many seeds."""
    file = folder / "scripts" / "sweeps" / f"{NAME}.yaml"
    file.parent.mkdir(parents=True)
    sizes, numbers = (", ".join(map(str, values)) for values in (MODEL_SIZES, range(1, seeds + 1)))
    file.write_text(f"description: simulated\ntasks: [all]\nsizes: [{sizes}]\nseeds: [{numbers}]\n")


@dataclasses.dataclass(frozen=True)
class Driven:
    """What a sweep of simulated runs took of its driver."""

    runs: int
    seconds: float
    """CPU time of the driver from the command to its end, without that of the runs' bodies."""
    planning: float
    """That part of it which comes before the first run and after the last."""
    idle_tick: float
    """CPU seconds of a tick in which nothing ended: the median."""
    idle_sum: float
    """CPU seconds of all those."""
    memory: float
    """Peak memory in MiB."""

    def share(self, side_by_side: int) -> float:
        """The driver's CPU time a run, as a share of a run of `RUN_SECONDS`: with a tick a second, as with
        `SIDE_BY_SIDE` runs under way, and the most that drawing may take."""
        ticks = RUN_SECONDS / side_by_side
        return ((self.seconds - self.idle_sum) / self.runs + ticks * (self.idle_tick + DRAWING_SHARE)) / RUN_SECONDS


def drive(folder: Path) -> Driven:
    """Execute the sweep with simulated runs in this process, by the command line's own code and as on a terminal.

    Args:
        folder: holds the declaration and gets the results.
    """
    from rich.console import Console

    from tdmpc2 import cli
    from tdmpc2.sweeps import commands, tables

    os.chdir(folder)
    executor = SimulatedRuns(SIDE_BY_SIDE)

    def make_executor(args: argparse.Namespace, stop: StopRequest, *rest: object) -> Any:
        return executor

    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        mock.patch.object(commands, "_make_executor", make_executor),
        mock.patch.object(tables, "make_console", functools.partial(Console, file=nowhere, **TERMINAL)),
    ):
        start = time.process_time()
        cli.main(["sweep", "run", NAME, "--skip-unavailable", "--retries", "0"])
        spent = time.process_time() - start - executor.own_seconds
    idle = sum(executor.idle_ticks)
    return Driven(
        runs=len(list((folder / "results" / NAME / "runs").iterdir())),
        seconds=spent,
        planning=spent - idle - sum(executor.other_ticks),
        idle_tick=float(np.median(executor.idle_ticks)),
        idle_sum=idle,
        memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2),
    )


def command_seconds(folder: Path, *words: str) -> tuple[float, float]:
    """One `tdmpc2 sweep` command, its start included: wall-clock seconds, and CPU seconds."""
    code = "import sys; from tdmpc2.cli import main; sys.exit(main())"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, "sweep", *words], cwd=folder, stdout=subprocess.DEVNULL, check=True, env=os.environ
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def drop_from_cache(folder: Path) -> None:
    """Let the system forget the content of a folder's files, as far as it will."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ray_overhead(folder: Path) -> tuple[list[float], list[float]]:
    """Runs that do nothing but load the training code, one after another on Ray on one core of this machine.

    Returns:
        wall-clock seconds from one begin to the next; CPU seconds of each run's process until its training would start.
    """
    from tdmpc2.sweeps.declaration import load_declaration
    from tdmpc2.sweeps.execution import SweepExecution
    from tdmpc2.sweeps.folder import SweepFolder
    from tdmpc2.sweeps.planning import plan_runs
    from tdmpc2.sweeps.ray_executor import RayExecutor

    os.chdir(folder)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    file = folder / "ray.yaml"
    file.write_text(f"tasks: [pendulum-spin]\nsizes: [1]\nseeds: [{', '.join(map(str, range(1, RAY_RUNS + 1)))}]\n")
    runs, stop = plan_runs(load_declaration(file)), StopRequest()
    executor = RayExecutor(train=_loading_only())
    try:
        executor.check(runs)
        outcomes = SweepExecution(SweepFolder("results", "ray"), runs, executor, stop, retries=0).execute(lambda: None)
    finally:
        executor.close()
    bad = [f"{outcome.name}: {outcome.message}" for outcome in outcomes.values() if outcome.end != "done"]
    if bad:
        raise RuntimeError("; ".join(bad))
    begun, spent = zip(*(json.loads(line) for line in (folder / "begun").read_text().splitlines()), strict=True)
    return [after - before for before, after in itertools.pairwise(begun)], list(spent)


def _loading_only() -> Callable[..., None]:
    """What the workers execute: a function within a function, for they cannot import this file."""

    def train(config: Config, show_progress: bool, stop: StopRequest) -> None:
        import json
        import time

        import tdmpc2.training.run  # noqa: F401  # loads torch, which is what takes the time

        with open("begun", "a") as file:
            file.write(json.dumps([time.time(), time.process_time()]) + "\n")

    return train


def measure_sweeps(seeds: int = SEEDS) -> list[Measurement]:
    """A sweep of 520 runs a seed: the driver's time and memory, the commands' answers, and Ray's time a run."""
    results: list[Measurement] = []

    def add(what: str, unit: str, *values: float) -> None:
        results.append(summarise(what, unit, values, 1))

    alone = functools.partial(multiprocessing.get_context("spawn").Pool, 1)  # for memory and time of its own
    with tempfile.TemporaryDirectory(prefix="tdmpc2-bench-") as name:
        folder = Path(name)
        declare(folder, seeds)
        with alone() as pool:
            driven = pool.apply(drive, (folder,))
        what = f"driver of {driven.runs:,} simulated runs"
        add(f"{what}: CPU a run, without idle ticks", "ms", 1e3 * (driven.seconds - driven.idle_sum) / driven.runs)
        add(f"{what}: of all, planning, checks, report", "s CPU", driven.planning)
        add(f"{what}: idle tick, {SIDE_BY_SIDE} under way", "ms CPU", 1e3 * driven.idle_tick)
        for count in (8, SIDE_BY_SIDE):
            add(f"{what}: CPU a run of an hour, {count} at a time", "%", 100 * driven.share(count))
        add(f"{what}: peak memory", "MiB", driven.memory)
        for words in (["status", NAME], ["plan", NAME], ["list"]):
            times = [command_seconds(folder, *words) for _ in range(COMMANDS)]
            add(f"tdmpc2 sweep {' '.join(words)}", "s", *(wall for wall, _ in times))
            add(f"tdmpc2 sweep {' '.join(words)}: CPU", "s", *(cpu for _, cpu in times))
        drop_from_cache(folder)
        add(f"tdmpc2 sweep status {NAME}, files not in the cache", "s", command_seconds(folder, "status", NAME)[0])
        with alone() as pool:
            between, spent = pool.apply(ray_overhead, (folder,))
        add("Ray, one core: from one begin to the next, runs that only load the training code", "s", *between)
        add("Ray: CPU of a run's process before it trains", "s", *spent)
    return results
