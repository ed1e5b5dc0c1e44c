"""Sweeps over object storage, on machines that share no disk."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scripted_training import ScriptedTraining

from tdmpc2.agent import checkpoints
from tdmpc2.cli import main
from tdmpc2.config import Config
from tdmpc2.data.replay import Replay
from tdmpc2.sweeps import commands, storage
from tdmpc2.sweeps.executors import SerialExecutor, TrainFunction
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.storage import StoredDataset, StoredTraining, SweepStorage
from tdmpc2.training import fetching, run_storage
from tdmpc2.training import storage as object_storage
from tdmpc2.training.folder import RunFolder, Status
from tdmpc2.training.offline import open_data
from tdmpc2.training.runtime import StopRequest

Declare = Callable[..., Path]

STAGES = """
tasks: [cup-catch, reacher-easy]
sizes: [1]
seeds: [1]
overrides: {steps: 100}
datasets:
  pair: {}
multitask:
  - {data: pair, overrides: {steps: 30}}
finetune:
  - {from: pair, tasks: [walker-run]}
"""
CUP, REACHER = "cup-catch-1M-seed1", "reacher-easy-1M-seed1"
PAIR, TUNED = "cup-catch+reacher-easy-1M-seed1", "walker-run-1M-finetuned-seed1"


class Machines:
    """Executes each attempt at a run on a machine of its own, whose disk is empty."""

    def __init__(self, place: Path) -> None:
        self._place, self._count = place, 0

    def executor(
        self, args: argparse.Namespace, stop: StopRequest, train: TrainFunction | None = None
    ) -> SerialExecutor:
        assert train is not None
        pickle.loads(pickle.dumps(train))  # Ray does so

        def elsewhere(config: Config, show_progress: bool, stop: StopRequest) -> None:
            driver = Path.cwd()
            self._count += 1
            machine = self._place / f"machine-{self._count}"
            machine.mkdir(parents=True)
            os.chdir(machine)
            try:
                train(config, show_progress, stop)
            finally:
                os.chdir(driver)

        return SerialExecutor(stop, elsewhere, show_progress=False)


@pytest.fixture(autouse=True)
def machines(training: ScriptedTraining, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Puts scripted training on machines that share nothing in the place of the real one."""
    training.writes_replay = True

    def train(config: Config, show_progress: bool, stop: StopRequest, saved: Callable[[], None]) -> RunFolder:
        folder = RunFolder.of(config)
        status = folder.read_status()
        if status is not None and status.state == "done":
            return folder
        if config.offline:
            dataset = open_data(config)
            dataset.check()
            for record in dataset.stores:
                with Replay.open(dataset.store_folder(record), writable=False) as store:
                    assert store.num_rows == 6
        if config.checkpoint is not None:
            assert checkpoints.read(RunFolder(config.checkpoint).checkpoint)["of"] == PAIR
        training(config, show_progress, stop)
        folder.eval_csv.write_text(f"env_steps,return\n100,{len(training.calls)}\n")
        checkpoints.write({"of": config.run_name, "weights": torch.ones(3)}, folder.checkpoint)
        saved()
        return folder

    monkeypatch.setattr(run_storage, "train_in_folder", train)
    monkeypatch.setattr(commands, "_make_executor", Machines(tmp_path / "machines").executor)
    monkeypatch.setattr(commands, "CLAIM_SECONDS", 0.0)
    monkeypatch.setattr(run_storage, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(storage, "PULL_SECONDS", 1000.0)
    monkeypatch.setattr(object_storage, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(fetching, "PATIENCE_SECONDS", 0.2)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/storage"


def test_a_sweep_in_stages_runs_on_machines_that_share_nothing(
    declare: Declare, training: ScriptedTraining, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(STAGES)
    assert main(["sweep", "run", "pair", "--storage", url]) == 0
    assert training.calls == [CUP, REACHER, PAIR, TUNED]
    capsys.readouterr()
    assert main(["sweep", "status", "pair"]) == 0
    assert "4 done" in capsys.readouterr().out
    runs = Path("results/pair/runs")
    assert (runs / TUNED / "eval.csv").read_text() == "env_steps,return\n100,4\n"
    assert (Path("results/pair/datasets/pair/dataset.json")).exists()
    assert not list(runs.glob("*/replay")), "the driver has no use for replay"
    assert not list(runs.glob("*/checkpoint"))


def test_a_machine_that_has_nothing_of_a_sweep_fetches_it(
    declare: Declare, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(STAGES)
    main(["sweep", "run", "pair", "--storage", url])
    there = ["--results", "elsewhere"]
    assert main(["sweep", "fetch", "pair", *there, "--storage", url]) == 0
    capsys.readouterr()
    assert main(["sweep", "status", "pair", *there]) == 0
    assert "4 done" in capsys.readouterr().out
    runs = Path("elsewhere/pair/runs")
    assert (runs / CUP / "eval.csv").read_text() == "env_steps,return\n100,1\n"
    assert not list(runs.glob("*/checkpoint"))
    assert Path("elsewhere/pair/sweep.yaml").read_text() == STAGES

    assert main(["sweep", "fetch", "pair", *there, "--checkpoints", "--replay"]) == 0
    assert "checkpoints and replay of 4" in capsys.readouterr().out
    assert checkpoints.read(runs / PAIR / "checkpoint" / "latest.pt")["of"] == PAIR
    with Replay.open(runs / CUP / "replay", writable=False) as store:
        assert store.num_rows == 6


def test_a_driver_that_lost_its_disk_trains_nothing_twice(
    declare: Declare, training: ScriptedTraining, url: str
) -> None:
    declare(STAGES)
    training.script[PAIR] = ["refuse"]
    assert main(["sweep", "run", "pair", "--storage", url]) == 1
    assert training.calls == [CUP, REACHER, PAIR]
    Path("results").rename("lost")
    assert main(["sweep", "run", "pair", "--storage", url]) == 0
    assert training.calls == [CUP, REACHER, PAIR, PAIR, TUNED]


def test_the_storage_is_remembered_and_another_is_refused(
    declare: Declare, training: ScriptedTraining, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    declare()
    training.script[CUP_OF_PAIR] = ["fail", "fail"]
    assert main(["sweep", "run", "pair", "--storage", url]) == 1
    assert main(["sweep", "retry", "pair", "--storage", f"{url}2"]) == 2
    assert f"is of the sweep in {url}" in capsys.readouterr().err
    assert main(["sweep", "retry", "pair"]) == 0
    assert main(["sweep", "status", "pair"]) == 0
    assert "2 done" in capsys.readouterr().out


CUP_OF_PAIR = "cartpole-balance-1M-seed1"


def test_a_storage_that_cannot_be_used_is_refused_before_anything_starts(
    declare: Declare, training: ScriptedTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declare()
    (tmp_path / "file").write_text("in the way")
    for wrong, told in ((f"file://{tmp_path}/file", "cannot write"), ("nonsense", "not a URL"), ("gs://b", "gcsfs")):
        assert main(["sweep", "run", "pair", "--storage", wrong]) == 2
        assert told in capsys.readouterr().err
    assert training.calls == []
    assert not Path("results").exists()


def test_a_sweep_that_the_storage_does_not_have_is_refused_with_the_nearest_that_it_has(
    declare: Declare, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    declare()
    main(["sweep", "run", "pair", "--storage", url])
    assert main(["sweep", "fetch", "pear", "--storage", url]) == 2
    assert "did you mean 'pair'?" in capsys.readouterr().err
    assert main(["sweep", "fetch", "pear"]) == 2
    assert "give --storage" in capsys.readouterr().err


def test_what_goes_to_other_machines_can_be_pickled(tmp_path: Path) -> None:
    dataset = StoredDataset("pair", ("cup-catch",), (), tmp_path, "s3://bucket/pair")
    assert pickle.loads(pickle.dumps((StoredTraining("s3://b"), dataset))) == (StoredTraining("s3://b"), dataset)


def test_the_last_rows_of_a_run_that_ends_while_the_driver_looks_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bucket/pair/runs" / CUP).mkdir(parents=True)
    (tmp_path / "bucket/pair/runs" / CUP / "status.json").touch()
    ended = dict.fromkeys(field.name for field in dataclasses.fields(Status)) | {"state": "done"}
    status = Status(**ended)  # type: ignore[arg-type]  # nothing else of it is read
    stored_rows = ["first row", "last row"]
    looks = []

    def look(storage: object_storage.Storage, folder: RunFolder) -> Status:
        # The first listing is from before the last row was stored; the status that is then read tells of the end.
        folder.path.mkdir(parents=True, exist_ok=True)
        looks.append(storage.url)
        (folder.path / "eval.csv").write_text("\n".join(stored_rows[: len(looks)]))
        return status

    monkeypatch.setattr(fetching, "pull_records", look)
    driver = SweepStorage(SweepFolder(tmp_path / "results", "pair"), (tmp_path / "bucket").as_uri())
    driver.pull()
    assert (driver.folder.run(CUP).path / "eval.csv").read_text() == "first row\nlast row"
    driver.pull()
    assert len(looks) == 2  # of a run that is done, nothing more is asked for
