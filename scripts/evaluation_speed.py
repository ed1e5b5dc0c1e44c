"""Measure evaluation: episodes a minute, one by one, side by side, and with worker processes.

`python scripts/evaluation_speed.py --help`. The ways take turns, a few steps each, so that what else the machine does
falls on all of them alike; beside each way's rate stands its ratio to one by one, turn for turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any, NamedTuple, get_args

import numpy as np

from tdmpc2 import TDMPC2, AgentSpec, Config
from tdmpc2.spec import ObsKind
from tdmpc2.tasks import get_task
from tdmpc2.training.evaluation import Evaluator
from tdmpc2.training.runtime import available_cores, describe_hardware, prepare_process

TASK = "walker-walk"
TURN_STEPS = 4
"""Steps of every episode in one turn, after one that is not counted."""
LEAST_TURNS = 5


class Way(NamedTuple):
    """One way to evaluate."""

    name: str
    episodes: int
    parallel: bool


WAYS = (
    Way("one by one", 1, False),
    Way("10 side by side", 10, False),
    Way("10 side by side, worker processes", 10, True),
)


class _TurnOver(Exception):  # noqa: N818  # not an error
    """Enough steps for this turn."""


def step_seconds(evaluator: Evaluator, agent: TDMPC2) -> float:
    """Seconds that a step of all episodes takes, choosing the actions included."""
    stamps: list[float] = []

    def on_step(step: int) -> None:
        stamps.append(time.perf_counter())
        if step > TURN_STEPS:
            raise _TurnOver

    with suppress(_TurnOver):
        evaluator.evaluate(agent, 0, on_step)
    return (stamps[-1] - stamps[1]) / TURN_STEPS


def summarise(what: str, unit: str, values: Sequence[float], threads: int) -> dict[str, Any]:
    """Median and quartiles, under the names that the benchmark's record has."""
    low, median, high = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75]))
    return {
        "what": what,
        "unit": unit,
        "median": median,
        "quartiles": (low, high),
        "repeats": len(values),
        "threads": threads,
    }


def measure_evaluation(
    seconds: float,
    threads: int,
    size: int = 1,
    obs: ObsKind = "state",
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Episodes a minute of an untrained agent, each way; and as a multiple of one by one.

    Args:
        seconds: time spent on each way, starting it not counted; five turns at least.
        threads: CPU threads of the planner. Worker processes may use all cores.
        size: the agent's.
        obs: kind of observation.
        device: where it plans.
        settings: its other settings, by default a user's.

    Returns:
        a rate for each way and a ratio for all but the first, with the fields of the benchmark's measurements.

    Raises:
        UserError: nothing can render here, with pixels.
    """
    prepare_process(threads)
    config = Config(task=TASK, model_size=size, obs=obs, **(settings or {}))
    agent = TDMPC2(config, AgentSpec.from_tasks([TASK], obs), device)
    turns: dict[Way, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        evaluators = {
            way: stack.enter_context(closing(Evaluator([TASK] * way.episodes, obs, 0, way.parallel))) for way in WAYS
        }
        for way in WAYS:
            step_seconds(evaluators[way], agent)
        begin = time.monotonic()
        while len(turns[WAYS[0]]) < LEAST_TURNS or time.monotonic() - begin < seconds * len(WAYS):
            for way in WAYS:
                step = step_seconds(evaluators[way], agent)
                turns[way].append(60 * way.episodes / (get_task(TASK).episode_length * step))
    results = []
    for way in WAYS:
        what = f"evaluation, size {size}, {obs}: {way.name}"
        results.append(summarise(what, "episodes/min", turns[way], threads))
        if way != WAYS[0]:
            ratios = [own / single for own, single in zip(turns[way], turns[WAYS[0]], strict=True)]
            results.append(summarise(f"{what}, against one by one", "times", ratios, threads))
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1], help="model sizes (default: 1)")
    parser.add_argument("--obs", nargs="+", choices=get_args(ObsKind), default=["state"], help="default: state")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of CPU threads (default: 1 and all)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time spent on each way (default: 20)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--light", action="store_true", help="plan with 2 iterations of 64 samples")
    options = parser.parse_args()
    settings = {"iterations": 2, "num_samples": 64} if options.light else {}
    print(describe_hardware())
    for threads in options.threads or sorted({1, available_cores()}):
        for size in options.sizes:
            for obs in options.obs:
                for r in measure_evaluation(options.seconds, threads, size, obs, options.device, settings):
                    low, high = r["quartiles"]
                    print(
                        f"{r['what']}: {r['median']:.3g} {r['unit']} (quartiles {low:.3g} - {high:.3g};"
                        f" {r['threads']} threads, {r['repeats']} turns)",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
