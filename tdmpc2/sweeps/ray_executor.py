"""Runs on Ray: side by side on this machine, or on a cluster."""

from __future__ import annotations

import faulthandler
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from tdmpc2.errors import UserError
from tdmpc2.sweeps.executors import Outcome, TrainFunction, attempt_run, log_file, take_next, train_run
from tdmpc2.sweeps.planning import PlannedRun
from tdmpc2.training.runtime import StopRequest, available_cores

OBJECT_STORE_BYTES = 100 * 2**20
"""Only settings and outcomes pass through Ray, so its store of objects is near the smallest that it accepts."""
CONNECT_SECONDS = 10.0
LONGEST_TEMPORARY_FOLDER = 40
"""Ray's sockets lie in its temporary folder, and the path of a socket is short: 107 characters."""


class RayExecutor:
    """Executes each run in a process of its own, as many side by side as the resources allow.

    Args:
        address: a Ray cluster to use; by default Ray is started on this machine, for this sweep alone.
        train: what executes a run.
    """

    def __init__(self, address: str | None = None, train: TrainFunction = train_run) -> None:
        self._address, self._train = address, train
        self._temporary: str | None = None
        self._attempts: dict[Any, PlannedRun] = {}
        self._ray: Any = None
        self._attempt: Any = None
        self._has_gpus = False
        self._backlog: deque[PlannedRun] = deque()
        self._in_stages = False
        self._stopped = False

    def check(self, runs: Sequence[PlannedRun]) -> list[str]:
        """See `Executor`: starts Ray or connects to it."""
        self._start()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._has_gpus = any(node.get("GPU", 0) > 0 for node in nodes)
        self._in_stages = any(run.needs for run in runs)
        return check_fit(runs, nodes)

    def submit(self, run: PlannedRun) -> None:
        """See `Executor`."""
        self._backlog.append(run)
        self._feed()

    def _feed(self) -> None:
        """Hand runs on to Ray.

        Ray starts runs in the order in which it got them. So where some wait for others, it only gets as many as there
        is room for and one more, which lets a cluster that grows on demand see the demand.
        """
        while self._backlog and not (self._in_stages and self._is_overfull()):
            self._hand_on(take_next(self._backlog))

    def _is_overfull(self) -> bool:
        """Whether a run is waiting in Ray."""
        there = self._ray.cluster_resources()
        runs = list(self._attempts.values())
        cpus = sum(run.resources.cpus for run in runs)
        gpus = sum(float(run.resources.gpus) for run in runs) if self._has_gpus else 0.0
        memory = sum(run.resources.memory_gb or 0.0 for run in runs) * 2**30
        room = there.get("CPU", 0.0), there.get("GPU", 0.0), there.get("memory", 0.0)
        return any(used > most for used, most in zip((cpus, gpus, memory), room, strict=True))

    def _hand_on(self, run: PlannedRun) -> None:
        wanted = run.resources
        options: dict[str, Any] = {
            "name": run.name,
            "num_cpus": wanted.cpus,
            "num_gpus": wanted.gpus if self._has_gpus else 0,
            "max_retries": 0,  # a killed run is submitted again by who counts the attempts
        }
        if wanted.memory_gb is not None:
            options["memory"] = int(wanted.memory_gb * 2**30)
        self._attempts[self._attempt.options(**options).remote(self._train, run, os.getcwd())] = run

    def wait(self, timeout: float) -> list[Outcome]:
        """See `Executor`."""
        if self._stopped:
            unbegun = [Outcome(run.name, "stopped", "stopped before it began") for run in self._backlog]
            self._backlog.clear()
            if unbegun:
                return unbegun
        self._feed()
        if not self._attempts:
            return []
        pending = list(self._attempts)
        self._ray.wait(pending, num_returns=1, timeout=timeout)
        ended, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        return [self._outcome(attempt) for attempt in ended]

    def stop(self) -> None:
        """See `Executor`: Ray drops what waits and interrupts what runs, which there becomes a request."""
        self._stopped = True
        for attempt in self._attempts:
            self._ray.cancel(attempt, force=False)

    def close(self) -> None:
        """See `Executor`: workers that still run are killed."""
        if self._ray is not None:
            self._ray.shutdown()
            self._ray = None
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None
        self._attempts.clear()
        self._backlog.clear()

    def _outcome(self, attempt: Any) -> Outcome:
        run = self._attempts.pop(attempt)
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(attempt)
        except errors.TaskCancelledError:
            return Outcome(run.name, "stopped", "stopped before it began")
        except errors.OutOfMemoryError:
            return Outcome(run.name, "killed", "its process was killed: the machine was out of memory")
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.LocalRayletDiedError) as error:
            return Outcome(run.name, "killed", f"its process was killed ({type(error).__name__})")
        except errors.RayError as error:
            return Outcome(run.name, "failed", f"Ray could not execute it: {error}")
        return outcome

    def _start(self) -> None:
        if self._address is not None:
            _check_reachable(self._address)
        # Ray reads these when it is imported. Nothing is sent to its makers; GPUs are given out by `submit` alone; and
        # Ray's ports, which other machines can reach, open to a token that only this sweep's processes know.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if self._address is None and "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        import ray
        import ray._private.worker
        import ray.exceptions

        # Ray would print its own account of every killed worker into the display, log_to_driver or not.
        ray._private.worker._worker_logs_enabled = False
        self._ray = ray
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is not None:
            try:
                ray.init(address=self._address, **options)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(f"--address {self._address}: no Ray cluster can be reached there ({error})") from None
        else:
            self._temporary = _short_temporary_folder()
            try:
                ray.init(
                    address="local",
                    num_cpus=available_cores(),
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=self._temporary,
                    **options,
                )
            except SystemExit as error:  # what Ray makes of a SIGTERM while it starts
                raise KeyboardInterrupt from error
        # A process of its own for every attempt: nothing of one run is left for the next, and its memory is given back.
        self._attempt = ray.remote(max_calls=1)(_attempt_in_worker)


