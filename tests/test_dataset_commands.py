"""The command `tdmpc2 dataset`: what it builds, shows and imports, and what it refuses."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tdmpc2 import analysis_process, dataset_commands
from tdmpc2.cli import main
from tdmpc2.config import Config
from tdmpc2.data import chunks
from tdmpc2.data.dataset import Dataset, StoreSource, build
from tdmpc2.data.replay import Replay
from tdmpc2.dataset_commands import CHUNKED_SETS, ImportProgress, text_histogram
from tdmpc2.tasks import TASK_SETS
from tdmpc2.training.folder import RunFolder, Status

DIMS = {"walker-walk": (24, 6), "mw-reach": (39, 4)}


def write_run(task: str, seed: int, episodes: list[list[float]], state: str = "done", size: int = 5) -> RunFolder:
    """A run of results/pair whose replay holds episodes of these rewards."""
    config = Config(task=task, seed=seed, exp_name="pair", model_size=size)
    folder = RunFolder.of(config)
    folder.claim(config)
    folder.release()
    numbers = dict.fromkeys("agent_steps total_agent_steps env_steps total_env_steps updates pid".split(), 0)
    texts = dict.fromkeys("phase message digest version device hardware host".split(), "")
    times = {"seconds": 0.0, "seconds_left": None, "last_return": None, "updated": 0.0}
    folder.write_status(Status(state=state, **numbers, **texts, **times))  # type: ignore[arg-type]
    obs_dim, action_dim = DIMS[task]
    layout = {"obs_shape": (obs_dim,), "obs_dtype": "float32", "action_dim": action_dim, "capacity": 100, "slack": 50}
    with Replay.create(folder.replay, task=task, **layout) as store:
        for rewards in episodes:
            T = len(rewards)
            store.add(
                np.zeros((T + 1, obs_dim), np.float32), np.zeros((T, action_dim)), np.array(rewards), np.zeros(T, bool)
            )
    return folder


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """results/pair in an empty current folder: walker-walk of seeds 1 and 2, mw-reach of seed 1."""
    monkeypatch.chdir(tmp_path)
    write_run("walker-walk", 1, [[1, 2, 3], [10]])
    write_run("walker-walk", 2, [[0], [4]])
    write_run("mw-reach", 1, [[-1, -1], [2, 0.5]])
    return Path("results/pair")


BUILD = "dataset build both --from results/pair".split()


def refused(words, capsys):
    """The message with which a command is refused."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("tdmpc2: ")
    return captured.err.removeprefix("tdmpc2: ").rstrip("\n")


def cells(shown: str, task: str) -> list[str]:
    """The cells of a task's row in a printed table, but for the histogram."""
    (line,) = [line for line in shown.splitlines() if f" {task} " in line]
    return line.split()


def test_build_makes_the_data_set_and_tells_what_to_do_next(sweep, tmp_path, capsys):
    assert main(BUILD) == 0
    folder = tmp_path / "results" / "datasets" / "both"
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: built",
        # 3 + 1, 1 + 1 and 2 + 2 agent steps, each of two environment steps
        "2 tasks, 3 replay stores, 6 episodes, 10 transitions (agent steps; 20 environment steps)",
        "train on it with: tdmpc2 train task=walker-walk,mw-reach data=both",
    ]
    dataset = Dataset.read(folder)
    assert [task.name for task in dataset.tasks] == ["walker-walk", "mw-reach"]
    assert [(record.task, record.seed) for record in dataset.stores] == [
        ("walker-walk", 1),
        ("walker-walk", 2),
        ("mw-reach", 1),
    ]
    assert {record.path.split("/")[2] for record in dataset.stores} == {"pair"}  # named, not copied


def test_build_takes_tasks_in_the_order_given_and_copies_when_asked_to(sweep, tmp_path, capsys):
    words = ["--tasks", "mw-reach,", "walker-walk", "--seeds", "1", "--sizes", "5M", "--copy", "--results", "other"]
    assert main([*BUILD, *words]) == 0
    dataset = Dataset.read("other/datasets/both")
    assert [task.name for task in dataset.tasks] == ["mw-reach", "walker-walk"]
    assert [record.path for record in dataset.stores] == ["stores/000-mw-reach", "stores/001-walker-walk"]
    next_command = "train on it with: tdmpc2 train task=mw-reach,walker-walk data=both results_dir=other"
    assert capsys.readouterr().out.splitlines()[-1] == next_command


def test_build_may_be_given_again_and_another_one_of_the_name_is_refused(sweep, capsys):
    assert main(BUILD) == 0
    assert main(BUILD) == 0
    assert "both: is there already, as asked for\n" in capsys.readouterr().out
    assert "exists already; choose another name" in refused([*BUILD, "--seeds", "1"], capsys)


