"""Figures of aggregate scores. They compute nothing but positions: every number drawn comes from a table.

All functions return a matplotlib Figure made without pyplot; save it by `style.save`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis import style
from analysis.aggregate.comparison import OTHER, OWN
from analysis.aggregate.selection import of_series, scope_name, series_keys
from analysis.figures import AXIS_LABELS, GREY, series_entries
from analysis.layout import panel_grid
from analysis.results import SERIES
from analysis.study import PUBLISHED_KIND
from analysis.style import series_name
from analysis.tables import counted
from analysis.words import series_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STATISTIC_LABELS = {"iqm": "IQM", "mean": "Mean", "median": "Median", "optimality_gap": "Optimality gap"}
"""Names of the aggregates, in the order of panels."""
_ROW, _GAP, _RIGHT = 0.155, 0.17, 0.1
_TITLE, _BLOCK_BELOW, _LABEL = 0.2, 0.24, 0.2
_FONT = 6.5
_ENDS = ("", "_low", "_high")


def interval_plot(rows: pd.DataFrame, tasks: Mapping[str, Sequence[str]]) -> Figure:
    """Aggregate scores with intervals: a column of panels a statistic, a row of panels a scope, a line a series.

    Args:
        rows: one budget's rows of `comparison.aggregate_table` of the basis `own`.
        tasks: the tasks by scope, as `selection.scopes` returns them.

    Returns:
        A figure of a page's width; dots are point values, bars 95% intervals. A series that has fewer tasks than
        another of its scope is named with their number.
    """
    rows = rows[rows["basis"] == OWN]
    styles = style.series_styles(series_keys(rows))
    blocks: dict[str, list[str]] = {}
    parts: dict[str, pd.DataFrame] = {}
    for scope, names in tasks.items():
        part = rows[rows["scope"] == scope]
        if part.empty:
            continue
        most = int(part["tasks"].max())
        title = f"{scope_name(scope, names)} ({counted(most, 'task')})"
        parts[title] = pd.concat([of_series(part, key) for key in series_keys(part)])
        blocks[title] = [
            name if count == most else f"{name}, {counted(int(count), 'task')}"
            for name, count in zip(series_names(parts[title]), parts[title]["tasks"], strict=True)
        ]

    def draw(axes: Axes, title: str, statistic: str) -> None:
        part = parts[title]
        for place, (key, row) in enumerate(zip(series_keys(part), part.to_dict("records"), strict=True)):
            _bar(axes, place, [row[f"{statistic}{end}"] for end in _ENDS], styles[key])

    return _forest(blocks, STATISTIC_LABELS, "Normalised score (0 to 100)", draw)


def improvement_plot(rows: pd.DataFrame, tasks: Mapping[str, Sequence[str]]) -> Figure:
    """Probability that a run of one series beats one of another, a panel a scope, a line a pair, with intervals.

    Args:
        rows: one budget's rows of `comparison.improvements`.
        tasks: the tasks by scope, as `selection.scopes` returns them.
    """
    pairs = rows.assign(first=series_names(rows), second=[series_name(*key) for key in _keys(rows, OTHER)])
    styles = style.series_styles([*_keys(rows, SERIES), *_keys(rows, OTHER)])
    looks = {look.label: look for look in styles.values()}
    blocks = {str(first): list(part["second"].unique()) for first, part in pairs.groupby("first", sort=False)}
    titles = {f"P({first} scores higher than \N{HORIZONTAL ELLIPSIS})": first for first in blocks}
    columns = {scope: scope_name(scope, names) for scope, names in tasks.items() if scope in set(rows["scope"])}

    def draw(axes: Axes, title: str, scope: str) -> None:
        axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        shown = pairs[(pairs["first"] == titles[title]) & (pairs["scope"] == scope)]
        for row in shown.to_dict("records"):
            place, ends = blocks[titles[title]].index(row["second"]), [row[f"probability{end}"] for end in _ENDS]
            _bar(axes, place, ends, looks[row["second"]])
        axes.set_xlim(-0.04, 1.04)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])

    lines = {title: blocks[first] for title, first in titles.items()}
    return _forest(lines, columns, "Probability of improvement (0.5: neither is better)", draw)


def _keys(rows: pd.DataFrame, columns: Sequence[str]) -> list[style.SeriesKey]:
    return [(str(a), str(k), s, str(t)) for a, k, s, t in rows[list(columns)].itertuples(index=False, name=None)]


def _bar(axes: Axes, place: int, ends: Sequence[float], look: style.SeriesStyle) -> None:
    """An interval (value, low, high) as a thick pale bar, its value as a mark on it."""
    value, low, high = ends
    if np.isfinite(low) and np.isfinite(high):
        axes.barh(place, high - low, left=low, height=0.62, color=look.colour, alpha=0.4, linewidth=0, zorder=2)
    if np.isfinite(value):
        axes.scatter([value], [place], s=10, marker=look.marker, color=look.colour, linewidths=0, zorder=3)


def _forest(
    blocks: Mapping[str, Sequence[str]],
    columns: Mapping[str, str],
    x_label: str,
    draw: Callable[[Axes, str, str], None],
) -> Figure:
    """Panels of horizontal intervals: blocks of named lines one below the other, columns side by side.

    Args:
        blocks: names of the lines, from top to bottom, by the block's title.
        columns: titles by what `draw` takes.
        x_label: label of all x-axes.
        draw: draws one panel: axes, block, column; the first line at y = 0.
    """
    from matplotlib.figure import Figure

    labels = max((len(line) for lines in blocks.values() for line in lines), default=1)
    left = labels * _FONT * 0.53 / 72 + 0.12
    total = style.PAGE_WIDTH
    width = (total - left - _RIGHT - _GAP * (len(columns) - 1)) / max(1, len(columns))
    top = 0.22
    tall = top + _LABEL + sum(_TITLE + _ROW * len(lines) + _BLOCK_BELOW for lines in blocks.values())
    with style.applied():
        figure = Figure(figsize=(total, tall))
        for index, title in enumerate(columns.values()):
            middle = left + index * (width + _GAP) + width / 2
            figure.text(middle / total, 1 - 0.06 / tall, title, ha="center", va="top", fontsize=7.5)
        y = top
        for block, lines in blocks.items():
            figure.text(0.06 / total, 1 - (y + 0.05) / tall, block, ha="left", va="top", fontsize=7, fontweight="bold")
            y += _TITLE
            height = _ROW * len(lines)
            for index, column in enumerate(columns):
                corner = (left + index * (width + _GAP)) / total, 1 - (y + height) / tall
                axes = figure.add_axes((*corner, width / total, height / tall))
                axes.locator_params(axis="x", nbins=4, prune="both")  # none at the edges, beside the next panel's
                draw(axes, block, column)
                axes.set_yticks(range(len(lines)), list(lines) if index == 0 else [""] * len(lines), fontsize=_FONT)
                axes.set_ylim(len(lines) - 0.5, -0.5)
                axes.tick_params(axis="y", length=0)
                axes.grid(axis="y", visible=False)
                _widen(axes)
            y += height + _BLOCK_BELOW
        figure.supxlabel(x_label, fontsize=7, y=0.05 / tall, va="bottom")
    return figure


def _widen(axes: Axes, least: float = 2.0) -> None:
    """Room for the marks at both ends of an axis of scores that is set by its data."""
    if not axes.get_autoscalex_on():
        return
    low, high = axes.get_xlim()
    spare = max(0.05 * (high - low), (least - (high - low)) / 2)
    axes.set_xlim(low - spare, high + spare)


def profile_plot(rows: pd.DataFrame, tasks: Mapping[str, Sequence[str]]) -> Figure:
    """Performance profiles, a panel a scope: share of runs above each normalised score, with 95% bands.

    Args:
        rows: as `comparison.profiles` returns it.
        tasks: the tasks by scope, as `selection.scopes` returns them.
    """
    styles = _line_styles(rows)

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for key in series_keys(part):
            _curve(axes, of_series(part, key), "threshold", "share", styles[key])
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 1.02)

    return _scope_panels(
        rows,
        tasks,
        "Normalised score \N{GREEK SMALL LETTER TAU}",
        "Share of runs above \N{GREEK SMALL LETTER TAU}",
        draw,
    )


def curve_plot(rows: pd.DataFrame, tasks: Mapping[str, Sequence[str]]) -> Figure:
    """Learning curves over the tasks of each scope, a panel a scope: mean normalised score with 95% bands.

    Beside runs of ours, published curves are shown over the steps of ours only.

    Args:
        rows: as `progress.domain_curves` returns it.
        tasks: the tasks by scope, as `selection.scopes` returns them.
    """
    styles = _line_styles(rows)

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for key in series_keys(part):
            _curve(axes, of_series(part, key), "env_steps", "mean", styles[key])
        ours = part[part["kind"] != PUBLISHED_KIND]
        last = float((ours if len(ours) else part)["env_steps"].max())
        axes.set_xlim(0, last * 1.03 if last else 1)
        style.step_ticks(axes.xaxis)
        axes.set_ylim(0, 102)

    return _scope_panels(rows, tasks, AXIS_LABELS["env_steps"], "Mean normalised score", draw)


def _line_styles(rows: pd.DataFrame) -> dict[style.SeriesKey, style.SeriesStyle]:
    """Styles of lines: published ones are solid where there are no others to tell them from."""
    styles = style.series_styles(series_keys(rows))
    if all(key[1] == PUBLISHED_KIND for key in styles):
        return {key: dataclasses.replace(look, line="-") for key, look in styles.items()}
    return styles


def _curve(axes: Axes, curve: pd.DataFrame, x: str, y: str, look: style.SeriesStyle) -> None:
    at = curve[x].to_numpy(float)
    marker = look.marker if len(curve) == 1 else ""
    axes.plot(at, curve[y].to_numpy(float), look.line, color=look.colour, marker=marker, markersize=3, zorder=3)
    low, high = curve["low"].to_numpy(float), curve["high"].to_numpy(float)
    axes.fill_between(at, low, high, color=look.colour, alpha=0.2, linewidth=0, zorder=2)


def _scope_panels(
    rows: pd.DataFrame,
    tasks: Mapping[str, Sequence[str]],
    x_label: str,
    y_label: str,
    draw: Callable[[Axes, pd.DataFrame], None],
) -> Figure:
    """One panel a scope, the legend above."""
    from matplotlib.figure import Figure

    present = {scope: names for scope, names in tasks.items() if scope in set(rows["scope"])}
    titles = {scope_name(scope, names): scope for scope, names in present.items()}
    with style.applied():
        figure = Figure()
        legend = series_entries(_line_styles(rows))
        columns = min(3, len(titles))
        grid = panel_grid(figure, dict.fromkeys(titles, ""), legend, x_label, shared_y=False, columns=columns)
        for title, panel in grid.items():
            if panel.first:
                panel.axes.set_ylabel(y_label, fontsize=panel.font)
            draw(panel.axes, rows[rows["scope"] == titles[title]])
    return figure
