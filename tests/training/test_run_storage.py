"""A run whose truth is in object storage: it moves between machines that share no disk, and loses nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import TINY

from tdmpc2.config import Config
from tdmpc2.data.replay import Replay
from tdmpc2.errors import RunBusyError, UserError
from tdmpc2.training import fetching, lease, run_storage, run_writer, storage
from tdmpc2.training.fetching import fetch_run
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.lease import Lease
from tdmpc2.training.replay_segments import extent, make_store, read_description, read_log, read_segment
from tdmpc2.training.run import train
from tdmpc2.training.run_storage import train_stored
from tdmpc2.training.runtime import Stopped, StopRequest
from tdmpc2.training.storage import Storage, StorageError
from tdmpc2.training.stored_run import Segment, StoredRun

# Five episodes of 21 rows; checkpoints after 15, 30, ... steps; the replay holds the newest 50 rows, its ring 101.
SCHEDULE: dict[str, Any] = {
    "seed_steps": 45,
    "steps": 105,
    "eval_freq": 60,
    "eval_episodes": 1,
    "checkpoint_freq": 15,
    "buffer_size": 50,
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(run_storage, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(run_writer, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(fetching, "PATIENCE_SECONDS", 0.2)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/storage"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of a real S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "not a secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture
def machine(tmp_path: Path, short_episodes: int) -> Callable[..., Config]:
    """The config of one and the same run on a machine with a disk of its own."""

    def on(name: str, **changes: Any) -> Config:
        return Config(**{**TINY, **SCHEDULE, "results_dir": str(tmp_path / name), **changes})

    return on


@pytest.fixture(scope="module")
def _untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def untouched(machine, contents, _untouched, tmp_path_factory) -> dict[str, Any]:
    """What a run comes to that stayed on one disk."""
    if "run" not in _untouched:
        config = machine("untouched", results_dir=str(tmp_path_factory.mktemp("untouched")))
        _untouched["run"] = train(config, show_progress=False).path
    return contents(RunFolder(_untouched["run"]))


class Killed(BaseException):
    """The process is gone, as if by SIGKILL."""


class Faults:
    """Makes requests to the storage fail, those of the lease's thread aside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests = 0
        self.next: Callable[[str], BaseException | None] = lambda written: None
        """The fault of a request, by the kind of object that it writes; "" where it writes none."""
        original = Storage._try

        def attempt(self_: Storage, doing: str, name: str, request: Any) -> Any:
            if threading.current_thread().name != "lease":
                self.requests += 1
                kind = name.rpartition("/")[2].partition("-")[0].partition(".")[0]
                fault = self.next(kind if doing == "write" else "")
                if fault is not None:
                    raise fault
            return original(self_, doing, name, request)

        monkeypatch.setattr(Storage, "_try", attempt)

    def between(self, first: int, end: float = float("inf")) -> None:
        """The storage cannot be reached from one request on, up to another."""
        self.next = lambda written: StorageError("unreachable") if first <= self.requests < end else None

    def die_at(self, kind: str) -> None:
        """The machine dies when it writes such an object for the second time: then no request gets through any more."""
        written: list[str] = []

        def fault(now: str) -> BaseException | None:
            written.append(now)
            return Killed() if written.count(kind) >= 2 else None

        self.next = fault

    def end(self) -> None:
        """The storage can be reached."""
        self.next = lambda written: None


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


def stop_after(steps: int) -> tuple[StopRequest, Any]:
    """A request to stop, and a `train` that makes it at the checkpoint after so many steps."""
    stop = StopRequest()

    def stopping(config: Config, show_progress: bool, request: StopRequest | None, saved: Callable[[], None]) -> Any:
        folder = RunFolder.of(config)

        def on_checkpoint() -> None:
            saved()
            if torch.load(folder.checkpoint, weights_only=True)["steps"] >= steps:
                stop.requested = True

        return train(config, show_progress, request, on_checkpoint)

    return stop, stopping


# --- storage and lease


def test_a_second_creation_of_an_object_is_refused_by_a_real_s3_server(s3):
    there = Storage(f"{s3}/creation")
    assert there.create("one", b"mine")
    assert not there.create("one", b"yours")
    assert there.create("one", b"mine"), "an attempt whose answer was lost counts as done"
    assert there.read("one") == b"mine"
    assert there.read("none") is None


