"""The fault suite in short: one run under a few faults; and that the suite's own checks see what is wrong."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_checks import differences, leftovers, processes_that_finished
from fault_processes import Processes, using
from fault_round import Schedule

from tdmpc2.agent import checkpoints
from tdmpc2.config import Config
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.training.logs import EventLog

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes and mounts disks as Linux has them")


def test_a_run_under_fire_ends_as_one_that_nobody_disturbed(tmp_path: Path) -> None:
    kinds = ["checkpoint damaged", "driver killed", "status damaged"]
    command = [sys.executable, "scripts/faults.py", "--one-run", "--faults", "3", "--seed", "4", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--kinds", *kinds], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    faults = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert Counter(fault["kind"] for fault in faults) == Counter(kinds)


def make_sweep(path: Path, seconds: str = "1.5") -> SweepFolder:
    """A sweep of one run that is done, with what is compared of it."""
    sweep = SweepFolder(path, "pair")
    run = sweep.run("one")
    status = dict.fromkeys(
        "env_steps total_env_steps agent_steps total_agent_steps updates seconds pid updated".split(), 1
    )
    texts = dict.fromkeys("phase message digest version device hardware host".split(), "")
    run.path.mkdir(parents=True)
    run.status_file.write_text(json.dumps({"state": "done", "seconds_left": 0, "last_return": 0, **status, **texts}))
    run.train_csv.write_text(f"env_steps,seconds,return\n2,{seconds},0.5\n")
    run.eval_csv.write_text(f"env_steps,seconds,return\n2,{seconds},0.25\n")
    agent = {"config": {"seed": 1, "results_dir": str(path)}, "weights": torch.tensor([1.0, 2.0])}
    checkpoints.write({"agent": agent, "seconds": float(seconds), "logs": len(seconds), "steps": 1}, run.checkpoint)
    return sweep


def change_csv(sweep: SweepFolder) -> None:
    sweep.run("one").eval_csv.write_text("env_steps,seconds,return\n2,1.5,0.26\n")


def repeat_episode(sweep: SweepFolder) -> None:
    with sweep.run("one").train_csv.open("a") as file:
        file.write("2,1.5,0.5\n")


def change_weight(sweep: SweepFolder) -> None:
    state = checkpoints.read(sweep.run("one").checkpoint)
    state["agent"]["weights"][1] += 2.4e-7  # the next float32 after 2
    checkpoints.write(state, sweep.run("one").checkpoint)


def damage_status(sweep: SweepFolder) -> None:
    sweep.run("one").status_file.write_text("{")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_csv, "one/eval/0/return: '0.26', undisturbed '0.25'"),
        (repeat_episode, "one/train: 2 entries, undisturbed 1"),
        (change_weight, "one/checkpoint/agent/weights: another tensor"),
        (damage_status, "one: no status, not done"),
    ],
)
def test_comparison_finds_the_smallest_difference(tmp_path: Path, change: Any, told: str) -> None:
    undisturbed, disturbed = make_sweep(tmp_path / "a"), make_sweep(tmp_path / "b", seconds="12.75")
    assert differences(undisturbed, disturbed) == []  # for all that the two took different times in different places
    change(disturbed)
    assert differences(undisturbed, disturbed) == [told]


def test_temporary_files_are_found(tmp_path: Path) -> None:
    sweep, temporary = make_sweep(tmp_path), tmp_path / "t"
    (temporary / "ray-abc").mkdir(parents=True)
    (sweep.run("one").path / ".status.json.1.2.tmp").touch()
    assert leftovers(sweep, temporary) == ["runs/one/.status.json.1.2.tmp", "ray-abc"]


def test_only_a_process_that_came_to_the_last_evaluation_counts_as_one_that_finished(tmp_path: Path) -> None:
    config = Config(task="pendulum-spin", steps=20, results_dir=str(tmp_path))
    sweep = make_sweep(tmp_path)
    run = sweep.run("one")
    run.config_file.write_text("task: pendulum-spin\nsteps: 20\n")
    for step, finished in ((20, set()), (40, {os.getpid()})):  # each agent step is two of the environment
        log = EventLog(run.tensorboard, config, start=None)
        log.write("train", {"env_steps": 40, "return": 1.0})
        log.write("eval", {"env_steps": step, "return": 1.0})
        log.close()
        assert processes_that_finished(run) == finished


def test_processes_are_known_after_their_parents_have_died(tmp_path: Path) -> None:
    processes = Processes()
    parent = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    processes.add(parent.pid)
    processes.look()
    parent.kill()
    parent.wait()
    try:
        assert [process.pid for process in processes.alive()] == [child]
        assert using(str(tmp_path)) == [f"{child} sleep 60"]
    finally:
        ended = processes.end()
    assert ended == [f"{child} sleep 60"]
    deadline = time.monotonic() + 10
    while processes.lives(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not processes.lives(child)


def test_every_kind_of_a_turn_comes_once_before_any_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    victims = {"a": "one", "b": None, "c": "two"}
    monkeypatch.setattr("fault_round.KINDS", {kind: lambda scene, kind=kind: victims[kind] for kind in victims})
    schedule, scene = Schedule(random.Random(3), ["a", "b", "c"]), object()
    assert {schedule.inject(scene) for _ in range(2)} == {("a", "one"), ("c", "two")}  # type: ignore[arg-type]
    assert schedule.inject(scene) is None  # type: ignore[arg-type]
    victims["b"] = "three"
    assert schedule.inject(scene) == ("b", "three")  # type: ignore[arg-type]
