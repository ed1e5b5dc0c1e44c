"""Figures from tidy tables. They compute nothing but positions: every number drawn comes from `analysis.scores`.

All functions return a matplotlib Figure made without pyplot, so nothing global is left behind; save it by `style.save`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import style
from analysis.layout import panel_grid, score_rows
from analysis.results import SERIES, registry_table
from analysis.scores import (
    MIN_SEEDS_FOR_INTERVAL,
    PUBLISHED,
    curves,
    groups,
    online,
    primary,
    published_algorithms,
    task_order,
)
from tdmpc2.tasks import OWN, TASKS, Task

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXIS_LABELS = {"env_steps": "Environment steps", "updates": "Updates"}
METRIC_LABELS = {"return": "Return", "success": "Success rate"}
SCORE_LABEL = "Normalised score (return / 10, success \N{MULTIPLICATION SIGN} 100)"
FREE_SCALE_PANELS = 12
"""Up to so many panels, each has a y-axis of its own; with more, all share the metric's full range."""

GREY = "#777777"
_KINDS = ("single", "finetuned", "multi", "offline", "published")
Styles = Mapping[style.SeriesKey, style.SeriesStyle]


def learning_curves(
    table: pd.DataFrame, reference: pd.DataFrame | None = None, tasks: Sequence[str] | None = None
) -> Figure:
    """Learning curves as small multiples, one panel a task: value of the task's own metric over environment steps.

    Thick: the mean over seeds. Thin: each seed, where there are several. Shaded: the 95% interval of the mean from
    three seeds on, the range of the seeds with two. Dotted: a random policy, where the registry knows its return.
    Dashed: published curves (mean over seeds), over the steps of the runs only. Without any run's evaluation published
    curves are drawn whole, and solid.

    Args:
        table: tidy table of the runs' evaluations; agents that learned from data alone are left out.
        reference: tidy table of published curves.
        tasks: tasks to draw a panel for, also where there is no evaluation; default: those of the table.

    Returns:
        A figure whose axes are the panels, titled by task; the legend is the figure's.
    """
    from matplotlib.figure import Figure

    table = online(primary(table))
    alone = table.empty and reference is not None  # published curves alone
    shown = table if reference is None or not alone else reference
    names = task_order(shown["task"] if tasks is None else tasks)
    means = curves(table)
    published = curves(primary(reference[reference["task"].isin(names)])) if reference is not None else means.iloc[:0]
    styles: Styles = style.series_styles([*series_of(means), *series_of(published)])
    if alone:  # nothing to tell them from by dashes, and solid lines are read most easily
        styles = {key: dataclasses.replace(look, line="-") for key, look in styles.items()}
    free = len(names) <= FREE_SCALE_PANELS
    legend = [*series_entries(styles), *spread_entries(means), *random_entry(names)]

    with style.applied():
        figure = Figure()
        suites = {name: TASKS[name].domain for name in names}
        for name, panel in panel_grid(figure, suites, legend, AXIS_LABELS["env_steps"], shared_y=not free).items():
            if panel.first:
                panel.axes.set_ylabel(METRIC_LABELS[TASKS[name].metric], fontsize=panel.font)
            own, theirs = means[means["task"] == name], published[published["task"] == name]
            _draw_task(panel.axes, TASKS[name], table[table["task"] == name], own, theirs, styles, free)
    return figure


def series_of(table: pd.DataFrame) -> list[style.SeriesKey]:
    """The distinct series of a table."""
    return list(table[SERIES].drop_duplicates().itertuples(index=False, name=None))


def _draw_task(
    axes: Axes,
    task: Task,
    seeds: pd.DataFrame,
    means: pd.DataFrame,
    published: pd.DataFrame,
    styles: Styles,
    free: bool,
) -> None:
    """One panel: random policy, seeds, means and bands, published curves, limits and ticks."""
    highest = draw_random(axes, task)
    highest = max(highest, draw_curves(axes, seeds, means, styles, "env_steps", marks=free))
    alone = all(key[1] == "published" for key in styles)
    over = published if alone else means
    last_step = float(over["env_steps"].max()) if len(over) else None
    line: dict[str, Any] = {"linewidth": 0.8} if alone else {"linewidth": 0.8, "linestyle": "--", "dashes": (3, 1.5)}
    for key, curve in groups(published):
        steps, values = curve["env_steps"].to_numpy(float), curve["mean"].to_numpy(float)
        axes.plot(steps, values, color=styles[key].colour, zorder=2.5, **line)
        end = last_step or 0.0
        highest = max(highest, float(np.interp(end, steps, values)), *values[steps <= end])
    set_limits(axes, task, last_step, highest, free)


