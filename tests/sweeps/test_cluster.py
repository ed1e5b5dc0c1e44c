"""A cluster of three nodes on this machine: one is killed, and what it executed goes on elsewhere; one is unfit."""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tdmpc2.errors import UserError
from tdmpc2.sweeps.declaration import load_declaration
from tdmpc2.sweeps.execution import SweepExecution
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.nodes import MARKER, make_probe, place_marker, why_unfit
from tdmpc2.sweeps.planning import PlannedRun, plan_runs
from tdmpc2.sweeps.ray_executor import RayExecutor
from tdmpc2.training.runtime import StopRequest

Declare = Callable[..., Path]
TWO_RUNS = "tasks: [walker-walk]\nsizes: [1]\nseeds: [1, 2]\noverrides: {steps: 100}\n"
FACTS = {"host": "here", "python": "3.11", "version": "1.0", "source": "abc", "sees": "yes"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"python": "3.12"}, "it has Python 3.12, here is 3.11"),
        ({"version": ""}, "tdmpc2 is not installed there"),
        ({"version": "0.9"}, "it has tdmpc2 0.9, here is 1.0"),
        ({"source": "abd"}, "its code of tdmpc2 differs (abd there, abc here)"),
        ({"sees": "no"}, "it does not see the results folder"),
    ],
)
def test_node_that_differs_is_unfit_and_why_is_told(changes: dict[str, str], reason: str) -> None:
    assert why_unfit(FACTS, FACTS | {"host": "there"}) is None
    told = why_unfit(FACTS, FACTS | changes)
    assert told is not None
    assert told.startswith(reason)


def test_a_machine_tells_the_hash_of_its_code_and_whether_it_sees_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").touch()
    probe = make_probe()
    seen, unseen = probe(str(tmp_path / "there")), probe(str(tmp_path / "elsewhere"))
    assert (seen["sees"], unseen["sees"]) == ("yes", "no")
    package = tmp_path / "tdmpc2"
    package.mkdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(package / "__init__.py")))
    sources = []
    for content in ("a = 1", "a = 2", "a = 1"):
        (package / "module.py").write_text(content)
        sources.append(probe("")["source"])
    assert sources[0] == sources[2] != sources[1]


def test_marker_of_a_killed_driver_is_replaced(tmp_path: Path) -> None:
    place_marker(tmp_path / "sweep")
    marker = place_marker(tmp_path / "sweep")
    assert list((tmp_path / "sweep").glob(f"{MARKER}*")) == [marker]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that gets no runs, and two nodes with a core each, behind a token."""
    if "RAY_AUTH_MODE" not in os.environ:  # Ray reads these once in a process
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1, wait=False)
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def make_training() -> Any:
    """What the workers execute: a function of its own, for they cannot import the tests.

    The first run ends when it is resumed, or is asked to stop; the second as soon as the first has begun.
    """

    def train(config: Any, show_progress: bool, stop: Any) -> None:
        import os
        import time

        import ray

        from tdmpc2.training.folder import RunFolder
        from tdmpc2.training.runtime import Stopped

        folder = RunFolder.of(config)
        folder.claim(config)
        trail = folder.path / "trail"
        resumed = trail.exists()
        with trail.open("a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()} {os.getpid()}\n")
        deadline = time.monotonic() + 100
        while config.seed == 1 and not resumed:
            if stop.requested:
                raise Stopped
            if time.monotonic() > deadline:
                raise TimeoutError("neither killed nor stopped")
            time.sleep(0.02)
        while not (folder.path.parent / config.run_name.replace("seed2", "seed1") / "trail").exists():
            time.sleep(0.02)

    return train


def execute(
    runs: tuple[PlannedRun, ...], executor: RayExecutor, disturb: Callable[[str, int], None]
) -> list[list[str]]:
    """Execute two runs; once the second is done, disturb the first, given its node and process. Returns its trail."""
    execution = SweepExecution(SweepFolder("results", "pair"), runs, executor, StopRequest(), retries=0)
    trail, disturbed = runs[0].folder.path / "trail", False

    def watch() -> None:
        nonlocal disturbed
        if not disturbed and trail.exists() and execution.attempts[runs[1].name].outcome is not None:
            node, pid = trail.read_text().split()
            disturb(node, int(pid))
            disturbed = True

    outcomes = execution.execute(watch)
    assert {outcome.end for outcome in outcomes.values()} == {"done"}
    return [line.split() for line in trail.read_text().splitlines()]


def test_runs_go_on_after_a_sigterm_and_on_another_node_after_theirs_is_killed(declare: Declare, cluster: Any) -> None:
    runs = plan_runs(load_declaration(declare(TWO_RUNS)))
    executor = RayExecutor(cluster.address, train=make_training())

    def kill_node(node: str, pid: int) -> None:
        cluster.remove_node(next(n for n in cluster.worker_nodes if n.node_id == node), allow_graceful=False)

    try:
        assert executor.check(runs) == []
        (marker,) = Path("results/pair").glob(f"{MARKER}*")
        first, second = execute(runs, executor, kill_node)
        assert first[0] != second[0]
        for run in runs:
            (run.folder.path / "trail").unlink()
        cluster.add_node(num_cpus=1)  # a node that joins gets runs
        before, after = execute(runs, executor, lambda node, pid: os.kill(pid, signal.SIGTERM))
        assert before[1] != after[1]
    finally:
        executor.close()
    assert not marker.exists()


def test_node_with_another_version_is_refused_by_name(declare: Declare, cluster: Any, tmp_path: Path) -> None:
    other = tmp_path / "other" / "tdmpc2"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text('__version__ = "0.0.1"\n')
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(other.parent)})
    executor = RayExecutor(cluster.address)
    try:
        with pytest.raises(UserError, match=r"node .*: it has tdmpc2 0\.0\.1, here is "):
            executor.check(plan_runs(load_declaration(declare(TWO_RUNS))))
    finally:
        executor.close()
