"""`tdmpc2 evaluate`: the agent in a run's folder, its scores and its film."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from tiny_runs import TINY, Script, ScriptedEnv, shortened_tasks

import tdmpc2.tasks
from tdmpc2.agent import checkpoints
from tdmpc2.cli import main
from tdmpc2.config import Config, EvaluateConfig
from tdmpc2.envs.rendering import import_without_gl, switch_rendering_on
from tdmpc2.errors import UserError
from tdmpc2.training.evaluate_run import evaluate_run
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.run import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned a little, with evaluations of two episodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tdmpc2.tasks, "TASKS", shortened_tasks())
        results = str(tmp_path_factory.mktemp("finished"))
        config = Config(**TINY, results_dir=results, seed_steps=20, steps=25, eval_freq=1000)
        return train(config, show_progress=False).path


@pytest.fixture
def run(finished: Path, tmp_path: Path, short_episodes: int) -> RunFolder:
    """A copy of it."""
    return RunFolder(shutil.copytree(finished, tmp_path / finished.name))


def evaluate(folder: RunFolder, **changes: Any) -> list[dict[str, Any]]:
    settings = {"run": str(folder.path), "episodes": 2, "threads": 1, "device": "cpu", **changes}
    return evaluate_run(EvaluateConfig(**settings), show_progress=False)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_scores_as_the_evaluation_while_training_did(run, rows):
    """Same seed, same step, same number of episodes: the same numbers, and so comparable ones in any case."""
    (row,) = evaluate(run, seed=1)
    last = rows(run.eval_csv)[-1]
    assert (row["env_steps"], row["agent_steps"], row["updates"]) == (50, 25, 25)
    assert f"{row['return']:.7g}" == last["return"]
    assert f"{row['return_std']:.7g}" == last["return_std"]


def test_rows_are_appended_and_the_run_itself_stays_as_it_is(run, rows):
    before = snapshot(run.path)
    evaluate(run)
    evaluate(run, seed=2, episodes=3, mpc=False)
    after = snapshot(run.path)
    evaluations = after.pop("evaluations.csv")
    assert after == before
    assert evaluations.count(b"\n") == 3
    first, second = rows(run.path / "evaluations.csv")
    assert (first["episodes"], first["seed"], first["mpc"], first["video"]) == ("2", "1", "True", "")
    assert (second["episodes"], second["seed"], second["mpc"]) == ("3", "2", "False")
    assert {row["task"] for row in (first, second)} == {"pendulum-swingup"}
    assert first["episode_length"] == "20"


def test_the_command_prints_a_table(run, capsys):
    assert main(["evaluate", f"run={run.path}", "episodes=2", "threads=1", "device=cpu", "--quiet"]) == 0
    shown = capsys.readouterr().out
    for text in ("pendulum-swingup", "env_steps", "return", "50"):
        assert text in shown


@pytest.fixture
def opengl() -> None:
    import_without_gl()
    try:
        switch_rendering_on()
    except UserError as error:
        pytest.skip(str(error))


def test_the_film_has_a_frame_for_each_step_of_the_first_episode(run, opengl):
    (row,) = evaluate(run, video=True)
    path = run.path / row["video"]
    assert path == run.videos / "pendulum-swingup-50.mp4"
    frames = iio.imread(path)
    assert frames.shape == (20, 384, 384, 3)
    assert frames.std() > 5  # not blank
    assert not np.array_equal(frames[0], frames[-1])
    (again,) = evaluate(run, video=True)
    assert again["video"] == "videos/pendulum-swingup-50-2.mp4"  # the first film is kept


def test_the_film_ends_with_the_first_episode_where_others_are_longer(tiny, scripted, monkeypatch):
    scripted(lambda seed: Script(4))
    folder = train(tiny(episodic=True, steps=8, eval_freq=1000, mpc=False), show_progress=False)
    lengths = iter((6, 11, 6, 11))  # of the reset before anything is filmed, and of the evaluation
    scripted(lambda seed: Script(next(lengths, 6)))
    pictures = iter(range(100))
    monkeypatch.setattr(ScriptedEnv, "render", lambda self: np.full((16, 16, 3), 2 * next(pictures), np.uint8))
    films = []
    monkeypatch.setattr("tdmpc2.training.evaluate_run.iio.imwrite", lambda path, frames, **_: films.append(frames))
    evaluate(folder, video=True)
    assert films[0].shape == (6, 16, 16, 3)
    assert films[0][:, 0, 0, 0].tolist() == [2, 4, 6, 8, 10, 12]  # picture 0 tried whether there is rendering at all


def test_where_nothing_can_render_the_error_comes_before_the_planning(run, monkeypatch):
    def no_opengl(env: Any) -> None:
        raise UserError("no OpenGL to render with")

    monkeypatch.setattr("tdmpc2.envs.dmcontrol.DMControlEnv.render", no_opengl)
    monkeypatch.setattr("tdmpc2.training.evaluation.Evaluator.evaluate", lambda *_: pytest.fail("planned"))
    before = snapshot(run.path)
    with pytest.raises(UserError, match="no OpenGL"):
        evaluate(run, video=True)
    assert snapshot(run.path) == before


def test_a_folder_that_does_not_exist_is_refused_with_its_nearest_neighbour(run):
    wrong = run.path.with_name("pendulum-swingup-1M-seed2")
    with pytest.raises(UserError, match=rf"run: no folder {wrong}; did you mean {run.path}\?"):
        evaluate_run(EvaluateConfig(run=str(wrong)))
    with pytest.raises(UserError, match=r"run: no folder nowhere/at/all$"):
        evaluate_run(EvaluateConfig(run="nowhere/at/all"))


def test_a_run_without_a_checkpoint_and_a_folder_that_is_no_run_are_refused(tmp_path):
    config = Config(**TINY, results_dir=str(tmp_path))
    folder = RunFolder.of(config)
    folder.claim(config)
    folder.release()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        evaluate(folder)
    with pytest.raises(UserError, match=r"not a run's folder \(no config.yaml\)"):
        evaluate(RunFolder(tmp_path))


def test_a_file_that_is_no_runs_checkpoint_is_refused(run):
    shutil.copy(run.eval_csv, run.checkpoint)
    with pytest.raises(UserError, match=r"latest\.pt: not a checkpoint, or a damaged"):
        evaluate(run)
    checkpoints.write({"steps": 3}, run.checkpoint)
    with pytest.raises(UserError, match=r"latest\.pt: not a run's checkpoint"):
        evaluate(run)


def test_a_full_disk_is_one_clear_error(run, monkeypatch):
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tdmpc2.training.logs.CsvLog.write", no_space)
    with pytest.raises(UserError, match="disk full while writing the evaluation"):
        evaluate(run)
