"""Make a report: `python -m analysis.report [results/NAME ...] [--reference DIR]`.

Without a sweep it is on the published curves alone. The last line on stdout is the path of the index page. Exit code 0:
made; 1: a notebook failed (its executed copy is kept, the others are there); 2: bad input; 130: interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import html
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from analysis.execution import PROJECT, Kernels, NotebookError
from analysis.index import Chapter, index_body, read_headline
from analysis.page import INDEX, images, notebook_body, page, with_navigation
from analysis.progress import Progress
from analysis.report_folder import RECORD, Part, Record, publish, read_record, staging_folder
from analysis.sources import changed_sources, read_sources
from analysis.study import Study, load_study
from analysis.words import duration, listed
from tdmpc2.errors import UserError, require, unknown_name
from tdmpc2.training.runtime import available_cores

TITLES = {
    "aggregate_scores": "Aggregate scores",
    "multitask_vs_single": "Multi-task against single-task",
    "scaling": "Scaling",
    "task_embeddings": "Task embeddings",
    "run_report": "A run in detail",
}
"""The notebooks, in the order of the index page, and what the navigation calls them."""
NOTEBOOKS = tuple(PROJECT / "notebooks" / f"{name}.ipynb" for name in TITLES)
ONE_RUN = "run_report"
"""The notebook on a single run, which has a parameter more: `run`."""
MOST_JOBS = 5
KERNEL_BYTES = 1 << 30
"""Memory that a notebook is expected to need."""
INTERRUPTED = 130


@dataclass(frozen=True)
class Inputs:
    """What a report is made from; see `study.load_study`."""

    results: tuple[Path, ...] = ()
    reference: Path | None = None
    tasks: str = "all"
    seeds: tuple[int, ...] | None = None

    def parameters(self) -> dict[str, Any]:
        """The notebooks' common parameters but for the output, paths absolute."""
        return {
            "results": [str(folder.resolve()) for folder in self.results],
            "reference": None if self.reference is None else str(self.reference.resolve()),
            "tasks": self.tasks,
            "seeds": None if self.seeds is None else list(self.seeds),
        }

    def default_output(self) -> Path:
        """`reports` in the sweep's folder; in results/A+B for several, in results/published for none."""
        if not self.results:
            return Path("results") / "published" / "reports"
        if len(self.results) == 1:
            return self.results[0] / "reports"
        return self.results[0].parent / "+".join(folder.resolve().name for folder in self.results) / "reports"


@dataclass(frozen=True)
class Report:
    """A report that was made."""

    index: Path
    """The index page."""
    failed: tuple[Path, ...]
    """Executed copies of the notebooks that failed."""


def make_report(
    inputs: Inputs,
    output: Path | None = None,
    *,
    run: str | None = None,
    only: Sequence[str] = (),
    jobs: int | None = None,
    notebooks: Sequence[Path] = NOTEBOOKS,
) -> Report:
    """Execute the notebooks and write their pages, figures and tables, and the page that links them.

    Everything is written beside the older report and moved at the end. Then that one's files go, but for what the
    report never wrote itself. Where no notebook could be executed to its end, the older report stays.

    Args:
        inputs: what to report on.
        output: where to write; default: see `Inputs.default_output`.
        run: the run that the page on a single run is about; None: the notebook chooses.
        only: names of the notebooks to execute; none: all. Pages of the others stay where they were made from the same.
        jobs: notebooks executed at once; None: as many as cores and memory allow.
        notebooks: the papermill templates.

    Raises:
        UserError: nothing to report on, an unknown name, the output cannot be written.
    """
    started = time.monotonic()
    chosen = _choose(notebooks, only)
    require(jobs is None or jobs >= 1, f"jobs: {jobs} is not 1 or more")
    study = load_study(inputs.results, inputs.reference, inputs.tasks, inputs.seeds)
    skipped = {} if len(study.runs) else {n.stem: "no runs of ours" for n in notebooks if n.stem == ONE_RUN}
    require(not set(only) & set(skipped), f"{ONE_RUN}: there are no runs of ours to show")
    chosen = [notebook for notebook in chosen if notebook.stem not in skipped]
    if run is not None:
        require(ONE_RUN in {n.stem for n in chosen}, f"run: {ONE_RUN} is not among the notebooks to execute")
        if run not in set(study.runs["run"]):
            raise unknown_name("run", run, list(study.runs["run"]), "run")

    output = inputs.default_output() if output is None else output
    with staging_folder(output) as staging:
        older = read_record(output)
        kept = _kept(older, output, inputs, [n.stem for n in notebooks if n not in chosen], bool(only))
        sources = read_sources(study, output)
        parts = _execute(chosen, inputs, run, staging, output, jobs or default_jobs(len(chosen)), older.parts)
        failed = tuple(output / f"{name}.failed.ipynb" for name, part in parts.items() if part.state == "failed")
        if len(failed) == len(parts) and any(part.state == "done" for part in older.parts.values()):
            for copy in failed:
                os.replace(staging / copy.name.removesuffix(".failed.ipynb") / copy.name, copy)
            files = (*older.files, *(copy.name for copy in failed))
            publish(staging / "nothing", output, dataclasses.replace(older, files=files), older)
            _say("no notebook could be executed: the older report stays as it was")
            return Report(output / INDEX, failed)
        parts |= kept | {name: Part("skipped", message=reason) for name, reason in skipped.items()}
        record = Record(inputs.parameters(), {n.stem: parts[n.stem] for n in notebooks if n.stem in parts})
        changed = changed_sources(sources, read_sources(study, output))
        ours = {**sources, "parts": [name for name in record.parts if name not in kept], "changed": changed}
        record = dataclasses.replace(record, sources=(ours, *_sources_of(kept, older)))
        complete = _assemble(staging, output, study, record, set(kept))
        publish(staging / RECORD.removesuffix(".json"), output, complete, older)
    without = f", without {listed([path.name.removesuffix('.failed.ipynb') for path in failed])}" if failed else ""
    _say(f"report made in {duration(time.monotonic() - started)}{without}")
    return Report(output / INDEX, failed)


