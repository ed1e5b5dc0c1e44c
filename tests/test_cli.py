"""The command `tdmpc2`: what it refuses, what it explains, how it is stopped."""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tdmpc2.cli import main
from tdmpc2.config import Config, EvaluateConfig


def numbers(shown: str) -> dict[str, str]:
    """The rows of a printed table of two columns."""
    rows = [line.strip("│ ").split("│") for line in shown.splitlines() if line.startswith("│")]
    return {name.strip(): number.strip() for name, number in rows}


@pytest.mark.parametrize("verb", ["train", "info"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("task=wlaker-walk", "task: unknown task 'wlaker-walk'; did you mean 'walker-walk'?"),
        ("task=mt3O", "task: unknown task 'mt3O'; did you mean 'mt30'?"),
        ("task=dog-run modelsize=5", "unknown setting 'modelsize'; did you mean 'model_size'?"),
        ("task=dog-run model_size=4", "model_size: no size 4; nearest is 5 (valid: 1, 5, 19, 48, 317)"),
        ("task=dog-run steps=many", "steps: "),
        ("task=dog-run steps=many", "given: 'many'"),
        ("task=dog-run seed=-1", "seed: input should be greater than or equal to 0 (given: '-1')"),
        ("task=dog-run lr=0", "lr: input should be greater than 0"),
        ("task=dog-run obs=pixels", "obs: "),
        ("task=dog-run device=gpu", "device: "),
        ("task=dog-run compile=fast", "compile: input should be 'auto', 'none', 'kernels' or 'full' (given: 'fast')"),
        ("task=dog-run precision=half", "precision: input should be 'auto', 'float32', 'tf32' or 'bfloat16'"),
        ("task=dog-run num_elites=600", "num_elites must not be above num_samples"),
        ("task=dog-run steps=10 env_steps=20", "steps and env_steps: give one of them"),
        ("task=dog-run exp_name=../elsewhere", "exp_name names a folder"),
        ("task=dog-run wandb", "'wandb' is not of the form key=value"),
        ("task=dog-run seed=1 seed=2", "seed is given twice"),
        ("model_size=5", "task: "),
    ],
)
def test_bad_settings_are_one_line_with_exit_code_2_and_nothing_is_made(
    capsys, tmp_path, monkeypatch, verb, words, message
):
    monkeypatch.chdir(tmp_path)
    assert main([verb, *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("tdmpc2: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run=nowhere", "run: no folder nowhere"),
        ("run=nowhere episodes=0", "episodes: input should be greater than or equal to 1"),
        ("run=nowhere episode=3", "unknown setting 'episode'; did you mean 'episodes'?"),
        ("episodes=3", "run: "),
    ],
)
def test_bad_settings_of_an_evaluation_are_refused_likewise(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("tdmpc2: ")
    assert message in captured.err


def test_numbers_are_read_as_people_write_them_and_names_are_never_arithmetic(capsys):
    assert main(["info", "task=dog-run", "steps=7_000_000", "exp_name=10-5-test"]) == 0
    assert "budget: 14,000,000 environment steps (7,000,000 agent steps)" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["info", "task=dog-run", "--quiet"]])
