"""A sweep packed into one file and unpacked elsewhere: the same bytes, or a refusal and nothing."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from kept_sweep import make_report, make_sweep
from scripted_training import write_replay

from tdmpc2.cli import main
from tdmpc2.errors import UserError
from tdmpc2.sweeps.archive import archive_sweep
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.unpack import unpack_archive
from tdmpc2.sweeps.verify import verify_sweep

RUN = "cup-spin-1M-seed1"


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    made = make_sweep(tmp_path / "results")
    make_report(made)
    run = made.run(RUN)
    write_replay(run.replay, "cup-spin")
    for folder in ("checkpoint", "tensorboard"):
        (run.path / folder).mkdir()
        (run.path / folder / "kept.pt").write_bytes(np.random.default_rng(1).bytes(200_000))
    return made


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if not path.name.startswith(".") and path.name != "archive.json"
    }


def rewrite(file: Path, name: str, members: dict[str, bytes]) -> None:
    """An archive of these members, without care for what is allowed."""
    with gzip.open(file, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for member, data in members.items():
            info = tarfile.TarInfo(f"{name}{member}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_results_are_the_same_bytes_elsewhere_without_what_was_not_asked_for(sweep, tmp_path):
    made = archive_sweep(sweep, tmp_path / "kept.tar.gz")
    there = unpack_archive(made.file, tmp_path / "elsewhere")
    heavy = ("replay/", "checkpoint/", "tensorboard/")
    expected = {name: data for name, data in contents(sweep.path).items() if not any(part in name for part in heavy)}
    assert contents(there) == expected
    assert {"plan.json", "sweep.yaml", "reports/report.json", f"runs/{RUN}/provenance.json"} <= expected.keys()
    assert made.files == len(expected)
    shutil.rmtree(sweep.path)
    checks = verify_sweep(SweepFolder(tmp_path / "elsewhere", "kept"))
    assert [text for check in checks for text in check.wrong] == []


def test_everything_is_packed_on_request_and_empty_replay_takes_no_room(sweep, tmp_path):
    obs = sweep.run(RUN).replay / "hole.memmap"
    with obs.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(5 << 20)
        file.write(b"row")
    everything = ["replay", "checkpoint", "tensorboard"]
    made = archive_sweep(sweep, tmp_path / "kept.tar.gz", packed=everything)
    assert made.file.stat().st_size < 2_000_000
    there = unpack_archive(made.file, tmp_path / "elsewhere")
    assert contents(there) == contents(sweep.path)
    assert (there / "runs" / RUN / "replay" / "hole.memmap").stat().st_blocks * 512 < 4 << 20


def test_the_file_is_one_that_other_programs_read(sweep, tmp_path):
    made = archive_sweep(sweep, tmp_path / "kept.tar.gz", packed=["checkpoint"])
    shutil.unpack_archive(made.file, tmp_path / "plain", filter="data")
    path = f"kept/runs/{RUN}/checkpoint/kept.pt"
    assert (tmp_path / "plain" / path).read_bytes() == (sweep.path.parent / path).read_bytes()


def test_a_run_under_way_is_refused_and_packed_as_it_stands_on_request(tmp_path):
    sweep = make_sweep(tmp_path / "results", ("done", "running"))
    file = tmp_path / "kept.tar.gz"
    with (sweep.path / "runs" / "cup-spin-1M-seed2" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"cup-spin-1M-seed2; wait for them, or pack them .* --unfinished"):
            archive_sweep(sweep, file)
        assert not list(tmp_path.glob("*.tar.gz*"))
        made = archive_sweep(sweep, file, unfinished=True)
    assert made.notices == ("1 run(s) are not done, and packed as they stand: cup-spin-1M-seed2 (running)",)


def test_nothing_that_exists_is_overwritten(sweep, tmp_path):
    file = tmp_path / "kept.tar.gz"
    file.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        archive_sweep(sweep, file)
    assert file.read_text() == "mine"
    file.unlink()
    archive_sweep(sweep, file)
    before = contents(sweep.path)
    with pytest.raises(UserError, match=r"results/kept: exists already; nothing was unpacked"):
        unpack_archive(file, tmp_path / "results")
    assert contents(sweep.path) == before
    with pytest.raises(UserError, match="lies in the folder that is packed"):
        archive_sweep(sweep, sweep.path / "own.tar.gz")


@pytest.mark.parametrize(
    ("member", "told"),
    [
        ("/../../escaped.txt", "does not belong in an archive"),
        ("/runs/.lock", "does not belong in an archive of kept"),
        ("-other/plan.json", "does not belong in an archive of kept"),
        ("/extra.txt", r"1 file\(s\) in it are not as they were packed: extra.txt"),
        ("/plan.json", "does not belong in an archive of kept"),  # a second one
    ],
)
def test_members_that_do_not_belong_there_are_refused(sweep, tmp_path, member, told):
    made = archive_sweep(sweep, tmp_path / "kept.tar.gz")
    there = unpack_archive(made.file, tmp_path / "first")
    files = {f"/{name}": data for name, data in contents(there).items()}
    files |= {"/archive.json": (there / "archive.json").read_bytes()}
    if member in files:
        with gzip.open(made.file, "rb") as stream, tarfile.open(fileobj=stream) as tar:
            entry = tar.getmember("kept/plan.json")
            assert entry.size == len(files[member])
        twice = tmp_path / "forged.tar.gz"
        with gzip.open(twice, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
            for _ in range(2):
                tar.addfile(entry, io.BytesIO(files[member]))
    else:
        rewrite(tmp_path / "forged.tar.gz", "kept", {**files, member: b"bad"})
    with pytest.raises(UserError, match=told):
        unpack_archive(tmp_path / "forged.tar.gz", tmp_path / "second")
    assert list((tmp_path / "second").iterdir()) == []
    assert not (tmp_path / "escaped.txt").exists()


def test_links_in_an_archive_are_refused(tmp_path):
    file = tmp_path / "forged.tar.gz"
    with gzip.open(file, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        info = tarfile.TarInfo("kept/plan.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(UserError, match="does not belong in an archive"):
        unpack_archive(file, tmp_path / "there")


def test_a_changed_byte_and_a_cut_file_are_found(sweep, tmp_path):
    made = archive_sweep(sweep, tmp_path / "kept.tar.gz")
    there = unpack_archive(made.file, tmp_path / "first")
    files = {f"/{name}": data for name, data in contents(there).items()}
    listed = {"/archive.json": (there / "archive.json").read_bytes()}
    changed = {**files, f"/runs/{RUN}/eval.csv": files[f"/runs/{RUN}/eval.csv"].replace(b",60,", b",61,")}
    rewrite(tmp_path / "changed.tar.gz", "kept", {**changed, **listed})
    with pytest.raises(UserError, match=f"not as they were packed: runs/{RUN}/eval.csv"):
        unpack_archive(tmp_path / "changed.tar.gz", tmp_path / "second")
    data = made.file.read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="damaged"):
        unpack_archive(tmp_path / "cut.tar.gz", tmp_path / "second")
    rewrite(tmp_path / "nolist.tar.gz", "kept", files)
    with pytest.raises(UserError, match=r"no archive\.json in it"):
        unpack_archive(tmp_path / "nolist.tar.gz", tmp_path / "second")
    assert list((tmp_path / "second").iterdir()) == []


def test_the_commands_pack_and_unpack_and_say_what_they_wrote(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "archive", "kept", "--results", "results", "--with-replay"]) == 0
    assert "kept.tar.gz: " in capsys.readouterr().out
    assert main(["sweep", "unpack", "kept.tar.gz", "--results", "copies"]) == 0
    assert json.loads((tmp_path / "copies/kept/archive.json").read_text())["left_out"] == ["checkpoint", "tensorboard"]
    assert (tmp_path / "copies/kept/runs" / RUN / "replay/episodes.bin").is_file()


def test_replay_stores_outside_of_the_sweep_are_told_of(sweep, tmp_path):
    from tdmpc2.data.dataset import StoreSource, build

    write_replay(tmp_path / "far" / "replay", "cup-spin")
    build("far", [StoreSource(tmp_path / "far" / "replay", 1, finished=True)], ["cup-spin"], sweep.path / "datasets")
    made = archive_sweep(sweep, tmp_path / "kept.tar.gz", packed=["replay"])
    assert any("1 of its replay stores lie elsewhere, not packed" in notice for notice in made.notices)
