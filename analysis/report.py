"""Make a sweep's report: `python -m analysis.report results/NAME [--reference DIR] [--output DIR]`.

The last line on stdout is the path of the HTML page. Exit code 0: made; 1: the notebook failed (its executed copy is
kept); 2: bad input.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.page import page
from analysis.reference import check_reference_folder
from analysis.results import check_sweep_folder
from tdmpc2.errors import UserError

PROJECT = Path(__file__).resolve().parents[1]
NOTEBOOK = PROJECT / "notebooks" / "learning_curves.ipynb"


class NotebookError(Exception):
    """A notebook failed; the message names the cell, the error and the executed copy."""


def make_report(
    sweep: Path, reference: Path | None = None, output: Path | None = None, notebook: Path = NOTEBOOK
) -> Path:
    """Execute the notebook on a sweep and write its page, figures and tables.

    Everything is written beside the older report and renamed at the end, so that a failing run leaves that one whole.

    Args:
        sweep: the sweep's folder, `results/NAME`.
        reference: folder of published curves to compare with, if any.
        output: where to write; default: `reports` in the sweep's folder.
        notebook: the papermill template.

    Returns:
        Path of the HTML page.

    Raises:
        UserError: no such folder, no runs in it, the output cannot be written.
        NotebookError: a cell failed; the executed copy stays in the output folder as NAME.failed.ipynb.
    """
    check_sweep_folder(sweep)
    if reference is not None:
        check_reference_folder(reference)
    if not notebook.is_file():
        raise UserError(f"no notebook {notebook}; reports are made from a checkout of the project")
    output = sweep / "reports" if output is None else output
    try:
        output.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".making-", dir=output))
    except OSError as error:
        raise UserError(f"output {output}: cannot be written ({error.strerror})") from error

    failed = output / f"{notebook.stem}.failed.ipynb"
    try:
        parameters = {
            "sweep_folder": str(sweep.resolve()),
            "reference_folder": None if reference is None else str(reference.resolve()),
            "output_folder": str(staging.resolve()),
        }
        executed = staging / notebook.name
        try:
            _execute(notebook, executed, parameters)
        except NotebookError as error:
            if executed.exists():
                os.replace(executed, failed)
                raise NotebookError(f"{error}\nexecuted copy with the error: {failed}") from error
            raise
        html_page = staging / f"{notebook.stem}.html"
        html_page.write_text(_to_html(executed, title=f"{sweep.resolve().name}: learning curves"), encoding="utf-8")
        _publish(staging, output)
        failed.unlink(missing_ok=True)
        return output / html_page.name
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _execute(notebook: Path, executed: Path, parameters: dict[str, Any]) -> None:
    """Run a notebook by papermill in this very interpreter, whatever kernels are registered on the machine."""
    import papermill
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    class ThisInterpreter(AsyncKernelManager):
        """Starts the kernel by `sys.executable`: a registered `python3` may belong to another environment."""

        transport_encryption = "auto"  # else the kernel warns that others on the machine could listen

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            metadata = {"supported_encryption": ["curve"]}
            return KernelSpec(argv=command, display_name="Python 3", language="python", metadata=metadata)

    try:
        papermill.execute_notebook(
            notebook,
            executed,
            parameters=parameters,
            kernel_name="python3",
            language="python",
            cwd=PROJECT,
            kernel_manager_class=ThisInterpreter,
        )
    except PapermillExecutionError as error:
        first = next((line for line in error.source.splitlines() if line.strip()), "")
        raise NotebookError(
            f"{notebook.name} failed in cell {error.cell_index + 1} ({first!r}): {error.ename}: {error.evalue}"
        ) from error
    except DeadKernelError as error:
        raise NotebookError(f"{notebook.name}: the kernel died ({error}); perhaps it ran out of memory") from error


def _to_html(executed: Path, title: str) -> str:
    """The executed notebook's outputs as a page, without its code."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_markdown=True,  # the template's own words are for those who open the notebook
    )
    body, _ = exporter.from_filename(str(executed))
    return page(title, body)


def _publish(staging: Path, output: Path) -> None:
    """Move everything into place, the page last: until then a reader sees the older one."""
    files = sorted((p for p in staging.rglob("*") if p.is_file()), key=lambda p: (p.suffix == ".html", p))
    for path in files:
        target = output / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description="Make the report of a sweep.")
    parser.add_argument("sweep", type=Path, help="the sweep's folder, results/NAME")
    parser.add_argument("--reference", type=Path, help="published curves: a folder of ALGORITHM/TASK.csv")
    parser.add_argument("--output", type=Path, help="where to write (default: results/NAME/reports)")
    options = parser.parse_args(arguments)
    try:
        path = make_report(options.sweep, options.reference, options.output)
    except (UserError, NotebookError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