def test_faults_of_a_real_s3_server_are_told_before_anything_starts(s3, monkeypatch):
    with pytest.raises(UserError, match="no such bucket"):
        Storage("s3://no-such-bucket/here").check()
    Storage(f"{s3}/here").check()
    assert Storage(f"{s3}/here").find() == {}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="tried 5 times"):
        Storage(f"{s3}/here").check()


def test_a_storage_without_its_package_credentials_in_a_url_and_a_plain_path_are_refused():
    with pytest.raises(UserError, match="pip install gcsfs"):
        Storage("gs://bucket/here").check()
    with pytest.raises(UserError, match="not a URL"):
        Storage("bucket/here")
    with pytest.raises(UserError, match="credentials do not belong") as refusal:
        Storage("s3://key:secret@bucket/here")
    assert "secret" not in str(refusal.value)


def test_a_fault_that_passes_is_got_over_and_missing_rights_are_told_at_once(url, monkeypatch):
    there, attempts = Storage(url), []

    def request(system: Any, path: str) -> str:
        attempts.append(path)
        if len(attempts) < 3:
            raise ConnectionResetError("reset")
        return "answer"

    assert there._try("read", "one", request) == "answer"
    assert len(attempts) == 3

    def forbidden(system: Any, path: str) -> None:
        attempts.append(path)
        raise PermissionError("Access Denied")

    with pytest.raises(StorageError, match="no right"):
        there._try("write", "one", forbidden)
    assert len(attempts) == 4


def test_of_two_machines_one_gets_the_lease_and_the_other_is_told_who_has_it(url, monkeypatch):
    monkeypatch.setattr(lease, "_machine", lambda: "")
    first = Lease.take(Storage(url), lambda: None, seconds=2.0)
    end = threading.Event()

    def renew() -> None:
        while not end.wait(0.1):
            first.renew()

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    with pytest.raises(RunBusyError, match=r"process .* is working on this run"):
        Lease.take(Storage(url), lambda: None, seconds=2.0)
    end.set()
    thread.join()
    assert first.holds()


def test_a_lease_that_nobody_renews_is_taken_over_and_its_holder_notices(url):
    first = Lease.take(Storage(url), lambda: None, seconds=0.3)
    second = Lease.take(Storage(url), lambda: None, seconds=0.3)
    assert (first.number, second.number) == (1, 2)
    assert not first.holds()
    first.renew()  # as one that wakes up would
    assert second.holds()


def test_a_lease_that_was_given_back_is_free_at_once(url):
    Lease.take(Storage(url), lambda: None, seconds=1000).release()
    assert Lease.take(Storage(url), lambda: pytest.fail("waited"), seconds=1000).number == 2


