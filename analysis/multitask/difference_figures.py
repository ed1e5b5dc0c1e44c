"""Figures of differences: multi-task minus single-task. Like `analysis.figures`, they compute nothing but positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import style
from analysis.figures import GREY
from analysis.layout import add_legend, legend_height
from analysis.multitask.explaining import PREDICTORS
from analysis.multitask.grouping import GROUPINGS
from analysis.results import SERIES
from analysis.study import PUBLISHED_KIND
from analysis.words import series_names

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

DIFFERENCE_LABEL = "Difference of normalised score (0 to 100): multi-task \N{MINUS SIGN} single-task"
_GAIN, _LOSS = "#0072B2", "#D55E00"
_BOTTOM = 0.36
_CHARACTER = 0.56
"""Mean width of a letter, in units of the font's size."""


def series_differences(means: pd.DataFrame) -> Figure:
    """Mean difference of every multi-task series with its interval over tasks, one row a series.

    Full marks: better or worse. Hollow ones: undecided.

    Args:
        means: as `overview.compare_means` returns it.
    """
    from matplotlib.figure import Figure

    rows = means[means["difference"].notna()]
    styles = style.series_styles(list(rows[SERIES].itertuples(index=False, name=None)))
    looks = [styles[key] for key in rows[SERIES].itertuples(index=False, name=None)]
    labels = [f"{name}, {n} tasks" for name, n in zip(series_names(rows), rows["tasks_compared"], strict=True)]
    decided = rows["verdict"].isin(["better", "worse"])
    with style.applied():
        figure = Figure()
        axes = _rows(figure, labels, _decision_legend(bool(rows["low"].notna().any())), row=0.19, font=7.0)
        for i, (look, full, row) in enumerate(zip(looks, decided, rows.to_dict("records"), strict=True)):
            _mark(axes, row["difference"], i, row["low"], row["high"], look.colour, look.marker, bool(full), size=22)
        _limits(axes, rows[["difference", "low", "high"]])
    return figure


def task_differences(comparison: pd.DataFrame) -> Figure:
    """Differences of one series, one row a task, the largest gain first.

    A mark is the difference of the means over seeds, a bar its interval over seeds. Hollow marks have no interval.
    Diamonds are differences from published single-task scores.

    Args:
        comparison: one series' rows of what `comparison.compare` returns.
    """
    from matplotlib.figure import Figure

    rows = comparison[comparison["difference"].notna()].sort_values("difference", ascending=False, kind="stable")
    published = rows["single_kind"] == PUBLISHED_KIND
    with_bar = rows["difference_low"].notna()
    many = len(rows) > 40
    with style.applied():
        figure = Figure()
        entries = _task_legend(with_bar, published)
        axes = _rows(figure, list(rows["task"]), entries, row=0.094 if many else 0.13, font=5.5 if many else 6.5)
        for i, row in enumerate(rows.to_dict("records")):
            colour = _GAIN if row["difference"] >= 0 else _LOSS
            full = not np.isnan(row["difference_low"])
            marker = "D" if row["single_kind"] == PUBLISHED_KIND else "o"
            ends = (row["difference_low"], row["difference_high"])
            _mark(axes, row["difference"], i, *ends, colour, marker, full, size=9 if many else 14)
        _limits(axes, rows[["difference", "difference_low", "difference_high"]])
    return figure


def group_figure(grouped: pd.DataFrame) -> Figure:
    """Mean differences by suite, embodiment and objective with intervals over tasks, one row a group.

    Args:
        grouped: as `grouping.group_differences` returns it, with a row at least.
    """
    from matplotlib.figure import Figure

    labels: list[str] = []
    places: list[tuple[int, dict[Any, Any]]] = []
    headings: list[int] = []
    for grouping in GROUPINGS:
        part = grouped[grouped["grouping"] == grouping]
        if part.empty:
            continue
        headings.append(len(labels))
        labels.append(f"by {grouping}")
        for row in part.to_dict("records"):
            places.append((len(labels), row))
            labels.append(f"{row['group']} ({row['tasks']})")
    with style.applied():
        figure = Figure()
        entries = _decision_legend(bool(grouped["low"].notna().any()), hollow="fewer than 3 tasks: no interval")
        axes = _rows(figure, labels, entries, row=0.12, font=6.0)
        for i, row in places:
            colour = _GAIN if row["difference"] >= 0 else _LOSS
            _mark(axes, row["difference"], i, row["low"], row["high"], colour, "o", not np.isnan(row["low"]), size=14)
        for i in headings:
            axes.get_yticklabels()[i].set_fontweight("bold")
            axes.axhspan(i - 0.5, i + 0.5, color="#ECECEC", zorder=0.5, linewidth=0)
        _limits(axes, grouped[["difference", "low", "high"]])
    return figure


