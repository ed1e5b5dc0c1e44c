"""Where a run's numbers come from: the code, packages, machine and command of every process that worked on it.

A run's folder holds `provenance.json`, to which each process adds itself when it begins and how it ended when it ends.
What several processes share (code, packages, machine) stands there once, under a short hash. Uncommitted changes stand
in a file beside it, `uncommitted-HASH.diff`. What could not be found out is named under `unknown`; a record that cannot
be written never stops a run, and says so on stderr.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

import tdmpc2
from tdmpc2.errors import UserError, require
from tdmpc2.training.folder import write_text
from tdmpc2.training.runtime import SWEEP_COMMAND, available_cores

PROVENANCE = "provenance.json"
VERSION = 1
RUNNING = "running"
KILLED = "killed"
LOGGED_FILES = ("config.yaml", "eval.csv", "train.csv")
"""Files whose hashes are kept when a run is done: nothing writes them after that."""
DIFF_BYTES = 1 << 20
"""Most bytes of uncommitted changes that are kept."""
NAMES_KEPT = 50
"""Most untracked files that are kept, or named."""
GIT_SECONDS = 5.0
ENVIRONMENT = (
    "OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS MUJOCO_GL PYOPENGL_PLATFORM MUJOCO_EGL_DEVICE_ID "
    "CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUBLAS_WORKSPACE_CONFIG PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF "
    "PYTHONHASHSEED RANK WORLD_SIZE SLURM_JOB_ID SLURM_ARRAY_TASK_ID"
).split()
"""The only environment variables that are recorded: others may hold secrets."""
_SECRET_NAME = r"[\w.-]*(?:token|secret|passw|credential|signature|api[_-]?key|access[_-]?key)[\w.-]*"
_NVIDIA = Path("/proc/driver/nvidia")


def begin_process(folder: Path) -> None:
    """Add this process to a run's record; one before it that never told how it ended is marked as killed.

    Args:
        folder: the run's folder, claimed by this process.
    """
    with _never_stopping_the_run(folder):
        record = _read_or_set_aside(folder)
        for process in record["processes"]:
            if process["end"] == RUNNING:  # its claim on the folder is gone, so it is
                process["end"] = KILLED
        code, diff = _code()
        if diff:
            file = folder / code["diff"]
            if not file.exists():
                write_text(file, diff)
        process = {
            "started": _now(),
            "ended": None,
            "end": RUNNING,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "command": without_secrets(sys.orig_argv),
            "folder": os.getcwd(),
            "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        }
        if SWEEP_COMMAND in os.environ:
            process["sweep_command"] = without_secrets(shlex.split(os.environ[SWEEP_COMMAND]))
        for name, facts in (("code", code), ("packages", _packages()), ("machine", _machine())):
            key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
            record[name][key] = facts
            process[name] = key
        record["processes"].append(process)
        _write(folder, record)


def end_process(folder: Path, end: str) -> None:
    """Record how this process's work on a run ended.

    Args:
        folder: the run's folder, still claimed.
        end: done, failed or interrupted. Where the run is done, hashes of its logs are kept.
    """
    with _never_stopping_the_run(folder):
        record = read_provenance(folder)
        require(record is not None, f"{folder / PROVENANCE} is gone")
        assert record is not None
        me = (socket.gethostname(), os.getpid(), RUNNING)
        mine = [each for each in record["processes"] if (each["host"], each["pid"], each["end"]) == me]
        require(len(mine) > 0, f"{folder / PROVENANCE} does not hold this process")
        process = mine[-1]
        process["ended"], process["end"] = _now(), end
        if end == "done":
            paths = [folder / name for name in LOGGED_FILES]
            process["files"] = {path.name: file_hash(path) for path in paths if path.is_file()}
        _write(folder, record)


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """A run's record; None where there is none.

    Returns:
        `processes`, in the order in which they worked on the run, and what they name by hash: `code`, `packages` and
        `machine`.

    Raises:
        UserError: it is damaged; names the file.
    """
    file = folder / PROVENANCE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        version = record["version"]
        require(version == VERSION, f"{file}: format version {version}, this program reads {VERSION}")
        for process in record["processes"]:
            for name in ("started", "end", "host", "pid", "command"):
                process[name]
            for name in ("code", "packages", "machine"):
                record[name][process[name]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error})") from None
    return dict(record)


def without_secrets(arguments: Sequence[str]) -> str:
    """A command line in one line, with what looks like a secret replaced by `***`.

    That is a value whose name holds token, secret, password, signature, credential or key, as in `token=...` or
    `--token ...`, and the user and password in a URL.
    """
    shown: list[str] = []
    for argument in arguments:
        hidden = re.sub(r"(?<=://)[^/@\s]+@", "***@", argument)
        hidden = re.sub(rf"(?i)({_SECRET_NAME})=[^&\s]+", r"\1=***", hidden)
        if shown and re.fullmatch(rf"(?i)--?{_SECRET_NAME}", shown[-1]) and not argument.startswith("-"):
            hidden = "***"
        shown.append(hidden)
    return " ".join(part if "***" in part else shlex.quote(part) for part in shown)


def file_hash(path: Path) -> str:
    """sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _never_stopping_the_run(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # days of training are worth more than the record of them
        reason = str(error) or type(error).__name__
        print(f"{folder / PROVENANCE}: not recorded ({type(error).__name__}: {reason})", file=sys.stderr, flush=True)


def _read_or_set_aside(folder: Path) -> dict[str, Any]:
    """The record so far; a new one where there is none. A damaged one is kept under another name."""
    empty: dict[str, Any] = {"version": VERSION, "processes": [], "code": {}, "packages": {}, "machine": {}}
    try:
        return read_provenance(folder) or empty
    except UserError as error:
        aside = folder / f"provenance.damaged-{time.time_ns()}.json"
        os.rename(folder / PROVENANCE, aside)
        print(f"{error}; kept as {aside.name}, and begun anew", file=sys.stderr, flush=True)
        return empty | {"earlier": aside.name}


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    write_text(folder / PROVENANCE, json.dumps(record, indent=1) + "\n")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# --- the code


@functools.cache  # what a process has loaded it keeps, whatever is edited meanwhile
def _code() -> tuple[dict[str, Any], str]:
    """Version, hash and commit of this package, and its uncommitted changes."""
    package = Path(tdmpc2.__file__).resolve().parent
    facts: dict[str, Any] = {"tdmpc2": tdmpc2.__version__, "source_sha256": source_hash(package)}
    return describe_checkout(package, facts)


def source_hash(package: Path) -> str:
    """sha256 over the names and contents of a package's Python and CSV files: tells copies apart where git cannot."""
    total = hashlib.sha256()
    for path in sorted(path for ending in ("py", "csv") for path in package.rglob(f"*.{ending}")):
        total.update(f"{path.relative_to(package).as_posix()}\0{file_hash(path)}\n".encode())
    return total.hexdigest()


def describe_checkout(package: Path, facts: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """The commit that a package was checked out at, and what was changed since.

    Args:
        package: the package's folder.
        facts: what is known already.

    Returns:
        `facts` and, as far as git tells, commit, committed, changed, diff (name of the file to keep the changes in),
        diff_cut (whether that is not all of them), untracked (Python files outside of the package); or `unknown`.
        And the changes: those of the package first, its untracked Python files among them.
    """
    facts = dict(facts or {})
    try:
        _git(package, "ls-files", "--error-unmatch", "--", "__init__.py")
        facts["commit"], facts["committed"] = _git(package, "log", "-1", "--format=%H %cI").split()
        root = Path(_git(package, "rev-parse", "--show-toplevel").strip())
        outside = ("--", ":/", ":(exclude).")
        diff = _git(package, *_DIFF, "HEAD", "--", ".")
        others = _git(package, "ls-files", "-z", "--others", "--exclude-standard", "--full-name", "--", ":/")
        untracked = [name for name in others.split("\0") if name.endswith(".py")]
        inside = [name for name in untracked if (root / name).is_relative_to(package)]
        for name in inside[:NAMES_KEPT]:
            diff += _git(root, *_DIFF, "--no-index", "--", os.devnull, name, differs=1)
        diff += _git(package, *_DIFF, "HEAD", *outside)
    except _GitError as error:
        facts["unknown"] = [f"commit: {error}"]
        facts |= _installed_from()
        return facts, ""
    facts["changed"] = bool(diff)
    facts["untracked"] = [name for name in untracked if name not in inside][:NAMES_KEPT]
    if not diff:
        return facts, ""
    kept = diff.encode()[:DIFF_BYTES].decode(errors="ignore")
    facts["diff"] = f"uncommitted-{hashlib.sha256(kept.encode()).hexdigest()[:12]}.diff"
    facts["diff_cut"] = len(kept) < len(diff) or len(inside) > NAMES_KEPT
    return facts, kept


class _GitError(Exception):
    """git is not there, or did not answer."""


_DIFF = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-relative")


def _git(folder: Path, *arguments: str, differs: int = 0) -> str:
    """What a git command says, its first `DIFF_BYTES` and a little; nothing of the checkout is written or run.

    Raises:
        _GitError: it failed, is missing, or took too long.
    """
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "-c", "core.quotepath=false", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                env=environment,
                timeout=GIT_SECONDS,
                check=False,
            )
            output.seek(0)
            said = output.read(DIFF_BYTES + 64).decode(errors="replace")
    except subprocess.TimeoutExpired:
        raise _GitError(f"git {arguments[0]} took more than {GIT_SECONDS:g} s") from None
    except OSError as error:
        raise _GitError(f"git cannot be run ({error.strerror})") from None
    if done.returncode not in (0, differs):
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _GitError(f"git {arguments[0]}: {lines[0] if lines else f'exit code {done.returncode}'}")
    return said


def _installed_from() -> dict[str, str]:
    """The commit that pip installed the package from, where it did so; never the address, which may hold a password."""
    try:
        told = importlib.metadata.distribution("tdmpc2-workbench").read_text("direct_url.json")
        return {"installed_commit": str(json.loads(told or "{}")["vcs_info"]["commit_id"])}
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError):
        return {}


