"""Ball in cup, with the ball swung round outside the cup."""

from __future__ import annotations

import numpy as np
from dm_control.rl import control
from dm_control.suite import ball_in_cup
from dm_control.utils import rewards

_CONTROL_TIMESTEP = 0.02
_START_OUTSIDE = 0.1  # probability that an episode may start with the ball outside the cup


def spin(seed: int) -> control.Environment:
    """Swing the ball fast and far from the cup."""
    physics = ball_in_cup.Physics.from_xml_string(*ball_in_cup.get_model_and_assets())
    return control.Environment(physics, Spin(random=seed), control_timestep=_CONTROL_TIMESTEP)


class Spin(ball_in_cup.BallInCup):
    """Start with the ball in the cup, mostly; get it out and swing it round."""

    def initialize_episode(self, physics: ball_in_cup.Physics) -> None:
        """Draw ball positions until one touches nothing and is inside the cup, where it must be."""
        may_start_outside = self.random.uniform() < _START_OUTSIDE
        super().initialize_episode(physics)  # the stock task's start: anywhere without a contact
        while not (may_start_outside or physics.in_target()):
            super().initialize_episode(physics)

    def get_reward(self, physics: ball_in_cup.Physics) -> float:
        """Distance of the ball from the cup's inside and, twice as much, its speed; 0 while in there; in [0, 1]."""
        distance = rewards.tolerance(
            float(np.linalg.norm(physics.ball_to_target())),
            bounds=(0.5, np.inf),
            margin=0.25,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        speed = rewards.tolerance(
            float(np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]])),
            bounds=(6.0, np.inf),
            margin=3.0,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        return (1 - physics.in_target()) * (distance + 2 * speed) / 3
