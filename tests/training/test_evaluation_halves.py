"""Evaluation in halves and in worker processes: the same scores, sooner."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tiny_runs import TINY
from worker_envs import BriefEnv, UnsteadyEnv, WaitingEnv, length_of

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.envs.vector import ProcessVectorEnv
from tdmpc2.seeding import Stream, derive_seed
from tdmpc2.spec import AgentSpec
from tdmpc2.training import evaluation
from tdmpc2.training.evaluation import EpisodeScore, Evaluator, processes_pay

TASK = "pendulum-spin"
SEED = 3


@pytest.fixture(autouse=True)
def halves_from_four(monkeypatch):
    monkeypatch.setitem(evaluation.SPLIT_FROM, "state", 4)


@pytest.fixture
def use_env(monkeypatch):
    """Puts an environment in the place of the simulators, in processes too."""

    def use(builder: Any) -> None:
        def make(names: Any, seeds: Any, obs: str, parallel: bool, workers: int = 0) -> Any:
            builders = [builder] * len(names)
            if parallel:
                return ProcessVectorEnv(builders, workers)
            return SyncVectorEnv(builders, autoreset_mode=AutoresetMode.DISABLED)

        monkeypatch.setattr(evaluation, "make_vector_env", make)

    return use


class StubAgent:
    """Acts with zeros; remembers its actors' seeds and what each was asked."""

    def __init__(self, on_call: Any = lambda actor: None) -> None:
        self.spec = AgentSpec(obs_shape=(3,), action_dims=(1,), episode_lengths=(20,), tasks=(TASK,))
        self.calls: dict[int, list[Any]] = {}
        self.on_call = on_call

    def actor(self, seed: int) -> Any:
        number = len(self.calls)
        self.calls[seed] = []

        def act(obs: Any, first_step: Any, task: Any = None, eval_mode: bool = False) -> torch.Tensor:
            self.on_call(number)
            self.calls[seed].append((obs.copy(), first_step, eval_mode))
            return torch.zeros(len(obs), 1)

        return act


def tiny_agent(**changes: Any) -> TDMPC2:
    return TDMPC2(Config(**TINY, **changes), AgentSpec.from_tasks([TASK]))


@pytest.mark.parametrize("count", [4, 5])
def test_every_other_episode_is_planned_for_by_an_actor_of_its_own(use_env, count):
    use_env(BriefEnv)
    agent = StubAgent()
    evaluator = Evaluator([TASK] * count, "state", SEED, parallel=False)
    scores = evaluator.evaluate(agent, 10)  # type: ignore[arg-type]
    assert evaluator.env.num_envs == (count + 1) // 2  # the first episode's half

    first_seed = derive_seed(SEED, Stream.EVAL_AGENT, 10)
    assert list(agent.calls) == [first_seed, derive_seed(first_seed, Stream.EVAL_AGENT, 1)]
    seeds = [derive_seed(SEED, Stream.EVAL_EPISODE, 10, i) for i in range(count)]
    for asked, own in zip(agent.calls.values(), (seeds[::2], seeds[1::2]), strict=True):
        np.testing.assert_allclose(asked[0][0][:, 0], [seed % 1000 / 1000 for seed in own], rtol=1e-6)
        # A half is planned for until its longest episode has ended, and not while the other goes on.
        assert [first for _, first, _ in asked] == [True] + [False] * (max(map(length_of, own)) - 1)
        assert all(eval_mode for *_, eval_mode in asked)
    for score, seed in zip(scores, seeds, strict=True):
        length = length_of(seed)
        total = length * (length + 1) / 2 + length * (seed % 1000 / 1000)
        assert score == EpisodeScore(TASK, pytest.approx(total), length % 2, length)


