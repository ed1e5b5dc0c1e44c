from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_training import ScriptedTraining

TWO_TASKS = """
tasks: [cartpole-balance, reacher-easy]
sizes: [1]
seeds: [1]
overrides: {steps: 100}
"""


@pytest.fixture
def training() -> ScriptedTraining:
    return ScriptedTraining()


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a declaration into a project folder of the test's own, which is made the current one."""
    monkeypatch.chdir(tmp_path)

    def write(text: str = TWO_TASKS, name: str = "pair") -> Path:
        file = Path("scripts/sweeps") / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write
