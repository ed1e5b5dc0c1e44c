import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tdmpc2.envs.make import BACKENDS, make_env
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASK_SETS


def raising(error: Exception):
    def build(task, seed, obs):
        raise error

    return lambda module: SimpleNamespace(build=build)


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown task 'walker-wlak'; did you mean 'walker-walk'"):
        make_env("walker-wlak")


def test_an_unknown_observation_kind_is_refused():
    with pytest.raises(UserError, match="obs: unknown observation kind 'pixels'"):
        make_env("cartpole-swingup", obs="pixels")


@pytest.mark.parametrize("name", ["mw-reach", "myo-reach", "pick-cube"])
def test_a_domain_that_this_version_does_not_run_says_so(name):
    with pytest.raises(UserError, match=rf"task {name} cannot be run: .* this version runs dmcontrol"):
        make_env(name)


def test_a_missing_simulator_package_names_what_to_install(monkeypatch):
    missing = ModuleNotFoundError("No module named 'dm_control'", name="dm_control")
    monkeypatch.setattr(importlib, "import_module", raising(missing))
    with pytest.raises(UserError, match=r"cartpole-swingup needs the Python package dm_control.*pip install"):
        make_env("cartpole-swingup")


@pytest.mark.parametrize(
    "fault",
    [
        ModuleNotFoundError("No module named 'dm_control.suite'", name="dm_control.suite"),
        ModuleNotFoundError("No module named 'lxml'", name="lxml"),
        ImportError("libmujoco.so: undefined symbol"),
    ],
)
def test_a_broken_simulator_package_shows_its_own_error(monkeypatch, fault):
    monkeypatch.setattr(importlib, "import_module", raising(fault))
    with pytest.raises(type(fault)) as caught:
        make_env("cartpole-swingup")
    assert caught.value is fault


def test_importing_the_factory_loads_no_simulator_and_no_torch():
    listing = "import json, sys, tdmpc2.envs.vector; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", listing], capture_output=True, check=True).stdout)
    assert not {"dm_control", "mujoco", "torch"} & set(loaded)


def test_the_backends_are_domains_of_the_registry():
    assert set(BACKENDS) <= set(TASK_SETS)
