"""Speed of multi-task work: evaluating many tasks, sampling from many stores, updates on what is sampled."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from data_memory import make_dataset
from evaluation_speed import LEAST_TURNS, step_seconds
from measurements import Measurement, measure, measure_in_turns, ratio, summarise

from tdmpc2 import TDMPC2, AgentSpec
from tdmpc2.config import Config, make_settings
from tdmpc2.data.multitask import MultitaskReplay
from tdmpc2.data.prefetch import Prefetcher
from tdmpc2.tasks import TASK_SETS, get_task
from tdmpc2.training.evaluation import Evaluator
from tdmpc2.training.runtime import prepare_process

EVALUATED = TASK_SETS["mt30"][::4]
"""Tasks that are evaluated: eight of mt30's, of seven bodies."""
EPISODES = 2
STORES, ROWS = 240, 1_000_000
"""As many stores as mt80 has with three seeds; how many rows they hold hardly matters (results/records/data.md)."""
BATCH, HORIZON = 1024, 3


def measure_multitask_evaluation(
    seconds: float, threads: int, size: int, device: str, settings: dict[str, str]
) -> list[Measurement]:
    """Tasks x episodes a minute, all side by side and one by one, turn for turn.

    Args:
        seconds: time spent on each way; five turns at least.
        threads: CPU threads of the planner.
        size: the agent's.
        device: where it plans.
        settings: precision and compile.
    """
    prepare_process(threads)
    config = make_settings(Config, {"task": ",".join(EVALUATED), "model_size": size, **settings})
    agent = TDMPC2(config, AgentSpec.from_tasks(EVALUATED), device)
    length = get_task(EVALUATED[0]).episode_length
    count = len(EVALUATED) * EPISODES
    together: list[float] = []
    apart: list[float] = []
    with ExitStack() as stack:

        def evaluator(tasks: list[str]) -> Evaluator:
            return stack.enter_context(closing(Evaluator(tasks, "state", 0, False, agent.spec)))

        whole = evaluator([name for name in EVALUATED for _ in range(EPISODES)])
        singles = [evaluator([name]) for name in EVALUATED]
        step_seconds(whole, agent)
        begin = time.monotonic()
        while len(together) < LEAST_TURNS or time.monotonic() - begin < 2 * seconds:
            together.append(60 * count / (length * step_seconds(whole, agent)))
            steps = [step_seconds(single, agent) for single in singles]
            apart.append(60 * len(singles) / (length * sum(steps)))
    what = f"evaluation of {len(EVALUATED)} tasks x {EPISODES} episodes, size {size}"
    return [
        summarise(f"{what}: one by one", "episodes/min", apart, threads),
        summarise(f"{what}: side by side", "episodes/min", together, threads,
                  faster=ratio(together, apart), baseline="one by one"),
    ]  # fmt: skip


def measure_offline(
    size: int, seconds: float, threads: int, device: torch.device, settings: dict[str, str]
) -> list[Measurement]:
    """Sampling 1,024 sequences from 240 stores of mt80's tasks; offline updates with them, and without sampling.

    Args:
        size: the agent's.
        seconds: time for each.
        threads: CPU threads, for the record.
        device: where the agent learns.
        settings: precision and compile.
    """
    with tempfile.TemporaryDirectory(prefix="tdmpc2-bench-") as folder:
        data = make_dataset(Path(folder), ROWS, 80, STORES // 80, 500, dense=True)
        generator = torch.Generator().manual_seed(0)
        with MultitaskReplay(data, HORIZON) as replay:
            buffers = replay.empty_batch(BATCH)
            sampling = measure(lambda: replay.sample(BATCH, generator, buffers), seconds)
            agent = TDMPC2(
                make_settings(Config, {"task": "mt80", "model_size": size, **settings}), data.spec, str(device)
            )
            batches = Prefetcher(replay, BATCH, generator, device)
            try:
                fixed = replay.sample(BATCH, torch.Generator().manual_seed(1))
                updates, without = measure_in_turns(
                    [lambda: agent.update(batches.next()), lambda: agent.update(fixed)], seconds, least=3, device=device
                )
            finally:
                batches.close()
    what = f"size {size}, mt80, batch {BATCH}"
    return [
        summarise(f"sample {BATCH} x {HORIZON + 1} of {STORES} stores", "ms", [t * 1e3 for t in sampling], threads),
        summarise(f"offline update, {what}, sampling included", "ms", [t * 1e3 for t in updates], threads,
                  faster=ratio(without, updates), baseline="without sampling"),
    ]  # fmt: skip
