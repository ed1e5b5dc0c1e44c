"""Figures of scores over model size and cost. They compute nothing but positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import style
from analysis.layout import add_legend, legend_height, panel_grid
from analysis.scaling.fits import Scaling, curve
from analysis.scaling.laws import LAWS, LOG_LINEAR, POWER_LAW
from analysis.scaling.text import STATISTIC_WORDS, millions
from tdmpc2.errors import require

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

GREY = "#777777"
_LAW_COLOURS = {LOG_LINEAR.name: "#444444", POWER_LAW.name: "#7A3E9D"}
_VERDICT_COLOURS = {"gain": "#0072B2", "loss": "#D55E00", "not decided": GREY}
_GRID = 200
_BEYOND = 2.0
"""How many times the largest model's size curves are extrapolated to, where nothing else is asked for."""


def scaling_curves(
    scalings: Sequence[Scaling], published: pd.DataFrame | None = None, extrapolate_to: float | None = None
) -> Figure:
    """Scores over parameters, one panel a series of sizes: points with both intervals, fitted laws, published points.

    Args:
        scalings: those with common tasks are drawn.
        published: as `published.published_points` returns it; drawn in the panels of the same task set, else in a
            panel of their own.
        extrapolate_to: millions of parameters up to which fitted laws are drawn; None: twice the largest model.

    Returns:
        A figure whose axes are the panels, titled by series.

    Raises:
        UserError: `extrapolate_to` is not above 0.
    """
    from matplotlib.figure import Figure

    asked = extrapolate_to is None or extrapolate_to > 0
    require(asked, f"extrapolate_to: must be a number of millions of parameters above 0, not {extrapolate_to}")
    drawn = {scaling.series.name: scaling for scaling in scalings if scaling.series.tasks}
    theirs = {str(name): rows for name, rows in published.groupby("task_set")} if published is not None else {}
    own = {scaling.series.task_set for scaling in drawn.values() if scaling.series.kind == "multi"}
    alone = {f"TD-MPC2's paper ({task_set})": task_set for task_set in theirs if task_set not in own}
    names = [*drawn, *alone]
    with style.applied():
        figure = Figure()
        legend = _legend(list(drawn.values()), bool(theirs))
        panels = panel_grid(figure, dict.fromkeys(names, ""), legend, "Learned parameters of an agent", shared_y=True)
        for name, panel in panels.items():
            axes = panel.axes
            axes.set_xscale("log")
            axes.set_ylim(0, 104)
            if panel.first:
                axes.set_ylabel(_score_label(scalings), fontsize=min(panel.font, 7.5))
            sizes: list[float] = []
            if name in drawn:
                sizes += _draw_scaling(axes, drawn[name], extrapolate_to)
            task_set = alone.get(name) or _task_set_of(drawn[name])
            if task_set in theirs:
                sizes += _draw_published(axes, theirs[task_set])
            _parameter_axis(axes, sizes)
    return figure


def _task_set_of(scaling: Scaling) -> str:
    return scaling.series.task_set if scaling.series.kind == "multi" else ""


def _score_label(scalings: Sequence[Scaling]) -> str:
    statistic = scalings[0].statistic if scalings else "mean"
    words = STATISTIC_WORDS[statistic]
    return "IQM of normalised score" if statistic == "iqm" else f"{words.capitalize()} normalised score"


def _draw_scaling(axes: Axes, scaling: Scaling, extrapolate_to: float | None) -> list[float]:
    """Fitted laws and points of one series; returns the sizes that the x-axis must hold."""
    series = scaling.series
    smallest, largest = float(series.parameters[0]), float(series.parameters[-1])
    end = max(largest, largest * _BEYOND if extrapolate_to is None else extrapolate_to)
    for fit in scaling.fits:
        chosen = fit is scaling.chosen
        colour = _LAW_COLOURS[fit.law.name]
        for begin, stop, line in ((smallest, largest, "-"), (largest, end, "--")):
            if begin >= stop:
                continue
            rows = curve(scaling, fit, np.geomspace(begin, stop, _GRID))
            width = 1.2 if chosen else 0.6
            axes.plot(rows["millions"], rows["score"], line, color=colour, linewidth=width, zorder=2)
            if chosen:
                shade = 0.16 if line == "-" else 0.08
                axes.fill_between(
                    rows["millions"], rows["low"], rows["high"], color=colour, alpha=shade, linewidth=0, zorder=1
                )
    for place in range(len(series.sizes)):
        draw_point(axes, float(series.parameters[place]), scaling, place)
    return [smallest, end] if scaling.fits else [smallest, largest]


