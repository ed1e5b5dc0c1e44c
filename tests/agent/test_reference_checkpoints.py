"""Checkpoints of the reference implementation: both layouts are read, the new one is written, misfits are refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensordict import from_modules
from torch import Tensor, nn

from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.reference import agent_from_reference, inspect_reference, read_reference, write_reference
from tdmpc2.cli import main
from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import TASK_SETS
from tdmpc2.training.folder import RunFolder

Agents = Callable[..., TDMPC2]
Shapes = dict[str, tuple[int, ...]]

# obs dim, (padded) action dim, number of tasks
WALKER, PAIR, MT30, MT80 = (24, 6, 1), (24, 6, 2), (24, 6, 30), (39, 6, 80)
PAIR_TASKS = "walker-walk,cup-catch"  # actions of 6 and 2
TINY = {"enc": 16, "mlp": 24, "latent": 32, "layers": 2, "members": 3}


def layer(name: str, inputs: int, outputs: int, norm: bool = True) -> Shapes:
    """A linear layer and its LayerNorm, as section 9 of ALGORITHM names and orders them."""
    shapes: Shapes = {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    return shapes | ({f"{name}.ln.weight": (outputs,), f"{name}.ln.bias": (outputs,)} if norm else {})


def head(name: str, inputs: int, mlp: int, outputs: int, norm: bool = False) -> Shapes:
    return layer(f"{name}.0", inputs, mlp) | layer(f"{name}.1", mlp, mlp) | layer(f"{name}.2", mlp, outputs, norm)


def old_shapes(
    dims: tuple[int, int, int],
    enc: int,
    mlp: int,
    latent: int,
    layers: int,
    members: int,
    embedding: int = 96,
    episodic: bool = False,
    pixels: int = 0,
) -> Shapes:
    """All tensors of an old-layout file, written out from sections 1, 2 and 9; `pixels` is the number of channels."""
    obs, A, N = dims
    D = embedding if N > 1 else 0
    shapes: Shapes = {"_task_emb.weight": (N, D)} if N > 1 else {}
    if pixels:
        for index, inputs, kernel in ((2, 9, 7), (4, pixels, 5), (6, pixels, 3), (8, pixels, 3)):
            name = f"_encoder.rgb.{index}"
            shapes |= {f"{name}.weight": (pixels, inputs, kernel, kernel), f"{name}.bias": (pixels,)}
    else:
        widths = [obs + D, *[enc] * max(layers - 1, 1), latent]
        for i in range(len(widths) - 1):
            shapes |= layer(f"_encoder.state.{i}", widths[i], widths[i + 1])
    shapes |= head("_dynamics", latent + A + D, mlp, latent, norm=True)
    shapes |= head("_reward", latent + A + D, mlp, 101)
    if episodic:
        shapes |= head("_termination", latent + D, mlp, 1)
    shapes |= head("_pi", latent + D, mlp, 2 * A)
    q = [(mlp, latent + A + D), (mlp,), (mlp,), (mlp,), (mlp, mlp), (mlp,), (mlp,), (mlp,), (101, mlp), (101,)]
    for prefix in ("_Qs.params", "_target_Qs.params"):
        shapes |= {f"{prefix}.{j}": (members, *shape) for j, shape in enumerate(q)}
    return shapes


def draw(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def in_new_layout(old: dict[str, Tensor]) -> dict[str, Any]:
    """The same weights under the new layout's names, which are spelled out."""
    entries = (
        "0.weight 0.bias 0.ln.weight 0.ln.bias 1.weight 1.bias 1.ln.weight 1.ln.bias 2.weight 2.bias"  # of _Qs.params
    ).split()
    new: dict[str, Any] = {name: tensor for name, tensor in old.items() if "Qs" not in name}
    for j, entry in enumerate(entries):
        new[f"_Qs.params.{entry}"] = new[f"_detach_Qs_params.{entry}"] = old[f"_Qs.params.{j}"]
        new[f"_target_Qs_params.{entry}"] = old[f"_target_Qs.params.{j}"]
    for prefix in ("_Qs.params", "_target_Qs_params", "_detach_Qs_params"):
        new |= {f"{prefix}.__batch_size": torch.Size([3]), f"{prefix}.__device": None}
    return new | {"log_std_min": torch.tensor(-10), "log_std_dif": torch.tensor(12)}


