"""Figures of task embeddings. They compute nothing but positions; all return a Figure made without pyplot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import style
from analysis.embeddings.claim import CLASSES, Claim
from analysis.embeddings.structure import leaf_order
from analysis.layout import add_legend, legend_height
from analysis.style import SUITE_NAMES
from analysis.tables import counted
from tdmpc2.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

Array = NDArray[np.float64]
SIMILARITY = "Cosine similarity"
# Okabe and Ito's palette without its pale yellow, and a brown; grey stands for all others.
_BODY_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#6B4E16", "#882255")
_OTHER = "#F1E8D6"
_SUITE_GREYS = dict(zip(SUITE_NAMES, ("#222222", "#B0B0B0", "#6A6A6A", "#DDDDDD", "#8C8C8C"), strict=True))
_LABEL_COLOURS = {"embodiment": "#0072B2", "objective": "#D55E00"}
_CLASS_COLOURS = dict(zip(CLASSES, ("#0072B2", "#D55E00", "#882255", "#888888"), strict=True))
_POINT = 1 / 72
_NUMBERS_SHOWN = 12
"""Up to so many tasks, a heatmap's cells hold their numbers."""


def body_colours(tasks: Sequence[str]) -> dict[str, str]:
    """Colours of the embodiments that most tasks have, the most frequent first; of those alone that two tasks share."""
    counts = Counter(TASKS[task].embodiment for task in tasks)
    frequent = [name for name, count in counts.most_common(len(_BODY_COLOURS)) if count > 1]
    if not frequent and len(tasks) <= len(_BODY_COLOURS):
        frequent = list(counts)
    return dict(zip(frequent, _BODY_COLOURS, strict=False))


def similarity_heatmap(tasks: Sequence[str], similarity: Array, tree: Array) -> Figure:
    """Similarity of every two tasks, in the order of a hierarchical clustering, whose tree stands to the left.

    Beside the names: each task's suite (where there are several) and embodiment.

    Args:
        tasks: names.
        similarity: (tasks, tasks).
        tree: linkage of the tasks, see `structure.cluster`.
    """
    from matplotlib.figure import Figure

    order = leaf_order(tree)
    names, count = [tasks[index] for index in order], len(tasks)
    colours = body_colours(tasks)
    suites = suites_of(tasks)
    legend = _strip_legend(tasks, colours, suites)
    total = style.COLUMN_WIDTH if count <= _NUMBERS_SHOWN else style.PAGE_WIDTH
    font = 7.0 if count <= 40 else 5.2
    labels = max(map(len, names)) * font * 0.55 * _POINT + 0.06
    strip = 0.09
    strips = strip * (2 if len(suites) > 1 else 1) + 0.05
    branch = 0.4 if count <= _NUMBERS_SHOWN else 0.75
    width = total - labels - strips - branch - 0.1
    cell = min(width / count, 0.42)
    row = max(cell, 1.12 * font * _POINT)
    width, height = cell * count, row * count
    named = cell >= 1.05 * font * _POINT  # columns have room for their names
    below = 0.06 + (labels if named else 0.0)
    top = legend_height(legend, total) + 0.06
    bar = 0.42
    tall = top + height + below + bar
    left, bottom = total - 0.04 - labels - width, bar + below

    with style.applied():
        figure = Figure(figsize=(total, tall))

        def place(x: float, y: float, w: float, h: float) -> Axes:
            axes = figure.add_axes((x / total, y / tall, w / total, h / tall))
            axes.grid(visible=False)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            return axes

        heat = place(left, bottom, width, height)
        limit = max(0.1, math.ceil(np.abs(similarity[np.triu_indices(count, 1)]).max(initial=0.0) * 10) / 10)
        image = heat.imshow(
            similarity[np.ix_(order, order)],
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            interpolation="nearest",
        )
        heat.yaxis.tick_right()
        heat.set_yticks(range(count), names, fontsize=font)
        heat.set_xticks(range(count) if named else [], names if named else [], fontsize=font, rotation=90)
        if count <= _NUMBERS_SHOWN:
            _write_cells(heat, similarity[np.ix_(order, order)], limit)
        _draw_strips(
            place(left - strips + 0.01, bottom, strips - 0.05, height),
            names,
            colours,
            suites if len(suites) > 1 else (),
        )
        _draw_tree(place(left - strips - branch, bottom, branch - 0.03, height), tree, count)
        span = min(2.2, width)
        scale = place(left + (width - span) / 2, 0.3, span, 0.07)
        figure.colorbar(image, cax=scale, orientation="horizontal", extend="max" if limit < 1 else "neither")
        scale.tick_params(labelsize=6, length=2)
        scale.set_xlabel(SIMILARITY, fontsize=6.5, labelpad=1.5)
        add_legend(figure, legend)
    return figure