def draw_point(axes: Axes, x: float, scaling: Scaling, place: int) -> None:
    """The score of one size at x: a thin bar over tasks and seeds, a thick one over seeds, the mark on top."""
    series = scaling.series
    look = _look(scaling, series.sizes[place])
    for bounds, width in ((scaling.over_tasks[place], 0.8), (scaling.over_seeds[place], 2.2)):
        if np.isfinite(bounds).all():
            axes.vlines(x, *bounds, color=look.colour, linewidth=width, zorder=3)
    axes.plot(
        [x], [scaling.score[place]], look.marker, color=look.colour, markersize=3.4, markeredgecolor="white",
        markeredgewidth=0.5, zorder=4,
    )  # fmt: skip


def _look(scaling: Scaling, size: int) -> style.SeriesStyle:
    key = (scaling.series.algorithm, scaling.series.kind, size, "")
    return style.series_styles([key])[key]


def _draw_published(axes: Axes, rows: pd.DataFrame) -> list[float]:
    x = rows["parameters_millions"].to_numpy(float)
    axes.plot(
        x, rows["score"], "D", color="black", markerfacecolor="white", markersize=3.8, markeredgewidth=0.8, zorder=3.5
    )
    return [float(x.min()), float(x.max())]


def _parameter_axis(axes: Axes, sizes: Sequence[float]) -> None:
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    _log_ticks(axes.xaxis, millions, min(sizes), max(sizes))


def _log_ticks(axis: Axis, words: Callable[[float], str], low: float, high: float) -> None:
    """Ticks of a logarithmic axis of values from low to high: at decades, or closer where there are few of them."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    ratio = high / low
    if ratio < 3:  # no two round ticks may be in it: the ends themselves, if their labels stand apart
        axis.set_major_locator(FixedLocator([low, high] if ratio > 1.5 else [high]))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=(1.0,) if ratio > 30 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))
    axis.set_minor_formatter(NullFormatter())


def _legend(scalings: Sequence[Scaling], published: bool) -> list[Artist]:
    """What bars, lines and diamonds mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Artist] = _interval_entries(scalings)
    fitted = {fit.law.name for scaling in scalings for fit in scaling.fits}
    entries += [Line2D([], [], color=_LAW_COLOURS[law.name], label=law.name) for law in LAWS if law.name in fitted]
    if fitted:
        entries.append(Line2D([], [], color=GREY, linestyle="--", label="extrapolation"))
    if any(scaling.fits and len(scaling.resampled.draws) for scaling in scalings):
        entries.append(Patch(color=GREY, alpha=0.25, linewidth=0, label="95% band"))
    if published:
        edge: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": "black", "markersize": 3.8}
        entries.append(Line2D([], [], linestyle="", marker="D", label="TD-MPC2's paper", **edge))
    return entries


def _interval_entries(scalings: Sequence[Scaling]) -> list[Artist]:
    from matplotlib.lines import Line2D

    entries: list[Artist] = []
    if any(np.isfinite(scaling.over_seeds).any() for scaling in scalings):
        entries.append(Line2D([], [], color=GREY, linewidth=2.2, label="95%, seeds"))
    if any(np.isfinite(scaling.over_tasks).any() for scaling in scalings):
        entries.append(Line2D([], [], color=GREY, linewidth=0.8, label="95%, tasks and seeds"))
    return entries


