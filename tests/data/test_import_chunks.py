"""Released chunk files become a data set: rows exact, faults refused whole, no code of theirs run, kills forgotten."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensordict
import torch
from tensordict import TensorDict

from tdmpc2.data import chunks
from tdmpc2.data.chunks import import_chunks
from tdmpc2.data.dataset import Dataset
from tdmpc2.data.multitask import MultitaskReplay
from tdmpc2.data.summary import episode_returns
from tdmpc2.errors import UserError

MT30 = {0: ("walker-stand", 24, 6), 8: ("cartpole-balance", 5, 1), 18: ("hopper-hop", 15, 4)}
"""Some tasks of mt30 by their number, with their dims."""
T = 4


def rows_of(ids, steps=T, seed=0, obs_dim=24, action_dim=6, dims=MT30):
    """A chunk's tensors: one episode an id, random numbers, zeros beyond the task's dims, NaN as fillers."""
    rng = np.random.default_rng(seed)
    shape = (len(ids), steps + 1)
    obs, action = rng.normal(size=(*shape, obs_dim)), rng.uniform(-1, 1, (*shape, action_dim))
    for episode, task in enumerate(ids):
        obs[episode, :, dims[task][1] :] = 0
        action[episode, :, dims[task][2] :] = 0
    action[:, 0] = np.nan
    reward = rng.normal(size=shape)
    reward[:, 0] = np.nan
    floats = {name: torch.tensor(v, dtype=torch.float32) for name, v in (("obs", obs), ("action", action))}
    task = torch.tensor(ids, dtype=torch.int32)[:, None].repeat(1, steps + 1)
    return {**floats, "reward": torch.tensor(reward, dtype=torch.float32), "task": task}


def as_tensordict(tensors):
    return TensorDict(tensors, tensors["task"].shape)


def old_state(tensors, version, entries=dict):
    """What TensorDicts of tensordict 0.1.2 and 0.2.1 were seen pickling."""
    state = {"_tensordict": entries(tensors), "_batch_size": tensors["task"].shape, "_is_shared": False}
    state |= {"_is_memmap": False, "_device": torch.device("cpu"), "_is_locked": False}
    locks = {"_td_dim_names": None, "_lock_id": set(), "_locked_tensordicts": []}
    return state | ({"_names": None} if version == "0.1" else locks)


def save(path, tensors, version="now", wrap=as_tensordict):
    """torch.save, as a version of tensordict pickles."""
    path.parent.mkdir(exist_ok=True, parents=True)
    if version == "now":
        torch.save(wrap(tensors), path)
        return
    module = {"0.1": "tensordict.tensordict", "0.2": "tensordict.tensordict", "0.3": "tensordict._td"}[version]
    strings = type("_StringOnlyDict", (dict,), {"__module__": "tensordict.utils"})
    state = old_state(tensors, version, strings if version == "0.3" else dict)
    old = type("TensorDict", (), {"__module__": module, "__getstate__": lambda _: state})
    with pytest.MonkeyPatch.context() as patch:  # pickle looks whether the class is found by its name
        patch.setattr(module + ".TensorDict", old)
        patch.setattr(tensordict.utils, "_StringOnlyDict", strings)
        torch.save(old(), path)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "chunks"


@pytest.fixture
def sets(tmp_path):
    return tmp_path / "results" / "datasets"


def run(folder, sets, progress=None):
    return import_chunks(folder, "mt30", sets, "released", progress)


def files_of(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def expected(tensors, task, name):
    """Rows of a field of a task's episodes, in the order of files and episodes, with zeros for fillers."""
    rows = []
    for part in tensors:
        values = part[name][part["task"][:, 0] == task].clone()
        if name != "obs":
            values[:, 0] = 0
        rows.append(values.reshape(-1, *values.shape[2:]))
    return torch.cat(rows).numpy()


IDS = ([8, 0, 8, 18], [0, 0, 8], [18])


@pytest.fixture
def three(folder):
    """Three chunk files, and what is in them."""
    tensors = [rows_of(ids, seed=seed) for seed, ids in enumerate(IDS)]
    for number, part in enumerate(tensors):
        save(folder / f"chunk_{number}.pt", part)
    return tensors


