"""Precision and compiling: what is chosen where and why, and that the choice leaves the results what they are."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from same_life import perturb
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from tdmpc2.agent import execution, kernels
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.execution import (
    COMPILE_PAYS_AFTER,
    Execution,
    choose_execution,
    has_fast_bfloat16,
    resume_execution,
    share_compiled_code,
)
from tdmpc2.config import Config, parse_settings
from tdmpc2.errors import UserError

Agents = Callable[..., TDMPC2]
Batches = Callable[..., dict[str, torch.Tensor]]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
built = pytest.mark.skipif(not kernels.available(), reason=kernels.load().reason)


def settings(*words: str) -> Config:
    return parse_settings(Config, ["task=walker-walk", "model_size=1", *words])


@pytest.fixture
def has_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Pretends that the kernels could be compiled, or not."""

    def pretend(there: bool) -> None:
        found = kernels.Availability(object() if there else None, "compiled by c++" if there else "no compiler")  # type: ignore[arg-type]
        monkeypatch.setattr(kernels, "load", lambda: found)

    return pretend


@pytest.fixture
def fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Pretends that the processor multiplies bfloat16 matrices by instructions of its own, or not."""

    def pretend(fast: bool) -> None:
        monkeypatch.setattr(execution, "has_fast_bfloat16", lambda device: fast)

    return pretend


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Pretends that there is a GPU of a generation: 7.5 is Turing, without bfloat16; 8.0 is Ampere, with it."""

    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))

    return pretend


# --- the settings


@pytest.mark.parametrize(
    ("word", "mode"),
    [
        ("true", "full"), ("True", "full"), ("FALSE", "none"), ("false", "none"),
        ("auto", "auto"), ("none", "none"), ("kernels", "kernels"), ("full", "full"),
    ],
)  # fmt: skip
def test_compile_takes_its_modes_and_true_and_false_as_the_reference_does(word: str, mode: str) -> None:
    assert settings(f"compile={word}").compile == mode


