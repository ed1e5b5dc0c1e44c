"""Runs on Ray: side by side on this machine, or on a cluster."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tdmpc2.errors import UserError
from tdmpc2.sweeps.executors import Backlog, Outcome, TrainFunction, attempt_run, log_file, train_run
from tdmpc2.sweeps.nodes import Facts, Probe, make_probe, place_marker, why_unfit
from tdmpc2.sweeps.planning import PlannedRun
from tdmpc2.sweeps.ray_session import ConnectedRay, EmbeddedRay
from tdmpc2.training.runtime import SWEEP_COMMAND, StopRequest, available_cores

CHECK_SECONDS = 120.0
"""How long the nodes of a cluster may take to tell what they are."""
RUNS_AHEAD = 16
"""Runs that wait in Ray for room, so that a cluster that grows on demand sees the demand; the others wait here."""


class RayExecutor:
    """Executes each run in a process of its own, as many side by side as the resources allow.

    Args:
        address: a Ray cluster to use; by default Ray is started on this machine, for this sweep alone.
        train: what executes a run.
        shared: whether every node sees the results folder at the same path; if not, `train` brings the runs' files
            there and back.
    """

    def __init__(self, address: str | None = None, train: TrainFunction = train_run, shared: bool = True) -> None:
        self._address, self._train, self._shared = address, train, shared
        self._session: EmbeddedRay | ConnectedRay | None = None
        self._attempts: dict[Any, PlannedRun] = {}
        self._ray: Any = None
        self._attempt: Any = None
        self._here: Facts = {}
        """Facts of this machine that a worker must find on its own; none on one machine."""
        self._marker: Path | None = None
        self._unfit: dict[str, str] = {}
        """Why no run is given to a node, by the node's id."""
        self._memory: dict[str, float] = {}
        """GiB that runs ask for which outgrew what they were given, by name."""
        self._has_gpus = False
        self._backlog = Backlog()
        self._in_stages = False
        self._stopped = False

    def check(self, runs: Sequence[PlannedRun]) -> list[str]:
        """See `Executor`: starts Ray or connects to it, and asks every node what it has.

        Raises:
            UserError: as `Executor`; or the cluster cannot be joined, or a node cannot execute runs: names it.
        """
        notices = self._start()
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        resources = [node["Resources"] for node in nodes]
        self._has_gpus = any(there.get("GPU", 0) > 0 for there in resources)
        self._in_stages = any(run.needs for run in runs)
        notices += check_fit(runs, resources)
        if self._address is not None and runs:
            notices += self._check_nodes(runs[0].folder.path.parents[1], nodes)
        return notices

    def _check_nodes(self, sweep: Path, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
        """Compare the nodes that can execute runs with this machine; returns what the user should know."""
        probe = make_probe()
        self._marker = place_marker(sweep) if self._shared else None
        self._here = probe(self._seen_file)
        ask = self._ray.remote(num_cpus=0, max_calls=1, max_retries=0)(probe)
        there = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        asked = {
            ask.options(scheduling_strategy=there(node["NodeID"], soft=False)).remote(self._seen_file): node
            for node in nodes
            if node["Resources"].get("CPU", 0) > 0
        }
        answered, silent = self._ray.wait(list(asked), num_returns=len(asked), timeout=CHECK_SECONDS)
        faults = []
        for answer in answered:
            name = _name_of(asked[answer])
            try:
                reason = why_unfit(self._here, self._ray.get(answer))
            except self._ray.exceptions.RayError as error:
                reason = f"it cannot execute anything ({str(error).splitlines()[-1]})"
            if reason is not None:
                faults.append(f"  node {name}: {reason}")
        if faults:
            raise UserError("\n".join(["some nodes of the cluster cannot execute this sweep's runs:", *sorted(faults)]))
        late = f"has not answered for {CHECK_SECONDS:.0f} s; it is checked when it gets a run"
        return [f"node {_name_of(asked[answer])} {late}" for answer in silent]

    @property
    def _seen_file(self) -> str:
        return "" if self._marker is None else str(self._marker)

    def submit(self, run: PlannedRun) -> None:
        """See `Executor`; handed on by `wait`."""
        self._backlog.append(run)

    def under_way(self) -> Collection[str]:
        """See `execution.TellsWhatRuns`: those that Ray holds."""
        return [run.name for run in self._attempts.values()]

    def _feed(self) -> None:
        """Hand runs on to Ray, a few more than there is room for.

        Ray starts runs in the order in which it got them. So where some wait for others, it gets one more alone.
        """
        if not self._backlog:
            return
        there = self._ray.cluster_resources()
        room = [there.get(name, 0.0) for name in ("CPU", "GPU", "memory")]
        ahead = 0
        for run in self._attempts.values():
            ahead += self._take_from(room, run)
        while self._backlog and ahead < (1 if self._in_stages else RUNS_AHEAD):
            run = self._backlog.take()
            ahead += self._take_from(room, run)
            self._hand_on(run)

    def _take_from(self, room: list[float], run: PlannedRun) -> bool:
        """Take what a run asks for from what there is; whether there was too little of it."""
        wanted = run.resources
        gpus = float(wanted.gpus) if self._has_gpus else 0.0
        for index, amount in enumerate((float(wanted.cpus), gpus, (self._memory_of(run) or 0.0) * 2**30)):
            room[index] -= amount
        return any(left < 0 for left in room)

    def _memory_of(self, run: PlannedRun) -> float | None:
        """GiB that a run asks for by now."""
        return self._memory.get(run.name, run.resources.memory_gb)

    def _hand_on(self, run: PlannedRun) -> None:
        wanted, memory = run.resources, self._memory_of(run)
        options: dict[str, Any] = {
            "name": run.name,
            "num_cpus": wanted.cpus,
            "num_gpus": wanted.gpus if self._has_gpus else 0,
            "max_retries": 0,  # a killed run is submitted again by who counts the attempts
        }
        if memory is not None:
            options["memory"] = int(memory * 2**30)
        if self._unfit:
            options["label_selector"] = {"ray.io/node-id": f"!in({', '.join(self._unfit)})"}
        command = os.environ.get(SWEEP_COMMAND, "")
        arguments = (self._train, run, os.getcwd(), self._shared, command)
        work = self._ray.cloudpickle.dumps((_attempt_in_worker, *arguments))
        self._attempts[self._attempt.options(**options).remote(self._here, self._seen_file, work)] = run

    def wait(self, timeout: float) -> list[Outcome]:
        """See `Executor`."""
        if self._stopped:
            unbegun = [Outcome(run.name, "stopped", "stopped before it began") for run in self._backlog.clear()]
            if unbegun:
                return unbegun
        if self._session is not None and (lost := self._session.lost()):
            return self._start_anew(lost)
        self._feed()
        if not self._attempts:
            return []
        pending = list(self._attempts)
        self._ray.wait(pending, num_returns=1, timeout=timeout)
        ended, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        return [self._outcome(attempt) for attempt in ended]

    def _start_anew(self, lost: Sequence[str]) -> list[Outcome]:
        """Start Ray again after some of its own processes were killed; the runs under way have to be resumed."""
        reason = f"Ray's {' and '.join(lost)} was killed"
        ended = [Outcome(run.name, "killed", reason) for run in self._attempts.values()]
        self._attempts.clear()
        if self._session is not None:
            self._session.close()
            self._session = None
        if not self._stopped:
            self._start()
        return ended

    def stop(self) -> None:
        """See `Executor`: Ray drops what waits and interrupts what runs, which there becomes a request."""
        self._stopped = True
        for attempt in self._attempts:
            self._ray.cancel(attempt, force=False)

    def close(self) -> None:
        """See `Executor`: workers that still run are killed."""
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._marker is not None:
            self._marker.unlink(missing_ok=True)
            self._marker = None
        self._attempts.clear()
        self._backlog.clear()

    def _outcome(self, attempt: Any) -> Outcome:
        run = self._attempts.pop(attempt)
        errors = self._ray.exceptions
        try:
            outcome: Outcome | tuple[str, Facts] = self._ray.get(attempt)
        except errors.TaskCancelledError:
            return Outcome(run.name, "stopped", "stopped before it began")
        except errors.OutOfMemoryError as error:
            return self._out_of_memory(run, str(error))
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.LocalRayletDiedError) as error:
            return Outcome(run.name, "killed", f"its process was killed ({type(error).__name__})")
        except errors.RayError as error:
            return Outcome(run.name, "failed", f"Ray could not execute it: {error}")
        return outcome if isinstance(outcome, Outcome) else self._set_aside(run, *outcome)

    def _out_of_memory(self, run: PlannedRun, account: str) -> Outcome:
        """Ask for more memory the next time, where Ray ended a run to save its machine."""
        asked, reached = self._memory_of(run), memory_reached(account)
        given = "no memory set aside for it" if asked is None else f"{asked:.1f} GiB set aside for it"
        used = "" if reached is None else f", using {reached:.1f} GiB"
        message = f"its machine ran out of memory, with {given}{used}"
        if asked is not None and reached is not None and reached < asked:  # others took more than was theirs
            return Outcome(run.name, "killed", message)
        largest = max((node.get("memory", 0.0) / 2**30 for node in self._nodes_for(run)), default=0.0)
        grown = grown_memory(asked, reached, largest)
        if grown is None:
            return Outcome(run.name, "refused", f"{message}; no machine has more ({largest:.1f} GiB)")
        self._memory[run.name] = grown
        return Outcome(run.name, "outgrown", f"{message}; asks for {grown:.1f} GiB")

    def _nodes_for(self, run: PlannedRun) -> list[Mapping[str, float]]:
        """Resources of the nodes that have the cores and GPUs that a run asks for, and are fit."""
        gpus = run.resources.gpus if self._has_gpus else 0
        return [
            node["Resources"]
            for node in self._ray.nodes()
            if node["Alive"]
            and node["NodeID"] not in self._unfit
            and node["Resources"].get("CPU", 0.0) >= run.resources.cpus
            and node["Resources"].get("GPU", 0.0) >= gpus
        ]

    def _set_aside(self, run: PlannedRun, node: str, there: Facts) -> Outcome:
        """Give no more runs to a node that joined meanwhile and turned out to be unfit."""
        reason = why_unfit(self._here, there)
        self._unfit[node] = f"node {there['host']} gets no runs: {reason}"
        return Outcome(run.name, "deferred" if self._nodes_for(run) else "refused", self._unfit[node])

    def _start(self) -> list[str]:
        """Start Ray or connect to it; returns what the user should know."""
        notices: list[str] = []
        if self._address is None:
            self._session = EmbeddedRay(available_cores())
        else:
            self._session = ConnectedRay(self._address)
            notices = self._session.notices
        import ray
        import ray.util.scheduling_strategies

        self._ray = ray
        # A process of its own for every attempt: nothing of one run is left for the next, and its memory is given back.
        self._attempt = ray.remote(max_calls=1)(make_attempt(make_probe()))
        return notices


