"""`tdmpc2 train` and what can go wrong with it: one clear message, exit code 2, nothing damaged."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TINY, shortened_tasks

import tdmpc2.tasks
from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.cli import main
from tdmpc2.config import Config
from tdmpc2.spec import AgentSpec
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.run import train
from tdmpc2.training.runtime import Stopped, StopRequest

SETTINGS = {"seed_steps": 30, "steps": 60, "eval_freq": 40, "checkpoint_freq": 10, "mpc": False}
LIVE = ("status.json", ".lock", "provenance.json")
"""Files that say who is on a run and how it went; all others hold what it is."""


class StopAfter(StopRequest):
    """A stop that is requested at its n-th check."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self._checks = checks

    def check(self) -> None:
        self._checks -= 1
        if self._checks < 0:
            raise Stopped


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with a run that was stopped at agent step 47, after two evaluations and 46 updates."""
    results = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tdmpc2.tasks, "TASKS", shortened_tasks())
        config = Config(**TINY, results_dir=str(results), **SETTINGS)
        with pytest.raises(Stopped):
            train(config, show_progress=False, stop=StopAfter(20 + 47 + 30 + 20 + 16))
    assert RunFolder.of(config).read_status().agent_steps == 47
    return results


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run, never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tdmpc2.tasks, "TASKS", shortened_tasks())
        results = str(tmp_path_factory.mktemp("untouched"))
        return train(Config(**TINY, results_dir=results, **SETTINGS), show_progress=False)


@pytest.fixture
def stopped(template: Path, tmp_path: Path, short_episodes: int, tiny: Callable[..., Config]) -> RunFolder:
    """A copy of that run, where the command line of `words(**SETTINGS)` finds it."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return RunFolder.of(tiny(**SETTINGS))


@pytest.fixture
def command(words: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs `tdmpc2 train` on the run: exit code and what it says."""

    def run(**changes: Any) -> tuple[int, str]:
        code = main(["train", "--quiet", *words(**{**SETTINGS, **changes})])
        captured = capsys.readouterr()
        return code, captured.err + captured.out

    return run


def files(folder: RunFolder, without: tuple[str, ...] = ()) -> dict[str, tuple[bytes, int]]:
    """Every file's content and time of change."""
    found = {str(p.relative_to(folder.path)): p for p in folder.path.rglob("*") if p.is_file()}
    return {name: (p.read_bytes(), p.stat().st_mtime_ns) for name, p in found.items() if name not in without}


def contents_only(folder: RunFolder) -> dict[str, bytes]:
    kept = files(folder, without=LIVE)
    return {name: content for name, (content, _) in kept.items() if not name.startswith("tensorboard")}


def assert_refused(code: int, said: str, *texts: str) -> None:
    assert code == 2, said
    assert said.startswith("tdmpc2: ")
    assert said.count("\n") == 1, said
    for text in texts:
        assert text in said


def test_a_stopped_run_goes_on_to_the_same_end_and_a_done_one_is_left_alone(
    stopped, command, untouched, contents, identical
):
    code, said = command()
    assert (code, said) == (0, f"{stopped.path}: done\n")
    identical(contents(stopped), contents(untouched))

    before = files(stopped)
    code, said = command(threads=2)
    assert code == 0
    assert f"{stopped.path}: done already; evaluate it with `tdmpc2 evaluate run={stopped.path}`" in said
    assert files(stopped) == before


def test_training_a_done_run_from_python_does_nothing_either(stopped, tiny, monkeypatch):
    config = tiny(**SETTINGS)
    train(config, show_progress=False)
    before = files(stopped, without=(".lock",))
    monkeypatch.setattr("tdmpc2.training.run.OnlineTraining", lambda *_: pytest.fail("trained"))
    assert train(config, show_progress=False).path == stopped.path
    assert files(stopped, without=(".lock",)) == before


def test_a_run_with_other_settings_is_refused_whether_done_or_not(stopped, command):
    before = files(stopped, without=LIVE)
    assert_refused(*command(lr=0.1), "holds a run with other settings (lr=0.0003 there, lr=0.1 now)", "label=")
    assert files(stopped, without=LIVE) == before
    command()
    before = files(stopped, without=LIVE)
    assert_refused(*command(steps=70), "steps=60 there, steps=70 now")
    assert files(stopped, without=LIVE) == before


def test_a_second_process_on_the_run_is_refused(stopped, command, tiny):
    owner = RunFolder(stopped.path)
    owner.claim(tiny(**SETTINGS))
    before = files(stopped)
    assert_refused(*command(), "is working on this run; wait for it or stop it first")
    assert files(stopped) == before
    owner.release()
    assert command()[0] == 0


def test_several_tasks_are_refused(command, tmp_path):
    assert_refused(*command(task="mt30"), "task: mt30 stands for 30 tasks; online training takes one")
    assert_refused(*command(task="dog-run,dog-walk"), "stands for 2 tasks")
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there_is_refused_and_the_run_can_go_on_without(stopped, command):
    before = contents_only(stopped)
    assert_refused(*command(device="cuda:99"), "device: cuda:99 is not there")
    assert contents_only(stopped) == before
    status = stopped.read_status()
    assert (status.state, status.agent_steps) == ("failed", 47)  # as far as it was
    assert "cuda:99" in status.message
    assert command()[0] == 0


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    weights = max(checkpoints.read(path)["agent"]["model"].values(), key=torch.numel)
    content[content.index(weights.numpy().tobytes())] ^= 0xFF
    path.write_bytes(bytes(content))


def widen(path: Path) -> None:
    """Put the agent of another width into a run's checkpoint."""
    state = checkpoints.read(path)
    other = Config(**{**TINY, **SETTINGS, "latent_dim": 24})
    state["agent"] = TDMPC2(other, AgentSpec.from_tasks(["pendulum-swingup"])).state_dict()
    checkpoints.write(state, path)


def agent_alone(path: Path) -> None:
    checkpoints.write(checkpoints.read(path)["agent"], path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "not a checkpoint, or a damaged, truncated or unsafe one"),
        (flip_a_byte, "not a checkpoint, or a damaged, truncated or unsafe one"),
        (widen, "does not fit this model; other shapes: "),
        (agent_alone, "not a run's checkpoint (missing: agent, steps, "),
        (lambda path: path.write_bytes(b""), "not a checkpoint, or a damaged, truncated or unsafe one"),
    ],
    ids=["truncated", "a flipped byte", "another shape", "an agent's own", "empty"],
)
def test_a_checkpoint_that_cannot_be_resumed_is_named_and_nothing_is_lost(stopped, command, damage, message):
    stopped.previous_checkpoint.unlink()  # or it would go on from there
    damage(stopped.checkpoint)
    before = contents_only(stopped)
    assert_refused(*command(), f"{stopped.checkpoint}: ", message)
    assert contents_only(stopped) == before
    status = stopped.read_status()
    assert (status.state, status.agent_steps) == ("failed", 47)
    assert message in status.message
    assert not stopped.is_claimed()


