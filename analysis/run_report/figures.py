"""Figures of single runs: losses and other training metrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis import style
from analysis.figures import AXIS_LABELS, GREY, METRIC_LABELS, draw_random, series_entries, series_of
from analysis.layout import panel_grid
from analysis.results import SERIES
from analysis.scores import groups, percentiles
from tdmpc2.tasks import Task

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_RUN_LINES = 12
"""Up to so many runs, `training_losses` draws each as a line."""
RUN_COLOUR, POLICY_COLOUR = "#0072B2", "#D55E00"
_SIGHT = 10.0  # a threshold further above all values than this factor would flatten them
_WIDE = 30.0  # a panel whose values span a greater factor has a logarithmic axis


def training_losses(training: pd.DataFrame, axis: str = "env_steps") -> Figure:
    """Losses and other training metrics over environment steps or updates, one panel a metric.

    Up to 12 runs are a line each; of more runs, each series shows the median and the range from the 10th to the 90th
    percentile.

    Args:
        training: as `results.load_training` returns it; every column that describes no run is a metric.
        axis: the column on the x-axis, env_steps or updates.

    Returns:
        A figure with a panel for each metric that has a value.
    """
    from matplotlib.figure import Figure

    described = {"run", "seed", "env_steps", "updates", *SERIES}
    metrics = [str(c) for c in training if c not in described and training[c].notna().any()]
    styles = style.series_styles(series_of(training))
    lines = training["run"].nunique() <= MAX_RUN_LINES
    if len({key[1] for key in styles}) == 1:  # colours tell the series apart, and solid lines are read more easily
        styles = {key: dataclasses.replace(look, line="-") for key, look in styles.items()}
    with style.applied():
        figure = Figure()
        names = dict.fromkeys(metrics, "")
        panels = panel_grid(figure, names, series_entries(styles), AXIS_LABELS[axis], shared_y=False)
        for metric, panel in panels.items():
            axes = panel.axes
            known = training[training[metric].notna()]
            if lines:
                for key, run in groups(known, [*SERIES, "run"]):
                    look = styles[key[:-1]]
                    axes.plot(run[axis], run[metric], look.line, color=look.colour, linewidth=0.8, alpha=0.9)
            else:
                for key, part in groups(percentiles(known, metric, axis)):
                    look = styles[key]
                    axes.fill_between(part[axis], part["p10"], part["p90"], color=look.colour, alpha=0.2, linewidth=0)
                    axes.plot(part[axis], part["p50"], look.line, color=look.colour)
            _logarithmic_where_wide(axes)
            axes.set_xlim(left=0)
            style.step_ticks(axes.xaxis, count=3)
    return figure


def _logarithmic_where_wide(axes: Axes) -> None:
    """A logarithmic y-axis where all values are positive and span a large factor."""
    from matplotlib.ticker import NullFormatter

    lowest, highest = axes.dataLim.intervaly
    if lowest > 0 and highest > _WIDE * lowest:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())


def metric_panels(
    training: pd.DataFrame,
    smooth: pd.DataFrame,
    metrics: Sequence[str],
    axis: str,
    others: pd.DataFrame | None = None,
    threshold: float | None = None,
) -> Figure:
    """Logged metrics of one run over its axis, a panel each: as logged (thin), smoothed, and other runs behind.

    Args:
        training: the run's log, see `RunRecord.training`.
        smooth: the same rows smoothed, see `record.smoothed`; equal ones are drawn as one line.
        metrics: the columns to draw.
        axis: the run's axis, env_steps or updates.
        others: logs of the other runs of its series, see `record.others_training`: median and 10th to 90th percentile.
        threshold: where gradients are clipped: a dashed line in the panels whose values come within a tenth of it.

    Returns:
        A figure with a panel for each metric, titled by it.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    is_smooth = any(not training[name].astype(float).equals(smooth[name].astype(float)) for name in metrics)
    compared = [name for name in metrics if others is not None and name in others and others[name].notna().any()]
    last = float(training.loc[training[list(metrics)].notna().any(axis=1), "step"].max())
    legend: list[Artist] = [Line2D([], [], color=RUN_COLOUR, linewidth=1.2, label="this run")]
    if is_smooth:
        legend.append(Line2D([], [], color=RUN_COLOUR, linewidth=0.6, alpha=0.45, label="as logged"))
    if compared:
        legend.append(Line2D([], [], color=GREY, linewidth=0.9, label="other runs: median"))
        legend.append(Patch(color=GREY, alpha=0.25, linewidth=0, label="10th to 90th percentile"))
    in_sight = [name for name in metrics if threshold is not None and threshold <= _SIGHT * training[name].max()]
    if in_sight:
        legend.append(Line2D([], [], color="black", linestyle="--", linewidth=0.8, label="clipping threshold"))
    with style.applied():
        figure = Figure()
        for metric, panel in panel_grid(figure, dict.fromkeys(metrics, ""), legend, AXIS_LABELS[axis], False).items():
            axes = panel.axes
            if metric in compared and others is not None:
                within = others[others[metric].notna() & (others[axis] <= last)]
                for _, part in groups(percentiles(within, metric, axis)) if len(within) else ():
                    axes.fill_between(part[axis], part["p10"], part["p90"], color=GREY, alpha=0.22, linewidth=0)
                    axes.plot(part[axis], part["p50"], color=GREY, linewidth=0.9)
            rows = training[["step", metric]].replace([np.inf, -np.inf], np.nan).dropna()
            dot = "." if len(rows) == 1 else ""
            if is_smooth:
                axes.plot(rows["step"], rows[metric], color=RUN_COLOUR, linewidth=0.5, alpha=0.4)
            line = smooth[["step", metric]].dropna()
            axes.plot(line["step"], line[metric], dot + "-", color=RUN_COLOUR, linewidth=1.1)
            if metric in in_sight and threshold is not None:
                axes.axhline(threshold, color="black", linestyle="--", linewidth=0.8)
            _logarithmic_where_wide(axes)
            axes.set_xlim(0, last * 1.02 if last > 0 else 1)
            style.step_ticks(axes.xaxis, count=5 if len(metrics) < 3 else 4)
    return figure