def save(tensors: dict[str, Any], path: Path) -> Path:
    torch.save({"model": tensors}, path)
    return path


@pytest.fixture
def old_pair(tmp_path: Path) -> Path:
    """A tiny old-layout file of two tasks."""
    return save(draw(old_shapes(PAIR, **TINY)), tmp_path / "pair.pt")


# --- what was read computes what the file's tensors say


def mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(np.log1p(np.exp(x)))


def simnorm(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.reshape(-1, 8))
    return (e / e.sum(axis=1, keepdims=True)).reshape(-1)


def normalised(x: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale + offset


class RawForward:
    """The networks in float64, one vector at a time, straight from an old-layout file's tensors."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.raw = {name: tensor.double().numpy() for name, tensor in tensors.items()}

    def normed(self, name: str, x: np.ndarray, act: Callable[[np.ndarray], np.ndarray] = mish) -> np.ndarray:
        weight, bias, scale, offset = (self.raw[f"{name}.{p}"] for p in ("weight", "bias", "ln.weight", "ln.bias"))
        return act(normalised(weight @ x + bias, scale, offset))

    def head(self, name: str, x: np.ndarray) -> np.ndarray:
        x = self.normed(f"{name}.1", self.normed(f"{name}.0", x))
        return self.raw[f"{name}.2.weight"] @ x + self.raw[f"{name}.2.bias"]

    def encode(self, x: np.ndarray, layers: int) -> np.ndarray:
        for i in range(layers - 1):
            x = self.normed(f"_encoder.state.{i}", x)
        return self.normed(f"_encoder.state.{layers - 1}", x, simnorm)

    def next(self, x: np.ndarray) -> np.ndarray:
        return self.normed("_dynamics.2", self.normed("_dynamics.1", self.normed("_dynamics.0", x)), simnorm)

    def q(self, prefix: str, member: int, x: np.ndarray) -> np.ndarray:
        p = [self.raw[f"{prefix}.{j}"][member] for j in range(10)]
        x = mish(normalised(p[0] @ x + p[1], p[2], p[3]))
        x = mish(normalised(p[4] @ x + p[5], p[6], p[7]))
        return p[8] @ x + p[9]


@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize(
    ("tasks", "dims", "layers", "episodic"),
    [("walker-walk", WALKER, 2, False), ("walker-walk", WALKER, 4, True), (PAIR_TASKS, PAIR, 3, False)],
)
def test_a_loaded_model_computes_what_the_files_tensors_say(
    layout: str, tasks: str, dims: tuple[int, int, int], layers: int, episodic: bool, tmp_path: Path
) -> None:
    tensors = draw(old_shapes(dims, **TINY | {"layers": layers}, episodic=episodic))
    path = save(tensors if layout == "old" else in_new_layout(tensors), tmp_path / "agent.pt")
    model, raw = agent_from_reference(path, tasks, device="cpu").model, RawForward(tensors)
    generator = torch.Generator().manual_seed(1)
    obs, action = torch.randn(1, 24, generator=generator), torch.rand(1, 6, generator=generator) * 2 - 1
    embedding, task = np.zeros(0), None
    if dims[2] > 1:
        task, row = torch.tensor([1]), raw.raw["_task_emb.weight"][1]
        assert np.linalg.norm(row) > 1  # so it is shortened
        embedding = row / np.linalg.norm(row)
    z = raw.encode(np.concatenate([obs[0].numpy(), embedding]), layers)
    state, both = np.concatenate([z, embedding]), np.concatenate([z, embedding, action[0].numpy()])
    latent = model.encode(obs, task)
    mask = np.ones(6) if task is None else np.array([1, 1, 0, 0, 0, 0])  # cup-catch has two actions
    pairs = [
        (latent, z),
        (model.next(latent, action, task), raw.next(both)),
        (model.reward(latent, action, task), raw.head("_reward", both)),
        (model.pi_action(latent, task, torch.zeros(1, 6)), np.tanh(raw.head("_pi", state)[:6] * mask)),
        (model.Q(latent, action, task), np.stack([raw.q("_Qs.params", m, both) for m in range(3)])),
        (model.Q(latent, action, task, target=True), np.stack([raw.q("_target_Qs.params", m, both) for m in range(3)])),
    ]
    if episodic:
        pairs.append((model.termination(latent), raw.head("_termination", state)))
    for got, expected in pairs:
        torch.testing.assert_close(got.squeeze(-2).double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


def test_a_pixel_file_loads(tmp_path: Path) -> None:
    tensors = draw(old_shapes(WALKER, **TINY | {"latent": 64}, pixels=4))
    agent = agent_from_reference(save(tensors, tmp_path / "rgb.pt"), "walker-walk", device="cpu")
    assert agent.spec.obs == "rgb"
    assert agent.config.num_channels == 4
    image = torch.randint(256, (9, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = image.double()[None] / 255 - 0.5
    for index, stride in ((2, 2), (4, 2), (6, 2), (8, 1)):
        weight, bias = (tensors[f"_encoder.rgb.{index}.{p}"].double() for p in ("weight", "bias"))
        x = nn.functional.conv2d(x if index == 2 else x.relu(), weight, bias, stride=stride)
    expected = torch.from_numpy(simnorm(x.flatten().numpy()))
    torch.testing.assert_close(agent.model.encode(image[None])[0].double(), expected, rtol=1e-4, atol=1e-5)


# --- sizes

RELEASED = {  # enc, mlp, latent, layers, members: section 1
    1: (256, 384, 128, 2, 2),
    5: (256, 512, 512, 2, 5),
    19: (1024, 1024, 768, 3, 5),
    48: (1792, 1792, 768, 4, 5),
    317: (4096, 4096, 1376, 5, 8),
}


@pytest.mark.parametrize("size", RELEASED)
@pytest.mark.parametrize(("tasks", "dims"), [("walker-walk", WALKER), ("mt30", MT30), ("mt80", MT80)])
def test_the_shapes_of_every_released_file_tell_its_size(tasks: str, dims: tuple[int, int, int], size: int) -> None:
    enc, mlp, latent, layers, members = RELEASED[size]
    if tasks == "mt30" and size == 19:
        latent = 512
    embedding = 64 if tasks == "mt30" and size in (5, 19, 48) else 96
    shapes = old_shapes(dims, enc, mlp, latent, layers, members, embedding)
    found = inspect_reference({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, "file")
    assert (found.model_size, found.obs_dim, found.action_dim, found.num_tasks) == (size, *dims)
    assert found.architecture["task_dim"] == (embedding if dims[2] > 1 else 0)
    config = found.config(tasks)
    assert config.model_size == size
    widths = ("enc_dim", "mlp_dim", "latent_dim", "num_enc_layers", "num_q", "task_dim")
    assert [getattr(config, name) for name in widths] == [None] * 6  # the size alone says it all
    state = found.state_dict(config, AgentSpec.from_tasks(config.tasks))
    learned = sum(np.prod(shape) for name, shape in shapes.items() if not name.startswith("_target_Qs"))
    assert sum(t.numel() for name, t in state.items() if not name.startswith("_target_Qs")) == learned
    if (tasks, size) == ("mt80", 5):
        assert learned == 5_389_930  # the published total


def test_other_widths_are_spelled_out_in_the_settings(old_pair: Path) -> None:
    found = read_reference(old_pair)
    assert (found.layout, found.num_tasks, found.obs_dim, found.action_dim) == ("old", 2, 24, 6)
    config = found.config(PAIR_TASKS, mpc=False)
    assert (config.model_size, config.enc_dim, config.mlp_dim, config.latent_dim, config.num_q) == (1, 16, 24, 32, 3)
    assert config.num_enc_layers is None  # as size 1 has it
    assert config.mpc is False


def test_the_files_own_bounds_of_the_log_std_hold(tmp_path: Path) -> None:
    tensors = in_new_layout(draw(old_shapes(WALKER, **TINY)))
    tensors |= {"log_std_min": torch.tensor(-5), "log_std_dif": torch.tensor(6)}
    config = read_reference(save(tensors, tmp_path / "agent.pt")).config("walker-walk")
    assert (config.log_std_min, config.log_std_max) == (-5, 1)


def test_the_shapes_that_newer_tensordicts_leave_in_a_file_are_passed_over(tmp_path: Path) -> None:
    tensors = in_new_layout(draw(old_shapes(WALKER, **TINY)))
    shape_alone = {"_Qs.module.0.weight": torch.empty(24, 38, device="meta")}
    loaded = agent_from_reference(save(tensors | shape_alone, tmp_path / "agent.pt"), "walker-walk", device="cpu")
    assert torch.equal(loaded.model._Qs.layers[0].weight, tensors["_Qs.params.0.weight"])


# --- writing


@pytest.mark.parametrize("episodic", [False, True])
@pytest.mark.parametrize("tasks", ["walker-walk", PAIR_TASKS])
def test_what_was_written_reads_back_bit_for_bit(
    tasks: str, episodic: bool, make_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = make_config(task=tasks, episodic=episodic)
    agent = TDMPC2(config, AgentSpec.from_tasks(config.tasks))
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.normal_()  # targets, too, differ from what they follow
    write_reference(agent, tmp_path / "agent.pt")
    back = agent_from_reference(tmp_path / "agent.pt", tasks, device="cpu", num_samples=32, num_elites=8)
    assert (back.spec, back.model.architecture) == (agent.spec, agent.model.architecture)
    before, after = agent.model.state_dict(), back.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_pixel_weights_read_back_bit_for_bit(make_agent: Agents, tmp_path: Path) -> None:
    agent = make_agent("rgb")
    write_reference(agent, tmp_path / "agent.pt")
    found = read_reference(tmp_path / "agent.pt")
    back = found.state_dict(found.config("walker-walk"), agent.spec)
    assert all(torch.equal(back[name], tensor) for name, tensor in agent.model.state_dict().items())


def test_a_written_file_has_exactly_the_published_entries(make_config: Callable[..., Any], tmp_path: Path) -> None:
    config = make_config(task=PAIR_TASKS)
    write_reference(TDMPC2(config, AgentSpec.from_tasks(config.tasks)), tmp_path / "agent.pt")
    written = torch.load(tmp_path / "agent.pt", weights_only=True)
    assert list(written) == ["model"]
    written = written["model"]
    expected = in_new_layout(draw(old_shapes(PAIR, enc=16, mlp=16, latent=16, layers=2, members=3)))
    expected["_action_masks"] = torch.tensor([[1.0] * 6, [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert (written[name].shape, written[name].dtype) == (value.shape, value.dtype), name
        else:
            assert written[name] == value, name
    assert torch.equal(written["_action_masks"], expected["_action_masks"])
    assert (written["log_std_min"].item(), written["log_std_dif"].item()) == (-10, 12)
    for name in [name for name in written if name.startswith("_detach_Qs_params") and "__" not in name]:
        assert torch.equal(written[name], written[name.replace("_detach_Qs_params", "_Qs.params")])


def test_tensordict_takes_a_written_ensemble_as_its_own(make_agent: Agents, tmp_path: Path) -> None:
    """The reference's ensemble is tensordict's: its own loading, and one member's module, must agree with ours."""

    class Normed(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            self.ln = nn.LayerNorm(outputs)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.mish(self.ln(super().forward(x)))

    agent = make_agent()
    write_reference(agent, tmp_path / "agent.pt")
    written = torch.load(tmp_path / "agent.pt", weights_only=True)["model"]
    members = [nn.Sequential(Normed(18, 16), Normed(16, 16), nn.Linear(16, 101)) for _ in range(3)]
    params = from_modules(*members, as_module=True)
    prefix = "_Qs.params."
    params.load_state_dict({n.removeprefix(prefix): v for n, v in written.items() if n.startswith(prefix)})
    z, action = torch.rand(1, 16), torch.rand(1, 2)
    with params[1].to_module(members[0]):
        expected = members[0](torch.cat([z, action], dim=-1))
    torch.testing.assert_close(expected, agent.model.Q(z, action)[1], rtol=1e-4, atol=1e-5)


# --- files that do not fit


def refusal(path: Path, tasks: str = PAIR_TASKS, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        agent_from_reference(path, tasks, device="cpu", **settings)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_another_task_set_is_refused_and_what_the_file_holds_is_said(tmp_path: Path) -> None:
    path = save(draw(old_shapes(MT80, **TINY)), tmp_path / "mt80.pt")
    message = refusal(path, "mt30")
    assert "_task_emb.weight is (80, 96), expected (30, 96)" in message
    assert "holds mlp_dim 24, 80 tasks, state observations of 39, actions of 6; the model is for 30 tasks" in message
    assert "left over: _task_emb.weight" in refusal(path, "walker-walk")
    assert agent_from_reference(path, "mt80", device="cpu").spec.tasks == TASK_SETS["mt80"]


def test_a_single_task_file_is_refused_for_several_tasks_and_for_one_of_other_dims(tmp_path: Path) -> None:
    path = save(draw(old_shapes(WALKER, **TINY)), tmp_path / "walker.pt")
    assert "missing: _task_emb.weight" in refusal(path)
    assert "_encoder.state.0.weight is (16, 24), expected (16, 17)" in refusal(path, "cheetah-run")


def test_another_size_is_refused_and_names_the_first_tensor(tmp_path: Path) -> None:
    path = save(draw(old_shapes(WALKER, 256, 384, 128, 2, 2)), tmp_path / "size1.pt")
    message = refusal(path, "walker-walk", model_size=5)
    assert "_encoder.state.1.weight is (128, 256), expected (512, 256)" in message
    assert "the file holds model size 1, a single task" in message


def test_tasks_in_another_order_are_refused_where_the_file_can_tell(tmp_path: Path) -> None:
    tensors = in_new_layout(draw(old_shapes(PAIR, **TINY)))
    tensors["_action_masks"] = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [1.0] * 6])
    path = save(tensors, tmp_path / "agent.pt")
    assert "task 0 has 2 action dims; walker-walk has 6" in refusal(path)
    assert agent_from_reference(path, ("cup-catch", "walker-walk"), device="cpu").spec.action_dims == (2, 6)


@pytest.mark.parametrize("layout", ["old", "new"])
def test_missing_and_left_over_tensors_are_named_as_in_the_file(layout: str, tmp_path: Path) -> None:
    tensors: dict[str, Any] = draw(old_shapes(PAIR, **TINY))
    names = {"old": "_Qs.params.6", "new": "_Qs.params.1.ln.weight"}
    tensors = tensors if layout == "old" else in_new_layout(tensors)
    gone = tensors.pop(names[layout])
    assert f"missing: {names[layout]};" in refusal(save(tensors, tmp_path / "a.pt"))
    tensors |= {names[layout]: gone, "_value.0.weight": torch.zeros(2)}
    assert "left over: _value.0.weight;" in refusal(save(tensors, tmp_path / "b.pt"))


def test_a_file_of_neither_layout_names_what_is_missing_and_left_over(tmp_path: Path) -> None:
    message = refusal(save({"actor.weight": torch.zeros(2, 2)}, tmp_path / "other.pt"))
    assert "not a checkpoint of the reference implementation" in message
    assert "missing: _encoder.state.0.weight" in message
    assert "left over: actor.weight" in message


@pytest.mark.parametrize("content", [{"weights": {}}, {"model": torch.zeros(2)}])
def test_a_file_without_tensors_under_model_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert "no tensors under 'model'" in refusal(tmp_path / "other.pt")


def test_our_own_checkpoint_is_not_taken_for_one(make_agent: Agents, tmp_path: Path) -> None:
    make_agent().save(tmp_path / "ours.pt")
    assert "missing: _encoder.state.0.weight" in refusal(tmp_path / "ours.pt")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("_dynamics.0.bias", torch.zeros(()), "_dynamics.0.bias has the impossible shape"),
        ("_pi.2.bias", [1.0], "_pi.2.bias is not a tensor but a list"),
        ("_reward.1.bias", torch.zeros(7), r"_reward.1.bias is (7,), expected (24,)"),
    ],
)
def test_a_misshapen_entry_is_named(name: str, value: Any, said: str, tmp_path: Path) -> None:
    tensors = draw(old_shapes(PAIR, **TINY))
    assert said in refusal(save({**tensors, name: value}, tmp_path / "agent.pt"))


