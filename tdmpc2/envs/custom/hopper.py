"""The planar hopper, hopping backwards."""

from __future__ import annotations

import numpy as np
from dm_control.rl import control
from dm_control.suite import hopper
from dm_control.utils import rewards

_CONTROL_TIMESTEP = 0.02


def hop_backwards(seed: int) -> control.Environment:
    """Hop backwards at 1 m/s."""
    physics = hopper.Physics.from_xml_string(*hopper.get_model_and_assets())
    return control.Environment(physics, HopBackwards(hopping=True, random=seed), control_timestep=_CONTROL_TIMESTEP)


class HopBackwards(hopper.Hopper):
    """Hop backwards, the torso kept above the foot."""

    def get_reward(self, physics: hopper.Physics) -> float:
        """Standing, times backward speed; in [0, 1]."""
        standing = rewards.tolerance(physics.height(), bounds=(0.6, 2.0))
        hopping = rewards.tolerance(
            physics.speed(), bounds=(-np.inf, -1.0), margin=0.5, value_at_margin=0.5, sigmoid="linear"
        )
        return standing * hopping
