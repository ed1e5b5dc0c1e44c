"""The schedule of online training, and what it depends on."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import Script

from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.data.replay import Replay
from tdmpc2.errors import UserError
from tdmpc2.training import checkpointing, collector, online
from tdmpc2.training.collector import Collector
from tdmpc2.training.evaluation import Evaluator
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.online import OnlineTraining, check_trainable, seed_steps
from tdmpc2.training.progress import RunProgress
from tdmpc2.training.run import train
from tdmpc2.training.runtime import Stopped, StopRequest


def record_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The order of what a run does, each kind by its letter: Step, Update, Act, Evaluate."""
    events: list[str] = []

    def record(owner: type, name: str, letter: str) -> None:
        original = getattr(owner, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            events.append(letter)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, recorded)

    record(Collector, "step", "S")
    record(TDMPC2, "update", "U")
    record(TDMPC2, "act", "A")
    record(Evaluator, "evaluate", "E")
    return events


def test_a_run_acts_at_random_then_catches_up_then_updates_once_a_step(tiny, short_episodes, monkeypatch, rows):
    events = record_calls(monkeypatch)
    config = tiny(seed_steps=50, steps=62, eval_freq=30, mpc=False)
    folder = train(config, show_progress=False)

    random_phase = "E" + "S" * 30 + "E" + "S" * 20
    learning = "U" * 50 + "ASU" * 10 + "E" + "ASU" * 2 + "E"
    assert "".join(events) == random_phase + learning
    evaluations = rows(folder.eval_csv)
    assert [row["agent_steps"] for row in evaluations] == ["0", "30", "60", "62"]
    assert [row["env_steps"] for row in evaluations] == ["0", "60", "120", "124"]  # the action repeat is 2
    assert [row["updates"] for row in evaluations] == ["0", "0", "60", "62"]
    assert [row["episodes"] for row in evaluations] == ["2"] * 4
    episodes = rows(folder.train_csv)
    assert [(row["agent_steps"], row["env_steps"]) for row in episodes] == [("20", "40"), ("40", "80"), ("60", "120")]
    assert [row["total_loss"] != "" for row in episodes] == [False, False, True]
    assert {row["episode_length"] for row in evaluations + episodes} == {"20"}


def test_the_last_evaluation_is_not_made_twice(tiny, short_episodes, rows):
    folder = train(tiny(steps=40, eval_freq=20, mpc=False), show_progress=False)
    assert [row["agent_steps"] for row in rows(folder.eval_csv)] == ["0", "20", "40"]


def test_a_run_that_ends_in_the_random_phase_tells_all_its_steps(tiny, short_episodes):
    folder = train(tiny(steps=33, eval_freq=1000, mpc=False), show_progress=False)
    status = folder.read_status()
    assert (status.state, status.agent_steps, status.env_steps, status.updates) == ("done", 33, 66, 0)


def test_side_by_side_environments_keep_one_update_a_step(tiny, short_episodes, monkeypatch, rows):
    events = record_calls(monkeypatch)
    config = tiny(num_envs=2, seed_steps=42, steps=54, eval_freq=1000, mpc=False)
    in_process(monkeypatch)
    folder = train(config, show_progress=False)
    assert "".join(events) == "E" + "S" * 21 + "U" * 42 + "ASUU" * 6 + "E"
    assert [(row["agent_steps"], row["episode"]) for row in rows(folder.train_csv)] == [("40", "0"), ("40", "1")]


