"""What an episode must be before it is stored: right shapes and dtypes, finite numbers, actions in [-1, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np

from tdmpc2.data.layout import Layout
from tdmpc2.errors import UserError

ACTION_TOLERANCE = 1e-6


def episode_columns(
    layout: Layout, episode: int, obs: Any, action: Any, reward: Any, terminated: Any
) -> dict[str, np.ndarray]:
    """The rows to be stored of one episode of T agent steps, checked.

    Args:
        layout: what the store holds.
        episode: the episode's index, for messages.
        obs: (T+1, *obs_shape) of the store's dtype.
        action: (T, action_dim) real.
        reward: (T,) real.
        terminated: (T,) bool.

    Returns:
        One contiguous array (T+1, *field shape) a field; row 0 of action, reward and terminated is zero.

    Raises:
        ValueError: a shape or dtype is not the store's.
        UserError: a number is NaN or infinite, an action leaves [-1, 1], or stacked frames do not follow from one
            another; names the field, the task and the step (observation t follows action t; observation 0 comes first).
    """
    where = f"replay of {layout.task}, episode {episode}"
    arrays = {"obs": obs, "action": action, "reward": reward, "terminated": terminated}
    arrays = {name: np.asarray(values) for name, values in arrays.items()}
    steps = len(arrays["reward"]) if arrays["reward"].ndim else 0
    if steps == 0:
        raise ValueError(f"{where}: reward must be of shape (T,) with T >= 1, not {arrays['reward'].shape}")
    shapes = {
        "obs": (steps + 1, *layout.obs_shape),
        "action": (steps, layout.action_dim),
        "reward": (steps,),
        "terminated": (steps,),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{where}: {name} is of shape {arrays[name].shape}, expected {shape}")
    if arrays["obs"].dtype != layout.obs_dtype:
        raise ValueError(f"{where}: obs is {arrays['obs'].dtype}, the store holds {layout.obs_dtype}")
    if arrays["terminated"].dtype != np.bool_:
        raise ValueError(f"{where}: terminated is {arrays['terminated'].dtype}, expected bool")
    for name in ("action", "reward"):
        if arrays[name].dtype.kind not in "fiu":
            raise ValueError(f"{where}: {name} is {arrays[name].dtype}, expected real numbers")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
            arrays[name] = arrays[name].astype(np.float32)

    if layout.obs_dtype == "float32":
        _require_all(np.isfinite(arrays["obs"]), f"{where}: obs is NaN or infinite", first_step=0)
    for name in ("action", "reward"):
        _require_all(np.isfinite(arrays[name]), f"{where}: {name} is NaN or infinite", first_step=1)
    inside = np.abs(arrays["action"]) <= 1 + ACTION_TOLERANCE
    _require_all(inside, f"{where}: action is outside [-1, 1]", first_step=1)

    columns = {"obs": _newest_frames(layout, arrays["obs"], where)}
    for name in ("action", "reward", "terminated"):
        values = arrays[name]
        columns[name] = np.concatenate([np.zeros_like(values[:1]), values])
    return columns


def _require_all(sound: np.ndarray, fault: str, first_step: int) -> None:
    if not sound.all():
        row = int(np.flatnonzero(~sound.reshape(len(sound), -1).all(axis=1))[0])
        raise UserError(f"{fault} at step {row + first_step}")


def _newest_frames(layout: Layout, obs: np.ndarray, where: str) -> np.ndarray:
    """(T+1, *frame_shape): the newest frame of each observation, which together determine all stacks."""
    if layout.frame_stack == 1:
        return np.ascontiguousarray(obs)
    stacks = obs.reshape(len(obs), layout.frame_stack, *layout.frame_shape)
    frames = np.ascontiguousarray(stacks[:, -1])
    follows = np.concatenate([stacks[:1, :-1] == frames[0], stacks[1:, :-1] == stacks[:-1, 1:]])
    _require_all(
        follows,
        f"{where}: obs is not the last {layout.frame_stack} frames, oldest first and frame 0 repeated before it,",
        first_step=0,
    )
    return frames
