"""The command `tdmpc2`: train, evaluate, gallery, embeddings, sweep, dataset, reference, tasks, lab, info and more."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tdmpc2.config import Config, EmbeddingsConfig, EvaluateConfig, ExportConfig, architecture, parse_settings
from tdmpc2.errors import UserError, require
from tdmpc2.gallery_command import GalleryConfig
from tdmpc2.gallery_command import run as run_gallery
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import get_task

SettingsClass = type[Config] | type[EvaluateConfig] | type[EmbeddingsConfig] | type[ExportConfig] | type[GalleryConfig]

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    parser = _parser()
    options, left = parser.parse_known_args(arguments)
    if hasattr(options, "handed_on"):
        options.handed_on, left = left, []  # another program's options
    if any("=" not in word or word.startswith("-") for word in left) or (left and not hasattr(options, "settings")):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        options.settings += left  # argparse takes no settings after an option that stands between them
    try:
        return int(options.run_command(options))
    except UserError as error:
        print(f"tdmpc2: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"tdmpc2: {where}the disk is full; free some space and run the same command again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tdmpc2: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    from tdmpc2 import dataset_commands, lab_command, reference_commands, task_commands
    from tdmpc2.sweeps.commands import register

    parser = argparse.ArgumentParser(prog="tdmpc2", description="A benchmark and analysis workbench for TD-MPC2.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for name, run_command, settings, text in (
        ("train", _train, Config, "train one run, or resume it"),
        ("finetune", _finetune, Config, "go on training a multi-task agent, online, on one task"),
        ("evaluate", _evaluate, EvaluateConfig, "evaluate, and film, the agent of a run or checkpoint on its tasks"),
        ("gallery", run_gallery, GalleryConfig, "show agents in all their tasks, in one picture and one film"),
        ("embeddings", _embeddings, EmbeddingsConfig, "write a multi-task agent's task embeddings as CSV"),
        ("info", _info, Config, "show what a run would use: model, parameters, budget"),
        (
            "export-reference",
            _export_reference,
            ExportConfig,
            "write a run's weights as TD-MPC2's authors' code reads them",
        ),
    ):
        verb = verbs.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=_describe_settings(settings),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_argument("settings", nargs="+", metavar="key=value", help="settings; see below")
        if name in ("train", "finetune", "evaluate", "gallery"):
            verb.add_argument("--quiet", action="store_true", help="no progress")
        if name == "finetune":
            verb.add_argument(
                "--embedding-from", metavar="TASK|mean|zero|nearest", help="the task embedding to begin with"
            )
        verb.set_defaults(run_command=run_command)
    register(verbs)
    dataset_commands.register(verbs)
    reference_commands.register(verbs)
    task_commands.register(verbs)
    lab_command.register(verbs)
    return parser


def _describe_settings(cls: SettingsClass) -> str:
    """The settings with their defaults and the docstrings under their fields."""
    lines = ["settings:"]
    for name, info in cls.__pydantic_fields__.items():  # type: ignore[union-attr]  # pydantic's dataclasses have it
        default = info.default
        plain = str(default).lower() if isinstance(default, bool) or default is None else str(default)
        lines.append(f"  {name}{'' if info.is_required() else f'={plain}'}\n      {info.description}")
    return "\n".join(lines)


def _finetune(options: argparse.Namespace) -> int:
    if options.embedding_from is not None:
        options.settings.append(f"embedding_from={options.embedding_from}")
    require(
        any(word.startswith("checkpoint=") for word in options.settings),
        "checkpoint: missing; name the multi-task run's folder, or its checkpoint, to begin with",
    )
    return _train(options)


def _train(options: argparse.Namespace) -> int:
    config = parse_settings(Config, options.settings)
    from tdmpc2.training.folder import RunFolder
    from tdmpc2.training.run import DivergedError, train
    from tdmpc2.training.runtime import Stopped

    folder = RunFolder.of(config)
    status = folder.read_status()
    if status is not None and status.state == "done" and folder.read_config().digest() == config.digest():
        print(f"{folder.path}: done already; evaluate it with `tdmpc2 evaluate run={folder.path}`")
        return 0
    leads = os.environ.get("RANK", "0") == "0"  # of torchrun's processes, one speaks for all
    try:
        train(config, show_progress=not options.quiet)
    except Stopped:
        if leads:
            print(f"stopped and checkpointed; the same command goes on with {folder.path}", file=sys.stderr)
        return INTERRUPTED
    except DivergedError as error:
        if leads:
            print(f"tdmpc2: {error}", file=sys.stderr)
        return 1
    if leads:
        print(f"{folder.path}: done")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    config = parse_settings(EvaluateConfig, options.settings)
    from tdmpc2.training.evaluate_run import evaluate_run

    rows = evaluate_run(config, show_progress=not options.quiet)
    # How far the agent has learned: its environment steps where it took any, else its updates.
    clock = "env_steps" if any(row["env_steps"] is not None for row in rows) else "updates"
    shown = ("task", clock, "episodes", "return", "return_std", "success", "video")
    columns = [column for column in shown if any(_cell(row[column]) for row in rows)]
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "task")
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    Console().print(table)
    return 0


def _embeddings(options: argparse.Namespace) -> int:
    config = parse_settings(EmbeddingsConfig, options.settings)
    from tdmpc2.training.embeddings import export_embeddings

    print(f"{export_embeddings(config)}: written")
    return 0


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if value != value else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _info(options: argparse.Namespace) -> int:
    config = parse_settings(Config, options.settings)
    import torch

    from tdmpc2.agent.execution import choose_device, choose_execution
    from tdmpc2.agent.memory import update_memory
    from tdmpc2.agent.world_model import WorldModel

    device = choose_device(config.device)
    execution = choose_execution(config, device)
    spec = AgentSpec.from_tasks(config.tasks, config.obs)
    with torch.device("meta"):  # shapes only: size 317 needs no memory
        counts = WorldModel(config, spec).parameter_counts()
    table = Table("part", "parameters", title=f"{config.task}, model size {config.model_size}")
    table.columns[1].justify = "right"
    for part, count in counts.items():
        if part == "total":
            table.add_section()
        table.add_row(part.replace("_", " "), f"{count:,}")
    console = Console()
    console.print(table)
    widths = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(architecture(config, spec)).items())
    console.print(f"architecture: {widths}", highlight=False)
    console.print(
        f"observation {spec.obs_shape}, action ({spec.action_dim},), {len(spec.tasks)} task(s)", highlight=False
    )
    console.print(f"device: {device}", highlight=False)
    for name in ("precision", "compile"):
        reason = execution.why.get(name)
        because = f" (auto: {reason})" if reason else ""
        console.print(f"{name}: {getattr(execution, name)}{because}", highlight=False, soft_wrap=True)
    if execution.notice:
        console.print(execution.notice, highlight=False, soft_wrap=True)
    memory = update_memory(config, spec, config.sequences)
    lasting = sum(memory[name] for name in ("parameters", "target_qs", "moments"))
    console.print(
        f"memory of an update: about {memory['total'] / 1e9:.2f} GB, {lasting / 1e9:.2f} GB of it weights and moments "
        "(accumulate=, recompute= and optimizer_state= lower it)",
        highlight=False,
        soft_wrap=True,
    )
    if config.offline:
        console.print(f"budget: {config.total_updates:,} updates", highlight=False)
    elif not spec.multitask:
        env_steps = config.agent_steps * get_task(spec.tasks[0]).action_repeat
        console.print(f"budget: {env_steps:,} environment steps ({config.agent_steps:,} agent steps)", highlight=False)
    return 0


def _export_reference(options: argparse.Namespace) -> int:
    config = parse_settings(ExportConfig, options.settings)
    from tdmpc2.agent.agent import TDMPC2
    from tdmpc2.agent.reference import write_reference
    from tdmpc2.training.checkpointing import read_undamaged
    from tdmpc2.training.folder import RunFolder

    if Path(config.output).exists():
        raise UserError(f"output: {config.output} exists already; name another file")
    folder = RunFolder(config.run)
    folder.read_config()  # says so where it is no run's folder
    state = read_undamaged(folder.checkpoint)
    if "agent" not in state:
        raise UserError(f"{folder.checkpoint}: not a run's checkpoint")
    # Whatever device the run was on: nothing is computed here.
    agent = TDMPC2.from_state(state["agent"], folder.checkpoint, "cpu", compile="none", precision="float32")
    try:
        write_reference(agent, config.output)
    except OSError as error:
        raise UserError(f"output: {config.output} cannot be written ({error.strerror})") from None
    print(f"{config.output}: written")
    return 0
