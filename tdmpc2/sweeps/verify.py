"""`tdmpc2 sweep verify`: whether a sweep's records still say what they said when they were written.

It finds what was damaged, lost or changed by accident. Who wants to deceive can rewrite the hashes too.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tdmpc2.config import NOT_IDENTITY, Config
from tdmpc2.errors import UserError
from tdmpc2.sweeps.archive import read_left_out
from tdmpc2.sweeps.folder import SweepFolder
from tdmpc2.sweeps.verify_report import find_reports, verify_report
from tdmpc2.tasks import get_task
from tdmpc2.training.folder import RunFolder, Status

MOST_SHOWN = 10
"""Lines that are printed of one check's faults, or notices."""


@dataclass(frozen=True)
class Check:
    """What was looked at, and what is wrong with it."""

    subject: str
    wrong: tuple[str, ...] = ()
    """What contradicts another record or is gone, each with the file."""
    notices: tuple[str, ...] = ()
    """What a person should know, and need not be wrong."""

    def lines(self) -> list[str]:
        """For people; the first line says ok or WRONG."""
        lines = [f"{'WRONG' if self.wrong else 'ok':<6} {self.subject}"]
        for word, texts in (("", self.wrong), ("note: ", self.notices)):
            lines += [f"       {word}{text}" for text in texts[:MOST_SHOWN]]
            more = len(texts) - MOST_SHOWN
            lines += [f"       {word}and {more} more like these"] if more > 0 else []
        return lines


@dataclass(frozen=True)
class _Run:
    """A run as it stands, as far as it can be read."""

    name: str
    folder: RunFolder
    status: Status | None
    config: Config | None
    fault: str
    """Why its settings cannot be read."""

    @property
    def done(self) -> bool:
        return self.status is not None and self.status.state == "done"


def verify_sweep(folder: SweepFolder, checkpoints: bool = False) -> list[Check]:
    """Check a sweep's folder, and the reports that were made from it.

    Args:
        folder: the sweep's folder.
        checkpoints: whether every checkpoint is read whole, which takes long.

    Raises:
        UserError: there is no such sweep.
    """
    if not folder.path.is_dir():
        raise UserError(f"{folder.path}: no such sweep folder")
    runs = [_read_run(folder.run(name)) for name in folder.run_names()]
    left_out = read_left_out(folder.path)
    checks = [
        _plan(folder, runs),
        _settings(runs),
        _each("logs", "eval.csv and train.csv", runs, _logs),
        _each("replay", "replay stores", runs, lambda run: _replay(run, left_out)),
        _datasets(folder, left_out),
        _provenance(runs),
    ]
    if checkpoints:
        checks.append(_checkpoints(runs, left_out))
    reports = find_reports(folder.path)
    if not reports:
        checks.append(Check("report: none was made", notices=("`make report SWEEP=" + folder.name + "` makes one",)))
    for report in reports:
        wrong, notices = verify_report(report, left_out)
        checks.append(Check(f"report: {report.parent}", tuple(wrong), tuple(notices)))
    return checks


def _read_run(folder: RunFolder) -> _Run:
    try:
        config, fault = folder.read_config(), ""
    except UserError as error:
        config, fault = None, str(error)
    return _Run(folder.path.name, folder, folder.read_status(), config, fault)


def _each(subject: str, what: str, runs: Sequence[_Run], check: Callable[[_Run], list[str]]) -> Check:
    """One check of every run."""
    wrong = [fault for run in runs for fault in check(run)]
    return Check(f"{subject}: {what} of {len(runs)} runs", tuple(wrong))


def _plan(folder: SweepFolder, runs: Sequence[_Run]) -> Check:
    try:
        planned = [entry.name for entry in folder.read_plan()]
    except UserError as error:
        return Check("plan: plan.json", (str(error),))
    states = {run.name: "not begun" if run.status is None else run.status.state for run in runs}
    open_runs = [f"{name} ({states.get(name, 'not begun')})" for name in planned if states.get(name) != "done"]
    spare = [name for name in states if name not in planned]
    notices = [f"not done: {', '.join(open_runs)}"] if open_runs else []
    notices += [f"in no plan: {', '.join(spare)}"] if spare else []
    told = f"plan: {len(planned)} runs planned, {len(planned) - len(open_runs)} of them done"
    unplanned = not folder.plan_file.exists() and folder.declaration_file.exists()  # runs made by hand have neither
    return Check(told, (f"{folder.plan_file}: missing",) if unplanned else (), tuple(notices))


