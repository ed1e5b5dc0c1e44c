"""The command `tdmpc2 gallery`: which agents, how tiles are laid out, and what the picture and film show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from tiny_runs import TINY, shortened_tasks

import tdmpc2.tasks
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.cli import main
from tdmpc2.config import Config, parse_settings
from tdmpc2.envs import make
from tdmpc2.envs.dmcontrol import DMControlEnv
from tdmpc2.errors import UserError
from tdmpc2.gallery_command import GalleryConfig
from tdmpc2.spec import AgentSpec
from tdmpc2.training import gallery
from tdmpc2.training.evaluation import EpisodeScore
from tdmpc2.training.films import Camera, Reel
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.gallery import find_runs, make_gallery, outcome
from tdmpc2.training.gallery_picture import (
    FPS,
    GAP,
    PAPER,
    Layout,
    Tile,
    choose_layout,
    count_frames,
    film,
    still,
    wanted_steps,
)
from tdmpc2.training.run import train

TASKS = ("pendulum-spin", "cup-spin", "mw-reach")


@pytest.fixture
def agent_file(tmp_path: Path, short_episodes: int) -> Path:
    """A checkpoint of an agent of three tasks, one of which needs another simulator."""
    agent = TDMPC2(Config(**TINY | {"task": ",".join(TASKS)}), AgentSpec.from_tasks(TASKS))
    agent.updates = 70
    agent.save(tmp_path / "agent.pt")
    return tmp_path / "agent.pt"


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """DMControl's pictures: all of one grey, ten times the agent step; a cup's is red."""

    def picture(env: DMControlEnv) -> np.ndarray[Any, Any]:
        step = 20 if env._agent_step is None else env._agent_step
        colour = (200, 0, 0) if env.task.name == "cup-spin" else (10 * step,) * 3
        return np.full((384, 384, 3), colour, np.uint8)

    monkeypatch.setattr(DMControlEnv, "render", picture)


@pytest.fixture
def no_metaworld(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(make.BACKENDS, "metaworld", make.Backend("tdmpc2.envs.metaworld", "no_such_simulator"))


def command(*words: str) -> int:
    return main(["gallery", *words, "threads=1", "device=cpu", "--quiet"])


# --- layout


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (8, 4, 2), (30, 8, 4), (80, 10, 8)]
)
def test_grids_come_near_a_screens_shape_without_many_empty_places(count, columns, rows):
    layout = choose_layout(count)
    assert (layout.columns, layout.rows) == (columns, rows)


def test_every_number_of_tiles_fits_is_not_enlarged_and_is_even_for_the_encoder():
    for count in range(1, 121):
        layout = choose_layout(count)
        width, height = layout.size
        assert layout.columns * layout.rows >= count
        assert width <= 1920
        assert width % 2 == height % 2 == 0
        assert 180 <= layout.picture <= 384
        left, top = layout.corner(count - 1)
        assert left + layout.picture + GAP <= width
        assert top + layout.picture + layout.label + GAP <= height


def test_columns_that_are_asked_for_are_taken_up_to_the_number_of_tiles():
    assert (choose_layout(6, columns=6).columns, choose_layout(6, columns=6).rows) == (6, 1)
    assert choose_layout(3, columns=9).columns == 3


# --- time


def test_steps_are_filmed_that_a_frame_of_the_gallery_shows():
    # 25 frames a second: of 50 steps a second every other one is seen, of 10 each one, of 40 all but 4, 7, 12, ...
    assert [step for step in range(8) if wanted_steps(50, step)] == [0, 2, 4, 6]
    assert [step for step in range(8) if wanted_steps(10, step)] == list(range(8))
    assert [step for step in range(8) if wanted_steps(40, step)] == [int(k * 1.6) for k in range(5)]
    assert [step for step in range(20) if wanted_steps(50, step, seconds=0.12)] == [0, 2, 4]


def test_worlds_of_different_rates_run_side_by_side_and_hold_their_last_frame(tmp_path):
    layout = Layout(columns=2, rows=1, picture=8, label=0)
    tiles = [Tile((), 0, 50, 4), Tile((), 1, 25, 4)]
    with Reel(tmp_path) as reel:
        for number, tile in enumerate(tiles):
            for step in range(tile.length):
                if wanted_steps(tile.rate, step):
                    reel.add(number, step, np.full((8, 8, 3), 100 * number + step, np.uint8))
        assert count_frames(tiles) == 4  # the second world's 4 steps last 4/25 s
        assert count_frames(tiles, seconds=2 / FPS) == 2
        seen = [(frame[GAP, GAP, 0], frame[GAP, 2 * GAP + 8, 0]) for frame in film(tiles, reel, layout, 4)]
        assert seen == [(0, 100), (2, 101), (2, 102), (2, 103)]
        assert still(tiles, reel, layout)[GAP, 2 * GAP + 8, 0] == 102
        assert tuple(still(tiles, reel, layout)[0, 0]) == PAPER


def test_the_reel_is_exact_and_leaves_nothing_on_the_disk(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 10, 3), dtype=np.uint8)
    with Reel(tmp_path) as reel:
        for step, frame in enumerate(frames):
            reel.add(step % 2, 3 * step, frame)
        assert list(reel.steps(0)) == [0, 6, 12]
        np.testing.assert_array_equal(list(reel.frames(1)), frames[1::2])
        assert [reel.index(0, step) for step in (0, 5, 6, 99)] == [0, 0, 1, 2]
    assert list(tmp_path.iterdir()) == []


def test_a_camera_stops_at_the_episodes_end_though_the_environment_is_stepped_on(painted, short_episodes):
    env = make.make_env("pendulum-spin")
    kept: list[int] = []
    camera = Camera(env, lambda step, frame: kept.append(int(frame[0, 0, 0])), lambda step: step != 1)
    for _ in range(2):
        camera.reset()
        for _ in range(20):
            camera.step(np.zeros(1))
    assert kept == [10 * step for step in range(20) if step != 1]
    env.close()


# --- words


def test_an_episodes_outcome_is_told_by_the_tasks_metric():
    assert outcome(EpisodeScore("walker-walk", 1234.4, float("nan"), 500)) == "return 1,234"
    assert outcome(EpisodeScore("walker-walk", 3.14, float("nan"), 500)) == "return 3.1"
    assert outcome(EpisodeScore("mw-reach", 800.0, 1.0, 100)) == "success, return 800"
    assert outcome(EpisodeScore("mw-reach", 20.0, 0.0, 100)) == "no success, return 20.0"


# --- the whole


def test_an_agents_tasks_become_a_picture_and_a_film_and_the_others_are_named(
    agent_file, painted, no_metaworld, capsys, tmp_path
):
    assert command(f"checkpoint={agent_file}", f"output={tmp_path / 'all.mp4'}") == 0
    said = capsys.readouterr()
    assert "not shown: mw-reach: " in said.err
    assert "`make setup` installs it" in said.err
    assert f"{tmp_path / 'all.png'}, {tmp_path / 'all.mp4'}: written (2 episodes, 0.8 s)" in said.out
    picture = iio.imread(tmp_path / "all.png")
    layout = choose_layout(2)
    assert picture.shape == (layout.size[1], layout.size[0], 3)
    (left, top), (right, _) = layout.corner(0), layout.corner(1)
    assert tuple(picture[top + 5, left + 5]) == (100, 100, 100)  # the middle of 20 steps: 10 times step 10
    assert tuple(picture[top + 5, right + 5]) == (200, 0, 0)
    below = picture[top + layout.picture : -GAP]
    assert below.min() < 60  # names are written there
    assert len(iio.imread(tmp_path / "all.mp4")) == 20  # both worlds have 25 steps a second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.pt", "all.mp4", "all.png"]


def test_a_gallery_of_many_tasks_plays_them_a_few_at_a_time(painted, short_episodes, monkeypatch, tmp_path):
    there: list[int] = []
    played: list[list[str]] = []

    class Counted(gallery.FilmedEvaluator):
        def __init__(self, tasks: Any, *rest: Any) -> None:
            super().__init__(tasks, *rest)
            played.append(list(tasks))
            there.append(1)

        def close(self) -> None:
            super().close()
            there.pop()

        def evaluate(self, *arguments: Any, **options: Any) -> Any:
            assert len(there) == 1
            return super().evaluate(*arguments, **options)

    monkeypatch.setattr(gallery, "FilmedEvaluator", Counted)
    monkeypatch.setattr(gallery, "MOST_AT_ONCE", 2)
    tasks = ["pendulum-spin", "cup-spin", "pendulum-swingup", "cup-catch", "walker-walk"]
    made = make_gallery([], tmp_path / "many", tasks=",".join(tasks), show_progress=False)
    assert played == [tasks[:2], tasks[2:4], tasks[4:]]
    assert not there
    assert made.tasks == tuple(tasks)
    picture = iio.imread(made.picture)
    assert (picture == (200, 0, 0)).all(-1).any()  # the cup's tiles are there


def test_an_existing_file_is_refused_before_anything_is_loaded(agent_file, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("tdmpc2.training.gallery.read_agent", lambda *_: pytest.fail("loaded"))
    (tmp_path / "all.png").write_text("mine")
    assert command(f"checkpoint={agent_file}", f"output={tmp_path / 'all'}") == 2
    assert "all.png exists already; name another file with output=" in capsys.readouterr().err
    assert (tmp_path / "all.png").read_text() == "mine"
    assert command(f"checkpoint={agent_file}", f"output={tmp_path / 'no' / 'all'}") == 2
    assert "is not a folder that can be written to" in capsys.readouterr().err


def test_where_nothing_can_render_no_episode_is_played(agent_file, no_metaworld, monkeypatch, tmp_path):
    def no_opengl(env: Any) -> None:
        raise UserError("no OpenGL to render with")

    monkeypatch.setattr(DMControlEnv, "render", no_opengl)
    monkeypatch.setattr("tdmpc2.training.evaluation.Evaluator.evaluate", lambda *_: pytest.fail("planned"))
    with pytest.raises(UserError, match=r"nothing to show: .*pendulum-spin: no OpenGL to render with"):
        make_gallery([str(agent_file)], tmp_path / "all", device="cpu", show_progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.pt"]


def test_a_task_that_cannot_be_rendered_is_left_out_and_the_others_are_shown(
    agent_file, painted, no_metaworld, monkeypatch, tmp_path
):
    paint = DMControlEnv.render

    def render(env: DMControlEnv) -> Any:
        if env.task.name == "pendulum-spin":
            raise UserError("no Vulkan device")
        return paint(env)

    monkeypatch.setattr(DMControlEnv, "render", render)
    made = make_gallery([str(agent_file)], tmp_path / "all", device="cpu", show_progress=False, mpc=False)
    assert made.tasks == ("cup-spin",)
    assert made.left_out["pendulum-spin"] == "no Vulkan device"
    assert tuple(iio.imread(made.picture)[GAP, GAP]) == (200, 0, 0)


def test_a_broken_off_film_leaves_no_file(agent_file, painted, no_metaworld, monkeypatch, tmp_path):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tdmpc2.training.gallery_picture._place", stop)
    with pytest.raises(KeyboardInterrupt):
        make_gallery([str(agent_file)], tmp_path / "all", device="cpu", show_progress=False, mpc=False)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.pt"]


def test_tasks_under_random_actions_need_no_agent(painted, short_episodes, tmp_path):
    assert command("task=cup-spin,pendulum-spin", "only=pendulum-spin", f"output={tmp_path / 'all'}") == 0
    assert iio.imread(tmp_path / "all.png").shape[1] == 384 + 2 * GAP


# --- which runs


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder with a finished run, the same of another seed, one of another task, and an unfinished one."""
    results = str(tmp_path_factory.mktemp("results"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tdmpc2.tasks, "TASKS", shortened_tasks())
        short = {**TINY, "results_dir": results, "exp_name": "mine", "seed_steps": 20, "steps": 21}
        for changes in ({"seed": 2}, {"seed": 1}, {"task": "pendulum-spin"}):
            train(Config(**short | {"eval_freq": 1000, "eval_episodes": 1} | changes), show_progress=False)
        unfinished = Config(**short | {"task": "cup-spin"})
        folder = RunFolder.of(unfinished)
        folder.claim(unfinished)
        folder.release()
    return Path(results) / "mine"


def test_a_sweep_stands_for_its_finished_runs_one_of_each_kind(sweep):
    runs, passed_over = find_runs(str(sweep))
    assert [run.name for run in runs] == ["pendulum-spin-1M-seed1", "pendulum-swingup-1M-seed1"]
    assert passed_over == [
        "cup-spin-1M-seed1: not begun",
        "pendulum-swingup-1M-seed2: differs from pendulum-swingup-1M-seed1 in its seed alone",
    ]
    named = f"{sweep}/runs/pendulum-swingup-1M-seed2,{sweep}"
    assert [run.name[-5:] for run in find_runs(named)[0]] == ["seed2", "seed1", "seed1"]
    with pytest.raises(UserError, match="has no finished run yet"):
        find_runs(str(_empty_sweep(sweep)))
    with pytest.raises(UserError, match=r"no folder .*; did you mean .*mine"):
        find_runs(f"{sweep}e")


def _empty_sweep(sweep: Path) -> Path:
    empty = sweep.parent / "empty"
    (empty / "runs").mkdir(parents=True)
    return empty


def test_a_sweeps_gallery_lies_in_its_folder_and_says_who_acts(sweep, short_episodes, painted, monkeypatch):
    drawn: list[Any] = []
    original = still

    def watch(tiles: Any, *rest: Any) -> Any:
        drawn.extend(tile.lines for tile in tiles)
        return original(tiles, *rest)

    monkeypatch.setattr("tdmpc2.training.gallery_picture.still", watch)
    assert command(f"run={sweep}", "seconds=0.2") == 0
    assert [lines[0] for lines in drawn] == ["pendulum-spin", "pendulum-swingup"]
    assert all(len(lines) == 2 for lines in drawn)  # agents of one kind: nothing to tell apart
    assert len(iio.imread(sweep / "gallery.mp4")) == 5
    drawn.clear()
    other = f"{sweep}/runs/pendulum-swingup-1M-seed2"
    assert command(f"run={sweep},{other}", f"output={sweep}/two.png", "seconds=0.1", "only=pendulum-swingup") == 0
    assert [(lines[0], lines[2]) for lines in drawn] == [
        ("pendulum-swingup", "1M, seed 1"),
        ("pendulum-swingup", "1M, seed 2"),
    ]
    with pytest.raises(UserError, match="nothing to show: none of these agents knows cup-catch"):
        make_gallery(named_runs(sweep), sweep / "none", only="cup-catch", device="cpu", show_progress=False)


def test_more_tiles_than_can_be_seen_are_refused_before_any_is_played(sweep, monkeypatch):
    monkeypatch.setattr("tdmpc2.training.gallery.MOST_TILES", 1)
    monkeypatch.setattr("tdmpc2.training.gallery.read_agent", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match="2 episodes to show, more than 1; choose tasks with only="):
        make_gallery(named_runs(sweep), sweep / "many", device="cpu", show_progress=False)


def named_runs(sweep: Path) -> list[str]:
    return [str(run) for run in find_runs(str(sweep))[0]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run: give run=FOLDER, checkpoint=FILE, or task=TASKS"),
        (["run=a", "checkpoint=b"], "run: give run=FOLDER"),
        (["run=a", "task=mt30"], "run: give run=FOLDER"),
        (["checkpoint=a.pt"], "output: needed without run="),
        (["task=mt3O", "output=a"], "task: unknown task 'mt3O'; did you mean 'mt30'"),
        (["run=a", "columns=40"], "columns: input should be less than or equal to 12"),
        (["run=a", "seconds=0"], "seconds: input should be greater than 0"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        parse_settings(GalleryConfig, words)