def test_every_episode_is_in_its_tasks_store_with_the_tasks_own_dims(three, folder, sets):
    dataset = run(folder, sets)
    assert Dataset.read(sets / "released") == dataset
    listed = [(task.id, task.name, task.obs_dim, task.action_dim, task.episode_length) for task in dataset.tasks]
    # Ids are places among the tasks that are there. The episode length, whence the discount, is the task's, not T.
    assert listed == [(i, name, o, a, 500) for i, (name, o, a) in enumerate(MT30.values())]
    assert [(r.path, r.episodes, r.rows) for r in dataset.stores] == [
        ("stores/000-walker-stand", 3, 15),
        ("stores/008-cartpole-balance", 3, 15),
        ("stores/018-hopper-hop", 2, 10),
    ]
    for (task, (_, obs_dim, action_dim)), record in zip(MT30.items(), dataset.stores, strict=True):
        columns = dataset.open_store(record).rows.columns
        count = record.rows
        np.testing.assert_array_equal(columns["obs"][:count], expected(three, task, "obs")[:, :obs_dim])
        np.testing.assert_array_equal(columns["action"][:count], expected(three, task, "action")[:, :action_dim])
        np.testing.assert_array_equal(columns["reward"][:count], expected(three, task, "reward"))
        assert not columns["terminated"].any()
    assert not (sets / "released" / "import.json").exists()


def test_agent_is_given_the_chunks_rows_padded_as_they_were(three, folder, sets):
    batch = MultitaskReplay(run(folder, sets), T).sequences(torch.arange(8))
    for place, task in enumerate(MT30):
        chosen = batch["task"] == place
        wanted = expected(three, task, "obs").reshape(-1, T + 1, 24)
        np.testing.assert_array_equal(batch["obs"][:, chosen].transpose(0, 1), wanted)
        wanted = expected(three, task, "action").reshape(-1, T + 1, 6)[:, 1:]
        np.testing.assert_array_equal(batch["action"][:, chosen].transpose(0, 1), wanted)


def test_mt80_has_its_own_widths_and_numbers(folder, sets):
    dims = {79: ("mw-hand-insert", 39, 4), 28: ("cup-spin", 8, 2)}
    save(folder / "chunk_0.pt", rows_of([79, 28], obs_dim=39, dims=dims))
    dataset = import_chunks(folder, "mt80", sets, "mt80")
    assert [(t.name, t.obs_dim, t.action_dim) for t in dataset.tasks] == [dims[28], dims[79]]
    save(folder / "chunk_0.pt", rows_of([8]))
    with pytest.raises(UserError, match=r"obs is of shape \(1, 5, 24\), expected \(1, 5, 39\)"):
        import_chunks(folder, "mt80", sets, "narrow")


def test_fillers_of_an_episodes_first_row_are_ignored_whatever_they_are(three, folder, sets):
    garbage = [{name: values.clone() for name, values in part.items()} for part in three]
    for part in garbage:
        part["action"][:, 0] = 3e38
        part["reward"][:, 0] = torch.tensor([np.inf, -7.5, 1e-40, 0])[: len(part["reward"])]
    run(folder, sets)
    for number, part in enumerate(garbage):
        save(folder / f"chunk_{number}.pt", part)
    import_chunks(folder, "mt30", sets, "garbage")
    left, right = (files_of(sets / name / "stores") for name in ("released", "garbage"))
    assert left == right
    returns = episode_returns(Dataset.read(sets / "garbage"))["hopper-hop"]
    np.testing.assert_allclose(returns, [part["reward"][-1, 1:].sum() for part in (three[0], three[2])], rtol=1e-5)


@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3"])
def test_files_of_old_tensordicts_give_the_same(three, folder, sets, version):
    run(folder, sets)
    for number, part in enumerate(three):
        save(folder / f"chunk_{number}.pt", part, version)
    import_chunks(folder, "mt30", sets, "old")
    assert files_of(sets / "released" / "stores") == files_of(sets / "old" / "stores")


def test_tensors_that_are_parts_of_larger_ones_are_read_as_they_are(folder, sets):
    whole = rows_of([0, 8, 18, 8])
    parts = {name: values[1:3] for name, values in whole.items()}
    parts["obs"] = parts["obs"].transpose(1, 2).contiguous().transpose(1, 2)
    parts["task"] = whole["task"][1:3, :1].expand(2, T + 1)
    save(folder / "chunk_0.pt", parts)
    dataset = run(folder, sets)
    columns = dataset.open_store(dataset.stores[0]).rows.columns
    np.testing.assert_array_equal(columns["obs"][:5], whole["obs"][1, :, :5])
    assert [task.name for task in dataset.tasks] == ["cartpole-balance", "hopper-hop"]


