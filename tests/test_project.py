"""What holds the project together: imports run one way, versions are pinned in one place, importing is quick."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BASE = {"config", "errors", "own_tasks", "seeding", "spec", "tasks"}
MAY_IMPORT = {
    "agent": BASE | {"agent"},
    "envs": BASE | {"envs"},
    "data": BASE | {"data"},
    "training": BASE | {"agent", "envs", "data", "training"},
    "sweeps": BASE | {"agent", "envs", "data", "training", "sweeps"},
}


def imports_of(path: Path) -> set[str]:
    """Full names of the modules that a file imports from this project."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("tdmpc2", "analysis", "scripts")}


@pytest.mark.parametrize("path", sorted((ROOT / "tdmpc2").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    room = path.relative_to(ROOT / "tdmpc2").parts[0]
    for name in imports_of(path):
        parts = name.split(".")
        assert parts[0] == "tdmpc2", f"{path} imports {name}: tdmpc2 knows nothing of {parts[0]}"
        if len(parts) < 2 or not ((ROOT / "tdmpc2" / parts[1]).is_dir() or parts[1] in {p.stem for p in BASE_FILES}):
            continue  # a name of the package itself, e.g. its version
        if room in MAY_IMPORT:
            assert parts[1] in MAY_IMPORT[room], f"{path} imports {name}: not a room below {room}"
        elif Path(room).stem in BASE:
            assert parts[1] in BASE, f"{path} imports {name}: the base stands on nothing else"


BASE_FILES = list((ROOT / "tdmpc2").glob("*.py"))


def test_nothing_in_tdmpc2_imports_a_plotting_or_notebook_library() -> None:
    forbidden = re.compile(r"^\s*(import|from) (matplotlib|seaborn|pandas|papermill|nbconvert)\b", re.MULTILINE)
    guilty = [path for path in (ROOT / "tdmpc2").rglob("*.py") if forbidden.search(path.read_text())]
    assert not guilty


def test_importing_tdmpc2_loads_no_heavy_library() -> None:
    heavy = "torch dm_control mujoco ray pandas matplotlib gymnasium tensordict".split()
    code = f"import sys, tdmpc2; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [requirement for each in lists for requirement in each]
    assert [r for r in requirements if "==" not in r] == []


def test_the_simulators_pins_are_those_measured_to_work() -> None:
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {"mujoco==3.16.0", "dm_control==1.0.49", "gymnasium==1.2.3", "numpy==2.4.6", "torch==2.13.0"} <= set(pins)


def test_conda_installs_the_same_pins_as_pip() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    # Everything but Python and pip comes from pyproject.toml, so there is no second list that could differ.
    assert conda == ["python=3.11", "pip"]
    assert pip == ["--editable .[dev]"]
    assert project["requires-python"].startswith(">=3.11")


def test_notebooks_are_committed_without_outputs() -> None:
    import json

    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert not any(cell.get("outputs") for cell in cells), path
