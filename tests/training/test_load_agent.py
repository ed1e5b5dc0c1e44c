"""Agents from run folders, checkpoints of both implementations, and the Hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TINY

from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.reference import write_reference
from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.load_agent import load_agent, read_agent

TASKS = ("pendulum-swingup", "cartpole-swingup", "cup-spin")


def make_agent(*tasks: str, **changes: Any) -> TDMPC2:
    settings: Any = TINY | {"task": ",".join(tasks)} | changes
    agent = TDMPC2(Config(**settings), AgentSpec.from_tasks(tasks))
    agent.updates = 12
    return agent


@pytest.fixture
def agent() -> TDMPC2:
    return make_agent(*TASKS)


def same_weights(one: TDMPC2, other: TDMPC2) -> bool:
    left, right = one.model.state_dict(), other.model.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def write_run(folder: Path, agent: TDMPC2, steps: int) -> Path:
    run = RunFolder(folder)
    run.claim(agent.config)
    run.release()
    checkpoints.write({"agent": agent.state_dict(), "steps": steps, "seconds": 1.0}, run.checkpoint)
    return folder


def test_a_runs_folder_and_its_checkpoint_file_give_the_same_agent(agent, tmp_path):
    folder = write_run(tmp_path / "run", agent, 40)
    for source in (folder, folder / "checkpoint" / "latest.pt"):
        loaded = load_agent(str(source), device="cpu", compile="none", mpc=False)
        assert same_weights(loaded.agent, agent)
        assert (loaded.steps, loaded.agent.updates, loaded.agent.config.mpc) == (40, 12, False)
        assert loaded.origin == str(folder / "checkpoint" / "latest.pt")


def test_an_agent_that_learned_from_data_alone_has_taken_no_steps(tmp_path):
    agent = make_agent(*TASKS, data="mine", buffer_size=Config(task="mt30").buffer_size)
    stored = read_agent(str(write_run(tmp_path / "run", agent, 0)))
    assert (stored.steps, stored.updates) == (None, 12)


def test_a_file_that_an_agent_saved_itself_does_not_tell_its_steps(agent, tmp_path):
    agent.save(tmp_path / "agent.pt")
    loaded = load_agent(str(tmp_path / "agent.pt"), device="cpu")
    assert same_weights(loaded.agent, agent)
    assert loaded.steps is None


def test_a_reference_file_loads_with_the_tasks_that_it_was_trained_on(agent, tmp_path):
    path = str(tmp_path / "theirs.pt")
    write_reference(agent, path)
    loaded = load_agent(path, ",".join(TASKS), "cpu", precision="float32", compile="none")
    assert same_weights(loaded.agent, agent)
    assert (loaded.steps, loaded.origin, loaded.agent.spec) == (None, path, agent.spec)
    assert (loaded.agent.execution.precision, loaded.agent.execution.compile) == ("float32", "none")


def test_a_reference_file_without_its_tasks_is_refused_with_what_it_holds(agent, tmp_path):
    path = str(tmp_path / "theirs.pt")
    write_reference(agent, path)
    with pytest.raises(UserError, match=r"does not name its tasks.*task=TASK,TASK.*it holds mlp_dim 16, 3 tasks"):
        load_agent(path)
    with pytest.raises(UserError, match=r"theirs\.pt: does not fit this model.*the file holds"):
        load_agent(path, "pendulum-swingup,cartpole-swingup", "cpu")


def test_our_file_names_its_tasks_and_others_are_refused(agent, tmp_path):
    path = str(tmp_path / "agent.pt")
    agent.save(path)
    assert read_agent(path, "cup-spin,pendulum-swingup,cartpole-swingup").spec.tasks == TASKS
    with pytest.raises(UserError, match="agent of pendulum-swingup, cartpole-swingup, cup-spin, not of mt30; leave"):
        read_agent(path, "mt30")


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (None, TASKS),
        ("cup-spin", ("cup-spin",)),
        ("cup-spin, pendulum-swingup", ("cup-spin", "pendulum-swingup")),
        ("dmcontrol", TASKS),  # a set stands for those that the agent has; in the set's order
        ("cup-spin,mt30", ("cup-spin", "pendulum-swingup", "cartpole-swingup")),
    ],
)
def test_some_of_an_agents_tasks_are_chosen_by_name_or_set(agent, tmp_path, only, expected):
    agent.save(tmp_path / "agent.pt")
    chosen = read_agent(str(tmp_path / "agent.pt")).choose_tasks(only)
    assert (set(chosen), len(chosen)) == (set(expected), len(expected))
    if only != "dmcontrol":
        assert chosen == expected


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("cup-catch", "only: the agent of .* was not trained on cup-catch; the nearest that it has is cup-spin"),
        ("cup-spin,pendulum-spin", "not trained on pendulum-spin; the nearest that it has is pendulum-swingup"),
        ("dog-trot", "not trained on dog-trot; it has pendulum-swingup, cartpole-swingup, cup-spin"),
        ("metaworld", "not trained on metaworld; it has pendulum-swingup, cartpole-swingup, cup-spin"),
        ("cup-spinn", "only: unknown task 'cup-spinn'; did you mean 'cup-spin'"),
    ],
)
def test_a_task_that_the_agent_lacks_is_refused(agent, tmp_path, only, message):
    agent.save(tmp_path / "agent.pt")
    with pytest.raises(UserError, match=message):
        read_agent(str(tmp_path / "agent.pt")).choose_tasks(only)


def test_what_is_not_there_or_no_agent_is_refused(agent, tmp_path):
    agent.save(tmp_path / "agent.pt")
    with pytest.raises(UserError, match=r"checkpoint: no file .*agnt\.pt; did you mean .*agent\.pt\?"):
        read_agent(str(tmp_path / "agnt.pt"))
    with pytest.raises(UserError, match=r"not a run's folder \(no config\.yaml\)"):
        read_agent(str(tmp_path))
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(UserError, match=r"text\.pt: not a checkpoint"):
        read_agent(str(tmp_path / "text.pt"))
    checkpoints.write({"weights": 1}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"odd\.pt: not a run's checkpoint, nor one of the reference implementation"):
        read_agent(str(tmp_path / "odd.pt"))


# --- the Hub


def test_a_path_on_the_hub_is_downloaded_and_named_as_it_was_given(agent, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    write_reference(agent, tmp_path / "theirs.pt")
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(tmp_path / "theirs.pt")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    loaded = load_agent("hf://someone/models/multitask/mt3-1M.pt", ",".join(TASKS), "cpu")
    assert asked == [("someone/models", "multitask/mt3-1M.pt")]
    assert loaded.origin == "hf://someone/models/multitask/mt3-1M.pt"
    assert same_weights(loaded.agent, agent)


def test_without_a_network_the_message_says_how_to_give_a_file(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def download(repository: str, name: str) -> str:
        raise hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"hf://a/b/c\.pt is not in the local cache.*give it as checkpoint=FILE"):
        read_agent("hf://a/b/c.pt")


def test_a_file_that_the_hub_does_not_have_is_one_line(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def download(repository: str, name: str) -> str:
        raise hub.errors.EntryNotFoundError("404 Client Error.\n\nEntry Not Found for url: c.pt.")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"^checkpoint: hf://a/b/c\.pt cannot be downloaded \(404 Client Error\. Entry"):
        read_agent("hf://a/b/c.pt")


@pytest.mark.parametrize("source", ["hf://", "hf://a/b", "hf://a//c", "hf://a/b/"])
def test_a_path_on_the_hub_has_owner_repository_and_file(source):
    with pytest.raises(UserError, match="is not of the form hf://OWNER/REPO/PATH"):
        read_agent(source)


def test_without_the_hubs_client_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"needs the package huggingface_hub; install this project's requirements"):
        read_agent("hf://a/b/c.pt")


def test_the_hubs_client_is_not_loaded_for_a_file_of_ones_own():
    code = "import sys, tdmpc2.training.load_agent; print('huggingface_hub' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"
