"""What a sweep is: its stages' tasks, sizes, seeds, settings and resources, as declared in scripts/sweeps/NAME.yaml.

A declaration's own tasks, sizes, seeds, overrides and resources are defaults; every block changes some of them.

* `groups`: runs that learn online, one task each; without any, the defaults are the one group.
* `datasets`: data sets of those runs' replay buffers, by name.
* `multitask`: runs on a data set, `data`. They take its tasks, and inherit sizes, seeds, resources and those overrides
  that mean the same offline: not budgets, batch size, nor anything else that counts online steps (`ONLINE_ONLY`).
* `finetune`: online runs that start from the multi-task agents of a data set, `from`: from the agent of their own size
  and seed, or, where that data set's agents of the size have one seed, from that. They inherit all overrides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import BeforeValidator, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

import tdmpc2
from tdmpc2.config import Config, make_settings
from tdmpc2.errors import UserError, require, unknown_name
from tdmpc2.own_tasks import load_tasks_file
from tdmpc2.spec import MODEL_SIZES
from tdmpc2.sweeps.folder import Kind
from tdmpc2.tasks import expand_tasks

SET_BY_SWEEP = {
    "task": "tasks",
    "model_size": "sizes",
    "seed": "seeds",
    "threads": "resources.cpus",
    "data": "the data of a multitask block",
    "exp_name": "the declaration's file name",
    "results_dir": "--results",
}
"""Settings that are no overrides, and what decides them."""
ONLINE_ONLY = frozenset(
    "steps env_steps seed_steps num_envs buffer_size batch_size eval_freq checkpoint_freq "
    "checkpoint checkpoint_tasks embedding_from".split()
)
"""Overrides among the defaults that multi-task runs do not inherit: what counts online steps, and the batch size, whose
default for several tasks is another."""

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _listed(value: Any) -> Any:
    """Let one name stand for a list of one; refuse what pydantic would unpack in silence."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise ValueError("should be a list")  # pydantic reports ValueErrors
    return tuple(value)


Labels = Annotated[tuple[StrictStr, ...], BeforeValidator(_listed), Field(min_length=1)]
Names = Annotated[tuple[StrictStr, ...], BeforeValidator(_listed), Field(min_length=1)]
Sizes = Annotated[tuple[StrictInt, ...], BeforeValidator(_listed), Field(min_length=1)]
Seeds = Annotated[tuple[Annotated[StrictInt, Field(ge=0)], ...], BeforeValidator(_listed), Field(min_length=1)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_STRICT)
class Resources:
    """What one run gets to itself."""

    cpus: Annotated[StrictInt, Field(ge=1)] = 1
    """CPU cores, and threads of the run."""
    gpus: Annotated[StrictFloat | StrictInt, Field(ge=0)] = 0
    """Share of a GPU, or a whole number of them; 0 runs on the CPU. With device=auto, the CPU also where no GPU is."""
    memory_gb: Annotated[StrictFloat | StrictInt, Field(gt=0)] | None = None
    """GiB of memory set aside for the run; none by default."""

    def __post_init__(self) -> None:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise UserError(f"gpus: {self.gpus} is neither a share of one GPU nor a whole number")


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_STRICT)
class Block:
    """One part of a declaration as written: the defaults, or a group that changes some of them."""

    tasks: Names | None = None
    """Names of tasks and task sets; a run for each task."""
    without: Names | None = None
    """Names of tasks and task sets that are left out of `tasks`."""
    sizes: Sizes | None = None
    """Model sizes."""
    seeds: Seeds | None = None
    """Seeds."""
    overrides: dict[StrictStr, Any] = dataclasses.field(default_factory=dict)
    """Any other settings of `Config`. Without `steps` or `env_steps`, each task has the paper's budget."""
    resources: dict[StrictStr, Any] = dataclasses.field(default_factory=dict)
    """Fields of `Resources`."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_STRICT)
class DeclarationFile(Block):
    """A whole declaration as written."""

    description: StrictStr = ""
    """What it is for."""
    groups: list[dict[StrictStr, Any]] | None = None
    """Blocks of runs, each with what differs from the defaults; without any, the defaults are the one group."""
    datasets: dict[StrictStr, dict[StrictStr, Any]] = dataclasses.field(default_factory=dict)
    """Fields of `DatasetBlock` by the data set's name; each is built as soon as the runs that it needs are done."""
    multitask: list[dict[StrictStr, Any]] | None = None
    """Blocks of runs on a data set: `data` and fields of `Block`."""
    finetune: list[dict[StrictStr, Any]] | None = None
    """Blocks of online runs that start from multi-task agents: `from` and fields of `Block`."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_STRICT)
class DatasetBlock:
    """Which of the groups' replay buffers a data set is made of; by default, all of states."""

    tasks: Names | None = None
    """Names of tasks and task sets, in the order of their ids in the data set; by default all of the groups."""
    without: Names | None = None
    """Names of tasks and task sets that are left out of `tasks`."""
    sizes: Sizes | None = None
    seeds: Seeds | None = None
    labels: Labels | None = None
    """Values of `overrides.label`."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in task, size and seed alone."""

    where: str
    """File and block it was read from, for messages."""
    kind: Kind
    tasks: tuple[str, ...] | None
    """A run for each; of a multitask block, the tasks of every run, None for all of the data set's."""
    sizes: tuple[int, ...] | None
    """None, in a finetune block, for those of the multi-task agents."""
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any]
    resources: Resources
    data: str = ""
    """Of a multitask block, the data set; of a finetune block, the one whose multi-task agents it starts from."""


