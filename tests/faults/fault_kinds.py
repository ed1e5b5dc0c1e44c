"""The faults: what each does, and to whom."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
from fault_ground import Ground
from fault_processes import Processes, send, wait_for_death

from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.training.folder import RunFolder

PAUSE_SECONDS = 1.0, 6.0
FULL_SECONDS = 2.0, 6.0
CLOCK_HOURS = 48
REFUSAL_SECONDS = 300.0
"""How long a second driver may take, on a busy machine, to see that there is a first."""
REFUSALS = "is running this sweep", "is working on"
"""What a driver says that finds another one, or a worker that another one left, and goes away again."""
DEATH_SECONDS = 10.0
BLOCK = 64 * 1024


@dataclasses.dataclass
class Scene:
    """What faults are injected into."""

    ground: Ground
    place: str
    names: Sequence[str]
    """Of the sweep's runs."""
    random: random.Random
    processes: Processes
    driver: subprocess.Popen[bytes]
    """The driver that counts at the moment."""
    rivals: list[subprocess.Popen[bytes]] = dataclasses.field(default_factory=list)
    """Drivers that were started beside it, while it is open which of them goes on."""
    rivals_since: float = 0.0
    endings: list[tuple[float, Callable[[], None]]] = dataclasses.field(default_factory=list)
    """What ends a fault that lasts, each with its time."""

    @property
    def sweep(self) -> SweepFolder:
        """The sweep's folder."""
        return SweepFolder(self.ground.sweep_path(self.place).parent, self.ground.sweep_path(self.place).name)

    def runs(self) -> list[RunFolder]:
        """Folders of the runs that have begun."""
        return [self.sweep.run(name) for name in self.sweep.run_names()]

    def states(self) -> dict[str, str]:
        """How far each run has come, as its status tells."""
        told = {}
        for run in self.runs():
            status = run.read_status()
            steps = "no status" if status is None else f"{status.state} {status.agent_steps}/{status.updates}"
            told[run.path.name] = steps
        return told

    def workers(self) -> dict[str, psutil.Process]:
        """Processes that work on runs, or are about to, by the run's name."""
        return {name: process for name in self.names for process in self.processes.titled(f"ray::{name}")}

    def disk_is_full(self) -> bool:
        """Whether the disk is filled up at the moment, so that nothing can be written anew."""
        return self.filler.exists()

    @property
    def filler(self) -> Path:
        """The file that fills the disk up."""
        return self.ground.disk / "filler"

    def later(self, seconds: tuple[float, float], action: Callable[[], None]) -> float:
        """Do something after a random time, which is returned."""
        after = self.random.uniform(*seconds)
        self.endings.append((time.monotonic() + after, action))
        return after

    def end_what_lasts(self, at_once: bool = False) -> None:
        """End the faults whose time is over, or all."""
        due = [ending for ending in self.endings if at_once or ending[0] <= time.monotonic()]
        for ending in due:
            self.endings.remove(ending)
            ending[1]()


Kind = Callable[[Scene], str | None]
"""Injects a fault; who was hit and how, or None where there was nobody to hit."""


def _worker(scene: Scene) -> tuple[str, psutil.Process] | None:
    workers = scene.workers()
    return scene.random.choice(sorted(workers.items(), key=lambda item: item[0])) if workers else None


def kill_worker(scene: Scene) -> str | None:
    """SIGKILL to the process of a run."""
    return _signal_worker(scene, signal.SIGKILL)


def terminate_worker(scene: Scene) -> str | None:
    """SIGTERM to the process of a run, as when its machine is taken away."""
    return _signal_worker(scene, signal.SIGTERM)


def _signal_worker(scene: Scene, number: int) -> str | None:
    found = _worker(scene)
    if found is None:
        return None
    send([found[1]], number)
    return f"{found[0]}, process {found[1].pid}"


def pause_worker(scene: Scene) -> str | None:
    """SIGSTOP to the process of a run, SIGCONT after some seconds."""
    found = _worker(scene)
    return None if found is None else f"{found[0]}, {_pause(scene, found[1])}"


