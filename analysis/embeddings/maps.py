"""Maps of task embeddings: tasks as points on a plane. They compute nothing but where names stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from analysis import style
from analysis.embeddings.figures import body_colours, suites_of
from analysis.layout import add_legend, legend_height
from analysis.style import SUITE_NAMES
from tdmpc2.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
_OTHER = "#B8B8B8"
_MARKERS = dict(zip(SUITE_NAMES, ("o", "s", "^", "D", "P"), strict=True))
_POINT = 1 / 72
_LARGE_NAMES = 12
"""Up to so many tasks, maps are small and names large; t-SNE's panels have names then."""


def component_map(tasks: Sequence[str], positions: Array, variance: Array) -> Figure:
    """The tasks on the first two principal components of their embeddings, named where names do not overlap.

    Args:
        tasks: names.
        positions: (tasks, 2).
        variance: (2,), share of the variance on each axis.
    """
    from matplotlib.figure import Figure

    few = len(tasks) <= _LARGE_NAMES
    legend = _mark_legend(tasks)
    total = style.COLUMN_WIDTH if few else style.PAGE_WIDTH
    height = 2.6 if few else 4.6
    top = legend_height(legend, total)
    tall = top + 0.05 + height + 0.38
    with style.applied():
        figure = Figure(figsize=(total, tall))
        axes = figure.add_axes((0.5 / total, 0.38 / tall, (total - 0.6) / total, height / tall))
        axes.set_xlabel(f"Principal component 1 ({variance[0]:.0%} of variance)")
        axes.set_ylabel(f"Principal component 2 ({variance[1]:.0%} of variance)")
        axes.set_xlim(*_with_margin(positions[:, 0]))
        axes.set_ylim(*_with_margin(positions[:, 1]))
        _draw_marks(axes, tasks, positions, size=26 if few else 20)
        _name_points(axes, tasks, positions, (total - 0.6, height), font=7.0 if few else 5.2)
        add_legend(figure, legend)
    return figure


def tsne_panels(tasks: Sequence[str], maps: Mapping[int, Array]) -> Figure:
    """t-SNE maps side by side, one a seed; axes have no units.

    Args:
        tasks: names.
        maps: (tasks, 2) by seed.
    """
    from matplotlib.figure import Figure

    legend = _mark_legend(tasks)
    total = style.PAGE_WIDTH
    columns = min(3, len(maps))
    rows = math.ceil(len(maps) / columns)
    side = min(2.4, (total - 0.1) / columns - 0.1)
    top = legend_height(legend, total)
    tall = top + rows * (side + 0.22) + 0.06
    left = (total - columns * (side + 0.1)) / 2
    named = len(tasks) <= _LARGE_NAMES
    with style.applied():
        figure = Figure(figsize=(total, tall))
        for index, (seed, positions) in enumerate(maps.items()):
            row, column = divmod(index, columns)
            corner = (left + column * (side + 0.1) + 0.05, tall - top - (row + 1) * (side + 0.22) + 0.02)
            axes = figure.add_axes((corner[0] / total, corner[1] / tall, side / total, side / tall))
            axes.set_title(f"Random start {seed}", fontsize=7, pad=3)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(True)
            axes.margins(0.08)
            _draw_marks(axes, tasks, positions, size=15)
            if named:
                _name_points(axes, tasks, positions, (side, side), font=5.5)
        add_legend(figure, legend)
    return figure


def _with_margin(values: Array) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) or 0.1
    return low - margin, high + margin


def _mark_legend(tasks: Sequence[str]) -> list[Artist]:
    from matplotlib.lines import Line2D

    def mark(marker: str, colour: str, label: str, fill: str | None = None) -> Artist:
        look: dict[str, Any] = {"marker": marker, "color": colour, "markerfacecolor": fill or colour, "markersize": 4.5}
        return Line2D([], [], linestyle="", label=label, **look)

    suites, colours = suites_of(tasks), body_colours(tasks)
    entries = (
        [mark(_MARKERS[suite], "#444444", SUITE_NAMES[suite], "none") for suite in suites] if len(suites) > 1 else []
    )
    bodies = {TASKS[task].embodiment: _MARKERS[TASKS[task].domain] for task in tasks}
    entries += [mark(bodies[body], colour, body) for body, colour in colours.items()]
    if set(bodies) - set(colours):
        entries.append(mark("o", _OTHER, "other embodiment"))
    return entries


def _draw_marks(axes: Axes, tasks: Sequence[str], positions: Array, size: float) -> None:
    colours = body_colours(tasks)
    for (x, y), name in zip(positions, tasks, strict=True):
        colour = colours.get(TASKS[name].embodiment)
        marker = _MARKERS[TASKS[name].domain]
        axes.scatter(
            [x], [y], s=size, marker=marker, color=colour or _OTHER, linewidths=0.4, edgecolors="white",
            zorder=3 if colour else 2,
        )  # fmt: skip


def _name_points(axes: Axes, tasks: Sequence[str], positions: Array, size: tuple[float, float], font: float) -> None:
    """Name points where there is room: each name takes the first free place beside its point, or none."""
    limits = np.array([axes.get_xlim(), axes.get_ylim()])
    points = (positions - limits[:, 0]) / (limits[:, 1] - limits[:, 0]) * np.array(size)  # inches
    reach = 0.05
    taken = [(x - reach, y - reach, x + reach, y + reach) for x, y in points]
    for point, name in zip(points, tasks, strict=True):
        width, height = len(name) * font * 0.58 * _POINT + 0.02, font * 1.1 * _POINT
        for anchor, align in _label_places(height):
            x, y = point + anchor
            x0 = {"left": x, "right": x - width, "center": x - width / 2}[align]
            box = (x0, y, x0 + width, y + height)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= size[0] and box[3] <= size[1]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                place = ((x / size[0]), (y + 0.22 * height) / size[1])
                axes.annotate(name, place, xycoords="axes fraction", ha=align, fontsize=font, color="#333333")
                break


def _label_places(height: float) -> list[tuple[Array, Literal["left", "right", "center"]]]:
    """Where a name may stand: the anchor of its lower edge from its point, and how it is aligned there."""
    beside = 0.06  # inches from the point
    near = 0.7 * beside
    right: list[tuple[float, float]] = [(beside, -height / 2), (near, near), (near, -near - height)]
    middle = [(0.0, beside), (0.0, -beside - height)]
    left = [(-x, y) for x, y in right]
    return [
        (np.array(right[0]), "left"),
        (np.array(left[0]), "right"),
        *((np.array(place), "center") for place in middle),
        *((np.array(place), "left") for place in right[1:]),
        *((np.array(place), "right") for place in left[1:]),
    ]


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
