"""Speed of evaluation: episodes a minute, one by one, side by side, and with worker processes.

The ways take turns, a few steps each, so that what else the machine does
falls on all of them alike; beside each way's rate stands its ratio to one by one, turn for turn.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from typing import Any, NamedTuple

from measurements import Measurement, ratio, summarise

from tdmpc2 import TDMPC2, AgentSpec, Config
from tdmpc2.spec import ObsKind
from tdmpc2.tasks import get_task
from tdmpc2.training.evaluation import Evaluator
from tdmpc2.training.runtime import prepare_process

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


def measure_evaluation(
    seconds: float,
    threads: int,
    size: int = 1,
    obs: ObsKind = "state",
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
) -> list[Measurement]:
    """Episodes a minute of an untrained agent, each way; and as a multiple of one by one.

    Args:
        seconds: time spent on each way, starting it not counted; five turns at least.
        threads: CPU threads of the planner. Worker processes may use all cores.
        size: the agent's.
        obs: kind of observation.
        device: where it plans.
        settings: its other settings, by default a user's.

    Returns:
        a rate for each way, and how many times that of one by one it is.

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
    first = turns[WAYS[0]]
    return [
        summarise(
            f"evaluation, size {size}, {obs}: {way.name}",
            "episodes/min",
            turns[way],
            threads,
            faster=None if way == WAYS[0] else ratio(turns[way], first),
            baseline="" if way == WAYS[0] else "one by one",
        )
        for way in WAYS
    ]
