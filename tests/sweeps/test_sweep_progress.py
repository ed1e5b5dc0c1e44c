from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from scripted_training import write_status

from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.sweeps.folder import PlanEntry, SweepFolder
from tdmpc2.sweeps.progress import (
    RunView,
    measured_speed,
    remaining_cost,
    sweep_seconds_left,
    view_run,
    view_sweep,
)
from tdmpc2.sweeps.tables import cost_line, status_table, summary_line
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
    assert views["walker-walk-1M-seed2"].entry == PlanEntry("walker-walk-1M-seed2", "walker-walk", 1, 2, 100, 200)
    assert not views["scratch"].planned


def test_damaged_plan_is_named(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "s")
    folder.path.mkdir()
    for text in ("{", "{}", '{"runs": [{"name": 3}]}'):
        folder.plan_file.write_text(text)
        with pytest.raises(UserError, match=r"plan\.json: damaged"):
            folder.read_plan()


def test_speed_is_measured_by_size_over_updates() -> None:
    views = [
        view("a", "done", updates=100, agent_steps=100, seconds=50.0),
        view("b", "interrupted", updates=300, agent_steps=900, seconds=350.0),  # its random steps took no time
        view("c", "waiting", size=5),
        view("d", "running", size=19, total=1_000, updates=0, agent_steps=900, seconds=9.0),
    ]
    assert measured_speed(views) == {1: (50 + 350) / (100 + 300)}


def test_speed_of_a_run_under_way_is_its_own_estimate() -> None:
    # 60 seconds have gone, most of them into its start; 80 updates are left and will take 8 seconds.
    views = [view("a", "running", updates=20, agent_steps=20, seconds=60.0, seconds_left=8.0)]
    assert measured_speed(views)[1] == pytest.approx(0.1)


def test_cost_uses_own_estimates_then_speed_and_names_sizes_that_are_unknown() -> None:
    views = [
        view("a", "done", updates=100, seconds=50.0),
        view("b", "running", updates=20, seconds_left=8.0),
        view("c", "waiting"),
        view("d", "interrupted", updates=60),
        view("e", "waiting", size=5),
    ]
    cost = remaining_cost(views, {1: 0.5})
    assert cost.seconds == 8 + 100 * 0.5 + 40 * 0.5
    assert cost.unknown_sizes == (5,)


def test_time_left_shares_the_work_among_the_running_but_is_no_less_than_the_longest() -> None:
    views = [
        view("a", "running", updates=1, seconds_left=10.0),
        view("b", "running", updates=1, seconds_left=10.0),
        view("c", "waiting"),
    ]
    assert sweep_seconds_left(views, {1: 0.5}) == (10 + 10 + 50) / 2
    assert sweep_seconds_left([*views[:1], view("b", "running", updates=1, seconds_left=90.0)], {}) == 90
    assert sweep_seconds_left(views, {}) is None
    assert sweep_seconds_left([view("c", "waiting")], {1: 0.5}) is None


def test_cost_is_unknown_until_measured() -> None:
    assert "size 1M: unknown until" in cost_line([view("a", "waiting")])
    measured = cost_line([view("a", "done", updates=100, seconds=7200.0), view("b", "waiting")])
    assert "about 2.0 hours" in measured
    assert "unknown" not in measured


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


def test_large_sweep_is_counted_but_for_what_needs_attention() -> None:
    views = [view(f"run-{i}", "done") for i in range(100)] + [view("bad", "failed", message="why")]
    assert "run-7" not in printed(views)
    assert "bad" in printed(views)
    assert "run-7" in printed(views, every_run=True)
    assert summary_line(views) == "100 done, 1 failed"
