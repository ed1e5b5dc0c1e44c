"""The index page of a report: its answers in a sentence and a figure each, what it was made from, and all its files."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.page import files_list, image
from analysis.report_folder import Part
from analysis.study import Study
from analysis.style import series_name
from analysis.sweep_text import facts, runs_caption, runs_table
from analysis.tables import counted
from analysis.words import html_table, listed, states
from tdmpc2 import __version__
from tdmpc2.tasks import TASKS

RUNS_SHOWN = 20
"""A longer table of runs is folded."""
RUNS_LISTED = 1000
"""Of still more runs, those with something to tell are listed, and the table's file has all."""


@dataclass(frozen=True)
class Chapter:
    """One notebook's part of a report."""

    name: str
    """Of the notebook, without its ending."""
    title: str
    """For its link where it has no headline."""
    part: Part
    """What became of it."""
    headline: Mapping[str, Any] | None
    """title, sentence and figure, as `display.headline` left them."""
    figure: str | None
    """The headline's figure, relative to the index page."""
    description: str
    """What is to be seen in it."""
    width: int | None
    """How wide its page shows it, in pixels; None: not known."""
    kept: bool
    """Whether its page is of an earlier report."""


def read_headline(folder: Path, name: str) -> dict[str, Any] | None:
    """What a notebook left for the index page by `display.headline`; None where it left nothing."""
    path = folder / "headlines" / f"{name}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return {key: content[key] for key in ("title", "sentence", "figure")}


def index_body(study: Study, chapters: Sequence[Chapter], output: Path) -> tuple[str, list[str]]:
    """The page's content.

    Args:
        study: what the report is on.
        chapters: its notebooks, in the order of the page.
        output: where the table of all runs is written, `tables/runs.csv`, if there are any.

    Returns:
        HTML, and the files written, relative to `output`.
    """
    parts = [f"<h1>{html.escape(study.name)}</h1>"]
    parts += [_failure(chapter) for chapter in chapters if chapter.part.state == "failed"]
    parts += [f'<p class="lead">{html.escape(sentence)}</p>' for sentence in summary(study)]
    for sweep in study.sweeps:
        if (sweep.runs["state"] != "done").any() or sweep.notes:
            parts.append(f'<p class="note">{html.escape(f"{sweep.name}: {runs_caption(sweep)}")}</p>')
    parts += [_card(chapter) for chapter in chapters if chapter.part.state != "failed"]
    files = []
    if len(study.runs):
        (output / "tables").mkdir(exist_ok=True)
        study.runs.to_csv(output / "tables" / "runs.csv", index=False)
        files.append("tables/runs.csv")
        parts += ["<h2>Runs</h2>", *_runs(study)]
    parts.append("<h2>What this report was made from</h2>")
    if study.problems:
        items = "".join(f"<li>{html.escape(problem)}</li>" for problem in study.problems)
        told = f"What was not taken as it stands ({len(study.problems):,})"
        parts.append(f"<details><summary>{told}</summary><ul>{items}</ul></details>")
    known = {**facts(study), "Project version of this report": __version__}
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in known.items())
    parts.append(f'<dl class="facts">{rows}</dl>')
    return "\n".join(parts), files


def summary(study: Study) -> list[str]:
    """What a report is on, in sentences."""
    sentences = []
    if len(study.runs):
        name = "The sweep has" if len(study.sweeps) == 1 else f"{len(study.sweeps)} sweeps have"
        evaluated = study.ours["task"].nunique()
        on = f"evaluations of {counted(evaluated, 'task')}" if evaluated else "no evaluation yet"
        sentences.append(f"{name} {counted(len(study.runs), 'run')} ({states(study.runs)}) and {on}.")
    elif study.sweeps:
        sentences.append("No run is among the tasks and seeds that were asked for.")
    published = study.published
    if len(published):
        algorithms = [series_name(name, "", None) for name in sorted(published["algorithm"].unique())]
        tasks = counted(published["task"].nunique(), "task")
        also = "Beside them stand published curves" if len(study.runs) else "Published curves"
        sentences.append(f"{also} of {listed(algorithms)} on {tasks}.")
    if len(study.tasks) < len(TASKS):
        sentences.append(f"The report is restricted to {counted(len(study.tasks), 'task')} of {len(TASKS)}.")
    return [" ".join(sentences)]


def _failure(chapter: Chapter) -> str:
    link = "".join(f' <a href="{html.escape(name)}">Executed copy with the error</a>' for name in chapter.part.files)
    message = html.escape(chapter.part.message)
    return f'<p class="failed"><b>{html.escape(chapter.title)} is missing.</b> {message}.{link}</p>'


def _card(chapter: Chapter) -> str:
    """A notebook's title, answer, figure and files."""
    if chapter.part.state == "skipped":
        reason = html.escape(chapter.part.message)
        title = f"<h2>{html.escape(chapter.title)}</h2>"
        return f'<section class="card">{title}<p>Left out: {reason}.</p></section>'
    address = html.escape(f"{chapter.name}.html")
    title = chapter.headline["title"] if chapter.headline else chapter.title
    sentence = f"<p>{html.escape(chapter.headline['sentence'])}</p>" if chapter.headline else ""
    folders: dict[str, list[str]] = {}
    for name in chapter.part.files:
        if "/" in name and not name.startswith("headlines/"):
            folders.setdefault(name.partition("/")[0], []).append(name)
    folded = "".join(
        f"<details><summary>{html.escape(folder.capitalize())}</summary>{files_list(files)}</details>"
        for folder, files in folders.items()
    )
    made = f" (of an earlier report, {html.escape(chapter.part.made)})" if chapter.kept else ""
    opened = f'<p><a href="{address}">Open the page</a>{made}</p>'
    shown = ""
    if chapter.figure is not None:
        shown = f'<a href="{address}">{image(chapter.figure, chapter.description, chapter.width)}</a>'
    heading = f'<h2><a href="{address}">{html.escape(title)}</a></h2>'
    return f'<section class="card">{heading}{sentence}{shown}{opened}{folded}</section>'


def _runs(study: Study) -> list[str]:
    """The table of runs with each sweep's caption, folded where it is long."""
    captions = [f'<p class="caption">{html.escape(_caption(study, sweep))}</p>' for sweep in study.sweeps]
    files = '<p class="files"><a href="tables/runs.csv">CSV</a></p>'
    shown: pd.DataFrame = runs_table(study.runs)
    table = html_table(shown.head(RUNS_LISTED))
    if len(shown) > RUNS_LISTED:
        table = f"<p>The first {RUNS_LISTED:,}, those with something to tell before the others.</p>{table}"
    if len(shown) > RUNS_SHOWN:
        table = f"<details><summary>All {counted(len(shown), 'run')}</summary>{table}</details>"
    return [*captions, table, files]


def _caption(study: Study, sweep: Any) -> str:
    return runs_caption(sweep) if len(study.sweeps) == 1 else f"{sweep.name}: {runs_caption(sweep)}"