def test_a_command_line_that_cannot_be_read_shows_how_it_is_meant(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: tdmpc2" in capsys.readouterr().err


def test_a_full_disk_is_one_line_with_exit_code_2_and_other_faults_of_the_system_are_not_hidden(
    monkeypatch, capsys, tmp_path
):
    def fails_with(number: int) -> None:
        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number), "results/plan.json")

        monkeypatch.setattr("tdmpc2.sweeps.commands.list_sweeps", fail)

    fails_with(errno.ENOSPC)
    assert main(["sweep", "list", "--results", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert shown == "tdmpc2: results/plan.json: the disk is full; free some space and run the same command again\n"
    fails_with(errno.EIO)
    with pytest.raises(OSError, match=r"plan\.json"):
        main(["sweep", "list", "--results", str(tmp_path)])


@pytest.mark.parametrize(("verb", "settings"), [("train", Config), ("evaluate", EvaluateConfig)])
def test_the_help_explains_every_setting(verb, settings, capsys):
    with pytest.raises(SystemExit) as error:
        main([verb, "--help"])
    assert error.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(settings):
        line, explanation = shown.split(f"\n  {field.name}", 1)[1].split("\n")[:2]
        assert field.name in ("task", "run") or line.startswith("=")
        assert len(explanation.split()) >= 2


def test_help_comes_without_loading_torch_or_a_simulator():
    code = (
        "import sys\n"
        "from tdmpc2.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'ray', 'mujoco', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"


def test_info_shows_the_published_parameter_counts_of_the_80_task_model(capsys):
    assert main(["info", "task=mt80", "model_size=5"]) == 0
    assert numbers(capsys.readouterr().out) == {
        "encoder": "167,936",
        "dynamics": "843,264",
        "reward": "631,397",
        "policy": "582,668",
        "q": "3,156,985",
        "task embedding": "7,680",
        "termination": "0",
        "total": "5,389,930",
    }


def test_info_of_the_largest_model_takes_no_memory_to_speak_of(capsys):
    main(["info", "task=mt80", "model_size=1"])
    capsys.readouterr()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["info", "task=mt80", "model_size=317"]) == 0
    total = int(numbers(capsys.readouterr().out)["total"].replace(",", ""))
    assert 310e6 < total < 325e6
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 200_000  # the weights alone would be 1,270,000


def test_info_of_a_single_task_has_no_embedding_and_tells_the_budget(capsys):
    assert main(["info", "task=walker-walk", "model_size=1", "obs=rgb"]) == 0
    shown = capsys.readouterr().out
    assert numbers(shown)["task embedding"] == "0"
    assert "observation (9, 64, 64), action (6,)" in shown
    assert "environment steps" in shown


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Pretends that the CPU kernels could be built here, or that there is no compiler for them."""
    from tdmpc2.agent import kernels

    def pretend(there: bool) -> None:
        found = kernels.Availability(object() if there else None, "compiled by c++" if there else "no compiler found")
        monkeypatch.setattr(kernels, "load", lambda: found)

    return pretend


def test_info_says_how_the_run_would_be_computed_and_why(capsys, compiler):
    compiler(True)
    assert main(["info", "task=walker-walk", "model_size=1", "device=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "device: cpu" in lines
    (precision,) = [line for line in lines if line.startswith("precision: ")]
    assert precision.startswith("precision: float32 (auto: ")
    assert "bfloat16" in precision
    (compiling,) = [line for line in lines if line.startswith("compile: ")]
    assert compiling.startswith("compile: kernels (auto: faster than torch.compile")


@pytest.mark.parametrize(
    ("word", "line"),
    [("compile=none", "compile: none"), ("compile=true", "compile: full"), ("precision=float32", "precision: float32")],
)
def test_info_gives_no_reason_for_what_was_asked_for(capsys, compiler, word, line):
    compiler(True)
    assert main(["info", "task=walker-walk", "model_size=1", "device=cpu", word]) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_info_says_once_that_without_a_compiler_all_is_slower(capsys, compiler):
    compiler(False)
    assert main(["info", "task=walker-walk", "model_size=1", "device=cpu"]) == 0
    shown = capsys.readouterr().out
    assert "compile: none (auto: no compiler found)" in shown.splitlines()
    assert shown.count("running uncompiled, which is slower: no compiler found") == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("precision=tf32", "precision: tf32 is for GPUs; on a CPU float32 or bfloat16"),
        ("compile=kernels", "compile: kernels is not to be had here: no compiler found; compile=none works everywhere"),
        ("compile=true", "compile: full is not to be had here: no compiler found; compile=none works everywhere"),
    ],
)
def test_info_refuses_what_this_machine_cannot_do(capsys, compiler, word, message):
    compiler(False)
    assert main(["info", "task=walker-walk", "model_size=1", "device=cpu", word]) == 2
    assert capsys.readouterr().err == f"tdmpc2: {message}\n"


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_in_a_terminal_ends_with_a_checkpoint_and_says_how_to_go_on(tmp_path):
    settings = (
        "task=pendulum-swingup model_size=1 enc_dim=16 mlp_dim=16 latent_dim=16 mpc=false threads=1 device=cpu "
        f"eval_episodes=1 eval_freq=1000000 steps=1000000 seed_steps=1000000 results_dir={tmp_path}"
    )
    command = [sys.executable, "-m", "tdmpc2", "train", *settings.split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = Path(tmp_path, "default", "runs", "pendulum-swingup-1M-seed1")
    wait_for(lambda: (run / "train.csv").exists() and (run / "train.csv").read_text().count("\n") > 1, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == f"stopped and checkpointed; the same command goes on with {run}"
    assert "Traceback" not in err
    assert out == ""
    assert (run / "checkpoint" / "latest.pt").exists()
    assert '"state": "interrupted"' in (run / "status.json").read_text()


def test_what_is_neither_a_setting_nor_an_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "task=x", "--quiet", "walker"], ["train", "task=x", "--queit=1"], ["sweep", "list", "a=b"]):
        with pytest.raises(SystemExit) as error:
            main(words)
        assert error.value.code == 2
        assert f"unrecognized arguments: {words[-1]}" in capsys.readouterr().err