@pytest.mark.parametrize(("obs", "count", "halves"), [("state", 63, 1), ("state", 64, 2), ("rgb", 3, 1), ("rgb", 4, 2)])
def test_whether_episodes_are_split_follows_from_what_is_evaluated_alone(monkeypatch, use_env, obs, count, halves):
    monkeypatch.undo()
    use_env(BriefEnv)
    agent = StubAgent()
    Evaluator([TASK] * count, obs, SEED, parallel=False).evaluate(agent, 0)  # type: ignore[arg-type]
    assert len(agent.calls) == halves


def test_scores_are_the_same_in_processes_and_without_whatever_the_number_of_workers(use_env, monkeypatch):
    use_env(functools.partial(UnsteadyEnv, os.getpid()))
    agent = tiny_agent()

    def scores(parallel: bool, cores: int = 0) -> Any:
        monkeypatch.setattr(evaluation, "available_cores", lambda: cores)
        evaluator = Evaluator([TASK] * 5, "state", SEED, parallel)
        assert isinstance(evaluator.env, ProcessVectorEnv) == parallel
        found = [evaluator.evaluate(agent, when) for when in (0, 50, 0)]
        evaluator.close()
        return found

    in_turn = scores(parallel=False)
    assert in_turn[0] == in_turn[2] != in_turn[1]
    assert len({score.total_reward for score in in_turn[0]}) == 5
    assert scores(parallel=True, cores=1) == in_turn
    assert scores(parallel=True, cores=4) == in_turn


def test_simulators_in_processes_score_as_in_this_one():
    agent = tiny_agent(mpc=False)
    rewards = []
    for parallel in (False, True):
        evaluator = Evaluator([TASK] * 4, "state", SEED, parallel)
        rewards.append([score.total_reward for score in evaluator.evaluate(agent, 0)])
        evaluator.close()
    assert rewards[0] == rewards[1]
    assert len(set(rewards[0])) == 4


def test_one_half_steps_while_the_planner_works_on_the_other(use_env, tmp_path):
    use_env(functools.partial(WaitingEnv, tmp_path))

    def on_call(actor: int) -> None:
        if actor == 1:  # the first half's step was begun before this, and waits for it
            (tmp_path / "go on").touch()

    evaluator = Evaluator([TASK] * 4, "state", SEED, parallel=True)
    assert len(evaluator.evaluate(StubAgent(on_call), 0)) == 4  # type: ignore[arg-type]
    evaluator.close()


@pytest.mark.parametrize("parallel", [False, True])
def test_progress_is_told_once_a_step_and_an_evaluation_broken_off_may_be_begun_again(use_env, parallel):
    use_env(BriefEnv)
    evaluator = Evaluator([TASK] * 4, "state", SEED, parallel)
    steps: list[int] = []
    whole = evaluator.evaluate(StubAgent(), 0, steps.append)  # type: ignore[arg-type]
    assert steps == list(range(max(score.length for score in whole)))

    def stop(step: int) -> None:
        if step == 1:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        evaluator.evaluate(StubAgent(), 0, stop)  # type: ignore[arg-type]
    assert evaluator.evaluate(StubAgent(), 0) == whole  # type: ignore[arg-type]
    evaluator.close()


@pytest.mark.parametrize(
    ("device", "obs", "episodes", "cores", "evaluations", "pay"),
    [
        ("cpu", "state", 800, 16, 100, False),  # planning takes all the time
        ("cpu", "rgb", 10, 2, 1, True),  # 150 s of rendering become 75 s
        ("cuda", "rgb", 10, 16, 1, True),
        ("cpu", "rgb", 10, 1, 1, False),  # one core
        ("cuda", "rgb", 1, 16, 100, False),  # one environment
        ("cuda", "state", 10, 2, 1, False),  # 2.5 s of steps become 1.25 s; the workers take 3 s to start
        ("cuda", "state", 10, 2, 3, True),  # 7.5 s become 3.75 s
        ("cuda", "state", 800, 16, 1, True),  # 200 s become 12.5 s
    ],
)
def test_processes_are_for_where_they_save_more_than_they_cost(device, obs, episodes, cores, evaluations, pay):
    assert processes_pay(device, obs, episodes, cores, evaluations) is pay
