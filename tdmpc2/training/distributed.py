"""One run in several processes, each with a part of every batch: what torchrun starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from tdmpc2.errors import UserError, require

LONGEST_WAIT = timedelta(days=7)
"""How long processes wait for one another: the others stand still while the first one evaluates. torchrun itself ends
all of them when one dies."""


class Team:
    """The processes of a run. The first one leads: it alone evaluates, writes, and speaks.

    Args:
        rank: this process's number.
        size: how many there are.
        local_rank: its number on this machine.
        local_size: how many there are on this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all must ask, and all wait for one another."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))  # on the CPU, whatever the run's device: nobody waits for a GPU
        torch.distributed.all_reduce(flags)
        return bool(flags)

    def device(self, wanted: str) -> str:
        """The device of this process, where the run's is `wanted`: each has a GPU of its own, or all are on the CPU.

        Raises:
            UserError: there are fewer GPUs than processes, or one GPU is asked for by its number.
        """
        if self.size == 1:
            return wanted
        require(":" not in wanted, f"device: {wanted} is one GPU; with {self.size} processes give cuda, cpu or auto")
        if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
            return "cpu"
        found = torch.cuda.device_count()
        require(
            found >= self.local_size,
            f"device: {self.local_size} processes on this machine, but {found} GPUs; start as many as there are GPUs "
            "(torchrun --nproc-per-node), or give device=cpu",
        )
        return f"cuda:{self.local_rank}"


@contextmanager
def join_team() -> Iterator[Team]:
    """The processes that torchrun started, or this one alone.

    Raises:
        UserError: torchrun's environment variables are incomplete.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} not set: start several processes by torchrun "
            "--nproc-per-node=K -m tdmpc2 train ..., or unset WORLD_SIZE"
        )
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    team = Team(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]), local_size)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=LONGEST_WAIT)
    try:
        yield team
    finally:
        torch.distributed.destroy_process_group()