def draw_random(axes: Axes, task: Task) -> float:
    """Dotted: the return of a random policy, where it is known; returns how high that is."""
    if task.random_return is not None:
        axes.axhline(task.random_return, color=GREY, linestyle=":", linewidth=0.9, zorder=1)
    return task.random_return or 0.0


def draw_curves(axes: Axes, seeds: pd.DataFrame, means: pd.DataFrame, styles: Styles, axis: str, marks: bool) -> float:
    """The curves of one task: mean, single seeds where there are several, and the band of an interval or range.

    Args:
        axes: where to draw.
        seeds: the task's rows of a tidy table.
        means: the task's rows of what `scores.curves` returns.
        styles: how each series is drawn.
        axis: the column on the x-axis, env_steps or updates.
        marks: whether to mark the points, if there are few.

    Returns:
        The highest value drawn, 0 without any.
    """
    highest = 0.0
    per_series = dict(groups(seeds))
    marked = marks and means[axis].nunique() <= 15
    for key, mean in groups(means):
        look = styles[key]
        steps = mean[axis].to_numpy(float)
        per_seed = [seed.sort_values(axis) for _, seed in groups(per_series[key], ["seed"])]
        if len(per_seed) > 1:
            for seed in per_seed:
                x = seed[axis].to_numpy(float)
                axes.plot(x, seed["value"], color=look.colour, linewidth=0.5, alpha=0.55, zorder=2)
            enough = mean["seeds"] >= MIN_SEEDS_FOR_INTERVAL
            low, high = mean["low"].where(enough, mean["min"]), mean["high"].where(enough, mean["max"])
            several = mean["seeds"] > 1
            axes.fill_between(steps, low, high, where=several, color=look.colour, alpha=0.16, linewidth=0, zorder=1.5)
            highest = max(highest, float(high.max()))
        marker = look.marker if marked or len(steps) == 1 else ""
        axes.plot(steps, mean["mean"], look.line, color=look.colour, marker=marker, markersize=2.5, zorder=3)
        highest = max(highest, float(mean["max"].max()))
    return highest


def set_limits(axes: Axes, task: Task, last_step: float | None, highest: float, free: bool) -> None:
    """Limits and ticks of a panel; without an evaluation it says so.

    Args:
        axes: the panel.
        task: whose metric is on the y-axis.
        last_step: where the curves end; None without any.
        highest: the highest value drawn.
        free: whether the y-axis may end below the metric's largest value.
    """
    axes.set_xlim(0, last_step * 1.04 if last_step else 1)
    if last_step:
        style.step_ticks(axes.xaxis, count=4 if free else 3)
    else:
        axes.set_xticks([0])
    if last_step is not None and task.domain == OWN and task.metric == "return":
        axes.autoscale(axis="y")  # a range may be declared, but nothing keeps the returns within it
        axes.tick_params(labelleft=True)  # so the panel shares no scale
        return
    top = 100.0 if task.score_range is None else task.score_range[1]  # the metric's largest possible value
    if task.metric == "return" and free and highest > 0:
        top = min(top, highest * 1.06)
    axes.set_ylim(0, top * 1.04)
    if last_step is None:
        axes.text(0.5, 0.5, "no evaluation", transform=axes.transAxes, ha="center", va="center", color=GREY)


