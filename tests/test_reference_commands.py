"""The command `tdmpc2 reference`."""

import subprocess
import sys

import pytest

from tdmpc2 import analysis_process
from tdmpc2.cli import main


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "downloads" / "sac"
    folder.mkdir(parents=True)
    (folder / "walker-walk.csv").write_text("step,reward,seed\n0,20,1\n100000,900,1\n")
    return folder.parent


def test_imported_curves_are_listed_with_their_source(source, tmp_path, capsys):
    assert main(["reference", "import", str(source), "--results", "mine"]) == 0
    said = capsys.readouterr().out
    assert "mine/reference/curves: imported" in said
    assert "make report SWEEP=NAME REFERENCE=mine/reference/curves" in said
    assert (tmp_path / "mine" / "reference" / "curves" / "sac" / "walker-walk.csv").is_file()
    assert main(["reference", "list", "--results", "mine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("curves")
    assert "sac (1 tasks)" in lines[1]


def test_name_is_where_the_curves_are_kept(source, tmp_path):
    assert main(["reference", "import", str(source), "--name", "other"]) == 0
    assert (tmp_path / "results" / "reference" / "other" / "reference.json").is_file()


def test_list_without_any_says_how_to_import(source, capsys):
    assert main(["reference", "list"]) == 0
    assert capsys.readouterr().out == ("results: no published curves; `tdmpc2 reference import SOURCE` keeps some\n")


def test_list_goes_on_where_a_record_is_damaged(source, tmp_path, capsys):
    main(["reference", "import", str(source)])
    damaged = tmp_path / "results" / "reference" / "a"
    damaged.mkdir()
    (damaged / "reference.json").write_text("{")
    capsys.readouterr()
    assert main(["reference", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "reference.json cannot be read" in lines[1]
    assert lines[2].startswith("curves")


@pytest.mark.parametrize("name", ["../away", ".hidden", "a/b", ""])
def test_name_that_is_no_folders_name_is_refused(source, capsys, name):
    assert main(["reference", "import", str(source), "--name", name]) == 2
    assert "is no name of a folder" in capsys.readouterr().err


def test_what_the_importer_cannot_do_is_told_in_its_words(source, capsys):
    assert main(["reference", "import", "download"]) == 2
    assert capsys.readouterr().err == ("tdmpc2: download: neither a folder nor a git URL; did you mean downloads?\n")


def test_source_that_looks_like_an_option_is_no_option(source, monkeypatch):
    commands = []

    def succeed(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr(analysis_process.subprocess, "run", succeed)
    assert main(["reference", "import", "--", "-x"]) == 0
    module = [sys.executable, "-m", "analysis.reference_import"]
    assert commands == [[*module, "--output", "results/reference/curves", "--", "-x"]]


def test_without_the_analysis_package_nothing_is_imported(source, monkeypatch, capsys):
    monkeypatch.setattr(analysis_process.importlib.util, "find_spec", lambda name: None)
    assert main(["reference", "import", str(source)]) == 2
    assert "by the package `analysis`, which is not installed here" in capsys.readouterr().err
