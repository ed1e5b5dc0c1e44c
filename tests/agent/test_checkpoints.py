"""Saving and loading: exact, whole or not at all, and never running code from a file."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.agent import checkpoints
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.errors import UserError

Agents = Callable[..., TDMPC2]
Batches = Callable[..., dict[str, torch.Tensor]]


def live(agent: TDMPC2, make_batch: Batches, kind: str, seeds: range) -> list[torch.Tensor]:
    """Act and learn; everything that comes out."""
    out: list[torch.Tensor] = []
    for seed in seeds:
        batch = make_batch(kind, seed=seed)
        out.append(agent.act(batch["obs"][0], seed == 0, batch.get("task")))
        out += agent.update(batch).values()
    return out + [tensor.clone() for tensor in agent.model.state_dict().values()]


@pytest.fixture
def checkpoint(make_agent: Agents, make_batch: Batches, tmp_path: Path) -> Path:
    """A single-task agent's, after one update."""
    agent, path = make_agent(), tmp_path / "agent.pt"
    agent.update(make_batch())
    agent.save(path)
    return path


@pytest.mark.parametrize("kind", ["single", "multi", "rgb"])
def test_a_loaded_agent_goes_on_bit_for_bit_as_if_never_stopped(
    kind: str, make_agent: Agents, make_batch: Batches, tmp_path: Path
) -> None:
    uninterrupted, stopped = make_agent(kind, fresh=True), make_agent(kind, fresh=True)
    live(uninterrupted, make_batch, kind, range(2))
    live(stopped, make_batch, kind, range(2))
    stopped.save(tmp_path / "agent.pt")

    resumed = make_agent(kind, fresh=True, seed=9)  # another seed: everything must come from the file
    resumed.load(tmp_path / "agent.pt")
    rebuilt = TDMPC2.from_checkpoint(tmp_path / "agent.pt", device="cpu")
    assert resumed.updates == rebuilt.updates == 2
    expected = live(uninterrupted, make_batch, kind, range(2, 5))
    for agent in (resumed, rebuilt):
        got = live(agent, make_batch, kind, range(2, 5))
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_from_checkpoint_rebuilds_config_and_spec_and_applies_changes(checkpoint: Path, make_agent: Agents) -> None:
    original = make_agent()
    rebuilt = TDMPC2.from_checkpoint(checkpoint, device="cpu")
    assert rebuilt.config == original.config
    assert rebuilt.spec == original.spec
    changed = TDMPC2.from_checkpoint(checkpoint, device="cpu", mpc=False)
    assert changed.config.mpc is False
    obs = torch.randn(2, 3)
    assert torch.equal(changed.act(obs, True, eval_mode=True), changed.act(obs, False, eval_mode=True))
    with pytest.raises(UserError, match="mpc"):
        TDMPC2.from_checkpoint(checkpoint, mpcc=False)


def test_a_changed_learning_rate_is_the_one_that_is_used(checkpoint: Path, make_batch: Batches) -> None:
    # Adam's steps are proportional to the learning rate: at a rate of 1e-12 nothing can move visibly.
    agent = TDMPC2.from_checkpoint(checkpoint, device="cpu", lr=1e-12)
    before = {name: p.detach().clone() for name, p in agent.model.named_parameters()}
    agent.update(make_batch())
    for name, parameter in agent.model.named_parameters():
        if not name.startswith("_target_Qs"):
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-9)


def test_a_checkpoint_written_on_a_gpu_can_be_learned_from_on_a_cpu(
    checkpoint: Path, make_agent: Agents, make_batch: Batches
) -> None:
    # There the optimizers are "capturable", which torch refuses on CPUs, and the generators' states are 16 bytes.
    state = torch.load(checkpoint, weights_only=True)
    for optimizer in ("model_optimizer", "policy_optimizer"):
        for group in state[optimizer]["param_groups"]:
            group["capturable"] = True
    state["generator"] = state["actor"]["generator"] = torch.zeros(16, dtype=torch.uint8)
    torch.save(state, checkpoint)
    agent = make_agent()
    agent.load(checkpoint)
    agent.update(make_batch())
    assert agent.updates == 2


def test_agents_that_took_over_one_state_in_memory_share_nothing(make_agent: Agents, make_batch: Batches) -> None:
    source = make_agent()
    live(source, make_batch, "single", range(2))
    state = source.state_dict()
    twin, other = make_agent(), make_agent()
    twin.load_state_dict(state)
    other.load_state_dict(state)
    live(other, make_batch, "single", range(2, 5))  # must leave both the source and the twin as they are
    expected, got = (live(agent, make_batch, "single", range(2, 5)) for agent in (source, twin))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


# --- files that must be refused, and leave the agent as it was


def assert_refused(agent: TDMPC2, path: Path, message: str) -> None:
    before = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        agent.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in agent.model.state_dict().items())
    assert agent.updates == 0


def test_a_missing_file_is_refused(make_agent: Agents, tmp_path: Path) -> None:
    assert_refused(make_agent(), tmp_path / "none.pt", "no such checkpoint")


