"""Execute one notebook by papermill, in a kernel of this very interpreter.

Several notebooks may be executed at once, from several threads: nothing here changes the process's folder or its
signals.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NotebookExecutionManager

PROJECT = Path(__file__).resolve().parents[1]
STARTUP_SECONDS = 300
"""How long a kernel may take to answer, on a machine that has much else to do."""
START_ATTEMPTS = 3
"""How often a kernel that ends before the first cell is started."""
_ENGINE = "tdmpc2-report"


class NotebookError(Exception):
    """A notebook failed; the message names it, the cell and the error."""


class KernelNotStartedError(NotebookError):
    """A kernel ended before the first cell."""


class Interrupted(Exception):  # noqa: N818  # not an error
    """The execution was stopped from outside."""


class Kernels:
    """Executes notebooks, each in its own kernel, and can stop all that are under way.

    Args:
        threads: threads that the numerical libraries of a kernel may use; the user's OMP_NUM_THREADS goes before.
    """

    def __init__(self, threads: int = 1) -> None:
        self.environment = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
        self._stopped = Event()
        self._clients: set[PapermillNotebookClient] = set()

    def execute(
        self,
        notebook: Path,
        executed: Path,
        parameters: dict[str, Any],
        on_cell: Callable[[int, int], None] = lambda done, cells: None,
    ) -> None:
        """Execute a notebook in the project's folder, see `_execute`; a kernel that does not start is tried again.

        Kernels that start at the same moment may be given the same TCP port, and then one of them ends.

        Args:
            notebook: the template.
            executed: where the executed copy is written, also where a cell fails or the kernel dies.
            parameters: values by name, for the cell tagged `parameters`.
            on_cell: called as each cell begins, with how many came before it and how many there are.

        Raises:
            NotebookError: a cell failed, the kernel died, or it could not be started.
            Interrupted: `stop` was called.
        """
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                return self._execute(notebook, executed, parameters, on_cell)
            except KernelNotStartedError:
                if attempt == START_ATTEMPTS:
                    raise

    def _execute(
        self,
        notebook: Path,
        executed: Path,
        parameters: dict[str, Any],
        on_cell: Callable[[int, int], None],
    ) -> None:
        """Start a kernel and execute a notebook in it, once."""
        import papermill
        from papermill.engines import papermill_engines
        from papermill.exceptions import PapermillExecutionError

        papermill_engines.register(_ENGINE, _engine())
        try:
            papermill.execute_notebook(
                notebook,
                executed,
                parameters=parameters,
                engine_name=_ENGINE,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                request_save_on_cell_execute=False,  # written once at the end: pages of figures take long to write
                kernels=self,
                template=notebook,
                executed=executed,
                on_cell=on_cell,
            )
        except PapermillExecutionError as error:
            cell = _describe_cell(notebook, error.cell_index, error.source)
            reason = f"{error.ename}: {error.evalue}".strip().splitlines()[0]
            raise NotebookError(f"{notebook.name} failed in {cell}: {reason}") from error

    def run(
        self, manager: NotebookExecutionManager, notebook: Path, executed: Path, on_cell: Callable[[int, int], None]
    ) -> None:
        """Execute all cells: what papermill's engine calls.

        Args:
            manager: papermill's, with the notebook in memory.
            notebook: as `execute`.
            executed: as `execute`.
            on_cell: as `execute`.
        """
        from papermill.clientwrap import PapermillNotebookClient

        current: int | None = None

        def begin(cell: NotebookNode, cell_index: int) -> None:
            nonlocal current
            if self._stopped.is_set():
                raise Interrupted
            current = cell_index
            on_cell(cell_index, len(manager.nb.cells))

        client = PapermillNotebookClient(
            manager,
            kernel_name="python3",
            kernel_manager_class=_kernel_manager(self.environment),
            timeout=None,
            startup_timeout=STARTUP_SECONDS,
            shutdown_kernel="immediate",  # it has nothing left to save, and a polite end may print errors
            resources={"metadata": {"path": str(PROJECT)}},
            on_cell_start=begin,
        )
        self._clients.add(client)
        try:
            client.execute()
        except RuntimeError as error:  # a kernel that dies, or does not start
            if self._stopped.is_set():
                raise Interrupted from error
            if current is None:
                message = f"{notebook.name}: no kernel could be started ({error})"
                _write_with_error(manager.nb, executed, message)
                raise KernelNotStartedError(message) from error
            cell = _describe_cell(notebook, current, manager.nb.cells[current].source)
            message = f"{notebook.name}: the kernel died in {cell}; perhaps it ran out of memory"
            _write_with_error(manager.nb, executed, message)
            raise NotebookError(message) from error
        finally:
            self._clients.discard(client)

    def stop(self) -> None:
        """Kill the kernels under way, with the processes they started; `execute` then raises `Interrupted`."""
        self._stopped.set()
        for client in list(self._clients):
            provisioner = getattr(client.km, "provisioner", None)
            group = getattr(provisioner, "pgid", None)
            if group:
                try:
                    os.killpg(group, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it ended by itself


def _engine() -> type:
    """The engine that papermill calls: hands the notebook to `Kernels.run`."""
    from papermill.engines import NBClientEngine

    class ReportEngine(NBClientEngine):
        """Executes by the `kernels` it is given."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: NotebookExecutionManager, kernel_name: str, **options: Any) -> None:
            options["kernels"].run(nb_man, options["template"], options["executed"], options["on_cell"])

    return ReportEngine


def _kernel_manager(environment: dict[str, str]) -> type:
    """A manager that starts kernels by `sys.executable`: a registered `python3` may belong to another environment."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        """Starts a kernel of this interpreter."""

        transport_encryption = "auto"  # else the kernel warns that others on the machine could listen

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            metadata = {"supported_encryption": ["curve"]}
            return KernelSpec(
                argv=command, display_name="Python 3", language="python", metadata=metadata, env=environment
            )

    return ThisInterpreter


def _describe_cell(notebook: Path, executed_index: int, source: str) -> str:
    """A cell by its number in the template, text cells counted, and its first line.

    Args:
        notebook: the template.
        executed_index: the cell's index in the executed notebook, which has one more: the values of the parameters.
        source: the cell's source.
    """
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    tagged = [index for index, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    inserted = tagged[0] + 1 if tagged else 0
    number = executed_index + (executed_index < inserted)
    first = next((line for line in source.splitlines() if line.strip()), "")
    return f"cell {number} ({first!r})"


def _write_with_error(notebook: NotebookNode, path: Path, message: str) -> None:
    import nbformat

    cells = [nbformat.v4.new_markdown_cell(f"**{message}**"), *notebook.cells]
    nbformat.write(nbformat.from_dict({**notebook, "cells": cells}), path)