def cost_axes(scalings: Sequence[Scaling]) -> Figure:
    """Scores over parameters, updates and device-hours side by side, a row of panels for each series of sizes.

    Args:
        scalings: those with common tasks are drawn.

    Returns:
        A figure with three axes a row, which share their y-axis.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    drawn = [scaling for scaling in scalings if scaling.series.tasks]
    looks = {size: _look(scaling, size) for scaling in drawn for size in scaling.series.sizes}
    legend: list[Artist] = [
        Line2D([], [], color=looks[size].colour, marker="o", linestyle="", markersize=4.5, label=f"{size}M")
        for size in sorted(looks)
    ]
    legend += _interval_entries(drawn)
    with style.applied():
        figure = Figure()
        total, height, title, below, left, gap = style.PAGE_WIDTH, 1.35, 0.2, 0.42, 0.5, 0.14
        top = legend_height(legend, total)
        tall = top + (title + height + below) * len(drawn)
        width = (total - left - 0.12 - 2 * gap) / 3
        figure.set_size_inches(total, tall)
        for row, scaling in enumerate(drawn):
            bottom = tall - top - row * (title + height + below) - title - height
            for column, (label, values) in enumerate(_cost_columns(scaling)):
                corner = (left + column * (width + gap), bottom)
                axes = figure.add_axes((corner[0] / total, corner[1] / tall, width / total, height / tall))
                _draw_costs(axes, scaling, np.asarray(values, dtype=float))
                axes.set_xlabel(label, labelpad=1.5)
                axes.tick_params(labelleft=column == 0)
                if column == 0:
                    axes.set_ylabel(_score_label(drawn), fontsize=6.5)
                    axes.set_title(scaling.series.name, loc="left", pad=3)
        add_legend(figure, legend)
    return figure


def _cost_columns(scaling: Scaling) -> list[tuple[str, Sequence[float]]]:
    """Label and value by size of each panel of a row."""
    costs = scaling.series.costs
    return [
        ("Learned parameters of an agent", list(scaling.series.parameters * 1e6)),
        ("Updates, all tasks, one seed", list(costs["updates"])),
        (f"{device_hours(list(costs['device']))}, all tasks, one seed", list(costs["hours"])),
    ]


def device_hours(devices: Sequence[str]) -> str:
    """The unit of hours on these devices: CPU-hours, GPU-hours, or device-hours where they are mixed or not known."""
    kinds = {name.strip().partition(":")[0] for devices_of_size in devices for name in devices_of_size.split(",")}
    return {frozenset({"cpu"}): "CPU-hours", frozenset({"cuda"}): "GPU-hours"}.get(frozenset(kinds), "Device-hours")


def _draw_costs(axes: Axes, scaling: Scaling, values: np.ndarray) -> None:
    """The points of one series over a cost; a thin line joins the sizes in their order."""
    axes.set_ylim(0, 104)
    known = np.isfinite(values) & (values > 0)
    if not known.any():
        axes.set_xticks([])
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    low, high = float(values[known].min()), float(values[known].max())
    axes.set_xscale("log")
    axes.set_xlim(low / 1.6, high * 1.6)
    axes.plot(values[known], scaling.score[known], "-", color=GREY, linewidth=0.6, zorder=2)
    for place in np.flatnonzero(known):
        draw_point(axes, float(values[place]), scaling, int(place))
    _log_ticks(axes.xaxis, lambda value: style.human_steps(float(f"{value:.2g}")), low, high)


def task_slopes(slopes: pd.DataFrame) -> Figure:
    """Slopes by task, sorted: filled where different from 0 after correction, hollow where not decided.

    Args:
        slopes: as `slopes.task_slopes` returns it.

    Returns:
        A figure with one axes, or several side by side where there are many tasks.
    """
    from matplotlib.figure import Figure

    columns = math.ceil(len(slopes) / 40)
    total = style.COLUMN_WIDTH if columns == 1 else style.PAGE_WIDTH
    font, row = (6.0, 0.125) if columns < 3 else (5.0, 0.105)
    legend = _verdict_entries(slopes)
    top, bottom, most = legend_height(legend, total), 0.36, math.ceil(len(slopes) / columns)
    tall = top + bottom + row * max(most, 3)
    ends = slopes[["slope", "low", "high"]].to_numpy(float)
    low, high = min(0.0, float(np.nanmin(ends))), max(0.0, float(np.nanmax(ends)))
    margin = 0.05 * max(high - low, 1.0)
    names = slopes["task"].str.len().max() * font * 0.58 / 72 + 0.12
    share = total / columns
    with style.applied():
        figure = Figure(figsize=(total, tall))
        for index, places in enumerate(np.array_split(np.arange(len(slopes)), columns)):
            block = slopes.iloc[places].reset_index(drop=True)
            height = row * max(len(block), 3 if columns == 1 else 1)
            corner = ((index * share + names) / total, 1 - (top + height) / tall)
            axes = figure.add_axes((*corner, (share - names - 0.1) / total, height / tall))
            _draw_slopes(axes, block, font)
            axes.set_xlim(low - margin, high + margin)
        figure.supxlabel("Points of normalised score per tenfold parameters", fontsize=7, y=0.06 / tall, va="bottom")
        add_legend(figure, legend)
    return figure


def _draw_slopes(axes: Axes, block: pd.DataFrame, font: float) -> None:
    axes.axvline(0, color=GREY, linewidth=0.6, zorder=1)
    for verdict, rows in block.groupby("verdict"):
        colour = _VERDICT_COLOURS[str(verdict)]
        axes.hlines(rows.index, rows["low"], rows["high"], color=colour, linewidth=0.8, zorder=2)
        face = "white" if verdict == "not decided" else colour
        axes.scatter(rows["slope"], rows.index, s=9, facecolors=face, edgecolors=colour, linewidths=0.7, zorder=3)
    axes.set_yticks(range(len(block)), list(block["task"]), fontsize=font)
    axes.set_ylim(len(block) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=max(font, 5.5))
    axes.grid(axis="y", visible=False)


def _verdict_entries(slopes: pd.DataFrame) -> list[Artist]:
    from matplotlib.lines import Line2D

    entries: list[Artist] = []
    for verdict, colour in _VERDICT_COLOURS.items():
        if (slopes["verdict"] == verdict).any():
            face = "white" if verdict == "not decided" else colour
            mark = Line2D([], [], linestyle="", marker="o", markersize=3.5, color=colour, markerfacecolor=face)
            mark.set_label(verdict)
            entries.append(mark)
    return entries
