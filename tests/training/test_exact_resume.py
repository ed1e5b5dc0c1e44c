"""A run killed anywhere and started again ends as one that was never killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from training_launcher import Kill, Launcher

from tdmpc2.agent import checkpoints
from tdmpc2.config import Config, parse_settings
from tdmpc2.training.folder import RunFolder

EPISODE_LENGTH = 20
# The random phase ends within an episode.
SCHEDULE = {"seed_steps": 45, "steps": 105, "eval_freq": 30, "checkpoint_freq": 15, "buffer_size": 50}


class Attempt(NamedTuple):
    when: str
    kill: Kill
    checkpoint: tuple[int, int] | None
    """Agent steps and updates in the checkpoint that it leaves behind."""


# Each goes on from what the one before it left. A checkpoint comes between an agent step and its update.
ATTEMPTS = [
    Attempt("random phase, before any checkpoint", Kill("tdmpc2.training.collector:Collector.step", 6), None),
    Attempt("random phase, within an episode", Kill("tdmpc2.training.collector:Collector.step", 24), (15, 0)),
    Attempt("evaluation", Kill("tdmpc2.agent.agent:Actor.__call__", 9), (30, 0)),
    Attempt("updates after the random phase", Kill("tdmpc2.agent.agent:TDMPC2.update", 18), (45, 0)),
    Attempt("asked to stop there", Kill("tdmpc2.agent.agent:TDMPC2.update", 25, signal="SIGTERM"), (45, 25)),
    Attempt("learning, within an episode", Kill("tdmpc2.agent.agent:TDMPC2.update", 29, after=True), (45, 25)),
    Attempt("checkpoint written but not yet named", Kill("torch:save", 1, after=True), (45, 25)),
    Attempt("episode stored but not yet logged", Kill("tdmpc2.training.logs:CsvLog.write", 1), (45, 25)),
    Attempt("asked to stop while writing a checkpoint", Kill("torch:save", 2, signal="SIGINT"), (75, 74)),
    Attempt("checkpoint just named", Kill("tdmpc2.data.replay:Replay.mark_checkpoint", 3), (90, 89)),
    Attempt("last evaluation", Kill("tdmpc2.agent.agent:Actor.__call__", 45), (105, 104)),
    Attempt("all done but the status", Kill("tdmpc2.training.progress:RunProgress.finish"), (105, 105)),
]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(EPISODE_LENGTH, tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.close()


def folder_of(words: list[str]) -> RunFolder:
    return RunFolder.of(parse_settings(Config, words))


def test_a_run_killed_at_a_dozen_points_ends_as_one_that_was_never_killed(launch, words, contents, identical):
    untouched = words(exp_name="untouched", **SCHEDULE)
    code, output = launch(["train", *untouched])
    assert code == 0, output

    killed = words(exp_name="killed", **SCHEDULE)
    folder = folder_of(killed)
    for when, kill, left in ATTEMPTS:
        code, output = launch(["train", *killed], kill)
        assert code == (-signal.SIGKILL if kill.signal == "SIGKILL" else 130), f"{when}: {output}"
        status = folder.read_status()
        assert status is not None
        assert status.state == ("running" if kill.signal == "SIGKILL" else "interrupted"), when
        if kill.signal != "SIGKILL":
            assert "stopped and checkpointed; the same command goes on" in output, when
        assert not folder.is_claimed(), when
        found = None
        if folder.checkpoint.exists():
            state = checkpoints.read(folder.checkpoint)
            found = (state["steps"], state["agent"]["updates"])
        assert found == left, when
    code, output = launch(["train", *killed])
    assert code == 0, output

    outcome = contents(folder)
    identical(outcome, contents(folder_of(untouched)))
    assert [row["agent_steps"] for row in outcome["eval"]] == ["0", "30", "60", "90", "105"]
    assert [row["agent_steps"] for row in outcome["train"]] == ["20", "40", "60", "80", "100"]
    status = folder.read_status()
    assert (status.state, status.agent_steps, status.updates, status.phase) == ("done", 105, 105, "finished")
    assert status.last_return == pytest.approx(float(outcome["eval"][-1]["return"]), rel=1e-5, abs=1e-5)
    assert list(folder.path.rglob("*.tmp")) == []  # one was killed while writing


@pytest.mark.parametrize(
    ("precision", "compiled"),
    [
        ("float32", "none"),
        ("bfloat16", "none"),
        ("bfloat16", "kernels"),
        pytest.param("float32", "full", marks=pytest.mark.slow),  # torch.compile takes minutes
    ],
)
def test_resume_is_exact_with_every_precision_and_way_of_compiling(
    launch, words, contents, identical, precision, compiled
):
    own = {"precision": precision, "compile": compiled, **SCHEDULE, "steps": 80}
    untouched, killed = words(exp_name="untouched", **own), words(exp_name="killed", **own)
    assert launch(["train", *untouched])[0] == 0
    code, output = launch(["train", *killed], Kill("tdmpc2.agent.agent:TDMPC2.update", 70))
    assert code == -signal.SIGKILL, output
    code, output = launch(["train", *killed])
    assert code == 0, output
    outcome = contents(folder_of(killed))
    identical(outcome, contents(folder_of(untouched)))
    assert len(outcome["train"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_real_run_killed_from_outside_ends_as_one_that_was_never_killed(words, contents, identical, num_envs):
    """Whole episodes of 500 steps, in processes as a user starts them; two environments have processes of their own."""
    schedule = {"seed_steps": 550, "steps": 1200, "eval_freq": 400, "checkpoint_freq": 150, "num_envs": num_envs}
    schedule["task"] = "cartpole-balance"

    def start(arguments: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "tdmpc2", "train", "--quiet", *arguments])

    untouched, killed = words(exp_name="untouched", **schedule), words(exp_name="killed", **schedule)
    assert start(untouched).wait(timeout=1800) == 0
    folder = folder_of(killed)
    last_checkpoint = -1
    for number in range(6):
        process = start(killed)
        while process.poll() is None:  # until it has come further than the one before
            if folder.checkpoint.exists():
                steps = checkpoints.read(folder.checkpoint)["steps"]
                if steps > last_checkpoint:
                    last_checkpoint = steps
                    break
            time.sleep(0.05)
        time.sleep(0.4 * number)  # into the updates, the evaluation or the steps that follow
        process.send_signal(signal.SIGKILL if number % 3 else signal.SIGTERM)
        process.wait(timeout=1800)
    assert start(killed).wait(timeout=1800) == 0
    identical(contents(folder), contents(folder_of(untouched)))