def test_a_log_that_was_cut_is_named_and_not_filled_up(stopped, command):
    whole = stopped.eval_csv.read_bytes()
    stopped.eval_csv.write_bytes(whole[:-30])
    assert_refused(*command(), str(stopped.eval_csv), "it was cut or removed since")
    assert stopped.eval_csv.read_bytes() == whole[:-30]
    stopped.eval_csv.write_bytes(whole)  # a copy is put back
    assert command()[0] == 0


def test_a_replay_that_was_removed_is_named(stopped, command):
    shutil.rmtree(stopped.replay)
    assert_refused(*command(), str(stopped.replay), "0 sound records, but the checkpoint counts 2 episodes")


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_wrapped(*_: Any, **__: Any) -> None:
    """As torch.save has it."""
    try:
        full()
    except OSError as error:
        raise RuntimeError("PytorchStreamWriter failed writing file") from error


@pytest.mark.parametrize(
    ("what", "fault", "where"),
    [
        ("torch.save", full, "latest.pt: the disk is full; the file is as it was before"),
        ("torch.save", full_wrapped, "latest.pt: the disk is full; the file is as it was before"),
        ("tdmpc2.data.files.write_at", full, "replay: disk full while writing"),
        ("tdmpc2.training.logs.CsvLog.write", full, "disk full while writing the run's records"),
        ("tdmpc2.training.folder.write_text", full, "disk full while writing the run's records"),
        ("os.fsync", full, "disk full while"),
    ],
    ids=["checkpoint", "checkpoint, wrapped", "replay", "logs", "status", "flushing"],
)
def test_a_full_disk_ends_the_run_with_one_message_and_it_goes_on_when_there_is_space(
    stopped, command, untouched, contents, identical, monkeypatch, what, fault, where
):
    with monkeypatch.context() as patch:
        patch.setattr(what, fault)
        assert_refused(*command(checkpoint_freq=1000), where, "ree ", "run the same command again")  # Free, or free
    assert checkpoints.read(stopped.checkpoint)["steps"] == 47
    assert list(stopped.path.rglob("*.tmp")) == []
    assert command()[0] == 0
    identical(contents(stopped), contents(untouched))


def test_a_full_disk_is_told_when_a_run_is_asked_to_stop_too(stopped, tiny, monkeypatch):
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(tdmpc2.UserError, match=r"latest\.pt: the disk is full"):
        train(tiny(**SETTINGS), show_progress=False, stop=StopAfter(3))
    assert stopped.read_status().state == "failed"


def test_where_nothing_at_all_can_be_written_there_is_still_one_message(stopped, command, monkeypatch):
    for what in ("torch.save", "tdmpc2.data.files.write_at", "tdmpc2.training.folder.write_text", "os.fsync"):
        monkeypatch.setattr(what, full)
    assert_refused(*command(), "disk full while")


def test_a_missing_wandb_is_told_before_anything_is_made(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert_refused(*command(wandb=True), "wandb=true needs the package: pip install -e '.[wandb]'")
    assert list(tmp_path.iterdir()) == []


def test_a_task_whose_simulator_is_not_here_says_what_installs_it(command, monkeypatch):
    monkeypatch.setenv("TDMPC2_MANISKILL_PYTHON", "/no/such/python")
    assert_refused(*command(task="lift-cube"), "lift-cube", "make setup-maniskill")


def test_another_fault_fails_the_run_and_keeps_its_own_traceback(stopped, command, monkeypatch):
    def fault(*_: Any) -> None:
        raise ZeroDivisionError("a programmer's mistake")

    with monkeypatch.context() as patch:
        patch.setattr(TDMPC2, "update", fault)
        with pytest.raises(ZeroDivisionError):
            command()
    status = stopped.read_status()
    assert (status.state, status.message) == ("failed", "a programmer's mistake")
    assert not stopped.is_claimed()
    assert command()[0] == 0


def test_a_precision_that_is_not_to_be_had_is_refused_before_there_is_a_folder(command, tmp_path):
    assert_refused(*command(precision="tf32", device="cpu"), "precision: tf32 is for GPUs")
    assert list(tmp_path.iterdir()) == []
