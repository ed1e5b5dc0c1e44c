"""`tdmpc2 evaluate`: the agent of a run or checkpoint, its scores on its tasks and its film."""

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
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.reference import write_reference
from tdmpc2.cli import main
from tdmpc2.config import Config, EvaluateConfig
from tdmpc2.envs import make
from tdmpc2.envs.dmcontrol import DMControlEnv
from tdmpc2.envs.rendering import import_without_gl, switch_rendering_on
from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec
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


def test_a_table_of_an_older_version_gets_the_missing_columns_before_rows_are_added(run, rows):
    table = run.path / "evaluations.csv"
    table.write_text("env_steps,task,episodes,return\n30,pendulum-swingup,4,12.5\n")
    evaluate(run, mpc=False)
    older, newer = rows(table)
    assert (older["env_steps"], older["return"], older["mpc"], older["seed"]) == ("30", "12.5", "", "")
    assert (newer["env_steps"], newer["episodes"], newer["mpc"]) == ("50", "2", "False")


def test_a_table_with_unknown_columns_is_refused_before_any_planning(run, monkeypatch):
    monkeypatch.setattr("tdmpc2.training.evaluation.Evaluator.evaluate", lambda *_: pytest.fail("planned"))
    table = run.path / "evaluations.csv"
    table.write_text("task,reward\npendulum-swingup,3\n")
    with pytest.raises(UserError, match=r"evaluations\.csv: column reward is not one of this version"):
        evaluate(run)
    assert table.read_text() == "task,reward\npendulum-swingup,3\n"


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
    monkeypatch.setattr("tdmpc2.training.evaluate_run.write_film", lambda path, frames, fps: films.append(list(frames)))
    evaluate(folder, video=True)
    assert [frame.shape for frame in films[0]] == [(16, 16, 3)] * 6
    # picture 0 tried whether there is rendering at all
    assert [int(frame[0, 0, 0]) for frame in films[0]] == [2, 4, 6, 8, 10, 12]


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


# --- checkpoint files, and agents of several tasks

MIXED = ("pendulum-spin", "cup-spin")  # observations of 3 and 8, actions of 1 and 2
WITH_ARM = (*MIXED, "mw-reach")


def multitask(tasks: tuple[str, ...]) -> TDMPC2:
    agent = TDMPC2(Config(**TINY | {"task": ",".join(tasks)}), AgentSpec.from_tasks(tasks))
    agent.updates = 70
    return agent


def evaluate_file(path: Path, **changes: Any) -> list[dict[str, Any]]:
    settings = {"checkpoint": str(path), "episodes": 2, "threads": 1, "device": "cpu", **changes}
    return evaluate_run(EvaluateConfig(**settings), show_progress=False)


@pytest.fixture
def files(tmp_path: Path, short_episodes: int) -> Path:
    """A folder with an agent of two tasks in our format and the reference's, and one with a third task."""
    multitask(MIXED).save(tmp_path / "ours.pt")
    write_reference(multitask(MIXED), tmp_path / "theirs.pt")
    multitask(WITH_ARM).save(tmp_path / "arm.pt")
    return tmp_path


def test_a_runs_checkpoint_file_scores_as_the_run_and_leaves_its_folder_as_it_is(run, rows):
    before = snapshot(run.path)
    (row,) = evaluate_file(run.checkpoint, seed=1)
    assert snapshot(run.path) == before
    assert (row["env_steps"], row["updates"]) == (50, 25)
    assert f"{row['return']:.7g}" == rows(run.eval_csv)[-1]["return"]


def test_all_tasks_have_a_row_and_what_a_file_does_not_tell_stays_empty(files, rows):
    ours = evaluate_file(files / "ours.pt", output=str(files / "ours.csv"))
    theirs = {"task": ",".join(MIXED), "output": str(files / "theirs.csv"), "model_size": 1, "mpc": False}
    evaluate_file(files / "theirs.pt", **theirs)
    assert [row["task"] for row in ours] == list(MIXED)
    assert all((row["episodes"], row["episode_length"]) == (2, 20) for row in ours)
    assert ours[0]["return"] != ours[1]["return"]
    clock = ("task", "env_steps", "agent_steps", "updates")
    for name, updates in (("ours.csv", "70"), ("theirs.csv", "")):
        assert [[row[column] for column in clock] for row in rows(files / name)] == [
            [task, "", "", updates] for task in MIXED
        ]


def test_both_formats_act_alike_from_the_same_start(files):
    agent = multitask(MIXED)
    agent.updates = 0  # as for the other file, which tells none: the evaluation's starts follow from it
    agent.save(files / "ours.pt")
    ours = evaluate_file(files / "ours.pt", mpc=False)
    theirs = evaluate_file(files / "theirs.pt", task=",".join(MIXED), mpc=False)
    # Up to rounding: the files' num_samples differ, and with it how many observations are computed at a time.
    assert [row["return"] for row in theirs] == pytest.approx([row["return"] for row in ours], rel=1e-5)


