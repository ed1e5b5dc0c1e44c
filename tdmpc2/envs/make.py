"""Environments by task name, whichever simulator they run in."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, NamedTuple, get_args

import gymnasium
import numpy as np

from tdmpc2.errors import UserError, unknown_name
from tdmpc2.spec import ObsKind
from tdmpc2.tasks import OWN, get_task

Env = gymnasium.Env[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class Backend(NamedTuple):
    """Where the environments of one domain are built."""

    module: str
    """Module with a function `build(task, seed, obs)`; imported when a task of the domain is first asked for."""
    package: str | None
    """The simulator's Python package; None where the module itself knows what there is: it has a function
    `why_unavailable(task)`."""


BACKENDS: dict[str, Backend] = {
    "dmcontrol": Backend("tdmpc2.envs.dmcontrol", "dm_control"),
    "metaworld": Backend("tdmpc2.envs.metaworld", "metaworld"),
    "myosuite": Backend("tdmpc2.envs.myosuite", "myosuite"),
    "maniskill": Backend("tdmpc2.envs.maniskill", None),
    OWN: Backend("tdmpc2.envs.gymnasium_env", None),
}
"""The domains by name."""


def why_unavailable(name: str) -> str:
    """Why a task cannot be run here, with the command that helps; "" where nothing is known to be lacking.

    Nothing is imported or built, so it is quick, and a simulator that is there but broken is not found out.

    Raises:
        UserError: there is no such task.
    """
    task = get_task(name)
    backend = BACKENDS[task.domain]
    if backend.package is None:
        return str(importlib.import_module(backend.module).why_unavailable(task))
    if importlib.util.find_spec(backend.package) is None:
        return f"the Python package {backend.package} is not installed; `make setup` installs it"
    return ""


def make_env(name: str, seed: int = 0, obs: ObsKind = "state") -> Env:
    """One environment of a task.

    * Observation: float32 vector of the task's length (state), or uint8 (9, 64, 64), three RGB frames of 64 x 64
      stacked along the channels, oldest first (rgb).
    * Action: float32 vector in [-1, 1], clipped to it, repeated `action_repeat` times with the rewards summed.
    * `truncated` is true at the task's time limit (`episode_length` agent steps).
    * `info["success"]` is always there: 1.0 or 0.0, NaN in tasks without a success criterion (all of DMControl).
    * `render()` gives an RGB picture for videos, apart from the observation.
    * `reset(seed=s)` makes the episodes that follow a function of s and the actions; `reset()` goes on with the
      stream that the construction seed, or the last seeded reset, began.

    Args:
        name: a task of the registry.
        seed: seed of the environment and of its action space, in [0, 2**32).
        obs: kind of observation.

    Raises:
        UserError: the task is unknown, its simulator is not installed or lacks files, or pixels are asked for where
            nothing can render, or of a task that has none.
        RuntimeError: the simulator's dims are not those of the registry.
    """
    task = get_task(name)
    if obs not in get_args(ObsKind):
        raise unknown_name("observation kind", obs, get_args(ObsKind), "obs")
    reason = why_unavailable(name)
    if reason:
        raise UserError(f"task {name} cannot be run: {reason}")
    env: Env = importlib.import_module(BACKENDS[task.domain].module).build(task, seed, obs)
    return env
