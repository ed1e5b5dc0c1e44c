"""The report on one run: which run is picked, what is read of it, planning against policy, and the whole page."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import nbformat
import numpy as np
import pandas as pd
import pytest

from analysis.run_report import figures, planning, score_figures, videos
from analysis.run_report.choice import choose_run
from analysis.run_report.record import (
    RunRecord,
    changed_settings,
    logged_metrics,
    others_training,
    read_run,
    smoothed,
    smoothing_window,
    speeds,
)
from analysis.run_report.text import gradient_table
from analysis.study import load_study
from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.training.logs import LOSSES

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "run_report.ipynb"
EVALUATIONS_HEADER = (
    "env_steps,agent_steps,updates,seconds,task,seed,mpc,episodes,return,return_std,success,episode_length,video"
)
POINTS = [(0, 30.0), (3000, 500.0)]


def picked(folder: Path, asked: str | None = None) -> tuple[str, str]:
    choice = choose_run(load_study([folder]), asked)
    assert choice is not None
    return choice.run, choice.reason


def record_of(folder: Path, name: str) -> RunRecord:
    return read_run(load_study([folder]), name)


def write_evaluations(run: Path, rows: Sequence[str]) -> None:
    (run / "evaluations.csv").write_text("\n".join([EVALUATIONS_HEADER, *rows]) + "\n")


# --- which run


def test_a_run_that_diverged_is_picked_before_failed_ones_and_these_before_unfinished_ones(writer):
    writer.add("walker-walk", 1, POINTS)
    writer.add("walker-walk", 2, POINTS, state="interrupted", message="stopped by SIGTERM")
    assert picked(writer.folder)[0] == "walker-walk-1M-seed2"
    writer.add("walker-walk", 3, POINTS, state="failed", message="disk full")
    assert picked(writer.folder) == ("walker-walk-1M-seed3", "picked because it failed")
    writer.add("walker-walk", 4, POINTS, state="failed", message="training diverged at update 7")
    assert picked(writer.folder) == ("walker-walk-1M-seed4", "picked because it diverged")


def test_of_finished_runs_the_one_furthest_below_its_siblings_is_picked_not_the_hardest_task(writer):
    writer.add("dog-run", 1, [(3000, 10.0)])
    for seed, value in ((1, 900.0), (2, 700.0), (3, 880.0)):
        writer.add("walker-walk", seed, [(3000, value)])
    # the others' median is (90 + 88) / 2 = 89
    reason = "picked because its score, 70.0, is 19.0 points below the median of its siblings"
    assert picked(writer.folder) == ("walker-walk-1M-seed2", reason)


def test_where_no_finished_run_lags_behind_its_siblings_the_lowest_score_is_picked(writer):
    for seed, value in ((1, 900.0), (2, 850.0)):
        writer.add("walker-walk", seed, [(3000, value)])
    writer.add("dog-run", 1, [(3000, 10.0)])
    assert picked(writer.folder) == ("dog-run-1M-seed1", "picked because its score, 1.0, is the lowest of all runs")


def test_a_run_is_found_by_its_name_and_an_unknown_name_gets_the_nearest(writer):
    writer.add("walker-walk", 1, POINTS)
    writer.add("dog-run", 1, POINTS, state="failed")
    assert picked(writer.folder, "walker-walk-1M-seed1")[0] == "walker-walk-1M-seed1"
    with pytest.raises(UserError, match="run: unknown run 'walker-walk-1M-seed2'; did you mean 'walker-walk-1M-seed1'"):
        picked(writer.folder, "walker-walk-1M-seed2")


# --- what is read


def test_steps_and_scores_are_on_the_runs_own_axis_and_success_has_its_binomial_spread(writer):
    writer.add("mw-reach", 1, [(0, 5.0, 0.0), (3000, 50.0, 0.4)])
    writer.add_multi(["walker-walk", "cup-catch"], 1, [(0, {"walker-walk": 3.0, "cup-catch": 0.0})])
    reach = record_of(writer.folder, "mw-reach-1M-seed1")
    last = reach.evaluations.iloc[-1]
    # 10 episodes, 4 of them with success: variance 0.4 x 0.6 x 10 / 9
    assert (last["step"], last["value"], last["score"]) == (3000, 0.4, 40.0)
    assert last["std"] == pytest.approx((0.24 * 10 / 9) ** 0.5)
    assert reach.training["step"].tolist() == [1000, 2000]
    both = record_of(writer.folder, "walker-walk+cup-catch-1M-seed1")
    assert both.axis == "updates"
    assert both.training["step"].tolist() == [1000, 2000]


def test_metrics_of_updates_are_grouped_by_subject_and_those_never_logged_left_out():
    training = pd.DataFrame({"step": [1.0], "updates": [1.0], "return": [3.0], **{name: [0.5] for name in LOSSES}})
    assert logged_metrics(training.assign(termination_loss=np.nan)) == {
        "losses": ["consistency_loss", "reward_loss", "value_loss", "total_loss", "pi_loss"],
        "gradients": ["grad_norm", "pi_grad_norm"],
        "policy and scale": ["pi_entropy", "pi_scaled_entropy", "pi_scale"],
    }


def test_settings_that_differ_from_the_defaults_are_listed_with_these(writer):
    config = Config(task="walker-walk", seed=3, lr=1e-3, results_dir="elsewhere")
    assert changed_settings(config).to_numpy().tolist() == [["seed", 3, 1], ["lr", 1e-3, 3e-4]]


def test_smoothing_averages_over_neighbours_with_a_finite_value():
    training = pd.DataFrame({"step": range(5), "loss": [1.0, 2.0, np.inf, 6.0, 7.0]})
    smooth = smoothed(training, ["loss"], 3)["loss"]
    assert smooth.dropna().tolist() == [1.5, 3.0, 5.0, 6.5]
    assert (smoothing_window(39, None), smoothing_window(100, None), smoothing_window(100, 7)) == (1, 5, 7)
    with pytest.raises(UserError, match="smoothing: 0 is not a number of rows"):
        smoothing_window(100, 0)


def test_speed_is_counted_from_row_to_row_and_only_where_there_are_updates():
    training = pd.DataFrame({"step": [1.0, 2, 3, 4], "updates": [0.0, 0, 50, 90], "seconds": [1.0, 2, 12, 22]})
    assert speeds(training).to_numpy().tolist() == [[3.0, 5.0], [4.0, 4.0]]


def test_only_other_runs_of_the_same_series_stand_behind_a_runs_losses(writer):
    writer.add("walker-walk", 1, POINTS)
    writer.add("walker-walk", 2, POINTS)
    writer.add("dog-run", 1, POINTS)
    writer.add("walker-walk", 1, POINTS, size=5)
    study = load_study([writer.folder])
    others = others_training(study, read_run(study, "walker-walk-1M-seed1"))
    assert sorted(others["run"].unique()) == ["dog-run-1M-seed1", "walker-walk-1M-seed2"]
    assert others_training(study, read_run(study, "walker-walk-5M-seed1")).empty


def test_rows_at_the_clipping_threshold_are_counted(writer):
    writer.add("walker-walk", 1, POINTS)
    record = record_of(writer.folder, "walker-walk-1M-seed1")
    norms = pd.DataFrame({"step": range(5), "grad_norm": [1.0, 20.0, 30.0, 4.0, np.nan]})
    changed = RunRecord(**{**vars(record), "training": norms})
    assert gradient_table(changed, ["grad_norm"]).iloc[0].tolist() == ["grad_norm", 4, 12.0, 30.0, 20.0, 0.5]


# --- planning against policy


def evaluations(*rows: tuple[Any, ...]) -> pd.DataFrame:
    """Rows of (task, step, mpc, seed, episodes, value, std) of a task scored by its return."""
    table = pd.DataFrame(rows, columns=pd.Index(["task", "step", "mpc", "seed", "episodes", "value", "std"]))
    return table.assign(score=table["value"] / 10)


def test_planning_and_policy_are_compared_at_the_same_step_with_welchs_interval():
    table = planning.compare_planning(
        evaluations(
            ("walker-walk", 1000, True, 1, 5, 400.0, 10.0),
            ("walker-walk", 2000, True, 1, 10, 700.0, 30.0),
            ("walker-walk", 2000, False, 1, 10, 600.0, 40.0),
        )
    )
    (row,) = table.to_dict("records")
    assert (row["step"], row["planning"], row["policy"], row["difference"]) == (2000, 700, 600, 100)
    # standard error sqrt(90 + 160) = 15.811; 250^2 / (90^2 / 9 + 160^2 / 9) = 16.69 degrees of freedom, t = 2.1128
    assert (row["high"] - row["low"]) / 2 == pytest.approx(2.1128 * 15.8114, rel=1e-3)
    assert (row["planning_score"], row["policy_score"]) == (70, 60)


def test_seeds_are_pooled_and_a_repeated_seed_counts_once():
    table = planning.compare_planning(
        evaluations(
            ("walker-walk", 0, True, 1, 2, 4.0, np.sqrt(8.0)),  # episodes 2 and 6
            ("walker-walk", 0, True, 1, 1, 2.0, np.nan),  # the first of them again
            ("walker-walk", 0, True, 2, 2, 10.0, np.sqrt(8.0)),  # episodes 8 and 12
            ("walker-walk", 0, False, 1, 1, 3.0, np.nan),
        )
    )
    (row,) = table.to_dict("records")
    # of 2, 6, 8, 12: mean 7, squared deviations 25 + 1 + 1 + 25
    assert (row["planning"], row["planning_episodes"]) == (7, 4)
    assert row["planning_std"] == pytest.approx(np.sqrt(52 / 3))
    assert np.isnan(row["low"])  # one episode of the policy has no spread


def test_rows_that_do_not_tell_whether_the_agent_planned_are_left_out_and_told(writer):
    run = writer.add("walker-walk", 1, POINTS)
    write_evaluations(
        run, ["3000,1500,,1,walker-walk,1,,10,90,1,,500,", "3000,1500,,1,walker-walk,1,False,10,80,1,,500,"]
    )
    record = record_of(writer.folder, "walker-walk-1M-seed1")
    assert record.problems == ("evaluations.csv: 1 row without mpc left out",)
    (row,) = planning.compare_planning(record.evaluations).to_dict("records")
    assert (row["planning"], row["policy"], row["difference"]) == (500, 80, 420)


def test_the_command_asks_for_what_is_missing_at_the_checkpoints_step(writer):
    writer.add("walker-walk", 1, POINTS)
    record = record_of(writer.folder, "walker-walk-1M-seed1")
    command = f"tdmpc2 evaluate run={record.folder} mpc=false episodes=10"
    assert planning.recording_command(record, 3000) == command
    both = planning.recording_command(record, None).splitlines()
    assert both == [command.replace("false", "true"), command]


def test_a_number_of_episodes_below_zero_is_refused():
    with pytest.raises(UserError, match="episodes: -1 is not a number of episodes"):
        planning.check_episodes(-1)


# --- films


def film(path: Path, frames: int) -> None:
    path.parent.mkdir(exist_ok=True)
    brightness = np.linspace(0, 250, frames).astype(np.uint8)
    pictures = np.broadcast_to(brightness[:, None, None, None], (frames, 32, 48, 3))
    iio.imwrite(path, np.ascontiguousarray(pictures), fps=10, codec="libx264", macro_block_size=8)


def test_frames_are_spread_evenly_over_a_film_and_films_that_cannot_be_shown_are_told(tmp_path, monkeypatch):
    film(tmp_path / "videos" / "cup-catch-70.mp4", 21)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no film")
    (tmp_path / "videos" / "long.mp4").write_bytes(b"x" * 200_000)
    monkeypatch.setattr(videos, "LARGEST", 150_000)
    (found,), left_out = videos.read_films(tmp_path)
    assert found.path.name == "cup-catch-70.mp4"
    assert found.times == pytest.approx((0.0, 0.4, 0.8, 1.2, 1.6, 2.0))
    assert np.all(np.diff([frame.mean() for frame in found.frames]) > 20)  # dark to bright
    assert sorted(text.partition(":")[0] for text in left_out) == ["broken.mp4", "long.mp4"]
    movie, poster = videos.place_film(found, tmp_path / "page")
    assert (movie, poster) == ("videos/cup-catch-70.mp4", "figures/run_film_cup-catch-70.png")
    assert (tmp_path / "page" / movie).read_bytes() == found.path.read_bytes()
    assert iio.imread(tmp_path / "page" / poster).shape == (32, 48, 3)


# --- figures


def test_panels_show_the_raw_log_its_smoothing_the_other_runs_and_the_clipping_threshold():
    training = pd.DataFrame({"step": [1.0, 2, 3], "grad_norm": [1.0, 5, 3], "pi_grad_norm": [0.1, 0.2, 0.1]})
    smooth = smoothed(training, ["grad_norm", "pi_grad_norm"], 3)
    keys = {"algorithm": "tdmpc2", "kind": "single", "size": 1, "task_set": ""}
    others = pd.DataFrame({"run": "b", "env_steps": [1.0, 2], "updates": 0.0, **keys, "grad_norm": [2.0, 4]})
    drawn = figures.metric_panels(training, smooth, ["grad_norm", "pi_grad_norm"], "env_steps", others, 20.0)
    model, policy = drawn.axes
    assert len(model.lines) == 4  # other runs, raw, smoothed, threshold
    assert len(policy.lines) == 2  # 20 is far above it
    assert list(model.lines[-1].get_ydata()) == [20.0, 20.0]
    assert drawn.get_supxlabel() == "Environment steps"


def test_104_tasks_stay_legible_in_rows_side_by_side():
    from tdmpc2.tasks import TASKS

    table = pd.DataFrame({"task": list(TASKS), "score": 50.0, "std": 0.1})
    drawn = score_figures.task_scores(table, table)
    labels = [label for axes in drawn.axes for label in axes.get_yticklabels()]
    assert len(labels) == 104
    assert min(label.get_fontsize() for label in labels) >= 5


# --- the whole page


def render(folder: Path | None, output: Path, **parameters: Any) -> str:
    """Run the notebook's cells in this process, which is faster than in a kernel; the texts that it shows."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    given = {"results": [str(folder)] if folder else [], "output": str(output), **parameters}
    shown: list[str] = []
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()  # the one that IPython.display shows in
    try:
        for cell in notebook.cells:
            if cell.cell_type != "code":
                continue
            with capture_output() as captured:
                result = shell.run_cell(cell.source)
            result.raise_error()
            shown += [item.data.get("text/html", "") for item in captured.outputs]
            if "parameters" in cell.metadata.get("tags", []):
                shell.push(given)
    finally:
        InteractiveShell.clear_instance()
    return "\n".join(shown)


