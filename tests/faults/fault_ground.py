"""Where the suite works: a small disk of its own, the sweep's declaration, and the drivers that are started on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAME = "faults"
"""The sweep's name."""
DISK_MIB = 48
"""Size of the small disk: a sweep takes a few MiB."""

TINY: Mapping[str, Any] = {
    "enc_dim": 16,
    "mlp_dim": 16,
    "latent_dim": 16,
    "num_samples": 16,
    "num_elites": 4,
    "num_pi_trajs": 2,
    "iterations": 1,
    "batch_size": 8,
    "device": "cpu",
    "precision": "float32",
    "compile": "none",
    "buffer_size": 2000,
    "seed_steps": 550,
    "eval_episodes": 1,
}
"""A model of a few thousand parameters in real environments with whole episodes (500 agent steps)."""

SWEEP: Mapping[str, Any] = {
    "description": "Small real runs of every kind, to be disturbed.",
    "tasks": ["pendulum-spin", "pendulum-swingup", "cartpole-balance"],
    "sizes": [1],
    "seeds": [1],
    "overrides": {**TINY, "steps": 1200, "eval_freq": 600, "checkpoint_freq": 50},
    "datasets": {"pair": {"tasks": ["pendulum-spin", "cartpole-balance"]}},
    "multitask": [
        {"data": "pair", "overrides": {"steps": 400, "batch_size": 16, "eval_freq": 200, "checkpoint_freq": 25}}
    ],
    "finetune": [{"from": "pair", "tasks": ["pendulum-swingup"], "overrides": {"steps": 800, "eval_freq": 400}}],
}
"""Three single-task runs, one of two tasks from their replay, and one finetuned from that."""

ONE_RUN: Mapping[str, Any] = {
    "description": "One small real run, to be disturbed.",
    "tasks": ["pendulum-spin"],
    "sizes": [1],
    "seeds": [1],
    "overrides": {**TINY, "steps": 900, "eval_freq": 450, "checkpoint_freq": 50},
}
"""For the short version of the suite."""


class Ground:
    """The suite's folder: a declaration, a small disk for results, a temporary folder for Ray, and a clock.

    Args:
        sweep: the declaration's content.
    """

    def __init__(self, sweep: Mapping[str, Any]) -> None:
        # The paths of Ray's sockets must be short, so not in a long folder of temporary files.
        parent = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()
        self.folder = Path(tempfile.mkdtemp(prefix="faults-", dir=parent)).resolve()
        self.disk, self.temporary = self.folder / "disk", self.folder / "t"
        self.clock = self.folder / "clock"
        self._outputs: dict[int, Path] = {}
        self.declaration = self.folder / f"{NAME}.yaml"
        self.declaration.write_text(yaml.safe_dump(dict(sweep), sort_keys=False))
        self.temporary.mkdir()
        self.disk.mkdir()
        self.shift_clock(0)
        size = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(self.disk)]
        mounting = shutil.which("mount") and subprocess.run(size, capture_output=True, check=False)
        self.small_disk = bool(mounting) and os.path.ismount(self.disk)
        """Whether results lie on a disk of their own, which can be filled up."""

    def shift_clock(self, seconds: int) -> None:
        """Show all drivers and workers the time shifted by so much from now on."""
        file = os.open(self.clock, os.O_WRONLY | os.O_CREAT)
        os.pwrite(file, f"{seconds:+020d}".encode(), 0)
        os.close(file)

    def start(self, place: str, executor: str = "ray") -> subprocess.Popen[bytes]:
        """Start the sweep's driver, as a user would, in a session of its own.

        Args:
            place: folder on the disk that it is started in; results go to `results` there, so that the settings of a
                run are the same in every place.
            executor: who executes the runs.
        """
        cwd = self.disk / place
        cwd.mkdir(exist_ok=True)
        path = [str(HERE / "shifted_clock"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        own = {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            "TDMPC2_CLOCK_SHIFT_FILE": str(self.clock),
            "TMPDIR": str(self.temporary),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "torch"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "tdmpc2", "sweep", "run", str(self.declaration), "--results", "results"]
        command += ["--executor", executor]
        file = self.folder / f"driver-{len(self._outputs) + 1}.txt"
        with file.open("ab") as output:
            driver = subprocess.Popen(
                command,
                cwd=cwd,
                env=os.environ | own,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._outputs[driver.pid] = file
        return driver

    def output(self, driver: subprocess.Popen[bytes]) -> str:
        """What a driver has written to its terminal so far."""
        return self._outputs[driver.pid].read_text(errors="replace")

    def sweep_path(self, place: str) -> Path:
        """The sweep's folder of a place."""
        return self.disk / place / "results" / NAME

    def remove(self) -> None:
        """Unmount the disk and delete everything."""
        if self.small_disk:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=True)  # a killed process may still hold it
        shutil.rmtree(self.folder)
