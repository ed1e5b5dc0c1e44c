"""Runs `tdmpc2` command lines in processes of their own that signal themselves at an exact point.

Run as a script, this imports everything heavy once and then forks a process for each request on its standard input:
starting one takes milliseconds, and a run can be killed a dozen times in a test.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Kill:
    """A signal that a process sends to itself when a function is called for the n-th time."""

    function: str
    """`module:Class.method` or `module:function`."""
    call: int = 1
    after: bool = False
    """Whether it sends it after the call, and not before."""
    signal: str = "SIGKILL"


class Launcher:
    """Starts command lines, one after another.

    Args:
        episode_length: agent steps that episodes of all tasks have in the processes.
        folder: folder of the processes' output.
    """

    def __init__(self, episode_length: int, folder: Path) -> None:
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # none but the main one, so that it can fork
        self._output = folder / "output.txt"
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(episode_length), str(self._output)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | threads,
            text=True,
        )

    def __call__(self, arguments: list[str], kill: Kill | None = None) -> tuple[int, str]:
        """Run a command line to its end: exit code (minus the signal's number where killed) and all its output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"arguments": arguments, "kill": None if kill is None else dataclasses.asdict(kill)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), self._output.read_text()

    def close(self) -> None:
        """End the script."""
        self._process.communicate(timeout=30)


def _send_at(kill: Kill) -> None:
    module_name, _, path = kill.function.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        due = calls == kill.call
        if due and not kill.after:
            os.kill(os.getpid(), signal.Signals[kill.signal])
        result = original(*args, **kwargs)
        if due and kill.after:
            os.kill(os.getpid(), signal.Signals[kill.signal])
        return result

    setattr(owner, name, counted)


def _serve(episode_length: int, output: Path) -> None:
    import tdmpc2.tasks
    import tdmpc2.training.run
    from tdmpc2 import make_env
    from tdmpc2.cli import main

    make_env("pendulum-swingup").close()
    for lazily_imported in ("torch._dynamo", "torch._inductor", "torch.utils.tensorboard"):
        importlib.import_module(lazily_imported)
    tdmpc2.tasks.TASKS = {
        name: dataclasses.replace(task, episode_length=episode_length) for name, task in tdmpc2.tasks.TASKS.items()
    }
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                if request["kill"] is not None:
                    _send_at(Kill(**request["kill"]))
                code = main(request["arguments"])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]))
