"""What a data set holds: the table of its tasks, and the figure of how its episodes' returns are spread.

`python -m analysis.datasets FOLDER --output FILE` draws the figure, FILE.png, FILE.svg and FILE.pdf.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import style
from analysis.layout import add_legend, legend_height
from analysis.style import SUITE_NAMES
from analysis.tables import counted
from tdmpc2.data.dataset import Dataset
from tdmpc2.data.summary import episode_returns
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASKS
from tdmpc2.training.datasets import ROW_FIELDS, task_rows

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Returns = NDArray[np.float64]

SPREAD_TITLE = "Distribution of episode returns"
ORDER_TITLE = "Return over the episodes, in order"
RETURN_LABEL = "Episode return"
PLACE_LABEL = "Place in its replay (%), oldest to newest"
SPREAD_NOTE = "all tasks of a suite on one scale"
ORDER_NOTE = "each row scaled from 0 to its largest"
MAX_DOTS = 300
"""Up to so many episodes of a task, each is drawn as a dot, where rows are tall."""
MAX_TALL_ROWS = 12
PLACES = 40
"""At most so many groups of episodes, from the oldest to the newest."""
EPISODES_PER_PLACE = 4
DENSITY_POINTS = 240

# Two of Paul Tol's muted colours, which stand for no model size elsewhere and are told apart when colour-blind.
_SPREAD, _ORDER, _DARK, _GREY = "#88CCEE", "#332288", "#222222", "#777777"


def dataset_table(dataset: Dataset) -> pd.DataFrame:
    """One row a task, in the order of ids.

    Returns:
        id, task, domain (the suite), metric, seeds, stores, episodes, transitions (agent steps), env_steps, disk_bytes,
        and of the episodes' returns return_min, return_q25, return_median, return_q75, return_max and return_mean.

    Raises:
        UserError: a store is gone or has changed.
    """
    return pd.DataFrame(task_rows(dataset), columns=pd.Index(ROW_FIELDS))


def store_returns(dataset: Dataset) -> dict[str, list[Returns]]:
    """Returns of the episodes by task, one array a store, (episodes,), the oldest episode first.

    Raises:
        UserError: a store is gone or has changed.
    """
    together = episode_returns(dataset)
    parts: dict[str, list[Returns]] = {}
    for task, returns in together.items():
        lengths = [record.episodes for record in dataset.stores if record.task == task]
        parts[task] = np.split(returns, np.cumsum(lengths)[:-1])
    return parts


def random_returns(dataset: Dataset) -> dict[str, float]:
    """A random policy's mean return by task, where it is known and the episodes are of the task's length.

    Those of released data may be shorter: theirs is no return of the task.
    """
    known = {}
    for task in dataset.tasks:
        records = [record for record in dataset.stores if record.task == task.name]
        steps = sum(record.episodes for record in records) * task.episode_length
        value = TASKS[task.name].random_return
        if value is not None and steps == sum(record.transitions for record in records):
            known[task.name] = value
    return known


def by_place(parts: Sequence[Returns]) -> pd.DataFrame:
    """How returns change from a store's oldest episodes to its newest, all stores of a task together.

    Args:
        parts: returns by store, the oldest episode first.

    Returns:
        place (%, the middle of a group of episodes), q25, median and q75 of its returns; groups are of equal width, as
        many as leave each about `EPISODES_PER_PLACE` episodes, up to `PLACES`.
    """
    returns, place = np.concatenate(parts), places(parts)
    groups = int(np.clip(len(returns) // EPISODES_PER_PLACE, 1, PLACES))
    group = np.minimum((place / 100 * groups).astype(int), groups - 1)
    grouped = pd.Series(returns).groupby(group)
    quartiles = {name: grouped.quantile(q) for name, q in (("q25", 0.25), ("median", 0.5), ("q75", 0.75))}
    middle = {"place": (np.unique(group) + 0.5) / groups * 100}
    return pd.DataFrame({**middle, **{name: values.to_numpy() for name, values in quartiles.items()}})


def places(parts: Sequence[Returns]) -> Returns:
    """Place of each episode among those of its store, in %: 0 is before the oldest, 100 after the newest."""
    return np.concatenate([(np.arange(len(part)) + 0.5) / len(part) * 100 for part in parts])


def density(returns: Returns) -> tuple[Returns, Returns]:
    """Smoothed density of returns between the smallest and the largest, 1 where it is highest.

    The kernel is Gaussian, its width Silverman's rule; what would leave the range is reflected at its ends.

    Args:
        returns: (n,).

    Returns:
        (DENSITY_POINTS,) returns and the density there; both empty where all returns are equal.
    """
    low, high = float(returns.min()), float(returns.max())
    if low == high:
        return np.empty(0), np.empty(0)
    counts, edges = np.histogram(returns, bins=DENSITY_POINTS, range=(low, high))
    quarter, three_quarters = np.quantile(returns, [0.25, 0.75])
    spreads = [spread for spread in (returns.std(), (three_quarters - quarter) / 1.34) if spread > 0]
    width = 0.9 * min(spreads) * len(returns) ** -0.2 / (edges[1] - edges[0])
    width = float(np.clip(width, 1.0, DENSITY_POINTS / 6))
    reach = math.ceil(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    smooth = np.convolve(np.pad(counts.astype(float), reach, mode="symmetric"), kernel, mode="valid")
    return (edges[:-1] + edges[1:]) / 2, smooth / smooth.max()


@dataclass(frozen=True)
class _Measures:
    """Distances of a figure in inches, font sizes in points."""

    row: float
    font: float
    names: float
    numbers: float = 0.98
    gap: float = 0.2
    left: float = 0.08
    right: float = 0.08
    head: float = 0.3
    axis: float = 0.36
    suite: float = 0.16

    @classmethod
    def of(cls, tasks: Sequence[str]) -> _Measures:
        """The measures for so many tasks."""
        rows = ((6, 0.5, 7.0), (MAX_TALL_ROWS, 0.34, 7.0), (40, 0.19, 6.5), (math.inf, 0.135, 5.5))
        row, font = next((row, font) for most, row, font in rows if len(tasks) <= most)
        return cls(row=row, font=font, names=max(map(len, tasks)) * font * 0.56 / 72 + 0.08)


def return_distributions(dataset: Dataset) -> Figure:
    """How the returns of a data set's episodes are spread, one row a task.

    Left: the density of all episodes' returns, with quartiles and median, on the suite's common axis; a grey tick is a
    random policy's mean return, see `random_returns`. Right: the return from the oldest episodes of each replay
    store to the newest, each row on a scale of its own from 0 (or its smallest return) to its largest, which is
    written beside it.

    Raises:
        UserError: a store is gone or has changed.
    """
    return draw_returns(dataset.name, store_returns(dataset), random_returns(dataset))


def draw_returns(name: str, parts: Mapping[str, Sequence[Returns]], random: Mapping[str, float]) -> Figure:
    """The figure of `return_distributions`.

    Args:
        name: the data set's name.
        parts: returns of the episodes by task of the registry, one array a store.
        random: a random policy's mean return, of the tasks where it is to be marked.

    Returns:
        A figure with two axes for each suite; the rows' labels are the left one's tick labels.
    """
    from matplotlib.figure import Figure

    suites: dict[str, list[str]] = {}
    for task in parts:
        suites.setdefault(TASKS[task].domain, []).append(task)
    sizes = _Measures.of(list(parts))
    entries = _legend(parts, bool(random))
    total = style.PAGE_WIDTH
    titled = sizes.suite if len(suites) > 1 else 0.0
    top = 0.16 + legend_height(entries, total)
    tall = top + sizes.head + sum(titled + sizes.row * len(tasks) + sizes.axis for tasks in suites.values())
    drawn = total - sizes.left - sizes.names - sizes.gap - sizes.numbers - sizes.right
    spread_left, spread_width = sizes.left + sizes.names, drawn * 0.56
    order_left, order_width = spread_left + spread_width + sizes.gap, drawn * 0.44

    episodes = sum(len(part) for stores in parts.values() for part in stores)
    said = f"{name}: {counted(len(parts), 'task')}, {counted(episodes, 'episode')}"
    with style.applied():
        figure = Figure(figsize=(total, tall))
        figure.text(0.5, 1 - 0.06 / tall, said, ha="center", va="top", fontsize=8)
        y = tall - top - sizes.head
        for index, (suite, tasks) in enumerate(suites.items()):
            y -= titled + sizes.row * len(tasks)
            height = sizes.row * len(tasks)
            spread = figure.add_axes((spread_left / total, y / tall, spread_width / total, height / tall))
            order = figure.add_axes((order_left / total, y / tall, order_width / total, height / tall))
            _draw_spread(spread, tasks, parts, random, sizes)
            _draw_order(order, tasks, parts, sizes)
            if titled:
                at = (sizes.left / total, (y + height + 0.03) / tall)
                figure.text(*at, SUITE_NAMES[suite], ha="left", va="bottom", fontsize=7, fontweight="bold")
            if index == 0:
                _draw_heads(figure, (spread_left, order_left, order_left + order_width), y + height + titled, sizes)
            y -= sizes.axis
        _add_legend_below(figure, entries)
    return figure


def _legend(parts: Mapping[str, Sequence[Returns]], random: bool) -> list[Artist]:
    """What the marks mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Artist] = [
        Patch(color=_SPREAD, linewidth=0, label="density of episodes"),
        Line2D([], [], color=_DARK, linewidth=2.0, marker="o", markersize=3, markerfacecolor="white",
               markeredgewidth=0.7, label="quartiles, median"),
        Line2D([], [], color=_ORDER, linewidth=1.0, label="median, in order"),
        Patch(color=_ORDER, alpha=0.22, linewidth=0, label="quartiles, in order"),
    ]  # fmt: skip
    if any(_has_dots(stores, len(parts)) for stores in parts.values()):
        entries.append(Line2D([], [], color=_GREY, linestyle="", marker="o", markersize=1.6, label="one episode"))
    if random:
        entries.append(Line2D([], [], color=_GREY, linestyle="", marker="|", markersize=6, label="random policy"))
    return entries