def series_entries(styles: Styles) -> list[Artist]:
    """Legend entries of lines, ours by size, then the published ones."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=styles[key].colour, linestyle=styles[key].line, label=styles[key].label)
        for key in legend_order(styles)
    ]


def spread_entries(means: pd.DataFrame) -> list[Artist]:
    """Legend entries of single seeds and of the band, where there are several seeds."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    most = means["seeds"].max() if len(means) else 0
    if most <= 1:
        return []
    what = "95% interval" if most >= MIN_SEEDS_FOR_INTERVAL else "range of 2 seeds"
    return [
        Line2D([], [], color=GREY, linewidth=0.5, label="single seeds"),
        Patch(color=GREY, alpha=0.25, linewidth=0, label=what),
    ]


def random_entry(tasks: Sequence[str]) -> list[Artist]:
    """Legend entry of the random policy's line, where it is known for one of the tasks."""
    from matplotlib.lines import Line2D

    known = any(TASKS[name].random_return is not None for name in tasks)
    return [Line2D([], [], color=GREY, linestyle=":", linewidth=0.9, label="random policy")] if known else []


def legend_order(styles: Iterable[style.SeriesKey]) -> list[style.SeriesKey]:
    """Ours by size, then the published ones, TD-MPC2 before others; single-task before multi-task of the same size."""

    def place(key: style.SeriesKey) -> tuple[bool, bool, str, int, int, str]:
        algorithm, kind, size, task_set = key
        return (
            kind == "published",
            not algorithm.startswith("tdmpc2"),
            algorithm,
            size or 0,
            _KINDS.index(kind),
            task_set,
        )

    return sorted(styles, key=place)


def final_scores(final: pd.DataFrame, last: pd.DataFrame) -> Figure:
    """Final normalised scores, one row a task: the mean as a large dot, seeds as small ones, a bar from min to max.

    Hollow small dots are seeds that ended earlier and do not count. A grey tick is the random policy, hollow marks
    are published values at the same environment steps.

    Args:
        final: as `scores.final_scores` returns it.
        last: as `scores.last_evaluations` returns it, of the same series.

    Returns:
        A figure with one axes, or several side by side where there are many tasks.
    """
    from matplotlib.figure import Figure

    tasks = task_order(final["task"])
    published = published_algorithms(final)
    styles = style.series_styles([*series_of(final), *[(name, "published", None, "") for name in published]])
    columns = max(1, math.ceil(len(tasks) / 40))
    row = 0.1 + 0.085 * len(series_of(final))
    entries = _score_legend(styles, early=not last["counted"].all())
    with style.applied():
        figure = Figure()
        score_rows(
            figure, tasks, columns, row, entries, SCORE_LABEL,
            lambda axes, block: _draw_scores(axes, block, final, last, styles),
        )  # fmt: skip
    return figure


def _score_legend(styles: Styles, early: bool) -> list[Artist]:
    """What the marks of final scores mean."""
    from matplotlib.lines import Line2D

    entries: list[Artist] = []
    for key in legend_order(styles):
        look = styles[key]
        if key[1] == "published":
            entries.append(hollow_mark(look.marker, look.colour, 3.5, look.label))
        else:
            mark: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 4.5, "linewidth": 0.9}
            entries.append(Line2D([], [], label=look.label, **mark))
    if early:
        entries.append(hollow_mark("o", GREY, 2.2, "seed that ended early"))
    entries.append(Line2D([], [], color=GREY, marker="|", linestyle="", markersize=6, label="random policy"))
    return entries


def hollow_mark(marker: str, colour: str, size: float, label: str) -> Artist:
    """Legend entry of a hollow mark."""
    from matplotlib.lines import Line2D

    edges: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": colour, "markersize": size}
    return Line2D([], [], linestyle="", marker=marker, label=label, **edges)