def default_jobs(count: int) -> int:
    """How many of `count` notebooks to execute at once, as cores and free memory allow."""
    memory = int(psutil.virtual_memory().available // KERNEL_BYTES)
    return max(1, min(MOST_JOBS, count, available_cores(), memory))


def _choose(notebooks: Sequence[Path], only: Sequence[str]) -> list[Path]:
    """The notebooks to execute, in their own order."""
    for notebook in notebooks:
        require(notebook.is_file(), f"no notebook {notebook}; reports are made from a checkout of the project")
    names = [notebook.stem for notebook in notebooks]
    for name in only:
        if name not in names:
            raise unknown_name("notebook", name, names, "only")
    return [notebook for notebook in notebooks if not only or notebook.stem in only]


def _kept(older: Record, output: Path, inputs: Inputs, others: Sequence[str], partial: bool) -> dict[str, Part]:
    """Of the notebooks that are not executed this time, those whose older pages stay: whole, and of the same inputs."""
    made = {name: part for name, part in older.parts.items() if partial and name in others and part.state == "done"}
    made = {name: part for name, part in made.items() if all((output / file).is_file() for file in part.files)}
    if made and dict(older.inputs) != inputs.parameters():
        _say(f"the older pages were made from other inputs and go: {', '.join(made)}")
        return {}
    return made


def _sources_of(names: Mapping[str, Part], older: Record) -> list[dict[str, Any]]:
    """What the pages that stay were made from."""
    kept = [{**source, "parts": [part for part in source["parts"] if part in names]} for source in older.sources]
    return [source for source in kept if source["parts"]]


def _execute(
    notebooks: Sequence[Path],
    inputs: Inputs,
    run: str | None,
    staging: Path,
    output: Path,
    jobs: int,
    older: Mapping[str, Part],
) -> dict[str, Part]:
    """Execute notebooks side by side, those first that took longest last time; each writes to staging/NAME."""
    kernels = Kernels(threads=max(1, available_cores() // jobs))
    known = {name: part.seconds for name, part in older.items() if part.state == "done"}
    order = sorted(notebooks, key=lambda notebook: -known.get(notebook.stem, float("inf")))
    with Progress([notebook.stem for notebook in order], known, jobs) as progress, ThreadPoolExecutor(jobs) as pool:

        def make(notebook: Path) -> Part:
            parameters = inputs.parameters() | ({"run": run} if notebook.stem == ONE_RUN else {})
            progress.begin(notebook.stem)
            return _make_page(notebook, parameters, staging / notebook.stem, output, kernels, progress)

        futures = {pool.submit(make, notebook): notebook.stem for notebook in order}
        parts: dict[str, Part] = {}
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    part = parts[futures[future]] = future.result()
                    progress.end(futures[future], part)
                progress.refresh()
        except BaseException:  # Ctrl-C too: no kernel may go on alone
            for future in futures:
                future.cancel()
            kernels.stop()
            raise
    return parts


def _make_page(
    notebook: Path, parameters: Mapping[str, Any], folder: Path, output: Path, kernels: Kernels, progress: Progress
) -> Part:
    """Execute a notebook into a folder of its own and write its page there.

    Args:
        notebook: the template.
        parameters: its parameters but for the output.
        folder: where it writes; moved into `output` in the end, under which name its texts know it.
        output: the report's folder.
        kernels: who executes it.
        progress: told of every cell.
    """
    started = time.monotonic()
    import nbformat

    folder.mkdir()
    name, executed = notebook.stem, folder / notebook.name
    message = ""
    try:
        values = {**parameters, "output": str(folder)}
        kernels.execute(notebook, executed, values, lambda done, cells: progress.cell(name, done, cells))
    except NotebookError as error:
        message = str(error)
    if executed.exists():
        _rename_in(executed, folder, output.resolve())
    if message:
        copy = folder / f"{name}.failed.ipynb"
        os.replace(executed, copy) if executed.exists() else shutil.copy(notebook, copy)
        for path in folder.iterdir():  # half of the figures are no page
            if path != copy:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        body = notebook_body(nbformat.read(executed, as_version=4), folder)
        headline = read_headline(folder, name)
        title = headline["title"] if headline else title_of(name)
        (folder / f"{name}.html").write_text(page(title, body), encoding="utf-8")
    files = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
    state = "failed" if message else "done"
    return Part(state, time.monotonic() - started, time.strftime("%Y-%m-%d %H:%M"), message, files)


def _rename_in(executed: Path, folder: Path, output: Path) -> None:
    """Replace the folder that a notebook wrote to by the one in which its files come to stand."""
    text = executed.read_text(encoding="utf-8")
    for form in (str, lambda path: html.escape(str(path))):
        text = text.replace(json.dumps(form(folder))[1:-1], json.dumps(form(output))[1:-1])
    executed.write_text(text, encoding="utf-8")


def title_of(name: str) -> str:
    """What the navigation calls a notebook's page."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def _assemble(staging: Path, output: Path, study: Study, record: Record, kept: set[str]) -> Record:
    """Put the notebooks' files and the index page together in staging/report; returns the complete record.

    Args:
        staging: has the notebooks' files in staging/NAME.
        output: has the files of the notebooks that are kept.
        study: what the report is on.
        record: all notebooks' parts.
        kept: names of those whose pages stay.
    """
    report = staging / RECORD.removesuffix(".json")
    report.mkdir()
    for name, part in record.parts.items():
        for file in part.files if name not in kept else ():
            (report / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / name / file, report / file)
    pages = {f"{name}.html": title_of(name) for name, part in record.parts.items() if part.state == "done"}
    title = f"Report: {study.name}"
    links = {INDEX: title, **pages}
    contents = {}
    for file in pages:
        root = output if file.removesuffix(".html") in kept else report
        contents[file] = with_navigation((root / file).read_text(encoding="utf-8"), links, file)
        (report / file).write_text(contents[file], encoding="utf-8")
    chapters = []
    for name, part in record.parts.items():
        root = output if name in kept else report
        headline = read_headline(root, name) if part.state == "done" else None
        figure = f"figures/{headline['figure']}.png" if headline and headline["figure"] else None
        if figure not in part.files:
            figure = None
        shown = images(contents[f"{name}.html"]).get(figure, ("", None)) if figure else ("", None)
        chapters.append(Chapter(name, title_of(name), part, headline, figure, *shown, name in kept))
    body, files = index_body(study, chapters, report)
    (report / INDEX).write_text(with_navigation(page(title, body), links, INDEX), encoding="utf-8")
    return dataclasses.replace(record, files=(INDEX, *files))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description="Make the report of sweeps; without one, of published curves alone.",
    )
    parser.add_argument("results", type=Path, nargs="*", metavar="SWEEP", help="folders of sweeps, results/NAME")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="published curves, DIR/ALGORITHM/TASK.csv")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: results/NAME/reports)")
    parser.add_argument("--tasks", nargs="+", default=["all"], metavar="TASK", help="tasks or task sets to restrict to")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="seeds to restrict it to")
    parser.add_argument("--run", metavar="RUN", help="the run that the page on a single run is about")
    parser.add_argument("--only", nargs="+", default=[], metavar="NOTEBOOK", help=f"of {', '.join(TITLES)}")
    parser.add_argument("--jobs", type=int, metavar="N", help="notebooks executed at once (default: as cores allow)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    seeds = None if options.seeds is None else tuple(options.seeds)
    inputs = Inputs(tuple(options.results), options.reference, ",".join(options.tasks), seeds)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: kernels are stopped
    try:
        report = make_report(
            inputs, options.output, run=options.run, only=options.only, jobs=options.jobs, notebooks=NOTEBOOKS
        )
    except UserError as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say("interrupted; an older report is as it was")
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    for copy in report.failed:
        _say(f"executed copy with the error: {copy}")
    print(report.index)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