def memory_reached(account: str) -> float | None:
    """GiB that a run had come to use, by Ray's account of why it ended it; None where that does not tell."""
    found = re.search(r"memory used\s*[=:]\s*([\d.]+)\s*G", account, re.IGNORECASE)
    return float(found.group(1)) if found else None


def grown_memory(asked: float | None, reached: float | None, largest: float) -> float | None:
    """How much memory a run asks for after it outgrew what it had.

    Args:
        asked: GiB that it asked for; None for none.
        reached: GiB that it had come to use, where known.
        largest: GiB of the node with the most memory.

    Returns:
        GiB: twice what it had, or the largest node's; None where it had that.
    """
    had = max(asked or 0.0, reached or 0.0)
    if (asked or 0.0) >= largest:
        return None
    return min(2 * had, largest) if had > 0 else largest / 2


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


def _name_of(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def make_attempt(probe: Probe) -> Callable[..., Any]:
    """What Ray executes for a run: first of all it looks whether the machine is fit.

    A function within a function, for the reason that `make_probe` gives.
    """

    def attempt(here: Facts, seen_file: str, work: bytes) -> Any:
        import ray
        from ray import cloudpickle

        if here:
            there = probe(seen_file)
            if any(there[fact] != here[fact] for fact in here if fact != "host"):
                return ray.get_runtime_context().get_node_id(), there
        function, *arguments = cloudpickle.loads(work)
        return function(*arguments)

    return attempt


def _attempt_in_worker(train: TrainFunction, run: PlannedRun, folder: str, shared: bool, command: str) -> Outcome:
    """Execute a run in a Ray worker; its output goes to the run's log.

    Args:
        train: what executes a run.
        run: the run.
        folder: the sweep's current folder, which relative paths start from.
        shared: whether that folder is on this machine too; where it is not, it is made, or one at home.
        command: the command that started the sweep, for the run's record.
    """
    if command:
        os.environ[SWEEP_COMMAND] = command
    os.chdir(folder if shared else _working_space(folder))
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
    return attempt_run(train, run, show_progress=True, stop=stop)  # to the log


def _working_space(folder: str) -> Path:
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:  # such as another user's home
        path = Path.home() / "tdmpc2-sweeps"
        path.mkdir(exist_ok=True)
    return path
