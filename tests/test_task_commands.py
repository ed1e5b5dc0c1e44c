"""The command `tdmpc2 tasks`: what it lists, what its check finds, what it refuses."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box

import tdmpc2.envs.make
from tdmpc2.cli import main
from tdmpc2.envs.make import why_unavailable
from tdmpc2.task_commands import check_task
from tdmpc2.tasks import TASK_SETS


@pytest.fixture(autouse=True)
def no_maniskill(monkeypatch, tmp_path):
    """Whatever is installed here: ManiSkill is not, all else is."""
    monkeypatch.setenv("TDMPC2_MANISKILL_PYTHON", str(tmp_path / "python"))


class ToyEnv(gymnasium.Env[Any, Any]):
    """Draws its first observation from its seed and adds up actions; `fault` is what is wrong with it."""

    def __init__(self, fault: str = "", success: float = 0.0) -> None:
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = Box(-1, 1, (3,), np.float32, seed=0)
        self.fault, self.success, self.closed, self.episodes = fault, success, False, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if self.fault == "breaks":
            raise ArithmeticError("the arm is broken")
        self.episodes += 1
        self.over = False
        self.sum = np.random.default_rng(seed).random()
        self.sum += self.episodes if self.fault == "drifts" else 0
        return self._observe(), {"success": 0.0}

    def step(self, action: Any) -> Any:
        self.sum += float(action.sum())
        if self.over:
            raise ResetNeeded
        self.over = self.fault == "short"
        reward = np.nan if self.fault == "not finite" else self.sum
        return self._observe(), reward, self.over, False, {"success": self.success}

    def close(self) -> None:
        self.closed = True

    def _observe(self) -> Any:
        return np.full(3 if self.fault == "shape" else 2, self.sum, np.float32)


@pytest.fixture
def toys(monkeypatch) -> dict[str, ToyEnv]:
    """Stands for the simulators: the environment of each task by its name, a sound one if it is not put here."""
    made: dict[str, ToyEnv] = {}
    monkeypatch.setattr(tdmpc2.envs.make, "make_env", lambda name, seed: made.setdefault(name, ToyEnv()))
    return made


def rows(shown: str) -> dict[str, list[str]]:
    """The rows of the printed table by their task."""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if "│" in line]
    return {name: row for name, *row in cells}


def test_the_table_has_every_task_with_its_dims_length_metric_and_sets(capsys):
    assert main(["tasks"]) == 0
    shown = capsys.readouterr().out
    table = rows(shown)
    assert "104 tasks; episode length in agent steps" in shown
    assert tuple(table) == TASK_SETS["all"]
    assert table["walker-walk"] == ["dmcontrol", "24", "6", "500", "return", "yes", "yes", "yes"]
    assert table["mw-reach"] == ["metaworld", "39", "4", "100", "success", "", "yes", "yes"]
    assert table["pick-ycb"] == ["maniskill", "?", "7", "100", "success", "", "", "no"]


def test_what_is_not_available_is_listed_with_the_reason_and_the_command_that_helps(capsys):
    assert main(["tasks", "maniskill"]) == 0
    shown = capsys.readouterr().out
    assert "not available: 5 tasks (lift-cube, ..., turn-faucet): ManiSkill2 is not installed" in shown
    assert "`make setup-maniskill` installs it" in shown


def test_what_differs_from_the_published_results_is_told(capsys):
    main(["tasks", "mw-reach,mw-door-close,myo-pose,dog-run"])
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not as in the published")]
    assert [note.split(": ")[1] for note in notes] == ["mw-reach", "mw-door-close", "myo-pose"]
    assert "V2 environments on MuJoCo 2.1" in notes[0]
    assert "another range of starting positions" in notes[1]


def test_only_available_tasks_on_request(capsys):
    assert main(["tasks", "walker-walk", "pick-cube", "--available"]) == 0
    shown = capsys.readouterr().out
    assert rows(shown).keys() == {"walker-walk"}
    assert "not available" not in shown


@pytest.mark.parametrize(("name", "hint"), [("mw-raech", "did you mean 'mw-reach'?"), ("mt3O", "did you mean 'mt30'?")])
@pytest.mark.parametrize("option", [[], ["--check"]])
def test_an_unknown_name_is_refused_with_the_nearest_before_anything_is_shown(capsys, name, hint, option):
    assert main(["tasks", "walker-walk", name, *option]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"tdmpc2: tasks: unknown task {name!r}; {hint}\n"
    assert captured.out == ""


def test_a_check_goes_through_all_that_is_there_and_lists_the_rest(capsys, toys):
    assert main(["tasks", "walker-walk", "mw-reach", "pick-cube", "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines[:3]] == ["1/2 walker-walk: ok", "2/2 mw-reach: ok", "2 of 3 tasks run here"]
    assert lines[3].startswith("not available: pick-cube: ManiSkill2 is not installed")
    assert all(toy.closed for toy in toys.values())


def test_a_task_that_fails_its_check_is_told_at_the_end_again_and_the_others_go_on(capsys, toys):
    toys["walker-walk"] = ToyEnv("breaks")
    assert main(["tasks", "walker-walk", "mw-reach", "--check"]) == 1
    captured = capsys.readouterr()
    assert "1/2 walker-walk: ArithmeticError: the arm is broken\n" in captured.out
    assert "2/2 mw-reach: ok\n" in captured.out
    assert "1 of 2 tasks run here" in captured.out
    assert captured.err == "failed: walker-walk: ArithmeticError: the arm is broken\n"
    assert toys["walker-walk"].closed


@pytest.mark.parametrize(
    ("toy", "fault"),
    [
        (ToyEnv(), ""),
        (ToyEnv("drifts"), "the same seed and actions gave other observations or rewards"),
        (ToyEnv("not finite"), "observations or rewards are not finite"),
        (ToyEnv("shape"), "an observation of shape (3,), not (2,)"),
        (ToyEnv(success=np.nan), "success is nan, neither 0 nor 1"),
        (ToyEnv(success=1.0), ""),
        (ToyEnv("short"), ""),
    ],
)
def test_a_check_finds_what_is_wrong(toys, toy, fault):
    toys["mw-reach"] = toy
    assert check_task("mw-reach") == fault


def test_tasks_scored_by_their_return_need_no_verdict_on_success(toys):
    toys["walker-walk"] = ToyEnv(success=np.nan)
    assert check_task("walker-walk") == ""


def test_listing_the_tasks_loads_no_simulator(capsys):
    loaded = set(sys.modules)
    assert main(["tasks"]) == 0
    assert not {"dm_control", "metaworld", "myosuite"} & (set(sys.modules) - loaded)


@pytest.mark.parametrize("name", ["cartpole-swingup", "mw-button-press", "myo-pose-hard"])
def test_real_environments_pass(name):
    assert check_task(name) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", TASK_SETS["all"])
def test_every_task_that_is_available_passes_its_check(monkeypatch, name):
    monkeypatch.undo()  # the ManiSkill that is here, if any
    reason = why_unavailable(name)
    if reason:
        pytest.skip(reason)
    assert check_task(name) == ""
