"""The 11 custom DMControl tasks of mt30, on dm_control's public models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tdmpc2.envs.custom import cheetah, cup, hopper, pendulum, reacher, walker

if TYPE_CHECKING:
    from dm_control.rl import control

CUSTOM_TASKS: Mapping[str, Callable[[int], control.Environment]] = {
    "walker-walk-backwards": walker.walk_backwards,
    "walker-run-backwards": walker.run_backwards,
    "cheetah-run-backwards": cheetah.run_backwards,
    "cheetah-run-front": cheetah.run_front,
    "cheetah-run-back": cheetah.run_back,
    "cheetah-jump": cheetah.jump,
    "hopper-hop-backwards": hopper.hop_backwards,
    "reacher-three-easy": reacher.three_easy,
    "reacher-three-hard": reacher.three_hard,
    "cup-spin": cup.spin,
    "pendulum-spin": pendulum.spin,
}
"""By task name, the function that builds the task's dm_control environment from a seed."""