def test_build_says_when_it_takes_several_sizes_and_what_it_left_out(sweep, capsys):
    write_run("walker-walk", 1, [[1]], size=1)
    config = Config(task="walker-walk,mw-reach", data="both", exp_name="pair")
    RunFolder.of(config).claim(config)
    assert main(BUILD) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "left out (offline, has no replay of its own): walker-walk+mw-reach-5M-seed1",
        "several runs of one task and seed, all are taken (1 case, as of walker-walk seed 1: walker-walk-1M-seed1, "
        "walker-walk-5M-seed1); choose with --sizes or --labels",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "walker-wlak"], "--tasks: unknown task 'walker-wlak'; did you mean 'walker-walk'?"),
        (["--tasks", "walker-run"], "results/pair: no run of task walker-run; nearest is walker-walk"),
        (["--seeds", "one"], "--seeds: 'one' is no whole number"),
        (["--sizes", "5.0"], "--sizes: '5.0' is no whole number"),
        (["--sizes", "1"], "results/pair: no run of size 1 (there are: 5)"),
        (["--from", "results/pear"], "results/pear: no such folder; did you mean results/pair?"),
    ],
)
def test_build_refuses_what_is_not_there_and_makes_nothing(sweep, capsys, words, message):
    assert message in refused([*BUILD, *words], capsys)
    assert not Path("results/datasets").exists()


def test_build_refuses_runs_that_are_under_way_and_planned_ones_that_have_not_begun(sweep, capsys):
    write_run("walker-walk", 3, [[1]], state="running")
    assert "not done: walker-walk-5M-seed3 (running). Finish them" in refused(BUILD, capsys)
    settings = {"model_size": 5, "agent_steps": 4, "env_steps": 8}
    planned = [("walker-walk", 1), ("walker-walk", 4), ("mw-reach", 2), ("walker-walk,mw-reach", 1)]
    runs = [{"name": f"{task}-5M-seed{seed}", "task": task, "seed": seed, **settings} for task, seed in planned]
    (sweep / "plan.json").write_text(json.dumps({"name": "pair", "runs": runs}))
    assert refused(BUILD, capsys).startswith(
        "planned, but not begun: results/pair: walker-walk-5M-seed4, results/pair: mw-reach-5M-seed2. Run them"
    )
    assert main([*BUILD, "--seeds", "1"]) == 0


