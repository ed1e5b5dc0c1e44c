"""What a run writes down."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
import torch
from tiny_runs import TINY

from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.training.logs import CsvLog, EventLog, RunningMeans, check_wandb

COLUMNS = ("env_steps", "return", "note")


def test_rows_are_in_the_file_as_soon_as_they_are_written(tmp_path):
    log = CsvLog(tmp_path / "log.csv", COLUMNS, 0)
    log.write({"env_steps": 10, "return": 1.5})
    assert (tmp_path / "log.csv").read_text() == "env_steps,return,note\n10,1.5,\n"
    log.close()


def test_what_is_not_a_number_is_an_empty_field_and_floats_are_rounded(tmp_path):
    log = CsvLog(tmp_path / "log.csv", COLUMNS, 0)
    log.write({"env_steps": 7_000_000, "return": math.nan, "note": None})
    log.write({"env_steps": 0, "return": 1 / 3, "note": math.inf})
    log.write({"env_steps": 0, "return": 12_345_678.0, "note": "a,b"})
    log.close()
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[1:] == ["7000000,,", "0,0.3333333,inf", '0,1.234568e+07,"a,b"']


def test_a_resumed_log_forgets_the_rows_after_the_checkpoint(tmp_path):
    path = tmp_path / "log.csv"
    log = CsvLog(path, COLUMNS, 0)
    log.write({"env_steps": 1})
    length = log.length()
    assert length == path.stat().st_size
    log.write({"env_steps": 2})
    log.close()
    with path.open("a") as file:
        file.write("3,tor")  # killed while writing

    resumed = CsvLog(path, COLUMNS, length)
    resumed.write({"env_steps": 2, "note": "again"})
    resumed.close()
    assert path.read_text() == "env_steps,return,note\n1,,\n2,,again\n"


def test_a_run_without_a_checkpoint_starts_its_log_afresh(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("env_steps,return,note\n1,,\n")
    CsvLog(path, COLUMNS, 0).close()
    assert path.read_text() == "env_steps,return,note\n"


@pytest.mark.parametrize("content", [None, "env_steps,re"])
def test_a_log_that_lost_rows_the_checkpoint_counts_is_refused_and_not_filled_up(tmp_path, content):
    path = tmp_path / "log.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"log\.csv: \d+ bytes, but the checkpoint counts 30"):
        CsvLog(path, COLUMNS, 30)
    assert path.read_text() == (content or "")


def test_running_means_are_of_the_updates_since_they_were_last_taken():
    means = RunningMeans()
    assert means.take() == {}
    value = torch.tensor(2.0)
    means.add({"loss": value})
    value += 10  # the means keep their own numbers
    means.add({"loss": torch.tensor(5.0)})
    assert means.take() == {"loss": 3.5}
    means.add({"loss": torch.tensor(1.0)})
    assert means.take() == {"loss": 1.0}


def test_running_means_go_on_after_a_checkpoint():
    means, resumed = RunningMeans(), RunningMeans()
    means.add({"loss": torch.tensor(2.0)})
    resumed.load_state_dict(means.state_dict(), torch.device("cpu"))
    for each in (means, resumed):
        each.add({"loss": torch.tensor(4.0)})
    assert resumed.take() == means.take() == {"loss": 3.0}


def read_events(folder: object) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_events_are_numbers_over_environment_steps(tmp_path):
    log = EventLog(tmp_path / "events", Config(**TINY), None)
    log.write("eval", {"env_steps": 100, "agent_steps": 50, "return": 2.0, "success": math.nan, "task": "walker-walk"})
    log.write("eval", {"env_steps": 200, "agent_steps": 100, "return": 3.0})
    log.close()
    assert read_events(tmp_path / "events") == {
        "eval/agent_steps": [(100, 50), (200, 100)],
        "eval/return": [(100, 2), (200, 3)],
    }


def test_events_after_the_checkpoint_are_void_and_its_own_are_kept(tmp_path, monkeypatch):
    config = Config(**TINY)
    killed = EventLog(tmp_path / "events", config, None)
    for env_steps in (100, 200, 300, 400):
        killed.write("train", {"env_steps": env_steps, "return": float(env_steps)})
    killed.flush()  # as a checkpoint does

    monkeypatch.setattr(
        "time.time", lambda: 4e9
    )  # TensorBoard reads the files in the order of the second in their names
    resumed = EventLog(tmp_path / "events", config, 200)
    resumed.write("train", {"env_steps": 300, "return": -300.0})
    resumed.close()
    assert read_events(tmp_path / "events") == {"train/return": [(100, 100), (200, 200), (300, -300)]}
    killed.close()


def test_wandb_that_is_not_installed_is_named_with_the_command_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb=true needs the package: pip install -e '.\[wandb\]'"):
        check_wandb()


def test_wandb_that_is_broken_shows_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("import a_part_of_wandb_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_part_of_wandb_that_is_missing"):
        check_wandb()


@pytest.mark.parametrize(
    ("mode", "logged_in", "works"), [(None, False, False), (None, True, True), ("offline", False, True)]
)
def test_wandb_needs_a_login_unless_it_is_offline_and_never_asks_for_one(monkeypatch, mode, logged_in, works):
    wandb = ModuleType("wandb")

    def login(*, prompt: bool, verify: bool) -> bool:
        assert not prompt
        assert not verify
        return logged_in

    wandb.login = login  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    if works:
        assert check_wandb() is wandb
    else:
        with pytest.raises(UserError, match="nobody is logged in; run `wandb login` first"):
            check_wandb()


def test_wandb_gets_the_same_numbers_and_the_run_keeps_its_id(tmp_path, monkeypatch):
    calls: list[tuple[str, dict]] = []

    class Run:
        def log(self, numbers: dict) -> None:
            calls.append(("log", numbers))

        def finish(self) -> None:
            calls.append(("finish", {}))

    wandb = ModuleType("wandb")
    wandb.login = lambda **_: True  # type: ignore[attr-defined]
    wandb.init = lambda **settings: calls.append(("init", settings)) or Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = Config(**TINY, wandb=True, exp_name="paper", wandb_entity="lab")
    for _ in range(2):  # the second time, resumed
        log = EventLog(tmp_path / "tensorboard", config, None)
        log.write("eval", {"env_steps": 100, "return": 2.0, "task": "walker-walk"})
        log.close()
    (_, first), logged, finished = calls[:3]
    assert (first["project"], first["entity"], first["group"]) == ("tdmpc2", "lab", "paper")
    assert (first["name"], first["resume"]) == ("pendulum-swingup-1M-seed1", "allow")
    assert logged == ("log", {"eval/return": 2.0, "env_steps": 100})
    assert finished == ("finish", {})
    assert calls[3][1]["id"] == first["id"]