def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments side by side, without processes of their own (which would know nothing of short episodes)."""
    original = collector.make_vector_env
    monkeypatch.setattr(collector, "make_vector_env", lambda *args, **_: original(*args))


@pytest.mark.parametrize(("task", "expected"), [("pendulum-swingup", 2500), ("mw-reach", 1000), ("myo-reach", 1000)])
def test_the_random_phase_takes_five_episodes_and_at_least_a_thousand_steps(task, expected):
    assert seed_steps(Config(task=task)) == expected
    assert seed_steps(Config(task=task, seed_steps=17)) == 17


def test_the_first_plan_within_a_random_episode_starts_from_nothing(tiny, short_episodes, monkeypatch):
    first_steps = []
    act = TDMPC2.act

    def recorded(agent: TDMPC2, obs: Any, first_step: Any, task: Any) -> Any:
        first_steps.append(bool(first_step[0]))
        return act(agent, obs, first_step, task)

    monkeypatch.setattr(TDMPC2, "act", recorded)
    train(tiny(seed_steps=30, steps=45, eval_freq=1000), show_progress=False)
    assert first_steps == [True] + [False] * 9 + [True] + [False] * 4  # steps 30 (within an episode) and 40


def test_a_random_phase_without_a_whole_episode_learns_as_soon_as_there_is_one(tiny, short_episodes, monkeypatch):
    events = record_calls(monkeypatch)
    train(tiny(seed_steps=5, steps=22, eval_freq=1000, mpc=False), show_progress=False)
    assert "".join(events) == "E" + "S" * 5 + "AS" * 15 + "U" * 20 + "ASU" * 2 + "E"


def learned(folder: Any) -> Any:
    return checkpoints.read(folder.checkpoint)["agent"]["model"]


LEARNING = {"seed_steps": 25, "steps": 40}


def test_how_often_and_how_long_one_evaluates_changes_nothing_that_is_learned(
    tiny, short_episodes, contents, identical
):
    rarely = train(tiny(exp_name="rarely", eval_freq=1000, eval_episodes=1, **LEARNING), show_progress=False)
    often = train(tiny(exp_name="often", eval_freq=11, eval_episodes=3, **LEARNING), show_progress=False)
    assert len(contents(often)["eval"]) == 5  # at 0, 11, 22, 33, 40
    left, right = contents(rarely), contents(often)
    for outcome in (left, right):
        del outcome["eval"]
        for name in ("eval_freq", "eval_episodes"):
            del outcome["checkpoint"]["agent"]["config"][name]
        del outcome["checkpoint"]["last_evaluation"]
    identical(left, right)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny, short_episodes, contents, identical):
    once, again, other = (
        contents(train(tiny(exp_name=name, seed=seed, eval_freq=1000, **LEARNING), show_progress=False))
        for name, seed in (("once", 1), ("again", 1), ("other", 2))
    )
    identical(once, again)
    assert not torch.equal(once["replay"][0]["action"], other["replay"][0]["action"])  # at random
    assert not torch.equal(once["replay"][0]["obs"][0], other["replay"][0]["obs"][0])  # the environment's start
    assert not torch.equal(once["replay"][1]["action"][5:], other["replay"][1]["action"][5:])  # planned
    start = {seed: TDMPC2(tiny(seed=seed), online.AgentSpec.from_tasks(["pendulum-swingup"])) for seed in (1, 2)}
    name = next(iter(start[1].model.state_dict()))
    assert not torch.equal(start[1].model.state_dict()[name], start[2].model.state_dict()[name])


def test_side_by_side_environments_resume_exactly_with_unequal_episodes(tiny, scripted, contents, identical):
    scripted(lambda seed: Script(4 + seed % 9, successes=(0.0, 1.0) * 7))
    settings = {"num_envs": 3, "episodic": True, "seed_steps": 40, "steps": 64, "eval_freq": 33, "checkpoint_freq": 10}
    untouched = train(tiny(exp_name="untouched", **settings), show_progress=False)

    config = tiny(exp_name="stopped", **settings)
    for calls in (5, 17, 4, 30, 8):  # each goes on from the one before

        class StopAfter(StopRequest):
            def __init__(self, checks: int) -> None:
                super().__init__()
                self._checks = checks

            def check(self) -> None:
                self._checks -= 1
                if self._checks < 0:
                    raise Stopped

        with pytest.raises(Stopped):
            run_with(config, StopAfter(calls))
    folder = train(config, show_progress=False)
    outcome = contents(folder)
    identical(outcome, contents(untouched))
    assert {row["terminated"] for row in outcome["train"]} == {"1"}
    assert {row["success"] for row in outcome["train"]} == {"0", "1"}
    assert outcome["train"][-1]["termination_loss"] != ""
    assert len({row["episode_length"] for row in outcome["train"]}) > 3


def run_with(config: Config, stop: StopRequest) -> None:
    folder = RunFolder.of(config)
    folder.claim(config)
    try:
        training = OnlineTraining(config, folder, stop, RunProgress(folder, config, show=False))
        try:
            training.run()
        finally:
            training.close()
    finally:
        folder.release()


def test_terminations_are_remembered_and_only_at_an_episodes_end(tiny, scripted):
    scripted(lambda seed: Script(6))
    folder = train(tiny(episodic=True, seed_steps=12, steps=24, eval_freq=1000, mpc=False), show_progress=False)
    with Replay.open(folder.replay, writable=False) as replay:
        episodes = [replay.episode(episode.index) for episode in replay.episodes()]
    assert len(episodes) == 4
    for episode in episodes:
        assert episode["terminated"].tolist() == [False] * 5 + [True]
        assert episode["reward"].tolist() == [1, 2, 3, 4, 5, 6]


def test_tasks_with_a_success_criterion_record_it_and_are_scored_by_it(tiny, scripted, rows):
    """Meta-World's shapes; successful in the last step in every second evaluation episode, and before it in all."""
    outcomes = itertools.cycle((0.0, 1.0))
    scripted(lambda seed: Script(100, terminates=False, successes=(1.0,) * 99 + (next(outcomes),)), dims=(39, 4))
    folder = train(tiny(task="mw-reach", steps=50, eval_freq=1000, mpc=False), show_progress=False)
    evaluation = rows(folder.eval_csv)[-1]
    assert (evaluation["success"], evaluation["return"]) == ("0.5", "5050")  # 1 + 2 + ... + 100
    status = folder.read_status()
    assert status.last_return == 0.5


