"""ManiSkill2: 5 tasks of a Panda arm, as Gymnasium environments that are stepped in another Python environment.

ManiSkill2 runs on NumPy 1 alone. So it is installed by `make setup-maniskill` into a virtual environment of its own,
beside the one in use, and each environment here is a process of that one (`maniskill_worker.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from tdmpc2.envs.maniskill_worker import read_message, write_message
from tdmpc2.envs.simulated import Array, ControlStep, SimulatedEnv, require_states
from tdmpc2.errors import UserError
from tdmpc2.spec import ObsKind
from tdmpc2.tasks import Task

PYTHON_VARIABLE = "TDMPC2_MANISKILL_PYTHON"
"""Environment variable that names the Python of another ManiSkill2 environment."""
INSTALL = "make setup-maniskill"
"""What installs it."""
WORKER = Path(__file__).with_name("maniskill_worker.py")
ASSETS = {
    "pick-ycb": ("mani_skill2_ycb", "ycb"),
    "turn-faucet": ("partnet_mobility/dataset", "partnet_mobility_faucet"),
}
"""Of tasks whose files only a download brings: where they lie in the folder of assets, and their name for it."""


def find_python() -> Path | None:
    """The Python of ManiSkill2's environment, None where it is not installed."""
    named = os.environ.get(PYTHON_VARIABLE)
    prefix = Path(sys.prefix)
    python = Path(named) if named else prefix.with_name(f"{prefix.name}-maniskill") / "bin" / "python"
    return python if python.is_file() else None


def asset_folder() -> Path:
    """Where ManiSkill2 looks for its assets."""
    return Path(os.environ.get("MS2_ASSET_DIR", "data"))


def why_unavailable(task: Task) -> str:
    """What a ManiSkill task lacks here, with the command that brings it; "" where it lacks nothing known."""
    python = find_python()
    if python is None:
        named = os.environ.get(PYTHON_VARIABLE)
        where = f" where {PYTHON_VARIABLE} says, {named}" if named else ""
        return f"ManiSkill2 is not installed{where}; `{INSTALL}` installs it"
    if task.name in ASSETS:
        place, name = ASSETS[task.name]
        if not (asset_folder() / place).is_dir():
            fetch = f"{python} -m mani_skill2.utils.download_asset {name}"
            return f"its assets are not in {asset_folder() / place} (MS2_ASSET_DIR); `{fetch}` downloads them"
    return ""


def build(task: Task, seed: int, obs: ObsKind) -> ManiSkillEnv:
    """The environment of a ManiSkill task; see `tdmpc2.envs.make.make_env`."""
    require_states(task, obs)
    return ManiSkillEnv(task, _start(task), seed, obs)


class Worker:
    """A process with one environment in it.

    Args:
        task: the task.
        pictures: whether it loads its renderer, which needs a Vulkan device.

    Raises:
        RuntimeError: it could not make the environment.
    """

    def __init__(self, task: Task, pictures: bool) -> None:
        self.pictures = pictures
        self._name = task.name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the worker
        python = find_python()
        assert python is not None  # `build` has seen to it
        command = [str(python), str(WORKER), *task.backend.split(), *(["--pictures"] if pictures else [])]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # The worker's own packages and nothing of ours.
            env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
            start_new_session=True,  # Ctrl-C is for us: we end it
        )
        self.description, _ = self._receive()

    def ask(self, command: str, array: Array | None = None, **details: Any) -> tuple[dict[str, Any], Array]:
        """Send a command and wait for its answer.

        Raises:
            RuntimeError: the worker failed, with what it said, or has ended. It is closed then.
        """
        if self._errors.closed:
            raise RuntimeError(f"{self._name}: ManiSkill2's worker was closed, or an error has ended it")
        try:
            write_message(self._pipe(self._process.stdin), {"command": command, **details}, array)
            message, answer = self._receive()
        except BrokenPipeError:
            raise self._death() from None
        except BaseException:  # Ctrl-C, say: the answer would be taken for that to the next command
            self.close()
            raise
        assert answer is not None  # every command is answered by an array
        return message, answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # of a command that did not reach a dead worker
                self._pipe(stream).close()
        self._errors.close()

    def _receive(self) -> tuple[dict[str, Any], Array | None]:
        try:
            message, array = read_message(self._pipe(self._process.stdout))
        except EOFError:
            raise self._death() from None
        if "error" in message:
            raise self._failure(message["error"])
        return message, array

    def _death(self) -> RuntimeError:
        """The error for a worker that has ended by itself, with the last line that it wrote."""
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        how += "; the system may have run out of memory" if code == -signal.SIGKILL else ""
        return self._failure(f"died ({how})" + (f"; it said: {said[-1]}" if said else ""))

    def _failure(self, what: str) -> RuntimeError:
        self.close()
        return RuntimeError(f"{self._name}: ManiSkill2's worker: {what}")

    @staticmethod
    def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
        assert stream is not None  # opened as a pipe
        return stream


_renders: bool | None = None


def _start(task: Task) -> Worker:
    """A worker with its renderer where that works here, which the first one finds out; else one without pictures."""
    global _renders
    if _renders is not False:
        try:
            worker = Worker(task, pictures=True)
            _renders = True
            return worker
        except RuntimeError:
            if _renders:
                raise
    worker = Worker(task, pictures=False)  # fails where the fault is not the renderer's
    _renders = False
    return worker


class ManiSkillEnv(SimulatedEnv):
    """A ManiSkill2 environment in a worker process; the episode goes on after success."""

    def __init__(self, task: Task, worker: Worker, seed: int, obs: ObsKind) -> None:
        self._worker = worker
        self._last: Array | None = None
        found = worker.description
        super().__init__(task, seed, obs, found["obs_dim"], found["action_dim"], 1 / found["control_freq"])

    def _restart(self, seed: int | None) -> float:
        message, self._last = self._worker.ask("reset", seed=seed)
        return float(message["success"])

    def _control(self, action: Array) -> ControlStep:
        message, self._last = self._worker.ask("step", action.astype(np.float32))
        return ControlStep(message["reward"], message["success"])

    def _observe(self) -> Array:
        return np.array(self._last, dtype=np.float32)

    def _picture(self, height: int, width: int) -> Array:
        if not self._worker.pictures:
            raise UserError(f"{self.task.name}: no pictures here: ManiSkill2 renders on a Vulkan device alone")
        _, picture = self._worker.ask("render")
        return _resized(picture, height, width)

    def _free(self) -> None:
        self._worker.close()


def _resized(picture: Array, height: int, width: int) -> Array:
    """The nearest pixels of a picture (h, w, 3) as (height, width, 3)."""
    rows = np.arange(height) * picture.shape[0] // height
    columns = np.arange(width) * picture.shape[1] // width
    return np.ascontiguousarray(picture[rows][:, columns])
