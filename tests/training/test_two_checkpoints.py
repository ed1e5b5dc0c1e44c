"""A run keeps two checkpoints: whatever befalls the latest, it goes on from the one before it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tdmpc2.agent import checkpoints
from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.training.checkpointing import RunCheckpoints
from tdmpc2.training.folder import RunFolder
from tdmpc2.training.load_agent import read_agent


class KilledError(BaseException):
    """Stands for SIGKILL: no call to the system gets through after it."""


class Kept:
    """A run's checkpoints, each a number, and what was said of them."""

    def __init__(self, config: Config) -> None:
        self.folder = RunFolder.of(config)
        self.config = config
        self.said: list[str] = []
        self.start()

    def start(self) -> None:
        """As a new process does."""
        self.folder.claim(self.config)
        self.folder.release()
        self.checkpoints = RunCheckpoints(self.folder, self.said.append)

    def write(self, number: int) -> None:
        self.checkpoints.write({"number": number, "weights": torch.arange(100.0)})

    def read(self) -> int | None:
        found = self.checkpoints.read(["number"], "a run")
        return None if found is None else found.state["number"]

    def on_disk(self) -> dict[str, int | str]:
        """Files and their numbers."""
        numbers: dict[str, int | str] = {}
        for path in self.folder.checkpoint.parent.iterdir():
            try:
                numbers[path.name] = checkpoints.read(path)["number"]
            except UserError:
                numbers[path.name] = "damaged"
        return numbers


