"""Sweeps whose results are in object storage: what the driver keeps there, and what it brings back to its folder.

Below the storage's URL a sweep lies as it does in the results folder: NAME/plan.json, NAME/sweep.yaml,
NAME/datasets/D/dataset.json, and NAME/runs/RUN/, whose parts `tdmpc2.training.stored_run` tells of.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tdmpc2.config import Config
from tdmpc2.errors import UserError, require, unknown_name
from tdmpc2.own_tasks import RECORD
from tdmpc2.sweeps.datasets import MANIFEST, PlannedDataset, PlannedStore
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.planning import PlannedRun
from tdmpc2.training.folder import RunFolder, write_text

if TYPE_CHECKING:
    from tdmpc2.training.folder import Status
    from tdmpc2.training.runtime import StopRequest

PULL_SECONDS = 15.0
"""Seconds between two looks of the driver at the runs in the storage."""
CONNECTIONS = 8
"""Runs that are looked at side by side."""
NOTE = "storage.json"
"""File of the sweep's folder that remembers the storage."""


@dataclasses.dataclass(frozen=True)
class StoredTraining:
    """Trains runs of a sweep in its storage; a `TrainFunction`."""

    url: str
    """The sweep's storage."""

    def __call__(self, config: Config, show_progress: bool, stop: StopRequest) -> None:
        """Train one run, see `tdmpc2.training.run_storage.train_stored`."""
        from tdmpc2.training.run_storage import train_stored

        train_stored(config, self.url, show_progress, stop)


@dataclasses.dataclass(frozen=True)
class StoredDataset(PlannedDataset):
    """A data set that the driver builds without its stores' rows, which stay in the storage."""

    url: str = ""
    """The sweep's storage."""

    def build(self) -> None:
        """Build it, or take the one that is there, and store its manifest.

        Raises:
            UserError: a buffer cannot be used, or the one that is there is another; the storage cannot be reached.
        """
        from tdmpc2.training.storage import Storage, StorageError

        target = self.folder / self.name
        try:
            with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(CONNECTIONS, "storage") as pool:
                sweep = Path(temporary) / "sweep"
                stores = list(pool.map(lambda store: self._skeleton(store, sweep), self.stores))
                built = PlannedDataset(self.name, self.tasks, tuple(stores), sweep / "datasets")
                for file in (RECORD, MANIFEST):
                    if (target / file).is_file():
                        write_text(built.folder / self.name / file, (target / file).read_text())
                built.build()  # holds the one that is there, if any, against the stores
                for file in (RECORD, MANIFEST):
                    source = built.folder / self.name / file
                    if source.is_file():
                        write_text(target / file, source.read_text())
                        Storage(self.url).write(f"datasets/{self.name}/{file}", source.read_bytes())
        except StorageError as error:
            raise UserError(str(error)) from error

    def _skeleton(self, store: PlannedStore, sweep: Path) -> PlannedStore:
        """The store without its rows, below another sweep's folder."""
        from tdmpc2.training.replay_segments import make_skeleton
        from tdmpc2.training.storage import Storage
        from tdmpc2.training.stored_run import StoredRun

        storage = Storage(f"{self.url}/runs/{store.run}")
        state = StoredRun(storage).state()
        extent = None if state is None else state.checkpoint.replay
        if state is None or extent is None:
            raise UserError(f"{storage.url}: has no replay to build a data set from")
        description, log = storage.read(state.description), storage.read(state.log)
        if description is None or log is None:
            raise UserError(f"{storage.url}: the description of its replay is gone")
        skeleton = RunFolder(sweep / "runs" / store.run).replay
        make_skeleton(skeleton, description, log, extent)
        return dataclasses.replace(store, folder=skeleton)


