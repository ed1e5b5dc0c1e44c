import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tdmpc2.envs.make import BACKENDS, make_env, why_unavailable
from tdmpc2.errors import UserError
from tdmpc2.tasks import DOMAINS, OWN


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


@pytest.mark.parametrize("name", ["cartpole-swingup", "mw-reach", "myo-reach"])
def test_a_missing_simulator_package_is_named_with_the_command_that_installs_it(monkeypatch, name):
    for domain, backend in BACKENDS.items():
        monkeypatch.setitem(BACKENDS, domain, backend._replace(package="no_such_simulator"))
    with pytest.raises(UserError, match=rf"task {name} cannot be run: .* no_such_simulator is not .* `make setup`"):
        make_env(name)


def test_maniskill_without_its_environment_names_the_command_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TDMPC2_MANISKILL_PYTHON", str(tmp_path / "bin" / "python"))
    with pytest.raises(UserError, match=r"task pick-cube cannot be run: ManiSkill2 is not .* `make setup-maniskill`"):
        make_env("pick-cube")


def test_maniskill_assets_that_only_a_download_brings_are_named_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setenv("TDMPC2_MANISKILL_PYTHON", sys.executable)
    monkeypatch.setenv("MS2_ASSET_DIR", str(tmp_path))
    assert why_unavailable("pick-cube") == ""
    assert f"not in {tmp_path}/mani_skill2_ycb (MS2_ASSET_DIR)" in why_unavailable("pick-ycb")
    assert "-m mani_skill2.utils.download_asset ycb` downloads them" in why_unavailable("pick-ycb")
    (tmp_path / "mani_skill2_ycb").mkdir()
    assert why_unavailable("pick-ycb") == ""


@pytest.mark.parametrize("name", ["mw-reach", "myo-reach", "pick-cube"])
def test_pixels_are_for_dmcontrol_alone(monkeypatch, name):
    monkeypatch.setenv("TDMPC2_MANISKILL_PYTHON", sys.executable)
    with pytest.raises(UserError, match=f"obs=rgb: {name} runs from states only"):
        make_env(name, obs="rgb")


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


def test_every_domain_of_the_registry_has_a_backend():
    assert set(BACKENDS) == {*DOMAINS, OWN}