@pytest.fixture
def kept(tiny: Callable[..., Config]) -> Kept:
    return Kept(tiny())


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(100.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def no_links(*_: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_the_last_two_checkpoints_are_kept(kept, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    kept.write(1)
    assert kept.on_disk() == {"latest.pt": 1}
    kept.write(2)
    kept.write(3)
    assert kept.on_disk() == {"latest.pt": 3, "previous.pt": 2}
    assert kept.read() == 3
    assert kept.said == []


CALLS = ("link", "replace", "fsync", "unlink")


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_killed_between_any_two_calls_to_the_system_there_is_a_whole_checkpoint(kept, monkeypatch, links):
    originals = {name: getattr(os, name) for name in CALLS}
    if not links:
        originals["link"] = no_links
    left = 0

    def until_killed(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError
            return originals[name](*args, **kwargs)

        return call

    kept.write(0)
    kept.write(1)
    kills, number = 0, 1
    while True:
        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, until_killed(name))
            left = kills
            try:
                kept.write(number + 1)
                break
            except KilledError:
                kills += 1
        kept.start()
        found = kept.read()
        assert found in (number, number + 1), f"killed at call {kills}"
        assert ".tmp" not in "".join(kept.on_disk())
        number = found
    assert kills >= 4  # synced, linked, renamed twice, synced
    assert kept.on_disk() == {"latest.pt": number + 1, "previous.pt": number}


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_byte])
def test_a_damaged_latest_is_kept_aside_and_the_one_before_it_read(kept, damage):
    kept.write(1)
    kept.write(2)
    damage(kept.folder.checkpoint)
    content = kept.folder.checkpoint.read_bytes()
    kept.start()
    assert kept.read() == 1
    assert kept.on_disk() == {"damaged-latest.pt": "damaged", "previous.pt": 1}
    assert kept.folder.damaged_checkpoint.read_bytes() == content
    (said,) = kept.said
    assert said.startswith(f"{kept.folder.checkpoint}: not a checkpoint, or a damaged")
    assert said.endswith(
        f"; kept as damaged-latest.pt; going on from the checkpoint before it, {kept.folder.previous_checkpoint}"
    )


def test_a_missing_latest_is_said_and_the_one_before_it_read(kept):
    kept.write(1)
    kept.write(2)
    kept.folder.checkpoint.unlink()
    kept.start()
    assert kept.read() == 1
    assert kept.said == [
        f"{kept.folder.checkpoint}: is missing; going on from the checkpoint before it, "
        f"{kept.folder.previous_checkpoint}"
    ]


def test_the_one_fallen_back_on_stays_and_one_damaged_file_at_most(kept):
    kept.write(1)
    for number in (2, 3):
        kept.write(number)
        truncate(kept.folder.checkpoint)
        kept.start()
        assert kept.read() == 1
    assert kept.folder.newest_checkpoint() == kept.folder.previous_checkpoint
    kept.write(4)
    assert kept.on_disk() == {"latest.pt": 4, "previous.pt": 1, "damaged-latest.pt": "damaged"}
    assert kept.folder.newest_checkpoint() == kept.folder.checkpoint


def test_two_that_cannot_be_read_are_both_named_and_left_as_they_are(kept):
    kept.write(1)
    kept.write(2)
    truncate(kept.folder.checkpoint)
    empty(kept.folder.previous_checkpoint)
    before = {path: path.read_bytes() for path in kept.folder.checkpoint.parent.iterdir()}
    kept.start()
    with pytest.raises(UserError) as caught:
        kept.read()
    assert f"{kept.folder.checkpoint}: not a checkpoint" in str(caught.value)
    assert f"nor can the one before it be read: {kept.folder.previous_checkpoint}: not a checkpoint" in str(
        caught.value
    )
    assert {path: path.read_bytes() for path in kept.folder.checkpoint.parent.iterdir()} == before


def test_a_damaged_first_checkpoint_is_refused_rather_than_begun_anew(kept):
    kept.write(1)
    truncate(kept.folder.checkpoint)
    kept.start()
    with pytest.raises(UserError, match=r"latest\.pt: .*there is no previous\.pt before it to go on from"):
        kept.read()
    assert kept.on_disk() == {"latest.pt": "damaged"}


def test_a_checkpoint_of_another_kind_is_no_damage(kept):
    kept.write(1)
    checkpoints.write({"other": 2}, kept.folder.checkpoint, kept.folder.previous_checkpoint)
    kept.start()
    with pytest.raises(UserError, match=r"latest\.pt: not a run's checkpoint \(missing: number\)"):
        kept.read()
    assert sorted(path.name for path in kept.folder.checkpoint.parent.iterdir()) == ["latest.pt", "previous.pt"]


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
def test_a_latest_cut_under_a_living_run_does_not_become_the_one_to_fall_back_on(kept, damage):
    kept.write(1)
    kept.write(2)
    damage(kept.folder.checkpoint)
    kept.write(3)
    on_disk = kept.on_disk()
    assert (on_disk["latest.pt"], on_disk["previous.pt"]) == (3, 1)
    assert len(kept.said) == 1
    assert "was changed by something else while the run was under way" in kept.said[0]
    kept.write(4)
    assert (kept.on_disk()["latest.pt"], kept.on_disk()["previous.pt"]) == (4, 3)


@pytest.mark.parametrize("failing", ["torch.save", "os.link"])
def test_a_full_disk_leaves_both_as_they_were(kept, monkeypatch, failing):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    kept.write(1)
    kept.write(2)
    with monkeypatch.context() as patch:
        patch.setattr(failing, full)
        with pytest.raises(UserError, match=r"latest\.pt: the disk is full; the file is as it was before"):
            kept.write(3)
    assert kept.on_disk() == {"latest.pt": 2, "previous.pt": 1}
    kept.write(4)
    assert kept.on_disk() == {"latest.pt": 4, "previous.pt": 2}


# --- for another end than to resume the run, no older agent is taken silently


@pytest.mark.parametrize("source", ["", "checkpoint/latest.pt"], ids=["folder", "file"])
def test_whoever_only_reads_is_told_what_can_be_given_instead(kept, source):
    kept.write(1)
    kept.write(2)
    truncate(kept.folder.checkpoint)
    with pytest.raises(UserError) as caught:
        read_agent(str(kept.folder.path / source))
    assert str(caught.value).endswith(
        f"the run's checkpoint before it is sound: give checkpoint={kept.folder.previous_checkpoint} in its place"
    )
    assert kept.on_disk() == {"latest.pt": "damaged", "previous.pt": 1}


def test_whoever_only_reads_is_told_where_the_latest_is_missing(kept):
    kept.write(1)
    kept.write(2)
    kept.folder.checkpoint.unlink()
    with pytest.raises(UserError, match=r"latest\.pt is missing; .* give checkpoint=.*previous\.pt in its place"):
        read_agent(str(kept.folder.path))


def test_a_checkpoint_that_is_damaged_too_is_not_recommended(kept):
    kept.write(1)
    kept.write(2)
    truncate(kept.folder.checkpoint)
    truncate(kept.folder.previous_checkpoint)
    with pytest.raises(UserError) as caught:
        read_agent(str(kept.folder.path))
    assert "previous.pt" not in str(caught.value)
