"""Runs a small sweep again and again under faults, and tells what was seen."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from fault_ground import NAME, ONE_RUN, SWEEP, Ground
from fault_kinds import KINDS, TURN
from fault_processes import Processes
from fault_round import LOOK_SECONDS, Round, Schedule, Seen

from tdmpc2.errors import UserError, require, unknown_name
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.training.runtime import describe_hardware


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; the exit code is 1 where anything was wrong, 2 where an option is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--faults", type=int, default=100, metavar="N", help="faults to inject, in as many sweeps as need be"
    )
    parser.add_argument(
        "--per-sweep", type=int, default=25, metavar="N", help="faults after which a sweep is left alone"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="inject nothing after so many")
    parser.add_argument("--seed", type=int, default=1, help="of which fault hits whom, and when")
    parser.add_argument(
        "--kinds", nargs="+", default=TURN, metavar="KIND", help="kinds of fault, which come in turns (default: all)"
    )
    parser.add_argument("--one-run", action="store_true", help="a sweep of a single run, for a quick look")
    parser.add_argument("--out", default="results/faults", metavar="DIR", help="folder of the record")
    options = parser.parse_args(arguments)
    try:
        require(options.faults >= 1, f"--faults: at least 1 (given: {options.faults})")
        require(options.per_sweep >= 1, f"--per-sweep: at least 1 (given: {options.per_sweep})")
        for kind in options.kinds:
            if kind not in KINDS:
                raise unknown_name("kind of fault", kind, KINDS, "--kinds")
    except UserError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 2
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    began = time.monotonic()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "faults.jsonl"
    log.write_text("")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    ground, processes = Ground(ONE_RUN if options.one_run else SWEEP), Processes()
    sweeps: list[Seen] = []
    try:
        say(f"in {ground.folder}; every fault is written to {log}")
        if not ground.small_disk:
            say("no small disk could be mounted here, so none is filled up")
        undisturbed, seconds = _run_undisturbed(ground, processes)
        say(f"undisturbed: {len(undisturbed.run_names())} runs in {seconds:.0f} s")
        schedule = Schedule(random.Random(options.seed), options.kinds)
        while (made := sum(len(seen.faults) for seen in sweeps)) < options.faults:
            if time.monotonic() - began > options.seconds or any(seen.wrong for seen in sweeps):
                break
            most = min(options.per_sweep, options.faults - made)
            place = f"sweep-{len(sweeps) + 1}"
            disturbed = Round(ground, processes, place, undisturbed, options.seed, schedule, log)
            sweeps.append(disturbed.run(most, began + options.seconds))
            say(_line(sweeps[-1]))
    except KeyboardInterrupt:
        processes.end()
        ground.remove()
        return 130
    except Exception:
        say(f"all was left as it is in {ground.folder}")
        raise
    finally:
        processes.end()
    text = _record(sweeps, options.seed, time.monotonic() - began, seconds)
    (out / "faults.md").write_text(text)
    print(text)
    if any(seen.wrong for seen in sweeps):
        say(f"something is wrong; all was left as it is in {ground.folder}")
        return 1
    ground.remove()
    return 0


def _run_undisturbed(ground: Ground, processes: Processes) -> tuple[SweepFolder, float]:
    """The sweep as it goes when nobody disturbs it, one run after another, and the seconds that it took."""
    began = time.monotonic()
    driver = ground.start("undisturbed", executor="serial")
    processes.add(driver.pid)
    while (code := driver.poll()) is None:
        processes.look()
        time.sleep(LOOK_SECONDS)
    if code != 0:
        raise RuntimeError(f"the undisturbed sweep ended with {code}: {ground.output(driver)[-2000:]}")
    return SweepFolder(ground.sweep_path("undisturbed").parent, NAME), time.monotonic() - began


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _line(seen: Seen) -> str:
    """One sweep in a line."""
    what = (
        f"{seen.sweep}: {len(seen.faults)} faults, {seen.drivers} drivers, {seen.attempts} attempts at "
        f"{seen.runs} runs, {seen.seconds:.0f} s: "
    )
    return what + ("; ".join(seen.wrong) or "every run done once, equal to the undisturbed ones, nothing left behind")


def _record(sweeps: Sequence[Seen], seed: int, seconds: float, undisturbed: float) -> str:
    """What was seen, in Markdown."""
    faults = [fault for seen in sweeps for fault in seen.faults]
    table = [
        "| fault | how often | driver went on | driver ended before the next fault, by its exit code |",
        "|---|---|---|---|",
    ]
    for kind in KINDS:
        ends = Counter(fault.driver_ended or 0 for fault in faults if fault.kind == kind)
        went_on = ends.pop(0, 0)  # on, or to the sweep's end
        codes = ", ".join(f"{count} x {code}" for code, count in sorted(ends.items()))
        table.append(f"| {kind} | {went_on + ends.total()} | {went_on} | {codes} |")
    lines = "\n".join(f"* {_line(seen)}" for seen in sweeps)
    totals = (
        f"{len(faults)} faults (seed {seed}) in {len(sweeps)} sweeps, {seconds / 60:.0f} min; "
        f"{sum(seen.drivers for seen in sweeps)} drivers, {sum(seen.attempts for seen in sweeps)} attempts at "
        f"{sum(seen.runs for seen in sweeps)} runs. Undisturbed and without Ray, the sweep took {undisturbed:.0f} s. "
        f"{describe_hardware()}."
    )
    refusals = [seconds for seen in sweeps for seconds in seen.refusals]
    if refusals:
        totals += f" A second driver was refused {len(refusals)} times, after {min(refusals)} to {max(refusals)} s."
    return "\n\n".join([totals, "\n".join(table), lines]) + "\n"


def say(text: str) -> None:
    """A line on the terminal, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
