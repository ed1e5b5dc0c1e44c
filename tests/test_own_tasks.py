"""People's own tasks: how they are registered, found, refused and recorded, and what the settings make of them."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from tdmpc2 import own_tasks, tasks
from tdmpc2.config import Config, parse_settings
from tdmpc2.errors import UserError
from tdmpc2.own_tasks import enter_record, load_tasks_file, register_task
from tdmpc2.sweeps.declaration import load_declaration
from tdmpc2.tasks import TASKS, expand_tasks, get_task
from tdmpc2.training.folder import RunFolder

FILE = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box

from tdmpc2.own_tasks import register_task


class Line(gymnasium.Env):
    observation_space = Box(-np.inf, np.inf, (3,))
    action_space = Box(-2.0, 4.0, (1,))

    def reset(self, seed=None, options=None):
        return np.zeros(3), {}

    def step(self, action):
        return np.zeros(3), 1.0, False, False, {"success": True}


def make(seed):
    return Line()


register_task("line-reach", make, metric="success", episode_length=7, action_repeat=3, objective="reach")
register_task("line-far", make, score_range=(-20, 30), episode_length=5)
"""


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Own tasks of one test are unknown to the next."""
    monkeypatch.setattr(own_tasks, "_registered", {})
    monkeypatch.setattr(own_tasks, "_loaded_files", set())
    before = set(TASKS)
    yield
    for name in set(TASKS) - before:
        del tasks._tasks[name]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_tasks.py"
    path.write_text(FILE)
    return path


class Spaces(gymnasium.Env):
    def __init__(self, observation: gymnasium.Space, action: gymnasium.Space) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        return self.observation_space.sample(), {}

    def step(self, action):  # type: ignore[no-untyped-def]
        return self.observation_space.sample(), 0.0, False, False, {"distance": 1.0}


VECTOR = Box(-1.0, 1.0, (2,))


def test_a_gymnasium_id_is_a_task_with_the_dims_of_its_environment() -> None:
    task = get_task("gym:InvertedPendulum-v5")  # a cart's and a pole's positions and velocities; one force
    assert (task.obs_dim, task.action_dim, task.action_repeat, task.episode_length) == (4, 1, 1, 1000)
    assert (task.domain, task.metric, task.score_range) == ("own", "return", None)
    assert math.isnan(task.score(500.0))
    assert expand_tasks("walker-walk,gym:InvertedPendulum-v5") == ("walker-walk", "gym:InvertedPendulum-v5")


def test_an_unknown_gymnasium_id_names_the_nearest_registered_one() -> None:
    with pytest.raises(UserError, match=r"did you mean gym:Walker2d-v5\?"):
        get_task("gym:Wolker2d-v5")


def test_a_missing_extra_package_is_not_taken_for_an_unknown_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(seed: int) -> gymnasium.Env:
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed, run `pip install gymnasium[box2d]`")

    register_task("lander", lacking)
    with pytest.raises(UserError, match=r"needs a package that is not installed: .*gymnasium\[box2d\]"):
        get_task("lander")


@pytest.mark.parametrize(
    ("observation", "action", "said"),
    [
        (Discrete(4), VECTOR, "observation: its space is Discrete"),
        (Dict({"joints": VECTOR}), VECTOR, "observation: its space is Dict, .*FlattenObservation"),
        (Box(0, 255, (8, 8, 3), np.uint8), VECTOR, r"observation: its space has the shape \(8, 8, 3\)"),
        (VECTOR, Discrete(4), "action: its space is Discrete, .*MPPI"),
        (VECTOR, Box(-np.inf, np.inf, (2,)), "action: .* has no bounds"),
    ],
)
def test_spaces_that_the_agent_cannot_use_are_refused_with_the_reason(
    observation: gymnasium.Space,
    action: gymnasium.Space,
    said: str,
) -> None:
    register_task("odd", lambda seed: Spaces(observation, action), episode_length=3)
    with pytest.raises(UserError, match=said):
        get_task("odd")


def test_a_task_without_a_time_limit_says_how_to_give_one() -> None:
    register_task("endless", lambda seed: Spaces(VECTOR, VECTOR))
    with pytest.raises(UserError, match=r"no time limit .*episode_length=STEPS"):
        get_task("endless")


def test_a_task_scored_by_success_must_tell_it() -> None:
    register_task("silent", lambda seed: Spaces(VECTOR, VECTOR), metric="success", episode_length=3)
    with pytest.raises(UserError, match=r"neither success nor is_success \(distance\)"):
        get_task("silent")


def test_a_file_registers_tasks_with_metric_range_and_labels(file: Path) -> None:
    load_tasks_file(file)
    reach, far = get_task("line-reach"), get_task("line-far")
    assert (reach.obs_dim, reach.action_dim, reach.episode_length, reach.action_repeat) == (3, 1, 7, 3)
    assert (reach.embodiment, reach.objective) == ("line-reach", "reach")
    assert [reach.score(value) for value in (0.0, 0.5, 1.0)] == [0.0, 50.0, 100.0]
    assert [far.score(value) for value in (-20.0, 5.0, 30.0, 40.0)] == [0.0, 50.0, 100.0, 120.0]
    assert far.score_scale == 2.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('metric="sucess"', "line 3: odd: metric: unknown metric 'sucess'; did you mean 'success'"),
        ("score_range=(5, 5)", "line 3: odd: score_range: needs low < high"),
        ("score_range=3", "line 3: odd: score_range: 3 is not a pair"),
        ("action_repeat=0", "line 3: odd: action_repeat: 0 is not a whole number"),
        ("episode_length=2.5", "line 3: odd: episode_length: 2.5 is not a whole number"),
        ("length=3", "line 3: TypeError: .*'length'"),
    ],
)
def test_errors_name_the_file_the_line_and_the_field(tmp_path: Path, wrong: str, said: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(f'from tdmpc2.own_tasks import register_task\n\nregister_task("odd", "Pendulum-v1", {wrong})\n')
    with pytest.raises(UserError, match=f"broken.py: {said}"):
        load_tasks_file(path)
    assert own_tasks.registered_names() == ()


def test_names_of_the_registry_and_of_other_files_are_taken(tmp_path: Path, file: Path) -> None:
    for name in ("walker-walk", "mt30"):
        with pytest.raises(UserError, match="name: taken by a task or task set of the registry"):
            register_task(name, "Pendulum-v1")
    with pytest.raises(UserError, match="name: letters, digits"):
        register_task("a,b", "Pendulum-v1")
    load_tasks_file(file)
    other = tmp_path / "other.py"
    other.write_text(FILE)
    with pytest.raises(UserError, match=r"other.py: line \d+: line-reach: name: registered already by .*my_tasks.py"):
        load_tasks_file(other)


def test_a_file_that_is_not_there_or_registers_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.py: no such file"):
        parse_settings(Config, ["task=line-reach", f"tasks_file={tmp_path / 'nowhere.py'}"])
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match=r"empty.py: registers no task"):
        load_tasks_file(tmp_path / "empty.py")


def test_an_unknown_name_is_compared_with_own_ones_too(file: Path) -> None:
    load_tasks_file(file)
    with pytest.raises(UserError, match="did you mean 'line-reach'"):
        get_task("line-rech")


def test_run_names_are_legal_names_of_folders() -> None:
    assert Config(task="gym:InvertedPendulum-v5", model_size=1).run_name == "gym-InvertedPendulum-v5-1M-seed1"


def test_settings_keep_where_the_file_is_and_it_is_no_part_of_the_runs_identity(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_settings(Config, ["task=line-reach", "tasks_file=my_tasks.py"])
    assert config.tasks_file == str(file.resolve())
    moved = Config(task="line-reach", tasks_file="elsewhere.py")
    assert moved.digest() == config.digest()
    assert config.agent_steps == 1_000_000 // 3  # the default budget counts environment steps


def test_another_process_reads_a_runs_settings_without_running_the_file(file: Path, tmp_path: Path) -> None:
    words = ["task=line-far", f"tasks_file={file}", f"results_dir={tmp_path}"]
    config = parse_settings(Config, words)
    folder = RunFolder.of(config)
    folder.claim(config)
    folder.release()
    file.write_text("raise SystemExit('the file was run')")
    code = (
        "from tdmpc2.training.folder import RunFolder; from tdmpc2.tasks import get_task; "
        f"config = RunFolder({str(folder.path)!r}).read_config(); print(get_task(config.task).score(5.0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("50.0", 0), done.stderr


def test_a_run_is_not_resumed_with_another_definition_of_its_task(file: Path, tmp_path: Path) -> None:
    config = parse_settings(Config, ["task=line-far", f"tasks_file={file}", f"results_dir={tmp_path}"])
    folder = RunFolder.of(config)
    folder.claim(config)
    folder.release()
    folder.claim(config)  # the same again is a resumption
    folder.release()
    told = json.loads(folder.own_tasks.read_text())
    folder.own_tasks.write_text(json.dumps([told[0] | {"score_range": [0, 30]}]))
    with pytest.raises(UserError, match=r"task line-far: score_range=\(0.0, 30.0\) there, .*\(-20.0, 30.0\) now"):
        folder.claim(config)


def test_a_record_cannot_redefine_the_registry(tmp_path: Path) -> None:
    fields = {**vars(TASKS["walker-walk"]), "domain": "own"}
    (tmp_path / "tasks.json").write_text(json.dumps([fields]))
    with pytest.raises(UserError, match=r"tasks.json: walker-walk is not a task of one's own"):
        enter_record(tmp_path / "tasks.json")
    (tmp_path / "tasks.json").write_text("[{}]")
    with pytest.raises(UserError, match=r"tasks.json: cannot be read"):
        enter_record(tmp_path / "tasks.json")


def test_a_sweep_declares_the_file_among_its_overrides(file: Path, tmp_path: Path) -> None:
    declaration = tmp_path / "mine.yaml"
    declaration.write_text(f"tasks: [line-reach]\nsizes: [1]\nseeds: [1]\noverrides: {{tasks_file: {file}}}\n")
    assert load_declaration(declaration).groups[0].tasks == ("line-reach",)


def test_an_installed_package_registers_tasks_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name, value = "theirs", "their_package.tasks:register"

        def load(self) -> object:
            def register() -> None:
                register_task("their-task", "Pendulum-v1", episode_length=200)

            return register

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Point()] if group == "tdmpc2.tasks" else [])
    own_tasks._load_entry_points.cache_clear()
    try:
        assert get_task("their-task").obs_dim == 3  # cosine and sine of the angle, and its velocity
    finally:
        own_tasks._load_entry_points.cache_clear()


def test_training_loads_the_file_where_the_settings_alone_have_arrived(file: Path, tmp_path: Path) -> None:
    words = ["task=line-far", f"tasks_file={file}", f"results_dir={tmp_path}", "steps=4", "num_envs=9", "device=cpu"]
    settings = tmp_path / "settings"
    settings.write_bytes(pickle.dumps(parse_settings(Config, words)))
    code = (
        "import pickle, sys; from pathlib import Path; from tdmpc2.own_tasks import registered_names\n"
        "from tdmpc2.training.run import train\n"
        "config = pickle.loads(Path(sys.argv[1]).read_bytes()); assert registered_names() == ()\n"
        "try: train(config, show_progress=False)\n"
        "except Exception as error: print(error, registered_names())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(settings)], capture_output=True, text=True, check=False)
    # The budget is refused only after the task is known.
    assert "fewer than num_envs=9 ('line-reach', 'line-far')" in done.stdout, done.stderr


def test_reports_read_own_tasks_from_folders_and_tell_of_those_without_a_range(tmp_path: Path) -> None:
    from analysis.results import load_sweep

    ranged = dataclasses.replace(
        TASKS["walker-walk"], name="line-far", domain="own", action_repeat=1, score_range=(-20.0, 30.0)
    )
    for task in (ranged, dataclasses.replace(ranged, name="gym:Line-v1", score_range=None)):
        run = tmp_path / "runs" / f"{tasks.file_name(task.name)}-1M-seed1"
        run.mkdir(parents=True)
        (run / "tasks.json").write_text(json.dumps([dataclasses.asdict(task)]))
        (run / "config.yaml").write_text(f"task: {task.name}\nmodel_size: 1\nseed: 1\ntasks_file: /gone/my_tasks.py\n")
        (run / "eval.csv").write_text(f"env_steps,updates,task,episodes,return,success\n10,10,{task.name},2,5.0,\n")
    strange = tmp_path / "runs" / "unknown-task-1M-seed1"
    strange.mkdir()
    (strange / "config.yaml").write_text("task: unknown-task\nmodel_size: 1\nseed: 1\n")

    sweep = load_sweep(tmp_path)

    rows = sweep.table.set_index("task")
    assert rows["score"].to_dict() == pytest.approx({"line-far": 50.0, "gym:Line-v1": math.nan}, nan_ok=True)
    assert rows["value"].to_dict() == {"line-far": 5.0, "gym:Line-v1": 5.0}
    assert rows["suite"].to_dict() == {"line-far": "own", "gym:Line-v1": "own"}
    assert rows["domain"].to_dict() == {"line-far": "line", "gym:Line-v1": "Line"}
    assert any("no normalised score of gym:Line-v1" in note for note in sweep.notes)
    reasons = sweep.runs.set_index("run")["reason"]
    assert "task" in reasons["unknown-task-1M-seed1"]


def test_a_task_that_two_runs_define_otherwise_is_reported(tmp_path: Path) -> None:
    from analysis.results import load_sweep

    task = dataclasses.replace(TASKS["walker-walk"], name="line-far", domain="own", score_range=(-20.0, 30.0))
    for seed, top in ((1, 30.0), (2, 60.0)):
        run = tmp_path / "runs" / f"line-far-1M-seed{seed}"
        run.mkdir(parents=True)
        told = dataclasses.asdict(dataclasses.replace(task, score_range=(-20.0, top)))
        (run / "tasks.json").write_text(json.dumps([told]))
    notes = " ".join(load_sweep(tmp_path).notes)
    assert "line-far-1M-seed2: tasks.json: line-far is another task of that name elsewhere (score_range=" in notes
