"""A report records what it was made from, and the hash of every file that it wrote."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest

from analysis.report_folder import Part, Record, publish, read_record
from analysis.sources import changed_sources, checkpoint_contents, read_sources
from analysis.study import load_study


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_run_stands_there_with_its_files_and_published_curves_with_theirs(writer, published):
    run = writer.add("walker-walk", 1, [(0, 30.0), (3000, 400.0)])
    writer.add("walker-walk", 2, None)  # planned only
    curves = published({"sac/walker-walk.csv": "step,reward,seed\n0,20,1\n", "sac/NOTES.txt": "no"})
    sources = read_sources(load_study([writer.folder], curves, tasks="walker-walk"), writer.folder / "reports")
    done, waiting = sources["runs"]
    assert (done["sweep"], done["run"], done["state"], done["digest"]) == ("small", run.name, "done", "abc")
    assert done["folder"] == f"../runs/{run.name}"
    assert done["files"]["eval.csv"] == {"bytes": os.path.getsize(run / "eval.csv"), "sha256": sha256(run / "eval.csv")}
    assert set(done["files"]) == {"config.yaml", "eval.csv", "train.csv"}
    assert waiting["files"] == {}
    assert sources["published"]["files"] == {"sac/walker-walk.csv": {"sha256": sha256(curves / "sac/walker-walk.csv")}}
    assert sources["sweeps"][0]["files"]["plan.json"]["sha256"] == sha256(writer.folder / "plan.json")


def test_a_report_elsewhere_names_folders_by_their_absolute_paths(writer, tmp_path):
    run = writer.add("walker-walk", 1, [(0, 30.0)])
    sources = read_sources(load_study([writer.folder]), tmp_path / "far" / "away")
    assert sources["runs"][0]["folder"] == str(run.resolve())


def test_runs_that_go_on_while_the_report_is_made_are_named(writer):
    writer.add("walker-walk", 1, [(0, 30.0)])
    run = writer.add("walker-walk", 2, [(0, 30.0)], state="running")
    study = load_study([writer.folder])
    before = read_sources(study, writer.folder / "reports")
    with (run / "eval.csv").open("a") as file:
        file.write("3000,1500,0,2.0,walker-walk,10,50.0,0.0,,500\n")
    assert changed_sources(before, read_sources(study, writer.folder / "reports")) == [run.name]


def test_a_checkpoint_is_known_by_its_contents_and_not_by_its_name_or_date(tmp_path):
    def write(name: str, data: bytes) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:  # what torch.save writes, too
            archive.writestr(f"{name}/data/0", data)
        return tmp_path / name

    first = checkpoint_contents(write("a.pt", b"weights"))
    assert checkpoint_contents(write("b.pt", b"weights")) == first
    assert checkpoint_contents(write("c.pt", b"wEights")) != first


@pytest.fixture
def output(tmp_path):
    """A report of two pages, published."""
    staging = tmp_path / "staging"
    (staging / "tables").mkdir(parents=True)
    for name in ("tables/scores.csv", "one.html", "index.html"):
        (staging / name).write_text(name)
    parts = {"one": Part("done", files=("tables/scores.csv", "one.html"))}
    record = Record({}, parts, ("index.html",), ({"parts": ["one"], "made": "then"},))
    folder = tmp_path / "reports"
    folder.mkdir()
    publish(staging, folder, record, Record())
    return folder


def test_the_record_holds_the_hash_of_every_file_that_was_written(output):
    record = json.loads((output / "report.json").read_text())
    assert record["hashes"] == {name: sha256(output / name) for name in ("index.html", "one.html", "tables/scores.csv")}
    assert record["sources"] == [{"parts": ["one"], "made": "then"}]


def test_a_kept_file_that_was_tampered_with_keeps_the_hash_it_was_written_with(output, tmp_path):
    written = sha256(output / "tables/scores.csv")
    (output / "tables/scores.csv").write_text("tampered")
    staging = tmp_path / "next"
    staging.mkdir()
    (staging / "one.html").write_text("new links")
    (staging / "index.html").write_text("new")
    older = read_record(output)
    publish(staging, output, older, older)
    hashes = read_record(output).hashes
    assert hashes["tables/scores.csv"] == written
    assert hashes["one.html"] == sha256(output / "one.html")
