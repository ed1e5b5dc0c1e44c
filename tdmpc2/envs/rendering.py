"""OpenGL for DMControl: none until a picture is asked for, then EGL, or else OSMesa.

dm_control chooses its OpenGL when it is imported: without a display a GLFW that cannot draw, unless MUJOCO_GL says
otherwise, and then the import fails where that library is missing. It also takes longer than the rest of the import.
So dm_control is imported with rendering off here, and rendering is switched on when it is needed.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from typing import Any

import numpy as np

from tdmpc2.errors import UserError

_INSTALL = "on Debian or Ubuntu install libegl1 and libgl1-mesa-dri (EGL), or libosmesa6 (OSMesa)"
_SHADOW_SIZE = 1024
"""Texels across the map of shadows. MuJoCo's own 4,096 take 64 MB in each environment that is filmed, and pictures of a
few hundred pixels look the same without."""
_PROBE = "from dm_control import _render; _render.Renderer(max_width=64, max_height=64).free()"


def import_without_gl() -> None:
    """Import dm_control's render module with rendering off, unless someone has imported it before.

    Call this before anything else of dm_control is imported.

    Raises:
        UserError: MUJOCO_GL names an OpenGL with which MuJoCo itself cannot be imported.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if "dm_control._render" not in sys.modules:
        os.environ["MUJOCO_GL"] = "off"
        try:
            importlib.import_module("dm_control._render")
        finally:
            if chosen is None:
                del os.environ["MUJOCO_GL"]
            else:
                os.environ["MUJOCO_GL"] = chosen
    try:
        importlib.import_module("mujoco")
    except (AttributeError, RuntimeError) as error:  # PyOpenGL's AttributeError: a library is missing
        if not chosen:
            raise
        raise _cannot_load(chosen, error) from error


@functools.cache
def switch_rendering_on() -> None:
    """Load the OpenGL that MUJOCO_GL names, or EGL, or OSMesa where EGL does not work.

    The choice is left in MUJOCO_GL, for child processes. EGL is preferred, as OSMesa was seen returning a wrong frame
    for a second model in one process.

    Raises:
        UserError: none works, or MUJOCO_GL names one that cannot be loaded.
    """
    chosen = os.environ.get("MUJOCO_GL") or _first_that_works("egl", "osmesa")
    if chosen in ("off", "disable", "disabled", "false", "0"):
        raise UserError(f"MUJOCO_GL={chosen} switches rendering off; unset it, or set it to egl or osmesa")
    os.environ["MUJOCO_GL"] = chosen
    try:
        importlib.reload(importlib.import_module("dm_control._render"))
    except (ImportError, AttributeError, RuntimeError) as error:
        raise _cannot_load(chosen, error) from error


def _cannot_load(chosen: str, error: Exception) -> UserError:
    return UserError(f"MUJOCO_GL={chosen} cannot be loaded ({error}); unset it, or {_INSTALL}")


def _first_that_works(*backends: str) -> str:
    """The first backend with which a child process can open a context.

    A child, because a failed attempt leaves PyOpenGL bound to the wrong library, and a broken driver may crash.
    """
    faults = []
    for backend in backends:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            text=True,
            check=False,
        )
        if probe.returncode == 0:
            return backend
        reason = probe.stderr.strip().splitlines()
        faults.append(f"{backend}: {reason[-1] if reason else f'exit code {probe.returncode}'}")
    raise UserError(f"no OpenGL to render with ({'; '.join(faults)}): {_INSTALL}")


class SceneRenderer:
    """Pictures of a MuJoCo model's scene, for simulators that are not dm_control's.

    OpenGL is loaded when the first picture is asked for.

    Args:
        model: the model (`mujoco.MjModel`).
        data: its state (`mujoco.MjData`).
        camera: name of the camera.
        upside_down: whether the camera stands on its head, so that its pictures must be turned.
    """

    def __init__(self, model: Any, data: Any, camera: str, upside_down: bool = False) -> None:
        self._model, self._data, self._camera, self._upside_down = model, data, camera, upside_down
        self._renderers: dict[tuple[int, int], Any] = {}

    def picture(self, height: int, width: int) -> np.ndarray[Any, Any]:
        """The scene as uint8 (height, width, 3).

        Raises:
            UserError: nothing can render here.
        """
        if (height, width) not in self._renderers:
            switch_rendering_on()
            from mujoco.rendering.classic import gl_context, renderer

            # MuJoCo chose its OpenGL when it was imported, which may have been before the choice was made.
            importlib.reload(gl_context)
            importlib.reload(renderer)
            self._model.vis.global_.offheight = max(height, self._model.vis.global_.offheight)
            self._model.vis.global_.offwidth = max(width, self._model.vis.global_.offwidth)
            quality = self._model.vis.quality
            quality.shadowsize = min(quality.shadowsize, _SHADOW_SIZE)
            self._renderers[height, width] = renderer.Renderer(self._model, height, width)
        drawn = self._renderers[height, width]
        drawn.update_scene(self._data, camera=self._camera)
        picture: np.ndarray[Any, Any] = drawn.render()
        return picture[::-1, ::-1].copy() if self._upside_down else picture

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for drawn in self._renderers.values():
            drawn.close()
        self._renderers.clear()