def _settings(runs: Sequence[_Run]) -> Check:
    wrong = []
    for run in runs:
        if run.config is None:
            wrong.append(run.fault)
            continue
        if run.config.run_name != run.name:
            wrong.append(f"{run.folder.path}: its settings are those of a run named {run.config.run_name}")
        if run.status is None:
            if run.folder.status_file.exists():
                wrong.append(f"{run.folder.status_file}: damaged")
            continue
        # A newer version may know more settings: what the file itself holds was hashed, or what it means now.
        values = yaml.safe_load(run.folder.config_file.read_text())
        identity = {name: value for name, value in values.items() if name not in NOT_IDENTITY}
        held = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        if run.status.digest not in (held, run.config.digest()):
            wrong.append(
                f"{run.folder.config_file}: these are not the settings that the run was made with (their hash is "
                f"{held}, status.json says {run.status.digest})"
            )
    return Check(f"settings: config.yaml of {len(runs)} runs against status.json", tuple(wrong))


# --- logs


def _logs(run: _Run) -> list[str]:
    if run.status is None or run.config is None:
        return []
    wrong = []
    tables = {}
    for path in (run.folder.eval_csv, run.folder.train_csv):
        if path.is_file():
            rows, fault = _read_rows(path, run.config.offline, run.done)
            wrong += [f"{path}: {fault}"] if fault else []
            tables[path.name] = rows
        elif run.done:
            wrong.append(f"{path}: missing")
    return wrong if wrong or not run.done else _ends(run, run.config, run.status, tables)


def _read_rows(path: Path, offline: bool, done: bool) -> tuple[list[dict[str, str]], str]:
    """A log's rows, and the first thing that is wrong with it ("" if nothing)."""
    axis = "updates" if offline else "env_steps"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return [], f"cannot be read ({type(error).__name__})"
    if text and not text.endswith("\n") and not done:
        text = text[: text.rfind("\n") + 1]  # the row that a killed process was writing
    lines = list(csv.reader(text.splitlines()))
    header = lines[0] if lines else []
    if axis not in header:
        return [], f"no column {axis}"
    rows: list[dict[str, str]] = []
    last, seen = -1, set()
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            return rows, f"line {number} has {len(line)} fields, the first line {len(header)}"
        row = dict(zip(header, line, strict=True))
        rows.append(row)
        for column, value in row.items():
            if column != "task" and value and not _is_number(value):
                return rows, f"line {number}: {column} is {value!r}, not a number"
        if not row[axis].isdigit():
            return rows, f"line {number}: {axis} is {row[axis]!r}, not a whole number"
        step = int(row[axis])
        if step < last:
            return rows, f"line {number}: {axis} goes back from {last:,} to {step:,}"
        key = (step, row.get("task"), row.get("episode"))
        if path.name == "eval.csv" and key in seen:
            return rows, f"line {number}: {row.get('task')} at {step:,} {axis} stands there twice"
        last = step
        seen.add(key)
    return rows, ""


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _ends(run: _Run, config: Config, status: Status, tables: dict[str, list[dict[str, str]]]) -> list[str]:
    """What is wrong with the end of a run that is done."""
    repeat = get_task(config.tasks[0]).action_repeat
    axis, budget = ("updates", config.total_updates) if config.offline else ("env_steps", config.agent_steps * repeat)
    came_to = int(getattr(status, axis))
    wrong = []
    if came_to < budget:
        wrong.append(f"{run.folder.status_file}: done at {came_to:,} {axis}, but its settings ask for {budget:,}")
    evaluations, training = tables["eval.csv"], tables["train.csv"]
    ends = int(evaluations[-1][axis]) if evaluations else came_to if config.offline else 0
    if ends != came_to:
        wrong.append(f"{run.folder.eval_csv}: ends at {ends:,} {axis}, the run at {came_to:,}")
    beyond = int(training[-1][axis]) if training else 0
    if beyond > came_to or (config.offline and beyond != came_to):
        wrong.append(f"{run.folder.train_csv}: ends at {beyond:,} {axis}, the run at {came_to:,}")
    return wrong


# --- replay and data sets