def _add_legend_below(figure: Figure, entries: Sequence[Artist]) -> None:
    """The legend, below the line that names the data set."""
    add_legend(figure, entries)
    height = figure.get_size_inches()[1]
    figure.legends[0].set_bbox_to_anchor((0.5, 1 - 0.23 / height), transform=figure.transFigure)


def _has_dots(stores: Sequence[Returns], rows: int) -> bool:
    return rows <= MAX_TALL_ROWS and sum(map(len, stores)) <= MAX_DOTS


def _draw_heads(figure: Figure, columns: tuple[float, float, float], y: float, sizes: _Measures) -> None:
    """Titles of the columns; positions in inches."""
    total, tall = figure.get_size_inches()
    spread, order, numbers = columns
    at = (y + 0.05) / tall
    for x, title, note in ((spread, SPREAD_TITLE, SPREAD_NOTE), (order, ORDER_TITLE, ORDER_NOTE)):
        figure.text(x / total, at + 0.1 / tall, title, ha="left", va="bottom", fontsize=7)
        figure.text(x / total, at, note, ha="left", va="bottom", fontsize=5.5, color=_GREY)
    for share, title in zip(_NUMBER_ENDS, ("largest", "episodes"), strict=True):
        x = (numbers + share * sizes.numbers) / total
        figure.text(x, at, title, ha="right", va="bottom", fontsize=sizes.font, color=_GREY)