def pause_driver(scene: Scene) -> str | None:
    """SIGSTOP to the driver, SIGCONT after some seconds."""
    return _pause(scene, psutil.Process(scene.driver.pid)) if scene.driver.poll() is None else None


def _pause(scene: Scene, process: psutil.Process) -> str:
    send([process], signal.SIGSTOP)
    seconds = scene.later(PAUSE_SECONDS, lambda: send([process], signal.SIGCONT))
    return f"process {process.pid} for {seconds:.1f} s"


def kill_driver(scene: Scene) -> str | None:
    """SIGKILL to the driver alone."""
    return _signal_driver(scene, signal.SIGKILL)


def terminate_driver(scene: Scene) -> str | None:
    """SIGTERM to the driver."""
    return _signal_driver(scene, signal.SIGTERM)


def _signal_driver(scene: Scene, number: int) -> str | None:
    if scene.driver.poll() is not None:
        return None
    scene.driver.send_signal(number)
    return f"process {scene.driver.pid}"


def kill_raylet(scene: Scene) -> str | None:
    """SIGKILL to Ray's raylet, which starts and watches the workers."""
    return _kill_named(scene, "raylet")


def kill_gcs(scene: Scene) -> str | None:
    """SIGKILL to Ray's GCS, its table of everything."""
    return _kill_named(scene, "gcs_server")


def _kill_named(scene: Scene, name: str) -> str | None:
    found = scene.processes.named(name)
    if not found:
        return None
    victim = scene.random.choice(sorted(found, key=lambda process: process.pid))
    send([victim], signal.SIGKILL)
    return f"process {victim.pid}"


def power_cut(scene: Scene) -> str | None:
    """SIGKILL to everything at once."""
    if scene.driver.poll() is not None:
        return None
    return f"{len(scene.processes.end())} processes"


def full_disk(scene: Scene) -> str | None:
    """The results' disk filled to the last byte, freed after some seconds."""
    if not scene.ground.small_disk or scene.disk_is_full():
        return None
    file = os.open(scene.filler, os.O_WRONLY | os.O_CREAT)
    try:
        written = os.write(file, bytes(BLOCK))
        while True:
            written += os.write(file, bytes(BLOCK))
    except OSError:  # full, which was the aim
        seconds = scene.later(FULL_SECONDS, scene.filler.unlink)
    finally:
        os.close(file)
    return f"{written / 2**20:.1f} MiB for {seconds:.1f} s"


def damage_checkpoint(scene: Scene) -> str | None:
    """A run's process killed, and its last checkpoint damaged before another process reads it."""
    if scene.disk_is_full():
        return None
    workers = {
        name: process
        for name, process in scene.workers().items()
        if (scene.sweep.run(name).checkpoint.parent / "previous.pt").exists()
        and scene.sweep.run(name).checkpoint.exists()
    }
    if not workers:
        return None
    name = scene.random.choice(sorted(workers))
    send([workers[name]], signal.SIGKILL)
    checkpoint = scene.sweep.run(name).checkpoint
    if not wait_for_death(workers[name], DEATH_SECONDS) or not checkpoint.exists():
        return None
    return f"{name}, {_damage(scene, checkpoint)}"


def damage_status(scene: Scene) -> str | None:
    """A run's status.json damaged."""
    if scene.disk_is_full():
        return None
    files = [run.status_file for run in scene.runs() if run.status_file.exists()]
    if not files:
        return None
    file = scene.random.choice(sorted(files))
    return f"{file.parent.name}, {_damage(scene, file)}"


def damage_status_of_done_run(scene: Scene) -> str | None:
    """The status.json of a run that is done damaged, and the driver killed, so that the next one must read it."""
    done = [run for run in scene.runs() if (status := run.read_status()) is not None and status.state == "done"]
    if not done or scene.driver.poll() is not None or scene.disk_is_full():
        return None
    run = scene.random.choice(done)
    scene.driver.kill()
    return f"{run.path.name}, {_damage(scene, run.status_file)}"


