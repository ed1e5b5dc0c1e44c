"""Online training of one task: act, remember, learn, evaluate; resumable between any two steps."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.execution import choose_device, resume_execution
from tdmpc2.config import Config
from tdmpc2.data.prefetch import Prefetcher
from tdmpc2.data.replay import EMPTY_STATE, Replay
from tdmpc2.errors import require
from tdmpc2.seeding import Stream, derive_seed
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import get_task
from tdmpc2.training.collector import Collector, Episode
from tdmpc2.training.evaluation import Evaluator, processes_pay, summarise
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.logs import EVAL_COLUMNS, TRAIN_COLUMNS, CsvLog, EventLog, RunningMeans
from tdmpc2.training.progress import RunProgress
from tdmpc2.training.runtime import Stopped, StopRequest, available_cores

CHECKPOINT_SECONDS = 600.0
"""A checkpoint is written at least this often, however slow the run."""
CHECKPOINT = "agent steps last_evaluation seconds action_stream replay_stream means collector replay logs".split()
"""What a checkpoint holds."""
FINITE_CHECK_UPDATES = 100
"""Updates between two checks for NaN on a GPU, where each check waits for the device."""


class DivergedError(RuntimeError):
    """A loss or parameter is no longer a number."""


def seed_steps(config: Config) -> int:
    """Agent steps at random before learning starts: max(1000, 5 x episode length) unless set."""
    return config.seed_steps or max(1000, 5 * get_task(config.tasks[0]).episode_length)


def check_trainable(config: Config) -> None:
    """Check what can be checked of an online run before anything starts.

    Raises:
        UserError: it cannot be trained so; names the setting.
    """
    require(
        len(config.tasks) == 1,
        f"task: {config.task} stands for {len(config.tasks)} tasks; online training takes one",
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
    """

    def __init__(self, config: Config, folder: RunFolder, stop: StopRequest, progress: RunProgress) -> None:
        self.config, self.folder, self._stop, self._progress = config, folder, stop, progress
        self.task = get_task(config.tasks[0])
        spec = AgentSpec.from_tasks([self.task.name], config.obs)
        self.steps = 0
        """Agent steps so far."""
        self.last_evaluation: int | None = None
        """Agent step of the last evaluation."""
        self._seed_steps = seed_steps(config)
        self._action_stream = torch.Generator().manual_seed(derive_seed(config.seed, Stream.RANDOM_ACTIONS))
        self._means = RunningMeans()
        self._metrics: dict[str, Tensor] = {}

        state = self._read_checkpoint()
        recorded = None if state is None else state["agent"].get("execution")
        execution = resume_execution(config, choose_device(config.device), recorded)
        self.agent = TDMPC2(config, spec, execution=execution)
        if execution.notice:
            progress.note(execution.notice)
        self.collector = Collector(self.task.name, config.num_envs, config.seed, config.obs, config.episodic)
        self.replay = self._open_replay()
        replay_stream = torch.Generator().manual_seed(derive_seed(config.seed, Stream.REPLAY))
        self._batches = Prefetcher(self.replay, config.batch_size or 256, replay_stream, self.agent.device)
        self._evaluator: Evaluator | None = None
        if state is None:
            self.replay.restore(EMPTY_STATE)
        else:
            self._restore(state)
        seconds = 0.0 if state is None else state["seconds"]
        progress.begin(self.agent.device, self.steps, self.agent.updates, seconds, str(execution))
        lengths = {"train": 0, "eval": 0} if state is None else state["logs"]
        self._train_log = CsvLog(folder.train_csv, TRAIN_COLUMNS, lengths["train"])
        self._eval_log = CsvLog(folder.eval_csv, EVAL_COLUMNS, lengths["eval"])
        env_steps = None if state is None else self.steps * self.task.action_repeat
        self._events = EventLog(folder.tensorboard, config, env_steps)
        self._checkpoint_steps, self._checkpoint_time = self.steps, time.monotonic()

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
                self._step()
                self._stop.check()
                if self._checkpoint_is_due():
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
            self._metrics = self.agent.update(self._batches.next())
            self._means.add(self._metrics)
            self._check_finite()
            behind = self.steps - self.agent.updates > self.config.num_envs
            self._tell("learning from the random phase" if behind else "learning")
            if self._checkpoint_is_due():  # the updates after the random phase can take hours
                self.save()

    def _step(self) -> None:
        """One agent step in each training environment."""
        at_random = self.steps < self._seed_steps
        if at_random:
            shape = (self.config.num_envs, self.task.action_dim)
            action = torch.rand(shape, generator=self._action_stream) * 2 - 1
        else:
            # Where an episode began at random, its first plan has none before it.
            unplanned = self.steps - self.config.num_envs < self._seed_steps
            action = self.agent.act(self.collector.obs, self.collector.first_step | unplanned)
        finished = self.collector.step(action.numpy())
        self.steps += self.config.num_envs
        for episode in finished:
            self.replay.add(*episode.arrays())
            self._log_episode(episode)
        self._tell("acting at random" if at_random else "learning")

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
            self._evaluator = Evaluator([self.task.name] * episodes, config.obs, config.seed, parallel)
        scores = self._evaluator.evaluate(self.agent, self.steps, on_step)
        for outcome in summarise(scores).values():
            row = self._clock() | outcome
            self._eval_log.write(row)
            self._events.write("eval", row)
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
        self._train_log.write(row)
        self._events.write("train", row)

    def _tell(self, phase: str) -> None:
        self._progress.update(phase, self.steps, self.agent.updates)

    def _check_finite(self) -> None:
        if self.agent.device.type == "cpu" or self.agent.updates % FINITE_CHECK_UPDATES == 0:
            names = ("total_loss", "grad_norm", "pi_loss", "pi_grad_norm")
            if not torch.isfinite(torch.stack([self._metrics[name] for name in names])).all():
                raise self._diverged("a loss or its gradient is not a number")

    def _diverged(self, reason: str) -> DivergedError:
        losses = ", ".join(f"{name} {float(value):.4g}" for name, value in self._metrics.items())
        checkpoint = f"the last good checkpoint is {self.folder.checkpoint}"
        if not self.folder.checkpoint.exists():
            checkpoint = "there is no checkpoint yet"
        env_steps = self.steps * self.task.action_repeat
        return DivergedError(
            f"training diverged at update {self.agent.updates:,} ({env_steps:,} environment steps): {reason}; "
            f"last update: {losses or 'none by this process'}; {checkpoint}"
        )

    # --- checkpoints

    def _open_replay(self) -> Replay:
        config, spec = self.config, self.agent.spec
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
        # An episode of one step takes two rows, and the episodes under way may all end in the same step.
        slack = 2 * config.checkpoint_freq + self._rows_in_a_step()
        return Replay.create(self.folder.replay, horizon=config.horizon, slack=slack, **expected)

    def _rows_in_a_step(self) -> int:
        """The most rows that one step can add to the replay."""
        return self.config.num_envs * (self.task.episode_length + 1)

    def _checkpoint_is_due(self) -> bool:
        return (
            self.steps - self._checkpoint_steps >= self.config.checkpoint_freq
            or time.monotonic() - self._checkpoint_time > CHECKPOINT_SECONDS
            or self.replay.room < self._rows_in_a_step()
        )

    def save(self) -> None:
        """Write a checkpoint. A run killed after this goes on from here.

        Raises:
            DivergedError: a parameter is not a number; the checkpoint before this stays.
            UserError: the disk is full; likewise.
        """
        weights = [tensor for tensor in self.agent.model.state_dict().values() if tensor.is_floating_point()]
        if not torch.stack([torch.isfinite(tensor).all() for tensor in weights]).all():
            raise self._diverged("a parameter is not a number")
        self.replay.flush()
        self._events.flush()
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
            "logs": {"train": self._train_log.length(), "eval": self._eval_log.length()},
        }
        checkpoints.write(state, self.folder.checkpoint)
        self.replay.mark_checkpoint()
        self._checkpoint_steps, self._checkpoint_time = self.steps, time.monotonic()

    def _read_checkpoint(self) -> dict[str, Any] | None:
        path = self.folder.checkpoint
        if not path.exists():
            return None
        state = checkpoints.read(path)
        missing = [name for name in CHECKPOINT if name not in state]
        require(not missing, f"{path}: not a run's checkpoint (missing: {', '.join(missing)})")
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        self.agent.load_state_dict(state["agent"], self.folder.checkpoint)
        self.steps = state["steps"]
        self.last_evaluation = state["last_evaluation"]
        self._action_stream.set_state(state["action_stream"])
        self._means.load_state_dict(state["means"], self.agent.device)
        self.replay.restore(state["replay"])
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
        self._train_log.close()
        self._eval_log.close()
        self._events.close()
