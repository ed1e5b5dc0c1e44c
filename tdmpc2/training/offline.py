"""Offline training of one agent on a data set of many tasks; resumable between any two updates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.execution import choose_device, resume_execution
from tdmpc2.agent.parts import check_division
from tdmpc2.agent.replicas import Replicas
from tdmpc2.config import Config
from tdmpc2.data.dataset import MANIFEST, Dataset
from tdmpc2.data.multitask import MultitaskReplay, parse_task_weights
from tdmpc2.data.prefetch import Prefetcher
from tdmpc2.envs.make import why_unavailable
from tdmpc2.errors import UserError, require
from tdmpc2.seeding import Stream, derive_seed
from tdmpc2.tasks import get_task
from tdmpc2.training.checkpointing import CheckpointClock, RunCheckpoints, StoredCheckpoint
from tdmpc2.training.datasets import find_dataset
from tdmpc2.training.distributed import Team
from tdmpc2.training.divergence import DivergedError, diverged, losses_are_finite, weights_are_finite
from tdmpc2.training.evaluation import Evaluator, processes_pay, summarise
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.logs import OFFLINE_TRAIN_COLUMNS, RunLogs, RunningMeans
from tdmpc2.training.progress import RunProgress
from tdmpc2.training.runtime import Stopped, StopRequest, available_cores

LOG_UPDATES = 100
"""Updates between two rows of train.csv, which are means over them."""
CHECKPOINT = "agent data last_evaluation seconds replay_stream means logs".split()
"""What a checkpoint holds."""


def open_data(config: Config) -> Dataset:
    """The data set that a run learns from: the stores of its tasks, numbered as in the run.

    Raises:
        UserError: there is none of that name, it is damaged, or it lacks a task.
    """
    assert config.data is not None
    return find_dataset(config.data, config.results_dir, config.exp_name).select(config.tasks)


def check_offline(config: Config, processes: int = 1) -> None:
    """Check what can be checked of an offline run before anything starts, the state of its data included.

    Args:
        config: the run's settings.
        processes: how many share each batch.

    Raises:
        UserError: it cannot be trained so; names the setting, or the store.
    """
    data = open_data(config)
    parse_task_weights(config.task_weights, data)
    data.check()
    shortest = min(task.episode_length for task in data.tasks)
    check_division(config.sequences, config.accumulate, Replicas(0, processes))
    require(config.horizon <= shortest, f"horizon: {config.horizon} is longer than an episode ({shortest} agent steps)")


class OfflineTraining:
    """A run under way. Its state is whole between any two updates, and is what a checkpoint holds.

    Args:
        config: the run's settings.
        folder: its folder, claimed by the leading process.
        stop: heeded between any two updates or steps of an evaluation.
        progress: told how far the run is.
        team: the run's processes.
        saved: called in the leading process after each checkpoint, once it is on disk for good.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        stop: StopRequest,
        progress: RunProgress,
        team: Team | None = None,
        saved: Callable[[], None] | None = None,
    ) -> None:
        self.config, self.folder, self._stop, self._progress, self._saved = config, folder, stop, progress, saved
        self._team = team = team if team is not None else Team()
        self.data = open_data(config)
        self.last_evaluation: int | None = None
        """Update of the last evaluation."""
        self._means = RunningMeans()
        self._metrics: dict[str, Tensor] = {}

        self._checkpoints = RunCheckpoints(folder, progress.note)
        found = self._read_checkpoint()
        state = None if found is None else found.state
        device = choose_device(team.device(config.device))
        execution = resume_execution(config, device, None if state is None else state["agent"].get("execution"))
        replicas = Replicas(team.rank, team.size)
        self.agent = TDMPC2(config, self.data.spec, str(device), execution, replicas)
        if execution.notice:
            progress.note(execution.notice)
        weights = parse_task_weights(config.task_weights, self.data)
        self.replay = MultitaskReplay(self.data, config.horizon, weights)
        stream = torch.Generator().manual_seed(derive_seed(config.seed, Stream.REPLAY))
        part = (team.rank, team.size)
        self._batches = Prefetcher(self.replay, config.sequences, stream, device, part)
        self._evaluator: Evaluator | None = None
        self._evaluated = [task.name for task in self.data.tasks if not why_unavailable(task.name)]
        self._say_what_is_not_evaluated()
        if found is not None:
            self._restore(found)
        seconds = 0.0 if state is None else state["seconds"]
        progress.begin(self.agent.device, 0, self.agent.updates, seconds, str(execution))
        self._clock_of_checkpoints = CheckpointClock(config.checkpoint_freq, self.agent.updates)
        self._logs: RunLogs | None = None
        if team.leads:
            lengths, start = (None, None) if state is None else (state["logs"], self.agent.updates)
            self._logs = RunLogs(folder, config, OFFLINE_TRAIN_COLUMNS, lengths, start)

    # --- the algorithm

    def run(self) -> None:
        """Train to the end of the budget.

        Raises:
            Stopped: a stop was requested; the run is checkpointed.
            DivergedError: a loss or parameter is not a number.
        """
        try:
            while True:
                if self._evaluation_is_due():
                    self._evaluate()
                if self.agent.updates >= self.config.total_updates:
                    break
                self._learn()
                if self._team.any(self._stop.requested):
                    raise Stopped
                if self._clock_of_checkpoints.is_due(self.agent.updates):
                    self.save()
        except Stopped:
            self.save()
            raise
        except FloatingPointError as error:
            raise self._diverged(str(error)) from error
        self._tell("finished")
        self.save()

    def _learn(self) -> None:
        """One update."""
        self._metrics = self.agent.update(self._batches.next())
        self._means.add(self._metrics)
        if not losses_are_finite(self.agent, self._metrics):
            raise self._diverged("a loss or its gradient is not a number")
        if self.agent.updates % LOG_UPDATES == 0 or self.agent.updates == self.config.total_updates:
            means = self._means.take()
            if self._logs is not None:
                self._logs.write_train(self._clock() | means)
        self._tell("learning")

    def _evaluation_is_due(self) -> bool:
        updates = self.agent.updates
        if not self._evaluated or updates == self.last_evaluation:
            return False
        at_end = updates >= self.config.total_updates
        return self.last_evaluation is None or updates % self.config.eval_freq == 0 or at_end

    def _evaluate(self) -> None:
        """Evaluate in the leading process, while the others wait."""
        interruption: BaseException | None = None
        if self._team.leads:
            try:
                self._evaluate_here()
            except (Stopped, FloatingPointError, KeyboardInterrupt) as error:
                interruption = error
        if self._team.any(interruption is not None):
            raise interruption if interruption is not None else Stopped
        self.last_evaluation = self.agent.updates

    def _evaluate_here(self) -> None:
        longest = max(get_task(name).episode_length for name in self._evaluated)

        def on_step(step: int) -> None:
            self._stop.check()
            self._tell(f"evaluating {len(self._evaluated)} tasks, step {step} of {longest}")

        if self._evaluator is None:
            config = self.config
            episodes = [name for name in self._evaluated for _ in range(config.eval_episodes)]
            evaluations = 1 + (config.total_updates - self.agent.updates) // config.eval_freq
            parallel = processes_pay(self.agent.device.type, config.obs, len(episodes), available_cores(), evaluations)
            self._evaluator = Evaluator(episodes, config.obs, config.seed, parallel, self.agent.spec)
        scores = self._evaluator.evaluate(self.agent, self.agent.updates, on_step)
        normalised = []
        for name, outcome in summarise(scores).items():
            task = get_task(name)
            normalised.append(task.score(float(outcome[task.metric])))
            assert self._logs is not None
            self._logs.write_eval(self._clock() | {"task": name} | outcome)
        scored = [score for score in normalised if math.isfinite(score)]  # own tasks may have no score
        if scored:
            self._progress.evaluated(statistics.fmean(scored))

    # --- records

    def _clock(self) -> dict[str, Any]:
        return {"updates": self.agent.updates, "seconds": round(self._progress.seconds, 1)}

    def _tell(self, phase: str) -> None:
        self._progress.update(phase, 0, self.agent.updates)

    def _say_what_is_not_evaluated(self) -> None:
        left_out = [task.name for task in self.data.tasks if task.name not in self._evaluated]
        if left_out:
            names = ", ".join(left_out[:4]) + (f" and {len(left_out) - 4} more" if len(left_out) > 4 else "")
            self._progress.note(
                f"{len(left_out)} of {len(self.data.tasks)} tasks are learned but not evaluated, since they "
                f"cannot be run here: {names} (`tdmpc2 tasks` says why)"
            )

    def _diverged(self, reason: str) -> DivergedError:
        when = f"update {self.agent.updates:,}"
        return diverged(reason, when, self._metrics, self.folder.newest_checkpoint())

    # --- checkpoints

    def save(self) -> None:
        """Write a checkpoint, in the leading process. A run killed after this goes on from here.

        Raises:
            DivergedError: a parameter is not a number; the checkpoint before this stays.
            UserError: the disk is full; likewise.
        """
        self._clock_of_checkpoints.written(self.agent.updates)
        if not weights_are_finite(self.agent):
            raise self._diverged("a parameter is not a number")
        if self._logs is None:
            return
        self._logs.flush()
        state = {
            "agent": self.agent.state_dict(),
            "steps": 0,  # of the environment; `Evaluator` and evaluations.csv ask for them
            "data": self.data.fingerprint(),
            "last_evaluation": self.last_evaluation,
            "seconds": self._progress.seconds,
            "replay_stream": self._batches.state(),
            "means": self._means.state_dict(),
            "logs": self._logs.lengths(),
        }
        self._checkpoints.write(state)
        if self._saved is not None:
            self._saved()

    def _read_checkpoint(self) -> StoredCheckpoint | None:
        fault: UserError | None = None
        found = None
        if self._team.leads:  # first and alone: the others read what it takes, never another one
            try:
                found = self._checkpoints.read(CHECKPOINT, "an offline run")
            except UserError as error:  # raised below, once the others know
                fault = error
        if self._team.any(fault is not None):
            raise Stopped if fault is None else fault
        if not self._team.leads:
            found = self._checkpoints.read(CHECKPOINT, "an offline run", keep_aside=False)
        if found is None:
            return None
        if found.state["data"] != self.data.fingerprint():
            raise UserError(
                f"{self.folder.path}: was trained on other data than {self.data.folder / MANIFEST} names now (what it "
                f"was, tells {self.folder.data_manifest}); put that data set back, or begin anew with another label="
            )
        return found

    def _restore(self, found: StoredCheckpoint) -> None:
        state = found.state
        self.agent.load_state_dict(state["agent"], found.path)
        self.last_evaluation = state["last_evaluation"]
        self._means.load_state_dict(state["means"], self.agent.device)
        self._batches.load_state(state["replay_stream"])
        self._progress.note(f"resuming {self.folder.path} at update {self.agent.updates:,}")

    def close(self) -> None:
        """Close environments and files."""
        if self._evaluator is not None:
            self._evaluator.close()
        self._batches.close()
        self.replay.close()
        if self._logs is not None:
            self._logs.close()
