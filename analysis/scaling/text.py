"""The words of the scaling page, generated from what was measured: no number here that is not computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.scaling.fits import Scaling
from analysis.scaling.laws import LOG_LINEAR, POWER_LAW
from analysis.scaling.resampling import MIN_TASKS_FOR_INTERVAL
from analysis.scaling.series import SizeSeries
from analysis.scores import MIN_SEEDS_FOR_INTERVAL
from analysis.statistics import Interval
from analysis.study import Study
from analysis.tables import counted
from analysis.words import listed

STATISTIC_WORDS = {"mean": "mean", "iqm": "interquartile mean", "median": "median"}
_TASKS_NAMED = 6
_ROUNDING = 1e-9  # points: a smaller change is a matter of the order of summing
_VERBS = {"gain": ("gains from size", "gain from size"), "loss": ("loses by it", "lose by it")}
"""Of one task, of several."""


def millions(value: float) -> str:
    """A number of parameters for people, e.g. `1.21M`, `317M`."""
    return f"{float(f'{value:.3g}'):g}M"


def headline(study: Study, scalings: Sequence[Scaling], published: pd.DataFrame | None) -> str:
    """What a tenfold larger model brings, for the series that can tell most, or why it cannot be said.

    Args:
        study: the loaded results.
        scalings: as `fits.measure` returns them.
        published: the paper's points, where they are shown.
    """
    telling = [scaling for scaling in scalings if scaling.series.comparable]
    telling.sort(key=lambda scaling: (len(scaling.series.sizes), len(scaling.series.tasks)), reverse=True)
    if telling:
        sentences = [answer(scaling) for scaling in telling[:2]]
        if len(telling) > 2:
            sentences.append(f"{counted(len(telling) - 2, 'other comparison')} below.")
        return " ".join(sentences)
    why = " ".join(_why_not(study, scalings))
    return " ".join([f"What a larger model brings cannot be said. {why}", *_published_span(published)])


def _why_not(study: Study, scalings: Sequence[Scaling]) -> list[str]:
    if study.runs.empty:
        return ["There are no runs of several model sizes here: published learning curves alone are of one size each."]
    if not scalings:
        return ["None of the runs looked at has an evaluation yet."]
    return [answer(scaling) for scaling in scalings]


def _published_span(published: pd.DataFrame | None) -> list[str]:
    if published is None or published.empty:
        return []
    parts = []
    for task_set, rows in published.groupby("task_set"):
        ends = rows.sort_values("parameters_millions").iloc[[0, -1]]
        scores = [f"{row['score']:.1f} at {millions(row['parameters_millions'])}" for row in ends.to_dict("records")]
        parts.append(f"on {task_set} {scores[0]} and {scores[1]}")
    return [f"TD-MPC2's paper reports {listed(parts)}."]


def answer(scaling: Scaling) -> str:
    """What more parameters brought in one series of sizes, with its interval, or why that cannot be said."""
    series = scaling.series
    if len(series.sizes) == 1:
        return (
            f"{series.name}: the only model size with an evaluation is {series.sizes[0]}M; a second size on the same "
            "tasks is needed."
        )
    if not series.tasks:
        labels = listed([f"{size}M" for size in series.sizes])
        return f"{series.name}: no task has a score at every size ({labels}), so the sizes cannot be compared."
    over = series.tasks[0] if len(series.tasks) == 1 else counted(len(series.tasks), "task")
    ends = [millions(series.parameters[place]) for place in (0, -1)]
    if len(series.sizes) == 2:
        scores = f"{scaling.score[1]:.1f} with {ends[1]} parameters against {scaling.score[0]:.1f} with {ends[0]}"
        difference = scaling.difference()
        return (
            f"{series.name}: the {_statistic(scaling)} over {over} is {scores}, {_signed(difference)}"
            f"{_certainty(difference, scaling, 'a difference of')} Two sizes give a difference, not a law."
        )
    slope = scaling.slope()
    return (
        f"{series.name}: over {len(series.sizes)} sizes from {ends[0]} to {ends[1]} parameters and {over}, a tenfold "
        f"larger model changes the {_statistic(scaling)} by {_signed(slope)} on average"
        f"{_certainty(slope, scaling, 'no change or')} {_law_sentence(scaling)}"
    )


def _statistic(scaling: Scaling) -> str:
    return f"{STATISTIC_WORDS[scaling.statistic]} normalised score (0 to 100)"


def _signed(interval: Interval) -> str:
    """A change in points, e.g. `+12.3 points [+8.0, +15.1]`."""
    known = not np.isnan(interval.low)
    return f"{interval.value:+.1f} points" + (f" [{interval.low:+.1f}, {interval.high:+.1f}]" if known else "")


def _certainty(interval: Interval, scaling: Scaling, nothing: str) -> str:
    """The end of a sentence that gave a change: whether it can be told from none."""
    if np.isnan(interval.low):
        return (
            f"; no interval, which needs {MIN_TASKS_FOR_INTERVAL} tasks or {MIN_SEEDS_FOR_INTERVAL} seeds of each task."
        )
    if interval.low <= _ROUNDING and interval.high >= -_ROUNDING:
        return ", which cannot be told from none."
    return f" (95% interval over {scaling.resampled.over})."


def _law_sentence(scaling: Scaling) -> str:
    """Which law describes the scores, and what it says of the first and last tenfold."""
    if len(scaling.fits) < 2:
        return f"A saturating law needs {POWER_LAW.sizes_needed} sizes to be told from a straight line."
    if not scaling.decided:
        return (
            "Whether the gain levels off is not decided: the log-linear law and the saturating power law predict "
            "left-out sizes about equally well."
        )
    assert scaling.chosen is not None
    if scaling.chosen.law is not POWER_LAW:
        return "The log-linear law predicts left-out sizes better than the saturating one: no levelling off is seen."
    sentence = "The saturating power law predicts left-out sizes better than the log-linear one"
    if scaling.decades() < 1:
        return sentence + "."
    smallest, largest = scaling.series.parameters[[0, -1]]
    first, last = scaling.gain(smallest, 10 * smallest), scaling.gain(largest / 10, largest)
    return f"{sentence}: the first tenfold brings {_signed(first)}, the last {_signed(last)}."


def notes(series: SizeSeries) -> list[str]:
    """What is not as a reader would expect in a series of sizes."""
    found = []
    if series.left_out and len(series.sizes) > 1:
        found.append(
            f"{series.name}: {counted(len(series.left_out), 'task')} left out, without a score at every size: "
            f"{_some(series.left_out)}."
        )
    if series.uneven:
        found.append(
            f"{series.name}: the sizes were not trained for equally long on {_some(series.uneven)}; each is taken at "
            "its last evaluation."
        )
    if series.nominal:
        labels = listed([f"{size}M" for size in series.nominal])
        found.append(f"{series.name}: the parameters of size {labels} could not be counted; the label stands in.")
    if series.uncounted:
        found.append(
            f"{series.name}: the parameters of agents of {_some(series.uncounted)} could not be counted; the others' "
            "mean is shown."
        )
    return found


def _some(names: Sequence[str]) -> str:
    more = len(names) - _TASKS_NAMED
    return listed([*names[:_TASKS_NAMED], *([f"{more} more"] if more > 0 else [])])


def curve_caption(scalings: Sequence[Scaling], published: pd.DataFrame | None, resamples: int) -> str:
    """What the marks, bars, curves and bands of the scaling figure are."""
    parts = []
    if scalings:
        parts.append(
            f"Each mark is a model size: {_statistic(scalings[0])} over the tasks that all sizes of the panel have in "
            "common, at each run's last evaluation, over the learned parameters of one agent (logarithmic scale)."
        )
        if any(np.isfinite(scaling.over_seeds).any() for scaling in scalings):
            parts.append("Thick bars: 95% interval over seeds, for these tasks (multi-task agents are drawn whole).")
        if any(np.isfinite(scaling.over_tasks).any() for scaling in scalings):
            parts.append("Thin bars: 95% interval over tasks and seeds, for tasks like these.")
        parts.append(f"Intervals are percentiles of {resamples:,} bootstrap resamples.")
    if any(scaling.fits for scaling in scalings):
        parts.append(
            "Lines: laws fitted by least squares, all sizes counting the same; thick, with its 95% band, the one that "
            "predicts left-out sizes best (the simpler one where that is not decided). Dashed: extrapolation."
        )
    if published is not None and len(published):
        parts.append(published_note(published))
    return " ".join(parts)


def curve_description(scalings: Sequence[Scaling]) -> str:
    """What is to be seen, for readers who cannot see it."""
    seen = [
        f"{scaling.series.name}: {_along(list(scaling.series.parameters), list(scaling.score))}" for scaling in scalings
    ]
    return f"Normalised score over parameters. {'; '.join(seen) or 'Published scores only'}."


def _along(parameters: Sequence[float], scores: Sequence[float]) -> str:
    return listed([f"{score:.1f} at {millions(size)}" for size, score in zip(parameters, scores, strict=True)])


def cost_description(scalings: Sequence[Scaling]) -> str:
    """What is to be seen, for readers who cannot see it."""
    names = listed([scaling.series.name for scaling in scalings])
    return f"Normalised score over parameters, updates and device-hours, side by side, of {names}."


def published_note(published: pd.DataFrame) -> str:
    """What the published points are, and what they are not."""
    sets = listed(sorted(published["task_set"].unique()))
    return (
        f"Hollow diamonds: the scores that TD-MPC2's paper reports for its {sets} models, at the sizes' labels, with "
        "its own data and simulators and without intervals; they need not be reached here. "
        f"Source: {'; '.join(published['source'].unique())}."
    )


def points_caption(scalings: Sequence[Scaling]) -> str:
    """What the table of scores and costs holds."""
    single = any(scaling.series.kind == "single" for scaling in scalings)
    agents = " (single-task agents: summed over the tasks)" if single else ""
    return (
        f"Scores and costs by model size: {_statistic(scalings[0])}. Updates and hours are those of one seed of all "
        f"tasks together{agents}. Hours are wall-clock hours of the runs on the device they ran on, evaluation "
        "included, whatever else ran beside them."
    )


def fits_caption(scalings: Sequence[Scaling]) -> str:
    """What the table of fitted laws holds."""
    over = sorted({scaling.resampled.over for scaling in scalings if scaling.fits} - {""})
    intervals = f" Intervals: 95%, laws fitted anew to resampled {' or '.join(over)}." if over else ""
    return (
        "Laws of normalised score over N, the millions of learned parameters. Error: root mean squared error of "
        "predicting each size from the others (leave one size out). Two laws are not decided between where their mean "
        f"squared errors differ by no more than one standard error.{intervals}"
    )


def cost_caption(scalings: Sequence[Scaling]) -> str:
    """What the axes of the cost figure are."""
    hardware = sorted({name for scaling in scalings for name in scaling.series.costs["hardware"] if name})
    on = f" Hardware: {'; '.join(hardware)}." if hardware else ""
    return (
        "The same scores over what one seed of all tasks took: updates of the agents (single-task agents: summed over "
        "tasks) and hours of the runs on their device, evaluation included. Hours are only comparable on the same "
        f"hardware.{on} Bars as above: thick over seeds, thin over tasks and seeds."
    )


def slopes_sentence(series: SizeSeries, slopes: pd.DataFrame) -> str:
    """Which tasks gain from size, after correction."""
    verdicts = slopes["verdict"].value_counts()
    gains, losses = (int(verdicts.get(name, 0)) for name in ("gain", "loss"))
    of = counted(len(slopes), "task")
    if gains == losses == 0:
        told = f"on none of {of} can a gain or loss be told from chance" if len(slopes) > 1 else (
            f"on {slopes['task'].iloc[0]} no gain or loss can be told from chance"
        )  # fmt: skip
        return f"{series.name}: {told} (permutation tests, Holm's correction, 5%); runs a task: {_runs(slopes)}."
    parts = []
    for count, verdict, order in ((gains, "gain", False), (losses, "loss", True)):
        if count:
            found = slopes[slopes["verdict"] == verdict].sort_values("slope", ascending=order)
            verb = _VERBS[verdict][count > 1]
            parts.append(f"{count} {verb} ({_some(list(found['task']))})")
    return f"{series.name}: of {of} {listed(parts)} (permutation tests, Holm's correction, 5%)."


def _runs(slopes: pd.DataFrame) -> str:
    low, high = slopes["runs"].min(), slopes["runs"].max()
    return f"{low}" if low == high else f"{low} to {high}"


def slopes_caption(series: SizeSeries, slopes: pd.DataFrame) -> str:
    """What the dots of the per-task figure are."""
    bars = " Bars: 95% interval over seeds." if slopes["low"].notna().any() else (
        f" No bars: an interval needs {MIN_SEEDS_FOR_INTERVAL} seeds at every size."
    )  # fmt: skip
    return (
        f"{series.name}, task by task: points of normalised score for a tenfold larger model, the least-squares slope "
        "over log10 of parameters. Filled: different from 0 after Holm's correction for all tasks (permutation test, "
        f"5%); hollow: not decided.{bars}"
    )


def no_slopes() -> str:
    """Why there are no slopes by task."""
    return "Slopes by task need two model sizes with evaluations of the same task; there are none."


def no_fits() -> str:
    """Why no law was fitted."""
    return (
        f"A law of score over parameters needs {LOG_LINEAR.sizes_needed} model sizes with evaluations of the same "
        f"tasks (the {POWER_LAW.name} {POWER_LAW.sizes_needed}); there are fewer."
    )


def no_points(study: Study) -> str:
    """Why there is no score to show."""
    if study.runs.empty:
        return "There are no runs here, so there is no score over size or cost to show."
    return "No size has an evaluation of tasks that all sizes have in common, so there is no score to show."
