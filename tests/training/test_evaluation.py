"""Evaluation: each episode's own score, and no trace left on the agent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import TINY, Script

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.seeding import Stream, derive_seed
from tdmpc2.spec import AgentSpec
from tdmpc2.training.evaluation import EpisodeScore, Evaluator, summarise

TASK = "pendulum-swingup"
SEED = 3


class StubAgent:
    """Acts with zeros and remembers how it was asked."""

    def __init__(self, tasks: tuple[str, ...] = (TASK,)) -> None:
        self.spec = AgentSpec(
            obs_shape=(3,), action_dims=(1,) * len(tasks), episode_lengths=(20,) * len(tasks), tasks=tasks
        )
        self.calls: list[tuple[Any, Any, Any, bool]] = []
        self.actor_seeds: list[int] = []

    def actor(self, seed: int) -> Any:
        self.actor_seeds.append(seed)

        def act(obs: Any, first_step: Any, task: Any = None, eval_mode: bool = False) -> torch.Tensor:
            self.calls.append((obs.copy(), first_step, task, eval_mode))
            return torch.zeros(len(obs), 1)

        return act


def episode_seeds(when: int, count: int) -> list[int]:
    return [derive_seed(SEED, Stream.EVAL_EPISODE, when, i) for i in range(count)]


def test_each_episode_is_scored_by_its_own_rewards_up_to_its_own_end(scripted):
    scripts = [
        Script(2, rewards=(1.0, 10.0), successes=(0.0, 1.0)),
        Script(5, rewards=(1.0, 2.0, 3.0, 4.0, 5.0), successes=(1.0, 1.0, 1.0, 1.0, 0.0)),
        Script(3, rewards=(-1.0, 0.5, 0.25), successes=(1.0, 1.0, 1.0), terminates=False),
    ]
    by_seed = dict(zip(episode_seeds(100, 3), scripts, strict=True))
    scripted(by_seed.__getitem__)
    agent = StubAgent()
    steps: list[int] = []
    evaluator = Evaluator([TASK] * 3, "state", SEED, parallel=False)
    scores = evaluator.evaluate(agent, 100, steps.append)  # type: ignore[arg-type]
    assert scores == [
        EpisodeScore(TASK, 11.0, 1.0, 2),  # runs twice and a half while the longest goes on
        EpisodeScore(TASK, 15.0, 0.0, 5),  # success is that of the last step
        EpisodeScore(TASK, -0.25, 1.0, 3),
    ]
    assert steps == [0, 1, 2, 3, 4]
    assert all(eval_mode for *_, eval_mode in agent.calls)
    assert [first for _, first, *_ in agent.calls] == [True, False, False, False, False]
    assert [task for _, _, task, _ in agent.calls] == [None] * 5


def test_an_evaluation_follows_from_seed_and_step_and_not_from_those_before_it(scripted):
    scripted(lambda seed: Script(3))
    agent = StubAgent()
    evaluator = Evaluator([TASK] * 2, "state", SEED, parallel=False)
    for when in (0, 50, 0):
        evaluator.evaluate(agent, when)  # type: ignore[arg-type]
    starts = [obs for obs, first, *_ in agent.calls if first]
    np.testing.assert_allclose(starts[0][:, 0], [seed % 1000 / 1000 for seed in episode_seeds(0, 2)], rtol=1e-6)
    np.testing.assert_array_equal(starts[0], starts[2])
    assert (starts[0][:, 0] != starts[1][:, 0]).all()
    assert agent.actor_seeds == [derive_seed(SEED, Stream.EVAL_AGENT, when) for when in (0, 50, 0)]


def test_a_multi_task_agent_is_told_each_episodes_task(scripted):
    scripted(lambda seed: Script(2))
    agent = StubAgent(("pendulum-swingup", "pendulum-spin"))
    evaluator = Evaluator(["pendulum-spin", "pendulum-swingup", "pendulum-spin"], "state", SEED, parallel=False)
    scores = evaluator.evaluate(agent, 0)  # type: ignore[arg-type]
    assert agent.calls[0][2].tolist() == [1, 0, 1]
    assert [score.task for score in scores] == ["pendulum-spin", "pendulum-swingup", "pendulum-spin"]


@pytest.mark.parametrize("mpc", [True, False])
def test_an_evaluation_within_an_episode_leaves_the_agent_as_it_was(scripted, identical, mpc):
    scripted(lambda seed: Script(4))
    spec = AgentSpec.from_tasks([TASK])
    agent = TDMPC2(Config(**TINY, mpc=mpc), spec)
    obs = np.full((1, 3), 0.1, np.float32)
    agent.act(obs, True)
    before = {"agent": agent.state_dict(), "global": torch.get_rng_state()}
    evaluator = Evaluator([TASK] * 2, "state", SEED, parallel=False)
    evaluator.evaluate(agent, 0)
    identical({"agent": agent.state_dict(), "global": torch.get_rng_state()}, before)
    agent.act(obs, False)  # one observation still, though the evaluation had two


def test_means_are_taken_over_each_tasks_own_episodes():
    scores = [
        EpisodeScore("a", 1.0, 1.0, 10),
        EpisodeScore("b", 7.0, math.nan, 20),
        EpisodeScore("a", 4.0, 0.0, 30),
        EpisodeScore("a", 7.0, 0.0, 20),
    ]
    summary = summarise(scores)
    assert list(summary) == ["a", "b"]
    assert summary["a"] == {
        "episodes": 3,
        "return": 4.0,
        "return_std": 3.0,  # deviations -3, 0, 3: sqrt(18 / 2)
        "success": pytest.approx(1 / 3),
        "episode_length": 20.0,
    }
    assert summary["b"]["return"] == 7.0
    assert math.isnan(summary["b"]["return_std"])  # of a single episode
    assert math.isnan(summary["b"]["success"])