def sentence(output: Path) -> str:
    headline = json.loads((output / "headlines" / "run_report.json").read_text())
    figure = headline["figure"]
    assert figure is None or (output / "figures" / f"{figure}.png").is_file()
    return str(headline["sentence"])


def test_the_notebook_runs_by_papermill_from_end_to_end(writer, tmp_path):
    import papermill

    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    writer.add("walker-walk", 1, POINTS, state="failed", message="training diverged at update 9: a loss is not finite")
    executed, output = tmp_path / "executed.ipynb", tmp_path / "out"
    parameters = {"results": [str(writer.folder)], "output": str(output)}
    papermill.execute_notebook(NOTEBOOK, executed, parameters, kernel_name="python3", progress_bar=False, cwd=tmp_path)
    assert sentence(output) == (
        "walker-walk-1M-seed1 (picked because it diverged) failed at 3,000 of 3,000 environment steps. Normalised "
        "score of the last evaluation, at 3,000 environment steps: 50.0 of 100, a random policy 3.2. Most important "
        "sign: training diverged and was stopped (from 3,000 environment steps)."
    )
    assert "training diverged at update 9: a loss is not finite" in executed.read_text()


def test_the_notebook_is_committed_without_outputs_and_names_its_sections():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert all(cell.source.startswith("# ") for cell in code)
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1