def _draw_scores(axes: Axes, block: list[str], final: pd.DataFrame, last: pd.DataFrame, styles: Styles) -> None:
    """The rows of one block of tasks: position i on the y-axis is block[i]."""
    position = {task: float(i) for i, task in enumerate(block)}
    registry = registry_table()

    def scores(values: pd.Series, tasks: pd.Series) -> pd.Series:
        return (values - tasks.map(registry["score_low"])) * tasks.map(registry["score_scale"])

    final, last = final[final["task"].isin(block)], last[last["task"].isin(block)]
    ours = [key for key in legend_order(styles) if key[1] != "published"]
    offsets = dict(zip(ours, np.linspace(-0.28, 0.28, len(ours)) if len(ours) > 1 else [0.0], strict=True))
    _stripes(axes, len(block))
    for key, seeds in groups(last):
        colour = styles[key].colour
        for counted, face in ((True, colour), (False, "none")):
            shown = seeds[seeds["counted"] == counted]
            y = _rows_of(shown, position) + offsets[key]
            draw_marks(axes, shown["score"], y, marker="o", size=4, face=face, edge=colour, layer=3)
    for key, rows in groups(final):
        look = styles[key]
        y = _rows_of(rows, position) + offsets[key]
        least, most = (scores(rows[end], rows["task"]) for end in ("min", "max"))
        axes.hlines(y, least, most, color=look.colour, linewidth=0.9, zorder=2)
        draw_marks(axes, rows["score"], y, marker=look.marker, size=16, face=look.colour, edge="white", layer=4)

    per_task = final.drop_duplicates("task")
    random = scores(per_task["random_return"], per_task["task"])
    axes.scatter(random, _rows_of(per_task, position), s=26, marker="|", color=GREY, zorder=1.5, linewidths=1)
    for key in styles.keys() - set(ours):
        # the step, and so the published value, may differ from model to model: the furthest step's is drawn
        furthest = final.sort_values("env_steps", na_position="first").drop_duplicates("task", keep="last")
        values, look = scores(furthest[f"{PUBLISHED}{key[0]}"], furthest["task"]), styles[key]
        y = _rows_of(furthest, position)
        draw_marks(axes, values, y, marker=look.marker, size=13, face="none", edge=look.colour, layer=3.5)


def _rows_of(table: pd.DataFrame, position: Mapping[str, float]) -> pd.Series:
    """Place of each row's task on the y-axis; numbers also where there is no row, whose mapped names would be text."""
    return table["task"].map(position).astype(float)


def task_scores(rows: pd.DataFrame) -> Figure:
    """Normalised scores of many series, one row a task: a hollow mark for each series' mean, a bar over its runs.

    Made for published curves alone: series stand close together within a row, told apart by colour and marker.

    Args:
        rows: one row a task and series: task, algorithm, kind, size, task_set, mean, min, max (0 to 100).

    Returns:
        A figure with one axes, or several side by side where there are many tasks.
    """
    from matplotlib.figure import Figure

    tasks = task_order(rows["task"])
    styles = style.series_styles(series_of(rows))
    order = legend_order(styles)
    spread = 0.32 if len(order) > 1 else 0.0
    offsets = dict(zip(order, np.linspace(-spread, spread, len(order)), strict=True))
    entries = [hollow_mark(styles[key].marker, styles[key].colour, 3.5, styles[key].label) for key in order]

    def draw(axes: Axes, block: list[str]) -> None:
        position = {task: float(i) for i, task in enumerate(block)}
        _stripes(axes, len(block))
        for key, own in groups(rows[rows["task"].isin(block)]):
            y, look = _rows_of(own, position) + offsets[key], styles[key]
            axes.hlines(y, own["min"], own["max"], color=look.colour, linewidth=0.7, zorder=2)
            draw_marks(axes, own["mean"], y, marker=look.marker, size=9, face="white", edge=look.colour, layer=3)

    with style.applied():
        figure = Figure()
        columns = max(1, math.ceil(len(tasks) / 40))
        score_rows(figure, tasks, columns, 0.1 + 0.028 * len(order), entries, SCORE_LABEL, draw)
    return figure


def _stripes(axes: Axes, rows: int) -> None:
    """Every other row shaded, to lead the eye from the task's name to its marks."""
    for i in range(0, rows, 2):
        axes.axhspan(i - 0.5, i + 0.5, color="#F6F6F6", zorder=0, linewidth=0)


def draw_marks(
    axes: Axes, x: pd.Series, y: pd.Series, *, marker: str, size: float, face: str, edge: str, layer: float
) -> None:
    """Marks that may stand on the axes' edge."""
    axes.scatter(
        x, y, s=size, marker=marker, facecolors=face, edgecolors=edge, linewidths=0.5, zorder=layer, clip_on=False
    )