def test_progress_says_how_far_each_chunk_is(three, folder, sets, monkeypatch):
    monkeypatch.setattr(chunks, "_BLOCK_ROWS", 2 * (T + 1))
    calls = []
    run(folder, sets, lambda *numbers: calls.append(numbers))
    assert calls == [(0, 3, 2, 4), (0, 3, 4, 4), (1, 3, 2, 3), (1, 3, 3, 3), (2, 3, 1, 1)]


class Touch:
    """Makes a file where it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Evaluated(Touch):
    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({str(self.path)!r})",)


@pytest.mark.parametrize("kind", [Touch, Evaluated])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil, _: evil,
        lambda evil, tensors: {**tensors, "more": evil},
        lambda evil, tensors: [TensorDict(tensors, tensors["task"].shape), evil],
    ],
)
def test_nothing_that_a_file_names_is_run(folder, sets, tmp_path, kind, wrap):
    evil = kind(tmp_path / "made")
    save(folder / "chunk_0.pt", rows_of([0]), wrap=lambda tensors: wrap(evil, tensors))
    with pytest.raises(UserError, match=r"chunk_0\.pt: names \w+\.\w+, which is no part .* refused, and not run"):
        run(folder, sets)
    assert not (tmp_path / "made").exists()
    assert not sets.exists()
    torch.load(folder / "chunk_0.pt", weights_only=False)
    assert (tmp_path / "made").exists()  # so it would have run


def test_state_that_hides_a_call_is_not_run_either(folder, sets, tmp_path):
    tensors = rows_of([0])
    for hidden in ({"reward": Touch(tmp_path / "made")}, {"obs": torch.nn.Parameter(tensors["obs"])}):
        folder.mkdir(exist_ok=True)
        state = old_state({**tensors, **hidden}, "0.1")
        old = type("TensorDict", (), {"__module__": "tensordict.tensordict", "__getstate__": lambda _, s=state: s})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tensordict.tensordict.TensorDict", old)
            torch.save(old(), folder / "chunk_0.pt")
        with pytest.raises(UserError, match=r"chunk_0\.pt: names .* refused"):
            run(folder, sets)
    assert not (tmp_path / "made").exists()


def rewritten(path, change):
    """Change records of an archive: `change(name, bytes)`."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, change(name, data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda name, data: data[: len(data) // 2] if name.endswith("data/0") else data,
            "has 240 bytes, its tensor 480",
        ),
        (lambda name, data: data[:100] if name.endswith("data.pkl") else data, "is not what torch.save writes"),
        (lambda name, data: data.replace(b"_tensordict", b"_tensorlist"), "KeyError.*_tensordict"),
        (lambda name, data: b"big" if name.endswith("byteorder") else data, "are not little-endian"),
        # The first number of the task's shape, 1 episode of 5 rows, becomes 200.
        (lambda name, data: data.replace(b"K\x01K\x05\x86", b"K\xc8K\x05\x86"), "beyond its storage of 5 numbers"),
    ],
)
def test_archive_that_was_tampered_with_is_refused(folder, sets, change, message):
    path = folder / "chunk_0.pt"
    save(path, rows_of([0]))
    rewritten(path, change)
    with pytest.raises(UserError, match=r"chunk_0\.pt: .*" + message):
        run(folder, sets)
    assert not sets.exists()


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_truncated_file_is_refused_before_anything_is_written(three, folder, sets, kept):
    path = folder / "chunk_2.pt"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if 0 < kept < 1 else kept])
    with pytest.raises(UserError, match=r"chunk_2\.pt: is truncated, or no file that torch\.save wrote"):
        run(folder, sets)
    assert not sets.exists()


def test_missing_files_are_named(three, folder, sets):
    (folder / "chunk_1.pt").rename(folder / "chunk_4.pt")
    with pytest.raises(UserError, match=r"chunk_4\.pt is there, but not chunk_1\.pt, chunk_3\.pt"):
        run(folder, sets)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"chunks: holds no chunk_<i>\.pt"):
        run(folder, sets)
    with pytest.raises(UserError, match="none: is no folder"):
        run(folder / "none", sets)