def claim_figure(claim: Claim) -> Figure:
    """What similarity goes with: pairs of tasks by what they share, and partial Mantel correlations by scope.

    Left: every pair of the same suite is a point, the diamond the mean with its interval. Right: partial correlations
    with their intervals.
    """
    from matplotlib.figure import Figure

    tests = claim.tests[claim.tests["partial_r"].notna()]
    total, height = style.PAGE_WIDTH if len(tests) else style.COLUMN_WIDTH, 2.2
    tall = height + 0.75
    with style.applied():
        figure = Figure(figsize=(total, tall))
        _draw_pairs(figure.add_axes((0.5 / total, 0.5 / tall, 2.95 / total, height / tall)), claim)
        if len(tests):
            _draw_partial(figure.add_axes((4.65 / total, 0.5 / tall, 2.4 / total, height / tall)), tests)
    return figure


def _draw_pairs(axes: Axes, claim: Claim) -> None:
    """Every pair of the same suite by what the two share, and the means."""
    pairs = claim.pairs[claim.pairs["same_suite"]]
    means = claim.classes[claim.classes["scope"] == claim.scope]
    rng = np.random.default_rng(0)  # of the points' places across, which mean nothing
    for x, mean in enumerate(means.to_dict("records")):
        values = pairs.loc[pairs["shares"] == mean["shares"], "similarity"]
        many = len(values) > 60
        across = x + rng.uniform(-0.28, 0.28, len(values)) if len(values) > 1 else np.full(len(values), float(x))
        look: dict[str, Any] = {"s": 3 if many else 8, "alpha": 0.25 if len(values) > 400 else 0.5 if many else 1.0}
        axes.scatter(across, values, color=_CLASS_COLOURS[str(mean["shares"])], linewidths=0, rasterized=many, **look)
        if len(values) > 1:
            axes.vlines(x, mean["low"], mean["high"], color="#000000", linewidth=1.4, zorder=4)
            edge: dict[str, Any] = {"facecolor": "white", "edgecolor": "#000000", "linewidths": 1}
            axes.scatter([x], [mean["mean"]], marker="D", s=22, zorder=5, **edge)
    axes.axhline(0, color="#444444", linewidth=0.5, zorder=1)
    ticks = [f"{name}\n({counted(n, 'pair')})" for name, n in zip(means["shares"], means["pairs"], strict=True)]
    axes.set_xticks(range(len(ticks)), ticks, fontsize=5.8)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel("What two tasks share")
    axes.set_ylabel(SIMILARITY)
    axes.grid(axis="x", visible=False)


def _draw_partial(axes: Axes, tests: pd.DataFrame) -> None:
    """Partial correlations with both labels, a row a scope."""
    from matplotlib.lines import Line2D

    scopes = tests.drop_duplicates("scope")
    place = {scope: float(index) for index, scope in enumerate(scopes["scope"])}
    entries = []
    for label, offset, marker in (("embodiment", -0.16, "o"), ("objective", 0.16, "s")):
        rows, colour = tests[tests["label"] == label], _LABEL_COLOURS[label]
        y = rows["scope"].map(place) + offset
        axes.hlines(y, rows["partial_low"], rows["partial_high"], color=colour, linewidth=1.2)
        axes.scatter(rows["partial_r"], y, s=20, color=colour, marker=marker, zorder=3)
        entries.append(Line2D([], [], color=colour, marker=marker, markersize=4, label=f"same {label}"))
    axes.axvline(0, color="#444444", linewidth=0.5, zorder=1)
    named = zip(scopes["scope"], scopes["tasks"], strict=True)
    axes.set_yticks(range(len(scopes)), [f"{SUITE_NAMES.get(s, s)}\n({n} tasks)" for s, n in named], fontsize=6)
    axes.set_ylim(len(scopes) - 0.5, -0.5)
    axes.set_xlabel("Partial correlation with similarity")
    axes.grid(axis="y", visible=False)
    axes.legend(handles=entries, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=7)