def test_one_of_an_agents_tasks_is_evaluated_alone(files, capsys):
    words = [
        f"checkpoint={files / 'theirs.pt'}",
        f"task={','.join(MIXED)}",
        "only=cup-spin",
        "episodes=1",
        "device=cpu",
    ]
    assert main(["evaluate", *words, "mpc=false", "threads=1", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "cup-spin" in shown
    assert "pendulum-spin" not in shown
    assert "None" not in shown


def test_an_offline_runs_scores_are_added_to_its_folder(files, rows):
    unused = {"buffer_size": Config(task="mt30").buffer_size}
    config = Config(**TINY | unused | {"task": ",".join(MIXED)}, data="mine", results_dir=str(files))
    agent = TDMPC2(config, AgentSpec.from_tasks(MIXED))
    folder = RunFolder.of(config)
    folder.claim(config)
    folder.release()
    checkpoints.write({"agent": agent.state_dict(), "steps": 0}, folder.checkpoint)
    for only in (None, "pendulum-spin"):
        evaluate(folder, only=only, mpc=False)
    found = rows(folder.path / "evaluations.csv")
    assert [row["task"] for row in found] == [*MIXED, "pendulum-spin"]
    assert {(row["env_steps"], row["updates"]) for row in found} == {("", "0")}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ours.pt", {"only": "cup-catch"}, "only: .*not trained on cup-catch; the nearest that it has is cup-spin"),
        ("ours.pt", {"model_size": 5}, "model_size: .*ours.pt holds an agent of size 1, not 5"),
        ("arm.pt", {}, r"mw-reach cannot be run here: .*; evaluate the others with only=pendulum-spin,cup-spin"),
        ("arm.pt", {"only": "mw-reach"}, r"only: mw-reach cannot be run here: .* `make setup` installs it$"),
        ("theirs.pt", {}, "does not name its tasks"),
        ("their.pt", {}, r"checkpoint: no file .*; did you mean .*theirs\.pt\?"),
        ("ours.pt", {"output": "ours.pt"}, "output: ours.pt exists already; name another file"),
        ("ours.pt", {"output": "no/folder/a.csv"}, "output: no/folder is not a folder that can be written to"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_any_planning(files, monkeypatch, name, changes, message):
    monkeypatch.chdir(files)
    monkeypatch.setattr("tdmpc2.training.evaluation.Evaluator.evaluate", lambda *_: pytest.fail("planned"))
    monkeypatch.setitem(make.BACKENDS, "metaworld", make.Backend("tdmpc2.envs.metaworld", "no_such_simulator"))
    before = snapshot(files)
    with pytest.raises(UserError, match=message) as error:
        evaluate_file(files / name, **changes)
    assert "\n" not in str(error.value)
    assert snapshot(files) == before


def test_the_tasks_that_can_be_run_are_evaluated_where_they_are_asked_for(files):
    rows = evaluate_file(files / "arm.pt", only="dmcontrol", mpc=False)
    assert {row["task"] for row in rows} == set(MIXED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "run: give run=FOLDER or checkpoint=FILE, one of them"),
        ({"run": "a", "checkpoint": "b"}, "run: give run=FOLDER or checkpoint=FILE, one of them"),
        ({"run": "a", "task": "mt30"}, "task: has no meaning with run="),
        ({"run": "a", "output": "a.csv"}, "output: has no meaning with run="),
        ({"checkpoint": "a", "video": True}, "video: with checkpoint= it needs output=FILE.csv"),
        ({"checkpoint": "a", "task": "mt3O"}, "task: unknown task 'mt3O'; did you mean 'mt30'"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        EvaluateConfig(**settings)


def test_a_checkpoints_film_lies_beside_its_output(files, opengl):
    (row,) = evaluate_file(files / "ours.pt", only="cup-spin", video=True, episodes=1, output=str(files / "a.csv"))
    assert row["video"] == "videos/cup-spin-70.mp4"
    assert iio.imread(files / row["video"]).shape[0] == 20


@pytest.fixture
def flat_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of one colour that the task decides, red for the cup."""

    def render(env: DMControlEnv) -> Any:
        return np.full((64, 64, 3), (200, 0, 0) if env.task.name == "cup-spin" else (0, 0, 200), np.uint8)

    monkeypatch.setattr(DMControlEnv, "render", render)


def test_each_task_of_an_agent_gets_a_film_of_its_own(files, flat_pictures, rows):
    found = evaluate_file(files / "ours.pt", video=True, mpc=False, output=str(files / "a.csv"))
    assert [row["video"] for row in found] == ["videos/pendulum-spin-70.mp4", "videos/cup-spin-70.mp4"]
    assert [row["video"] for row in rows(files / "a.csv")] == [row["video"] for row in found]
    for row, colour in zip(found, ((0, 0, 200), (200, 0, 0)), strict=True):
        frames = iio.imread(files / row["video"])
        assert frames.shape == (20, 64, 64, 3)
        assert np.abs(frames.mean((0, 1, 2)) - colour).max() < 12  # of the task, up to what the encoder changes
    assert {path.name for path in files.iterdir() if path.suffix not in (".pt", ".csv")} == {"videos"}  # no frames left


def test_filming_leaves_the_scores_as_they_are(files, flat_pictures):
    seen = evaluate_file(files / "ours.pt", video=True, mpc=False, output=str(files / "a.csv"))
    unseen = evaluate_file(files / "ours.pt", mpc=False)
    assert [row["return"] for row in seen] == [row["return"] for row in unseen]


def test_tasks_that_cannot_be_rendered_are_evaluated_all_the_same_and_named(files, flat_pictures, monkeypatch, capsys):
    paint = DMControlEnv.render

    def render(env: DMControlEnv) -> Any:
        if env.task.name == "cup-spin":
            raise UserError("no Vulkan device")
        return paint(env)

    monkeypatch.setattr(DMControlEnv, "render", render)
    found = evaluate_file(files / "ours.pt", video=True, mpc=False, episodes=1, output=str(files / "a.csv"))
    assert [row["video"] for row in found] == ["videos/pendulum-spin-70.mp4", ""]
    assert all(np.isfinite(row["return"]) for row in found)
    assert "not filmed: cup-spin: no Vulkan device" in capsys.readouterr().err