@dataclasses.dataclass(frozen=True)
class DeclaredDataset:
    """A data set made of the groups' replay buffers; None for all that there are."""

    where: str
    """File and block it was read from, for messages."""
    tasks: tuple[str, ...] | None
    sizes: tuple[int, ...] | None
    seeds: tuple[int, ...] | None
    labels: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Declaration:
    """A sweep as declared, checked, with every group's defaults filled in."""

    name: str
    """Name of the sweep: the file's name without its ending."""
    file: Path
    description: str
    groups: tuple[Group, ...]
    """Of all kinds: online first, then offline, then finetune."""
    datasets: Mapping[str, DeclaredDataset]
    text: str
    """The file's content."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key stands once: the plain loader keeps the last of several in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        repeated = {key for key in keys if isinstance(key, str) and keys.count(key) > 1}
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"{', '.join(sorted(repeated))} stands there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def declaration_folders() -> list[Path]:
    """Where declarations are looked for by name: here, then in the project's own checkout."""
    folders = [Path("scripts/sweeps"), Path(tdmpc2.__file__).parents[1] / "scripts" / "sweeps"]
    return [folder for folder in folders if folder.is_dir()]


def list_declarations() -> dict[str, Path]:
    """Files of the declared sweeps by name."""
    found: dict[str, Path] = {}
    for folder in declaration_folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find_declaration(name: str) -> Path:
    """The declaration's file.

    Args:
        name: name of a declared sweep, or path of a YAML file.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        require(Path(name).is_file(), f"{name}: no such sweep declaration")
        return Path(name)
    found = list_declarations()
    if name not in found:
        if not found:
            raise UserError(f"unknown sweep {name!r}; there is no scripts/sweeps folder with declarations here")
        raise unknown_name("sweep", name, found)
    return found[name]


def load_declaration(file: Path, name: str | None = None) -> Declaration:
    """Read and check a declaration.

    Args:
        file: the YAML file.
        name: the sweep's name; by default the file's name without its ending.

    Raises:
        UserError: it cannot be read or is not valid; names the file and the field.
    """
    try:
        text = file.read_text()
        content = yaml.load(text, _UniqueKeyLoader)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid YAML: {error}") from None
    require(isinstance(content, dict), f"{file}: not a mapping of settings")
    declared = make_settings(DeclarationFile, content, where=str(file))
    name = name or file.stem
    make_settings(Config, {"task": "walker-walk", "exp_name": name}, where=str(file))  # the name names a folder

    _check_block(declared, str(file))
    groups: list[Group] = []
    if declared.groups is None:
        if declared.tasks is not None or declared.multitask is None:
            groups.append(_merge(declared, Block(), str(file)))
    else:
        require(len(declared.groups) > 0, f"{file}: groups: is empty; leave it out to use the defaults alone")
        for index, written in enumerate(declared.groups):
            where = f"{file}: groups[{index}]"
            groups.append(_merge(declared, _read_block(written, where), where))
    datasets = {name: _read_dataset(name, f"{file}: datasets", written) for name, written in declared.datasets.items()}
    inherited = {key: value for key, value in declared.overrides.items() if key not in ONLINE_ONLY}
    offline_defaults = dataclasses.replace(declared, tasks=None, without=None, overrides=inherited)
    for index, written in enumerate(declared.multitask or ()):
        where = f"{file}: multitask[{index}]"
        data, block = _split(written, "data", where)
        groups.append(_merge(offline_defaults, _read_block(block, where), where, "offline", data))
    require(
        bool(declared.multitask) or not declared.finetune, f"{file}: finetune: needs a multitask block to start from"
    )
    for index, written in enumerate(declared.finetune or ()):
        where = f"{file}: finetune[{index}]"
        data, block = _split(written, "from", where)
        online_defaults = dataclasses.replace(declared, tasks=None, without=None, sizes=None)
        groups.append(_merge(online_defaults, _read_block(block, where), where, "finetune", data))
    return Declaration(name, file, declared.description, tuple(groups), datasets, text)


def _read_block(written: Mapping[str, Any], where: str) -> Block:
    block = make_settings(Block, written, where=where)
    _check_block(block, where)
    return block


def _split(written: Mapping[str, Any], field: str, where: str) -> tuple[str, dict[str, Any]]:
    """The name of a block's data set, and the rest of the block."""
    name = written.get(field)
    require(isinstance(name, str) and name != "", f"{where}: {field}: missing; it names a data set")
    return str(name), {key: value for key, value in written.items() if key != field}


