"""One look for all figures: colours, fonts, step ticks, and saving as PNG, SVG and PDF."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLUMN_WIDTH = 3.5
"""Width in inches of one column of a two-column paper."""
PAGE_WIDTH = 7.16
"""Width in inches of both columns."""
PNG_DPI = 220

SUITE_NAMES = {
    "dmcontrol": "DMControl",
    "metaworld": "Meta-World",
    "maniskill": "ManiSkill2",
    "myosuite": "MyoSuite",
    "own": "Own tasks",
}
"""Benchmark suites as their authors write them, in reading order, by their name in the registry of tasks."""

# Okabe and Ito's palette, told apart with every common form of colour blindness; its yellow is too pale on white.
_SIZE_COLOURS = {1: "#E69F00", 5: "#0072B2", 19: "#009E73", 48: "#CC79A7", 317: "#D55E00"}
_PUBLISHED_COLOURS = {
    "tdmpc2": "#000000", "tdmpc2-pixels": "#56B4E9", "tdmpc": "#8C6D46", "dreamerv3": "#882255", "sac": "#A6A6A6",
}  # fmt: skip
# Paul Tol's muted palette, for algorithms that are not known beforehand.
_OTHER_COLOURS = ("#332288", "#44AA99", "#999933", "#AA4499", "#117733", "#CC6677", "#88CCEE", "#661100")

_NAMES = {"tdmpc2": "TD-MPC2", "tdmpc": "TD-MPC", "dreamerv3": "DreamerV3", "sac": "SAC"}

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 7,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.pad": 1.5,
    "ytick.major.pad": 1.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.facecolor": "white",
    "svg.hashsalt": "tdmpc2",  # the same figure gives the same file
    "pdf.fonttype": 42,  # TrueType: conferences refuse the default, Type 3
}


LineStyle = Literal["-", "-.", "--", ":"]
SeriesKey = tuple[str, str, Any, str]
"""Algorithm, kind, size (None for published ones) and task set ("" for agents of one task)."""
_KIND_LOOKS: dict[str, tuple[LineStyle, str]] = {
    "single": ("-", "o"),
    "multi": ("-.", "s"),
    "offline": (":", "v"),
    "finetuned": ("-.", "^"),
    "published": ("--", "D"),
}
# Published series share a line, so a marker of its own tells each apart where colours cannot.
_PUBLISHED_MARKERS = {"tdmpc2": "D", "tdmpc2-pixels": "X", "tdmpc": "P", "dreamerv3": "p", "sac": "h"}
_KIND_NAMES = {"multi": "multi-task", "offline": "offline", "finetuned": "finetuned", "published": "(published)"}


@dataclass(frozen=True)
class SeriesStyle:
    """How one series (algorithm, kind, size) is drawn, everywhere."""

    label: str
    """For legends."""
    colour: str
    """Hex RGB."""
    line: LineStyle
    """Line style of matplotlib."""
    marker: str
    """Marker of matplotlib."""


@contextmanager
def applied() -> Iterator[None]:
    """Within this context, figures are made and saved in the project's style."""
    import matplotlib as mpl

    with mpl.rc_context(_RC):
        yield


def series_name(algorithm: str, kind: str, size: Any, task_set: str = "") -> str:
    """A series' name for people, e.g. `TD-MPC2 5M`, `TD-MPC2 5M multi-task (mt30)`, `SAC (published)`."""
    base, _, label = algorithm.partition(" ")
    stem, pixels, _ = base.partition("-pixels")
    parts = [_NAMES.get(stem, stem), "pixels" if pixels else "", "" if pd.isna(size) else f"{int(size)}M", label]
    parts.append(_KIND_NAMES.get(kind, ""))
    parts.append(f"({task_set})" if kind == "multi" and task_set else "")
    return " ".join(part for part in parts if part)


def series_styles(series: Iterable[SeriesKey]) -> dict[SeriesKey, SeriesStyle]:
    """Styles of all series that share a report.

    A colour belongs to an algorithm and size: the known ones have fixed colours, others take one by their name, the
    next free one where two names meet. Multi-task and finetuned series have their single-task sibling's colour, and
    another line and marker.

    Args:
        series: (algorithm, kind, size, task set), size missing for published ones.

    Returns:
        Style by series, missing sizes as None.
    """
    keys: list[SeriesKey] = sorted({(a, k, None if pd.isna(s) else int(s), t) for a, k, s, t in series}, key=str)
    colours: dict[tuple[str, bool, int | None], str] = {}
    for algorithm, kind, size, _ in keys:
        owner = (algorithm, kind == "published", size)
        if owner in colours:
            continue
        known = _PUBLISHED_COLOURS.get(algorithm) if kind == "published" else None
        if algorithm == "tdmpc2" and size in _SIZE_COLOURS and kind != "published":
            known = _SIZE_COLOURS[size]
        colours[owner] = known or _free_colour(f"{algorithm} {size}", colours.values())
    styles = {}
    for key in keys:
        line, marker = _KIND_LOOKS[key[1]]
        if key[1] == "published":
            marker = _PUBLISHED_MARKERS.get(key[0], marker)
        styles[key] = SeriesStyle(series_name(*key), colours[key[0], key[1] == "published", key[2]], line, marker)
    return styles


def _free_colour(name: str, taken: Iterable[str]) -> str:
    """A colour for a name: always the same first choice, the next one where that is taken."""
    first = zlib.crc32(name.encode()) % len(_OTHER_COLOURS)
    order = [*_OTHER_COLOURS[first:], *_OTHER_COLOURS[:first]]
    used = set(taken)
    return next((colour for colour in order if colour not in used), order[0])


def human_steps(steps: float) -> str:
    """Steps as people say them: 500, 20k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999,999 rounds up to the next unit
        if abs(steps) >= size * (1 - 5e-4):
            return f"{steps / size:.4g}{unit}"
    return f"{steps:.4g}"


def step_ticks(axis: Axis, count: int = 4) -> None:
    """Round, readable ticks on an axis of environment steps or updates, about `count` of them."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=count, steps=[1, 2, 5, 10], integer=True))
    axis.set_major_formatter(FuncFormatter(lambda steps, _: human_steps(steps)))


def break_name(name: str, width: int) -> str:
    """A task's name on as many lines as it needs, broken after hyphens.

    Args:
        name: e.g. `mw-button-press-topdown-wall`.
        width: characters that fit on a line.
    """
    lines = [""]
    for part in name.replace("-", "-\n").split("\n"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def fitting_characters(width: float, fontsize: float) -> int:
    """About how many characters of text fit into a width.

    Args:
        width: inches.
        fontsize: points.
    """
    return max(1, math.floor(width * 72 / (0.56 * fontsize)))


def save(figure: Figure, folder: Path, name: str) -> dict[str, Path]:
    """Write a figure as PNG, SVG and PDF; the same figure gives the same bytes.

    Args:
        figure: the figure.
        folder: where to write; made where it is missing.
        name: file name without its ending.

    Returns:
        Path by format: PNG, SVG, PDF.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {format: folder / f"{name}.{format.lower()}" for format in ("PNG", "SVG", "PDF")}
    with applied():
        figure.savefig(paths["PNG"], dpi=PNG_DPI)
        figure.savefig(paths["SVG"], metadata={"Date": None})
        figure.savefig(paths["PDF"], metadata={"CreationDate": None})
    return paths
