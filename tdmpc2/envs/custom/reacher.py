"""The planar reacher with three links."""

from __future__ import annotations

from xml.etree import ElementTree

from dm_control.rl import control
from dm_control.suite import reacher

_ARM = """
<body name="arm0" pos="0 0 .01">
  <geom name="arm0" type="capsule" fromto="0 0 0 .09 0 0" size=".01" material="self"/>
  <joint name="shoulder0"/>
  <body name="arm1" pos=".09 0 0">
    <geom name="arm1" type="capsule" fromto="0 0 0 .09 0 0" size=".01" material="self"/>
    <joint name="shoulder1" limited="true" range="-80 80"/>
    <body name="hand" pos=".09 0 0">
      <geom name="hand" type="capsule" fromto="0 0 0 .1 0 0" size=".01" material="self"/>
      <joint name="wrist" limited="true" range="-80 80"/>
      <body name="finger" pos=".09 0 0">
        <camera name="hand" pos="0 0 .2" mode="track"/>
        <geom name="finger" type="sphere" size=".01" material="effector"/>
      </body>
    </body>
  </body>
</body>
"""
_MOTORS = """
<actuator>
  <motor name="shoulder0" joint="shoulder0"/>
  <motor name="shoulder1" joint="shoulder1"/>
  <motor name="wrist" joint="wrist"/>
</actuator>
"""


def three_easy(seed: int) -> control.Environment:
    """Reach a target of radius 0.05."""
    return _environment(target_radius=0.05, seed=seed)


def three_hard(seed: int) -> control.Environment:
    """Reach a target of radius 0.015."""
    return _environment(target_radius=0.015, seed=seed)


def _environment(target_radius: float, seed: int) -> control.Environment:
    """The stock task on the stock model, with the arm and its motors replaced."""
    xml, assets = reacher.get_model_and_assets()
    model = ElementTree.fromstring(xml)
    for path, old, new in [("worldbody", "body[@name='arm']", _ARM), (".", "actuator", _MOTORS)]:
        parent = model.find(path)
        assert parent is not None
        replaced = parent.find(old)
        assert replaced is not None
        parent[list(parent).index(replaced)] = ElementTree.fromstring(new)
    physics = reacher.Physics.from_xml_string(ElementTree.tostring(model), assets)
    return control.Environment(physics, reacher.Reacher(target_radius, random=seed))