_NUMBER_ENDS = (0.46, 1.0)
"""Where the two columns of numbers end, as a share of their room."""


def _draw_spread(
    axes: Axes,
    tasks: Sequence[str],
    parts: Mapping[str, Sequence[Returns]],
    random: Mapping[str, float],
    sizes: _Measures,
) -> None:
    """Densities, quartiles and medians: position i on the y-axis is tasks[i]."""
    from matplotlib.collections import PolyCollection

    _shade(axes, len(tasks))
    y, thick, tall = np.arange(len(tasks)), min(2.2, sizes.row * 72 * 0.16), sizes.row * 72 * 0.62
    together = [np.concatenate(parts[task]) for task in tasks]
    violins = [density(returns) for returns in together]
    bands = [_band(at, i - 0.42 * height, i + 0.42 * height) for i, (at, height) in enumerate(violins) if len(at)]
    axes.add_collection(PolyCollection(bands, facecolors=_SPREAD, linewidths=0, zorder=2), autolim=False)
    q25, median, q75 = np.array([np.quantile(returns, [0.25, 0.5, 0.75]) for returns in together]).T
    axes.hlines(y, q25, q75, color=_DARK, linewidth=thick, zorder=3)
    axes.scatter(
        median, y, s=(thick + 1) ** 2, facecolors="white", edgecolors=_DARK, linewidths=0.6, zorder=4, clip_on=False
    )
    marks = [random.get(task, np.nan) for task in tasks]
    axes.scatter(marks, y, s=tall**2, marker="|", color=_GREY, linewidths=0.9, zorder=2.5, clip_on=False)
    ends = [0.0, *(end for returns in together for end in (returns.min(), returns.max()))]
    lowest, highest = min(ends), np.nanmax([*ends, *marks])
    room = 0.02 * (highest - lowest or 1.0)
    axes.set_xlim(lowest - room, highest + room)
    axes.set_xlabel(RETURN_LABEL, labelpad=2)
    axes.set_yticks(range(len(tasks)), list(tasks), fontsize=sizes.font)
    _rows(axes, len(tasks))