def test_a_time_based_checkpoint_comes_within_the_long_updates_after_the_random_phase(
    tiny, short_episodes, monkeypatch
):
    monkeypatch.setattr(checkpointing, "CHECKPOINT_SECONDS", 0.0)  # always due
    saved = set()
    save = OnlineTraining.save

    def recorded(training: OnlineTraining) -> None:
        saved.add((training.steps, training.agent.updates))
        save(training)

    monkeypatch.setattr(OnlineTraining, "save", recorded)
    train(tiny(seed_steps=21, steps=22, eval_freq=1000, mpc=False), show_progress=False)
    assert {(21, updates) for updates in range(22)} <= saved


def test_every_phase_shows_a_sign_of_life(tiny, short_episodes, monkeypatch):
    phases: list[tuple[str, int, int]] = []
    monkeypatch.setattr(RunProgress, "update", lambda self, *told: phases.append(told))
    train(tiny(seed_steps=21, steps=23, eval_freq=1000, mpc=False), show_progress=False)
    assert ("evaluating, step 3 of 20", 0, 0) in phases
    assert ("acting at random", 7, 0) in phases
    assert [p for p in phases if p[0] == "learning from the random phase"] == [
        ("learning from the random phase", 21, updates) for updates in range(1, 20)
    ]
    assert ("learning", 23, 23) in phases


def test_the_shortest_episodes_never_overrun_the_replay_between_two_checkpoints(tiny, scripted, short_episodes):
    """Episodes of one step take two rows each, and checkpoint_freq counts steps."""
    scripted(lambda seed: Script(1))
    settings = {"episodic": True, "horizon": 1, "buffer_size": 60, "checkpoint_freq": 25}
    folder = train(tiny(steps=100, seed_steps=1000, eval_freq=1000, mpc=False, **settings), show_progress=False)
    with Replay.open(folder.replay, horizon=1, writable=False) as replay:
        assert (replay.num_episodes, replay.state()["rows"]) == (30, 200)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "mt30"}, "task: mt30 stands for 30 tasks; online training takes one"),
        ({"task": "walker-walk,walker-run"}, "task: walker-walk,walker-run stands for 2 tasks"),
        ({"horizon": 501}, r"horizon: 501 is longer than an episode \(500 agent steps\)"),
        ({"buffer_size": 500}, r"buffer_size: must hold an episode \(501 rows\)"),
        ({"steps": 3, "num_envs": 4}, "steps: 3 is fewer than num_envs=4"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_made(tiny, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        check_trainable(tiny(**changes))
    with pytest.raises(UserError, match=message):
        train(tiny(**changes), show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_training_leaves_the_settings_it_was_given_alone(tiny, short_episodes):
    config = tiny(steps=20, mpc=False)
    before = dataclasses.asdict(config)
    train(config, show_progress=False)
    assert dataclasses.asdict(config) == before


def test_random_actions_fill_the_action_space_evenly(tiny, short_episodes):
    folder = train(tiny(steps=400, seed_steps=1000, eval_freq=1000, mpc=False), show_progress=False)
    with Replay.open(folder.replay, writable=False) as replay:
        actions = np.concatenate([replay.episode(e.index)["action"].numpy() for e in replay.episodes()])
    assert len(actions) == 400
    assert abs(actions.mean()) < 3 * math.sqrt(1 / 3 / 400)  # three standard errors of uniform on [-1, 1]
    assert abs(actions).max() <= 1
    assert np.histogram(actions, 4, (-1, 1))[0].min() > 60
