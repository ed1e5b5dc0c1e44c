"""A run whose numbers stop being numbers ends at once, and its last good checkpoint stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.cli import main
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.run import DivergedError, train

SETTINGS = {"seed_steps": 30, "steps": 60, "eval_freq": 1000, "checkpoint_freq": 10}


def poison(monkeypatch: pytest.MonkeyPatch, update: int, how: Callable[[TDMPC2], None], after: bool) -> None:
    """Spoil an agent in its n-th update."""
    original = TDMPC2.update

    def poisoned(agent: TDMPC2, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        due = agent.updates + 1 == update
        if due and not after:
            how(agent)
        metrics = original(agent, batch)
        if due and after:
            how(agent)
        return metrics

    monkeypatch.setattr(TDMPC2, "update", poisoned)


def spoil(name: str) -> Callable[[TDMPC2], None]:
    """Put a NaN into the first parameter whose name starts so."""

    def how(agent: TDMPC2) -> None:
        found = [tensor for key, tensor in agent.model.state_dict().items() if key.startswith(name)]
        found[0].view(-1)[0] = float("nan")

    return how


def assert_last_good(folder: RunFolder, steps: int) -> None:
    state = checkpoints.read(folder.checkpoint)
    assert state["steps"] == steps
    agent = TDMPC2.from_state(state["agent"], folder.checkpoint)
    assert all(
        torch.isfinite(tensor).all() for tensor in agent.model.state_dict().values() if tensor.is_floating_point()
    )


def module_names(tiny: Any) -> list[str]:
    from tdmpc2.spec import AgentSpec

    return list(TDMPC2(tiny(), AgentSpec.from_tasks(["pendulum-swingup"])).model.state_dict())


def test_a_loss_that_is_not_a_number_names_update_losses_and_checkpoint(tiny, short_episodes, monkeypatch):
    config = tiny(mpc=False, **SETTINGS)
    first = module_names(tiny)[0]
    poison(monkeypatch, 47, spoil(first), after=False)
    with pytest.raises(DivergedError) as error:
        train(config, show_progress=False)
    folder = RunFolder.of(config)
    message = str(error.value)
    assert "diverged at update 47 (94 environment steps)" in message
    assert "total_loss nan" in message
    assert "consistency_loss" in message
    assert f"the last good checkpoint is {folder.checkpoint}" in message
    status = folder.read_status()
    assert (status.state, status.message) == ("failed", message)
    assert_last_good(folder, 40)


def test_gradients_that_overflow_stop_the_run_although_the_loss_is_a_number(tiny, short_episodes, monkeypatch):
    config = tiny(mpc=False, **SETTINGS)
    original = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: original(*args) * float("inf"))
    with pytest.raises(DivergedError, match=r"at update 1 \(60 environment steps\).*grad_norm inf"):
        train(config, show_progress=False)
    assert_last_good(RunFolder.of(config), 30)


def test_a_plan_that_is_not_made_of_numbers_stops_the_run(tiny, short_episodes, monkeypatch):
    config = tiny(**SETTINGS)
    encoder = next(name for name in module_names(tiny) if "encoder" in name)
    poison(monkeypatch, 47, spoil(encoder), after=True)
    with pytest.raises(DivergedError) as error:
        train(config, show_progress=False)
    assert "diverged at update 47 (94 environment steps)" in str(error.value)
    assert "total_loss" in str(error.value)
    assert_last_good(RunFolder.of(config), 40)


def test_a_checkpoint_is_never_overwritten_by_one_with_a_parameter_that_is_not_a_number(
    tiny, short_episodes, monkeypatch
):
    """The policy acts without the reward model, so nothing but the checkpoint looks at it between two updates."""
    config = tiny(mpc=False, **SETTINGS)
    reward = next(name for name in module_names(tiny) if "reward" in name)
    poison(monkeypatch, 49, spoil(reward), after=True)  # the next checkpoint is at step 50
    with pytest.raises(DivergedError, match="a parameter is not a number"):
        train(config, show_progress=False)
    assert_last_good(RunFolder.of(config), 40)


def test_a_run_that_diverges_before_its_first_checkpoint_says_so(tiny, short_episodes, monkeypatch):
    config = tiny(mpc=False, **SETTINGS | {"checkpoint_freq": 1000})
    poison(monkeypatch, 3, spoil(module_names(tiny)[0]), after=False)
    with pytest.raises(DivergedError, match="there is no checkpoint yet"):
        train(config, show_progress=False)


def test_the_command_shows_the_message_without_a_traceback_and_fails(words, short_episodes, monkeypatch, tiny, capsys):
    poison(monkeypatch, 47, spoil(module_names(tiny)[0]), after=False)
    assert main(["train", "--quiet", *words(mpc=False, **SETTINGS)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("tdmpc2: training diverged at update 47")
    assert shown.count("\n") == 1


def test_a_diverged_run_can_be_started_again_from_its_last_good_checkpoint(tiny, short_episodes, monkeypatch):
    config = tiny(mpc=False, **SETTINGS)
    with monkeypatch.context() as once:
        poison(once, 47, spoil(module_names(tiny)[0]), after=False)
        with pytest.raises(DivergedError):
            train(config, show_progress=False)
    folder = train(config, show_progress=False)
    assert folder.read_status().state == "done"
