"""Figures of agents that learned from a data set: curves over updates, and scores beside the single-task ones.

Like `analysis.figures`, they compute nothing but positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import style
from analysis.figures import (
    AXIS_LABELS,
    FREE_SCALE_PANELS,
    GREY,
    METRIC_LABELS,
    SCORE_LABEL,
    Styles,
    draw_curves,
    draw_marks,
    draw_random,
    random_entry,
    series_entries,
    series_of,
    set_limits,
    spread_entries,
)
from analysis.layout import Panel, panel_grid, score_rows
from analysis.multitask.comparison import SINGLE
from analysis.results import SERIES
from analysis.scores import MIN_SEEDS_FOR_INTERVAL, curves, groups, offline, primary, task_order
from analysis.study import PUBLISHED_KIND
from tdmpc2.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDES = ("single", PUBLISHED_KIND)
"""Kinds of the single-task side."""
_LEVEL_DASHES = (6, 2)
_TALLEST = 9.0
"""Inches: where `kinds_compared` would be taller, its tasks stand in several columns, three at the most."""


def update_curves(table: pd.DataFrame, comparison: pd.DataFrame) -> Figure:
    """Learning curves over updates as small multiples, one panel a task, one line a model size.

    Solid: the mean over seeds, with single seeds and the band as in `figures.learning_curves`. Level and dashed, in the
    colour of the same size: the single-task agent's score at the end of the buffer, mean over its seeds. Dotted: a
    random policy.

    Args:
        table: tidy table of evaluations; rows of other agents are left out.
        comparison: as `comparison.compare` returns it, of the same agents; a panel for each of its tasks.

    Returns:
        A figure whose axes are the panels, titled by task; the legend is the figure's.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = task_order(comparison["task"])
    shown = pd.MultiIndex.from_frame(comparison[SERIES].drop_duplicates())
    table = offline(primary(table[table["task"].isin(names) & pd.MultiIndex.from_frame(table[SERIES]).isin(shown)]))
    means = curves(table)
    single = _single_scores(comparison)
    styles = style.series_styles([*_scored_series(comparison), *_single_series(single)])
    free = len(names) <= FREE_SCALE_PANELS
    # Every curve is of an offline agent, and colours tell the sizes apart: solid lines are read most easily.
    own = {key: dataclasses.replace(look, line="-") for key, look in styles.items() if key[1] not in _SIDES}
    dashed: dict[str, Any] = {"linestyle": "--", "dashes": _LEVEL_DASHES, "linewidth": 0.8}
    levels = [
        Line2D([], [], color=look.colour, label=f"{look.label} single-task", **dashed)
        for key, look in styles.items()
        if key[1] in _SIDES
    ]
    legend = [*series_entries(own), *spread_entries(means), *levels, *random_entry(names)]

    with style.applied():
        figure = Figure()
        suites = {name: TASKS[name].domain for name in names}
        for name, panel in panel_grid(figure, suites, legend, AXIS_LABELS["updates"], shared_y=not free).items():
            task = TASKS[name]
            if panel.first:
                panel.axes.set_ylabel(METRIC_LABELS[task.metric], fontsize=panel.font)
            highest = draw_random(panel.axes, task)
            rows = single[single["task"] == name]
            for key, row in groups(rows, SINGLE):
                level = task.score_low + float(row["single_score"].iloc[0]) / task.score_scale
                panel.axes.axhline(level, color=styles[*key, ""].colour, zorder=2, **dashed)
                highest = max(highest, level)
            mean = means[means["task"] == name]
            seeds = table[table["task"] == name]
            highest = max(highest, draw_curves(panel.axes, seeds, mean, own, "updates", marks=free))
            last = float(mean["updates"].max()) if len(mean) else None
            set_limits(panel.axes, task, last, highest, free)
            if free and len(rows) == 1 and last:
                _label_level(panel, task.score_low + float(rows["single_score"].iloc[0]) / task.score_scale)
    return figure


def _label_level(panel: Panel, level: float) -> None:
    """Name the single-task level where it is alone, above its line at the left: curves come there later, if at all."""
    from matplotlib.patheffects import withStroke

    panel.axes.annotate(
        "single-task",
        (0.03, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, 1.5),
        textcoords="offset points",
        fontsize=panel.font - 1.5,
        color="#333333",
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
        zorder=5,
    )


def _single_scores(comparison: pd.DataFrame) -> pd.DataFrame:
    """The single-task scores of a comparison, one row a task and series, in the same columns."""
    scored = comparison[comparison["single_score"].notna()]
    return scored.drop_duplicates(["task", *SINGLE])


def _scored_series(comparison: pd.DataFrame) -> list[style.SeriesKey]:
    return series_of(comparison[comparison["score"].notna()])


def _single_series(single: pd.DataFrame) -> list[style.SeriesKey]:
    return [(*key, "") for key, _ in groups(single, SINGLE)]


