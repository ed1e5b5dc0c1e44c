"""The cheetah, running backwards, on one foot, and jumping."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
from dm_control.rl import control
from dm_control.suite import cheetah
from dm_control.utils import rewards

_FLOOR = "200 .8 .5"  # half-length 200, twice the stock model's, since the stock floor ends 2 m behind the start
_BACKWARDS_SPEED = 8.0
_ONE_FOOT_SPEED = 6.0
_HEIGHT = 1.2


def run_backwards(seed: int) -> control.Environment:
    """Run backwards at 8 m/s."""
    return _environment(RunBackwards(random=seed))


def run_front(seed: int) -> control.Environment:
    """Run at 6 m/s on the front foot, with the back foot up."""
    return _environment(RunOnOneFoot("bfoot", random=seed))


def run_back(seed: int) -> control.Environment:
    """Run at 6 m/s on the back foot, with the front foot up."""
    return _environment(RunOnOneFoot("ffoot", random=seed))


def jump(seed: int) -> control.Environment:
    """Jump up and down without moving along."""
    return _environment(Jump(random=seed))


def _environment(task: cheetah.Cheetah) -> control.Environment:
    xml, assets = cheetah.get_model_and_assets()
    model = ElementTree.fromstring(xml)
    ground = model.find(".//geom[@name='ground']")
    assert ground is not None
    ground.set("size", _FLOOR)
    physics = cheetah.Physics.from_xml_string(ElementTree.tostring(model), assets)
    return control.Environment(physics, task)


def _height(physics: cheetah.Physics, body: str) -> float:
    return float(physics.named.data.xpos[body, "z"])


class RunBackwards(cheetah.Cheetah):
    """Run backwards."""

    def get_reward(self, physics: cheetah.Physics) -> float:
        """Backward speed, as a share of 8 m/s; in [0, 1]."""
        return rewards.tolerance(
            physics.speed(),
            bounds=(-np.inf, -_BACKWARDS_SPEED),
            margin=_BACKWARDS_SPEED,
            value_at_margin=0,
            sigmoid="linear",
        )


class RunOnOneFoot(cheetah.Cheetah):
    """Run with one foot off the ground."""

    def __init__(self, raised_foot: str, random: int) -> None:
        super().__init__(random=random)
        self._raised_foot = raised_foot

    def get_reward(self, physics: cheetah.Physics) -> float:
        """Height of the raised foot and of the torso, times forward speed; in [0, 1]."""
        foot, torso = (
            rewards.tolerance(_height(physics, body), bounds=(_HEIGHT, np.inf), margin=_HEIGHT / 2)
            for body in (self._raised_foot, "torso")
        )
        up = (3 * foot + 2 * torso) / 5
        move = rewards.tolerance(
            physics.speed(),
            bounds=(_ONE_FOOT_SPEED, np.inf),
            margin=_ONE_FOOT_SPEED,
            value_at_margin=0,
            sigmoid="linear",
        )
        return up * (5 * move + 1) / 6


class Jump(cheetah.Cheetah):
    """Jump on the spot."""

    def get_reward(self, physics: cheetah.Physics) -> float:
        """Height of torso and feet, plus standing still along the floor; in [0, 1]."""
        torso = _height(physics, "torso")
        back, front = (
            rewards.tolerance((torso + _height(physics, foot)) / 2, bounds=(_HEIGHT, np.inf), margin=_HEIGHT / 2)
            for foot in ("bfoot", "ffoot")
        )
        still = rewards.tolerance(physics.speed(), bounds=(-0.5, 0.5), margin=0.5, value_at_margin=0, sigmoid="linear")
        return (5 * (back + front) / 2 + still) / 6
