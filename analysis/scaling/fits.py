"""What a larger model brings: laws fitted to a series of sizes, the choice between them, gains, all with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.scaling.laws import LAWS, Law, cross_validate
from analysis.scaling.resampling import MIN_TASKS_FOR_INTERVAL, Resampled, check_statistic, resample, resample_seeds
from analysis.scaling.series import SizeSeries
from analysis.statistics import AGGREGATES, Interval

FloatArray = NDArray[np.float64]

POINT_COLUMNS = [
    "series", "algorithm", "kind", "task_set", "size", "parameters_millions", "counted", "tasks", "seeds_fewest",
    "seeds_most", "statistic", "score", "seeds_low", "seeds_high", "low", "high", "updates", "hours", "device",
    "hardware",
]  # fmt: skip
"""Columns of `points_table`: seeds_low and seeds_high are the interval over seeds, low and high that over tasks."""
FIT_COLUMNS = [
    "series", "law", "formula", "constant", "value", "low", "high", "cv_error", "chosen", "decided", "resampled",
]  # fmt: skip
"""Columns of `fits_table`: cv_error in points, resampled tells what was drawn for the interval."""


@dataclass(frozen=True)
class Fit:
    """One law, fitted to one series of sizes."""

    law: Law
    constants: FloatArray
    """(constants,) of the law."""
    draws: FloatArray
    """(resamples, constants): fitted to resampled scores; no rows without an interval."""
    squared_errors: FloatArray
    """(sizes,) of predicting each size from the others."""

    @property
    def error(self) -> float:
        """Root of the mean squared error of predicting a size from the others, in points of normalised score."""
        return float(np.sqrt(self.squared_errors.mean()))


@dataclass(frozen=True)
class Scaling:
    """A series of sizes with its scores, their intervals, and the laws that were fitted."""

    series: SizeSeries
    """What was run."""
    statistic: str
    """How scores are aggregated over tasks and seeds."""
    score: FloatArray
    """(sizes,) the aggregate score."""
    over_seeds: FloatArray
    """(sizes, 2) its 95% interval over seeds, these tasks given; NaN with fewer than three seeds."""
    over_tasks: FloatArray
    """(sizes, 2) its 95% interval over tasks and seeds; NaN with too few tasks."""
    resampled: Resampled
    """The scores resampled for all sizes at once, for fits and differences."""
    fits: tuple[Fit, ...]
    """The laws that there are sizes enough for."""
    chosen: Fit | None
    """The law that predicts left-out sizes best, the simpler one where that is not decided; None with too few sizes."""
    decided: bool
    """Whether a law was chosen over another by more than one standard error."""

    def difference(self) -> Interval:
        """Score of the largest size less that of the smallest, with its 95% interval."""
        draws = self.resampled.draws
        return self.resampled.interval(self.score[-1] - self.score[0], draws[:, -1] - draws[:, 0])

    def decades(self) -> float:
        """How many times tenfold the largest model is larger than the smallest."""
        return float(np.log10(self.series.parameters[-1] / self.series.parameters[0]))

    def gain(self, smaller: float, larger: float) -> Interval:
        """What the chosen law gives for going from one size to another, with its 95% interval.

        Args:
            smaller: millions of parameters.
            larger: millions of parameters.
        """
        assert self.chosen is not None
        predict, ends = self.chosen.law.predict, np.array([smaller, larger])
        value = predict(self.chosen.constants, ends)
        drawn = predict(self.chosen.draws, ends)
        return self.resampled.interval(value[1] - value[0], drawn[:, 1] - drawn[:, 0])

    def slope(self) -> Interval:
        """Points a tenfold larger model brings, on average over the sizes: the slope over log10 of parameters.

        With two sizes it is their difference over their distance in decades.
        """
        law = LAWS[0]
        value = law.fit(self.series.parameters, self.score)[1]
        return self.resampled.interval(value, law.fit(self.series.parameters, self.resampled.draws)[:, 1])


def measure(series: SizeSeries, statistic: str = "mean", resamples: int = 1000, seed: int = 0) -> Scaling:
    """Aggregate a series of sizes, fit the laws that it has sizes enough for, and choose between them.

    All sizes weigh the same in a fit.

    Args:
        series: at least one size; a series without common tasks has neither values nor fits.
        statistic: mean, iqm or median, over tasks and seeds.
        resamples: of all intervals.
        seed: of the random generators.

    Raises:
        UserError: an unknown statistic, or fewer than one resample.
    """
    check_statistic(statistic, resamples)
    nothing = np.full(len(series.sizes), np.nan)
    score = AGGREGATES[statistic](series.scores) if series.tasks else nothing
    shared = series.kind == "multi"
    resampled = resample(series.scores, statistic, resamples, shared=shared, seed=seed)
    of_seeds = [resample_seeds(one[None], statistic, resamples, shared=shared, seed=seed) for one in series.scores]
    over_seeds = np.array([drawn.bounds(drawn.draws[:, 0]) for drawn in of_seeds])
    too_few = len(series.tasks) < MIN_TASKS_FOR_INTERVAL
    over_tasks = np.full((len(series.sizes), 2), np.nan) if too_few else resampled.bounds(resampled.draws).T
    fits = tuple(_fit(law, series, score, resampled) for law in LAWS if _enough(law, series))
    chosen, decided = choose(fits)
    return Scaling(series, statistic, score, over_seeds, over_tasks, resampled, fits, chosen, decided)


def choose(fits: tuple[Fit, ...]) -> tuple[Fit | None, bool]:
    """The law that predicts left-out sizes best, and whether that is decided.

    The mean difference of the two laws' squared errors must exceed its standard error over the sizes left out; else the
    simpler law is taken (the one-standard-error rule: Hastie, Tibshirani and Friedman 2009, section 7.10).
    """
    if len(fits) < 2:
        return (fits[0] if fits else None), False
    simple, other = fits
    excess = simple.squared_errors - other.squared_errors
    standard_error = excess.std(ddof=1) / np.sqrt(len(excess))
    # Errors are rounded: a difference of the size of rounding decides nothing.
    if abs(excess.mean()) <= standard_error * (1 - 1e-9) or np.abs(excess).max() < 1e-9:
        return simple, False
    return (other if excess.mean() > 0 else simple), True


def _enough(law: Law, series: SizeSeries) -> bool:
    return len(series.tasks) > 0 and len(series.sizes) >= law.sizes_needed


def _fit(law: Law, series: SizeSeries, score: FloatArray, resampled: Resampled) -> Fit:
    millions = series.parameters
    errors = cross_validate(law, millions, score)
    return Fit(law, law.fit(millions, score), law.fit(millions, resampled.draws), errors)


def curve(scaling: Scaling, fit: Fit, millions: FloatArray) -> pd.DataFrame:
    """A fitted law on a grid: millions, score, low and high (95% band, pointwise; NaN without resamples)."""
    low, high = scaling.resampled.bounds(fit.law.predict(fit.draws, millions))
    return pd.DataFrame(
        {"millions": millions, "score": fit.law.predict(fit.constants, millions), "low": low, "high": high}
    )


def points_table(scalings: Sequence[Scaling]) -> pd.DataFrame:
    """One row a series and size: what was scored, with both intervals, and what it cost (columns `POINT_COLUMNS`)."""
    rows = []
    for scaling in scalings:
        series = scaling.series
        seeds = np.isfinite(series.scores).sum(axis=-1)
        for place, size in enumerate(series.sizes if series.tasks else ()):
            row = {
                "series": series.name,
                "algorithm": series.algorithm,
                "kind": series.kind,
                "task_set": series.task_set,
                "size": size,
                "parameters_millions": series.parameters[place],
                "counted": size not in series.nominal,
                "tasks": len(series.tasks),
                "seeds_fewest": seeds[place].min(),
                "seeds_most": seeds[place].max(),
                "statistic": scaling.statistic,
                "score": scaling.score[place],
                **dict(zip(("seeds_low", "seeds_high"), scaling.over_seeds[place], strict=True)),
                **dict(zip(("low", "high"), scaling.over_tasks[place], strict=True)),
            }
            rows.append(row | series.costs.iloc[place].to_dict())
    return pd.DataFrame(rows, columns=pd.Index(POINT_COLUMNS))


def fits_table(scalings: Sequence[Scaling]) -> pd.DataFrame:
    """One row a series, law and constant (columns `FIT_COLUMNS`)."""
    rows = []
    for scaling in scalings:
        for fit in scaling.fits:
            bounds = scaling.resampled.bounds(fit.draws)
            about = {"cv_error": fit.error, "chosen": fit is scaling.chosen, "decided": scaling.decided}
            for letter, value, low, high in zip(fit.law.letters, fit.constants, *bounds, strict=True):
                names = {"series": scaling.series.name, "law": fit.law.name, "formula": fit.law.formula}
                numbers = {"constant": letter, "value": value, "low": low, "high": high}
                rows.append({**names, **numbers, **about, "resampled": scaling.resampled.over})
    return pd.DataFrame(rows, columns=pd.Index(FIT_COLUMNS))
