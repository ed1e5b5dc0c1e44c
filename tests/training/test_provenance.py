"""The record of where a run's numbers come from."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tdmpc2.errors import UserError
from tdmpc2.training import provenance
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.provenance import (
    begin_process,
    describe_checkout,
    describe_gpus,
    end_process,
    read_provenance,
    source_hash,
    without_secrets,
)
from tdmpc2.training.run import train


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a repository of its own, committed; returns the package's folder."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    package = tmp_path / "project" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("speed = 1\n")
    (package.parent / "notes.txt").write_text("one\n")
    git(package.parent, "init", "-q")
    git(package, "add", "-A", ":/")
    git(package, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    return package


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_a_trained_run_records_code_packages_machine_command_and_times(tiny, short_episodes):
    folder = train(tiny(steps=40, seed_steps=20, eval_freq=40), show_progress=False)
    record = read_provenance(folder.path)
    [process] = record["processes"]
    assert process["end"] == "done"
    assert process["started"] <= process["ended"]
    assert process["ended"].endswith("Z")
    assert process["pid"] == os.getpid()
    assert "pytest" in process["command"] or "-c" in process["command"]
    packages = record["packages"][process["packages"]]
    assert packages["python"] == sys.version.split()[0]
    assert any(each.startswith(f"torch=={torch.__version__}") for each in packages["installed"])
    assert record["machine"][process["machine"]]["memory_bytes"] > 2**20
    assert len(record["code"][process["code"]]["source_sha256"]) == 64
    logged = hashlib.sha256(folder.eval_csv.read_bytes()).hexdigest()
    assert process["files"]["eval.csv"] == logged
    train(tiny(steps=40, seed_steps=20, eval_freq=40), show_progress=False)
    assert len(read_provenance(folder.path)["processes"]) == 1  # it was done: nobody worked on it


def test_a_process_that_never_told_its_end_is_marked_as_killed_by_the_next(tmp_path):
    begin_process(tmp_path)
    begin_process(tmp_path)
    end_process(tmp_path, "interrupted")
    first, second = read_provenance(tmp_path)["processes"]
    assert (first["end"], first["ended"]) == ("killed", None)
    assert second["end"] == "interrupted"
    assert second["ended"] is not None
    assert "files" not in second  # its logs go on


def test_what_processes_share_is_kept_once(tmp_path):
    for _ in range(3):
        begin_process(tmp_path)
    record = read_provenance(tmp_path)
    assert [len(record[name]) for name in ("processes", "code", "packages", "machine")] == [3, 1, 1, 1]


def test_a_damaged_record_is_kept_aside_and_the_run_goes_on(tmp_path, capsys):
    (tmp_path / "provenance.json").write_text('{"version": 1, "proc')
    with pytest.raises(UserError, match=r"provenance\.json: damaged"):
        read_provenance(tmp_path)
    begin_process(tmp_path)
    record = read_provenance(tmp_path)
    assert (tmp_path / record["earlier"]).read_text() == '{"version": 1, "proc'
    assert "begun anew" in capsys.readouterr().err


def test_a_record_that_cannot_be_written_stops_no_run_and_says_so(tmp_path, monkeypatch, capsys):
    def refuse(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(provenance, "write_text", refuse)
    begin_process(tmp_path)
    end_process(tmp_path, "done")
    said = capsys.readouterr().err
    assert "not recorded (OSError: [Errno 28] No space left on device)" in said
    assert "provenance.json is gone" in said


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["tdmpc2", "train", "task=cup-spin", "label=a b"], "tdmpc2 train task=cup-spin 'label=a b'"),
        (["run", "--address", "http://me:pass@host:1/x"], "run --address http://***@host:1/x"),
        (["run", "api_key=abc", "HF_TOKEN=hf_1"], "run api_key=*** HF_TOKEN=***"),
        (["run", "--redis-password", "abc", "--seed", "1"], "run --redis-password *** --seed 1"),
        (["get", "https://h/f?X-Amz-Signature=12ab&x=1"], "get https://h/f?X-Amz-Signature=***&x=1"),
        (["run", "--token", "--fast"], "run --token --fast"),
        (["train", "wandb_entity=us", "seed=1"], "train wandb_entity=us seed=1"),
    ],
)
def test_command_lines_are_recorded_without_secrets(arguments, shown):
    assert without_secrets(arguments) == shown


def test_only_listed_environment_variables_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    begin_process(tmp_path)
    assert read_provenance(tmp_path)["processes"][0]["environment"]["OMP_NUM_THREADS"] == "3"
    assert "do-not-tell" not in (tmp_path / "provenance.json").read_text()


def test_the_command_of_the_sweep_is_recorded_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv(provenance.SWEEP_COMMAND, "tdmpc2 sweep run paper --address host:1 --token abc")
    begin_process(tmp_path)
    [process] = read_provenance(tmp_path)["processes"]
    assert process["sweep_command"] == "tdmpc2 sweep run paper --address host:1 --token ***"


def test_a_clean_checkout_is_its_commit(checkout):
    facts, diff = describe_checkout(checkout)
    assert facts["commit"] == git(checkout, "rev-parse", "HEAD")
    assert (facts["changed"], facts["untracked"], diff) == (False, [], "")


def test_uncommitted_changes_and_new_modules_are_kept_the_packages_first(checkout, tmp_path):
    (checkout / "__init__.py").write_text("speed = 2\n")
    (checkout / "new.py").write_text("wings = 4\n")
    (checkout.parent / "notes.txt").write_text("two\n")
    (checkout.parent / "tool.py").write_text("pass\n")
    facts, diff = describe_checkout(checkout)
    assert facts["changed"] is True
    assert facts["diff_cut"] is False
    assert facts["untracked"] == ["tool.py"]
    assert diff.index("+speed = 2") < diff.index("+wings = 4") < diff.index("+two")
    git(checkout.parent, "stash", "-q", "-u")
    subprocess.run(["git", "-C", checkout.parent, "apply"], input=diff, text=True, check=True)  # it is a whole patch
    assert (checkout / "new.py").read_text() == "wings = 4\n"
    assert (checkout / "__init__.py").read_text() == "speed = 2\n"


def test_a_large_diff_is_cut_and_says_so(checkout, monkeypatch):
    monkeypatch.setattr(provenance, "DIFF_BYTES", 200)
    (checkout / "__init__.py").write_text("speed = 2\n" * 100)
    facts, diff = describe_checkout(checkout)
    assert facts["diff_cut"] is True
    assert len(diff) == 200


def test_a_copy_outside_of_any_checkout_says_that_its_commit_is_not_known(tmp_path):
    (tmp_path / "__init__.py").write_text("")
    facts, diff = describe_checkout(tmp_path)
    assert "commit" not in facts
    assert facts["unknown"][0].startswith("commit: git ls-files: ")
    assert diff == ""


def test_a_package_that_only_lies_in_somebodys_repository_is_not_given_its_commit(checkout):
    installed = checkout.parent / "venv" / "other"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    facts, _ = describe_checkout(installed)
    assert "commit" not in facts
    assert "did not match any file" in facts["unknown"][0]


def test_no_git_and_a_git_that_hangs_are_told_apart(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert describe_checkout(checkout)[0]["unknown"] == ["commit: git cannot be run (No such file or directory)"]
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent))
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.2)
    assert describe_checkout(checkout)[0]["unknown"] == ["commit: git ls-files took more than 0.2 s"]


def test_the_source_hash_changes_with_any_module_and_with_nothing_else(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.py").write_text("1")
    before = source_hash(tmp_path)
    (tmp_path / "inner" / "cache.pyc").write_text("2")
    assert source_hash(tmp_path) == before
    (tmp_path / "inner" / "a.py").rename(tmp_path / "inner" / "b.py")
    assert source_hash(tmp_path) != before


def test_gpus_are_read_from_the_drivers_own_files(tmp_path):
    assert describe_gpus(tmp_path / "none") == {"gpus": [], "gpu_driver": ""}
    for number in (0, 1):
        folder = tmp_path / "gpus" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 23\n")
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX Open Kernel Module  570.10  Release\nGCC version:\n")
    facts = describe_gpus(tmp_path)
    assert facts["gpus"] == ["NVIDIA H200", "NVIDIA H200"]
    assert facts["gpu_driver"] == "NVIDIA UNIX Open Kernel Module  570.10  Release"


def test_a_failed_run_records_that_it_failed(tiny, short_episodes, monkeypatch):
    def fail(self: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr("tdmpc2.training.run.OnlineTraining.run", fail)
    config = tiny(steps=40)
    with pytest.raises(RuntimeError, match="no luck"):
        train(config, show_progress=False)
    record = json.loads((RunFolder.of(config).path / "provenance.json").read_text())
    assert [process["end"] for process in record["processes"]] == ["failed"]
