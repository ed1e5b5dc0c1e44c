from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_training import write_status

from tdmpc2.envs import make
from tdmpc2.errors import UserError
from tdmpc2.sweeps.checks import changed_settings, check_settings, unavailable_tasks
from tdmpc2.sweeps.declaration import load_declaration
from tdmpc2.sweeps.planning import PlannedRun, plan_runs

Declare = Callable[..., Path]


def planned(file: Path, results: Path | str = "results") -> tuple[PlannedRun, ...]:
    return plan_runs(load_declaration(file), str(results))


def test_runs_go_seed_by_seed_then_large_models_then_long_runs(declare: Declare) -> None:
    runs = planned(declare("tasks: [walker-walk, dog-run]\nsizes: [1, 5]\nseeds: [2, 1]\n"))
    assert [run.name for run in runs] == [
        "dog-run-5M-seed1", "walker-walk-5M-seed1", "dog-run-1M-seed1", "walker-walk-1M-seed1",
        "dog-run-5M-seed2", "walker-walk-5M-seed2", "dog-run-1M-seed2", "walker-walk-1M-seed2",
    ]  # fmt: skip


def test_settings_of_a_run_come_from_the_sweep(declare: Declare) -> None:
    file = declare("tasks: [walker-walk]\nsizes: [1]\nseeds: [4]\noverrides: {env_steps: 1001}\nresources: {cpus: 3}\n")
    (run,) = planned(file, "out")
    config = run.config
    assert (config.task, config.model_size, config.seed, config.threads) == ("walker-walk", 1, 4, 3)
    assert (config.exp_name, config.results_dir) == ("pair", "out")
    assert run.folder.path == Path("out/pair/runs/walker-walk-1M-seed4")
    assert (run.entry.agent_steps, run.entry.env_steps) == (500, 1000)  # an agent step is 2 environment steps


@pytest.mark.parametrize(("resources", "device"), [("{gpus: 0}", "cpu"), ("{gpus: 0.5}", "auto")])
def test_run_without_a_share_of_a_gpu_leaves_gpus_alone(declare: Declare, resources: str, device: str) -> None:
    (run,) = planned(declare(f"tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\nresources: {resources}\n"))
    assert run.config.device == device


def test_run_declared_twice_is_refused_naming_both_groups(declare: Declare) -> None:
    text = "tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\ngroups: [{}, {sizes: [5]}, {overrides: {lr: 1e-3}}]\n"
    with pytest.raises(UserError, match=r"groups\[0\] and .*groups\[2\].*walker-walk-1M-seed1 .*twice"):
        planned(declare(text))
    assert len(planned(declare(text.replace("{lr: 1e-3}", "{lr: 1e-3, label: fast}")))) == 3


def test_seed_given_twice_is_refused(declare: Declare) -> None:
    with pytest.raises(UserError, match="declared twice"):
        planned(declare("tasks: [walker-walk]\nsizes: [1]\nseeds: [1, 1]\n"))


def test_tasks_that_cannot_be_run_are_named_with_the_reason(declare: Declare, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = planned(declare("tasks: [walker-walk, mw-reach, pick-cube]\nsizes: [1]\nseeds: [1, 2]\n"))
    backend = make.Backend("tdmpc2.envs.metaworld", "no_such_simulator")
    monkeypatch.setitem(make.BACKENDS, "metaworld", backend)
    monkeypatch.setenv("TDMPC2_MANISKILL_PYTHON", "/no/such/python")
    assert unavailable_tasks(runs) == {
        "mw-reach": "the Python package no_such_simulator is not installed; `make setup` installs it",
        "pick-cube": "ManiSkill2 is not installed where TDMPC2_MANISKILL_PYTHON says, /no/such/python; "
        "`make setup-maniskill` installs it",
    }


def test_folder_with_other_settings_is_refused_and_says_which(declare: Declare) -> None:
    (old,) = planned(declare("tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\noverrides: {steps: 100}\n"))
    old.folder.claim(old.config)
    old.folder.release()
    (new,) = planned(declare("tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\noverrides: {steps: 200}\n"))
    assert changed_settings(old) is None
    assert changed_settings(new) == "steps=100 there, steps=200 now"
    with pytest.raises(UserError, match=r"walker-walk-1M-seed1: steps=100 there, steps=200 now"):
        check_settings([new])


def test_folder_that_differs_in_where_it_runs_alone_is_resumed(declare: Declare) -> None:
    (old,) = planned(declare("tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\nresources: {cpus: 1}\n"))
    old.folder.claim(old.config)
    old.folder.release()
    (new,) = planned(declare("tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\nresources: {cpus: 2}\n"))
    check_settings([new])


def test_status_that_knows_the_settings_spares_reading_them(declare: Declare) -> None:
    (run,) = planned(declare("tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\n"))
    write_status(run.folder, run.config, "running", 3)
    run.folder.config_file.write_text("damaged")
    assert changed_settings(run) is None


def test_damaged_settings_are_named(declare: Declare) -> None:
    (run,) = planned(declare("tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\n"))
    run.folder.path.mkdir(parents=True)
    run.folder.config_file.write_text("[")
    with pytest.raises(UserError, match=r"config\.yaml"):
        check_settings([run])
