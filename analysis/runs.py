"""What became of every run of a sweep: one row a run, planned or found, with the reason where something is amiss."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml

from analysis.tables import counted
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASK_SETS, expand_tasks
from tdmpc2.training.folder import RunFolder

ALGORITHM = "tdmpc2"
"""Name of this project's algorithm, as in the folders of published curves; pixel runs are `tdmpc2-pixels`."""
STATES = ("done", "running", "interrupted", "failed", "not started", "unknown")
"""States of a run; `unknown`: its folder has no readable status."""
OFFLINE_KINDS = ("multi", "offline")
"""Kinds of runs that learn from a data set alone, many tasks or one: they take no environment step, and their axis is
updates. Those of the other kinds (single, finetuned) act, and their axis is environment steps."""
SILENT_AFTER = 3600.0
"""Seconds without a sign of life after which a running run is remarked upon."""
IDENTITY = ("task", "tasks", "data", "algorithm", "kind", "size", "seed")
"""What tells runs apart, as `_identity` reads it."""

# The C parser reads a config ten times faster; pyyaml may have been built without it.
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# A config as runs write it: one setting a line, from the first column on.
_PLAIN_CONFIG = re.compile(r"(?:[a-z_]+:(?: .*)?\n)+")
_TELLING_SETTING = re.compile(r"^(?:task|obs|model_size|seed|label|data|checkpoint|kind):.*$", re.MULTILINE)


def axis_of(kind: str) -> str:
    """The column that is a kind's axis: `updates` for runs that learn from data alone, `env_steps` for all others."""
    return "updates" if kind in OFFLINE_KINDS else "env_steps"


def read_plan(folder: Path) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """The planned runs of a sweep by name, and what is wrong with the plan."""
    path = folder / "plan.json"
    if not path.exists():
        return {}, ["no plan.json: runs that never started cannot be known, only those found are reported"]
    try:
        runs = json.loads(path.read_text())["runs"]
        return {str(run["name"]): dict(run) for run in runs}, []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, [f"plan.json cannot be read ({_brief(error)}): only the runs found are reported"]


def read_failures(folder: Path) -> Mapping[str, str]:
    """Why runs were given up, by name: the sweep's own record, for runs that could not write it themselves."""
    failures, _ = _read_mapping(folder / "failures.json")
    return {str(name): str(reason) for name, reason in failures.items()}


def describe_run(
    name: str, path: Path, plan: Mapping[str, Mapping[str, Any]], failure: str, now: float
) -> dict[str, Any]:
    """One row of the table of runs.

    Args:
        name: the run's name.
        path: its folder, whether it is there or not.
        plan: as `read_plan` returns it.
        failure: why the sweep gave the run up, "" where it did not.
        now: unix time.

    Returns:
        The columns of `results.SweepResults.runs` but `task_set`, `evaluations` and `reason`; `tasks`, the tuple of
        the run's tasks; `reasons`, a list.
    """
    planned = plan.get(name)
    status: Mapping[str, Any] = {}
    reasons: list[str] = []
    if plan and planned is None:
        reasons.append("not in plan.json")
    identity = _identity({**_variant(name), **planned}) if planned else None
    if not path.is_dir():
        state = "failed" if failure else "not started"
        reasons.extend([failure] if failure else [])
    else:
        status, fault = _read_mapping(path / "status.json")
        state = str(status.get("state", "unknown"))
        if fault:
            reasons.append(fault)
        elif state not in STATES:
            reasons.append(f"status.json: unknown state {state!r}")
            state = "unknown"
        gone = state == "running" and _is_gone(path, status)
        if failure and (gone or state in ("interrupted", "unknown")):
            state = "failed"
        elif gone:
            state = "interrupted"
        reasons.extend(_state_reasons(state, status, gone, failure, now))
        config, fault = _read_config(path / "config.yaml")
        own = _identity(config) if not fault else None
        if own is None:
            reasons.append(fault or "config.yaml: task, model_size or seed missing or not valid")
        elif identity is not None and own["key"] != identity["key"]:
            reasons.append("config.yaml differs from plan.json: " + _difference(own["key"], identity["key"]))
        identity = own or identity

    known = identity or {"task": "", "tasks": (), "data": "", "algorithm": "", "kind": "", "size": None, "seed": None}
    counts = {f: _number(status.get(f), 0.0) for f in ("env_steps", "updates")}
    totals = {f: _total(status, planned, f) for f in ("env_steps", "updates")}
    axis = axis_of(known["kind"])
    return {
        "run": name,
        "planned": planned is not None,
        **{field: known[field] for field in IDENTITY},
        "state": state,
        "env_steps": int(counts["env_steps"]),
        "total_env_steps": totals["env_steps"],
        "updates": int(counts["updates"]),
        "total_updates": totals["updates"],
        "progress": min(1.0, counts[axis] / totals[axis]) if totals[axis] > 0 else np.nan,
        "seconds": _number(status.get("seconds"), np.nan),
        **{field: str(status.get(field, "")) for field in ("device", "hardware", "version")},
        "reasons": reasons,
    }


