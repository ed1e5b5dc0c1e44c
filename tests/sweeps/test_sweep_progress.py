from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from scripted_training import write_status

from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.sweeps.folder import PlanEntry, SweepFolder
from tdmpc2.sweeps.progress import RunView, view_run, view_sweep
from tdmpc2.sweeps.tables import status_table, summary_line
from tdmpc2.training.folder import RunFolder

ENTRY = PlanEntry("walker-walk-1M-seed1", "walker-walk", 1, 1, 100, 200)


def config(folder: Path, seed: int = 1) -> Config:
    return Config(task="walker-walk", model_size=1, seed=seed, steps=100, results_dir=str(folder), exp_name="s")


def run_with_status(folder: Path, state: str, steps: int, **changes: object) -> RunFolder:
    run = RunFolder.of(config(folder))
    write_status(run, config(folder), state, steps, **changes)  # type: ignore[arg-type]
    return run


def view(name: str, state: str, size: int = 1, total: int = 100, **values: object) -> RunView:
    return RunView(PlanEntry(name, "walker-walk", size, 1, total, 2 * total), state, **values)  # type: ignore[arg-type]


def test_running_status_is_believed_only_while_a_process_holds_the_run(tmp_path: Path) -> None:
    run = run_with_status(tmp_path, "running", 40)
    assert view_run(run, ENTRY).state == "killed"
    run.claim(config(tmp_path))
    assert view_run(run, ENTRY).state == "running"
    run.release()
    assert view_run(run, ENTRY).state == "killed"


def test_run_without_a_status_is_waiting_running_or_failed(tmp_path: Path) -> None:
    run = RunFolder.of(config(tmp_path))
    assert view_run(run, ENTRY).state == "waiting"
    assert view_run(run, ENTRY, failure="no simulator") == RunView(ENTRY, "failed", message="no simulator")
    run.claim(config(tmp_path))
    assert view_run(run, ENTRY).state == "running"
    run.release()


def test_run_given_up_after_kills_is_failed_with_the_reason(tmp_path: Path) -> None:
    run = run_with_status(tmp_path, "running", 40)
    seen = view_run(run, ENTRY, failure="killed 4 times")
    assert (seen.state, seen.message) == ("failed", "killed 4 times")


def test_damaged_status_does_not_hide_the_run(tmp_path: Path) -> None:
    run = run_with_status(tmp_path, "done", 100)
    run.status_file.write_text("{")
    assert view_run(run, ENTRY).state == "waiting"


def test_runs_of_an_older_plan_are_shown_as_not_in_the_plan(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "s")
    folder.write_plan([ENTRY], "tasks: x")
    for seed in (1, 2):
        run = RunFolder.of(config(tmp_path, seed))
        run.claim(config(tmp_path, seed))
        run.release()
        write_status(run, config(tmp_path, seed), "done", 100)
    (folder.path / "runs" / "scratch").mkdir()
    views = {seen.entry.name: seen for seen in view_sweep(folder)}
    assert views["walker-walk-1M-seed1"].planned
    assert not views["walker-walk-1M-seed2"].planned
    assert views["walker-walk-1M-seed2"].entry == PlanEntry("walker-walk-1M-seed2", "walker-walk", 1, 2, 100, 200, 100)
    assert not views["scratch"].planned


def test_damaged_plan_is_named(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "s")
    folder.path.mkdir()
    for text in ("{", "{}", '{"runs": [{"name": 3}]}'):
        folder.plan_file.write_text(text)
        with pytest.raises(UserError, match=r"plan\.json: damaged"):
            folder.read_plan()


def printed(views: list[RunView], every_run: bool = False) -> str:
    console = Console(width=160, markup=False)
    with console.capture() as capture:
        console.print(status_table(views, every_run))
    return capture.get()


def test_status_table_shows_progress_in_environment_steps_and_reasons() -> None:
    text = printed(
        [
            view("a-run", "running", agent_steps=40, env_steps=80, updates=40, seconds_left=30.0, last_return=12.5),
            view("b-run", "failed", message="RuntimeError: [no] luck"),
            view("c-run", "killed", planned=False),
        ]
    )
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "80 / 200" in rows["a-run"]
    assert "12.5" in rows["a-run"]
    assert "30 s" in rows["a-run"]
    assert "RuntimeError: [no] luck" in text
    assert "killed; will resume (not in the plan)" in rows["c-run"]
    assert "1 running, 1 failed, 1 killed; will resume" in text


OFFLINE = PlanEntry("pair-1M-seed1", "walker-walk,cup-spin", 1, 1, 0, 0, 200, "offline")


def test_run_on_a_data_set_has_come_as_far_as_its_updates(tmp_path: Path) -> None:
    assert RunView(OFFLINE, "running", updates=50).fraction == 0.25
    assert RunView(ENTRY, "running", agent_steps=60, updates=20).fraction == 0.4  # 60% of its steps, 20% of its updates
    assert RunView(OFFLINE, "waiting").fraction == 0
    (row,) = [line for line in printed([RunView(OFFLINE, "running", updates=50)]).splitlines() if "pair" in line]
    assert "50 / 200 updates" in row


def test_run_on_a_data_set_that_is_not_in_the_plan_is_shown_by_its_own_settings(tmp_path: Path) -> None:
    settings = Config(task="walker-walk,cup-spin", data="pair", steps=200, results_dir=str(tmp_path), exp_name="s")
    run = RunFolder.of(settings)
    run.claim(settings)
    run.release()
    write_status(run, settings, "interrupted", 50)
    (seen,) = view_sweep(SweepFolder(tmp_path, "s"))
    assert (seen.entry.kind, seen.entry.total_updates, seen.fraction) == ("offline", 200, 0.25)


def test_large_sweep_is_counted_but_for_what_needs_attention() -> None:
    views = [view(f"run-{i}", "done") for i in range(100)] + [view("bad", "failed", message="why")]
    assert "run-7" not in printed(views)
    assert "bad" in printed(views)
    assert "run-7" in printed(views, every_run=True)
    assert summary_line(views) == "100 done, 1 failed"
