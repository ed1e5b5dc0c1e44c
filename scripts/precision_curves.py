"""Learning curves in float32 and in bfloat16, to show whether bfloat16 costs returns: `--help` says how.

On a machine without bfloat16 instructions its arithmetic is imitated at float32's speed: inputs and outputs of every
matrix product, forward and backward, are rounded to bfloat16, and sums are kept in float32, as the instructions do it.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
from typing import Any

import torch
from torch import Tensor

from tdmpc2.agent.execution import choose_device, has_fast_bfloat16
from tdmpc2.config import Config, make_settings


def rounded(x: Tensor) -> Tensor:
    """To the nearest bfloat16 number, kept as float32; its gradient is rounded likewise."""
    return x.bfloat16().float()


def imitate_bfloat16() -> None:
    """Round around every matrix product of this process from now on."""
    linear, addmm, baddbmm = torch.nn.functional.linear, torch.addmm, torch.baddbmm

    def rounded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return rounded(linear(rounded(x), rounded(weight), None if bias is None else rounded(bias)))

    def rounded_addmm(base: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return rounded(addmm(rounded(base), rounded(x), rounded(y)))

    def rounded_baddbmm(base: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return rounded(baddbmm(rounded(base), rounded(x), rounded(y)))

    patched: Any = torch
    patched.nn.functional.linear, patched.addmm, patched.baddbmm = rounded_linear, rounded_addmm, rounded_baddbmm


def train_one(task: str, seed: int, precision: str, settings: dict[str, str]) -> None:
    """One run, in a process of its own; resumes where it stopped."""
    from tdmpc2.training.run import train

    imitated = precision == "bfloat16" and not has_fast_bfloat16(choose_device(settings.get("device", "auto")))
    if imitated:
        imitate_bfloat16()
    values = {
        **settings,
        "task": task,
        "seed": seed,
        "threads": 1,
        "precision": "float32" if imitated else precision,
        "label": f"{precision}-imitated" if imitated else precision,
    }
    train(make_settings(Config, values), show_progress=False)


def main() -> None:
    """Train every task with every seed in both precisions, a few at a time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["pendulum-spin", "cartpole-swingup"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("settings", nargs="*", help="settings of all runs, key=value as for `tdmpc2 train`")
    options = parser.parse_args()
    settings = {"exp_name": "precision", **dict(word.split("=", 1) for word in options.settings)}
    os.environ["OMP_NUM_THREADS"] = "1"
    runs = [
        (task, seed, precision, settings)
        for seed, task, precision in itertools.product(options.seeds, options.tasks, ("float32", "bfloat16"))
    ]
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.parallel, maxtasksperchild=1) as pool:
        pool.starmap(train_one, runs, chunksize=1)


if __name__ == "__main__":
    main()
