"""Online training of one task: act, remember, learn, evaluate; resumable between any two steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.execution import Execution, choose_device, resume_execution
from tdmpc2.config import Config
from tdmpc2.data.prefetch import Prefetcher
from tdmpc2.data.replay import EMPTY_STATE, Replay
from tdmpc2.errors import require
from tdmpc2.seeding import Stream, derive_seed
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import get_task
from tdmpc2.training.checkpointing import CheckpointClock, RunCheckpoints, StoredCheckpoint
from tdmpc2.training.collector import Collector, Episode
from tdmpc2.training.divergence import DivergedError, diverged, losses_are_finite, weights_are_finite
from tdmpc2.training.evaluation import Evaluator, processes_pay, summarise
from tdmpc2.training.finetune import TaskOfMany, begin_finetuning, resume_finetuning
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.logs import TRAIN_COLUMNS, RunLogs, RunningMeans
from tdmpc2.training.progress import RunProgress
from tdmpc2.training.runtime import Stopped, StopRequest, available_cores

CHECKPOINT = "agent steps last_evaluation seconds action_stream replay_stream means collector replay logs".split()
"""What a checkpoint holds. Those of earlier versions lack `replay_before`: the replay's state in the one before it."""


def seed_steps(config: Config) -> int:
    """Agent steps before learning starts: max(1000, 5 x episode length) unless set, at random.

    A finetuning run acts with the agent it begins with, and learns as soon as there is an episode to learn from.
    """
    length = get_task(config.tasks[0]).episode_length
    return config.seed_steps or (max(1000, 5 * length) if config.checkpoint is None else length)


def check_trainable(config: Config) -> None:
    """Check what can be checked of an online run before anything starts.

    Raises:
        UserError: it cannot be trained so; names the setting.
    """
    require(
        len(config.tasks) == 1,
        f"task: {config.task} stands for {len(config.tasks)} tasks; online training takes one. Several are learned "
        "offline, from a data set: data=NAME",
    )
    length = get_task(config.tasks[0]).episode_length
    require(config.horizon <= length, f"horizon: {config.horizon} is longer than an episode ({length} agent steps)")
    require(config.buffer_size > length, f"buffer_size: must hold an episode ({length + 1} rows)")
    require(
        config.agent_steps >= config.num_envs, f"steps: {config.agent_steps} is fewer than num_envs={config.num_envs}"
    )


