"""What a notebook cell shows, and the files it leaves: thin calls for the report templates."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis import style
from analysis.presentation import html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_PIXELS_PER_INCH = 144  # a figure of a paper's full width fills the page


def heading(text: str, level: int = 2) -> None:
    """Show a heading."""
    _show(f"<h{level}>{html.escape(text)}</h{level}>")


def paragraph(text: str, kind: str = "") -> None:
    """Show a paragraph; `kind` is a class of the page's style: lead, caption or note."""
    _show(f'<p class="{kind}">{html.escape(text)}</p>')


def listing(title: str, items: tuple[str, ...]) -> None:
    """Show a list that unfolds below its title; nothing where it is empty."""
    if items:
        body = "".join(f"<li>{html.escape(item)}</li>" for item in items)
        _show(f"<details><summary>{html.escape(title)}</summary><ul>{body}</ul></details>")


def figure(drawn: Figure, output: Path, name: str, caption: str, description: str) -> None:
    """Save a figure as `figures/NAME.{png,svg}` under the output folder and show it with its caption and links.

    Args:
        drawn: the figure.
        output: the report's folder.
        name: file name without its ending.
        caption: text below the figure.
        description: what is to be seen, for readers who cannot see it.
    """
    from IPython.display import Image, display

    png, svg = style.save(drawn, output / "figures", name)
    width = round(drawn.get_size_inches()[0] * _PIXELS_PER_INCH)
    display(Image(filename=str(png), width=width, alt=description))
    paragraph(caption, "caption")
    _links({"PNG": png, "SVG": svg}, output)


def table(shown: pd.DataFrame, caption: str = "") -> None:
    """Show a table of text, as `analysis.presentation` makes them."""
    if caption:
        paragraph(caption, "caption")
    _show(html_table(shown))


def save_tables(tables: dict[str, pd.DataFrame], output: Path) -> None:
    """Write tables as `tables/NAME.csv` under the output folder, and show links to them."""
    folder = output / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {f"{name}.csv": folder / f"{name}.csv" for name in tables}
    for (_, path), content in zip(paths.items(), tables.values(), strict=True):
        content.to_csv(path, index=False)
    _links(paths, output)


def _links(paths: dict[str, Path], output: Path) -> None:
    links = [f'<a href="{html.escape(p.relative_to(output).as_posix())}">{name}</a>' for name, p in paths.items()]
    _show(f'<p class="files">{" · ".join(links)}</p>')


def _show(content: str) -> None:
    from IPython.display import HTML, display

    display(HTML(content))