def damage_records(scene: Scene) -> str | None:
    """The sweep's own plan.json or failures.json damaged."""
    if not scene.sweep.plan_file.exists() or scene.disk_is_full():
        return None
    file = scene.random.choice([scene.sweep.plan_file, scene.sweep.failures_file])
    if not file.exists():
        file.write_text('{"pendulum-spin-1M-seed1": "its process was killed"}')
    return f"{file.name}, {_damage(scene, file)}"


def _damage(scene: Scene, file: Path) -> str:
    """Damage a file in one of three ways; which."""
    content = file.read_bytes()
    file.unlink()  # it may share its bytes with another name, which is to stay whole
    how = scene.random.choice(["emptied", "cut", "overwritten"])
    if how == "emptied":
        damaged = b""
    elif how == "cut":
        damaged = content[: scene.random.randrange(len(content) // 10, 9 * len(content) // 10 + 1)]
    else:
        start = len(content) // 3
        noise = scene.random.randbytes(max(8, len(content) // 10))
        damaged = content[:start] + noise + content[start + len(noise) :]
    file.write_bytes(damaged)
    return f"{file.name} {how}"


def jump_clock(scene: Scene) -> str | None:
    """The wall clock of driver and workers set hours ahead or back, and the sweep's files dated likewise."""
    hours = scene.random.randrange(-CLOCK_HOURS, CLOCK_HOURS + 1)
    scene.ground.shift_clock(3600 * hours)
    now = time.time() + 3600 * hours
    for path in scene.sweep.path.rglob("*"):
        try:
            os.utime(path, (now, now))
        except FileNotFoundError:  # a temporary file, renamed meanwhile
            continue
    return f"to {hours:+d} hours"


def start_second_driver(scene: Scene) -> str | None:
    """A second driver started while the first runs."""
    if scene.driver.poll() is not None or not _is_held(scene):
        return None
    return _start_rivals(scene, 1)


def kill_driver_and_start_two(scene: Scene) -> str | None:
    """The driver killed, and two started at once while its workers may still run."""
    if scene.driver.poll() is not None:
        return None
    scene.driver.kill()
    scene.driver.wait()
    return _start_rivals(scene, 2)


def _is_held(scene: Scene) -> bool:
    """Whether the driver has got as far as to hold the sweep."""
    lock = scene.sweep.path / ".lock"
    return lock.exists() and str(scene.driver.pid) in lock.read_text()


def _start_rivals(scene: Scene, count: int) -> str:
    for _ in range(count):
        rival = scene.ground.start(scene.place)
        scene.processes.add(rival.pid)
        scene.rivals.append(rival)
    scene.rivals_since = time.monotonic()
    return f"process{'es' if count > 1 else ''} {', '.join(str(rival.pid) for rival in scene.rivals)}"


KINDS: Mapping[str, Kind] = {
    "worker killed": kill_worker,
    "worker asked to stop": terminate_worker,
    "worker paused": pause_worker,
    "driver killed": kill_driver,
    "driver asked to stop": terminate_driver,
    "driver paused": pause_driver,
    "raylet killed": kill_raylet,
    "GCS killed": kill_gcs,
    "power cut": power_cut,
    "disk full": full_disk,
    "checkpoint damaged": damage_checkpoint,
    "status damaged": damage_status,
    "status of a done run damaged": damage_status_of_done_run,
    "plan or failures damaged": damage_records,
    "clock jump": jump_clock,
    "second driver": start_second_driver,
    "driver killed, two started": kill_driver_and_start_two,
}
"""All kinds, by the name that the record gives them."""
_OFTEN: Mapping[str, int] = {
    "worker killed": 3,
    "worker asked to stop": 2,
    "worker paused": 2,
    "driver killed": 2,
    "raylet killed": 2,
    "disk full": 2,
    "checkpoint damaged": 3,
    "status damaged": 2,
    "clock jump": 2,
}
TURN: Sequence[str] = tuple(kind for kind in KINDS for _ in range(_OFTEN.get(kind, 1)))
"""A turn of all kinds, some more often than others."""
