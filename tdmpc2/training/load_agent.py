"""Agents from wherever they are kept: a run's folder, a checkpoint of ours or of TD-MPC2's authors, or the Hub.

A file is read, and all that it tells checked, before an agent is built: a wrong one costs no time or memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.execution import choose_device, choose_execution
from tdmpc2.agent.reference import ReferenceCheckpoint, inspect_reference
from tdmpc2.config import Config, make_settings
from tdmpc2.errors import UserError, nearest, require
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import TASK_SETS, expand_tasks, nearest_task
from tdmpc2.training.checkpointing import read_undamaged, what_else
from tdmpc2.training.folder import RunFolder

HUB = "hf://"
"""What a path on the Hugging Face Hub begins with: hf://OWNER/REPO/PATH."""


class LoadedAgent(NamedTuple):
    """An agent, and where it comes from."""

    agent: TDMPC2
    steps: int | None
    """Agent steps that its run has taken; None where it learned from data alone, or the file does not tell."""
    origin: str
    """What it was read from, for people and messages."""


@dataclass(frozen=True)
class StoredAgent:
    """What a checkpoint holds, read and not yet built."""

    config: Config
    """The agent's settings; of a reference file, those that its shapes tell."""
    spec: AgentSpec
    """Its tasks."""
    steps: int | None
    """Agent steps that its run has taken; None where it learned from data alone, or the file does not tell."""
    updates: int | None
    """Updates that it has learned from; None where the file does not tell."""
    origin: str
    """What it was read from, for people and messages."""
    model: Mapping[str, Tensor]
    """The weights by our names."""
    content: Mapping[str, Any] | ReferenceCheckpoint
    """The agent's state in a checkpoint of ours, or the reference implementation's."""

    @property
    def model_size(self) -> int:
        """The published size that its model is of, or was made from."""
        return self.config.model_size

    def choose_tasks(self, only: str | None) -> tuple[str, ...]:
        """Some of the agent's tasks, or all.

        Args:
            only: a task, or a list; a task set stands for those of its tasks that the agent has. None: all.

        Raises:
            UserError: a task is unknown, or none of the agent's (names the nearest that is).
        """
        if only is None:
            return self.spec.tasks
        chosen: dict[str, None] = {}
        for name in only.split(","):
            asked = expand_tasks(name, where="only")
            held = [task for task in asked if task in self.spec.tasks]
            if not held:
                try:
                    shown = f"the nearest that it has is {nearest_task(name.strip(), self.spec.tasks)}"
                except UserError:  # nothing like it, or a whole set
                    shown = f"it has {_in_short(self.spec.tasks)}"
                raise UserError(f"only: the agent of {self.origin} was not trained on {name.strip()}; {shown}")
            chosen |= dict.fromkeys(held)
        return tuple(chosen)

    def build(self, device: str = "auto", steps: int | None = None, **changes: Any) -> TDMPC2:
        """The agent, whole where the checkpoint is ours; a reference file has weights alone.

        Args:
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            steps: agent steps that it is loaded for, see `choose_execution`; by default its settings' budget.
            changes: settings to change, e.g. `mpc=False`.

        Raises:
            UserError: it does not fit these settings, or they do not fit the device.
        """
        if not isinstance(self.content, ReferenceCheckpoint):
            return TDMPC2.from_state(self.content, self.origin, device, steps, **changes)
        config = self.content.config(self.config.task, **({"device": device} | changes))
        place = choose_device(device)
        agent = TDMPC2(config, self.spec, str(place), choose_execution(config, place, steps))
        agent.model.load_state_dict(self.model)
        return agent


def load_agent(source: str, tasks: str | None = None, device: str = "auto", **changes: Any) -> LoadedAgent:
    """The agent that is kept somewhere, built on a device.

    Args:
        source: as `read_agent`.
        tasks: as `read_agent`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        changes: settings to change, e.g. `mpc=False`.

    Raises:
        UserError: as `read_agent` and `StoredAgent.build`.
    """
    stored = read_agent(source, tasks)
    return LoadedAgent(stored.build(device, **changes), stored.steps, stored.origin)


