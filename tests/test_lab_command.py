import json
import sys
from pathlib import Path

import pytest

from tdmpc2 import lab_command
from tdmpc2.cli import main


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The command with two templates, in a folder of its own; what would have been started stands in the list."""
    started = []
    templates = tmp_path / "templates"
    templates.mkdir()
    for name in ("aggregate_scores", "scaling"):
        (templates / f"{name}.ipynb").write_text(f"template of {name}")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("JUPYTER_PATH", raising=False)
    monkeypatch.setattr(lab_command, "TEMPLATES", templates)
    monkeypatch.setattr(lab_command.os, "execve", lambda *call: started.append(call))
    return started


def test_lab_opens_copies_and_hands_its_other_options_on(lab):
    assert main(["lab", "--results", "out", "--no-browser", "--port", "8899", "--res=1"]) == 0
    ((program, command, environment),) = lab
    folder = Path.cwd() / "out" / "lab"
    assert program == sys.executable
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert command[3:] == [f"--ServerApp.root_dir={folder}", "--no-browser", "--port", "8899", "--res=1"]
    assert (folder / "scaling.ipynb").read_text() == "template of scaling"
    # The kernel that the notebooks name is this interpreter, in the folder from which results/NAME is found.
    kernel = json.loads((Path(environment["JUPYTER_PATH"]) / "kernels" / "python3" / "kernel.json").read_text())
    assert kernel["argv"][0] == sys.executable
    assert f"os.chdir({str(Path.cwd())!r})" in kernel["argv"][-1]


def test_lab_leaves_edited_copies_and_says_so(lab, capsys):
    assert main(["lab"]) == 0
    assert capsys.readouterr().err == ""
    edited = Path("results/lab/scaling.ipynb")
    edited.write_text("edited")
    Path("results/lab/aggregate_scores.ipynb").unlink()
    assert main(["lab"]) == 0
    assert edited.read_text() == "edited"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{edited.resolve()}: left as it is")
    assert Path("results/lab/aggregate_scores.ipynb").exists()
    assert len(lab) == 2


def test_lab_keeps_the_users_own_kernels_behind_its_own(lab, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "/mine")
    assert main(["lab"]) == 0
    assert lab[0][2]["JUPYTER_PATH"].endswith("/results/lab/.jupyter:/mine")


def test_lab_without_templates_or_jupyterlab_says_what_is_missing(lab, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lab_command, "TEMPLATES", tmp_path / "nowhere")
    assert main(["lab"]) == 2
    assert "from a checkout of the project" in capsys.readouterr().err
    monkeypatch.setattr(lab_command.importlib.util, "find_spec", lambda name: None)
    assert main(["lab"]) == 2
    assert "JupyterLab is not installed" in capsys.readouterr().err
    assert lab == []


def test_lab_into_a_folder_that_cannot_be_written_is_bad_input(lab, capsys):
    Path("results").write_text("a file")
    assert main(["lab"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert lab == []