def test_a_latent_length_that_simnorm_cannot_split_is_refused(tmp_path: Path) -> None:
    path = save(draw(old_shapes(PAIR, **TINY | {"latent": 30})), tmp_path / "agent.pt")
    assert "simnorm_dim: 8 does not divide the latent length 30" in refusal(path)


def test_a_stale_copy_of_the_q_functions_is_refused(tmp_path: Path) -> None:
    tensors = in_new_layout(draw(old_shapes(PAIR, **TINY)))
    tensors["_detach_Qs_params.1.bias"] = tensors["_detach_Qs_params.1.bias"] + 1
    assert "_detach_Qs_params.1.bias is not the copy" in refusal(save(tensors, tmp_path / "agent.pt"))


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_code_in_a_file_is_never_run(old_pair: Path, tmp_path: Path) -> None:
    tensors = torch.load(old_pair, weights_only=True)["model"] | {"_Qs.params.__device": Evil(tmp_path / "was-run")}
    assert "unsafe" in refusal(save(tensors, tmp_path / "evil.pt"))
    assert not (tmp_path / "was-run").exists()


def test_a_truncated_file_and_a_missing_one_are_refused(old_pair: Path, tmp_path: Path) -> None:
    content = old_pair.read_bytes()
    old_pair.write_bytes(content[: len(content) // 2])
    assert "damaged" in refusal(old_pair)
    assert "no such checkpoint" in refusal(tmp_path / "none.pt")


# --- the command


@pytest.fixture
def run(make_agent: Agents, tmp_path: Path) -> RunFolder:
    """A run's folder with what the export needs of it."""
    folder, agent = RunFolder(tmp_path / "run"), make_agent()
    folder.path.mkdir()
    folder.config_file.write_text(yaml.safe_dump(dataclasses.asdict(agent.config)))
    checkpoints.write({"agent": agent.state_dict(), "steps": 1}, folder.checkpoint)
    return folder


def test_the_command_exports_a_runs_weights_and_overwrites_nothing(
    run: RunFolder, make_agent: Agents, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run.path / "exported" / "agent.pt"
    words = ["export-reference", f"run={run.path}", f"output={output}"]
    assert main(words) == 0
    assert str(output) in capsys.readouterr().out
    model = make_agent().model
    assert torch.equal(torch.load(output, weights_only=True)["model"]["_pi.1.weight"], model._pi[1].weight)
    before = output.read_bytes()
    assert main(words) == 2
    assert f"output: {output} exists already" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_the_command_says_that_an_output_cannot_be_written(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    output = run.config_file / "agent.pt"  # in a file, as if it were a folder
    assert main(["export-reference", f"run={run.path}", f"output={output}"]) == 2
    assert f"output: {output} cannot be written" in capsys.readouterr().err


def test_the_command_refuses_a_folder_without_a_checkpoint(
    run: RunFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run.checkpoint.unlink()
    for folder, said in ((run.path, "no such checkpoint"), (tmp_path / "nowhere", "not a run's folder")):
        assert main(["export-reference", f"run={folder}", f"output={tmp_path / 'out.pt'}"]) == 2
        assert said in capsys.readouterr().err
    assert main(["export-reference", f"run={run.path}"]) == 2
    assert "output: " in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()