def test_planning_and_films_of_a_finished_run_are_shown_with_their_numbers(writer, tmp_path):
    run = writer.add("walker-walk", 1, POINTS)
    write_evaluations(run, ["3000,1500,,1,walker-walk,1,False,10,420,5,,500,"])
    film(run / "videos" / "walker-walk-3000.mp4", 12)
    page = render(writer.folder, tmp_path / "out")
    assert "planning scores 50.0 and the policy alone 42.0 (normalised): +8.0 points" in page
    table = pd.read_csv(tmp_path / "out" / "tables" / "run_planning.csv")
    assert table[["planning", "policy", "difference"]].to_numpy().tolist() == [[500, 420, 80]]
    assert '<video controls preload="none" src="videos/walker-walk-3000.mp4"' in page
    assert (tmp_path / "out" / "videos" / "walker-walk-3000.mp4").is_file()
    assert {"run_planning.png", "run_films.svg", "run_returns.pdf", "run_losses.png"} <= set(
        os.listdir(tmp_path / "out" / "figures")
    )


def test_tasks_of_a_multi_task_run_are_sorted_by_score_over_updates(writer, tmp_path):
    both = ["walker-walk", "mw-reach"]
    writer.add_multi(both, 1, [(0, dict.fromkeys(both, 0.0)), (2000, {"walker-walk": 300.0, "mw-reach": 0.6})])
    page = render(writer.folder, tmp_path / "out")
    assert "last evaluation, at 2,000 updates, mean over 2 tasks: 45.0 of 100" in sentence(tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "tables" / "run_tasks.csv")
    assert table[["task", "score"]].to_numpy().tolist() == [["mw-reach", 60.0], ["walker-walk", 30.0]]
    assert "environment steps" not in page.partition("<h2>What the run is</h2>")[2]
    assert "2,000 updates" in page


