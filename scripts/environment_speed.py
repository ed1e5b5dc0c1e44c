"""Speed of environments: agent steps a second of one, of eight in this process, and of eight in several processes.

The three take turns, so that what else the machine does falls on all of them alike. Actions are random; starting the
next episode counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import numpy as np
from gymnasium.vector import VectorEnv
from measurements import Measurement, measure_in_turns, ratio, summarise

from tdmpc2.envs.make import Env, make_env, why_unavailable
from tdmpc2.envs.vector import make_vector_env
from tdmpc2.training.runtime import available_cores

TASKS = ("cheetah-run", "walker-walk", "dog-run", "mw-reach", "myo-reach", "pick-cube")
"""Of DMControl a cheap task, a usual and an expensive one; one of each other domain."""
SIDE_BY_SIDE = 8
TURN_STEPS = 25
"""Agent steps of every environment in one turn."""


def tasks_here(names: Sequence[str] = TASKS) -> tuple[list[str], dict[str, str]]:
    """Which tasks can be measured here, and why the others cannot."""
    lacking = {name: why_unavailable(name) for name in names}
    return [name for name in names if not lacking[name]], {name: why for name, why in lacking.items() if why}


def measure_environments(names: Sequence[str], seconds: float) -> list[Measurement]:
    """Three lines a task; those in several processes are held against those in this process, turn for turn.

    Args:
        names: tasks that are available.
        seconds: time spent on each task.
    """
    return [line for name in names for line in measure_environment(name, seconds)]


def measure_environment(name: str, seconds: float) -> list[Measurement]:
    """One task's lines: one environment, eight in this process, eight in as many processes as there are cores."""
    processes = min(SIDE_BY_SIDE, available_cores())
    seeds = range(SIDE_BY_SIDE)
    with ExitStack() as stack:
        single = stack.enter_context(closing(make_env(name, seed=0)))
        here = stack.enter_context(closing(make_vector_env([name] * SIDE_BY_SIDE, seeds)))
        apart = stack.enter_context(
            closing(make_vector_env([name] * SIDE_BY_SIDE, seeds, parallel=True, workers=processes, take_part=True))
        )
        turns = [stepping(single), *(stepping_together(env) for env in (here, apart))]
        one, together, spread = measure_in_turns(turns, seconds)

    def rates(times: Sequence[float], environments: int) -> list[float]:
        return [environments * TURN_STEPS / seconds for seconds in times]

    unit, many = "agent steps/s", f"{name}, {SIDE_BY_SIDE} in"
    faster, beside = ratio(together, spread), "one process"
    return [
        summarise(name, unit, rates(one, 1), 1),
        summarise(f"{many} one process", unit, rates(together, SIDE_BY_SIDE), 1),
        summarise(f"{many} {processes} processes", unit, rates(spread, SIDE_BY_SIDE), processes, None, faster, beside),
    ]


def stepping(env: Env) -> Callable[[], None]:
    """A turn of one environment."""
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(TURN_STEPS)]

    def turn() -> None:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return turn


def stepping_together(env: VectorEnv) -> Callable[[], None]:
    """A turn of environments side by side."""
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(TURN_STEPS)]

    def turn() -> None:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            ended = terminated | truncated
            if np.any(ended):
                env.reset(options={"reset_mask": ended})

    return turn
