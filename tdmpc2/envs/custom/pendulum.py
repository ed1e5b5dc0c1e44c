"""The pendulum, spun round."""

from __future__ import annotations

import numpy as np
from dm_control.rl import control
from dm_control.suite import pendulum
from dm_control.utils import rewards


def spin(seed: int) -> control.Environment:
    """Spin at 9 rad/s or more, either way."""
    physics = pendulum.Physics.from_xml_string(*pendulum.get_model_and_assets())
    return control.Environment(physics, Spin(random=seed))


class Spin(pendulum.SwingUp):
    """Spin the pole; its start and observation are the stock swing-up's."""

    def get_reward(self, physics: pendulum.Physics) -> float:
        """Angular speed, as a share of 9 rad/s; in [0, 1]."""
        return rewards.tolerance(
            float(np.abs(physics.angular_velocity()).item()),
            bounds=(9.0, np.inf),
            margin=4.5,
            value_at_margin=0.5,
            sigmoid="linear",
        )