def check_fit(runs: Sequence[PlannedRun], nodes: Sequence[Mapping[str, float]]) -> list[str]:
    """Check that every run fits on some node.

    Args:
        runs: the runs to come.
        nodes: resources of each node as Ray names them: CPU, GPU, memory (bytes).

    Returns:
        what the user should know: GPUs that runs would use and that are not there.

    Raises:
        UserError: a run asks for more than any node has; names the resource.
    """
    notices: dict[str, None] = {}
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU", "memory")}
    for run in runs:
        wanted = run.resources
        needs = {"CPU": float(wanted.cpus), "GPU": float(wanted.gpus), "memory": (wanted.memory_gb or 0.0) * 2**30}
        if most["GPU"] == 0 and wanted.gpus > 0 and run.config.device == "auto":
            notices["no GPU found: runs that ask for a share of one run on the CPU"] = None
            needs["GPU"] = 0.0
        if any(all(node.get(name, 0.0) >= need for name, need in needs.items()) for node in nodes):
            continue
        lacking = [name for name, need in needs.items() if need > most[name]]
        together = "" if lacking else " but not together"
        raise UserError(
            f"run {run.name} asks for {_amounts(needs, lacking or list(needs))}; "
            f"the largest machine has {_amounts(most, lacking or list(needs))}{together}. "
            "Change resources in the declaration, or give --cpus, --gpus or --memory-gb"
        )
    return list(notices)


def _amounts(resources: Mapping[str, float], names: Sequence[str]) -> str:
    shown = {
        "CPU": f"{resources['CPU']:g} CPU cores",
        "GPU": f"{resources['GPU']:g} GPUs",
        "memory": f"{resources['memory'] / 2**30:.1f} GiB of memory",
    }
    return ", ".join(shown[name] for name in names)


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes.

    Raises:
        UserError: nothing listens there.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():  # `auto`, which Ray looks up
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no Ray cluster can be reached there ({error})") from None


def _short_temporary_folder() -> str:
    """A fresh folder for Ray's session: one of its own, so that it can be removed, with a short path."""
    default = tempfile.gettempdir()
    short = len(default) <= LONGEST_TEMPORARY_FOLDER or not os.access("/tmp", os.W_OK)
    return tempfile.mkdtemp(prefix="ray-", dir=default if short else "/tmp")


def _attempt_in_worker(train: TrainFunction, run: PlannedRun, folder: str) -> Outcome:
    """Execute a run in a Ray worker; its output goes to the run's log.

    Args:
        train: what executes a run.
        run: the run.
        folder: the sweep's current folder, which relative paths start from.
    """
    os.chdir(folder)
    log_file(run).parent.mkdir(parents=True, exist_ok=True)
    with log_file(run).open("a") as log:
        for standard_stream in (1, 2):
            os.dup2(log.fileno(), standard_stream)
    faulthandler.enable()
    stop = StopRequest()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.requested = True

    # SIGINT is how Ray cancels, SIGTERM how machines are taken away; both may come before the training code listens.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return attempt_run(train, run, show_progress=False, stop=stop)