def test_true_and_false_stand_for_compile_modes_in_files_as_well() -> None:
    assert Config(task="walker-walk", compile=True).compile == "full"  # type: ignore[arg-type]
    assert Config(task="walker-walk", compile=False).compile == "none"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("compile=fast", r"^compile: input should be 'auto', 'none', 'kernels' or 'full' \(given: 'fast'\)$"),
        ("compile=1", r"^compile: input should be 'auto', 'none', 'kernels' or 'full' \(given: '1'\)$"),
        ("precision=fp16", r"^precision: input should be 'auto', 'float32', 'tf32' or 'bfloat16' \(given: 'fp16'\)$"),
        ("precision=BFLOAT16", r"^precision: input should be "),
    ],
)
def test_other_modes_are_refused_with_the_valid_ones(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(word)


def test_precision_decides_a_runs_results_and_compiling_leaves_them_as_they_are() -> None:
    digest = settings().digest()
    assert settings("compile=full").digest() == digest
    assert settings("precision=bfloat16").digest() != digest


# --- choosing on a CPU


@pytest.mark.parametrize(
    ("fast", "reason"), [(True, "not yet shown to cost no returns"), (False, "this processor has no bfloat16 products")]
)
def test_auto_on_a_cpu_is_float32_and_says_why(
    fast: bool, reason: str, fast_bfloat16: Callable[[bool], None], has_kernels: Callable[[bool], None]
) -> None:
    fast_bfloat16(fast)
    has_kernels(True)
    chosen = choose_execution(settings(), CPU)
    assert (chosen.precision, chosen.compile) == ("float32", "kernels")
    assert reason in chosen.why["precision"]
    assert "faster than torch.compile" in chosen.why["compile"]
    assert chosen.notice == ""
    assert str(chosen) == "float32, compile=kernels"


def test_auto_without_a_compiler_runs_uncompiled_and_says_so_once(has_kernels: Callable[[bool], None]) -> None:
    has_kernels(False)
    chosen = choose_execution(settings(), CPU)
    assert chosen.compile == "none"
    assert chosen.why["compile"] == "no compiler"
    assert chosen.notice == "running uncompiled, which is slower: no compiler"


@pytest.mark.parametrize("wanted", ["none", "kernels", "full"])
def test_what_is_asked_for_on_a_cpu_is_done_without_reasons(wanted: str, has_kernels: Callable[[bool], None]) -> None:
    has_kernels(True)
    chosen = choose_execution(settings(f"compile={wanted}", "precision=float32"), CPU)
    assert (chosen.precision, chosen.compile) == ("float32", wanted)
    assert chosen.why == {}
    assert chosen.notice == ""


@pytest.mark.parametrize("wanted", ["kernels", "full"])
def test_compiling_that_cannot_be_had_is_refused_with_the_reason_and_a_way_out(
    wanted: str, has_kernels: Callable[[bool], None]
) -> None:
    has_kernels(False)
    message = f"^compile: {wanted} is not to be had here: no compiler; compile=none works everywhere$"
    with pytest.raises(UserError, match=message):
        choose_execution(settings(f"compile={wanted}"), CPU)
    assert choose_execution(settings("compile=none"), CPU).notice == ""


def test_bfloat16_on_a_cpu_is_done_and_called_slow_where_it_is(fast_bfloat16: Callable[[bool], None]) -> None:
    config = settings("precision=bfloat16", "compile=none")
    fast_bfloat16(True)
    assert choose_execution(config, CPU) == Execution("bfloat16", "none")
    assert choose_execution(config, CPU).notice == ""
    fast_bfloat16(False)
    assert choose_execution(config, CPU) == Execution("bfloat16", "none")
    assert "precision=bfloat16 is slower here than float32" in choose_execution(config, CPU).notice


def test_all_there_is_to_say_is_one_notice(
    fast_bfloat16: Callable[[bool], None], has_kernels: Callable[[bool], None]
) -> None:
    fast_bfloat16(False)
    has_kernels(False)
    notice = choose_execution(settings("precision=bfloat16"), CPU).notice
    assert "bfloat16 is slower" in notice
    assert "running uncompiled" in notice
    assert "\n" not in notice


def test_tf32_on_a_cpu_is_refused_with_what_there_is() -> None:
    with pytest.raises(UserError, match=r"^precision: tf32 is for GPUs; on a CPU float32 or bfloat16$"):
        choose_execution(settings("precision=tf32"), CPU)


@pytest.mark.parametrize(
    ("known", "avx512", "amx", "fast"),
    [(True, True, False, True), (True, False, True, True), (True, False, False, False), (False, True, True, False)],
)
def test_a_cpu_is_fast_in_bfloat16_by_its_own_instructions_alone(
    known: bool, avx512: bool, amx: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: known, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_fast_bfloat16(CPU) is fast


# --- choosing on a GPU


def test_auto_on_a_gpu_is_tf32_and_compiles_where_the_run_is_long_enough_to_pay() -> None:
    short = choose_execution(settings(f"steps={COMPILE_PAYS_AFTER - 1}"), CUDA)
    long = choose_execution(settings(f"steps={COMPILE_PAYS_AFTER}"), CUDA)
    assert (short.precision, short.compile) == ("tf32", "none")
    assert (long.precision, long.compile) == ("tf32", "full")
    assert short.why["compile"] == "19,999 agent steps or updates, fewer than 20,000"
    assert long.why["compile"] == "20,000 agent steps or updates, at least 20,000"
    assert "TensorFloat-32" in long.why["precision"]
    assert short.notice == long.notice == ""


def test_the_steps_ahead_decide_where_they_are_known() -> None:
    config = settings("steps=1_000_000")
    assert choose_execution(config, CUDA).compile == "full"
    assert choose_execution(config, CUDA, steps=500).compile == "none"
    assert choose_execution(config, CUDA, steps=0).compile == "none"


def test_auto_on_a_gpu_needs_no_kernels_and_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: pytest.fail("nothing to compile for a GPU"))
    assert choose_execution(settings(), CUDA).compile == "full"


@pytest.mark.parametrize("wanted", ["none", "full"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_what_is_asked_for_on_a_gpu_is_done(
    wanted: str, precision: str, capability: Callable[[int, int], None]
) -> None:
    capability(8, 0)
    chosen = choose_execution(settings(f"compile={wanted}", f"precision={precision}", "steps=10"), CUDA)
    assert (chosen.precision, chosen.compile, chosen.why, chosen.notice) == (precision, wanted, {}, "")


def test_cpu_kernels_on_a_gpu_are_refused_with_what_there_is() -> None:
    with pytest.raises(UserError, match=r"^compile: kernels are for the CPU; on a GPU none, full or auto$"):
        choose_execution(settings("compile=kernels"), CUDA)


def test_bfloat16_on_a_gpu_without_it_is_refused(capability: Callable[[int, int], None]) -> None:
    capability(7, 5)
    assert not has_fast_bfloat16(CUDA)
    with pytest.raises(UserError, match=r"^precision: this GPU has no bfloat16 products; float32 or auto$"):
        choose_execution(settings("precision=bfloat16"), CUDA)
    capability(9, 0)
    assert has_fast_bfloat16(CUDA)


def test_equal_settings_choose_alike_whatever_the_reasons() -> None:
    assert Execution("float32", "none", {"compile": "a"}, "b") == Execution("float32", "none")
    assert Execution("float32", "none") != Execution("bfloat16", "none")


# --- going on with what was chosen


def test_a_resumed_run_goes_on_with_what_auto_stood_for(has_kernels: Callable[[bool], None]) -> None:
    has_kernels(True)
    resumed = resume_execution(settings(), CPU, {"precision": "bfloat16", "compile": "none"})
    assert resumed == Execution("bfloat16", "none")
    assert resume_execution(settings(), CPU, None) == Execution("float32", "kernels")


def test_what_is_asked_for_now_counts_more_than_what_auto_stood_for(has_kernels: Callable[[bool], None]) -> None:
    has_kernels(True)
    config = settings("compile=kernels")
    assert resume_execution(config, CPU, {"precision": "bfloat16", "compile": "none"}) == Execution(
        "bfloat16", "kernels"
    )


@pytest.mark.parametrize(
    ("device", "recorded", "expected", "because"),
    [
        (CUDA, ("float32", "kernels"), Execution("tf32", "full"), "kernels are for the CPU"),
        (CPU, ("tf32", "full"), Execution("float32", "kernels"), "tf32 is for GPUs"),
    ],
)
def test_on_another_device_a_run_goes_on_with_what_fits_there_and_says_so(
    device: torch.device,
    recorded: tuple[str, str],
    expected: Execution,
    because: str,
    has_kernels: Callable[[bool], None],
) -> None:
    has_kernels(True)
    resumed = resume_execution(settings(), device, dict(zip(("precision", "compile"), recorded, strict=True)))
    assert resumed == expected
    assert resumed.notice.startswith(f"the run began with {recorded[0]}, {recorded[1]}, and goes on with {expected}: ")
    assert because in resumed.notice
    assert set(resumed.why) == {"precision", "compile"}


def test_a_run_with_kernels_resumed_where_there_is_no_compiler_goes_on_without_and_says_so(
    has_kernels: Callable[[bool], None],
) -> None:
    has_kernels(False)
    resumed = resume_execution(settings(), CPU, {"precision": "float32", "compile": "kernels"})
    assert resumed == Execution("float32", "none")
    assert "goes on with float32, compile=none" in resumed.notice
    assert "no compiler" in resumed.notice


def test_a_setting_that_cannot_be_met_is_refused_on_resume_as_well(has_kernels: Callable[[bool], None]) -> None:
    has_kernels(False)
    with pytest.raises(UserError, match="compile: kernels is not to be had here"):
        resume_execution(settings("compile=kernels"), CPU, {"precision": "float32", "compile": "kernels"})


@built
@pytest.mark.parametrize("compiling", ["none", "kernels"])
def test_an_agents_state_holds_what_was_chosen_never_auto(compiling: str, make_agent: Agents) -> None:
    agent = make_agent(compile=compiling, precision="bfloat16")
    assert agent.state_dict()["execution"] == {"precision": "bfloat16", "compile": compiling}
    assert set(make_agent().state_dict()["execution"].values()) == {"float32", "kernels"}


@built
def test_a_run_begun_without_kernels_resumes_without_them_bit_for_bit(
    make_config: Callable[..., Config], make_agent: Agents, make_batch: Batches, tmp_path: Path
) -> None:
    plain = make_agent(compile="none")
    plain.save(tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    config = make_config()  # auto, which would choose the kernels here
    resumed = TDMPC2(config, plain.spec, execution=resume_execution(config, CPU, state["execution"]))
    resumed.load_state_dict(state)
    for seed in range(2):
        one, other = plain.update(make_batch(seed=seed)), resumed.update(make_batch(seed=seed))
        assert all(torch.equal(one[name], other[name]) for name in one)


# --- around the products


def test_bfloat16_products_are_cast_within_and_not_outside() -> None:
    a = torch.ones(2, 2)
    with Execution("bfloat16", "none").products(CPU):
        assert (a @ a).dtype == torch.bfloat16
    assert (a @ a).dtype == torch.float32
    with Execution("float32", "none").products(CPU):
        assert (a @ a).dtype == torch.float32


@pytest.fixture
def cuda_switches() -> Iterator[tuple[Any, Any]]:
    switches: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]  # is there
    before = [switch.fp32_precision for switch in switches]
    yield switches
    for switch, value in zip(switches, before, strict=True):
        switch.fp32_precision = value


@pytest.mark.parametrize(("precision", "within"), [("tf32", "tf32"), ("float32", "ieee")])
@pytest.mark.parametrize("before", ["tf32", "ieee"])
def test_tf32_is_switched_within_and_set_back_even_after_a_fault(
    precision: Any, within: str, before: str, cuda_switches: tuple[Any, Any]
) -> None:
    for switch in cuda_switches:
        switch.fp32_precision = before
    with contextlib.suppress(ZeroDivisionError), Execution(precision, "none").products(CUDA):
        assert [switch.fp32_precision for switch in cuda_switches] == [within] * 2
        _ = 1 / 0
    assert [switch.fp32_precision for switch in cuda_switches] == [before] * 2


def test_compiled_code_is_shared_in_the_cache_folder_unless_the_user_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDMPC2_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    share_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    # torch names its own folder there by itself, in any process that has made an optimizer: that is nobody's wish.
    for before in (None, default_cache_dir()):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        if before is not None:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before)
        share_compiled_code()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")


# --- bfloat16


WIDE = {"enc_dim": 64, "mlp_dim": 64}
KINDS = [("single", {}), ("multi", {"episodic": True}), ("rgb", {})]
COMPILING = ["none", pytest.param("kernels", marks=built)]


def learn_once(agent: TDMPC2, batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An update's metrics, and the gradients of all parameters by name."""
    gradients: dict[str, Any] = {}
    for name, parameter in agent.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient, name=name: gradients.update({name: gradient.clone()}))
    return agent.update(batch), gradients


@pytest.mark.parametrize("compiling", COMPILING)
@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_bfloat16_learns_by_nearly_the_same_losses_and_gradients(
    kind: str, changes: dict[str, Any], compiling: str, make_agent: Agents, make_batch: Batches
) -> None:
    changes = changes | WIDE | {"compile": compiling}
    batch = make_batch(kind, size=16, terminated=True)
    if kind == "rgb":  # images of noise alone are all alike to an encoder; give each channel a brightness
        brightness = torch.rand(*batch["obs"].shape[:3], 1, 1, generator=torch.Generator().manual_seed(1))
        batch["obs"] = (batch["obs"] * brightness).to(torch.uint8)
    low, low_gradients = learn_once(perturb(make_agent(kind, fresh=True, precision="bfloat16", **changes)), batch)
    full, gradients = learn_once(perturb(make_agent(kind, fresh=True, precision="float32", **changes)), batch)
    assert set(low_gradients) == set(gradients)
    # Numbers are rounded to 1 part in 256 before each product, up or down: over sums of 64 that averages to 0.1 %, a
    # few times over in a row of layers. The policy's loss is a mean of values of both signs: measured by their scale.
    for name in ("consistency_loss", "reward_loss", "value_loss", "total_loss", "termination_loss"):
        if name in full:
            torch.testing.assert_close(low[name], full[name], rtol=0.01, atol=0)
    torch.testing.assert_close(low["pi_loss"], full["pi_loss"], rtol=0.01, atol=0.01)
    torch.testing.assert_close(low["pi_entropy"], full["pi_entropy"], rtol=0.02, atol=0.02)
    assert all(value.dtype == torch.float32 for value in low.values())
    assert not torch.equal(low["total_loss"], full["total_loss"])  # it did compute in bfloat16

    # A weight's cast made where no gradients are wanted, in the targets, must not serve where they are.
    for name, gradient in low_gradients.items():
        assert gradient.dtype == torch.float32, name
        # A softmax does not feel what is added to all of a group, as the last convolution's offsets are.
        assert gradient.abs().max() > 0 or name == "_encoder.convolutions.6.bias", name
    for part in ("_encoder", "_dynamics", "_reward", "_pi", "_Qs", "_termination", "_task_emb"):
        names = [name for name in gradients if name.startswith(part)]
        if names:
            a, b = (torch.cat([g[name].flatten() for name in names]) for g in (low_gradients, gradients))
            assert torch.cosine_similarity(a, b, dim=0) > 0.99, part
            assert a.norm().item() == pytest.approx(b.norm().item(), rel=0.1), part


@pytest.mark.parametrize("compiling", COMPILING)
@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_bfloat16_acts_in_float32_near_float32s_plans_and_keeps_parameters_and_moments_float32(
    kind: str, changes: dict[str, Any], compiling: str, make_agent: Agents, make_batch: Batches
) -> None:
    changes = changes | WIDE | {"compile": compiling}
    low, full = (
        perturb(make_agent(kind, fresh=True, precision=precision, **changes)) for precision in ("bfloat16", "float32")
    )
    obs = make_batch(kind, size=5)["obs"][0]
    task = torch.arange(5) % 3 if kind == "multi" else None
    means = []
    for agent in (low, full):
        agent.act(obs, True, task)
        means.append(agent.state_dict()["actor"]["mean"])
        for first in (False, True):
            action = agent.act(obs, first, task, eval_mode=True)
            assert action.dtype == torch.float32
            assert torch.isfinite(action).all()
    # Elites near the margin change places, so plans differ visibly, but far less than they do between observations.
    apart, spread = (means[0] - means[1]).square().mean(), (means[1] - means[1].mean(dim=0)).square().mean()
    assert 0 < apart < 0.2 * spread

    low.update(make_batch(kind, size=8, terminated=True))
    for agent in (low, full):
        assert {parameter.dtype for parameter in agent.model.parameters()} == {torch.float32}
    for optimizer in (low._model_optimizer, low._policy_optimizer):
        for moments in optimizer.state.values():
            assert {moments[name].dtype for name in ("step", "exp_avg", "exp_avg_sq")} == {torch.float32}
            assert moments["exp_avg"].abs().max() > 0


@pytest.mark.parametrize("compiling", COMPILING)
def test_bfloat16_without_planning_follows_the_policy_in_float32(compiling: str, make_agent: Agents) -> None:
    low, full = (
        perturb(make_agent(fresh=True, mpc=False, precision=precision, compile=compiling))
        for precision in ("bfloat16", "float32")
    )
    obs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    a, b = (agent.act(obs, True, eval_mode=True) for agent in (low, full))
    assert a.dtype == torch.float32
    torch.testing.assert_close(a, b, rtol=0, atol=0.02)
    assert not torch.equal(a, b)


@built
def test_bfloat16_learning_is_the_same_with_kernels_to_its_own_rounding(
    make_agent: Agents, make_batch: Batches
) -> None:
    losses = {}
    for compiling in ("none", "kernels"):
        agent = perturb(make_agent("multi", fresh=True, precision="bfloat16", compile=compiling, **WIDE))
        losses[compiling] = [agent.update(make_batch("multi", seed=seed))["total_loss"] for seed in range(4)]
    # Both round what they hand on to bfloat16; now and then a number lies at a tie, and goes the other way.
    torch.testing.assert_close(losses["none"], losses["kernels"], rtol=2e-3, atol=0)


# --- compile=full


FULL = """
import json, sys, time
import torch
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.config import Config
from tdmpc2.spec import AgentSpec

torch.set_num_threads(1)
config, spec = json.loads(sys.argv[1])
spec = {name: tuple(value) if isinstance(value, list) else value for name, value in spec.items()}
draw = torch.Generator().manual_seed(0)

def make(mode):
    agent = TDMPC2(Config(**config, compile=mode), AgentSpec(**spec))
    weights = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=weights), alpha=0.1)
    return agent

plain, full = make("none"), make("full")
obs, task = torch.randn(2, *spec["obs_shape"], generator=draw), torch.tensor([0, 1])
batch = {
    "obs": torch.randn(4, 4, *spec["obs_shape"], generator=draw),
    "action": torch.rand(3, 4, 2, generator=draw) * 2 - 1,
    "reward": torch.randn(3, 4, 1, generator=draw),
    "terminated": (torch.rand(3, 4, 1, generator=draw) < 0.4).float(),
    "task": torch.tensor([0, 1, 1, 0]),
}
begin = time.monotonic()
full.act(obs, True, task)
full.update(batch)
seconds = time.monotonic() - begin

plain.act(obs, True, task)
plain.update(batch)
torch._dynamo.config.error_on_recompile = True
for first, eval_mode in ((False, False), (False, True), (True, True), (True, False)):
    torch.testing.assert_close(
        full.act(obs, first, task, eval_mode), plain.act(obs, first, task, eval_mode), rtol=1e-3, atol=1e-3
    )
for _ in range(3):
    a, b = full.update(batch), plain.update(batch)
    for name in b:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)
graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
print(json.dumps({"seconds": seconds, "graphs": graphs, "breaks": breaks}))
"""


@built
@pytest.mark.slow
def test_torch_compile_computes_the_same_never_recompiles_and_starts_fast_from_the_cache(
    tmp_path: Path, make_config: Callable[..., Config], specs: dict[str, Any]
) -> None:
    config = dataclasses.asdict(make_config(iterations=2, episodic=True))
    del config["compile"]
    spec = dataclasses.asdict(specs["multi"]) | {"action_dims": [2, 1, 2]}
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"TDMPC2_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", FULL, json.dumps([config, spec])]
    runs = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
        assert done.returncode == 0, done.stderr
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    cold, warm = runs
    assert cold["graphs"] == warm["graphs"] == 3  # an iteration of the plan, the model's loss, the policy's
    assert cold["breaks"] == 0
    assert (tmp_path / "inductor").is_dir()
    assert warm["seconds"] < 0.3 * cold["seconds"]