def explaining_figure(comparison: pd.DataFrame, predictors: Sequence[str]) -> Figure:
    """Differences of one series over each predictor, one panel a predictor; the most extreme tasks are named.

    Args:
        comparison: one series' rows of what `explaining.add_predictors` returns.
        predictors: those of `explaining.PREDICTORS` to draw, one at least.
    """
    from matplotlib.figure import Figure

    rows = comparison[comparison["difference"].notna()]
    with style.applied():
        figure = Figure()
        total, height, left, gap = style.PAGE_WIDTH, 2.3, 0.5, 0.2
        width = (total - left - 0.1 - gap * 2) / 3
        figure.set_size_inches(total if len(predictors) > 1 else style.COLUMN_WIDTH, height)
        shown = figure.get_size_inches()[0]
        if len(predictors) == 1:
            width = shown - left - 0.1
        elif len(predictors) == 2:
            width = (shown - left - 0.1 - gap) / 2
        for i, name in enumerate(predictors):
            box = ((left + i * (width + gap)) / shown, 0.42 / height, width / shown, (height - 0.52) / height)
            axes = figure.add_axes(box)
            known = rows[rows[name].notna()]
            axes.axhline(0, color=GREY, linewidth=0.6, zorder=1)
            colours = np.where(known["difference"] >= 0, _GAIN, _LOSS)
            axes.scatter(known[name], known["difference"], s=11, c=colours, alpha=0.8, linewidths=0, zorder=3)
            axes.set_xlabel(PREDICTORS[name][0].upper() + PREDICTORS[name][1:])
            axes.margins(x=0.08, y=0.1)
            axes.tick_params(labelleft=i == 0)
            if i == 0:
                axes.set_ylabel("Difference of normalised score")
            _name_extremes(figure, axes, known, name)
    return figure


def _name_extremes(figure: Figure, axes: Axes, rows: pd.DataFrame, name: str) -> None:
    """Name the three largest gains and losses, and the tasks at the ends of the x-axis, as far as names fit."""
    by_difference, by_x = rows.sort_values("difference")["task"], rows.sort_values(name)["task"]
    wanted = list(dict.fromkeys([
        *by_difference.iloc[[0, -1]], *by_difference.iloc[1:3], *by_difference.iloc[-3:-1], *by_x.iloc[[0, -1]]
    ]))  # fmt: skip
    low, high = axes.get_xlim()
    figure.canvas.draw()
    frame = axes.get_window_extent()
    taken: list[Bbox] = []
    marks = axes.transData.transform(rows[[name, "difference"]].to_numpy(float))
    for task in wanted:
        row = rows[rows["task"] == task].iloc[0]
        right = (row[name] - low) < 0.5 * (high - low)
        for dx, dy, va in ((4, 0, "center"), (3, 4, "bottom"), (3, -4, "top")):
            label = axes.annotate(
                task, (row[name], row["difference"]), xytext=(dx if right else -dx, dy), textcoords="offset points",
                fontsize=5.0, ha="left" if right else "right", va=va, color="#333333", zorder=4,
            )  # fmt: skip
            box = label.get_window_extent()
            inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
            covered = ((marks > [box.x0, box.y0]) & (marks < [box.x1, box.y1])).all(axis=1).any()
            if inside and not covered and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()


def _rows(figure: Figure, labels: Sequence[str], legend: Sequence[Artist], row: float, font: float) -> Axes:
    """Axes with one labelled row a line, the first on top; the legend above them and the x label below."""
    total = style.PAGE_WIDTH
    top, names = legend_height(legend, total), max(len(label) for label in labels) * font * _CHARACTER / 72 + 0.15
    tall = top + row * max(len(labels), 2) + _BOTTOM
    figure.set_size_inches(total, tall)
    axes = figure.add_axes((names / total, _BOTTOM / tall, 1 - (names + 0.15) / total, (tall - top - _BOTTOM) / tall))
    for i in range(0, len(labels), 2):
        axes.axhspan(i - 0.5, i + 0.5, color="#F6F6F6", zorder=0, linewidth=0)
    axes.axvline(0, color="#555555", linewidth=0.8, zorder=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=font)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    figure.supxlabel(DIFFERENCE_LABEL, fontsize=7, y=0.05 / tall, va="bottom")
    add_legend(figure, legend)
    return axes


def _mark(
    axes: Axes, x: float, y: float, low: float, high: float, colour: str, marker: str, full: bool, size: float
) -> None:
    """A difference with its interval; hollow where it is not full."""
    if not np.isnan(low):
        axes.hlines(y, low, high, color=colour, linewidth=0.9, zorder=2)
    face = colour if full else "white"
    axes.scatter([x], [y], s=size, marker=marker, facecolors=face, edgecolors=colour, linewidths=0.8, zorder=3)


def _limits(axes: Axes, values: pd.DataFrame) -> None:
    """An x-axis that holds 0 and all marks and bars."""
    low, high = min(0.0, float(np.nanmin(values.to_numpy(float)))), max(0.0, float(np.nanmax(values.to_numpy(float))))
    margin = max(0.04 * (high - low), 0.5)
    axes.set_xlim(low - margin, high + margin)


def _decision_legend(with_bars: bool, hollow: str = "undecided") -> list[Artist]:
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"color": GREY, "marker": "o", "markersize": 4.0}
    full = "mean difference with interval over tasks" if hollow != "undecided" else "better or worse"
    entries: list[Artist] = [Line2D([], [], linestyle="-" if with_bars else "", linewidth=0.9, label=full, **look)]
    entries.append(Line2D([], [], linestyle="", markerfacecolor="white", label=hollow, **look))
    return entries


def _task_legend(with_bar: pd.Series, published: pd.Series) -> list[Artist]:
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"color": GREY, "markersize": 4.0}
    entries: list[Artist] = [
        Line2D([], [], marker="s", linestyle="", markersize=4.0, color=colour, label=label)
        for colour, label in ((_GAIN, "multi-task higher"), (_LOSS, "single-task higher"))
    ]
    if with_bar.any():
        entries.append(Line2D([], [], marker="o", linewidth=0.9, label="with interval over seeds", **look))
    if not with_bar.all():
        label = "too few seeds for an interval"
        entries.append(Line2D([], [], marker="o", linestyle="", markerfacecolor="white", label=label, **look))
    if published.any():
        label = "against a published score"
        entries.append(Line2D([], [], marker="D", linestyle="", markerfacecolor="white", label=label, **look))
    return entries
