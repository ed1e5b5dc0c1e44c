"""Which runs a data set is made of, which it refuses, and how one is found again."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from tdmpc2.config import Config
from tdmpc2.data.dataset import Dataset
from tdmpc2.data.replay import Replay
from tdmpc2.errors import UserError
from tdmpc2.training.datasets import build_dataset, find_dataset, find_runs, find_stores, store_faults, task_rows
from tdmpc2.training.folder import RunFolder, Status

DIMS = {"walker-walk": (24, 6), "reacher-easy": (6, 2), "mw-reach": (39, 4)}
EPISODES = ((1.0, 2.0, 3.0), (10.0,))


def add(store: Replay, rewards: tuple[float, ...]) -> None:
    steps, layout = len(rewards), store.layout
    obs = np.zeros((steps + 1, *layout.obs_shape), np.float32)
    store.add(obs, np.zeros((steps, layout.action_dim)), np.array(rewards), np.zeros(steps, bool))


def write_run(results: Path, task: str, seed: int = 1, state: str | None = "done", **settings: object) -> RunFolder:
    """A run of results/sweep with 2 episodes of 3 + 1 agent steps; of several tasks, or offline, without replay."""
    config = Config(**{"task": task, "seed": seed, "results_dir": str(results), "exp_name": "sweep", **settings})
    folder = RunFolder.of(config)
    folder.claim(config)
    folder.release()
    if state is not None:
        numbers = dict.fromkeys("agent_steps total_agent_steps env_steps total_env_steps updates pid".split(), 0)
        texts = dict.fromkeys("phase message digest version device hardware host".split(), "")
        times = {"seconds": 0.0, "seconds_left": None, "last_return": None, "updated": 0.0}
        folder.write_status(Status(state=state, **numbers, **texts, **times))  # type: ignore[arg-type]
    if task in DIMS and not config.offline:
        obs_dim, action_dim = DIMS[task]
        layout = {"obs_shape": (obs_dim,), "obs_dtype": "float32", "action_dim": action_dim}
        with Replay.create(folder.replay, task=task, **layout, capacity=100, slack=50) as store:
            for rewards in EPISODES:
                add(store, rewards)
    return folder


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def sweep(results):
    """walker-walk of seeds 1 and 2, mw-reach of seed 1; sizes 5, and for walker-walk seed 1 also size 1."""
    write_run(results, "walker-walk", 1)
    write_run(results, "walker-walk", 2)
    write_run(results, "walker-walk", 1, model_size=1)
    write_run(results, "mw-reach", 1)
    return results / "sweep"


def names(choice):
    return [run.folder.path.name for run in choice.runs]


def test_all_finished_runs_of_a_sweep_are_taken_in_the_registrys_order(sweep):
    choice = find_runs(sweep)
    assert choice.tasks == ("walker-walk", "mw-reach")  # by name it would be the other way round
    assert names(choice) == [
        "walker-walk-1M-seed1",
        "walker-walk-5M-seed1",
        "walker-walk-5M-seed2",
        "mw-reach-5M-seed1",
    ]
    assert {key: len(runs) for key, runs in choice.variants.items()} == {("walker-walk", 1): 2}
    stores = find_stores(sweep)
    assert [(store.folder.parent.name, store.seed, store.finished) for store in stores] == [
        (run.folder.path.name, run.config.seed, True) for run in choice.runs
    ]


def test_runs_are_chosen_by_task_seed_size_and_label_and_tasks_keep_the_order_given(sweep, results):
    write_run(results, "walker-walk", 2, label="slow")
    assert find_runs(sweep, tasks=("mw-reach", "walker-walk"), labels=[""]).tasks == ("mw-reach", "walker-walk")
    assert names(find_runs(sweep, ("walker-walk",), seeds=[2])) == ["walker-walk-5M-seed2", "walker-walk-5M-slow-seed2"]
    assert names(find_runs(sweep, sizes=[1])) == ["walker-walk-1M-seed1"]
    assert names(find_runs(sweep, labels=["slow"])) == ["walker-walk-5M-slow-seed2"]


def test_one_run_a_folder_of_runs_and_several_folders_are_sources_and_each_run_counts_once(sweep):
    run = sweep / "runs" / "mw-reach-5M-seed1"
    assert names(find_runs(run)) == ["mw-reach-5M-seed1"]
    assert names(find_runs(sweep / "runs")) == names(find_runs(sweep))
    assert names(find_runs([run, sweep])) == names(find_runs(sweep))


def test_runs_without_replay_for_a_data_set_are_passed_over_and_named(sweep, results):
    write_run(results, "walker-walk,mw-reach", data="both")
    write_run(results, "walker-walk", checkpoint="elsewhere")
    write_run(results, "mw-reach", obs="rgb")
    choice = find_runs(sweep)
    assert len(choice.runs) == 4
    assert choice.passed_over == {
        "offline, has no replay of its own": ("walker-walk+mw-reach-5M-seed1",),
        "finetuned, not learned from scratch": ("walker-walk-5M-finetuned-seed1",),
        "of pixels, data sets are of states": ("mw-reach-rgb-5M-seed1",),
    }


def test_source_with_a_multi_task_run_alone_is_refused(results):
    folder = write_run(results, "walker-walk,mw-reach", data="both")
    with pytest.raises(UserError, match=r"no single-task online run .*\(walker-walk\+mw-reach-5M-seed1: offline"):
        find_runs(folder.path)


def test_unfinished_runs_are_refused_by_name_unless_they_are_left_out(sweep, results):
    write_run(results, "reacher-easy", 1, state="running")
    write_run(results, "reacher-easy", 2, state="failed")
    write_run(results, "reacher-easy", 3, state=None)
    with pytest.raises(UserError) as error:
        find_runs(sweep)
    assert str(error.value) == (
        f"{sweep}: not done: reacher-easy-5M-seed1 (running), reacher-easy-5M-seed2 (failed), reacher-easy-5M-seed3 "
        "(not begun). Finish them, or leave them out by naming others with --tasks or --seeds"
    )
    assert find_runs(sweep, tasks=("walker-walk",)).tasks == ("walker-walk",)


def test_finished_run_whose_replay_is_gone_is_refused(sweep):
    (sweep / "runs" / "mw-reach-5M-seed1" / "replay" / "replay.json").unlink()
    with pytest.raises(UserError, match=r"the replay of finished runs is gone: .*mw-reach-5M-seed1/replay\. Move it"):
        find_runs(sweep)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"tasks": ("walker-run",)}, "no run of task walker-run; nearest is walker-walk (there are: "),
        ({"seeds": [1, 7, 8]}, "no run of seed 7, 8 (there are: 1, 2)"),
        ({"sizes": [19]}, "no run of size 19 (there are: 5, 1)"),
        ({"labels": ["fast"]}, "no run of label fast (there are: '')"),
        (
            {"tasks": ("walker-walk", "mw-reach"), "seeds": [1, 2]},
            "no run asked for of mw-reach seed 2; run them, or leave them out with --tasks or --seeds",
        ),
        ({"tasks": ("walker-walk", "mw-reach"), "sizes": [1]}, "no run asked for of mw-reach; run them"),
        ({"seeds": [2], "sizes": [1]}, "no run is of the tasks, seeds, sizes and labels asked for together"),
    ],
)
def test_what_no_run_is_of_is_refused_with_what_there_is(sweep, chosen, message):
    with pytest.raises(UserError) as error:
        find_runs(sweep, **chosen)
    assert message in str(error.value)


def test_folder_that_is_not_there_or_has_no_runs_is_refused(sweep, results):
    with pytest.raises(UserError, match=rf"sweeep: no such folder; did you mean {re.escape(str(sweep))}\?"):
        find_runs(results / "sweeep")
    (results / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no runs"):
        find_runs(results / "empty")


def build_both(sweep, copy=False, name="both"):
    choice = find_runs(sweep, sizes=[5])
    return build_dataset(name, [run.store for run in choice.runs], choice.tasks, sweep / "datasets", copy)


@pytest.mark.parametrize("copy", [False, True])
def test_building_the_same_again_gives_the_data_set_that_is_there_untouched(sweep, copy):
    built = build_both(sweep, copy)
    manifest = built.folder / "dataset.json"
    before = manifest.stat().st_mtime_ns
    assert build_both(sweep, copy) == built
    assert manifest.stat().st_mtime_ns == before


def test_another_data_set_of_the_same_name_is_refused(sweep):
    build_both(sweep)
    exists = "both/dataset.json: exists already; choose another name, or delete that data set"
    stores = find_stores(sweep, sizes=[5])
    for chosen, tasks, copy in [
        (stores, ("mw-reach", "walker-walk"), False),
        (stores[1:], ("walker-walk", "mw-reach"), False),
        ([dataclasses.replace(stores[0], seed=4), *stores[1:]], ("walker-walk", "mw-reach"), False),
        (stores, ("walker-walk", "mw-reach"), True),
    ]:
        with pytest.raises(UserError, match=exists):
            build_dataset("both", chosen, tasks, sweep / "datasets", copy)
    with Replay.open(stores[0].folder) as store:
        store.restore({"episodes": 2, "rows": 6})
        add(store, (5.0,))
    with pytest.raises(UserError, match=exists):
        build_both(sweep)


def test_copies_that_are_gone_are_not_taken_for_the_data_set(sweep):
    built = build_both(sweep, copy=True)
    (built.folder / "stores" / "000-walker-walk" / "replay.json").unlink()
    with pytest.raises(UserError, match=r"the replay store of walker-walk \(seed 1\) is gone"):
        build_both(sweep, copy=True)


def test_data_set_is_found_by_name_first_in_the_experiment_then_among_all_or_by_path(sweep, results, monkeypatch):
    own = build_both(sweep)
    stores = find_stores(sweep, tasks=("mw-reach",))
    common = build_dataset("both", stores, ("mw-reach",), results / "datasets")
    assert find_dataset("both", results, "sweep").folder == own.folder
    assert find_dataset("both", results, "other").folder == common.folder
    assert find_dataset("both", results).folder == common.folder
    assert find_dataset(str(own.folder), "nowhere").folder == own.folder
    monkeypatch.chdir(sweep / "datasets")
    assert find_dataset("both", results).folder == common.folder
    assert find_dataset("both", "nowhere").folder == own.folder
    assert find_dataset("./both", results).folder == own.folder


def test_data_set_that_is_not_found_names_the_nearest_or_where_it_is(sweep, results):
    with pytest.raises(UserError, match=r"no data set both; .*results has none"):
        find_dataset("both", results)
    build_both(sweep)
    with pytest.raises(UserError, match="results: unknown data set 'bohT'; did you mean 'both'"):
        find_dataset("bohT", results)
    with pytest.raises(UserError, match=r"no data set both; there is .*sweep/datasets/both: give its path"):
        find_dataset("both", results)
    with pytest.raises(UserError, match="unknown data set 'bot'; did you mean 'both'"):
        find_dataset(f"{sweep}/datasets/bot", results)


def test_every_store_that_is_not_as_it_was_is_named(sweep):
    built = build_both(sweep)
    assert store_faults(built) == []
    runs = sweep / "runs"
    (runs / "walker-walk-5M-seed1").rename(runs / "moved")
    (runs / "mw-reach-5M-seed1" / "replay" / "reward.memmap").write_bytes(b"")
    gone, truncated = store_faults(Dataset.read(built.folder))
    assert "the replay store of walker-walk (seed 1) is gone" in gone
    assert "reward.memmap: 0 bytes" in truncated


def test_rows_of_tasks_tell_agent_and_environment_steps_and_returns(sweep):
    walker, reach = task_rows(build_both(sweep))
    assert [walker[name] for name in ("id", "task", "domain", "metric")] == [0, "walker-walk", "dmcontrol", "return"]
    assert [reach[name] for name in ("id", "task", "domain", "metric")] == [1, "mw-reach", "metaworld", "success"]
    # Two stores of 3 + 1 agent steps, twice as many environment steps; returns are 6 and 10 in each.
    assert (walker["seeds"], walker["stores"], walker["episodes"]) == ("1 2", 2, 4)
    assert (walker["transitions"], walker["env_steps"]) == (8, 16)
    assert [walker[f"return_{name}"] for name in "min q25 median q75 max mean".split()] == [6, 6, 8, 10, 10, 8]
    assert (reach["seeds"], reach["transitions"], reach["return_mean"]) == ("1", 4, 8)
    assert walker["disk_bytes"] == 2 * reach["disk_bytes"] > 0