def stability_heatmap(table: pd.DataFrame) -> Figure:
    """Rank correlation of the similarities of every two agents.

    Args:
        table: name, other_name, correlation, see `structure.stability`.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys([*table["name"], *table["other_name"]]))
    count = len(names)
    matrix = np.full((count, count), np.nan)
    place = {name: index for index, name in enumerate(names)}
    for name, other, value in zip(table["name"], table["other_name"], table["correlation"], strict=True):
        matrix[place[name], place[other]] = matrix[place[other], place[name]] = value
    font = 6.0
    labels = (max(map(len, names)) + 4) * font * 0.56 * _POINT + 0.1
    cell = min(0.36, (style.PAGE_WIDTH - labels - 0.75) / count)
    total = max(style.COLUMN_WIDTH, labels + cell * count + 0.75)
    row = max(cell, 0.11)
    tall = 0.15 + row * count + 0.3
    with style.applied():
        figure = Figure(figsize=(total, tall))
        axes = figure.add_axes((labels / total, 0.3 / tall, cell * count / total, row * count / tall))
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        axes.set_yticks(range(count), [f"{name}  {i + 1}" for i, name in enumerate(names)], fontsize=font)
        axes.set_xticks(range(count), [str(i + 1) for i in range(count)], fontsize=font if cell > 0.13 else 5.0)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        if cell >= 0.24:
            _write_cells(axes, matrix, 1.0)
        scale = figure.add_axes((
            (labels + cell * count + 0.15) / total, 0.3 / tall, 0.08 / total, row * count / tall,
        ))  # fmt: skip
        figure.colorbar(image, cax=scale)
        scale.tick_params(labelsize=6)
        scale.set_ylabel("Rank correlation", fontsize=6)
    return figure


def suites_of(tasks: Sequence[str]) -> tuple[str, ...]:
    """The suites that the tasks are of, in the registry's order."""
    present = {TASKS[task].domain for task in tasks}
    return tuple(suite for suite in SUITE_NAMES if suite in present)


def _strip_legend(tasks: Sequence[str], colours: Mapping[str, str], suites: Sequence[str]) -> list[Artist]:
    from matplotlib.patches import Patch

    entries: list[Artist] = []
    if len(suites) > 1:
        entries += [Patch(facecolor=_SUITE_GREYS[suite], label=SUITE_NAMES[suite]) for suite in suites]
    entries += [Patch(facecolor=colour, label=body) for body, colour in colours.items()]
    if {TASKS[task].embodiment for task in tasks} - set(colours):
        entries.append(Patch(facecolor=_OTHER, label="other embodiment"))
    return entries


def _write_cells(axes: Axes, matrix: Array, limit: float) -> None:
    for row, column in np.ndindex(*matrix.shape):
        value = matrix[row, column]
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.65 * limit else "#222222"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=5.5, color=colour)


def _draw_strips(axes: Axes, names: Sequence[str], colours: Mapping[str, str], suites: Sequence[str]) -> None:
    columns = ["suite", "embodiment"] if suites else ["embodiment"]
    for row, name in enumerate(names):
        task = TASKS[name]
        fills = {"suite": _SUITE_GREYS[task.domain], "embodiment": colours.get(task.embodiment, _OTHER)}
        for place, column in enumerate(columns):
            axes.add_patch(_cell(place, row, fills[column]))
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])


def _cell(place: int, row: int, colour: str) -> Rectangle:
    from matplotlib.patches import Rectangle

    return Rectangle((place + 0.06, row - 0.5), 0.88, 1.0, facecolor=colour, linewidth=0)


def _draw_tree(axes: Axes, tree: Array, count: int) -> None:
    """The clustering's tree, its root to the left, leaf i at height i."""
    from scipy.cluster.hierarchy import dendrogram

    drawn: dict[str, Any] = dendrogram(tree, no_plot=True)
    for depths, heights in zip(drawn["dcoord"], drawn["icoord"], strict=True):
        axes.plot(depths, [(height - 5) / 10 for height in heights], color="#444444", linewidth=0.6)  # scipy's units
    axes.set_xlim(max(float(tree[:, 2].max()), 1e-9) * 1.02, 0)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
