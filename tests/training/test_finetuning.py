"""Finetuning a multi-task agent online: what it begins with, what it learns, what it refuses."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import TASKS, make_data
from training_launcher import Kill, Launcher

from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.cli import main
from tdmpc2.config import NOT_IDENTITY, Config, parse_settings
from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import get_task
from tdmpc2.training.finetune import TaskOfMany
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.run import train

NEW = "cartpole-balance"
"""Not among the data set's tasks; its embodiment is that of cartpole-swingup."""
BRIEF = {"steps": 40, "seed_steps": 25, "eval_freq": 1000, "checkpoint_freq": 10, "eval_episodes": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a multi-task run with 5 updates."""
    from tiny_runs import TINY, shortened_tasks

    import tdmpc2.tasks

    folder = tmp_path_factory.mktemp("multitask")
    make_data(folder)
    changes = {"task": ",".join(TASKS), "data": "trio", "buffer_size": 1_000_000, "steps": 5, "eval_freq": 1000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tdmpc2.tasks, "TASKS", shortened_tasks())
        return train(Config(**{**TINY, **changes, "results_dir": str(folder)}), show_progress=False).path


@pytest.fixture
def finetuning(tiny: Callable[..., Config], short_episodes: int, source: Path) -> Callable[..., Config]:
    """Makes the config of a tiny finetuning run."""
    return lambda **changes: tiny(**{"task": NEW, **BRIEF, "checkpoint": str(source), **changes})


def model_of(folder: RunFolder) -> dict[str, torch.Tensor]:
    return checkpoints.read(folder.checkpoint)["agent"]["model"]


def shortened(row: torch.Tensor) -> torch.Tensor:
    return row / row.norm().clamp_min(1.0)


def untrained(config: Config) -> RunFolder:
    """The run's folder after the steps before the first update."""
    return train(config, show_progress=False)


def test_a_new_task_gets_a_row_of_its_own_and_all_else_is_the_checkpoints(finetuning, source):
    folder = untrained(finetuning(steps=10))
    begun, before = model_of(folder), model_of(RunFolder(source))
    assert begun["_task_emb"].shape == (4, 96)
    for name, tensor in before.items():
        torch.testing.assert_close(begun[name][:3] if name == "_task_emb" else begun[name], tensor, rtol=0, atol=0)
    spec = checkpoints.read(folder.checkpoint)["agent"]["spec"]
    assert spec["tasks"] == (*TASKS, NEW)
    assert spec["action_dims"] == (1, 1, 2, 1)
    scale = checkpoints.read(RunFolder(source).checkpoint)["agent"]["scale"]
    assert checkpoints.read(folder.checkpoint)["agent"]["scale"] == scale


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("cup-catch", lambda table: table[2]),
        ("nearest", lambda table: table[1]),  # cartpole-swingup's: the same cart and pole
        ("mean", lambda table: table.mean(dim=0)),
        ("zero", lambda table: 0 * table[0]),
    ],
)
def test_the_embedding_begins_as_chosen(finetuning, source, chosen, expected):
    table = torch.stack([shortened(row) for row in model_of(RunFolder(source))["_task_emb"]])
    begun = model_of(untrained(finetuning(steps=10, embedding_from=chosen)))["_task_emb"]
    torch.testing.assert_close(begun[3], expected(table))


def test_a_task_of_the_checkpoint_keeps_its_own_row_unless_told_otherwise(finetuning, source):
    before = model_of(RunFolder(source))["_task_emb"]
    own = model_of(untrained(finetuning(task="cup-catch", steps=10)))["_task_emb"]
    torch.testing.assert_close(own, before, rtol=0, atol=0)
    other = model_of(untrained(finetuning(task="cup-catch", steps=10, embedding_from="zero", label="z")))["_task_emb"]
    torch.testing.assert_close(other[:2], before[:2], rtol=0, atol=0)
    assert not other[2].any()


def test_only_the_tasks_own_embedding_moves(finetuning, source):
    folder = train(finetuning(), show_progress=False)
    assert folder.read_status().updates == 40
    before, after = model_of(RunFolder(source))["_task_emb"], model_of(folder)["_task_emb"]
    torch.testing.assert_close(after[:3], before, rtol=0, atol=0)
    assert not torch.equal(after[3], shortened(before[1]))


def test_it_acts_with_the_agent_from_the_first_step(finetuning, monkeypatch):
    acted: list[bool] = []
    act = TDMPC2.act

    def recorded(agent: TDMPC2, obs: Any, *rest: Any, **options: Any) -> Any:
        acted.append(agent.updates == 0)
        return act(agent, obs, *rest, **options)

    monkeypatch.setattr(TDMPC2, "act", recorded)
    train(finetuning(steps=30), show_progress=False)
    assert acted == [True] * 25 + [False] * 5  # learning starts after seed_steps


