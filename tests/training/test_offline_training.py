"""Offline training: its schedule and records, exact resume, what it refuses, and several processes for one run."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import TASKS, make_data, write_store
from training_launcher import Kill, Launcher

from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.config import NOT_IDENTITY, Config, parse_settings
from tdmpc2.errors import UserError
from tdmpc2.training import offline
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.run import DivergedError, train

DATA = {"task": ",".join(TASKS), "data": "trio", "buffer_size": 1_000_000}
SCHEDULE = {**DATA, "steps": 30, "eval_freq": 12, "checkpoint_freq": 8, "eval_episodes": 1}


@pytest.fixture(autouse=True)
def _rows_every_ten_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "LOG_UPDATES", 10)


@pytest.fixture
def offline_run(tiny: Callable[..., Config], short_episodes: int, tmp_path: Path) -> Callable[..., Config]:
    """Makes the config of a tiny offline run, whose data are there."""
    make_data(tmp_path)
    return lambda **changes: tiny(**{**SCHEDULE, **changes})


def column(path: Path, name: str) -> list[str]:
    with path.open(newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def outcome(folder: RunFolder) -> dict[str, Any]:
    """Everything that a run has learned and recorded, but for times and places."""
    state = checkpoints.read(folder.checkpoint)
    del state["seconds"], state["logs"]
    for name in NOT_IDENTITY:
        del state["agent"]["config"][name]
    logs = {}
    for path in (folder.train_csv, folder.eval_csv):
        with path.open(newline="") as file:
            logs[path.name] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return {"checkpoint": state, **logs}


def test_a_run_leaves_a_row_a_task_at_each_evaluation_and_its_losses(offline_run):
    folder = train(offline_run(), show_progress=False)
    assert column(folder.eval_csv, "updates") == [str(n) for n in (0, 12, 24, 30) for _ in TASKS]
    assert column(folder.eval_csv, "task") == list(TASKS) * 4
    assert set(column(folder.eval_csv, "env_steps")) == {""}  # none was taken
    assert set(column(folder.eval_csv, "episode_length")) == {"20"}
    assert column(folder.train_csv, "updates") == ["10", "20", "30"]
    losses = np.array(column(folder.train_csv, "consistency_loss"), float)
    assert np.isfinite(losses).all()
    assert len(set(losses)) == 3
    status = folder.read_status()
    assert (status.state, status.updates, status.total_updates) == ("done", 30, 30)
    assert (status.agent_steps, status.total_env_steps) == (0, 0)
    # The score is the mean over tasks of the normalised scores: a tenth of each return.
    last = np.array(column(folder.eval_csv, "return"), float)[-3:]
    assert status.last_return == pytest.approx(last.mean() / 10, rel=1e-5)
    assert folder.data_manifest.is_file()


def test_the_agent_knows_the_tasks_in_the_runs_order_with_their_own_dims(offline_run):
    folder = train(offline_run(task="cup-catch,pendulum-swingup", steps=1), show_progress=False)
    agent = TDMPC2.from_state(checkpoints.read(folder.checkpoint)["agent"], folder.checkpoint, "cpu")
    assert agent.spec.tasks == ("cup-catch", "pendulum-swingup")
    assert (agent.spec.obs_shape, agent.spec.action_dims) == ((8,), (2, 1))
    assert column(folder.eval_csv, "task") == ["cup-catch", "pendulum-swingup"] * 2


def test_one_task_of_a_data_set_trains_an_agent_without_embedding(offline_run):
    folder = train(offline_run(task="cartpole-swingup", steps=2), show_progress=False)
    spec = checkpoints.read(folder.checkpoint)["agent"]["spec"]
    assert (spec["tasks"], tuple(spec["obs_shape"])) == (("cartpole-swingup",), (5,))


def test_how_often_one_evaluates_does_not_change_what_is_learned(offline_run, identical):
    often = train(offline_run(label="often", eval_freq=5), show_progress=False)
    never = train(offline_run(label="never", eval_freq=1000), show_progress=False)
    one, other = (checkpoints.read(folder.checkpoint)["agent"]["model"] for folder in (often, never))
    identical(one, other)


def test_task_weights_decide_what_is_learned_from(offline_run, monkeypatch):
    seen: list[int] = []
    update = TDMPC2.update

    def recorded(agent: TDMPC2, batch: Any) -> Any:
        seen.extend(batch["task"].tolist())
        return update(agent, batch)

    monkeypatch.setattr(TDMPC2, "update", recorded)
    weights = "pendulum-swingup:0,cartpole-swingup:0"
    train(offline_run(steps=2, task_weights=weights, eval_freq=1000), show_progress=False)
    assert set(seen) == {2}


def test_accumulation_changes_the_update_by_rounding_alone(offline_run):
    plain = train(offline_run(label="plain", steps=5), show_progress=False)
    parts = train(offline_run(label="parts", steps=5, accumulate=4), show_progress=False)
    for name in ("total_loss", "pi_loss", "grad_norm", "pi_scale"):
        one, other = (np.array(column(folder.train_csv, name), float) for folder in (plain, parts))
        np.testing.assert_allclose(one, other, rtol=1e-4)


# --- exact resume


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(20, tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.close()


def test_a_run_killed_anywhere_ends_as_one_that_was_never_killed(launch, words, tmp_path, identical):
    make_data(tmp_path)
    untouched = words(exp_name="untouched", **SCHEDULE)
    code, output = launch(["train", *untouched])
    assert code == 0, output
    killed = words(exp_name="killed", **SCHEDULE)
    for kill in (
        Kill("tdmpc2.agent.agent:TDMPC2.update", 5),  # before any checkpoint
        Kill("tdmpc2.agent.agent:TDMPC2.update", 11, after=True),  # after that of update 8
        Kill("tdmpc2.agent.actor:Actor.__call__", 9),  # in the evaluation at update 12
        Kill("torch:save", 1, after=True),  # a checkpoint written but not yet named
        Kill("tdmpc2.agent.agent:TDMPC2.update", 10, signal="SIGTERM"),  # asked to stop
        Kill("tdmpc2.training.progress:RunProgress.finish"),  # all done but the status
    ):
        code, output = launch(["train", *killed], kill)
        assert code == (-signal.SIGKILL if kill.signal == "SIGKILL" else 130), output
    code, output = launch(["train", *killed])
    assert code == 0, output
    folders = [RunFolder.of(parse_settings(Config, run)) for run in (killed, untouched)]
    identical(*map(outcome, folders))
    assert column(folders[0].eval_csv, "updates") == [str(n) for n in (0, 12, 24, 30) for _ in TASKS]


# --- what goes wrong


def test_a_loss_that_is_not_a_number_stops_the_run_and_spares_the_checkpoint(offline_run, monkeypatch):
    update = TDMPC2.update

    def spoiled(agent: TDMPC2, batch: Any) -> Any:
        if agent.updates == 19:
            with torch.no_grad():
                next(agent.model.parameters()).view(-1)[0] = float("nan")
        return update(agent, batch)

    monkeypatch.setattr(TDMPC2, "update", spoiled)
    with pytest.raises(DivergedError, match=r"diverged at update 20: .*total_loss nan.*last good checkpoint"):
        train(offline_run(), show_progress=False)
    folder = RunFolder.of(offline_run())
    assert checkpoints.read(folder.checkpoint)["agent"]["updates"] == 16
    assert folder.read_status().state == "failed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "tiro"}, "did you mean 'trio'"),
        ({"task": f"{DATA['task']},walker-walk"}, "walker-walk"),
        ({"task_weights": "cup-cach:2"}, "task_weights.*'cup-catch'"),
        ({"batch_size": 9, "accumulate": 4}, "accumulate: 4 does not divide batch_size 9 into equal parts"),
        ({"horizon": 21}, "horizon: 21 is longer than an episode"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(offline_run, changes, message):
    config = offline_run(**changes)
    with pytest.raises(UserError, match=message):
        train(config, show_progress=False)
    assert not RunFolder.of(config).path.exists()


def test_settings_without_meaning_offline_are_refused(tiny):
    for changes in ({"env_steps": 10}, {"seed_steps": 5}, {"num_envs": 2}, {"buffer_size": 5}, {"obs": "rgb"}):
        with pytest.raises(UserError, match=next(iter(changes))):
            tiny(**{**DATA, **changes})
    with pytest.raises(UserError, match="task_weights: has no meaning without data="):
        tiny(task_weights="tasks")


def test_a_store_that_is_gone_or_has_changed_is_named(offline_run, tmp_path):
    store = tmp_path / "stores" / "trio-cup-catch"
    aside = store.rename(tmp_path / "aside")
    with pytest.raises(UserError, match=f"replay store of cup-catch .* is gone: no {store}"):
        train(offline_run(), show_progress=False)
    write_store(store, "cup-catch", episodes=5, steps=20)
    with pytest.raises(UserError, match=f"{store}: has changed since"):
        train(offline_run(), show_progress=False)
    shutil.rmtree(store)
    aside.rename(store)
    assert train(offline_run(steps=1), show_progress=False).read_status().state == "done"


def test_a_run_does_not_go_on_with_other_data_than_it_began_with(offline_run, tmp_path):
    stop = offline.StopRequest()
    config = offline_run()
    updates = TDMPC2.update

    def stopping(agent: TDMPC2, batch: Any) -> Any:
        stop.requested = agent.updates == 9
        return updates(agent, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TDMPC2, "update", stopping)
        with pytest.raises(offline.Stopped):
            train(config, show_progress=False, stop=stop)
    shutil.rmtree(tmp_path / "datasets" / "trio")
    shutil.rmtree(tmp_path / "stores")
    make_data(tmp_path, episodes=5)
    with pytest.raises(UserError, match="was trained on other data than"):
        train(config, show_progress=False)


def test_several_tasks_without_data_are_told_of_data_sets(tiny):
    with pytest.raises(UserError, match=r"mt30 stands for 30 tasks.*data=NAME"):
        train(tiny(task="mt30"), show_progress=False)


# --- several processes


def torchrun(processes: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["-m", "tdmpc2", "train", "--quiet", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_two_processes_give_the_losses_of_one_up_to_rounding(words, tmp_path):
    make_data(tmp_path)
    changes = {**SCHEDULE, "steps": 20, "eval_freq": 1000, "mpc": "false"}
    two = words(exp_name="two", **changes)
    done = torchrun(2, two)
    assert done.returncode == 0, done.stderr
    one = train(parse_settings(Config, words(exp_name="one", **changes)), show_progress=False)
    folder = RunFolder.of(parse_settings(Config, two))
    assert folder.read_status().state == "done"
    first, second = (checkpoints.read(run.checkpoint)["agent"]["model"] for run in (one, folder))
    for name, tensor in first.items():
        where = f"{name} differs"
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=2e-5, msg=where)
    assert column(folder.eval_csv, "task") == list(TASKS) * 2  # written once


def test_several_processes_refuse_online_training_in_one_line(words, tmp_path):
    done = torchrun(2, words(task="cup-catch", steps=10))
    assert done.returncode != 0
    assert done.stderr.count("online training runs in one process, not 2") == 1
