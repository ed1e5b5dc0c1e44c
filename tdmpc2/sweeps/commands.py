"""The command `tdmpc2 sweep`: list, plan, run, status, retry."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tdmpc2.config import make_settings
from tdmpc2.errors import UserError, require, unknown_name
from tdmpc2.sweeps import record_commands, serve
from tdmpc2.sweeps import storage as stored

if TYPE_CHECKING:
    from tdmpc2.sweeps.declaration import Declaration
    from tdmpc2.sweeps.execution import SweepExecution
    from tdmpc2.sweeps.executors import Executor, Outcome, TrainFunction
    from tdmpc2.sweeps.folder import SweepFolder
    from tdmpc2.sweeps.planning import PlannedRun
    from tdmpc2.sweeps.storage import SweepStorage
    from tdmpc2.training.runtime import StopRequest

CLAIM_SECONDS = 15.0
"""How long a run's folder may still be held by the process of an earlier driver that was killed."""
WATCH_SECONDS = 2.0
"""Seconds between two looks of `status --watch`, at the least."""
WATCH_SHARE = 0.1
"""Share of a core that `status --watch` may take: of a large sweep it looks less often."""
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `sweep` to a command line; each verb's `run_command` takes the parsed options and returns the exit code."""
    sweep = subparsers.add_parser("sweep", help="many runs: plan, run, status, retry, serve, verify, archive and more")
    verbs = sweep.add_subparsers(dest="sweep_verb", required=True, metavar="VERB")

    def add(verb: str, run_command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        parser = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        parser.set_defaults(run_command=run_command)
        parser.add_argument("--results", default="results", metavar="DIR", help="folder of all results")
        return parser

    add("list", list_sweeps, "show the declared sweeps and how far each has come")

    plan = add("plan", plan_sweep, "show a sweep's runs and what they cost")
    run = add("run", run_sweep, "execute a sweep: finished runs are skipped, unfinished ones resumed")
    retry = add("retry", retry_sweep, "execute the failed runs of a sweep again")
    status = add("status", show_status, "show how far a sweep's runs have come")
    page = add("serve", serve.show_page, "show a sweep as a web page, on this machine alone")
    serve.add_options(page)
    record_commands.add_verbs(add)
    stored.add_fetch(add("fetch", stored.fetch_sweep, "bring a sweep here from object storage"))
    for parser in (run, retry, status):
        stored.add_storage_option(parser)
    for parser in (plan, run, retry, status, page):
        parser.add_argument("name", metavar="NAME", help="a declared sweep, or the path of a YAML file")
    for parser in (run, retry):
        parser.add_argument("--executor", choices=("ray", "serial"), default="ray", help="who executes the runs")
        parser.add_argument("--address", metavar="HOST:PORT", help="a Ray cluster (default: Ray on this machine)")
        parser.add_argument("--retries", type=int, default=1, metavar="N", help="times that a failing run is retried")
        parser.add_argument("--cpus", type=int, metavar="N", help="CPU cores of each run")
        parser.add_argument("--gpus", type=float, metavar="SHARE", help="GPUs, or share of a GPU, of each run")
        parser.add_argument("--memory-gb", type=float, metavar="GIB", help="memory of each run")
    run.add_argument("--skip-unavailable", action="store_true", help="leave out tasks that cannot be run here")
    status.add_argument("--watch", action="store_true", help="go on showing it until Ctrl-C")
    status.add_argument("--all", action="store_true", help="show every run, however many they are")


def list_sweeps(args: argparse.Namespace) -> int:
    """`tdmpc2 sweep list`."""
    from rich.table import Table

    from tdmpc2.sweeps.declaration import list_declarations, load_declaration
    from tdmpc2.sweeps.folder import SweepFolder
    from tdmpc2.sweeps.planning import plan_runs
    from tdmpc2.sweeps.progress import view_sweep
    from tdmpc2.sweeps.tables import count_states, make_console

    table = Table("sweep", "runs", "state", "description", box=None, pad_edge=False)
    for name, file in list_declarations().items():
        try:
            declaration = load_declaration(file)
            runs = plan_runs(declaration, args.results)
            views = view_sweep(SweepFolder(args.results, name))
            state = count_states(views) if views else "not started"
            table.add_row(name, str(len(runs)), state, declaration.description)
        except UserError as error:
            table.add_row(name, "", "cannot be used", str(error))
    make_console().print(table)
    return 0


def plan_sweep(args: argparse.Namespace) -> int:
    """`tdmpc2 sweep plan NAME`."""
    from tdmpc2.sweeps.checks import changed_settings, unavailable_tasks, why_not_runnable
    from tdmpc2.sweeps.cost import speed_elsewhere
    from tdmpc2.sweeps.progress import view_run
    from tdmpc2.sweeps.tables import cost_lines, make_console, plan_table

    declaration, runs = _load(args)
    reasons = why_not_runnable(runs, unavailable_tasks(runs))
    failures = _folder(args, declaration.name).read_failures()
    views = [view_run(run.folder, run.entry, failure=failures.get(run.name)) for run in runs]
    console = make_console()
    console.print(f"{declaration.name} ({declaration.file}): {declaration.description}\n", soft_wrap=True)
    console.print(plan_table(views, reasons))
    counted = [view for view in views if view.entry.name not in reasons]
    for line in cost_lines(counted, speed_elsewhere(runs, args.results)):
        console.print(line, soft_wrap=True)
    for run in runs:
        if changes := changed_settings(run):
            console.print(f"{run.folder.path} holds a run with other settings: {changes}", soft_wrap=True)
    return 0


def run_sweep(args: argparse.Namespace) -> int:
    """`tdmpc2 sweep run NAME`."""
    from tdmpc2.sweeps.checks import unavailable_tasks, why_not_runnable

    declaration, runs = _load(args)
    storage = stored.storage_of(args, declaration.name)
    runs = runs if storage is None else storage.prepare(runs)
    unavailable = unavailable_tasks(runs)
    not_runnable = why_not_runnable(runs, unavailable)
    chosen = [run for run in runs if run.name not in not_runnable]
    if unavailable:
        reasons: dict[str, list[str]] = {}
        for task, reason in unavailable.items():
            reasons.setdefault(reason, []).append(task)
        listed = "\n".join(f"  {reason}: {', '.join(tasks)}" for reason, tasks in reasons.items())
        if not args.skip_unavailable:
            raise UserError(f"some tasks cannot be run; --skip-unavailable runs the others:\n{listed}")
        print(f"left out, {len(runs) - len(chosen)} runs:\n{listed}")
        for run in runs:
            if run.name in not_runnable and run.config.task not in unavailable:
                print(f"  {run.name}: {not_runnable[run.name]}")
    return _execute(args, declaration, runs, chosen, storage)


def retry_sweep(args: argparse.Namespace) -> int:
    """`tdmpc2 sweep retry NAME`."""
    from tdmpc2.sweeps.progress import view_run

    declaration, runs = _load(args)
    storage = stored.storage_of(args, declaration.name)
    runs = runs if storage is None else storage.prepare(runs)
    failures = _folder(args, declaration.name).read_failures()
    views = {run.name: view_run(run.folder, run.entry, failure=failures.get(run.name)) for run in runs}
    chosen = [run for run in runs if views[run.name].state in ("failed", "killed")]
    if not chosen:
        print(f"{declaration.name}: no run has failed")
        return 0
    return _execute(args, declaration, runs, chosen, storage)


def show_status(args: argparse.Namespace) -> int:
    """`tdmpc2 sweep status NAME`."""
    from rich.live import Live

    from tdmpc2.sweeps.progress import view_sweep
    from tdmpc2.sweeps.tables import make_console, status_table

    folder = _folder(args, Path(args.name).stem if args.name.endswith((".yaml", ".yml")) else args.name)
    storage = stored.storage_of(args, folder.name)
    if storage is not None:
        storage.refresh()
    if not folder.plan_file.exists() and not folder.run_names():
        from tdmpc2.sweeps.declaration import find_declaration

        existing = [entry.name for entry in Path(args.results).glob("*") if (entry / "plan.json").exists()]
        try:
            find_declaration(args.name)
        except UserError:
            raise unknown_name("sweep", args.name, existing, args.results) from None
        raise UserError(f"{folder.path}: not started; start it with `tdmpc2 sweep run {args.name}`")
    console = make_console()
    if not args.watch:
        console.print(status_table(view_sweep(folder), args.all))
        return 0
    try:
        pulling = nullcontext() if storage is None else storage.pulling()
        with pulling, Live(console=console, auto_refresh=False) as live:
            while True:
                start = time.process_time()
                views = view_sweep(folder)
                live.update(status_table(views, args.all, console.height), refresh=True)
                if all(view.state == "done" for view in views):
                    return 0
                time.sleep(max(WATCH_SECONDS, (time.process_time() - start) / WATCH_SHARE))
    except KeyboardInterrupt:
        return 0


def _folder(args: argparse.Namespace, name: str) -> SweepFolder:
    from tdmpc2.sweeps.folder import SweepFolder

    return SweepFolder(args.results, name)


def _load(args: argparse.Namespace) -> tuple[Declaration, tuple[PlannedRun, ...]]:
    """The declaration and its runs; a sweep that is declared no more is read from its results folder."""
    from tdmpc2.sweeps.declaration import Resources, find_declaration, load_declaration
    from tdmpc2.sweeps.planning import plan_runs

    try:
        file, name = find_declaration(args.name), None
    except UserError:
        file, name = _folder(args, args.name).declaration_file, args.name
        if not file.is_file():
            raise
    declaration = load_declaration(file, name)
    wanted = {field: getattr(args, field, None) for field in ("cpus", "gpus", "memory_gb")}
    changed = {field: value for field, value in wanted.items() if value is not None}
    groups = []
    for group in declaration.groups:
        resources = make_settings(Resources, dataclasses.asdict(group.resources) | changed, where="command line")
        groups.append(dataclasses.replace(group, resources=resources))
    declaration = dataclasses.replace(declaration, groups=tuple(groups))
    return declaration, plan_runs(declaration, args.results)


def _execute(
    args: argparse.Namespace,
    declaration: Declaration,
    runs: Sequence[PlannedRun],
    chosen: Sequence[PlannedRun],
    storage: SweepStorage | None = None,
) -> int:
    """Execute the chosen ones of a sweep's runs, after everything that can be checked has been."""
    from tdmpc2.sweeps.checks import check_datasets, check_settings
    from tdmpc2.sweeps.cost import speed_elsewhere
    from tdmpc2.sweeps.execution import SweepExecution
    from tdmpc2.sweeps.progress import view_run
    from tdmpc2.sweeps.tables import cost_lines
    from tdmpc2.training.runtime import SWEEP_COMMAND, StopRequest, stop_on_signals

    os.environ[SWEEP_COMMAND] = shlex.join(sys.orig_argv)
    require(args.retries >= 0, f"--retries: must not be negative (given: {args.retries})")
    require(args.executor == "ray" or args.address is None, "--address: only with --executor ray")
    folder = _folder(args, declaration.name)
    check_settings(chosen)
    check_datasets(chosen)
    with folder.claim():
        unfinished = [run for run in chosen if not _is_done(run)]
        print(
            f"{declaration.name}: {len(runs)} runs planned, {len(chosen) - len(unfinished)} of {len(chosen)} done, "
            f"{len(unfinished)} to run; results in {folder.path}"
        )
        views = [view_run(run.folder, run.entry) for run in chosen]
        print("\n".join(cost_lines(views, speed_elsewhere(chosen, args.results))), flush=True)
        stop = StopRequest()
        executor = _make_executor(args, stop, *([] if storage is None else [storage.training]))
        try:
            if unfinished:
                _wait_for_claims(unfinished)
                with stop_on_signals(stop):
                    notices = executor.check(unfinished)
                print("".join(f"{notice}\n" for notice in notices), end="", flush=True)
            folder.write_plan([run.entry for run in runs], declaration.text)
            driving = nullcontext() if storage is None else storage.driving()
            with driving, stop_on_signals(stop):  # anew: starting Ray replaces what listens for SIGTERM
                execution = SweepExecution(folder, unfinished, executor, stop, args.retries)
                outcomes = _watch(execution, chosen, args.executor)
        except KeyboardInterrupt:
            print("\nstopped at once; runs go on from their last checkpoints: " + _command_line(args, "run"))
            return EXIT_INTERRUPTED
        finally:
            executor.close()
    return _report(args, folder, outcomes)


def _is_done(run: PlannedRun) -> bool:
    status = run.folder.read_status()
    return status is not None and status.state == "done"


def _wait_for_claims(runs: Sequence[PlannedRun]) -> None:
    """Wait for processes of a killed driver to end; refuse runs that somebody else is on."""
    deadline = time.monotonic() + CLAIM_SECONDS
    claimed = list(runs)
    while claimed := [run for run in claimed if run.folder.is_claimed()]:
        if time.monotonic() > deadline:
            paths = ", ".join(str(run.folder.path) for run in claimed)
            raise UserError(f"another process is working on {paths}; wait for it or stop it first")
        time.sleep(0.5)


def _make_executor(args: argparse.Namespace, stop: StopRequest, train: TrainFunction | None = None) -> Executor:
    from tdmpc2.sweeps.executors import SerialExecutor, train_run

    if args.executor == "serial":
        return SerialExecutor(stop, train if train is not None else train_run)
    from tdmpc2.sweeps.ray_executor import RayExecutor

    if train is None:
        return RayExecutor(args.address)
    return RayExecutor(args.address, train, shared=False)  # it brings the runs' files there and back


def _watch(execution: SweepExecution, chosen: Sequence[PlannedRun], executor: str) -> dict[str, Outcome]:
    """Execute, showing how it goes."""
    from tdmpc2.sweeps.progress import view_run
    from tdmpc2.sweeps.tables import MOST_ROWS, SweepDisplay, make_console

    executed = {run.name for run in execution.runs}
    few = len(chosen) <= MOST_ROWS  # each has a row, which says what it waits for
    first_look = True
    # In the serial executor the run under way shows its own progress; a live table would be drawn over it.
    console = make_console()
    with SweepDisplay(console, live=console.is_terminal and executor != "serial") as display:

        def watch() -> None:
            nonlocal first_look
            names = execution.news()
            if first_look:
                views = [
                    execution.view(run.name) if run.name in executed else view_run(run.folder, run.entry)
                    for run in chosen
                ]
            else:
                views = [execution.view(name) for name in (executed if few else names)]
            first_look = False
            display.show(views, time.monotonic())

        return execution.execute(watch)


def _report(args: argparse.Namespace, folder: SweepFolder, outcomes: dict[str, Outcome]) -> int:
    """Say how it ended; the exit code."""
    failed = [outcome for outcome in outcomes.values() if outcome.end in ("failed", "killed", "refused")]
    unmet = [outcome for outcome in outcomes.values() if outcome.end == "unmet"]
    stopped = [outcome for outcome in outcomes.values() if outcome.end == "stopped"]
    if failed:
        print(f"{len(failed)} run(s) failed:", file=sys.stderr)
        for outcome in failed:
            log = folder.run(outcome.name).path / "run.log"
            print(f"  {outcome.name}: {outcome.message} (log: {log})", file=sys.stderr)
    if unmet:
        print(f"{len(unmet)} run(s) not begun:", file=sys.stderr)
        for outcome in unmet:
            print(f"  {outcome.name}: {outcome.message}", file=sys.stderr)
    if failed or unmet:
        print(f"Run them again with: {_command_line(args, 'retry')}", file=sys.stderr)
    if stopped:
        print(f"{len(stopped)} run(s) stopped and checkpointed; go on with: {_command_line(args, 'run')}")
        return EXIT_INTERRUPTED
    return EXIT_FAILED if failed or unmet else 0


def _command_line(args: argparse.Namespace, verb: str) -> str:
    """The command that goes on with the same sweep."""
    options = [] if args.results == "results" else ["--results", args.results]
    for option in ("executor", "address", "cpus", "gpus", "memory_gb"):
        value = getattr(args, option)
        if value is not None and value != "ray":
            options += [f"--{option.replace('_', '-')}", str(value)]
    if getattr(args, "skip_unavailable", False) and verb == "run":
        options.append("--skip-unavailable")
    return shlex.join(["tdmpc2", "sweep", verb, args.name, *options])
