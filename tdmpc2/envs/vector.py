"""Several environments stepped together, in this process or in processes of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from tdmpc2.envs.make import Env, make_env
from tdmpc2.errors import UserError
from tdmpc2.spec import FRAME_SHAPE, ObsKind
from tdmpc2.tasks import get_task


@dataclass(frozen=True)
class _EnvBuilder:
    """Builds one environment, here or in a worker process."""

    name: str
    seed: int
    obs: ObsKind
    owner: int = field(default_factory=os.getpid)

    def __call__(self) -> Env:
        if os.getpid() != self.owner:
            # Ctrl-C reaches every process of the terminal. The owner answers it, with its workers still there.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return make_env(self.name, self.seed, self.obs)


def make_vector_env(
    names: Sequence[str], seeds: Sequence[int], obs: ObsKind = "state", parallel: bool = False
) -> VectorEnv:
    """Environments of equal shapes, stepped together.

    Nothing resets by itself. The caller resets the episodes that ended, each with a seed of its own:

        seeds = [...]  # one an environment; those of environments that go on are not used
        obs, info = env.reset(seed=seeds, options={"reset_mask": terminated | truncated})

    Gymnasium takes the mask out of `options`, so pass a new dict each time. `info["success"]` (num_envs,) is there
    after every step, the last one of an episode included. Where an exception broke off a step of parallel
    environments, close them with `close(terminate=True)`: a worker's answer may be lost.

    Args:
        names: one task an environment.
        seeds: one construction seed an environment, in [0, 2**32).
        obs: kind of observation.
        parallel: a process for each environment, observations in shared memory. The processes come from a fork
            server, not from a fork of this process, whose torch threads or OpenGL contexts would not survive it; so a
            script that calls this needs the usual `if __name__ == "__main__":`.

    Raises:
        UserError: the tasks' shapes differ, names and seeds differ in length, or as `make_env`.
    """
    if not names or len(names) != len(seeds):
        raise UserError(f"make_vector_env: {len(names)} names and {len(seeds)} seeds; give one seed for each name")
    shapes: dict[tuple[tuple[int | None, ...], int], str] = {}
    for task in map(get_task, names):
        shapes.setdefault(((task.obs_dim,) if obs == "state" else FRAME_SHAPE, task.action_dim), task.name)
    if len(shapes) > 1:
        found = "; ".join(f"{name}: observation {shape}, action ({dim},)" for (shape, dim), name in shapes.items())
        raise UserError(f"tasks of different shapes cannot be stepped together: {found}")
    builders = [_EnvBuilder(name, seed, obs) for name, seed in zip(names, seeds, strict=True)]
    if parallel:
        return AsyncVectorEnv(builders, context="forkserver", autoreset_mode=AutoresetMode.DISABLED)
    return SyncVectorEnv(builders, autoreset_mode=AutoresetMode.DISABLED)
