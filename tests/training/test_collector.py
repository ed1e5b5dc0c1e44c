"""Training environments stepped side by side, and their episodes under way played again."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from tiny_runs import Script

from tdmpc2.errors import UserError
from tdmpc2.seeding import Stream, derive_seed
from tdmpc2.training.collector import Collector, Episode

RUN_SEED = 7
LENGTHS = (8, 3, 5, 3, 4, 3, 6, 7, 3, 5)
"""Agent steps of the scripted episodes by their numbers, again and again."""
BY_SEED = {derive_seed(RUN_SEED, Stream.TRAIN_EPISODE, i): LENGTHS[i % len(LENGTHS)] for i in range(100)}


def unequal(seed: int) -> Script:
    return Script(BY_SEED[seed], successes=tuple(np.arange(8) / 8))


def actions(steps: int, num_envs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, num_envs, 1)).astype(np.float32)


def collect(num_envs: int, episodic: bool = True) -> Collector:
    return Collector("pendulum-swingup", num_envs, RUN_SEED, "state", episodic)


def on_disk_and_back(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same_episodes(left: list[Episode], right: list[Episode]) -> None:
    assert [e.index for e in left] == [e.index for e in right]
    for one, other in zip(left, right, strict=True):
        for x, y in zip(one.arrays(), other.arrays(), strict=True):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_equal(one.success, other.success)


def test_episodes_hold_what_happened_and_their_seeds_follow_from_their_numbers(scripted):
    scripted(unequal)
    collector = collect(2)
    taken = actions(14, 2)
    finished = list(itertools.chain.from_iterable(collector.step(action) for action in taken))

    # Episode -> environment, first step: an environment whose episode ends takes the next number.
    begun = {0: (0, 0), 1: (1, 0), 2: (1, 3), 3: (0, 8), 4: (1, 8), 5: (0, 11)}
    assert [episode.index for episode in finished] == [1, 0, 2, 3, 4, 5]
    for episode in finished:
        env, first = begun[episode.index]
        seed, T = derive_seed(RUN_SEED, Stream.TRAIN_EPISODE, episode.index), LENGTHS[episode.index]
        obs, action, reward, terminated = episode.arrays()
        assert obs.shape == (T + 1, 3)
        np.testing.assert_allclose(obs[:, 0], seed % 1000 / 1000, rtol=1e-6)
        np.testing.assert_allclose(obs[:, 1], np.arange(T + 1) / 10, rtol=1e-6)
        np.testing.assert_array_equal(action, taken[first : first + T, env])
        np.testing.assert_allclose(obs[1:, 2], np.cumsum(action), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(reward, np.arange(1, T + 1))
        assert terminated.tolist() == [False] * (T - 1) + [True]
        assert episode.success == (T - 1) / 8  # that of its last step


def test_episodes_that_end_together_come_in_the_order_of_their_numbers(scripted):
    scripted(lambda seed: Script(4))
    collector = collect(3)
    ended = [[episode.index for episode in collector.step(action)] for action in actions(8, 3)]
    assert ended == [[], [], [], [0, 1, 2], [], [], [], [3, 4, 5]]


def test_first_step_is_true_exactly_where_an_episode_begins(scripted):
    lengths = {derive_seed(RUN_SEED, Stream.TRAIN_EPISODE, 0): 2}  # the first environment's first episode
    scripted(lambda seed: Script(lengths.get(seed, 5)))
    collector = collect(2)
    seen = []
    for action in actions(6, 2):
        seen.append(collector.first_step.tolist())
        collector.step(action)
    assert [first for first, _ in seen] == [True, False, True, False, False, False]
    assert [first for _, first in seen] == [True, False, False, False, False, True]


@pytest.mark.parametrize(
    ("steps", "under_way"),
    [(0, [0, 0, 0]), (2, [2, 2, 2]), (3, [3, 0, 3]), (7, [7, 1, 2]), (8, [0, 2, 3]), (9, [1, 0, 0]), (13, [5, 4, 1])],
)
def test_unequal_episodes_under_way_are_played_again_to_where_they_were(scripted, steps, under_way):
    scripted(unequal)
    collector, resumed = collect(3), collect(3)
    for action in actions(steps, 3):
        collector.step(action)
    state = on_disk_and_back(collector.state_dict())
    assert [len(episode["action"]) for episode in state["episodes"]] == under_way
    assert resumed.load_state_dict(state)

    np.testing.assert_array_equal(resumed.obs, collector.obs)
    np.testing.assert_array_equal(resumed.first_step, collector.first_step)
    for action in actions(25, 3, seed=1):
        assert_same_episodes(collector.step(action), resumed.step(action))
        np.testing.assert_array_equal(resumed.obs, collector.obs)


def test_simulators_in_processes_of_their_own_are_played_again_exactly():
    collector = Collector("pendulum-swingup", 2, RUN_SEED, "state", episodic=False)
    taken = actions(520, 2)  # both into their second episodes
    for action in taken[:510]:
        collector.step(action)
    state = on_disk_and_back(collector.state_dict())
    observations = []
    for action in taken[510:]:
        collector.step(action)
        observations.append(collector.obs)

    assert collector.load_state_dict(state)
    for action, obs in zip(taken[510:], observations, strict=True):
        collector.step(action)
        np.testing.assert_array_equal(collector.obs, obs)
    collector.close()


class Drifting:
    """Gives every reset another script: what a simulator that ignores its seed looks like."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = itertools.cycle(lengths)

    def __call__(self, seed: int) -> Script:
        return Script(next(self.lengths))


def test_a_simulator_that_comes_out_elsewhere_is_noticed_and_its_episode_dropped(scripted, monkeypatch):
    scripted(lambda seed: Script(50))
    collector = collect(2)
    for action in actions(7, 2):
        collector.step(action)
    state = on_disk_and_back(collector.state_dict())
    state["episodes"][1]["obs"][2] += 1e-6

    resumed = collect(2)
    assert not resumed.load_state_dict(state)
    assert resumed.first_step.all()
    assert [e["index"] for e in resumed.state_dict()["episodes"]] == [2, 3]  # numbers of their own
    for action in actions(60, 2):
        resumed.step(action)


def test_an_episode_that_ends_while_it_is_played_again_is_noticed(scripted):
    scripted(Drifting(50, 4))
    collector = collect(1)  # 50 steps long
    for action in actions(7, 1):
        collector.step(action)
    state = on_disk_and_back(collector.state_dict())
    assert not collector.load_state_dict(state)  # 4 steps long
    assert collector.first_step.all()
    collector.step(actions(1, 1)[0])


def test_a_termination_stops_a_run_that_does_not_learn_them_and_says_what_to_set(scripted):
    scripted(lambda seed: Script(3))
    collector = collect(1, episodic=False)
    first, second, third = actions(3, 1)
    collector.step(first)
    collector.step(second)
    with pytest.raises(UserError, match=r"pendulum-swingup: an episode terminated; train it with episodic=true"):
        collector.step(third)


def test_a_time_limit_is_no_termination(scripted):
    scripted(lambda seed: Script(3, terminates=False))
    collector = collect(1, episodic=False)
    finished = list(itertools.chain.from_iterable(collector.step(action) for action in actions(6, 1)))
    assert len(finished) == 2
    assert not any(episode.arrays()[3].any() for episode in finished)
