"""Learning curves of a sweep: which there are, their points, and how Vega-Lite is to draw them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tdmpc2.sweeps.board.reading import SweepReader, metric_of
from tdmpc2.sweeps.folder import Kind, PlanEntry
from tdmpc2.sweeps.progress import RunView
from tdmpc2.tasks import TASK_SETS

SIZE_COLOURS: Mapping[int, str] = {1: "#E69F00", 5: "#0072B2", 19: "#009E73", 48: "#CC79A7", 317: "#D55E00"}
"""Of Okabe and Ito's palette, as in the reports; hex RGB by model size in millions of parameters."""
_OTHER_COLOUR = "#882255"
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
"""Lines of the series of one size: solid, dashed, dotted, dash-dotted."""
MOST_POINTS = 60
"""Evaluations of one curve that are marked by dots; a longer curve is a line alone."""
_NAME = re.compile(r"(?:-(?P<obs>rgb))?-(?P<size>\d+)M(?:-finetuned)?(?:-(?P<label>.+))?-seed\d+$")


@dataclasses.dataclass(frozen=True)
class Series:
    """Runs that differ in their seed alone."""

    name: str
    """E.g. `5M`, `5M rgb`, `5M no-planner`."""
    colour: str
    """Hex RGB."""
    dash: tuple[int, ...]
    """Lengths of dashes and gaps in pixels."""


def tasks_of(entry: PlanEntry) -> tuple[str, ...]:
    """The tasks that a run learns, without looking up any of people's own."""
    parts = [part.strip() for part in entry.task.split(",")]
    return tuple(dict.fromkeys(task for part in parts for task in TASK_SETS.get(part, (part,))))


def tasks_of_stage(views: Iterable[RunView], kind: Kind) -> list[str]:
    """The tasks that the runs of a stage learn, in the order of the plan."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    for view in views:
        if view.entry.kind == kind and view.entry.task not in seen:
            seen.add(view.entry.task)
            found.update(dict.fromkeys(tasks_of(view.entry)))
    return list(found)


def series_names(entries: Sequence[PlanEntry]) -> dict[str, str]:
    """To which series each run belongs, by the run's name: its size and what else tells it from others."""
    several_sets = len({entry.data for entry in entries}) > 1
    names = {}
    for entry in entries:
        found = _NAME.search(entry.name)
        parts = [f"{entry.model_size}M", *(found.group("obs", "label") if found else ())]
        parts.append(f"({entry.data})" if several_sets and entry.data else "")
        names[entry.name] = " ".join(part for part in parts if part)
    return names


def series_looks(names: Iterable[str]) -> list[Series]:
    """How the series are drawn: colour by size, another line for each of one size, in the order of legends."""
    by_size: dict[int, list[str]] = {}
    for name in sorted(set(names)):
        by_size.setdefault(int(name.partition("M")[0]), []).append(name)
    return [
        Series(name, SIZE_COLOURS.get(size, _OTHER_COLOUR), tuple(_DASHES[place % len(_DASHES)]))
        for size in sorted(by_size)
        for place, name in enumerate(by_size[size])
    ]


def points_by_task(
    reader: SweepReader, entries: Sequence[PlanEntry], tasks: Iterable[str], names: Mapping[str, str]
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The evaluations of some runs.

    Args:
        reader: reads their files.
        entries: the runs, all of one stage.
        tasks: on which tasks.
        names: the series of each run.

    Returns:
        for each task a list of points: `at` (environment steps, or updates of runs on a data set), `score`, `series`,
        `seed`; and a message for each file that cannot be read whole.
    """
    points: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
    faults = []
    for entry in entries:
        if points.keys().isdisjoint(tasks_of(entry)):
            continue
        log = reader.evaluations(entry.name)
        if log.fault:
            faults.append(log.fault)
        for evaluation in log.evaluations:
            at = evaluation.updates if entry.kind == "offline" else evaluation.env_steps
            if at is not None and evaluation.task in points:
                points[evaluation.task].append(
                    {"at": at, "score": evaluation.score, "series": names[entry.name], "seed": entry.seed}
                )
    return points, faults


def over_seeds(points: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Points of a series at the same place as one: mean, lowest and highest `score`, and of how many `seeds`."""
    groups: dict[tuple[str, int], list[float]] = {}
    for point in points:
        groups.setdefault((point["series"], point["at"]), []).append(point["score"])
    return [
        {
            "at": at,
            "series": series,
            "score": sum(scores) / len(scores),
            "low": min(scores),
            "high": max(scores),
            "seeds": len(scores),
        }
        for (series, at), scores in groups.items()
    ]


def panel_spec(task: str, kind: Kind, looks: Sequence[Series], together: bool, dots: bool) -> dict[str, Any]:
    """The panel of one task for Vega-Lite, without its points.

    Args:
        task: the task's name, which becomes the title.
        kind: the stage, which decides what stands on the x-axis.
        looks: the series of all panels, which share a legend that stands above them.
        together: whether the points are those of `over_seeds`; else each seed has a line of its own.
        dots: whether each evaluation is marked.
    """
    axis = "updates" if kind == "offline" else "environment steps"
    success = metric_of(task) == "success"
    score = "success rate" if success else "return"
    names = [each.name for each in looks]
    colour = {
        "field": "series",
        "type": "nominal",
        "title": None,
        "scale": {"domain": names, "range": [each.colour for each in looks]},
        "legend": None,
    }
    dash = {
        "field": "series",
        "type": "nominal",
        "title": None,
        "scale": {"domain": names, "range": [list(each.dash) for each in looks]},
        "legend": None,
    }
    x = {
        "field": "at",
        "type": "quantitative",
        "title": axis,
        "axis": {"labelExpr": "datum.value ? format(datum.value, '~s') : '0'", "tickCount": 4, "grid": False},
        "scale": {"zero": True, "nice": False},
    }
    y = {"field": "score", "type": "quantitative", "title": score, "axis": {"tickCount": 5}}
    if success:
        y["scale"] = {"domain": [0, 1]}
    tooltip = [
        {"field": "series", "type": "nominal", "title": "model"},
        {"field": "at", "type": "quantitative", "title": axis, "format": ","},
        {"field": "score", "type": "quantitative", "title": f"{score}, mean" if together else score, "format": ".4g"},
    ]
    if together:
        tooltip += [
            {"field": field, "type": "quantitative", "title": title, "format": ".4g"}
            for field, title in (("low", "lowest seed"), ("high", "highest seed"), ("seeds", "seeds"))
        ]
    else:
        tooltip.append({"field": "seed", "type": "nominal", "title": "seed"})
    line: dict[str, Any] = {"type": "line", "strokeWidth": 2, "point": {"size": 28, "filled": True} if dots else False}
    line_encoding = {"x": x, "y": y, "color": colour, "strokeDash": dash, "tooltip": tooltip}
    layers: list[dict[str, Any]] = [{"mark": line, "encoding": line_encoding}]
    if together:
        band = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
        layers.insert(0, {"mark": {"type": "area", "opacity": 0.15}, "encoding": band})
    else:
        line_encoding["detail"] = {"field": "seed", "type": "nominal"}
    return {"title": {"text": task, "anchor": "start", "fontSize": 14}, "layer": layers}