class SweepStorage:
    """A sweep in its storage, seen from a folder of results.

    Args:
        folder: the sweep's folder.
        url: the storage of all results; the sweep lies below it under its own name.

    Raises:
        UserError: not a URL of a storage, or its package is missing.
    """

    def __init__(self, folder: SweepFolder, url: str) -> None:
        from tdmpc2.training.storage import Storage

        self.folder, self.url = folder, url.rstrip("/")
        self.sweep = Storage(f"{self.url}/{folder.name}")
        self._done: set[str] = set()
        """Runs that are done, and whose records are here."""

    @classmethod
    def of(cls, folder: SweepFolder, url: str | None) -> SweepStorage | None:
        """The storage of a sweep: the one given, which must be the one that its folder remembers, if it does.

        Args:
            folder: the sweep's folder.
            url: the storage that was asked for, if any.

        Raises:
            UserError: the folder remembers another; or `url` is none.
        """
        remembered = _remembered(folder)
        if remembered is not None and url is not None and url.rstrip("/") != remembered:
            raise UserError(
                f"--storage {url}: {folder.path} is of the sweep in {remembered}; use that, or another --results folder"
            )
        used = url if url is not None else remembered
        return None if used is None else cls(folder, used)

    def remember(self) -> None:
        """Write the storage's URL into the sweep's folder."""
        write_text(_note(self.folder), json.dumps({"url": self.url}, indent=1))

    @property
    def training(self) -> StoredTraining:
        """What trains the sweep's runs."""
        return StoredTraining(self.sweep.url)

    # --- the driver

    def prepare(self, runs: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
        """Check that the storage can be used, and bring here what it knows of the sweep.

        Args:
            runs: the runs that are to be executed.

        Returns:
            the runs as they are executed by storage.

        Raises:
            UserError: the storage cannot be used, or runs that are here are not its own.
        """
        from tdmpc2.training.storage import StorageError

        self.sweep.check()
        try:
            if not self.folder.plan_file.exists():
                self._fetch_own_files()
            self._fetch_datasets()
            self.pull()
        except StorageError as error:
            raise UserError(str(error)) from error
        self.remember()
        return tuple(self._stored(run) for run in runs)

    def _stored(self, run: PlannedRun) -> PlannedRun:
        dataset = run.dataset
        if dataset is None:
            return run
        url = self.sweep.url
        stored = StoredDataset(dataset.name, dataset.tasks, dataset.stores, dataset.folder, url)
        return dataclasses.replace(run, dataset=stored)

    def push_plan(self) -> None:
        """Store the sweep's plan and declaration as they stand in its folder.

        Raises:
            StorageError: the storage cannot be reached.
        """
        for file in self._own_files():
            self.sweep.write(file.name, file.read_bytes())

    def _own_files(self) -> list[Path]:
        return [file for file in self.folder.path.iterdir() if file.is_file() and _is_of_sweep(file.name)]

    @contextmanager
    def driving(self) -> Iterator[None]:
        """`pulling`, for who executes the sweep: stores its plan before, and what has failed after it."""
        self._try(self.push_plan)
        try:
            with self.pulling():
                yield
            self._try(self.pull)
        finally:
            self._try(self.push_plan)

    @contextmanager
    def pulling(self) -> Iterator[None]:
        """Bring the runs' records here every `PULL_SECONDS`, in a thread beside the caller's.

        A storage that cannot be reached is told of once, and asked again.
        """
        end = threading.Event()
        thread = threading.Thread(target=self._pull_until, args=(end,), name="storage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def _pull_until(self, end: threading.Event) -> None:
        told = False
        while not end.wait(PULL_SECONDS):
            told = not self._try(self.pull, quiet=told)

    def _try(self, request: Callable[[], object], quiet: bool = False) -> bool:
        from tdmpc2.training.storage import StorageError

        try:
            request()
        except (StorageError, OSError) as error:
            if not quiet:
                print(f"what is shown may be old: {error}", file=sys.stderr, flush=True)
            return False
        return True

    def refresh(self) -> None:
        """Bring the sweep here to be looked at; where that fails, say so, and the old records remain."""

        def bring() -> None:
            if not self.folder.plan_file.exists():
                self._fetch_own_files()
            self.pull()

        self._try(bring)

    # --- bringing it here

    def pull(self) -> None:
        """Bring here the records of the runs that have begun; of those that are done, once.

        Raises:
            StorageError: the storage cannot be reached.
        """
        names = [name for name in self.sweep.entries("runs")[1] if name not in self._done]
        with ThreadPoolExecutor(CONNECTIONS, "storage") as pool:
            for name, status in zip(names, pool.map(self._pull_run, names), strict=True):
                if status is not None and status.state == "done":
                    self._done.add(name)

    def _pull_run(self, name: str) -> Status | None:
        from tdmpc2.training.fetching import pull_records

        run = self.sweep.below(f"runs/{name}"), self.folder.run(name)
        status = pull_records(*run)
        if status is not None and status.state == "done":
            # The status is fetched last: it may be newer than the listing that told which of the others had changed.
            status = pull_records(*run)
        return status

    def _fetch_own_files(self) -> bool:
        names = [name for name in self.sweep.entries()[0] if _is_of_sweep(name)]
        for name in names:
            self.sweep.download(name, self.folder.path / name)
        return bool(names)

    def fetch(self, checkpoints: bool, replay: bool) -> tuple[int, int]:
        """Bring the sweep here: its plan, the manifests of its data sets, all runs' records, and more where asked for.

        Args:
            checkpoints: whether to bring the runs' checkpoints.
            replay: whether to bring their replay.

        Returns:
            how many runs there are, and from how many of them checkpoints or replay came.

        Raises:
            UserError: the storage has no sweep of this name; a run's part is damaged; another run is in its folder.
            StorageError: the storage cannot be reached.
        """
        if not self._fetch_own_files():
            from tdmpc2.training.storage import Storage

            raise unknown_name("sweep", self.folder.name, Storage(self.url).entries()[1], self.url)
        self._fetch_datasets()
        self.pull()
        self.remember()
        names = self.sweep.entries("runs")[1]
        fetched = [self._fetch_run(name, checkpoints, replay) for name in names] if checkpoints or replay else []
        return len(names), sum(fetched)

    def _fetch_run(self, name: str, checkpoints: bool, replay: bool) -> bool:
        from tdmpc2.training.fetching import fetch_run, unclaimed
        from tdmpc2.training.stored_run import StoredRun

        folder = self.folder.run(name)
        stored = StoredRun(self.sweep.below(f"runs/{name}"))
        state = stored.state()
        if state is None:
            return False
        with unclaimed(folder) as free:
            require(free, f"{folder.path}: a process of this machine is working on this run; its files are here")
            fetch_run(stored, state, folder, lambda: None, checkpoints, replay)
        return True

    def _fetch_datasets(self) -> None:
        for name in self.sweep.find("datasets"):
            file = self.folder.path / name
            if not file.exists():
                self.sweep.download(name, file)


def _is_of_sweep(name: str) -> bool:
    """Whether a file of the sweep's folder tells what the sweep is, and so belongs into the storage."""
    return not name.startswith(".") and name != NOTE


def _note(folder: SweepFolder) -> Path:
    return folder.path / NOTE


def _remembered(folder: SweepFolder) -> str | None:
    try:
        url = json.loads(_note(folder).read_text())["url"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{_note(folder)}: damaged ({error}); delete it and give --storage again") from None
    require(isinstance(url, str), f"{_note(folder)}: damaged; delete it and give --storage again")
    return str(url)


# --- the command line


def add_storage_option(parser: argparse.ArgumentParser) -> None:
    """Add `--storage`."""
    parser.add_argument(
        "--storage", metavar="URL", help="object storage that holds the results, e.g. s3://BUCKET/PREFIX (see docs)"
    )


def storage_of(args: argparse.Namespace, name: str) -> SweepStorage | None:
    """The storage of a sweep by the command line and its folder; None where it is on disks alone.

    Raises:
        UserError: the two differ, or there is no such storage.
    """
    return SweepStorage.of(SweepFolder(args.results, name), args.storage)


def fetch_sweep(args: argparse.Namespace) -> int:
    """`tdmpc2 sweep fetch NAME`."""
    from tdmpc2.training.storage import StorageError

    storage = storage_of(args, args.name)
    if storage is None:
        raise UserError(f"{args.name}: give --storage URL, where the sweep is (its folder here remembers none)")
    try:
        runs, fetched = storage.fetch(args.checkpoints, args.replay)
    except StorageError as error:
        raise UserError(str(error)) from error
    parts = [word for word, wanted in (("checkpoints", args.checkpoints), ("replay", args.replay)) if wanted]
    more = f"; {' and '.join(parts)} of {fetched}" if parts else ""
    print(f"{args.name}: records of {runs} runs{more}; results in {storage.folder.path}")
    return 0


def add_fetch(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tdmpc2 sweep fetch`."""
    parser.add_argument("name", metavar="NAME", help="the sweep's name in the storage")
    add_storage_option(parser)
    parser.add_argument("--checkpoints", action="store_true", help="bring the runs' checkpoints too")
    parser.add_argument("--replay", action="store_true", help="bring the runs' replay too")