# --- packages and machine


@functools.cache
def _packages() -> dict[str, Any]:
    """Python's version, and every installed distribution as name==version, from the names of their folders.

    Opening the metadata of some two hundred of them would take half a second.
    """
    found: dict[str, str] = {}
    for folder in map(Path, sys.path):
        names = [entry.stem for entry in folder.glob("*.*-info")] if folder.is_dir() else []
        for stem in names:
            name, _, version = stem.partition("-")
            found.setdefault(name.lower().replace("_", "-"), version.partition("-py")[0] or "unknown")
    listed = [f"{name}=={version}" for name, version in sorted(found.items())]
    return {"python": sys.version.split()[0], "implementation": platform.python_implementation(), "installed": listed}


@functools.cache
def _machine() -> dict[str, Any]:
    """Processor, cores, memory, GPUs with their driver, and the operating system."""
    from torch.version import cuda  # training has imported torch by now

    unknown: list[str] = []
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if "model name" in line), processor)
    except OSError as error:
        unknown.append(f"processor's model: {error.strerror}")
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "processor": processor,
        "cores": psutil.cpu_count() or 0,
        "cores_allowed": available_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "torch_cuda": cuda,
    }
    try:
        facts |= describe_gpus(_NVIDIA)
    except OSError as error:
        unknown.append(f"GPUs: {error.strerror}")
    return facts | ({"unknown": unknown} if unknown else {})


def describe_gpus(driver: Path) -> dict[str, Any]:
    """GPUs as NVIDIA's driver lists them, without starting anything on them.

    Args:
        driver: the driver's folder below /proc; none where there is no such GPU.

    Returns:
        `gpus`, their models, and `gpu_driver`, its version line ("" without a driver).

    Raises:
        OSError: the driver's files cannot be read.
    """
    version = driver / "version"
    if not version.is_file():
        return {"gpus": [], "gpu_driver": ""}
    told = [path.read_text() for path in sorted(driver.glob("gpus/*/information"))]
    models = [match[1].strip() for text in told if (match := re.search(r"^Model:(.*)$", text, re.MULTILINE))]
    lines = version.read_text().splitlines()
    return {"gpus": models, "gpu_driver": lines[0].partition(":")[2].strip() if lines else ""}
