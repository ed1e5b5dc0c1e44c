"""The planar walker, going backwards."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
from dm_control.rl import control
from dm_control.suite import walker
from dm_control.utils import rewards

_CONTROL_TIMESTEP = 0.025
_FLOOR = "500 .8 .2"  # half-length 500, twice the stock model's, since the stock floor ends 2 m behind the start


def walk_backwards(seed: int) -> control.Environment:
    """Walk backwards at 1 m/s."""
    return _environment(speed=1.0, seed=seed)


def run_backwards(seed: int) -> control.Environment:
    """Run backwards at 8 m/s."""
    return _environment(speed=8.0, seed=seed)


def _environment(speed: float, seed: int) -> control.Environment:
    xml, assets = walker.get_model_and_assets()
    model = ElementTree.fromstring(xml)
    floor = model.find(".//geom[@name='floor']")
    assert floor is not None
    floor.set("size", _FLOOR)
    physics = walker.Physics.from_xml_string(ElementTree.tostring(model), assets)
    return control.Environment(physics, BackwardsWalker(speed, seed), control_timestep=_CONTROL_TIMESTEP)


class BackwardsWalker(walker.PlanarWalker):
    """The stock walker's task with the bound on its velocity turned round."""

    def __init__(self, speed: float, random: int) -> None:
        super().__init__(move_speed=0, random=random)  # the stock reward at speed 0 is that for standing
        self._speed = speed

    def get_reward(self, physics: walker.Physics) -> float:
        """Standing upright, times moving backwards at `speed` m/s or more; in [0, 1]."""
        move = rewards.tolerance(
            physics.horizontal_velocity(),
            bounds=(-np.inf, -self._speed),
            margin=self._speed / 2,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        return super().get_reward(physics) * (5 * move + 1) / 6
