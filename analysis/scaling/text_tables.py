"""Scores, costs, fitted laws and slopes as tables of text, for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.scaling.fits import Fit, Scaling, points_table
from analysis.scaling.laws import POWER_LAW
from analysis.scaling.text import millions
from analysis.style import human_steps
from analysis.words import MISSING, with_interval


def shown_points(scalings: Sequence[Scaling]) -> pd.DataFrame:
    """Scores and costs by size, as a table of text."""
    points = points_table(scalings)
    seeds = [
        f"{low}" if low == high else f"{low} to {high}"
        for low, high in zip(points["seeds_fewest"], points["seeds_most"], strict=True)
    ]
    shown = pd.DataFrame(
        {
            "models": points["series"],
            "size": [f"{size}M" for size in points["size"]],
            "parameters of an agent": [millions(value) for value in points["parameters_millions"]],
            "tasks": points["tasks"].astype(str),
            "seeds": seeds,
            "normalised score": [f"{score:.1f}" for score in points["score"]],
            "95% over seeds": _ranges(points, "seeds_low", "seeds_high"),
            "95% over tasks and seeds": _ranges(points, "low", "high"),
            "updates": [MISSING if np.isnan(n) else human_steps(n) for n in points["updates"]],
            "hours": [_hours(hours) for hours in points["hours"]],
            "device": points["device"],
        }
    )
    return shown.drop(columns=[c for c in shown if len(shown) and shown[c].isin(["", MISSING]).all()])


def shown_published(published: pd.DataFrame) -> pd.DataFrame:
    """The paper's scores as a table of text."""
    return pd.DataFrame(
        {
            "task set": published["task_set"],
            "size": [millions(value) for value in published["parameters_millions"]],
            "normalised score": [f"{score:.1f}" for score in published["score"]],
        }
    )


def shown_fits(scalings: Sequence[Scaling]) -> pd.DataFrame:
    """The fitted laws as a table of text, one row a law."""
    rows = []
    for scaling in scalings:
        for fit in scaling.fits:
            row = {"models": scaling.series.name, "law": f"{fit.law.name}: {fit.law.formula}"}
            row |= {"a": MISSING, "b": MISSING, "c": MISSING}
            bounds = scaling.resampled.bounds(fit.draws)
            for letter, value, low, high in zip(fit.law.letters, fit.constants, *bounds, strict=True):
                row[letter] = with_interval(value, low, high, 2)
            row |= {"error, points": f"{fit.error:.2f}", "taken": _taken(scaling, fit)}
            rows.append(row)
    return pd.DataFrame(rows, columns=pd.Index(["models", "law", "a", "b", "c", "error, points", "taken"]))


def _taken(scaling: Scaling, fit: Fit) -> str:
    """Whether a law was taken, and why."""
    chosen = fit is scaling.chosen
    if len(scaling.fits) == 1:
        return f"yes; {POWER_LAW.name} needs {POWER_LAW.sizes_needed} sizes"
    if scaling.decided:
        return "yes" if chosen else "no"
    return "yes, as the simpler one; not decided between" if chosen else "no; not decided between"


def shown_slopes(slopes: pd.DataFrame) -> pd.DataFrame:
    """Slopes by task as a table of text."""
    return pd.DataFrame(
        {
            "task": slopes["task"],
            "runs": slopes["runs"].astype(str),
            "points per tenfold": [f"{slope:+.1f}" for slope in slopes["slope"]],
            "95% over seeds": _ranges(slopes, "low", "high"),
            "p": [_p(p) for p in slopes["p"]],
            "p, corrected": [_p(p) for p in slopes["p_adjusted"]],
            "verdict": slopes["verdict"],
        }
    )


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _hours(hours: float) -> str:
    if np.isnan(hours):
        return MISSING
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _ranges(table: pd.DataFrame, low: str, high: str, digits: int = 1) -> list[str]:
    return [
        MISSING if np.isnan(a) else f"{a:.{digits}f} to {b:.{digits}f}"
        for a, b in zip(table[low], table[high], strict=True)
    ]