def test_task_set_and_name_are_checked(three, folder, sets):
    with pytest.raises(UserError, match="task_set: unknown task set of released data 'mt3'; did you mean 'mt30'"):
        import_chunks(folder, "mt3", sets, "x")
    with pytest.raises(UserError, match="'a/b' is no name for a data set's folder"):
        import_chunks(folder, "mt30", sets, "a/b")
    run(folder, sets)
    with pytest.raises(UserError, match=r"released/dataset\.json: exists already"):
        run(folder, sets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "reward"}, "obs, action, reward and task; missing: reward"),
        (lambda t: {**t, "episode": t["task"]}, "too many: episode"),
        (lambda t: {**t, "obs": t["obs"].double()}, "obs is float64, expected float32"),
        (lambda t: {**t, "task": t["task"].long()}, "task is int64, expected int32"),
        (lambda t: {**t, "obs": t["obs"][..., :23]}, r"obs is of shape \(2, 5, 23\), expected \(2, 5, 24\)"),
        (lambda t: {**t, "reward": t["reward"][..., None]}, r"reward is of shape \(2, 5, 1\), expected \(2, 5\)"),
        (lambda t: {**t, "obs": TensorDict({"a": t["obs"]}, (2, 5))}, "obs is not a plain tensor"),
        (lambda t: {k: v[:, 1:] for k, v in t.items()}, "episodes have 4 rows, those of chunk_0.pt 5"),
        (lambda t: {**t, "task": t["task"] - 9}, "episode 0: task -1, but those of mt30 are numbered 0 to 29"),
        (lambda t: {**t, "task": t["task"] + torch.tensor([[0], [12]]).int()}, "episode 1: task 30, but those of mt30"),
        (lambda t: {**t, "task": t["task"] + torch.eye(2, 5).int()[[1, 0]]}, "episode 0: the task changes within"),
    ],
)
def test_file_that_does_not_fit_is_named_before_anything_is_written(folder, sets, change, message):
    save(folder / "chunk_0.pt", rows_of([0]))
    tensors = change(rows_of([8, 18]))
    save(folder / "chunk_1.pt", tensors)
    with pytest.raises(UserError, match=r"chunk_1\.pt: .*" + message):
        run(folder, sets)
    assert not sets.exists()


def test_file_without_a_tensordict_is_refused(folder, sets):
    for saved in (rows_of([0]), torch.zeros(3)):
        save(folder / "chunk_0.pt", saved, wrap=lambda saved: saved)
        with pytest.raises(UserError, match=r"chunk_0\.pt: does not hold a TensorDict"):
            run(folder, sets)


