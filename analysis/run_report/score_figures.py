"""Figures of single runs that are not over steps: scores by task, planning against policy, frames of films."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import style
from analysis.figures import GREY, SCORE_LABEL
from analysis.layout import score_rows
from analysis.run_report.figures import POLICY_COLOUR, RUN_COLOUR
from analysis.run_report.record import random_score
from tdmpc2.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.run_report.videos import Film

_ROWS_OF_A_BLOCK = 40


def task_scores(last: pd.DataFrame, first: pd.DataFrame) -> Figure:
    """Normalised scores of an agent of several tasks, a row a task: its first evaluation and its last, with the spread.

    Args:
        last: each task's last evaluation, sorted; std over its episodes.
        first: each task's first evaluation.
    """
    from matplotlib.lines import Line2D

    mark: dict[str, Any] = {"color": RUN_COLOUR, "marker": "o", "linestyle": "", "markersize": 4}
    legend: list[Artist] = [
        Line2D([], [], label="last evaluation", **mark),
        Line2D([], [], color=RUN_COLOUR, linewidth=0.9, label="\N{PLUS-MINUS SIGN} std of episodes"),
        Line2D([], [], label="first evaluation", markerfacecolor="none", **mark),
        Line2D([], [], color=GREY, marker="|", linestyle="", markersize=6, label="random policy"),
    ]
    scores = {name: rows.set_index("task")["score"] for name, rows in (("last", last), ("first", first))}
    spread = last.set_index("task")["std"]

    def draw(axes: Axes, block: list[str]) -> None:
        for y, task in enumerate(block):
            half = float(spread[task]) * TASKS[task].score_scale
            score = float(scores["last"][task])
            if math.isfinite(half):
                axes.hlines(y, max(0.0, score - half), min(100.0, score + half), color=RUN_COLOUR, linewidth=0.9)
            axes.scatter(scores["first"][task], y, s=12, facecolors="none", edgecolors=RUN_COLOUR, linewidths=0.6)
            axes.scatter(score, y, s=14, color=RUN_COLOUR, zorder=3, clip_on=False)
            axes.scatter(random_score(TASKS[task]), y, s=26, marker="|", color=GREY, linewidths=1, zorder=1)

    return _rows_of_tasks(list(last["task"]), legend, draw)


def planning_scores(compared: pd.DataFrame) -> Figure:
    """Planning against policy in normalised scores, a row a task: means and standard deviations over episodes.

    Args:
        compared: one row a task, see `planning.compare_planning`.
    """
    from matplotlib.lines import Line2D

    looks: Mapping[str, tuple[str, str, str, float]] = {
        "planning": (RUN_COLOUR, "o", "planning (MPPI)", -0.14),
        "policy": (POLICY_COLOUR, "s", "policy alone (mean action)", 0.14),
    }
    legend: list[Artist] = [
        Line2D([], [], color=colour, marker=marker, markersize=4, linewidth=0.9, label=label)
        for colour, marker, label, _ in looks.values()
    ]
    by_task = compared.set_index("task")

    def draw(axes: Axes, block: list[str]) -> None:
        for y, task in enumerate(block):
            for name, (colour, marker, _, offset) in looks.items():
                score = float(by_task[f"{name}_score"][task])
                half = float(by_task[f"{name}_std"][task]) * TASKS[task].score_scale
                if math.isfinite(half):
                    ends = max(0.0, score - half), min(100.0, score + half)
                    axes.hlines(y + offset, *ends, color=colour, linewidth=0.9)
                axes.scatter(score, y + offset, s=14, color=colour, marker=marker, zorder=3, clip_on=False)

    return _rows_of_tasks(list(compared["task"]), legend, draw)


def _rows_of_tasks(tasks: Sequence[str], legend: Sequence[Artist], draw: Callable[[Axes, list[str]], None]) -> Figure:
    """Normalised scores in rows, in one block or, of many tasks, in blocks side by side."""
    from matplotlib.figure import Figure

    with style.applied():
        figure = Figure()
        score_rows(figure, tasks, max(1, math.ceil(len(tasks) / _ROWS_OF_A_BLOCK)), 0.17, legend, SCORE_LABEL, draw)
    return figure


def contact_sheet(films: Sequence[Film]) -> Figure:
    """Frames of films, a row a film, evenly spaced in time."""
    from matplotlib.figure import Figure

    columns = max(len(film.frames) for film in films)
    heading, gap = 0.34, 0.04
    side = (style.PAGE_WIDTH - gap * (columns + 1)) / columns
    heights = [side * film.frames[0].shape[0] / film.frames[0].shape[1] for film in films]
    tall = sum(heights) + heading * len(films) + gap
    with style.applied():
        figure = Figure(figsize=(style.PAGE_WIDTH, tall))
        top = tall
        for film, height in zip(films, heights, strict=True):
            figure.text(gap / style.PAGE_WIDTH, (top - 0.05) / tall, film.path.name, va="top", fontsize=7)
            for column, (frame, when) in enumerate(zip(film.frames, film.times, strict=True)):
                left = gap + column * (side + gap)
                corner = (left / style.PAGE_WIDTH, (top - heading - height) / tall)
                axes = figure.add_axes((*corner, side / style.PAGE_WIDTH, height / tall))
                axes.imshow(frame)
                axes.set_axis_off()
                axes.set_title(f"{when:.1f} s", fontsize=6, pad=1.5)
            top -= heading + height
    return figure
