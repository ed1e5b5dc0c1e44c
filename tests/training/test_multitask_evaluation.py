"""Evaluating one agent on many tasks: side by side, padded, and planned for only as long as they last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tiny_runs import TINY, Script, ScriptedEnv

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.envs.vector import ProcessVectorEnv
from tdmpc2.errors import UserError
from tdmpc2.seeding import Stream, derive_seed
from tdmpc2.spec import AgentSpec
from tdmpc2.training import evaluation
from tdmpc2.training.evaluation import EpisodeScore, Evaluator

SEED = 3
LONG, SHORT, OTHER = "walker-walk", "mw-reach", "cup-catch"  # episodes of 500, 100 and 500 agent steps in the registry
STEPS = {LONG: 7, SHORT: 3, OTHER: 7}
"""Steps that their episodes take here."""


class StubAgent:
    """Acts with zeros; remembers what each of its actors was asked."""

    def __init__(self, *tasks: str) -> None:
        self.spec = AgentSpec.from_tasks(tasks)
        self.calls: dict[int, list[Any]] = {}

    def actor(self, seed: int) -> Any:
        self.calls[seed] = []

        def act(obs: Any, first_step: Any, task: Any = None, eval_mode: bool = False) -> torch.Tensor:
            self.calls[seed].append((obs.copy(), task))
            return torch.zeros(len(obs), self.spec.action_dim)

        return act


@pytest.fixture
def shapes(monkeypatch):
    """Puts scripted environments in the place of the simulators; returns the shapes that were asked for."""
    asked: list[Any] = []

    def make(names: Any, seeds: Any, obs: str, parallel: bool, shape: Any = None) -> SyncVectorEnv:
        asked.append(shape)
        builders = [lambda name=name: ScriptedEnv(lambda seed: Script(STEPS[name]), shape) for name in names]
        return SyncVectorEnv(builders, autoreset_mode=AutoresetMode.DISABLED)

    monkeypatch.setattr(evaluation, "make_vector_env", make)
    return asked


def test_episodes_that_are_over_are_not_planned_for_while_longer_tasks_go_on(shapes):
    agent = StubAgent(LONG, SHORT)
    tasks = [LONG, SHORT, LONG, SHORT, SHORT]
    evaluator = Evaluator(tasks, "state", SEED, parallel=False, spec=agent.spec)
    told: list[int] = []
    scores = evaluator.evaluate(agent, 10, told.append)  # type: ignore[arg-type]
    assert scores == [  # in the order asked for; rewards are 1, 2, 3, ... a step
        EpisodeScore(task, sum(range(1, STEPS[task] + 1)), pytest.approx(np.nan, nan_ok=True), STEPS[task])
        for task in tasks
    ]
    long, short = agent.calls.values()
    assert [len(obs) for obs, _ in long] == [2] * 7
    assert [len(obs) for obs, _ in short] == [3] * 3
    assert told == list(range(7))

    first_seed = derive_seed(SEED, Stream.EVAL_AGENT, 10)
    assert list(agent.calls) == [first_seed, derive_seed(first_seed, Stream.EVAL_AGENT, 1)]
    for calls, rows, task in ((long, (0, 2), 0), (short, (1, 3, 4), 1)):
        seeds = [derive_seed(SEED, Stream.EVAL_EPISODE, 10, row) for row in rows]
        np.testing.assert_allclose(calls[0][0][:, 0], [seed % 1000 / 1000 for seed in seeds], rtol=1e-6)
        assert all(ids.tolist() == [task] * len(rows) for _, ids in calls)


def test_tasks_of_one_length_are_planned_for_in_one_call(shapes):
    agent = StubAgent(LONG, OTHER)
    evaluator = Evaluator([LONG, OTHER, LONG], "state", SEED, parallel=False, spec=agent.spec)
    evaluator.evaluate(agent, 0)  # type: ignore[arg-type]
    (calls,) = agent.calls.values()
    assert [len(obs) for obs, _ in calls] == [3] * 7
    assert calls[0][1].tolist() == [0, 1, 0]


def test_large_groups_are_split_in_halves_and_small_ones_are_not(shapes, monkeypatch):
    monkeypatch.setitem(evaluation.SPLIT_FROM, "state", 4)
    agent = StubAgent(LONG, SHORT)
    evaluator = Evaluator([LONG] * 5 + [SHORT] * 3, "state", SEED, parallel=False, spec=agent.spec)
    evaluator.evaluate(agent, 0)  # type: ignore[arg-type]
    assert [len(calls[0][0]) for calls in agent.calls.values()] == [3, 2, 3]


def test_environments_are_padded_to_the_agents_shapes_even_where_one_small_task_is_evaluated(shapes):
    agent = StubAgent(LONG, SHORT)  # observations of 24 and 39, actions of 6 and 4
    evaluator = Evaluator([LONG] * 2, "state", SEED, parallel=False, spec=agent.spec)
    evaluator.evaluate(agent, 0)  # type: ignore[arg-type]
    assert shapes == [(39, 6)]
    (calls,) = agent.calls.values()
    assert calls[0][0].shape == (2, 39)


def test_an_agent_of_one_task_needs_no_padding(monkeypatch):
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(evaluation, "make_vector_env", lambda *_, **options: asked.append(options))
    Evaluator([LONG] * 2, "state", SEED, parallel=False, spec=AgentSpec.from_tasks([LONG]))
    assert asked == [{"parallel": False}]


def test_a_task_larger_than_the_agents_shapes_is_refused():
    spec = AgentSpec.from_tasks([OTHER, "pendulum-spin"])
    with pytest.raises(UserError, match="task walker-walk has observations of 24 and actions of 6 dims"):
        Evaluator([LONG], "state", SEED, parallel=False, spec=spec)


def test_simulators_of_different_shapes_score_alike_in_processes_and_alone_and_as_a_part(monkeypatch):
    monkeypatch.setitem(evaluation.SPLIT_FROM, "state", 4)
    monkeypatch.setattr(evaluation, "available_cores", lambda: 2)
    tasks = ["pendulum-spin", "reacher-easy"]
    spec = AgentSpec.from_tasks(tasks)
    agent = TDMPC2(Config(**TINY | {"task": ",".join(tasks)}, mpc=False), spec)
    found = []
    for parallel in (False, True):
        evaluator = Evaluator([*tasks, *tasks], "state", SEED, parallel, spec)
        assert isinstance(evaluator.env, ProcessVectorEnv) == parallel
        found.append([score.total_reward for score in evaluator.evaluate(agent, 0)])
        evaluator.close()
    assert found[0] == found[1]
    assert len(set(found[0][::2])) == 2  # each episode has a start of its own

    # The policy prior draws nothing in evaluation: what a task scores does not depend on its neighbours.
    alone = Evaluator(tasks[:1], "state", SEED, parallel=False, spec=spec)
    assert alone.evaluate(agent, 0)[0].total_reward == pytest.approx(found[0][0], rel=1e-3)