def test_a_run_that_never_started_and_one_without_a_log_say_what_is_lacking(writer, tmp_path):
    writer.add("walker-walk", 1, None)
    page = render(writer.folder, tmp_path / "a")
    assert sentence(tmp_path / "a") == (
        "walker-walk-1M-seed1 (picked as the first one; no run was started) was not started, it stands at 0 of 3,000 "
        "environment steps. No evaluation is recorded. Nothing is logged yet, so there are no signs to read."
    )
    for lacking in ("No episode and no evaluation is recorded yet", "no update yet", "There is no checkpoint to film"):
        assert lacking in page
    started = writer.add("dog-run", 1, [], state="running")
    (started / "train.csv").unlink()
    render(writer.folder, tmp_path / "b", run="dog-run-1M-seed1")
    assert "dog-run-1M-seed1 (asked for by the parameter run) is running, at 0" in sentence(tmp_path / "b")


def test_published_curves_alone_end_in_a_sentence(published, tmp_path):
    reference = published({"tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n100000,920,1\n"})
    page = render(None, tmp_path / "out", reference=str(reference))
    assert "There is no run to look at in published curves" in sentence(tmp_path / "out")
    assert "Losses" not in page


def test_with_episodes_both_modes_are_evaluated_and_then_compared(writer, monkeypatch):
    run = writer.add("walker-walk", 1, [(0, 30.0)])
    study, written = load_study([writer.folder]), []

    def evaluate(config: Any, show_progress: bool) -> None:
        assert (config.run, config.episodes, show_progress) == (str(run), 3, False)
        value = 500 if config.mpc else 420
        written.append(f"3000,1500,,1,walker-walk,1,{config.mpc},3,{value},5,,500,")
        write_evaluations(run, written)

    monkeypatch.setattr("tdmpc2.training.evaluate_run.evaluate_run", evaluate)
    planning.evaluate_both(read_run(study, run.name), 3)
    (row,) = planning.compare_planning(read_run(study, run.name).evaluations).to_dict("records")
    assert (row["step"], row["planning"], row["policy"]) == (3000, 500, 420)


def test_an_evaluation_that_cannot_be_made_is_told_and_the_page_goes_on(writer, tmp_path):
    writer.add("walker-walk", 1, POINTS)
    page = render(writer.folder, tmp_path / "out", episodes=1)
    assert "It could not be evaluated now:" in page
    assert "has no checkpoint yet" in page
    assert "<h2>Videos</h2>" in page
