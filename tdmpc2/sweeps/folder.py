"""A sweep's folder: results/NAME with plan.json, a copy of the declaration, and runs/RUN/."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pydantic

from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.own_tasks import RECORD, record_of
from tdmpc2.tasks import expand_tasks, get_task
from tdmpc2.training.folder import RunFolder, write_text

Kind = Literal["online", "offline", "finetune"]
"""How a run learns: `online` in its environment, `offline` from a data set, or online from a checkpoint."""


def kind_of(config: Config) -> Kind:
    """How a run of these settings learns."""
    if config.offline:
        return "offline"
    return "online" if config.checkpoint is None else "finetune"


@pydantic.dataclasses.dataclass(frozen=True)
class PlanEntry:
    """One run of plan.json."""

    name: str
    task: str
    model_size: int
    seed: int
    agent_steps: int
    """Budget in agent steps."""
    env_steps: int
    """Budget in environment steps."""
    updates: int = 0
    """Budget in updates; 0 in plans of the first versions, where each agent step came with one."""
    kind: Kind = "online"
    gpus: float = 0.0
    """Share of a GPU, or number of them, that it asks for."""
    data: str = ""
    """The data set that it learns from, if any."""

    @classmethod
    def of(cls, config: Config, gpus: float = 0.0) -> PlanEntry:
        """The line of a run of these settings."""
        return cls(
            name=config.run_name,
            task=config.task,
            model_size=config.model_size,
            seed=config.seed,
            agent_steps=config.agent_steps,
            env_steps=config.agent_steps * get_task(config.tasks[0]).action_repeat,
            updates=config.total_updates,
            kind=kind_of(config),
            gpus=gpus,
            data=config.data or "",
        )

    @property
    def total_updates(self) -> int:
        """Budget in updates, in a plan of any version."""
        return self.updates or self.agent_steps


class SweepFolder:
    """The paths and records of one sweep.

    Args:
        results_dir: folder of all results.
        name: the sweep's name.
    """

    def __init__(self, results_dir: str | os.PathLike[str], name: str) -> None:
        self.name = name
        self.path = Path(results_dir) / name
        self.plan_file = self.path / "plan.json"
        self.declaration_file = self.path / "sweep.yaml"
        self.failures_file = self.path / "failures.json"
        self._lock_file = self.path / ".lock"

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the sweep for this process; make its folder where there is none.

        Raises:
            UserError: another process runs it, or the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._lock_file.open("a+")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be made the sweep's folder ({error.strerror})") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                raise UserError(f"{self.path}: {owner} is running this sweep; wait for it or stop it first") from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()}")
            lock.flush()
            yield

    def run(self, name: str) -> RunFolder:
        """The folder of one of its runs."""
        return RunFolder(self.path / "runs" / name)

    def run_names(self) -> list[str]:
        """Names of the runs that have a folder, sorted."""
        runs = self.path / "runs"
        return sorted(entry.name for entry in os.scandir(runs) if entry.is_dir()) if runs.is_dir() else []

    def write_plan(self, entries: Sequence[PlanEntry], declaration: str) -> None:
        """Record what is to be run, in place of an earlier plan; an earlier declaration is kept beside the new one.

        Args:
            entries: all runs of the sweep.
            declaration: content of its file.
        """
        own = record_of(name for entry in entries for name in expand_tasks(entry.task))
        if own:  # so that a report knows them without running the code that registers them
            write_text(self.path / RECORD, own)
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        runs = [pydantic.TypeAdapter(PlanEntry).dump_python(entry) for entry in entries]
        write_text(self.plan_file, json.dumps({"name": self.name, "created": created, "runs": runs}, indent=1))
        if self.declaration_file.exists():
            if self.declaration_file.read_text() == declaration:
                return
            until = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
            self.declaration_file.rename(self.path / f"sweep.until-{until}.yaml")
        write_text(self.declaration_file, declaration)

    def read_plan(self) -> list[PlanEntry]:
        """The planned runs; none where the sweep has not been run.

        Raises:
            UserError: plan.json is damaged.
        """
        if not self.plan_file.exists():
            return []
        try:
            runs = json.loads(self.plan_file.read_text())["runs"]
            return pydantic.TypeAdapter(list[PlanEntry]).validate_python(runs)
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.plan_file}: damaged ({reason}); `tdmpc2 sweep run {self.name}` writes it anew"
            ) from None

    def read_failures(self) -> dict[str, str]:
        """Why runs were given up, by name; a run's own status cannot tell when its process was killed."""
        try:
            failures = json.loads(self.failures_file.read_text())
            return {str(name): str(reason) for name, reason in failures.items()}
        except (FileNotFoundError, ValueError, AttributeError):  # damaged: what the runs' own statuses tell remains
            return {}

    def write_failures(self, failures: Mapping[str, str]) -> None:
        """Replace the record of runs that were given up."""
        if failures or self.failures_file.exists():
            write_text(self.failures_file, json.dumps(dict(failures), indent=1))