def _read_dataset(name: str, where: str, written: Mapping[str, Any]) -> DeclaredDataset:
    usual = name != "" and all(c.isalnum() or c in "-_." for c in name) and not name.startswith(".")
    require(usual, f"{where}: {name!r} names a folder: letters, digits, '-', '_' and '.' only")
    where = f"{where}.{name}"
    block = make_settings(DatasetBlock, written, where=where)
    return DeclaredDataset(where, _tasks_of(block, where), block.sizes, block.seeds, block.labels)


def _tasks_of(block: Block | DatasetBlock, where: str) -> tuple[str, ...] | None:
    """The tasks that a block names, less those that it leaves out."""
    if block.tasks is None:
        require(block.without is None, f"{where}: without: leaves tasks out of `tasks`, which this block does not name")
        return None
    tasks = expand_tasks(block.tasks, where=f"{where}: tasks")
    without = expand_tasks(block.without or (), where=f"{where}: without")
    for task in without:
        require(task in tasks, f"{where}: without: {task} is not among the tasks")
    require(len(tasks) > len(without), f"{where}: without: leaves no task")
    return tuple(task for task in tasks if task not in without)


def _check_block(block: Block, where: str) -> None:
    """Check every field by itself, so that the message names it."""
    if block.overrides.get("tasks_file"):  # before its tasks are looked up
        make_settings(Config, {"task": "walker-walk", "tasks_file": block.overrides["tasks_file"]}, where=where)
        load_tasks_file(block.overrides["tasks_file"])
    _tasks_of(block, where)
    for size in block.sizes or ():
        near = min(MODEL_SIZES, key=lambda valid: abs(valid - size))
        valid = ", ".join(map(str, MODEL_SIZES))
        require(size in MODEL_SIZES, f"{where}: sizes: no size {size}; nearest is {near} (valid: {valid})")
    make_settings(Resources, block.resources, where=f"{where}: resources")
    for field, decided_by in SET_BY_SWEEP.items():
        require(field not in block.overrides, f"{where}: overrides: {field} is decided by {decided_by}")


def _merge(defaults: Block, block: Block, where: str, kind: Kind = "online", data: str = "") -> Group:
    """A group: the block, with the defaults for what it leaves out."""
    merged = {name: getattr(block, name) or getattr(defaults, name) for name in ("sizes", "seeds")}
    merged["tasks"] = _tasks_of(block, where) or _tasks_of(defaults, where)
    optional = {"online": (), "offline": ("tasks",), "finetune": ("sizes",)}[kind]
    for name, value in merged.items():
        require(value is not None or name in optional, f"{where}: {name}: missing")
    overrides = {**defaults.overrides, **block.overrides}
    for own, other in (("steps", "env_steps"), ("env_steps", "steps")):
        if own in block.overrides and other not in block.overrides:
            overrides.pop(other, None)  # the group's budget replaces the default one, in either unit
    source = {"online": {}, "offline": {"data": data}, "finetune": {"checkpoint": data}}[kind]
    if kind == "finetune":
        require("checkpoint" not in overrides, f"{where}: overrides: checkpoint is decided by from")
    make_settings(Config, {"task": "walker-walk", **overrides, **source}, where=f"{where}: overrides")
    resources = make_settings(Resources, {**defaults.resources, **block.resources}, where=f"{where}: resources")
    device = overrides.get("device", "auto")
    require(
        device != "cpu" or resources.gpus == 0,
        f"{where}: resources.gpus is {resources.gpus}, but overrides.device is cpu",
    )
    require(
        not str(device).startswith("cuda") or resources.gpus > 0,
        f"{where}: overrides.device is {device}, but resources.gpus is 0",
    )
    return Group(
        where=where,
        kind=kind,
        tasks=merged["tasks"],
        sizes=merged["sizes"],
        seeds=merged["seeds"],
        overrides=overrides,
        resources=resources,
        data=data,
    )