class OnlineTraining:
    """A run under way. Its state is whole between any two steps or updates, and is what a checkpoint holds.

    Args:
        config: the run's settings.
        folder: its folder, claimed.
        stop: heeded between any two updates or steps.
        progress: told how far the run is.
        saved: called after each checkpoint, once it is on disk for good.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        stop: StopRequest,
        progress: RunProgress,
        saved: Callable[[], None] | None = None,
    ) -> None:
        self.config, self.folder, self._stop, self._progress, self._saved = config, folder, stop, progress, saved
        self.task = get_task(config.tasks[0])
        self.spec = AgentSpec.from_tasks([self.task.name], config.obs)
        """The task as its environment has it; the agent may know of others too."""
        self.steps = 0
        """Agent steps so far."""
        self.last_evaluation: int | None = None
        """Agent step of the last evaluation."""
        self._seed_steps = seed_steps(config)
        self._action_stream = torch.Generator().manual_seed(derive_seed(config.seed, Stream.RANDOM_ACTIONS))
        self._means = RunningMeans()
        self._metrics: dict[str, Tensor] = {}

        self._checkpoints = RunCheckpoints(folder, progress.note)
        found = self._checkpoints.read(CHECKPOINT, "a run")
        state = None if found is None else found.state
        recorded = None if state is None else state["agent"].get("execution")
        execution = resume_execution(config, choose_device(config.device), recorded)
        self.agent = self._make_agent(execution, found)
        self._task_of_agent = TaskOfMany(self.agent.spec, self.task)
        if execution.notice:
            progress.note(execution.notice)
        self.collector = Collector(self.task.name, config.num_envs, config.seed, config.obs, config.episodic)
        self.replay = self._open_replay()
        replay_stream = torch.Generator().manual_seed(derive_seed(config.seed, Stream.REPLAY))
        self._batches = Prefetcher(self.replay, config.sequences, replay_stream, self.agent.device)
        self._evaluator: Evaluator | None = None
        self._replay_states = (EMPTY_STATE, EMPTY_STATE)
        """The replay's states in the two checkpoints on disk, the older one first."""
        if found is None:
            self.replay.restore(EMPTY_STATE)
        else:
            self._restore(found)
        seconds = 0.0 if state is None else state["seconds"]
        progress.begin(self.agent.device, self.steps, self.agent.updates, seconds, str(execution))
        lengths, start = (None, None) if state is None else (state["logs"], self.steps * self.task.action_repeat)
        self._logs = RunLogs(folder, config, TRAIN_COLUMNS, lengths, start)
        self._clock_of_checkpoints = CheckpointClock(config.checkpoint_freq, self.steps)

    def _make_agent(self, execution: Execution, found: StoredCheckpoint | None) -> TDMPC2:
        config = self.config
        if config.checkpoint is None:
            return TDMPC2(config, self.spec, execution=execution)
        if found is not None:
            return resume_finetuning(found.state["agent"], found.path, execution, config.device)
        agent, origin = begin_finetuning(config, execution, config.device)
        self._progress.note(origin)
        return agent

    # --- the algorithm

    def run(self) -> None:
        """Train to the end of the budget.

        Raises:
            Stopped: a stop was requested; the run is checkpointed.
            DivergedError: a loss or parameter is not a number.
        """
        try:
            while True:
                self._learn()
                if self._evaluation_is_due():
                    self._evaluate()
                if self.steps >= self.config.agent_steps:
                    break
                self._make_room()
                self._step()
                self._stop.check()
                if self._clock_of_checkpoints.is_due(self.steps):
                    self.save()
        except Stopped:
            self.save()
            raise
        except (EOFError, BrokenPipeError, ConnectionResetError):
            if not self._stop.requested:
                raise
            self.save()  # the signal reached the environments' processes too; their last step did not count
            raise Stopped from None
        except FloatingPointError as error:
            raise self._diverged(str(error)) from error
        self._tell("finished")
        self.save()

    def _learn(self) -> None:
        """Update until there is one update for each agent step, once the random phase is over."""
        if self.steps < self._seed_steps or self.replay.num_starts == 0:
            return
        while self.agent.updates < self.steps:
            self._stop.check()
            self._metrics = self.agent.update(self._task_of_agent.batch(self._batches.next()))
            self._means.add(self._metrics)
            if not losses_are_finite(self.agent, self._metrics):
                raise self._diverged("a loss or its gradient is not a number")
            behind = self.steps - self.agent.updates > self.config.num_envs
            self._tell("learning from the random phase" if behind else "learning")
            if self._clock_of_checkpoints.is_due(self.steps):  # the updates after the random phase can take hours
                self.save()

    def _step(self) -> None:
        """One agent step in each training environment."""
        at_random = self.steps < self._seed_steps and self.config.checkpoint is None
        if at_random:
            shape = (self.config.num_envs, self.task.action_dim)
            action = torch.rand(shape, generator=self._action_stream) * 2 - 1
        else:
            # Where an episode began at random, its first plan has none before it.
            unplanned = self.steps - self.config.num_envs < self._seed_steps and self.config.checkpoint is None
            view = self._task_of_agent
            first_step = self.collector.first_step | unplanned
            action = view.action(self.agent.act(view.observe(self.collector.obs), first_step, view.id))
        finished = self.collector.step(action.numpy())
        self.steps += self.config.num_envs
        for episode in finished:
            self.replay.add(*episode.arrays())
            self._log_episode(episode)
        self._tell("acting at random" if at_random else "acting" if self.steps < self._seed_steps else "learning")

    def _evaluation_is_due(self) -> bool:
        if self.last_evaluation is None:
            return True
        frequency = self.config.eval_freq
        at_end = self.steps >= self.config.agent_steps and self.last_evaluation != self.steps
        return self.steps // frequency > self.last_evaluation // frequency or at_end

    def _evaluate(self) -> None:
        def on_step(step: int) -> None:
            self._stop.check()
            self._tell(f"evaluating, step {step} of {self.task.episode_length}")

        if self._evaluator is None:
            config, episodes = self.config, self.config.eval_episodes
            evaluations = 1 + (config.agent_steps - self.steps) // config.eval_freq
            parallel = processes_pay(self.agent.device.type, config.obs, episodes, available_cores(), evaluations)
            self._evaluator = Evaluator([self.task.name] * episodes, config.obs, config.seed, parallel, self.agent.spec)
        scores = self._evaluator.evaluate(self.agent, self.steps, on_step)
        for outcome in summarise(scores).values():
            row = self._clock() | outcome
            self._logs.write_eval(row)
            self._progress.evaluated(float(outcome[self.task.metric]))
        self.last_evaluation = self.steps

    # --- records

    def _clock(self) -> dict[str, Any]:
        return {
            "env_steps": self.steps * self.task.action_repeat,
            "agent_steps": self.steps,
            "updates": self.agent.updates,
            "seconds": round(self._progress.seconds, 1),
            "task": self.task.name,
        }

    def _log_episode(self, episode: Episode) -> None:
        row = self._clock() | {
            "episode": episode.index,
            "episode_length": len(episode),
            "return": math.fsum(episode.reward),
            "success": episode.success,
            "terminated": int(episode.terminated[-1]),
            **self._means.take(),
        }
        self._logs.write_train(row)

    def _tell(self, phase: str) -> None:
        self._progress.update(phase, self.steps, self.agent.updates)

    def _diverged(self, reason: str) -> DivergedError:
        env_steps = self.steps * self.task.action_repeat
        when = f"update {self.agent.updates:,} ({env_steps:,} environment steps)"
        return diverged(reason, when, self._metrics, self.folder.newest_checkpoint())

    # --- checkpoints

    def _open_replay(self) -> Replay:
        config, spec = self.config, self.spec
        pixels = config.obs == "rgb"
        expected: dict[str, Any] = {
            "task": self.task.name,
            "obs_shape": spec.obs_shape,
            "obs_dtype": "uint8" if pixels else "float32",
            "action_dim": spec.action_dim,
            "capacity": config.buffer_size,
            "frame_stack": 3 if pixels else 1,
        }
        if Replay.exists(self.folder.replay):
            return Replay.open(self.folder.replay, horizon=config.horizon, **expected)
        # An episode of one step takes two rows, and the episodes under way may all end in the same step; and what was
        # written before the latest checkpoint, but after the one before it, is protected too.
        slack = 2 * (2 * config.checkpoint_freq + self._rows_in_a_step())
        return Replay.create(self.folder.replay, horizon=config.horizon, slack=slack, **expected)

    def _rows_in_a_step(self) -> int:
        """The most rows that one step can add to the replay."""
        return self.config.num_envs * (self.task.episode_length + 1)

    def _make_room(self) -> None:
        """Checkpoint, ahead of time, where the replay has no room for the next step's episodes.

        The second time at the most both checkpoints are of this step, and a store has room for a step's rows then.
        """
        while self.replay.room < self._rows_in_a_step():
            self.save()

    def save(self) -> None:
        """Write a checkpoint. A run killed after this goes on from here.

        Raises:
            DivergedError: a parameter is not a number; the checkpoint before this stays.
            UserError: the disk is full; likewise.
        """
        if not weights_are_finite(self.agent):
            raise self._diverged("a parameter is not a number")
        self.replay.flush()
        self._logs.flush()
        older, newer = self._replay_states
        before = older if self._checkpoints.put_aside_if_changed() else newer
        state = {
            "agent": self.agent.state_dict(),
            "steps": self.steps,
            "last_evaluation": self.last_evaluation,
            "seconds": self._progress.seconds,
            "action_stream": self._action_stream.get_state(),
            "replay_stream": self._batches.state(),
            "means": self._means.state_dict(),
            "collector": self.collector.state_dict(),
            "replay": self.replay.state(),
            "replay_before": before,
            "logs": self._logs.lengths(),
        }
        self._checkpoints.write(state)
        self.replay.mark_checkpoint(before)
        self._replay_states = (before, self.replay.state())
        self._clock_of_checkpoints.written(self.steps)
        if self._saved is not None:
            self._saved()

    def _restore(self, found: StoredCheckpoint) -> None:
        state = found.state
        self.agent.load_state_dict(state["agent"], found.path)
        self.steps = state["steps"]
        self.last_evaluation = state["last_evaluation"]
        self._action_stream.set_state(state["action_stream"])
        self._means.load_state_dict(state["means"], self.agent.device)
        alone = found.fell_back or "replay_before" not in state
        before = state["replay"] if alone else state["replay_before"]
        self.replay.restore(state["replay"], before)
        self._replay_states = (before, state["replay"])
        self._batches.load_state(state["replay_stream"])
        same = self.collector.load_state_dict(state["collector"])
        env_steps = self.steps * self.task.action_repeat
        self._progress.note(f"resuming {self.folder.path} at {env_steps:,} environment steps")
        if not same:
            self._progress.note("the episode under way could not be played again (other simulator?); it was dropped")

    def close(self) -> None:
        """Close environments and files."""
        self.collector.close()
        if self._evaluator is not None:
            self._evaluator.close()
        self._batches.close()
        self.replay.close()
        self._logs.close()