def kinds_compared(comparison: pd.DataFrame) -> Figure:
    """Normalised scores, one row a task: a random policy, the single-task agents and the multi-task ones by size.

    Marks are means over seeds, the single-task agents' round, the multi-task ones' square. A bar is the 95% interval
    of the mean from three seeds on, the range of the seeds with two; one seed has none. A thin line joins each
    multi-task score to the single-task score that it is compared with.

    Args:
        comparison: as `comparison.compare` returns it, of one task set.

    Returns:
        A figure with one axes, or several side by side where there are many tasks.
    """
    from matplotlib.figure import Figure

    tasks = task_order(comparison["task"])
    single = _single_scores(comparison)
    styles = style.series_styles([*_scored_series(comparison), *_single_series(single)])
    entries = _compared_legend(styles, comparison)
    row = 0.09 + 0.06 * len(styles)
    columns = min(3, max(1, math.ceil(row * len(tasks) / _TALLEST)))
    with style.applied():
        figure = Figure()
        score_rows(
            figure,
            tasks,
            columns,
            row,
            entries,
            SCORE_LABEL,
            lambda axes, block: _draw_compared(axes, block, comparison, single, styles),
        )
    return figure


def _row_order(styles: Styles) -> list[style.SeriesKey]:
    """From top to bottom of a task's row: the single-task agents, then the others, each by size."""
    return sorted(styles, key=lambda key: (key[1] not in _SIDES, key[0], key[1], key[2], key[3]))


def _compared_legend(styles: Styles, comparison: pd.DataFrame) -> list[Artist]:
    """What the marks of compared scores mean."""
    from matplotlib.lines import Line2D

    several = max(comparison["seeds"].max(), comparison["single_seeds"].fillna(0).max()) > 1
    entries: list[Artist] = []
    for key in _row_order(styles):
        look = styles[key]
        label = f"{look.label} single-task" if key[1] in _SIDES else look.label
        mark: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 4.0}
        entries.append(Line2D([], [], linestyle="-" if several else "", linewidth=0.9, label=label, **mark))
    if comparison["random_score"].notna().any():
        entries.append(Line2D([], [], color=GREY, marker="|", linestyle="", markersize=6, label="random policy"))
    return entries


def _draw_compared(
    axes: Axes, block: Sequence[str], comparison: pd.DataFrame, single: pd.DataFrame, styles: Styles
) -> None:
    """The rows of one block of tasks: position i on the y-axis is block[i]."""
    position = {task: float(i) for i, task in enumerate(block)}
    keys = _row_order(styles)
    offset = dict(zip(keys, np.linspace(-0.3, 0.3, len(keys)) if len(keys) > 1 else [0.0], strict=True))
    for i in range(0, len(block), 2):
        axes.axhspan(i - 0.5, i + 0.5, color="#F6F6F6", zorder=0, linewidth=0)
    comparison, single = comparison[comparison["task"].isin(block)], single[single["task"].isin(block)]

    random = comparison.drop_duplicates("task")
    y = random["task"].map(position)
    axes.scatter(random["random_score"], y, s=40, marker="|", color=GREY, zorder=1.5, linewidths=1)
    for key, rows in groups(comparison[comparison["difference"].notna()], [*SERIES, *SINGLE]):
        own, other = key[:4], (*key[4:], "")
        middle = rows["task"].map(position).to_numpy()
        ends = (rows[["single_score", "score"]].to_numpy().T, np.stack([middle + offset[other], middle + offset[own]]))
        axes.plot(*ends, color=styles[own].colour, linewidth=0.5, alpha=0.6, zorder=1.8)
    for key, rows in groups(single, SINGLE):
        named = rows[["task"]].join(rows.filter(like="single_").rename(columns=lambda c: c.removeprefix("single_")))
        _draw_scores(axes, named, position, offset, (*key, ""), styles)
    scored = comparison[comparison["score"].notna()].drop_duplicates(["task", *SERIES])
    for key, rows in groups(scored, SERIES):
        _draw_scores(axes, rows, position, offset, key, styles)


def _draw_scores(
    axes: Axes,
    rows: pd.DataFrame,
    position: dict[str, float],
    offset: dict[style.SeriesKey, float],
    key: style.SeriesKey,
    styles: Styles,
) -> None:
    """One series' scores, with their intervals or ranges."""
    look = styles[key]
    y = rows["task"].map(position) + offset[key]
    enough = rows["seeds"] >= MIN_SEEDS_FOR_INTERVAL
    low, high = rows["low"].where(enough, rows["min"]), rows["high"].where(enough, rows["max"])
    axes.hlines(y, low, high, color=look.colour, linewidth=0.9, zorder=2)
    draw_marks(axes, rows["score"], y, marker=look.marker, size=14, face=look.colour, edge="white", layer=4)