def test_a_file_truncated_anywhere_is_refused(checkpoint: Path, make_agent: Agents, tmp_path: Path) -> None:
    raw, agent = checkpoint.read_bytes(), make_agent()
    for i in range(25):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(raw[: len(raw) * i // 25])
        assert_refused(agent, cut, "truncated")
    cut.write_bytes(raw[:-1])
    assert_refused(agent, cut, "truncated")


def test_a_file_with_one_flipped_bit_in_a_tensor_is_refused(
    checkpoint: Path, make_agent: Agents, tmp_path: Path
) -> None:
    with zipfile.ZipFile(checkpoint) as archive:
        tensors = [entry for entry in archive.infolist() if "/data/" in entry.filename]
        largest = max(tensors, key=lambda entry: entry.file_size)
    raw = bytearray(checkpoint.read_bytes())
    raw[largest.header_offset + 200] ^= 4  # past the entry's header, inside its data
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(raw)
    assert_refused(make_agent(), damaged, "damaged")


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04" + b"\0" * 100, b"\x80\x02}q\x00."])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, make_agent: Agents, tmp_path: Path) -> None:
    path = tmp_path / "notes.pt"
    path.write_bytes(content)
    assert_refused(make_agent(), path, "not a checkpoint")


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3)])
def test_a_file_of_other_content_is_refused(content: Any, make_agent: Agents, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "list.pt")
    assert_refused(make_agent(), tmp_path / "list.pt", "not a checkpoint")


def test_a_file_without_the_agents_keys_is_refused_and_names_them(
    checkpoint: Path, make_agent: Agents, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": {}}, path)
    assert_refused(make_agent(), path, "missing: format, config, spec, model_optimizer")
    state = torch.load(checkpoint, weights_only=True)
    for key in ("format", "scale"):
        torch.save({name: value for name, value in state.items() if name != key}, path)
        assert_refused(make_agent(), path, f"missing: {key}")


def test_a_file_of_another_format_is_refused(checkpoint: Path, make_agent: Agents) -> None:
    torch.save(torch.load(checkpoint, weights_only=True) | {"format": 99}, checkpoint)
    assert_refused(make_agent(), checkpoint, "format 99")


def test_a_model_of_another_shape_is_refused_and_names_the_tensor(checkpoint: Path, make_agent: Agents) -> None:
    message = r"does not fit.*_dynamics\.0\.weight is \(16, 18\), expected \(24, 18\)"
    assert_refused(make_agent(mlp_dim=24), checkpoint, message)


def test_a_model_of_other_parts_is_refused_and_names_what_is_missing(
    checkpoint: Path, make_agent: Agents, tmp_path: Path
) -> None:
    assert_refused(make_agent(episodic=True), checkpoint, r"does not fit.*missing: _termination\.0\.weight")
    episodic = tmp_path / "episodic.pt"
    make_agent(episodic=True).save(episodic)
    assert_refused(make_agent(), episodic, r"does not fit.*left over: _termination\.0\.weight")


class Evil:
    """Unpickling one would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_code_in_a_file_is_never_run(form: str, checkpoint: Path, make_agent: Agents, tmp_path: Path) -> None:
    evil, trace = tmp_path / "evil.pt", tmp_path / "was-run"
    state = torch.load(checkpoint, weights_only=True) | {"updates": Evil(trace)}
    if form == "pickle":
        evil.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, evil, _use_new_zipfile_serialization=form == "torch")
    assert_refused(make_agent(), evil, "unsafe")
    with pytest.raises(UserError, match="unsafe"):
        TDMPC2.from_checkpoint(evil, device="cpu")
    assert not trace.exists()


# --- a disk that is full


def assert_kept(agent: TDMPC2, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(UserError, match="disk is full") as caught:
        agent.save(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    agent.load(path)


def test_a_disk_that_fills_up_on_the_last_bytes_leaves_the_old_file(
    checkpoint: Path, make_agent: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    assert_kept(make_agent(seed=5), checkpoint)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_while_tensors_are_written_leaves_the_old_file(
    checkpoint: Path, make_agent: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = Path.open

    def on_the_full_disk(path: Path, mode: str = "r", *rest: Any) -> Any:
        return ordinary(Path("/dev/full") if mode == "wb" else path, mode, *rest)

    monkeypatch.setattr(checkpoints.Path, "open", on_the_full_disk)
    assert_kept(make_agent(seed=5), checkpoint)


def test_other_faults_of_the_disk_are_not_called_a_full_disk(
    checkpoint: Path, make_agent: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = checkpoint.read_bytes()
    monkeypatch.setattr(checkpoints.os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        make_agent(seed=5).save(checkpoint)
    assert checkpoint.read_bytes() == before
    assert [entry.name for entry in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_a_save_is_synced_before_it_takes_the_old_ones_place(
    checkpoint: Path, make_agent: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(checkpoints.os, "fsync", lambda fd: steps.append("sync") or fsync(fd))
    monkeypatch.setattr(checkpoints.os, "replace", lambda a, b: steps.append("replace") or replace(a, b))
    make_agent().save(checkpoint)
    assert steps == ["sync", "replace", "sync"]  # the file, its name, the folder


def test_a_save_makes_the_folder_it_goes_into(make_agent: Agents, tmp_path: Path) -> None:
    make_agent().save(tmp_path / "new" / "folder" / "agent.pt")
    assert TDMPC2.from_checkpoint(tmp_path / "new" / "folder" / "agent.pt").updates == 0