def test_list_shows_every_data_set_and_why_one_cannot_be_used(sweep, capsys):
    assert main(["dataset", "list"]) == 0
    assert capsys.readouterr().out.startswith("results: no data sets; ")
    assert main(BUILD) == 0
    build("one", [StoreSource(sweep / "runs/mw-reach-5M-seed1/replay", 1, True)], ["mw-reach"], sweep / "datasets")
    Path("results/datasets/broken").mkdir()
    Path("results/datasets/broken/dataset.json").write_text("{")
    capsys.readouterr()
    assert main(["dataset", "list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["both", "2", "3", "6", "10", "results/datasets/both"] in rows
    assert ["one", "1", "1", "2", "4", "results/pair/datasets/one"] in rows
    (broken,) = [row for row in rows if row[0] == "broken"]
    assert broken[1:4] == ["cannot", "be", "used:"]


def test_info_tells_of_each_task_what_the_data_set_holds(sweep, capsys):
    main(BUILD)
    capsys.readouterr()
    assert main("dataset info both --csv tables/both.csv".split()) == 0
    shown = capsys.readouterr().out
    # walker-walk: returns 6 and 10 of seed 1, 0 and 4 of seed 2; mw-reach: -2 and 2.5
    walker = cells(shown, "walker-walk")
    assert walker[:7] == ["0", "walker-walk", "1", "2", "2", "4", "6"]  # id, task, seeds, stores, episodes, steps
    assert walker[9:15] == ["0.0", "3.0", "5.0", "7.0", "10.0", "5.0"]  # after the room on disk and its unit
    reach = cells(shown, "mw-reach")
    assert reach[:6] == ["1", "mw-reach", "1", "1", "2", "4"]
    assert reach[8:14] == ["-2.0", "-0.9", "0.2", "1.4", "2.5", "0.2"]
    assert "2 tasks, 3 replay stores, 6 episodes, 10 transitions (agent steps; 20 environment steps), " in shown
    assert shown.endswith("all 3 replay stores there, and as they were when the data set was built\n")

    with Path("tables/both.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["walker-walk", "mw-reach"]
    assert [rows[0][name] for name in ("id", "domain", "metric", "seeds", "stores")] == [
        "0",
        "dmcontrol",
        "return",
        "1 2",
        "2",
    ]
    assert (int(rows[0]["transitions"]), int(rows[0]["env_steps"]), float(rows[0]["return_q75"])) == (6, 12, 7)


def test_info_of_a_data_set_whose_stores_are_gone_shows_what_its_manifest_says_and_names_them(sweep, capsys):
    main(BUILD)
    (sweep / "runs" / "walker-walk-5M-seed2").rename("elsewhere")
    capsys.readouterr()
    assert main(["dataset", "info", "both"]) == 2
    captured = capsys.readouterr()
    assert cells(captured.out, "walker-walk") == ["0", "walker-walk", "1", "2", "2", "4", "6"]
    assert captured.err.startswith("tdmpc2: 1 of 3 replay stores cannot be used:\n  ")
    assert "the replay store of walker-walk (seed 2) is gone" in captured.err


def test_check_sees_only_whether_the_stores_are_there(sweep, capsys):
    main(BUILD)
    capsys.readouterr()
    assert main("dataset info both --check".split()) == 0
    whole = "all 3 replay stores there, and as they were when the data set was built\n"
    assert capsys.readouterr().out == whole
    (sweep / "runs" / "walker-walk-5M-seed2").rename("elsewhere")
    assert "1 of 3 replay stores cannot be used" in refused("dataset info both --check".split(), capsys)
    both = "--check: not with --csv or --figure"
    assert refused("dataset info both --check --csv x.csv".split(), capsys) == both


def test_info_refuses_an_unknown_name_and_a_csv_that_cannot_be_written(sweep, capsys):
    main(BUILD)
    capsys.readouterr()
    assert refused("dataset info bth".split(), capsys) == "results: unknown data set 'bth'; did you mean 'both'?"
    assert "--csv: results cannot be written (Is a directory)" in refused(
        "dataset info both --csv results".split(), capsys
    )


def test_figure_is_drawn_by_the_analysis_package(sweep, capsys):
    main(BUILD)
    assert main("dataset info both --figure drawn/returns.png".split()) == 0
    assert "drawn/returns.svg: written" in capsys.readouterr().out
    assert Path("drawn/returns.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [("Traceback ...\nImportError: no matplotlib\n", "ImportError: no matplotlib"), ("", "exit code 1")],
)
def test_figure_that_fails_tells_the_last_word_of_what_draws_it(sweep, capsys, monkeypatch, stderr, reason):
    main(BUILD)
    calls = []

    def fail(command, **_):
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=stderr)

    monkeypatch.setattr(analysis_process.subprocess, "run", fail)
    capsys.readouterr()
    words = "dataset info both --figure returns.png".split()
    assert refused(words, capsys) == f"--figure: could not be drawn: {reason}"
    assert calls[0][:3] == [sys.executable, "-m", "analysis.datasets"]


def test_figure_without_the_analysis_package_is_refused(sweep, capsys, monkeypatch):
    main(BUILD)
    monkeypatch.setattr(analysis_process.importlib.util, "find_spec", lambda name: None)
    capsys.readouterr()
    message = "--figure: is drawn by the package `analysis`, which is not installed here"
    assert refused("dataset info both --figure returns.png".split(), capsys) == message


@pytest.mark.parametrize(
    ("values", "blocks"),
    [
        ([0, 0, 0, 0, 1, 3, 3], "█▂ ▄"),  # 4, 1, 0 and 2 in the four quarters from 0 to 3
        ([5], "  █ "),  # all alike: one block
        ([*[0] * 100, 1], "█  ▁"),  # one of many still shows
    ],
)
def test_histogram_in_text_shows_how_many_are_where(values, blocks):
    assert text_histogram(np.array(values, float), bins=4) == blocks


IMPORT = "dataset import-chunks downloads --task-set mt30".split()


def test_import_calls_for_the_chunks_and_tells_what_came(sweep, capsys, monkeypatch):
    calls = []

    def import_chunks(folder, task_set, target, name, progress):
        calls.append((folder, task_set, target, name))
        progress(0, 2, 5, 10)
        stores = [StoreSource(sweep / "runs/walker-walk-5M-seed1/replay", None, True)]
        return build(name, stores, ["walker-walk"], target)

    monkeypatch.setattr(chunks, "import_chunks", import_chunks)
    assert main(IMPORT) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "train on it with: tdmpc2 train task=walker-walk data=mt30"
    assert captured.err == "chunk 1 of 2\n"
    assert main([*IMPORT, "--name", "released", "--results", "other"]) == 0
    assert calls == [
        (Path("downloads"), "mt30", Path("results/datasets"), "mt30"),
        (Path("downloads"), "mt30", Path("other/datasets"), "released"),
    ]


def test_import_that_is_interrupted_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def import_chunks(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chunks, "import_chunks", import_chunks)
    assert main([*IMPORT, "--name", "released"]) == 130
    command = "tdmpc2 dataset import-chunks downloads --task-set mt30 --name released"
    assert capsys.readouterr().err.strip() == f"interrupted; the same command goes on: {command}"


def test_import_from_a_folder_without_chunks_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "downloads" in refused(IMPORT, capsys)
    assert chunks.RELEASED == CHUNKED_SETS


def test_import_that_goes_on_is_not_shown_as_if_it_had_read_the_rest_just_now():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with ImportProgress(console) as progress:
        progress.show(15, 20, 50, 100)
        (task,) = progress._bar.tasks
        assert (task.completed, task.total, task.speed) == (15.5, 20, None)
        progress.show(15, 20, 100, 100)
        assert (task.completed, task.description) == (16, "chunk 16 of 20")


def test_set_whose_tasks_are_all_there_is_named_by_itself():
    shown = dataset_commands._next_command("released", TASK_SETS["mt80"], "results")
    assert shown == "train on it with: tdmpc2 train task=mt80 data=released"
    shown = dataset_commands._next_command("less", TASK_SETS["mt30"][:2], "results")
    assert shown == "train on it with: tdmpc2 train task=walker-stand,walker-walk data=less"