def put(name, place, value):
    def change(tensors):
        tensors[name][place] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("obs", (2, 0, 1), np.nan), r"episode 2 \(of cartpole-balance\), row 0: obs is NaN or infinite"),
        (put("action", (1, 1, 5), -np.inf), r"episode 1 \(of walker-stand\), row 1: action is NaN or infinite"),
        (put("reward", (3, 4), np.inf), r"episode 3 \(of hopper-hop\), row 4: reward is NaN or infinite"),
        (
            put("obs", (2, 3, 5), 1e-30),
            r"episode 2 \(of cartpole-balance\), row 3: obs is not zero beyond the task's 5",
        ),
        (put("obs", (2, 3, 23), np.nan), r"episode 2 \(of cartpole-balance\), row 3: obs is not zero beyond"),
        (
            put("action", (3, 1, 4), 0.5),
            r"episode 3 \(of hopper-hop\), row 1: action is not zero beyond the task's 4",
        ),
    ],
)
def test_fault_in_a_chunk_leaves_nothing_of_it_and_mending_it_goes_on(
    three, folder, sets, monkeypatch, change, message
):
    monkeypatch.setattr(chunks, "_BLOCK_ROWS", T + 1)
    whole = import_chunks(folder, "mt30", sets, "whole")

    # The first chunk alone, of as many episodes in all, is what must be left by a fault in the second.
    faulty = {name: values.clone() for name, values in three[0].items()}
    change(faulty)
    (folder / "chunk_2.pt").rename(folder / "chunk_3.pt")
    (folder / "chunk_1.pt").rename(folder / "chunk_2.pt")
    (folder / "chunk_0.pt").rename(folder / "chunk_1.pt")
    save(folder / "chunk_0.pt", three[2])
    (folder / "chunk_3.pt").unlink()
    mended = (folder / "chunk_1.pt").read_bytes()
    save(folder / "chunk_1.pt", faulty)
    with pytest.raises(UserError, match=r"chunk_1\.pt: " + message):
        run(folder, sets)
    stores = sets / "released" / "stores"
    assert (stores / "018-hopper-hop" / "episodes.bin").stat().st_size == 24
    assert (stores / "000-walker-stand" / "episodes.bin").read_bytes() == b""
    for path in stores.glob("*/*.memmap"):
        held = path.read_bytes()
        assert not any(held[len(held) // 11 * 5 :] if "hopper" in str(path) else held), path

    (folder / "chunk_1.pt").write_bytes(mended)
    resumed = run(folder, sets)
    assert [(r.task, r.rows, r.episodes) for r in resumed.stores] == [
        (r.task, r.rows, r.episodes) for r in whole.stores
    ]
    cartpole = resumed.stores[1]
    wanted = expected([three[2], three[0], three[1]], 8, "obs")[:, :5]
    np.testing.assert_array_equal(resumed.open_store(cartpole).rows.columns["obs"][:15], wanted)


class Killed(BaseException):
    """Stands for the end of the process: what is on disk stays as it is."""


def kill_at(patch, number):
    """End at the number-th thing that is done to the disk, a row's writing half done."""
    left = [number]

    def before(owner, name, first_half=None):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            left[0] -= name != "unlink" or args[0].name == "import.json"
            if left[0] == 0:
                if first_half is not None:
                    first_half(original, *args)
                raise Killed
            return original(*args, **kwargs)

        patch.setattr(owner, name, counted)

    def half_the_columns(write, files, first_row, columns):
        write(files, first_row, dict(list(columns.items())[:1]))

    def half_the_bytes(write, file, values, offset):
        write(file, values.reshape(-1)[:-2], offset)

    before(chunks, "create_files")
    before(chunks.RowFiles, "write", half_the_columns)
    before(chunks.RowFiles, "sync")
    before(chunks, "write_at", half_the_bytes)
    before(chunks._Import, "write")
    before(chunks, "build")
    before(Path, "unlink")
    patch.setattr(chunks._Store, "forget", lambda *_: None)  # a process that is killed does not tidy up


def test_import_killed_at_any_moment_goes_on_to_the_same_files(folder, sets, monkeypatch):
    monkeypatch.setattr(chunks, "_BLOCK_ROWS", 2 * (T + 1))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for number, ids in enumerate([[8, 18, 8], [18, 8]]):
        save(folder / f"chunk_{number}.pt", rows_of(ids, seed=number))
    run(folder, sets)
    wanted = files_of(sets / "released" / "stores")
    manifest = (sets / "released" / "dataset.json").read_text()

    moments = 0
    while True:
        again = sets.parent / str(moments)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, moments + 1)
            try:
                run(folder, again)
                break
            except Killed:
                moments += 1
        with pytest.MonkeyPatch.context() as patch:  # a second kill, soon after going on
            kill_at(patch, 2)
            with contextlib.suppress(Killed):
                run(folder, again)
        if not (again / "released" / "dataset.json").exists() or (again / "released" / "import.json").exists():
            run(folder, again)
        assert files_of(again / "released" / "stores") == wanted, moments
        assert sorted(os.listdir(again / "released")) == ["dataset.json", "stores"]
        assert (again / "released" / "dataset.json").read_text() == manifest
    assert moments > 15


def test_import_does_not_go_on_with_other_files_nor_in_a_foreign_folder(three, folder, sets):
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 8)
        with pytest.raises(Killed):
            run(folder, sets)
    save(folder / "chunk_2.pt", rows_of([18, 18]))
    with pytest.raises(UserError, match=r"import\.json: is of other chunk files than these; delete .*released or"):
        run(folder, sets)
    (sets / "released" / "import.json").write_text("{")
    with pytest.raises(UserError, match=r"import\.json: is damaged"):
        run(folder, sets)
    (sets / "released" / "import.json").unlink()
    with pytest.raises(UserError, match="stores: is not of an import"):
        run(folder, sets)


def test_two_imports_into_one_folder_are_refused(three, folder, sets):
    def again(*_):
        with pytest.raises(UserError, match="another process is importing into it"):
            run(folder, sets)

    run(folder, sets, again)


def test_disk_without_room_is_refused_with_needed_and_free_bytes(three, folder, sets, monkeypatch):
    # Rows of 24 + 6 + 1, 5 + 1 + 1 and 15 + 4 + 1 floats; 24 bytes an episode in the logs.
    needed = 4 * (15 * 31 + 15 * 7 + 10 * 20) + 8 * 24
    free = [needed - 1]
    usage = type("Usage", (), {"free": property(lambda _: free[0])})
    monkeypatch.setattr(chunks.shutil, "disk_usage", lambda _: usage())
    message = rf"the disk has {needed - 1:,} bytes free, but what is still to be imported takes {needed:,}"
    with pytest.raises(UserError, match=message):
        run(folder, sets)
    free[0] += 1
    run(folder, sets).check()
