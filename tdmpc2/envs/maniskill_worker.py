"""One ManiSkill2 environment in a process of its own: run by the Python of ManiSkill's environment, not by ours.

ManiSkill2 needs NumPy 1 and so cannot share an environment with the rest (see `tdmpc2.envs.maniskill`). This file
stands alone: it imports nothing of this project. It reads commands from standard input and answers on the file
descriptor that standard output was; what the simulator prints goes to standard error.

A message is a line of JSON, followed by the bytes of the array it announces by its `shape` and `dtype`, if any.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from typing import IO, Any

import numpy as np


class Nothing:
    """Stands for the renderer and all that hangs on it: whatever is called or set on it does nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __getattr__(self, _name: str) -> Nothing:
        return self

    def __call__(self, *_args: Any, **_kwargs: Any) -> Nothing:
        """Do nothing."""
        return self


class EngineWithoutRenderer:
    """SAPIEN's engine, less the renderer."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def set_renderer(self, _renderer: Any) -> None:
        """Take no renderer."""


def switch_pictures_off() -> None:
    """Have ManiSkill2 build scenes without visuals, cameras and lights: state observations need none of them.

    Its renderer needs a Vulkan device, and without one no environment could be made at all.
    """
    import mani_skill2.envs.sapien_env as environments
    import sapien.core as sapien

    engine, ground = sapien.Engine, environments.BaseEnv._add_ground
    environments.sapien.SapienRenderer = Nothing
    environments.sapien.Engine = lambda *args, **kwargs: EngineWithoutRenderer(engine(*args, **kwargs))
    for name in dir(sapien.ActorBuilder):
        if name.startswith("add_") and "visual" in name:
            setattr(sapien.ActorBuilder, name, lambda *_args, **_kwargs: None)

    def no_cameras(self: Any) -> None:
        self._cameras, self._render_cameras = {}, {}

    base = environments.BaseEnv
    base._setup_cameras = no_cameras
    base._setup_lighting = lambda _self: None
    base.update_render = lambda _self: None
    base._add_ground = lambda self, altitude=0.0, render=True: ground(self, altitude, False)


def make(task: str, control_mode: str, pictures: bool) -> Any:
    """The environment, unwrapped: it does not end before its caller does."""
    os.environ.setdefault("MS2_RENDERER_LOG_LEVEL", "off")
    if not pictures:
        switch_pictures_off()
    import gymnasium

    # "dense", since the default of these versions normalises the reward, which the published results did not.
    return gymnasium.make(
        task,
        obs_mode="state",
        control_mode=control_mode,
        reward_mode="dense",
        render_mode="rgb_array" if pictures else None,
        disable_env_checker=True,
    ).unwrapped


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], np.ndarray[Any, Any] | None]:
    """The next message and its array, if it has one.

    Raises:
        EOFError: the other side is gone.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):  # nothing, or a line that was broken off
        raise EOFError
    message = json.loads(line)
    if "shape" not in message:
        return message, None
    dtype, shape = np.dtype(message["dtype"]), tuple(message["shape"])
    size = dtype.itemsize * int(np.prod(shape))
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return message, np.frombuffer(content, dtype).reshape(shape)


def write_message(stream: IO[bytes], message: dict[str, Any], array: np.ndarray[Any, Any] | None = None) -> None:
    """Send a message, with an array behind it if there is one."""
    if array is not None:
        array = np.ascontiguousarray(array)
        message = {**message, "shape": list(array.shape), "dtype": array.dtype.str}
    stream.write(json.dumps(message).encode() + b"\n" + (b"" if array is None else array.tobytes()))
    stream.flush()


def answer(environment: Any, message: dict[str, Any], array: np.ndarray[Any, Any] | None) -> tuple[dict[str, Any], Any]:
    """What a command gives: a message, and an observation (`reset` with a seed, `step` with an action) or a picture.

    Raises:
        ValueError: there is no such command.
    """
    command = message["command"]
    if command == "reset":
        observation, _ = environment.reset(seed=message["seed"])
        return {"success": 0.0}, observation.astype(np.float32)
    if command == "step":
        observation, reward, _, _, info = environment.step(array)
        return {"reward": float(reward), "success": float(info["success"])}, observation.astype(np.float32)
    if command == "render":
        return {}, np.asarray(environment.render())
    raise ValueError(f"unknown command {command!r}")


def serve(environment: Any, commands: IO[bytes], answers: IO[bytes]) -> None:
    """Answer commands until the other side is gone."""
    box = environment.action_space
    described = {"action_dim": int(box.shape[0]), "control_freq": float(environment.control_freq)}
    write_message(answers, {**described, "obs_dim": int(environment.observation_space.shape[0])})
    while True:
        try:
            message, array = read_message(commands)
        except EOFError:
            return
        write_message(answers, *answer(environment, message, array))


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("control_mode")
    parser.add_argument("--pictures", action="store_true")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever the simulator prints must not mix with the answers
    try:
        serve(make(options.task, options.control_mode, options.pictures), sys.stdin.buffer, answers)
    except BrokenPipeError:
        return 0
    except Exception as error:  # whatever it was, the other side tells it
        traceback.print_exc()
        write_message(answers, {"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