def test_a_batch_of_one_task_is_padded_and_numbered_for_an_agent_of_many():
    spec = AgentSpec.from_tasks(["cartpole-swingup", "cup-catch"])  # 5 and 8, 1 and 2
    view = TaskOfMany(spec, get_task("cartpole-swingup"))
    batch = {"obs": torch.ones(4, 7, 5), "action": torch.ones(3, 7, 1), "reward": torch.ones(3, 7, 1)}
    seen = view.batch(batch)
    assert seen["obs"].shape == (4, 7, 8)
    assert seen["obs"].sum(dim=-1).unique().tolist() == [5.0]
    assert not seen["obs"][..., 5:].any()
    assert seen["action"][0, 0].tolist() == [1.0, 0.0]
    assert seen["task"].tolist() == [0] * 7
    assert view.observe(np.ones((2, 5), np.float32))[0].tolist() == [1.0] * 5 + [0.0] * 3
    assert view.action(torch.tensor([[0.5, 0.7]])).tolist() == [[0.5]]
    alone = TaskOfMany(AgentSpec.from_tasks(["cartpole-swingup"]), get_task("cartpole-swingup"))
    assert alone.batch(batch) is batch


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(20, tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.close()


def test_a_killed_run_goes_on_exactly_even_where_its_source_is_gone(
    launch, words, contents, identical, source, tmp_path
):
    copy = shutil.copytree(source, tmp_path / "copy")
    settings = {"task": NEW, **BRIEF, "checkpoint": copy}
    untouched, killed = words(exp_name="untouched", **settings), words(exp_name="killed", **settings)
    code, output = launch(["train", *untouched])
    assert code == 0, output
    code, output = launch(["train", *killed], Kill("tdmpc2.agent.agent:TDMPC2.update", 8))
    assert code == -signal.SIGKILL, output
    assert RunFolder.of(parse_settings(Config, killed)).checkpoint.exists()
    shutil.rmtree(copy)
    code, output = launch(["train", *killed])
    assert code == 0, output
    outcomes = [contents(RunFolder.of(parse_settings(Config, run))) for run in (killed, untouched)]
    assert "recompute" in NOT_IDENTITY  # what `contents` leaves out
    identical(*outcomes)


def test_the_command_finetune_takes_the_embedding_as_an_option(words, short_episodes, source, capsys):
    settings = words(task=NEW, checkpoint=source, **{**BRIEF, "steps": 10})
    assert main(["finetune", *settings[:3], "--embedding-from", "zero", *settings[3:]]) == 0
    folder = RunFolder.of(parse_settings(Config, [*settings, "embedding_from=zero"]))
    assert folder.path.name == f"{NEW}-1M-finetuned-seed1"
    assert not model_of(folder)["_task_emb"][3].any()
    assert "its embedding begins as zero" in capsys.readouterr().err


def test_the_command_finetune_asks_for_a_checkpoint(capsys):
    assert main(["finetune", f"task={NEW}"]) == 2
    assert "checkpoint: missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_size": 5}, "model_size: 5, but .* has 1; give model_size=1"),
        ({"latent_dim": 24}, "latent_dim: 24, but .* has 16"),
        ({"task": "walker-walk"}, r"walker-walk has observations of 24 and actions of 6 dims; .* room for 8 and 2"),
        ({"embedding_from": "cup-cach"}, "did you mean 'cup-catch'"),
        ({"checkpoint": "nowhere"}, "no .* nowhere"),
        ({"episodic": True}, "episodic"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_folder_is_made(finetuning, changes, message):
    config = finetuning(**changes)
    with pytest.raises(UserError, match=message):
        train(config, show_progress=False)
    assert not RunFolder.of(config).path.exists()


def test_an_agent_of_one_task_is_no_start(finetuning, tiny):
    single = train(tiny(task="cup-catch", **{**BRIEF, "steps": 10}), show_progress=False)
    with pytest.raises(UserError, match="holds an agent of cup-catch alone"):
        train(finetuning(checkpoint=str(single.path)), show_progress=False)


def test_settings_of_finetuning_need_a_checkpoint(tiny):
    with pytest.raises(UserError, match="embedding_from: has no meaning without checkpoint="):
        tiny(embedding_from="mean")
    with pytest.raises(UserError, match="task: finetuning takes one task, not the 30 of mt30"):
        tiny(task="mt30", checkpoint="x")