def test_the_lease_of_a_dead_process_of_this_machine_is_free_at_once(url, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(lease.os, "getpid", lambda: 2**22 + 1)  # beyond the largest process number
        Lease.take(Storage(url), lambda: None, seconds=1000)
    assert Lease.take(Storage(url), lambda: pytest.fail("waited"), seconds=1000).number == 2


# --- replay


def _write_episodes(replay: Replay, first: int, count: int) -> None:
    for index in range(first, first + count):
        steps = 5 + index % 3
        obs = np.full((steps + 1, 2), index, np.float32) + np.arange(steps + 1, dtype=np.float32)[:, None] / 100
        replay.add(obs, np.full((steps, 1), index / 100, np.float32), np.arange(steps) + index, np.zeros(steps, bool))


def test_a_store_made_of_its_segments_holds_and_samples_what_the_old_one_did(tmp_path):
    shape = {"task": "pendulum-swingup", "obs_shape": (2,), "obs_dtype": "float32", "action_dim": 1}
    pieces: dict[str, bytes] = {}
    segments = []
    with Replay.create(tmp_path / "old", capacity=30, slack=20, **shape) as old:
        stored = 0
        for begin in range(0, 24, 2):  # 24 episodes of 6 to 8 rows: 168 rows, more than three times round the ring
            _write_episodes(old, begin, 2)
            old.mark_checkpoint()
            now = extent(old.folder)
            pieces[str(stored)] = read_segment(old.folder, stored, now.rows)
            segments.append(Segment(str(stored), stored, now.rows))
            stored = now.rows
        assert now.rows == 168
        needed = [part for part in segments if part.end > now.oldest_row]
        assert len(needed) < len(segments)
        log = read_log(old.folder, now.episodes)
        make_store(tmp_path / "new", read_description(old.folder), log, needed, pieces.__getitem__)
        with Replay.open(tmp_path / "new") as new:
            new.restore(old.state())
            assert (new.num_rows, new.num_episodes, new.num_starts) == (old.num_rows, old.num_episodes, old.num_starts)
            drawn = [store.sample(64, torch.Generator().manual_seed(1)) for store in (old, new)]
            for name in drawn[0]:
                assert torch.equal(drawn[0][name], drawn[1][name]), name
            _write_episodes(new, 24, 2)
            assert new.num_episodes > 0


def test_a_damaged_segment_leaves_the_store_that_is_there(tmp_path):
    shape = {"task": "pendulum-swingup", "obs_shape": (2,), "obs_dtype": "float32", "action_dim": 1}
    with Replay.create(tmp_path / "store", capacity=30, slack=20, **shape) as replay:
        _write_episodes(replay, 0, 2)
        replay.flush()
        pieces = read_description(replay.folder), read_log(replay.folder, 2)
    with pytest.raises(UserError, match="rows-1: damaged"):
        make_store(tmp_path / "store", *pieces, [Segment("rows-1", 0, 13)], lambda name: b"PK\x03\x04 cut off")
    with Replay.open(tmp_path / "store", writable=False) as replay:
        assert replay.num_rows == 13
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


# --- runs


def test_a_run_that_moves_to_another_machine_by_s3_ends_as_one_that_never_moved(
    s3, machine, untouched, contents, identical
):
    one, other = machine("one"), machine("other")
    stop, stopping = stop_after(75)
    with pytest.raises(Stopped):
        train_stored(one, f"{s3}/moved", show_progress=False, stop=stop, train=stopping)
    shutil.rmtree(one.results_dir)
    folder = train_stored(other, f"{s3}/moved", show_progress=False)
    identical(contents(folder), untouched)

    stored = StoredRun(Storage(f"{s3}/moved/runs/{other.run_name}"))
    status = stored.status()
    assert status is not None
    assert status.state == "done"
    numbers = {name.partition("/")[0] for name in stored.objects}
    assert numbers == {"lease", "000002"}, "what the first machine stored is not needed any more"
    state = stored.state()
    assert state is not None
    assert all(part.end > state.previous.replay.oldest_row for part in state.segments)
    kept = [name for name in stored.objects if name.endswith(".pt")]
    assert len(kept) == 2


def test_machines_that_die_between_two_uploads_leave_a_state_that_fits_together(
    url, machine, untouched, contents, identical, faults, monkeypatch
):
    """Each begins with an empty disk, stores a checkpoint at least, and dies while it stores another."""
    monkeypatch.setattr(lease, "_machine", lambda: "")
    for kind in ("state", "rows", "checkpoint", "replay", "train", "status"):
        faults.die_at(kind)
        with pytest.raises(Killed):
            train_stored(machine(f"dies-at-{kind}"), url, show_progress=False)
    faults.end()
    folder = train_stored(machine("last"), url, show_progress=False)
    assert lease.latest(Storage(f"{url}/runs/{folder.path.name}").find()) == 7
    identical(contents(folder), untouched)


def test_a_storage_that_fails_for_a_while_holds_all_of_the_run_in_the_end(
    url, machine, untouched, contents, identical, faults, capfd
):
    faults.between(40, 43)
    train_stored(machine("one"), url, show_progress=False)
    assert "training goes on" in capfd.readouterr().err
    config = machine("other")
    folder = RunFolder.of(config)
    stored = StoredRun(Storage(f"{url}/runs/{config.run_name}"))
    state = stored.state()
    assert state is not None
    fetch_run(stored, state, folder, lambda: None)
    identical(contents(folder), untouched)


def test_a_run_that_cannot_be_stored_in_the_end_has_failed_and_the_same_call_stores_it(url, machine, faults):
    config = machine("one")
    faults.between(40)
    with pytest.raises(StorageError):
        train_stored(config, url, show_progress=False)
    status = RunFolder.of(config).read_status()
    assert status is not None
    assert status.state == "failed"
    assert "not all of it could be stored: unreachable" in status.message
    faults.end()
    train_stored(config, url, show_progress=False)
    stored = StoredRun(Storage(f"{url}/runs/{config.run_name}"))
    status, state = stored.status(), stored.state()
    assert status is not None
    assert status.state == "done"
    assert state is not None
    assert state.checkpoint.replay.rows == 105  # 5 episodes of 20 steps; the last step's episode is under way


def test_a_checkpoint_that_the_storage_has_damaged_gives_way_to_the_one_before(
    url, machine, untouched, contents, identical, capfd
):
    stop, stopping = stop_after(75)
    with pytest.raises(Stopped):
        train_stored(machine("one"), url, show_progress=False, stop=stop, train=stopping)
    place = Storage(f"{url}/runs/{machine('one').run_name}")
    state = StoredRun(place).state()
    assert state is not None
    content = place.read(state.checkpoint.name)
    assert content is not None
    place.write(state.checkpoint.name, content[: len(content) // 2])
    folder = train_stored(machine("other"), url, show_progress=False)
    assert "going on from the checkpoint before it" in capfd.readouterr().err
    identical(contents(folder), untouched)


def test_a_machine_that_comes_back_goes_on_from_what_another_did_meanwhile(
    url, machine, untouched, contents, identical
):
    for steps, name in ((45, "one"), (75, "other")):
        stop, stopping = stop_after(steps)
        with pytest.raises(Stopped):
            train_stored(machine(name), url, show_progress=False, stop=stop, train=stopping)
    noted: list[int] = []

    def noting(config: Config, *rest: Any) -> RunFolder:
        noted.append(torch.load(RunFolder.of(config).checkpoint, weights_only=True)["steps"])
        return train(config, *rest)

    folder = train_stored(machine("one"), url, show_progress=False, train=noting)
    assert noted == [75]
    identical(contents(folder), untouched)


def test_a_run_that_was_trained_without_the_storage_is_not_replaced_by_one_that_is_there(url, machine):
    stop, stopping = stop_after(15)
    with pytest.raises(Stopped):
        train_stored(machine("one"), url, show_progress=False, stop=stop, train=stopping)
    stop, stopping = stop_after(30)
    config = machine("other")
    with pytest.raises(Stopped):
        stopping(config, False, stop, lambda: None)
    before = RunFolder.of(config).checkpoint.read_bytes()
    with pytest.raises(UserError, match="did not come from"):
        train_stored(config, url, show_progress=False)
    assert RunFolder.of(config).checkpoint.read_bytes() == before


def test_a_run_whose_lease_is_taken_over_stops_and_stores_nothing_more(url, machine):
    config = machine("one")
    place = Storage(f"{url}/runs/{config.run_name}")
    before: list[dict[str, Any]] = []

    def robbed(config: Config, show_progress: bool, stop: StopRequest | None, saved: Callable[[], None]) -> Any:
        def on_checkpoint() -> None:
            if not before:
                saved()
                place.create("lease/000002.json", json.dumps({"somebody": "else"}).encode())
                before.append(place.find())
            saved()

        return train(config, show_progress, stop, on_checkpoint)

    with pytest.raises(RunBusyError, match="taken over"):
        train_stored(config, url, show_progress=False, train=robbed)
    assert place.find() == before[0]


def test_a_run_that_is_done_is_fetched_for_its_records_and_not_trained_again(url, machine):
    train_stored(machine("one"), url, show_progress=False)
    config = machine("other")
    folder = train_stored(config, url, show_progress=False)
    assert folder.read_config().identity() == dataclasses.replace(config).identity()
    assert folder.eval_csv.read_text() == RunFolder.of(machine("one")).eval_csv.read_text()
    assert not folder.checkpoint.exists()
    place = Storage(f"{url}/runs/{config.run_name}")
    assert lease.latest(place.find()) == 1