def _replay(run: _Run, left_out: frozenset[str]) -> list[str]:
    """Whether a done run's replay holds the episodes of its train.csv, and no other."""
    if run.config is None or run.config.offline or not run.done or "replay" in left_out:
        return []
    from tdmpc2.data.episodes import EpisodeTable
    from tdmpc2.data.layout import EPISODE_LOG, read_layout

    if not run.folder.replay.is_dir():
        return []  # it may be deleted when nothing learns from it any more; data sets are checked for it
    try:
        capacity = read_layout(run.folder.replay, {}).capacity
        table = EpisodeTable(run.folder.replay / EPISODE_LOG, capacity, horizon=1, writable=False)
    except UserError as error:
        return [str(error)]
    rows, fault = _read_rows(run.folder.train_csv, offline=False, done=True)
    if fault or any(not row.get("episode_length", "").isdigit() for row in rows):
        return []  # told with the logs
    steps = sum(int(row["episode_length"]) for row in rows)
    held = (table.count, table.end - table.count)
    if held == (len(rows), steps):
        return []
    return [
        f"{run.folder.replay}: {held[0]:,} episodes of {held[1]:,} agent steps in all, train.csv has {len(rows):,} of "
        f"{steps:,}"
    ]


def _datasets(folder: SweepFolder, left_out: frozenset[str]) -> Check:
    from tdmpc2.data.dataset import MANIFEST, Dataset

    wrong, notices = [], []
    manifests = sorted((folder.path / "datasets").glob(f"*/{MANIFEST}"))
    for manifest in manifests:
        try:
            dataset = Dataset.read(manifest.parent)
            if "replay" in left_out:
                notices.append(
                    f"{manifest}: its replay stores were left out of the archive that this was unpacked from"
                )
            else:
                dataset.check()
        except UserError as error:
            wrong.append(str(error))
    return Check(f"data sets: {len(manifests)} built by this sweep", tuple(wrong), tuple(notices))


# --- provenance and checkpoints


def _provenance(runs: Sequence[_Run]) -> Check:
    from tdmpc2.training.provenance import file_hash, read_provenance

    wrong, without, changed, killed = [], 0, 0, 0
    codes = set()
    for run in runs:
        try:
            record = read_provenance(run.folder.path)
        except UserError as error:
            wrong.append(str(error))
            continue
        if record is None or not record["processes"]:
            without += 1
            continue
        killed += sum(process["end"] == "killed" for process in record["processes"])
        last = record["processes"][-1]
        code = record["code"][last["code"]]
        codes.add(code["source_sha256"])
        changed += bool(code.get("changed"))
        for name, value in last.get("files", {}).items() if run.done else ():
            path = run.folder.path / name
            if not path.is_file():
                wrong.append(f"{path}: gone")
            elif file_hash(path) != value:
                wrong.append(f"{path}: has changed since the run was done")
        for each in record["code"].values():
            path = run.folder.path / each["diff"] if each.get("diff") else None
            if path is not None and (not path.is_file() or file_hash(path)[:12] not in path.name):
                wrong.append(f"{path}: the uncommitted changes that the run was made with are gone, or others")
    notices = [f"{without} runs have no record of where they come from (made by an older version)"] if without else []
    notices += [f"{changed} runs were made with uncommitted changes, kept beside them"] if changed else []
    notices += [f"the runs were made by {len(codes)} different versions of the code"] if len(codes) > 1 else []
    notices += [f"{killed} of the runs' processes were killed"] if killed else []
    return Check(f"provenance: hashes and records of {len(runs) - without} runs", tuple(wrong), tuple(notices))


def _checkpoints(runs: Sequence[_Run], left_out: frozenset[str]) -> Check:
    from tdmpc2.agent.checkpoints import read

    wrong, found = [], 0
    for run in runs:
        paths = [path for path in (run.folder.checkpoint, run.folder.previous_checkpoint) if path.exists()]
        if run.done and run.folder.checkpoint not in paths and "checkpoint" not in left_out:
            wrong.append(f"{run.folder.checkpoint}: missing")
        for path in paths:
            found += 1
            try:
                state: dict[str, Any] = read(path)
            except UserError as error:
                wrong.append(str(error))
                continue
            logs = {"train": run.folder.train_csv, "eval": run.folder.eval_csv}
            for name, log in logs.items():
                length = state.get("logs", {}).get(name, 0)
                if not log.is_file() or log.stat().st_size < length:
                    wrong.append(f"{log}: shorter than {path.name} counts ({length:,} bytes)")
    return Check(f"checkpoints: {found} read whole", tuple(wrong))
