"""Numbers, names and tables as text and HTML: what the words of all reports are made of."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.results import SERIES
from analysis.runs import STATES
from analysis.style import series_name

MISSING = "\N{EN DASH}"
"""Stands in tables where there is no number."""
_NUMBER = r"(?:< )?[+\-\u2212]?[\d,.]+(?:[eE][-+]?\d+)?\s?[%M]?(?: (?:of|to|/) [\d,.\-+]+| \[.*\]| \(.*\))?$"
"""A cell that is a number, perhaps with an interval, a range or a total behind it."""
_LONG_TEXT = 44
_LATEX_ROWS = 40
"""Longer tables are set as a longtable, which breaks over pages."""
_LATEX_ESCAPES = {
    "\\": r"\textbackslash ", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde ", "^": r"\textasciicircum ", "\N{EN DASH}": "--", "\N{MINUS SIGN}": "$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",    "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def states(runs: pd.DataFrame) -> str:
    """The states of the runs, counted, e.g. `5 done, 1 failed`."""
    counts = runs["state"].value_counts()
    return ", ".join(f"{counts[state]} {state}" for state in STATES if state in counts)


def html_table(table: pd.DataFrame) -> str:
    """A table of text as HTML, numbers to the right, state words coloured by the page's style."""
    kinds = {str(column): _kind_of(table[column]) for column in table}
    head = "".join(f'<th class="{kind}">{html.escape(column)}</th>' for column, kind in kinds.items())
    lines = [f"<thead><tr>{head}</tr></thead><tbody>"]
    for row in table.to_dict("records"):
        cells = []
        for column, value in row.items():
            kind = kinds[str(column)]
            if column == "state":
                kind += " state-" + str(value).replace(" ", "-")
            cells.append(f'<td class="{kind}">{html.escape(str(value))}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="table"><table>{"".join(lines)}</tbody></table></div>'


def latex_table(table: pd.DataFrame, caption: str, label: str) -> str:
    r"""A table of text in LaTeX (package booktabs), longer than a page where it must be (package longtable).

    Args:
        table: cells of text.
        caption: plain text.
        label: for `\ref`, put behind `tab:`.
    """
    kinds = [_kind_of(table[column]) for column in table]
    align = "".join({"number": "r", "long": "p{0.3\\linewidth}"}.get(kind, "l") for kind in kinds)
    escaped = table.map(lambda cell: _latex(str(cell))).rename(columns=lambda name: _latex(str(name)))
    long = len(table) > _LATEX_ROWS
    return escaped.style.hide(axis="index").to_latex(
        column_format=align,
        hrules=True,
        caption=_latex(caption) or None,
        label=f"tab:{label}",
        environment="longtable" if long else None,
        position=None if long else "t",
        position_float=None if long else "centering",
    )


def _latex(text: str) -> str:
    for plain, escaped in _LATEX_ESCAPES.items():
        text = text.replace(plain, escaped)
    return text


def _kind_of(column: pd.Series) -> str:
    """How a column of text stands in a table: a number (to the right), text, or long text, which may be broken."""
    cells = column.astype(str)
    if column.name == "state":
        return "text"
    known = cells[~cells.isin(["", MISSING])]
    if len(known) and known.str.match(_NUMBER).all():
        return "number"
    return "long" if cells.str.len().max() > _LONG_TEXT else "text"


def series_names(rows: pd.DataFrame) -> list[str]:
    """Names of series for people, one a row."""
    return [series_name(*key) for key in rows[SERIES].itertuples(index=False, name=None)]


def listed(parts: Sequence[str]) -> str:
    """Parts as people list them: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def rounded(values: pd.Series, digits: np.ndarray) -> list[str]:
    """Numbers as text, each with its own number of digits."""
    return [MISSING if pd.isna(v) else f"{v:.{d}f}" for v, d in zip(values, digits, strict=True)]


def ranges(low: pd.Series, high: pd.Series, digits: np.ndarray, shown: pd.Series) -> list[str]:
    """Ranges as text, where they are to be shown."""
    ends = zip(rounded(low, digits), rounded(high, digits), shown, strict=True)
    return [f"{a} to {b}" if show else MISSING for a, b, show in ends]


def duration(seconds: float) -> str:
    """A time span, e.g. `2 h 05 min`, `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def with_interval(value: float, low: float, high: float, digits: int = 1) -> str:
    """A number with its interval, e.g. `97.6 [96.9, 98.2]`; without one where it is not known."""
    if pd.isna(value):
        return MISSING
    if pd.isna(low) or pd.isna(high):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