def _draw_order(axes: Axes, tasks: Sequence[str], parts: Mapping[str, Sequence[Returns]], sizes: _Measures) -> None:
    """Returns from the oldest episodes to the newest, each row scaled to its own range; the numbers beside them."""
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.ticker import MultipleLocator

    _shade(axes, len(tasks))
    bands, lines = [], []
    for i, task in enumerate(tasks):
        stores = parts[task]
        returns = np.concatenate(stores)
        low, high = min(0.0, float(returns.min())), float(returns.max())
        scale = 0.84 / (high - low) if high > low else 0.0

        def height(values: Returns, base: float = i + 0.42, low: float = low, scale: float = scale) -> Returns:
            return base - (values - low) * scale  # the y-axis points down

        groups = by_place(stores)
        if _has_dots(stores, len(parts)):
            size = min(3.0, (sizes.row * 72 * 0.11) ** 2)
            axes.scatter(places(stores), height(returns), s=size, color=_GREY, linewidths=0, zorder=2, clip_on=False)
        if len(groups) > 1:
            at = groups["place"].to_numpy()
            low_edge, middle, high_edge = (height(groups[name].to_numpy()) for name in ("q25", "median", "q75"))
            bands.append(_band(at, low_edge, high_edge))
            lines.append(np.column_stack([at, middle]))
        _write_numbers(axes, i, high, len(returns), sizes)
    thick = min(1.0, sizes.row * 72 * 0.09)
    axes.add_collection(PolyCollection(bands, facecolors=_ORDER, alpha=0.22, linewidths=0, zorder=2.5), autolim=False)
    axes.add_collection(LineCollection(lines, colors=_ORDER, linewidths=thick, zorder=3), autolim=False)
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_locator(MultipleLocator(25))
    axes.set_xlabel(PLACE_LABEL, labelpad=2)
    axes.set_yticks(range(len(tasks)))
    axes.tick_params(axis="y", labelleft=False)
    _rows(axes, len(tasks))


def _band(x: Returns, low: Returns, high: Returns) -> Returns:
    """Corners (2 n, 2) of the area between two curves over x."""
    return np.column_stack([np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]])])


def _write_numbers(axes: Axes, row: int, largest: float, episodes: int, sizes: _Measures) -> None:
    width = axes.get_position().width * axes.figure.get_figure(root=True).get_size_inches()[0]
    for share, number in zip(_NUMBER_ENDS, (largest, episodes), strict=True):
        axes.text(
            1 + share * sizes.numbers / width,
            row,
            f"{number:,.0f}" if abs(number) >= 10 or isinstance(number, int) else f"{number:.2g}",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=sizes.font,
        )


def _shade(axes: Axes, rows: int) -> None:
    for i in range(0, rows, 2):
        axes.axhspan(i - 0.5, i + 0.5, color="#F6F6F6", zorder=0, linewidth=0)


def _rows(axes: Axes, rows: int) -> None:
    axes.set_ylim(rows - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.datasets", description="Draw how the returns of a data set's episodes are spread."
    )
    parser.add_argument("folder", type=Path, help="the data set's folder, with dataset.json")
    parser.add_argument("--output", type=Path, required=True, help="what to write: FILE.png, FILE.svg and FILE.pdf")
    options = parser.parse_args(arguments)
    output: Path = options.output
    try:
        if output.suffix not in ("", ".png", ".svg", ".pdf"):
            raise UserError(f"{output}: figures are written as PNG, SVG and PDF; name FILE.png or FILE")
        figure = return_distributions(Dataset.read(options.folder))
        for path in style.save(figure, output.parent, output.stem if output.suffix else output.name).values():
            print(f"{path}: written")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {output}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