def read_agent(source: str, tasks: str | None = None) -> StoredAgent:
    """What is kept in a run's folder or checkpoint, not yet built. Never runs code from a file.

    Args:
        source: a run's folder (its latest checkpoint), a checkpoint of ours (a run's, or one that `TDMPC2.save` wrote)
            or of the reference implementation (either layout), or hf://OWNER/REPO/PATH for one on the Hugging Face Hub.
        tasks: the task, list or set of tasks that it was trained on, in that order: for reference files, which do not
            name them. With a checkpoint of ours it must be what the file says.

    Raises:
        UserError: there is no such thing, it is damaged or unsafe, no agent, or of other tasks.
    """
    path = fetch_from_hub(source) if source.startswith(HUB) else Path(source)
    origin = source if source.startswith(HUB) else ""
    if path.is_dir():
        path = open_run(source, "checkpoint").checkpoint
    elif not path.exists():
        raise _not_there("checkpoint", "file", Path(source))
    origin = origin or str(path)
    content = read_undamaged(path)
    for state in (content.get("agent"), content):
        if isinstance(state, Mapping) and {"config", "spec", "model", "updates"} <= state.keys():
            return _ours(state, content.get("steps"), origin, tasks)
    model = content.get("model")
    if not isinstance(model, Mapping):
        raise UserError(f"{origin}: not a run's checkpoint, nor one of the reference implementation")
    return _reference(inspect_reference({str(name): value for name, value in model.items()}, origin), tasks)


def open_run(path: str, setting: str = "run") -> RunFolder:
    """The folder of a run that has a checkpoint.

    Args:
        path: the folder.
        setting: the setting that names it, for messages.

    Raises:
        UserError: there is no such folder (names the nearest), it is no run's, or the run has no checkpoint yet.
    """
    folder = RunFolder(path)
    if not folder.path.is_dir():
        raise _not_there(setting, "folder", folder.path)
    folder.read_config()
    if not folder.checkpoint.exists():
        if folder.previous_checkpoint.exists():
            raise UserError(f"{setting}: {folder.checkpoint} is missing{what_else(folder, folder.checkpoint)}")
        raise UserError(f"{setting}: {path} has no checkpoint yet")
    return folder


def fetch_from_hub(source: str) -> Path:
    """A file of the Hugging Face Hub, downloaded unless the local cache has it.

    Args:
        source: hf://OWNER/REPO/PATH.

    Raises:
        UserError: the path is not of that form, there is no such file, the Hub cannot be reached, or its client is not
            installed.
    """
    owner, _, rest = source.removeprefix(HUB).partition("/")
    repository, _, name = rest.partition("/")
    require(bool(owner and repository and name), f"checkpoint: {source} is not of the form {HUB}OWNER/REPO/PATH")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise  # installed, but broken
        raise UserError(
            f"checkpoint: {source} needs the package huggingface_hub; install this project's requirements "
            "(pip install -e . in its folder)"
        ) from None
    try:
        return Path(huggingface_hub.hf_hub_download(f"{owner}/{repository}", name))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise UserError(
            f"checkpoint: {source} is not in the local cache, and the Hugging Face Hub cannot be reached from here; "
            "download the file where there is a network, and give it as checkpoint=FILE"
        ) from None
    except (errors.EntryNotFoundError, errors.HfHubHTTPError, errors.HFValidationError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint: {source} cannot be downloaded ({reason})") from None


def _ours(state: Mapping[str, Any], steps: Any, origin: str, tasks: str | None) -> StoredAgent:
    config = make_settings(Config, state["config"], where=origin)
    spec = AgentSpec(**state["spec"])
    if tasks is not None and set(expand_tasks(tasks, where="task")) != set(spec.tasks):
        raise UserError(f"task: {origin} holds an agent of {_in_short(spec.tasks)}, not of {tasks}; leave task= out")
    acted = None if steps is None or config.offline else int(steps)
    return StoredAgent(config, spec, acted, int(state["updates"]), origin, state["model"], state)


def _reference(file: ReferenceCheckpoint, tasks: str | None) -> StoredAgent:
    if tasks is None:
        sets = [name for name in ("mt30", "mt80") if len(TASK_SETS[name]) == file.num_tasks]
        example = sets[0] if sets else "TASK" if file.num_tasks == 1 else "TASK,TASK,..."
        raise UserError(
            f"{file.path}: a checkpoint of the reference implementation does not name its tasks; say which it was "
            f"trained on with task={example} (checkpoint_tasks={example} in finetuning); it holds {file}"
        )
    config = file.config(tasks)
    spec = AgentSpec.from_tasks(config.tasks, config.obs)
    return StoredAgent(config, spec, None, None, file.path, file.state_dict(config, spec), file)


def _not_there(setting: str, kind: str, path: Path) -> UserError:
    parent = path.parent
    fits = Path.is_dir if kind == "folder" else Path.exists
    siblings = [entry.name for entry in parent.iterdir() if fits(entry)] if parent.is_dir() else []
    match = nearest(path.name, siblings)
    hint = f"; did you mean {parent / match}?" if match else ""
    return UserError(f"{setting}: no {kind} {path}{hint}")


def _in_short(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
