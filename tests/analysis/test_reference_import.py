"""Keeping published curves: from a folder, a checked-out repository, or a git URL."""

import json
import shutil
import subprocess

import pytest

from analysis.reference import load_reference
from analysis.reference_import import RECORD, import_reference, main
from tdmpc2.errors import UserError

WALK = "step,reward,seed\n0,20,1\n100000,900,1\n0,10,2\n100000,800,2\n"
POSE = "step,success,seed\n0,0.0,1\n100000,0.5,1\n0,0.0,2\n20000,0.25,2\n"


@pytest.fixture
def source(published):
    return published({"tdmpc2/walker-walk.csv": WALK, "tdmpc2/myo-hand-pose.csv": POSE})


@pytest.fixture
def target(tmp_path):
    return tmp_path / "results" / "reference" / "curves"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A checked-out repository with the curves in `results`, and its commit."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "someone")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "someone@example.org")
    folder = tmp_path / "project"
    (folder / "results" / "sac").mkdir(parents=True)
    (folder / "results" / "sac" / "walker-walk.csv").write_text(WALK)
    (folder / "README.md").write_text("curves\n")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "curves"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    words = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    return folder, subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_import_copies_the_files_as_they_are_and_records_what_they_are(source, target):
    imported = import_reference(str(source), target)
    assert imported.fresh
    assert files_of(target) == [RECORD, "tdmpc2/myo-hand-pose.csv", "tdmpc2/walker-walk.csv"]
    assert (target / "tdmpc2" / "walker-walk.csv").read_text() == WALK
    record = json.loads((target / RECORD).read_text())
    assert record == imported.record
    assert record["source"] == str(source)
    assert record["commit"] is None
    assert record["algorithms"] == {"tdmpc2": {"tasks": 2, "seeds": 2, "env_steps": 100000}}
    assert record["problems"] == ["tdmpc2/myo-hand-pose: ends early: seed 2 at 20,000 of 100,000 steps"]
    assert len(load_reference(target).table) == 8
    assert files_of(target.parent) == [f"curves/{name}" for name in files_of(target)]  # nothing temporary is left


def test_same_curves_are_imported_once_and_others_never_overwrite_them(source, target):
    first = import_reference(str(source), target)
    again = import_reference(str(source), target)
    assert not again.fresh
    assert again.record == first.record
    (source / "tdmpc2" / "walker-walk.csv").write_text(WALK.replace("900", "901"))
    with pytest.raises(UserError, match="exists already, with other content; give another --name"):
        import_reference(str(source), target)
    assert (target / "tdmpc2" / "walker-walk.csv").read_text() == WALK


def test_folder_that_is_no_import_is_left_alone(source, target):
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        import_reference(str(source), target)
    assert files_of(target) == ["mine.txt"]


def test_only_plain_files_of_known_tasks_are_taken_and_no_link_is_followed(source, target, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "dog-run.csv").write_text(WALK)
    (source / "tdmpc2" / "dog-run.csv").symlink_to(secret / "dog-run.csv")
    (source / "linked").symlink_to(secret)
    (source / "tdmpc2" / "dog-fly.csv").write_text(WALK)
    (source / "tdmpc2" / "notes.txt").write_text("notes")
    (source / "tdmpc2" / "dog-walk.csv").mkdir()
    (source / ".hidden").mkdir()
    (source / ".hidden" / "dog-run.csv").write_text(WALK)
    imported = import_reference(str(source), target)
    assert files_of(target) == [RECORD, "tdmpc2/myo-hand-pose.csv", "tdmpc2/walker-walk.csv"]
    assert imported.record["problems"][:4] == [
        "linked: a link, left out",
        "tdmpc2/dog-fly: unknown task, left out",
        "tdmpc2/dog-run: not a plain file, left out",
        "tdmpc2/dog-walk: not a plain file, left out",
    ]


def test_checked_out_repository_is_a_source_with_its_commit(repository, target):
    folder, commit = repository
    imported = import_reference(str(folder), target)
    assert files_of(target) == [RECORD, "sac/walker-walk.csv"]
    assert imported.record["commit"] == commit
    (folder / "results" / "sac" / "walker-walk.csv").write_text(WALK.replace("900", "901"))
    changed = import_reference(str(folder / "results"), target.parent / "changed")
    assert changed.record["commit"] == f"{commit}, with local changes"


def test_curves_that_merely_lie_inside_a_repository_have_no_commit(repository, target):
    folder, _ = repository
    mine = folder / "some" / "where" / "sac"
    mine.mkdir(parents=True)
    (mine / "walker-walk.csv").write_text(WALK)
    assert import_reference(str(mine.parent), target).record["commit"] is None


def test_git_url_is_cloned_and_the_clone_removed(repository, target, tmp_path, monkeypatch):
    folder, commit = repository
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    imported = import_reference(f"file://{folder}", target)
    assert files_of(target) == [RECORD, "sac/walker-walk.csv"]
    assert (imported.record["source"], imported.record["commit"]) == (f"file://{folder}", commit)
    assert list(temporary.iterdir()) == []


def test_url_that_cannot_be_cloned_says_why_and_leaves_nothing(target, tmp_path):
    with pytest.raises(UserError, match=r"file:///.*gone: cannot be cloned \(git: "):
        import_reference(f"file://{tmp_path}/gone", target)
    assert not target.parent.exists()


def test_url_without_git_says_what_is_lacking(target, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="a URL is read by git, which is not installed here"):
        import_reference("https://example.org/curves.git", target)


def test_password_in_a_url_is_never_told(target, monkeypatch):
    def fail(command, **_):
        message = f"fatal: unable to access '{command[-2]}'"
        return subprocess.CompletedProcess(command, 128, stdout="", stderr=message)

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(shutil, "which", lambda name: "git")
    with pytest.raises(UserError) as caught:
        import_reference("https://me:word@example.org/curves.git", target)
    expected = (
        "https://example.org/curves.git: cannot be cloned (git: unable to access 'https://example.org/curves.git')"
    )
    assert str(caught.value) == expected


def test_source_without_curves_is_refused(tmp_path, target, source):
    with pytest.raises(UserError, match=r"neither a folder nor a git URL; did you mean .*published\?"):
        import_reference(str(source.parent / "publishd"), target)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no ALGORITHM/TASK\.csv of a known task in it, nor in its folder `results`"):
        import_reference(str(tmp_path / "empty"), target)
    unreadable = tmp_path / "unreadable" / "sac"
    unreadable.mkdir(parents=True)
    (unreadable / "dog-run.csv").write_text("version of another file\n")
    with pytest.raises(UserError, match="no curve that can be read in it"):
        import_reference(str(unreadable.parent), target)
    assert not target.exists()
    assert list(target.parent.iterdir()) == []


def test_program_prints_what_there_is_and_counts_what_is_amiss(source, target, capsys):
    assert main([str(source), "--output", str(target)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["algorithm", "tasks", "seeds", "environment", "steps"]
    assert lines[1].split() == ["tdmpc2", "2", "2", "100,000"]
    assert lines[2] == f"{target}: imported"
    assert lines[3] == f"1 remark on what is amiss (tdmpc2 1): {target / RECORD}"
    assert main([str(source), "--output", str(target)]) == 0
    assert f"{target}: already imported" in capsys.readouterr().out
    assert main([str(target / "none"), "--output", str(target)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
