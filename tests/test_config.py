"""Settings: how they are read, refused, resolved and hashed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import pytest

from tdmpc2.config import Config, EvaluateConfig, architecture, make_settings, parse_settings
from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec


def parse(*words: str) -> Config:
    return parse_settings(Config, ["task=walker-walk", *words])


# --- reading


def test_defaults_are_the_papers() -> None:
    config = parse()
    expected = {
        "horizon": 3, "lr": 3e-4, "enc_lr_scale": 0.3, "grad_clip_norm": 20, "tau": 0.01, "rho": 0.5,
        "consistency_coef": 20, "reward_coef": 0.1, "value_coef": 0.1, "termination_coef": 1, "entropy_coef": 1e-4,
        "discount_denom": 5, "discount_min": 0.95, "discount_max": 0.995, "iterations": 6, "num_samples": 512,
        "num_elites": 64, "num_pi_trajs": 24, "min_std": 0.05, "max_std": 2, "temperature": 0.5, "num_bins": 101,
        "vmin": -10, "vmax": 10, "log_std_min": -10, "log_std_max": 2, "dropout": 0.01, "simnorm_dim": 8,
        "buffer_size": 1_000_000, "eval_freq": 50_000, "eval_episodes": 10, "model_size": 5, "num_channels": 32,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.mpc
    assert not config.episodic


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("steps=7_000_000", "steps", 7_000_000),
        ("steps=1e6", "steps", 1_000_000),
        ("steps=2.5e3", "steps", 2500),
        ("steps=none", "steps", None),
        ("steps=None", "steps", None),
        ("task_dim=64", "task_dim", 64),
        ("model_size=1", "model_size", 1),
        ("lr=1e-3", "lr", 0.001),
        ("mpc=false", "mpc", False),
        ("mpc=False", "mpc", False),
        ("wandb=true", "wandb", True),
        ("wandb=1", "wandb", True),
        ("exp_name=10-5-test", "exp_name", "10-5-test"),  # text stays text, never arithmetic
        ("exp_name=1e6", "exp_name", "1e6"),
        ("exp_name=none", "exp_name", "none"),
        ("label=a.b_c-1", "label", "a.b_c-1"),
        ("wandb_entity=none", "wandb_entity", None),
        ("results_dir=/tmp/a=b", "results_dir", "/tmp/a=b"),
        ("obs=rgb", "obs", "rgb"),
        ("device=cuda:3", "device", "cuda:3"),
    ],
)
def test_words_are_read_by_the_fields_type(word: str, field: str, value: Any) -> None:
    read = getattr(parse(word), field)
    assert read == value
    assert type(read) is type(value)


def test_a_config_cannot_be_changed() -> None:
    config = parse()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.iterations = 8  # type: ignore[misc]


def test_a_config_comes_back_from_its_own_values() -> None:
    config = parse("steps=5", "model_size=1", "mpc=false", "label=x")
    assert make_settings(Config, dataclasses.asdict(config)) == config


# --- refusing


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model_siez=5"], "unknown setting 'model_siez'; did you mean 'model_size'"),
        (["LR=1"], "unknown setting 'LR'; did you mean 'lr'"),
        (["zzzzzzz=1"], "unknown setting 'zzzzzzz'; valid: task, "),
        (["seed=1", "seed=2"], "seed is given twice"),
        (["seed=1", "seed=1"], "seed is given twice"),
        (["steps"], "'steps' is not of the form key=value"),
        (["=5"], "unknown setting ''"),
        (["steps=many"], "^steps: .*'many'"),
        (["steps=0"], "^steps: .*greater than or equal to 1"),
        (["steps=-5"], "^steps: "),
        (["steps=1.5"], "^steps: .*'1.5'"),
        (["steps=inf"], "^steps: "),
        (["steps=nan"], "^steps: "),
        (["horizon=none"], "^horizon: "),
        (["lr=0"], "^lr: .*greater than 0"),
        (["lr=fast"], "^lr: .*'fast'"),
        (["lr=nan"], "^lr: "),
        (["tau=1.5"], "^tau: .*less than or equal to 1"),
        (["rho=0"], "^rho: "),
        (["dropout=1"], "^dropout: .*less than 1"),
        (["seed=-1"], "^seed: "),
        (["seed=2147483648"], "^seed: "),
        (["mpc=maybe"], "^mpc: .*'maybe'"),
        (["obs=pixels"], "^obs: .*'pixels'"),
        (["device=gpu"], "^device: "),
        (["num_q=1"], "^num_q: .*greater than or equal to 2"),
        (["consistency_coef=-1"], "^consistency_coef: "),
        (["consistency_coef=inf"], "^consistency_coef: "),
        (["exp_name="], "exp_name must not be empty"),
        (["exp_name=a/b"], "exp_name names a folder"),
        (["exp_name=3*2"], "exp_name names a folder"),
        (["exp_name=.."], "exp_name names a folder"),
        (["label=a b"], "label names a folder"),
        (["model_size=20"], "model_size: no size 20; nearest is 19"),
        (["model_size=300"], "model_size: no size 300; nearest is 317"),
        (["model_size=big"], "^model_size: .*'big'"),
        (["steps=5", "env_steps=10"], "steps and env_steps: give one of them"),
        (["vmin=5", "vmax=5"], "vmin must be below vmax"),
        (["min_std=3"], "min_std must not be above max_std"),
        (["log_std_min=2"], "log_std_min must be below log_std_max"),
        (["discount_min=0.999"], "discount_min must not be above discount_max"),
        (["num_elites=600"], "num_elites must not be above num_samples"),
        (["num_pi_trajs=600"], "num_pi_trajs must not be above num_samples"),
    ],
)
def test_a_bad_word_is_refused_by_name(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(*words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word",
    [
        "lr=inf",
        "grad_clip_norm=nan",
        "vmin=-inf",
        "vmax=inf",
        "log_std_min=-inf",
        "max_std=inf",
        "temperature=inf",
        "discount_denom=inf",
    ],
)
def test_infinite_settings_are_refused(word: str) -> None:
    with pytest.raises(UserError, match=f"^{word.partition('=')[0]}"):
        parse(word)


def test_an_unknown_task_is_refused_with_the_nearest() -> None:
    for word in ("task=wlaker-walk", "task=dog-run,wlaker-walk"):
        with pytest.raises(UserError, match="task: unknown task 'wlaker-walk'; did you mean 'walker-walk'"):
            parse_settings(Config, [word])


def test_a_missing_task_is_named() -> None:
    with pytest.raises(UserError, match=r"^task: field required$"):
        parse_settings(Config, [])


def test_every_fault_is_named_at_once_and_with_the_file_it_stands_in() -> None:
    with pytest.raises(UserError, match=r"^run\.yaml: .*lr: .*tau: "):
        make_settings(Config, {"task": "dog-run", "lr": -1, "tau": 5}, where="run.yaml")
    with pytest.raises(UserError, match=r"^run\.yaml: unknown setting 'taau'; did you mean 'tau'"):
        make_settings(Config, {"task": "dog-run", "taau": 5}, where="run.yaml")
    with pytest.raises(UserError, match=r"^run\.yaml: model_size: no size 2"):
        make_settings(Config, {"task": "dog-run", "model_size": 2}, where="run.yaml")


def test_evaluation_settings_are_read_the_same_way() -> None:
    settings = parse_settings(EvaluateConfig, ["run=results/a", "episodes=1e1", "video=true"])
    assert (settings.run, settings.episodes, settings.video, settings.mpc) == ("results/a", 10, True, True)
    with pytest.raises(UserError, match="unknown setting 'episode'; did you mean 'episodes'"):
        parse_settings(EvaluateConfig, ["run=a", "episode=3"])
    with pytest.raises(UserError, match=r"^run: give run=FOLDER or checkpoint=FILE, one of them"):
        parse_settings(EvaluateConfig, [])


# --- what follows from the settings


def test_a_budget_in_environment_steps_counts_action_repeat() -> None:
    assert parse("env_steps=100_000").agent_steps == 50_000
    assert parse("steps=100_000").agent_steps == 100_000
    assert parse_settings(Config, ["task=myo-reach", "env_steps=100_000"]).agent_steps == 100_000
    assert parse("env_steps=1").agent_steps == 1


def test_without_a_budget_it_is_the_papers_for_the_task() -> None:
    # In environment steps: 4M on DMControl (14M for dog and humanoid) at action repeat 2; 2M on MyoSuite at 1.
    assert parse().agent_steps == 2_000_000
    assert parse_settings(Config, ["task=dog-run"]).agent_steps == 7_000_000
    assert parse_settings(Config, ["task=myo-reach"]).agent_steps == 2_000_000


def test_batches_are_larger_offline_unless_set() -> None:
    assert parse().sequences == 256
    assert parse("data=some").sequences == 1024
    assert parse_settings(Config, ["task=mt30", "data=some"]).sequences == 1024
    assert parse_settings(Config, ["task=mt30", "data=some", "batch_size=64"]).sequences == 64


def test_run_names_say_task_size_and_seed() -> None:
    assert parse("seed=1").run_name == "walker-walk-5M-seed1"
    assert parse("obs=rgb", "model_size=1", "label=wide", "seed=7").run_name == "walker-walk-rgb-1M-wide-seed7"
    assert parse_settings(Config, ["task=dog-run,cup-spin"]).run_name == "dog-run+cup-spin-5M-seed1"


def test_a_run_name_is_a_folders_name_even_where_tasks_are_listed_with_spaces() -> None:
    assert " " not in parse_settings(Config, ["task=dog-run, cup-spin"]).run_name


def test_the_digest_tells_results_apart_and_nothing_else() -> None:
    digest = parse("steps=1000").digest()
    assert parse("steps=1e3").digest() == digest
    for word in (
        "device=cpu",
        "threads=1",
        "wandb=true",
        "exp_name=x",
        "results_dir=y",
        "label=z",
        "checkpoint_freq=5",
    ):
        assert parse("steps=1000", word).digest() == digest, word
    others = [
        parse("steps=1000", word).digest()
        for word in ("lr=1e-3", "seed=2", "model_size=1", "mpc=false", "horizon=5", "num_q=4", "eval_freq=10")
    ]
    assert len({digest, *others, parse("steps=1001").digest()}) == 9


def test_the_digest_is_the_same_in_another_process() -> None:
    config = parse("steps=1000", "lr=1e-3")
    code = (
        "from tdmpc2 import Config; print(Config(task='walker-walk', steps=1000, lr=1e-3).digest())"
        "; import sys; assert 'torch' not in sys.modules"  # and importing the package stays light
    )
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == config.digest()


def test_widths_are_the_sizes_unless_overridden() -> None:
    spec = AgentSpec.from_tasks(["walker-walk"])
    resolved = architecture(parse("model_size=19", "mlp_dim=32", "num_q=3"), spec)
    assert dataclasses.asdict(resolved) == {
        "enc_dim": 1024, "mlp_dim": 32, "latent_dim": 768, "num_enc_layers": 3, "num_q": 3, "task_dim": 0,
    }  # fmt: skip
    assert architecture(parse("task_dim=64"), spec).task_dim == 0  # one task needs no embedding


@pytest.mark.parametrize(
    ("size", "mt30", "mt80"),
    [
        (1, (96, 128), (96, 128)),
        (5, (64, 512), (96, 512)),
        (19, (64, 512), (96, 768)),
        (48, (64, 768), (96, 768)),
        (317, (96, 1376), (96, 1376)),
    ],
)
def test_embedding_and_latent_lengths_are_those_of_the_released_checkpoints(
    size: int, mt30: tuple[int, int], mt80: tuple[int, int]
) -> None:
    for name, expected in (("mt30", mt30), ("mt80", mt80)):
        config = Config(task=name, model_size=size)
        resolved = architecture(config, AgentSpec.from_tasks(config.tasks))
        assert (resolved.task_dim, resolved.latent_dim) == expected, name


def test_latent_length_of_pixels_follows_from_the_convolutions() -> None:
    spec = AgentSpec.from_tasks(["walker-walk"], obs="rgb")
    for size in (1, 5, 317):
        assert architecture(parse("obs=rgb", f"model_size={size}"), spec).latent_dim == 512
    assert architecture(parse("obs=rgb", "num_channels=4"), spec).latent_dim == 64
    with pytest.raises(UserError, match="latent_dim follows from num_channels"):
        architecture(parse("obs=rgb", "latent_dim=128"), spec)
