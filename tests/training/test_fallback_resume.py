"""A run whose latest checkpoint was damaged ends as one that was never disturbed, bit by bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from test_offline_training import SCHEDULE as OFFLINE
from test_offline_training import outcome
from test_train_command import StopAfter
from tiny_data import make_data
from tiny_runs import Script
from training_launcher import Kill, Launcher

from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.config import Config, parse_settings
from tdmpc2.data.replay import Replay
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.offline import OfflineTraining
from tdmpc2.training.online import OnlineTraining
from tdmpc2.training.progress import RunProgress
from tdmpc2.training.run import train
from tdmpc2.training.runtime import Stopped, StopRequest

# The replay's ring has 21 + 2 x (2 x 5 + 21) = 83 rows; five episodes take 105. It keeps the newest episode alone.
SCHEDULE = {"seed_steps": 45, "steps": 105, "eval_freq": 30, "checkpoint_freq": 5, "buffer_size": 21}
# Where each attempt is killed, counted in its own process; the checkpoints it leaves (agent steps); what befalls the
# latest. So they begin at steps 0, 15, 65 and, the last one, 95.
ATTEMPTS = [
    (Kill("tdmpc2.training.collector:Collector.step", 24), (20, 15), "truncated"),
    (Kill("tdmpc2.agent.agent:TDMPC2.update", 70), (70, 65), "empty"),
    (Kill("tdmpc2.agent.agent:TDMPC2.update", 36), (100, 95), "missing"),
]


def steps_in(folder: RunFolder) -> tuple[int, int]:
    latest, previous = (checkpoints.read(path)["steps"] for path in (folder.checkpoint, folder.previous_checkpoint))
    return latest, previous


def test_a_run_whose_latest_checkpoint_is_damaged_again_and_again_ends_as_an_undisturbed_one(
    tmp_path, words, contents, identical
):
    launch = Launcher(20, tmp_path)
    try:
        untouched, disturbed = words(exp_name="untouched", **SCHEDULE), words(exp_name="disturbed", **SCHEDULE)
        code, output = launch(["train", *untouched])
        assert code == 0, output
        folder = RunFolder.of(parse_settings(Config, disturbed))
        expected: list[str] = []
        for kill, left, damage in ATTEMPTS:
            code, output = launch(["train", *disturbed], kill)
            assert code == -signal.SIGKILL, output
            assert all(text in output for text in expected)
            assert steps_in(folder) == left
            if damage == "missing":
                folder.checkpoint.unlink()
            else:
                os.truncate(folder.checkpoint, 0 if damage == "empty" else folder.checkpoint.stat().st_size // 2)
            expected = [
                str(folder.checkpoint),
                f"going on from the checkpoint before it, {folder.previous_checkpoint}",
                f"resuming {folder.path} at {2 * left[1]} environment steps",  # the action repeat is 2
            ]
        code, output = launch(["train", *disturbed])
        assert code == 0, output
        assert all(text in output for text in expected)
    finally:
        launch.close()
    identical(contents(folder), contents(RunFolder.of(parse_settings(Config, untouched))))
    assert [row["agent_steps"] for row in contents(folder)["train"]] == ["20", "40", "60", "80", "100"]
    names = sorted(path.name for path in folder.checkpoint.parent.iterdir())
    assert names == ["damaged-latest.pt", "latest.pt", "previous.pt"]


def test_an_offline_run_goes_on_from_the_checkpoint_before_too(tiny, short_episodes, tmp_path, monkeypatch, identical):
    make_data(tmp_path)
    untouched, disturbed = (tiny(**OFFLINE, exp_name=name) for name in ("untouched", "disturbed"))
    update = TDMPC2.update

    def fail(agent: TDMPC2, batch: Any) -> Any:
        if agent.updates == 26:
            raise ZeroDivisionError
        return update(agent, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TDMPC2, "update", fail)
        with pytest.raises(ZeroDivisionError):
            train(disturbed, show_progress=False)
    folder = RunFolder.of(disturbed)
    assert checkpoints.read(folder.previous_checkpoint)["agent"]["updates"] == 16  # one every eight; the last at 24
    os.truncate(folder.checkpoint, 1000)
    train(disturbed, show_progress=False)
    identical(outcome(folder), outcome(train(untouched, show_progress=False)))


# --- how often checkpoints are written


@pytest.fixture
def checkpointed() -> Callable[..., list[int]]:
    """Runs a training to its end or stop: the agent steps, or updates, of the checkpoints that it wrote."""

    def run(config: Config, stop: StopRequest | None = None) -> list[int]:
        folder, found = RunFolder.of(config), []

        def saved() -> None:
            state = checkpoints.read(folder.checkpoint)
            found.append(state["agent"]["updates"] if config.offline else state["steps"])

        kind = OfflineTraining if config.offline else OnlineTraining
        folder.claim(config)
        try:
            progress = RunProgress(folder, config, show=False)
            training = kind(config, folder, stop or StopRequest(), progress, saved=saved)
            try:
                training.run()
            except Stopped:
                pass
            finally:
                training.close()
        finally:
            folder.release()
        return found

    return run


def test_whoever_asks_is_told_of_each_checkpoint_once_it_can_be_read(checkpointed, tiny, short_episodes, tmp_path):
    make_data(tmp_path)
    assert checkpointed(tiny(**OFFLINE)) == [8, 16, 24, 30]
    assert checkpointed(tiny(seed_steps=30, steps=30, eval_freq=1000, checkpoint_freq=12)) == [12, 24, 30]


def test_the_shortest_episodes_do_not_make_checkpoints_more_frequent(checkpointed, tiny, scripted):
    scripted(lambda seed: Script(1))  # two rows a step, more than of any other length
    config = tiny(episodic=True, buffer_size=1001, seed_steps=60, steps=60, eval_freq=1000, checkpoint_freq=10)
    assert checkpointed(config) == [10, 20, 30, 40, 50, 60, 60]


def test_a_store_with_the_slack_of_earlier_versions_goes_on(
    checkpointed, tiny, short_episodes, monkeypatch, contents, identical
):
    run = {"seed_steps": 30, "steps": 105, "eval_freq": 1000, "buffer_size": 21, "mpc": False}
    create = Replay.create.__func__

    def as_before(folder: Any, *, slack: int, **layout: Any) -> Replay:
        return create(Replay, folder, slack=slack // 2, **layout)

    with monkeypatch.context() as patch:
        patch.setattr(Replay, "create", as_before)
        checkpointed(tiny(**run, exp_name="old", checkpoint_freq=1), StopAfter(3))
    old = tiny(**run, exp_name="old", checkpoint_freq=1000)
    folder = RunFolder.of(old)
    with Replay.open(folder.replay, writable=False) as replay:
        assert replay.layout.slack == 23  # 2 x 1 + 21
    # The ring has 44 rows, an episode 21: from the second one on there is room for the next only once both checkpoints
    # are newer than the last.
    assert checkpointed(old) == [40, 40, 60, 60, 80, 80, 100, 100, 105]
    new = tiny(**run, exp_name="new", checkpoint_freq=1000)
    assert checkpointed(new) == [105]
    identical(contents(folder), contents(RunFolder.of(new)))
