"""A data set's manifest: what it says of its stores, and that it is refused once they are not as it says."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from tdmpc2.data import copying, summary
from tdmpc2.data import dataset as dataset_module
from tdmpc2.data.dataset import Dataset, StoreSource, build
from tdmpc2.data.replay import Replay
from tdmpc2.data.summary import describe, episode_returns
from tdmpc2.errors import UserError
from tdmpc2.tasks import get_task

DIMS = {"walker-walk": (24, 6), "reacher-easy": (6, 2), "mw-reach": (39, 4)}


def add(store, rewards):
    """An episode of these rewards; its observations count on from 1."""
    steps = len(rewards)
    obs = 1 + np.arange((steps + 1) * store.layout.obs_shape[0], dtype=np.float32)
    store.add(
        obs.reshape(steps + 1, -1), np.zeros((steps, store.layout.action_dim)), np.array(rewards), np.zeros(steps, bool)
    )


def write(folder, task, episodes, **changes):
    obs_dim, action_dim = DIMS.get(task, (7, 7))
    values = {"obs_shape": (obs_dim,), "obs_dtype": "float32", "action_dim": action_dim, "capacity": 40, "slack": 10}
    with Replay.create(folder, task=task, **{**values, **changes}) as store:
        for rewards in episodes:
            add(store, rewards)
    return folder


@pytest.fixture
def runs(tmp_path):
    """Three finished stores below results/sweep/runs: walker's of 2 + 1 episodes, reacher's of 1."""
    folder = tmp_path / "results" / "sweep" / "runs"
    return [
        StoreSource(write(folder / "walker-1" / "replay", "walker-walk", [[1, 2, 3], [10]]), 1, finished=True),
        StoreSource(write(folder / "reacher-7" / "replay", "reacher-easy", [[0.5, 0.25]]), 7, finished=True),
        StoreSource(write(folder / "walker-2" / "replay", "walker-walk", [[-4, 0, 1, 1]]), 2, finished=True),
    ]


@pytest.fixture
def sets(tmp_path):
    return tmp_path / "results" / "sweep" / "datasets"


TASKS = ("reacher-easy", "walker-walk")


def test_manifest_says_what_each_store_and_task_is(runs, sets):
    built = build("both", runs, TASKS, sets)
    reacher = {"id": 0, "name": "reacher-easy", "obs_dim": 6, "action_dim": 2, "episode_length": 500}
    walker = {"id": 1, "name": "walker-walk", "obs_dim": 24, "action_dim": 6, "episode_length": 500}
    assert json.loads((sets / "both" / "dataset.json").read_text()) == {
        "version": 1,
        "name": "both",
        "tasks": [{**reacher, "metric": "return"}, {**walker, "metric": "return"}],
        "stores": [
            {
                "path": f"../../runs/{run}/replay",
                "task": task,
                "seed": seed,
                "rows": rows,
                "episodes": episodes,
                "rows_written": rows,
            }
            for run, task, seed, rows, episodes in [
                ("walker-1", "walker-walk", 1, 6, 2),
                ("reacher-7", "reacher-easy", 7, 3, 1),
                ("walker-2", "walker-walk", 2, 5, 1),
            ]
        ],
    }
    assert os.listdir(sets / "both") == ["dataset.json"]  # nothing is copied, and nothing temporary left
    assert Dataset.read(sets / "both") == built
    assert [record.transitions for record in built.stores] == [4, 2, 4]


def test_agent_spec_is_padded_to_the_largest_task_and_in_the_order_of_ids(runs, sets):
    spec = build("both", runs, TASKS, sets).spec
    assert (spec.tasks, spec.obs_shape, spec.action_dims, spec.episode_lengths) == (TASKS, (24,), (2, 6), (500, 500))


def test_results_folder_can_be_moved_whole_and_stores_elsewhere_stay_where_they_are(runs, sets, tmp_path):
    elsewhere = write(tmp_path / "elsewhere", "mw-reach", [[0, 1]])
    dataset = build("three", [*runs, StoreSource(elsewhere, None, finished=True)], (*TASKS, "mw-reach"), sets)
    assert dataset.stores[3].path == str(elsewhere)
    (tmp_path / "results").rename(tmp_path / "moved")
    Dataset.read(tmp_path / "moved" / "sweep" / "datasets" / "three").check()


def test_task_whose_observation_is_not_in_the_registry_has_its_stores(tmp_path):
    stores = [
        StoreSource(write(tmp_path / str(dim), "pick-ycb", [[1]], obs_shape=(dim,)), 1, finished=True) for dim in (9, 8)
    ]
    assert build("ycb", stores[:1], ["pick-ycb"], tmp_path / "sets").tasks[0].obs_dim == 9
    with pytest.raises(UserError, match="8: observations of 8 and actions of 7 dims, but pick-ycb has 9 and 7"):
        build("both", stores, ["pick-ycb"], tmp_path / "sets")


def test_existing_data_set_is_never_overwritten(runs, sets, monkeypatch):
    path = sets / "both" / "dataset.json"
    build("both", runs, TASKS, sets)
    before = path.read_text()
    with pytest.raises(UserError, match=r"both/dataset\.json: exists already; choose another name"):
        build("both", runs[:1], ["walker-walk"], sets)
    assert path.read_text() == before

    # Nor where another build writes it while this one is looking at the stores.
    path.unlink()
    monkeypatch.setattr(dataset_module, "get_task", lambda *_, **__: path.write_text("other's") and walker)
    walker = get_task("walker-walk")
    with pytest.raises(UserError, match="another build has just written it"):
        build("both", runs[:1], ["walker-walk"], sets)
    assert path.read_text() == "other's"
    assert os.listdir(sets / "both") == ["dataset.json"]


def test_store_that_is_still_being_written_is_refused(runs, sets):
    unfinished = StoreSource(runs[1].folder, 7, finished=False)
    with pytest.raises(UserError, match="reacher-7/replay: is still being written, its run is not done: finish"):
        build("both", [runs[0], unfinished], TASKS, sets)
    assert not sets.exists()


@pytest.mark.parametrize(
    ("chosen", "tasks", "message"),
    [
        ([0, 2], TASKS, "no replay store of reacher-easy; leave the task out, or add its runs"),
        ([0, 1], ("walker-walk",), "reacher-7/replay is of reacher-easy, which is not among its tasks"),
        ([0, 1], (*TASKS, "reacher-easy"), "task reacher-easy is named twice"),
        ([0, 1, 0], TASKS, r"store \.\./\.\./runs/walker-1/replay is named twice"),
        ([0, 1], ("reacher-easy", "walker-wlak"), "unknown task 'walker-wlak'; did you mean 'walker-walk'"),
        ([], (), "needs at least one task"),
    ],
)
def test_stores_and_tasks_that_do_not_fit_together_are_refused(runs, sets, chosen, tasks, message):
    with pytest.raises(UserError, match=message):
        build("both", [runs[i] for i in chosen], tasks, sets)
    assert not sets.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_shape": (23,)}, "odd: observations of 23 and actions of 6 dims, but walker-walk has 24 and 6"),
        ({"action_dim": 5}, "odd: observations of 24 and actions of 5 dims, but walker-walk has 24 and 6"),
        ({"obs_shape": (3, 4, 4), "obs_dtype": "uint8"}, r"odd: holds observations of shape \(3, 4, 4\) \(uint8\)"),
    ],
)
def test_store_of_other_dims_than_its_task_is_refused(tmp_path, sets, changes, message):
    store = StoreSource(write(tmp_path / "odd", "walker-walk", [], **changes), 1, finished=True)
    with Replay.open(store.folder) as replay:
        shape = replay.layout.obs_shape
        obs = np.zeros((2, *shape), replay.layout.obs_dtype)
        replay.add(obs, np.zeros((1, replay.layout.action_dim)), np.zeros(1), np.zeros(1, bool))
    with pytest.raises(UserError, match=message):
        build("odd", [store], ["walker-walk"], sets)


def test_store_that_is_not_there_or_empty_is_refused(tmp_path, sets):
    empty = write(tmp_path / "empty", "walker-walk", [])
    for folder, message in ((empty, "empty: is empty; leave it out"), (tmp_path / "none", "holds no replay store")):
        with pytest.raises(UserError, match=message):
            build("one", [StoreSource(folder, 1, finished=True)], ["walker-walk"], sets)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_name_that_is_no_folder_is_refused(runs, sets, name):
    with pytest.raises(UserError, match="is no name for a data set's folder"):
        build(name, runs, TASKS, sets)


def test_store_gone_or_moved_is_named_with_what_to_do(runs, sets):
    dataset = build("both", runs, TASKS, sets)
    runs[1].folder.parent.rename(runs[1].folder.parent.with_name("renamed"))
    with pytest.raises(UserError, match=r"reacher-easy \(seed 7\) is gone: no .*reacher-7/replay/replay\.json"):
        dataset.check()
    with pytest.raises(UserError, match="Move it back there, or build a new data set from where it is now"):
        describe(dataset)


def add_to(folder, *episodes):
    with Replay.open(folder) as store:
        for rewards in episodes:
            add(store, rewards)


def restore(folder, state):
    with Replay.open(folder) as store:
        store.restore(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: add_to(folder, [1, 1]), r"rows: 9, then 6\. Build a new data set from it as it is now"),
        (lambda folder: restore(folder, {"episodes": 1, "rows": 4}), "rows: 4, then 6"),
        (lambda folder: (restore(folder, {"episodes": 0, "rows": 0}), add_to(folder, [1] * 5)), "episodes: 1, then 2"),
    ],
)
def test_store_that_has_changed_since_is_refused(runs, sets, change, message):
    dataset = build("both", runs, TASKS, sets)
    change(runs[0].folder)
    with pytest.raises(UserError, match=f"walker-1/replay: has changed since .*dataset.json was built: {message}"):
        dataset.check()


def test_full_store_that_was_written_on_is_refused_though_it_holds_as_many_rows(tmp_path, sets):
    folder = write(tmp_path / "ring", "walker-walk", [[1] * 9] * 4)
    dataset = build("ring", [StoreSource(folder, 1, finished=True)], ["walker-walk"], sets)
    add_to(folder, [2] * 9)  # the newest 40 rows are four episodes of ten, as before
    with pytest.raises(UserError, match="rows written: 50, then 40"):
        dataset.check()


def test_other_store_in_the_place_of_one_is_refused(runs, sets):
    dataset = build("both", runs, TASKS, sets)
    shutil.rmtree(runs[1].folder)
    write(runs[1].folder, "mw-reach", [[0.5, 0.25]])
    with pytest.raises(UserError, match=r"reacher-7/replay: is of mw-reach, .*dataset\.json says reacher-easy"):
        dataset.check()
    shutil.rmtree(runs[1].folder)
    write(runs[1].folder, "reacher-easy", [[0.5, 0.25]], obs_shape=(7,))
    with pytest.raises(UserError, match="observations of 7 and actions of 2 dims, but reacher-easy has 6 and 2"):
        dataset.check()


def test_truncated_store_is_refused(runs, sets):
    dataset = build("both", runs, TASKS, sets)
    os.truncate(runs[0].folder / "obs.memmap", 100)
    with pytest.raises(UserError, match=r"obs\.memmap: 100 bytes, but 50 rows take 4,800"):
        dataset.check()


def edited(manifest, keys, value):
    entry = manifest
    for key in keys[:-1]:
        entry = entry[key]
    entry[keys[-1]] = value
    return json.dumps(manifest)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["version"], 2, "format version 2, this program reads 1"),
        (["version"], None, "format version None, this program reads 1"),
        (["surprise"], 1, "must have a name, and lists of tasks and stores, and nothing else"),
        (["stores"], {"path": "a"}, "must have a name, and lists of tasks and stores"),
        (["tasks", 0], "walker-walk", "must have a name, and lists of tasks and stores"),
        (["tasks", 1, "id"], 0, "walker-walk has id 0, but is task number 1 in the list"),
        (["tasks", 1, "name"], "reacher-easy", "task reacher-easy is named twice"),
        (["tasks", 0, "obs_dim"], 0, "task 0: obs_dim: "),
        (["tasks", 0, "mertic"], "return", "task 0: unknown setting 'mertic'; did you mean 'metric'"),
        (["stores", 2, "rows"], "many", "store 2: rows: "),
        (["stores", 1, "task"], "walker-walk", "no replay store of reacher-easy"),
        (["stores", 1, "task"], "walker-run", "is of walker-run, which is not among its tasks"),
        (["tasks"], [], "needs at least one task"),
    ],
)
def test_manifest_of_another_format_or_contradicting_itself_is_refused(runs, sets, keys, value, message):
    build("both", runs, TASKS, sets)
    path = sets / "both" / "dataset.json"
    path.write_text(edited(json.loads(path.read_text()), keys, value))
    with pytest.raises(UserError, match=r"dataset\.json: .*" + message):
        Dataset.read(sets / "both")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_manifest_cut_off_or_foreign_is_refused(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json: "):
        Dataset.read(tmp_path)


def test_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no data set \(dataset\.json is missing\)"):
        Dataset.read(tmp_path)


def test_copies_are_the_same_files_and_need_nothing_else(runs, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(copying, "_COPIED_AT_ONCE", 100)
    dataset = build("both", runs, TASKS, sets, copy=True)
    copies = sets / "both" / "stores"
    assert [record.path for record in dataset.stores] == [
        "stores/000-walker-walk",
        "stores/001-reacher-easy",
        "stores/002-walker-walk",
    ]
    for source, record in zip(runs, dataset.stores, strict=True):
        names = sorted(os.listdir(source.folder))
        assert sorted(os.listdir(dataset.store_folder(record))) == names
        for name in names:
            assert (dataset.store_folder(record) / name).read_bytes() == (source.folder / name).read_bytes(), name
    assert len(os.listdir(copies)) == 3
    returns = episode_returns(dataset)
    shutil.move(sets / "both", tmp_path / "alone")
    shutil.rmtree(tmp_path / "results")
    moved = episode_returns(Dataset.read(tmp_path / "alone"))
    assert all(np.array_equal(moved[task], returns[task]) for task in TASKS)


def test_copy_of_a_store_with_few_rows_takes_little_room(tmp_path, sets):
    folder = write(tmp_path / "big", "walker-walk", [[1, 2]], capacity=10_000_000)  # 1.3 GB, nearly all a hole
    dataset = build("big", [StoreSource(folder, 1, finished=True)], ["walker-walk"], sets, copy=True)
    assert (sets / "big" / "stores" / "000-walker-walk" / "obs.memmap").stat().st_size == 10_000_010 * 24 * 4
    assert 0 < describe(dataset)[0].disk_bytes < 2**20


def test_copy_that_fails_leaves_nothing_and_can_be_made_again(runs, sets, monkeypatch):
    written = 0

    def write_until_full(file, values, offset):
        nonlocal written
        written += 1
        if written == 7:  # in the second store
            raise OSError(errno.ENOSPC, "no space left on device")
        original(file, values, offset)

    original = copying.write_at
    monkeypatch.setattr(copying, "write_at", write_until_full)
    with pytest.raises(UserError, match=r"disk full while copying [\d,]+ bytes of replay"):
        build("both", runs, TASKS, sets, copy=True)
    assert os.listdir(sets / "both") == []
    monkeypatch.undo()
    build("both", runs, TASKS, sets, copy=True).check()


def test_copies_that_a_killed_build_left_are_not_taken_for_whole(runs, sets):
    (sets / "both" / "stores").mkdir(parents=True)
    with pytest.raises(UserError, match="both/stores: left by a build that was interrupted; delete it and build again"):
        build("both", runs, TASKS, sets, copy=True)


def test_returns_are_summed_by_episode_and_described_by_task(runs, sets):
    dataset = build("both", runs, TASKS, sets)
    returns = episode_returns(dataset)
    assert {task: values.tolist() for task, values in returns.items()} == {
        "reacher-easy": [0.75],
        "walker-walk": [6, 10, -2],
    }
    reacher, walker = describe(dataset)
    assert (reacher.task, reacher.stores, reacher.episodes, reacher.transitions) == ("reacher-easy", 1, 1, 2)
    assert (walker.task, walker.stores, walker.episodes, walker.transitions) == ("walker-walk", 2, 3, 8)
    assert (walker.return_min, walker.return_q25, walker.return_median) == (-2, 2, 6)
    assert (walker.return_q75, walker.return_max, walker.return_mean) == (8, 10, pytest.approx(14 / 3))
    files = [path for run in (runs[0], runs[2]) for path in run.folder.iterdir()]
    assert walker.disk_bytes == sum(path.stat().st_blocks for path in files) * 512 > 0


@pytest.mark.parametrize("at_once", [1, 12, 25, 2**20])
def test_returns_do_not_depend_on_how_many_rows_are_summed_at_once_in_a_ring(tmp_path, sets, monkeypatch, at_once):
    # Of 8 episodes of 7 or 8 rows, the newest 40 rows hold the last 5 whole, around the end of 50 rows on disk.
    episodes = [[10 * number, *[1] * (5 + number % 2)] for number in range(8)]
    folder = write(tmp_path / "ring", "walker-walk", [])
    with Replay.open(folder) as store:
        for rewards in episodes:
            store.mark_checkpoint()
            add(store, rewards)
    monkeypatch.setattr(summary, "_SUMMED_AT_ONCE", at_once)
    dataset = build("ring", [StoreSource(folder, 1, finished=True)], ["walker-walk"], sets)
    assert episode_returns(dataset)["walker-walk"].tolist() == [36, 45, 56, 65, 76][-dataset.stores[0].episodes :]
    assert dataset.stores[0].episodes == 5


def test_what_stands_in_an_episodes_first_row_is_no_reward(runs, sets):
    dataset = build("both", runs, TASKS, sets)
    with (runs[1].folder / "reward.memmap").open("r+b") as file:
        file.write(np.float32("nan").tobytes())
    assert episode_returns(dataset)["reacher-easy"].tolist() == [0.75]
