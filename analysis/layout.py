"""Where things stand on a figure: grids of panels and the legend they share. Distances are in inches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis import style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEGEND_ROW = 0.15
_LEGEND_FONT = 7.0
_LEFT, _RIGHT, _BOTTOM = 0.5, 0.12, 0.24


@dataclass(frozen=True)
class Panel:
    """One place of a grid."""

    axes: Axes
    """Where to draw; titled."""
    font: float
    """Font size in points that fits this grid."""
    first: bool
    """Whether it is the leftmost of its row."""


def panel_grid(
    figure: Figure,
    groups: Mapping[str, str],
    legend: Sequence[Artist],
    x_label: str,
    shared_y: bool,
    columns: int | None = None,
) -> dict[str, Panel]:
    """Place one titled panel for each name, in reading order, the shared legend above and the x label below them.

    The figure takes the width of a paper's column (one panel) or page and the height it needs. Up to 104 panels stay
    legible.

    Args:
        figure: an empty figure.
        groups: group by name, names of a group side by side. With `shared_y`, each group starts a new row.
        legend: the legend's entries.
        x_label: label of all x-axes.
        shared_y: whether the panels of a row share the y-axis: only the first one is labelled, and they stand closer.
        columns: panels side by side; default: as many as leave each legible.

    Returns:
        Panels by name.
    """
    columns = _columns(len(groups)) if columns is None else columns
    places = _places(groups, columns, break_rows=shared_y)
    font = {1: 8.0, 2: 7.5, 3: 7.0, 4: 7.0, 5: 6.5, 6: 6.0}.get(columns, 5.0)
    total = style.COLUMN_WIDTH if columns == 1 else style.PAGE_WIDTH
    gap = 0.14 if shared_y else 0.42
    width = (total - _LEFT - _RIGHT - gap * (columns - 1)) / columns
    height = max(0.42, width * (0.75 if columns < 4 else 0.7))
    below = font * 2.0 / 72  # tick labels
    titles = {name: style.break_name(name, style.fitting_characters(width + gap * 0.7, font)) for name in groups}
    lines: dict[int, int] = {}
    for name, (row, _) in places.items():
        lines[row] = max(lines.get(row, 1), titles[name].count("\n") + 1)
    ends = np.cumsum([0.06 + lines[row] * font * 1.2 / 72 + height + below for row in sorted(lines)])
    top = legend_height(legend, total)
    tall = top + (float(ends[-1]) if len(ends) else 0.5) + _BOTTOM

    figure.set_size_inches(total, tall)
    panels = {}
    for name, (row, column) in places.items():
        corner = (_LEFT + column * (width + gap), tall - top - ends[row] + below)
        axes = figure.add_axes((corner[0] / total, corner[1] / tall, width / total, height / tall))
        axes.set_title(titles[name], fontsize=font, pad=2.5, linespacing=1.0)
        axes.tick_params(labelsize=font - (0.5 if shared_y else 1), labelleft=not shared_y or column == 0)
        panels[name] = Panel(axes, font, first=column == 0)
    figure.supxlabel(x_label, fontsize=max(font, 7.0), y=0.06 / tall, va="bottom")
    add_legend(figure, legend)
    return panels


def score_rows(
    figure: Figure,
    tasks: Sequence[str],
    columns: int,
    row: float,
    legend: Sequence[Artist],
    x_label: str,
    draw: Callable[[Axes, list[str]], None],
) -> None:
    """Rows of normalised scores, one a task, in axes side by side; the shared legend above and the x label below them.

    Args:
        figure: an empty figure, which takes the width of a page and the height it needs.
        tasks: in order; the first fill the first axes, from top to bottom.
        columns: axes side by side.
        row: height of a task's row.
        legend: the legend's entries.
        x_label: label of all x-axes.
        draw: draws the scores of tasks, the first at y = 0.
    """
    font = {1: 7.0, 2: 6.0}.get(columns, 5.0)
    total, bottom = style.PAGE_WIDTH, 0.36
    top, most = legend_height(legend, total), math.ceil(len(tasks) / columns)
    tall = top + row * most + bottom
    figure.set_size_inches(total, tall)
    share = total / columns
    for index, part in enumerate(np.array_split(np.array(tasks, dtype=object), columns)):
        block = [str(task) for task in part]
        names = max((len(task) for task in block), default=1) * font * 0.56 / 72 + 0.12
        left, width, height = index * share + names, share - names - 0.12, row * len(block) / tall
        axes = figure.add_axes((left / total, 1 - top / tall - height, width / total, height))
        draw(axes, block)
        axes.set_yticks(range(len(block)), block, fontsize=font)
        axes.set_ylim(len(block) - 0.5, -0.5)
        axes.set_xlim(-2, 102)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
    figure.supxlabel(x_label, fontsize=7, y=0.06 / tall, va="bottom")
    add_legend(figure, legend)


def _columns(count: int) -> int:
    if count <= 4:
        return max(1, count)
    return next(columns for most, columns in ((12, 4), (25, 5), (48, 6), (math.inf, 8)) if count <= most)


def _places(groups: Mapping[str, str], columns: int, break_rows: bool) -> dict[str, tuple[int, int]]:
    """Row and column of each name."""
    places: dict[str, tuple[int, int]] = {}
    row, column, previous = 0, 0, None
    for name, group in groups.items():
        if column == columns or (break_rows and column and group != previous):
            row, column = row + 1, 0
        places[name] = (row, column)
        column, previous = column + 1, group
    return places


def legend_height(entries: Sequence[Artist], width: float) -> float:
    """Height of the legend of a figure of this width, with the space around it."""
    return 0.1 + _LEGEND_ROW * math.ceil(len(entries) / _legend_columns(entries, width)) if entries else 0.05


def add_legend(figure: Figure, entries: Sequence[Artist]) -> None:
    """One legend for the whole figure, above its axes; `legend_height` is the space to leave."""
    if entries:
        width, height = figure.get_size_inches()
        figure.legend(
            handles=list(entries),
            loc="upper center",
            ncols=_legend_columns(entries, width),
            bbox_to_anchor=(0.5, 1 - 0.05 / height),
            borderpad=0,
            borderaxespad=0,
            handlelength=2.0,
            columnspacing=1.2,
            fontsize=_LEGEND_FONT,
        )


def _legend_columns(entries: Sequence[Artist], width: float) -> int:
    """Entries that fit side by side: matplotlib makes all columns as wide as the widest."""
    widest = max(len(str(entry.get_label())) for entry in entries) * _LEGEND_FONT * 0.56 / 72 + 0.4
    rows = math.ceil(len(entries) / max(1, int((width - 0.1) // widest)))
    return math.ceil(len(entries) / rows)
