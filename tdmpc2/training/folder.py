"""One run = one folder: settings, status, logs, checkpoint, replay; one process at a time."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TextIO

import yaml

from tdmpc2.config import Config, make_settings
from tdmpc2.errors import RunBusyError, UserError
from tdmpc2.own_tasks import RECORD, differences, enter_record, read_record, record_of
from tdmpc2.tasks import get_task

State = Literal["running", "done", "failed", "interrupted"]
LOCK_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a run has come; the content of its status.json."""

    state: State
    agent_steps: int
    total_agent_steps: int
    env_steps: int
    total_env_steps: int
    updates: int
    seconds: float
    """Wall-clock time spent on the run so far, over all its processes."""
    seconds_left: float | None
    """Estimate; None where there is nothing to go by yet."""
    phase: str
    """What the run is at: acting at random, learning, evaluating."""
    last_return: float | None
    """Return (or success) of the last evaluation."""
    message: str
    """Why it failed or stopped."""
    digest: str
    version: str
    device: str
    hardware: str
    pid: int
    host: str
    updated: float
    """Unix time of writing."""
    execution: str = ""
    """Precision and compiling, e.g. `float32, kernels`."""
    total_updates: int = 0
    """Updates of the whole run."""


class RunFolder:
    """The paths of a run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock_file = self.path / ".lock"
        self._lock: TextIO | None = None

    # Made when they are asked for: a look at the states of 10,000 runs needs one or two of each.

    @cached_property
    def config_file(self) -> Path:
        """Its settings."""
        return self.path / "config.yaml"

    @cached_property
    def status_file(self) -> Path:
        """How far it has come."""
        return self.path / "status.json"

    @cached_property
    def train_csv(self) -> Path:
        """A row for each training episode."""
        return self.path / "train.csv"

    @cached_property
    def eval_csv(self) -> Path:
        """A row for each evaluation."""
        return self.path / "eval.csv"

    @cached_property
    def checkpoint(self) -> Path:
        """What the run goes on from."""
        return self.path / "checkpoint" / "latest.pt"

    @cached_property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before the latest."""
        return self.path / "checkpoint" / "previous.pt"

    @cached_property
    def damaged_checkpoint(self) -> Path:
        """A latest checkpoint that could not be read."""
        return self.path / "checkpoint" / "damaged-latest.pt"

    @cached_property
    def replay(self) -> Path:
        """Its replay store."""
        return self.path / "replay"

    @cached_property
    def data_manifest(self) -> Path:
        """What an offline run learned from."""
        return self.path / "dataset.json"

    @cached_property
    def own_tasks(self) -> Path:
        """What is known of its own tasks."""
        return self.path / RECORD

    @cached_property
    def tensorboard(self) -> Path:
        """Events."""
        return self.path / "tensorboard"

    @cached_property
    def videos(self) -> Path:
        """Films of evaluations."""
        return self.path / "videos"

    @classmethod
    def of(cls, config: Config) -> RunFolder:
        """The folder that belongs to a config: results_dir/exp_name/runs/RUN."""
        return cls(Path(config.results_dir) / config.exp_name / "runs" / config.run_name)

    def newest_checkpoint(self) -> Path:
        """The checkpoint that the run would go on from: the latest, or the one before it where that alone is there.

        Returns:
            its path; `checkpoint` where there is none yet.
        """
        alone = self.previous_checkpoint.exists() and not self.checkpoint.exists()
        return self.previous_checkpoint if alone else self.checkpoint

    def claim(self, config: Config) -> None:
        """Make the folder this process's own, new or to resume.

        Raises:
            RunBusyError: another process is on it.
            UserError: it cannot be made, or holds a run with other settings; names them.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock_file.open("a+")
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(f"{self.path}: cannot be made the run's folder ({error.strerror})") from None
        try:
            if not _lock_for_writing(self._lock):
                self._lock.seek(0)
                owner = self._lock.read().strip() or "another process"
                raise RunBusyError(f"{self.path}: {owner} is working on this run; wait for it or stop it first")
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()}")
            self._lock.flush()
            for unfinished in (*self.path.glob(".*.tmp"), *self.checkpoint.parent.glob(".*.tmp")):
                unfinished.unlink()  # left by a process that was killed while writing
            if self.config_file.exists():
                self._check_same(config)
            else:
                own = record_of(config.tasks)
                if own:
                    write_text(self.own_tasks, own)
                write_text(self.config_file, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.close()  # the kernel frees the lock, as it does when a process is killed
            self._lock = None

    def _check_same(self, config: Config) -> None:
        there, now = self.read_config().identity(), config.identity()
        changed = [f"{k}={there.get(k)} there, {k}={now.get(k)} now" for k in now if there.get(k) != now.get(k)]
        for task in read_record(self.own_tasks):
            other = differences(task, get_task(task.name))
            changed += [f"task {task.name}: {other}"] if other else []
        if changed:
            raise UserError(
                f"{self.path}: holds a run with other settings ({'; '.join(changed)}). "
                "Give the new run another label= or exp_name=, or use the old settings to resume"
            )

    def read_config(self) -> Config:
        """The run's settings.

        Raises:
            UserError: there are none, or they are damaged; names the file and the field.
        """
        if not self.config_file.is_file():
            raise UserError(f"{self.path}: not a run's folder (no {self.config_file.name})")
        try:
            values = yaml.safe_load(self.config_file.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{self.config_file}: damaged ({error})") from None
        if not isinstance(values, dict):
            raise UserError(f"{self.config_file}: damaged (not a mapping of settings)")
        enter_record(self.own_tasks)  # so that own tasks are known without running the code that registers them
        return make_settings(Config, values, where=str(self.config_file))

    def write_status(self, status: Status) -> None:
        """Write status.json, whole."""
        write_text(self.status_file, json.dumps(dataclasses.asdict(status), indent=1))

    def read_status(self) -> Status | None:
        """The run's status; None where it has not begun, or its status is damaged."""
        try:
            values: dict[str, Any] = json.loads(self.status_file.read_text())
            return Status(**values)
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError, TypeError):
            return None

    def is_claimed(self) -> bool:
        """Whether a living process is on the run."""
        if not self._lock_file.exists():
            return False
        with self._lock_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def _lock_for_writing(file: TextIO) -> bool:
    """Lock a file for this process alone; false where another one keeps it locked."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)  # `is_claimed` of another process holds it for a moment
        else:
            return True
    return False


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
