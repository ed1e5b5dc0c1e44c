"""What `tdmpc2 sweep verify` finds: each way in which records can stop to belong together, named with its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kept_sweep import make_report, make_sweep

from tdmpc2.cli import main
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.verify import verify_sweep

RUN = "cup-spin-1M-seed1"


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    made = make_sweep(tmp_path / "results")
    make_report(made)
    return made


def wrong(sweep: SweepFolder, **options: bool) -> list[str]:
    return [text for check in verify_sweep(sweep, **options) for text in check.wrong]


def notices(sweep: SweepFolder) -> str:
    return "\n".join(text for check in verify_sweep(sweep) for text in check.notices)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_an_untouched_sweep_and_its_report_are_found_in_order(sweep, capsys):
    assert main(["sweep", "verify", "kept", "--results", str(sweep.path.parent)]) == 0
    said = capsys.readouterr().out
    assert "WRONG" not in said
    assert "ok     plan: 2 runs planned, 2 of them done" in said
    assert f"ok     report: {sweep.path / 'reports'}" in said


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        (f"runs/{RUN}/eval.csv", ",60,0.5", ",61,0.5", ["since the run was done", "since the report", "has 61"]),
        (f"runs/{RUN}/train.csv", ",3.5,", ",4.5,", ["since the run was done", "since the report"]),
        (f"runs/{RUN}/config.yaml", "horizon: 3", "horizon: 4", ["not the settings", "since the run was done"]),
        (f"runs/{RUN}/config.yaml", "seed: 1", "seed: 7", ["those of a run named cup-spin-1M-seed7"]),
        (f"runs/{RUN}/status.json", '"digest": "', '"digest": "0', ["not the settings", "of other settings"]),
        (f"runs/{RUN}/eval.csv", "200,100,100", "190,95,95", ["ends at 190 env_steps, the run at 200"]),
        (f"runs/{RUN}/eval.csv", "100,50,50", "300,50,50", ["line 4: env_steps goes back from 300 to 200"]),
        (f"runs/{RUN}/eval.csv", "200,100,100", "100,50,50", ["line 4: cup-spin at 100 env_steps stands there twice"]),
        (f"runs/{RUN}/eval.csv", ",0.5,,500", ",0.5,500", ["line 2 has 9 fields, the first line 10"]),
        ("reports/tables/aggregate_evaluations.csv", "60.0", "99.0", ["since the report was made", "return 99.0 of"]),
        ("reports/index.html", "scores", "scorn", ["index.html: has changed since the report was made"]),
        (f"runs/{RUN}/provenance.json", '"processes"', '"process"', ["provenance.json: damaged"]),
    ],
)  # fmt: skip
def test_a_change_of_one_file_is_found_and_named(sweep, file, old, new, told):
    edit(sweep.path / file, old, new)
    found = wrong(sweep)
    for part in told:
        assert any(part in text and (Path(file).name in text or RUN in text) for text in found), found
    assert not any("seed2" in text for text in found)  # nothing else is accused


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: shutil.rmtree(path / "runs" / RUN), f"runs/{RUN}: gone; the report"),
        (lambda path: (path / "runs" / RUN / "eval.csv").unlink(), "eval.csv: missing"),
        (lambda path: (path / "reports" / "index.html").unlink(), "index.html: gone"),
        (lambda path: (path / "plan.json").unlink(), "plan.json: missing"),
        (lambda path: (path / "plan.json").write_text("{"), "plan.json: damaged"),
        (lambda path: (path / "runs" / RUN / "status.json").write_text("{"), "status.json: damaged"),
        (lambda path: (path / "runs" / RUN / "config.yaml").write_text("task: ["), "config.yaml: damaged"),
        (lambda path: (path / "reports" / "report.json").write_text("[]"), "report.json: damaged"),
    ],
    ids=["run", "eval", "page", "plan", "cut plan", "cut status", "cut config", "report's record"],
)
def test_what_is_gone_or_cut_is_found_and_named(sweep, damage: Callable[[Path], object], told: str):
    damage(sweep.path)
    assert any(told in text for text in wrong(sweep)), wrong(sweep)


def test_faults_give_exit_code_1(sweep, capsys):
    edit(sweep.path / "runs" / RUN / "train.csv", ",3.5,", ",4.5,")
    assert main(["sweep", "verify", "kept", "--results", str(sweep.path.parent)]) == 1
    captured = capsys.readouterr()
    assert "WRONG  provenance" in captured.out
    assert "kept: " in captured.err


def test_a_report_older_than_the_runs_is_a_notice_and_no_fault(tmp_path):
    sweep = make_sweep(tmp_path / "results", ("done", "interrupted"))
    make_report(sweep)
    assert "not done: cup-spin-1M-seed2 (interrupted)" in notices(sweep)
    shutil.rmtree(sweep.path / "runs" / "cup-spin-1M-seed2")
    report = sweep.path / "reports"
    kept = report.rename(sweep.path / "kept")
    shutil.rmtree(sweep.path / "runs")
    make_sweep(tmp_path / "results")  # both are done by now
    kept.rename(report)
    found = [text for text in wrong(sweep) if "seed2" in text]
    assert found == []
    assert "older than the runs: cup-spin-1M-seed2 went on since" in notices(sweep)


def test_a_report_that_recorded_no_sources_is_a_notice(sweep):
    file = sweep.path / "reports" / "report.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({name: record[name] for name in ("inputs", "parts", "files")}))
    assert wrong(sweep) == []
    assert "did not record its sources; make it again" in notices(sweep)


def test_a_table_with_a_run_that_the_report_was_not_made_from_is_found(sweep):
    file = sweep.path / "reports" / "report.json"
    record = json.loads(file.read_text())
    record["sources"][0]["runs"] = [each for each in record["sources"][0]["runs"] if each["run"] != RUN]
    file.write_text(json.dumps(record))
    assert any(f"has numbers of '{RUN}', which the report was not made from" in text for text in wrong(sweep))


def test_changed_published_curves_are_found_and_absent_ones_are_a_notice(sweep, tmp_path):
    curves = tmp_path / "curves"
    (curves / "sac").mkdir(parents=True)
    (curves / "sac" / "cup-spin.csv").write_text("step,reward,seed\n0,1,1\n")
    file = sweep.path / "reports" / "report.json"
    record = json.loads(file.read_text())
    record["sources"][0]["published"] = {"folder": str(curves), "files": {"sac/cup-spin.csv": {"sha256": "0" * 64}}}
    file.write_text(json.dumps(record))
    assert any("sac/cup-spin.csv: has changed since the report" in text for text in wrong(sweep))
    shutil.rmtree(curves)
    assert wrong(sweep) == []
    assert "published curves that it was compared with are not here" in notices(sweep)


def test_replay_that_does_not_hold_the_logged_episodes_is_found(sweep):
    from scripted_training import write_replay

    write_replay(sweep.run(RUN).replay, "cup-spin")  # one episode of 5 steps; train.csv has two of 50
    [fault] = wrong(sweep)
    assert "1 episodes of 5 agent steps in all, train.csv has 2 of 100" in fault


def test_a_data_set_whose_store_is_gone_is_found(sweep):
    from scripted_training import write_replay

    from tdmpc2.data.dataset import StoreSource, build

    store = sweep.run(RUN).replay
    write_replay(store, "cup-spin")
    build("all", [StoreSource(store, 1, finished=True)], ["cup-spin"], sweep.path / "datasets")
    shutil.rmtree(store)
    assert any("the replay store of cup-spin (seed 1) is gone" in text for text in wrong(sweep))


def test_checkpoints_are_read_on_request_only(sweep):
    checkpoint = sweep.run(RUN).checkpoint
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"PK cut")
    assert wrong(sweep) == []
    found = wrong(sweep, checkpoints=True)
    assert any(str(checkpoint) in text and "damaged" in text for text in found)
    assert any("cup-spin-1M-seed2" in text and "latest.pt: missing" in text for text in found)


def test_an_unknown_sweep_is_refused_with_the_nearest_name(sweep, capsys):
    assert main(["sweep", "verify", "kep", "--results", str(sweep.path.parent)]) == 2
    assert "did you mean 'kept'?" in capsys.readouterr().err
