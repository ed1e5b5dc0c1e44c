"""What a notebook cell shows, and the files it leaves: thin calls for the report templates.

A notebook's files are `NAME.*` under `figures/` and `tables/` of the output folder, NAME beginning with what the
notebook is about (`aggregate_profiles`), so that all notebooks can share one folder; and `headlines/NOTEBOOK.json`,
from which the index page is made.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import style
from analysis.study import Study
from analysis.sweep_text import facts, runs_caption
from analysis.words import html_table, latex_table
from tdmpc2 import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PIXELS_PER_INCH = 144  # a figure of a paper's full width fills the page


def opening(title: str, study: Study, parameters: Mapping[str, Any]) -> None:
    """Begin a page: its title, what is missing, what it was made from, the notebook's parameters.

    Args:
        title: what the notebook is about.
        study: what it was made from.
        parameters: the notebook's parameters by name.
    """
    heading(f"{title}: {study.name}", level=1)
    for sweep in study.sweeps:
        if (sweep.runs["state"] != "done").any() or sweep.notes:
            paragraph(f"{sweep.name}: {runs_caption(sweep)}", "note")
    given = "; ".join(f"{name} = {_shown(value)}" for name, value in parameters.items())
    paragraph(f"Project version {__version__}. Parameters: {given}.", "caption")
    known = facts(study)
    made_from = html_table(pd.DataFrame({"fact": list(known), "value": list(known.values())}))
    _show(f"<details><summary>What this page was made from</summary>{made_from}</details>")
    listing("What was not taken as it stands", study.problems)


def heading(text: str, level: int = 2) -> None:
    """Show a heading."""
    _show(f"<h{level}>{html.escape(text)}</h{level}>")


def paragraph(text: str, kind: str = "") -> None:
    """Show a paragraph; `kind` is a class of the page's style: lead, caption or note."""
    _show(f'<p class="{kind}">{html.escape(text)}</p>')


def listing(title: str, items: Sequence[str]) -> None:
    """Show a list that unfolds below its title; nothing where it is empty."""
    if items:
        body = "".join(f"<li>{html.escape(item)}</li>" for item in items)
        _show(f"<details><summary>{html.escape(title)} ({len(items):,})</summary><ul>{body}</ul></details>")


def figure(drawn: Figure, output: Path, name: str, caption: str, description: str) -> None:
    """Save a figure as `figures/NAME.{png,svg,pdf}` under the output folder, show it with its caption and links.

    Args:
        drawn: the figure.
        output: the report's folder.
        name: file name without its ending.
        caption: text below the figure.
        description: what is to be seen, for readers who cannot see it.
    """
    from IPython.display import Image, display

    paths = style.save(drawn, output / "figures", name)
    width = round(drawn.get_size_inches()[0] * _PIXELS_PER_INCH)
    display(Image(filename=str(paths["PNG"]), width=width, alt=description))
    paragraph(caption, "caption")
    _links(paths, output)


def table(
    shown: pd.DataFrame,
    caption: str = "",
    output: Path | None = None,
    name: str = "",
    data: pd.DataFrame | None = None,
) -> None:
    """Show a table of text and, with an output folder, save it as `tables/NAME.tex` and `tables/NAME.csv`.

    Args:
        shown: the table as people read it, cells of text; numbers stand to the right.
        caption: what it shows; also the caption in LaTeX.
        output: the report's folder; None: show only.
        name: file name without its ending.
        data: what the CSV holds, unrounded; default: the shown table.
    """
    if caption:
        paragraph(caption, "caption")
    _show(html_table(shown))
    if output is not None:
        folder = output / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"CSV": folder / f"{name}.csv", "LaTeX": folder / f"{name}.tex"}
        (shown if data is None else data).to_csv(paths["CSV"], index=False)
        paths["LaTeX"].write_text(latex_table(shown, caption, label=name), encoding="utf-8")
        _links(paths, output)


def save_data(tables: Mapping[str, pd.DataFrame], output: Path) -> None:
    """Write tables too long to be shown as `tables/NAME.csv` under the output folder, and show links to them."""
    folder = output / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {f"{name}.csv": folder / f"{name}.csv" for name in tables}
    for path, content in zip(paths.values(), tables.values(), strict=True):
        content.to_csv(path, index=False)
    _links(paths, output)


def headline(output: Path, notebook: str, title: str, sentence: str, figure_name: str | None = None) -> None:
    """Show the page's answer in a paragraph, and leave it for the index page.

    Args:
        output: the report's folder.
        notebook: the notebook's name without its ending.
        title: what the notebook is about, in a few words.
        sentence: the answer, with its numbers.
        figure_name: the figure (as given to `figure`) to show with it; None: none.
    """
    paragraph(sentence, "lead")
    folder = output / "headlines"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "sentence": sentence, "figure": figure_name}
    (folder / f"{notebook}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _links(paths: Mapping[str, Path], output: Path) -> None:
    links = [f'<a href="{html.escape(p.relative_to(output).as_posix())}">{name}</a>' for name, p in paths.items()]
    _show(f'<p class="files">{" · ".join(links)}</p>')


def _show(content: str) -> None:
    from IPython.display import HTML, display

    display(HTML(content))