def returns(
    task: Task,
    training: pd.DataFrame,
    smooth: pd.DataFrame,
    evaluations: pd.DataFrame,
    axis: str,
    published: pd.DataFrame | None = None,
) -> Figure:
    """Training episodes and evaluations of a run of one task: return and, where success counts, success rate.

    Args:
        task: the run's task.
        training: its log, with return and success of the training episodes.
        smooth: these two smoothed, see `record.smoothed`.
        evaluations: evaluations while training, see `RunRecord.logged`.
        axis: the run's axis, env_steps or updates.
        published: mean published curves of the task, see `scores.curves`; drawn over the run's steps only.

    Returns:
        A figure with one panel, or two.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    metrics = ["return", "success"] if task.metric == "success" else ["return"]
    evaluations = evaluations.sort_values("step")
    acted = "return" in training and training["return"].notna().any()
    ends = [float(rows["step"].max()) for rows in (training, evaluations) if len(rows)]
    last = max(ends, default=1.0) or 1.0
    theirs = [] if published is None or axis == "updates" else groups(published)
    known = [(key, curve) for key, curve in theirs if curve["env_steps"].min() < last]  # later ones: out of sight
    styles = style.series_styles([key for key, _ in known])
    legend: list[Artist] = []
    if len(evaluations):
        legend.append(Line2D([], [], color=RUN_COLOUR, marker="o", markersize=3, label="evaluation, mean"))
        if evaluations["std"].notna().any():
            legend.append(Patch(color=RUN_COLOUR, alpha=0.25, linewidth=0, label="\N{PLUS-MINUS SIGN} std of episodes"))
    if acted:
        legend.append(Line2D([], [], color=POLICY_COLOUR, linewidth=0.9, label="training episodes"))
    if task.random_return is not None:
        legend.append(Line2D([], [], color=GREY, linestyle=":", linewidth=0.9, label="random policy"))
    legend += series_entries(styles)
    with style.applied():
        figure = Figure()
        names = {METRIC_LABELS[metric]: "" for metric in metrics}
        panels = panel_grid(figure, names, legend, AXIS_LABELS[axis], False)
        for metric in metrics:
            axes = panels[METRIC_LABELS[metric]].axes
            if acted and metric in training:
                episodes = training[["step", metric]].dropna()
                axes.plot(episodes["step"], episodes[metric], ".", color=POLICY_COLOUR, markersize=2, alpha=0.5)
                line = smooth[["step", metric]].dropna()
                axes.plot(line["step"], line[metric], color=POLICY_COLOUR, linewidth=0.9)
            mean = evaluations[metric].astype(float)
            axes.plot(evaluations["step"], mean, "o-", color=RUN_COLOUR, markersize=2.5, zorder=3)
            std = evaluations["return_std" if metric == "return" else "std"].astype(float)
            axes.fill_between(evaluations["step"], mean - std, mean + std, color=RUN_COLOUR, alpha=0.18, linewidth=0)
            if metric == "return":
                draw_random(axes, task)
            for key, curve in known if metric == task.metric else ():
                steps, means = curve["env_steps"].to_numpy(float), curve["mean"].to_numpy(float)
                shown = np.unique([*steps[steps < last], min(last, steps[-1])])
                axes.plot(shown, np.interp(shown, steps, means), "--", color=styles[key].colour, linewidth=0.8)
            axes.set_xlim(-0.02 * last, last * 1.04)
            axes.set_ylim(bottom=min(0.0, axes.dataLim.intervaly[0]) if math.isfinite(axes.dataLim.intervaly[0]) else 0)
            if metric == "success":
                axes.set_ylim(-0.02, 1.04)
            style.step_ticks(axes.xaxis, count=5)
    return figure


def line_panel(rows: pd.DataFrame, column: str, title: str, axis: str) -> Figure:
    """One line over the run's axis, from zero: `step` against a column.

    Returns:
        A figure of one column's width, with one panel.
    """
    from matplotlib.figure import Figure

    with style.applied():
        figure = Figure()
        axes = panel_grid(figure, {title: ""}, [], AXIS_LABELS[axis], False)[title].axes
        axes.plot(rows["step"], rows[column], "o-" if len(rows) <= 25 else "-", color=RUN_COLOUR, markersize=2.5)
        axes.set_xlim(0, float(rows["step"].max()) * 1.02 or 1)
        axes.set_ylim(0, float(rows[column].max()) * 1.08 or 1)
        style.step_ticks(axes.xaxis, count=5)
    return figure