def name_task_sets(lists: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Names for people of the lists of tasks that agents learned together.

    Args:
        lists: the lists, in the order of the runs; equal ones name one task set.

    Returns:
        Name by list: `mt30` and the like for the registry's task sets, else the number of tasks, e.g. `5 tasks`, and
        `5 tasks (2)` where a sweep has a second such list.
    """
    known = {frozenset(tasks): name for name, tasks in TASK_SETS.items()}
    names: dict[tuple[str, ...], str] = {}
    for tasks in dict.fromkeys(lists):
        name = known.get(frozenset(tasks), counted(len(tasks), "task")) if len(tasks) > 1 else "1 task"
        sharing = 1 + sum(other == name or other.startswith(f"{name} (") for other in names.values())
        names[tasks] = name if sharing == 1 or len(tasks) == 1 else f"{name} ({sharing})"
    return names


def _identity(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What tells a run apart, from a config or a plan's entry; None where a part is missing or not valid."""
    try:
        tasks = expand_tasks(str(settings["task"]))
        size, seed = int(settings["model_size"]), int(settings["seed"])
    except (KeyError, TypeError, ValueError, UserError):
        return None
    pixels = "-pixels" if settings.get("obs") == "rgb" else ""
    label = f" {settings['label']}" if settings.get("label") else ""
    return {
        "task": str(settings["task"]),
        "tasks": tasks,
        "data": PurePath(str(settings.get("data") or "")).name,
        "algorithm": f"{ALGORITHM}{pixels}{label}",
        "kind": _kind(settings, tasks),
        "size": size,
        "seed": seed,
        "key": {"task": tasks, "model_size": size, "seed": seed},
    }


def _kind(settings: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """The kind of a run; a config tells it by `data` and `checkpoint`, a plan's entry by `kind`, if at all."""
    if settings.get("checkpoint") or settings.get("kind") == "finetune":
        return "finetuned"
    if len(tasks) > 1:
        return "multi"
    return "offline" if settings.get("data") or settings.get("kind") == "offline" else "single"


def _variant(name: str) -> dict[str, str]:
    """Settings that a plan's entry lacks, from the run's name, TASK[-rgb]-SIZEM[-finetuned][-LABEL]-seedN."""
    match = re.search(r"(-rgb)?-\d+M(-finetuned)?(?:-(?P<label>.+))?-seed\d+$", name)
    if match is None:
        return {}
    return {
        "obs": "rgb" if match[1] else "state",
        "checkpoint": "as the name says" if match[2] else "",
        "label": match["label"] or "",
    }


def _total(status: Mapping[str, Any], planned: Mapping[str, Any] | None, field: str) -> float:
    """A run's budget by its status, else by the plan; NaN where neither knows, or it is 0: another axis counts."""
    for value in (status.get(f"total_{field}"), (planned or {}).get(field)):
        number = _number(value, 0.0)
        if number > 0:
            return number
    return np.nan


def _difference(own: Mapping[str, Any], planned: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {own[key]!r}, planned {planned[key]!r}" for key in own if own[key] != planned[key])


def _is_gone(path: Path, status: Mapping[str, Any]) -> bool:
    """Whether the process of a run that calls itself running has ended; only known on the machine it ran on."""
    return status.get("host") == socket.gethostname() and not RunFolder(path).is_claimed()


def _state_reasons(state: str, status: Mapping[str, Any], gone: bool, failure: str, now: float) -> list[str]:
    """Why a run is in its state, where that needs a reason."""
    message = str(status.get("message") or "").strip()
    if state == "failed":
        return [failure or message or "no reason recorded"]
    if gone:
        return ["its process ended without a word, perhaps killed"]
    if state == "interrupted":
        return [message or "no reason recorded"]
    silent = now - _number(status.get("updated"), np.nan)
    if state == "running" and silent > SILENT_AFTER:
        return [f"no sign of life for {silent / 3600:.1f} h; it may have been killed"]
    return []


def _read_mapping(path: Path) -> tuple[Mapping[str, Any], str]:
    """A YAML or JSON mapping, and what is wrong with it ("" if nothing)."""
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_YAML_LOADER)
    except FileNotFoundError:
        return {}, f"{path.name}: missing"
    except (OSError, ValueError, yaml.YAMLError) as error:
        return {}, f"{path.name}: cannot be read ({_brief(error)})"
    return (values, "") if isinstance(values, dict) else ({}, f"{path.name}: not a mapping of names to values")


def _read_config(path: Path) -> tuple[Mapping[str, Any], str]:
    """As `_read_mapping`, of a run's config: of one written in the plain form, only the settings that tell runs apart.

    Parsing all of a config's settings takes longer than everything else that is read of a small run.
    """
    try:
        text = path.read_text()
        if _PLAIN_CONFIG.fullmatch(text):
            return dict(_parse_setting(line) for line in _TELLING_SETTING.findall(text)), ""
    except (OSError, ValueError, yaml.YAMLError):
        pass  # read whole below, which says what is wrong with it
    return _read_mapping(path)


@lru_cache(maxsize=4096)
def _parse_setting(line: str) -> tuple[str, Any]:
    """Name and value of a line of YAML; many runs share most of their lines."""
    ((name, value),) = yaml.load(line, Loader=_YAML_LOADER).items()
    return str(name), value


def _brief(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _number(value: Any, default: float) -> float:
    """A finite number, or the default for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return float(value) if np.isfinite(value) else default
