"""What goes with gains and losses: regressions of the differences over tasks on what is known of the tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from analysis.results import SERIES
from analysis.scores import groups
from analysis.significance import adjust
from analysis.task_vectors import TaskEmbeddings, nearness

Array = NDArray[np.float64]
PREDICTORS = {
    "data_share": "share of the data (0 to 1)",
    "single_score": "single-task score",
    "nearness": "nearness of the embedding",
}
"""Axis label by predictor."""
MIN_ALONE, MIN_TOGETHER = 5, 8
"""Tasks needed to fit one predictor, and all together."""
EXPLAINED_COLUMNS = [
    "predictor", "tasks", "rank_correlation", "rank_p", "alone", "alone_low", "alone_high", "alone_p",
    "together", "together_low", "together_high", "together_p", "together_p_holm", "deviation",
]  # fmt: skip
"""Columns of `explain`."""
_CHUNK = 500


def add_predictors(comparison: pd.DataFrame, embeddings: Sequence[TaskEmbeddings]) -> pd.DataFrame:
    """The comparison with what may explain its differences.

    Args:
        comparison: as `comparison.compare` returns it.
        embeddings: the multi-task agents' task embeddings.

    Returns:
        The same rows, and nearness: the mean cosine similarity of the task's embedding to the
        three nearest other ones of the same agent, mean over the series' runs; NaN where there is none.
    """
    rows = [
        dict(zip(SERIES, (e.algorithm, e.kind, e.size, e.task_set), strict=True)) | {"task": task, "nearness": value}
        for e in embeddings
        for task, value in zip(e.tasks, nearness(e.vectors), strict=True)
    ]
    found = pd.DataFrame(rows, columns=pd.Index([*SERIES, "task", "nearness"]))
    means = {(*key[:4], key[4]): part["nearness"].mean() for key, part in groups(found, [*SERIES, "task"])}
    keys = comparison[[*SERIES, "task"]].itertuples(index=False, name=None)
    return comparison.assign(nearness=[float(means.get(key, np.nan)) for key in keys])


def explain(rows: pd.DataFrame, resamples: int = 2000, alpha: float = 0.05, seed: int = 0) -> pd.DataFrame:
    """Least squares of one series' differences on each predictor alone, and on all together.

    Coefficients are points of the difference for one standard deviation of the predictor. Intervals: percentiles of a
    bootstrap over tasks. p of a coefficient: Freedman and Lane's permutations (1983, A nonstochastic interpretation of
    reported significance levels): the residuals of the fit without the predictor are permuted, and the t-values
    compared; alone, this permutes the differences. p of Spearman's rank correlation: permuted ranks.

    Args:
        rows: one series' rows of what `add_predictors` returns.
        resamples: bootstrap samples, and permutations.
        alpha: 1 - level of the intervals.
        seed: of the random numbers.

    Returns:
        A row for each predictor that is known of some task: predictor, tasks (with a difference and the predictor),
        rank_correlation, rank_p; alone, alone_low, alone_high, alone_p; the same together with the others (over the
        tasks for which all are known), and together_p_holm, corrected over the predictors; deviation (standard
        deviation of the predictor over tasks). NaN where there are fewer than `MIN_ALONE` or `MIN_TOGETHER` tasks, or
        the predictor is the same for all tasks.
    """
    rows = rows[rows["difference"].notna()]
    used = [name for name in PREDICTORS if rows[name].notna().any()]
    varied = [name for name in used if _varies(rows[name].dropna().to_numpy(float))]
    table = pd.DataFrame([_alone(rows, name, resamples, alpha, seed) for name in used])
    whole = rows.dropna(subset=varied)
    together = [name for name in varied if _varies(whole[name].to_numpy(float))]
    if len(whole) >= MIN_TOGETHER and len(together) > 1:
        fitted = _fit(_standardised(whole, together), whole["difference"].to_numpy(float), resamples, alpha, seed)
        fitted.columns = pd.Index([f"together{name}" for name in ("", "_low", "_high", "_p")])
        fitted["together_p_holm"] = adjust(fitted["together_p"].to_numpy(float), "holm")
        table = table.merge(fitted.assign(predictor=together), on="predictor", how="left")
    return table.reindex(columns=EXPLAINED_COLUMNS)


def fitted(explained: pd.DataFrame) -> list[str]:
    """The predictors that were fitted alone."""
    return [str(name) for name in explained.loc[explained["alone"].notna(), "predictor"]]


def r_squared(rows: pd.DataFrame, explained: pd.DataFrame) -> float:
    """Share of the differences' variance that the predictors fitted together account for; NaN where they are not."""
    used = list(explained.loc[explained["together"].notna(), "predictor"])
    whole = rows[rows["difference"].notna()].dropna(subset=used)
    if not used:
        return np.nan
    y = whole["difference"].to_numpy(float)
    x = np.column_stack([np.ones(len(y)), _standardised(whole, used)])
    residuals = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    total = float(((y - y.mean()) ** 2).sum())
    return 1 - float((residuals**2).sum()) / total if total > 0 else np.nan


def _alone(rows: pd.DataFrame, name: str, resamples: int, alpha: float, seed: int) -> dict[str, object]:
    known = rows[rows[name].notna()]
    x, y = known[name].to_numpy(float), known["difference"].to_numpy(float)
    record: dict[str, object] = {
        "predictor": name,
        "tasks": len(y),
        "deviation": float(np.std(x, ddof=1)) if len(x) > 1 else np.nan,
    }
    if len(y) < MIN_ALONE or not _varies(x) or not _varies(y):
        return record
    record["rank_correlation"], record["rank_p"] = rank_correlation(x, y, resamples, seed)
    (fitted,) = _fit(_standardised(known, [name]), y, resamples, alpha, seed).to_dict("records")
    return record | {"alone": fitted["value"], **{f"alone_{part}": fitted[part] for part in ("low", "high", "p")}}


def rank_correlation(x: Array, y: Array, permutations: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Spearman's rank correlation of two (n,) arrays that vary, and its two-sided p by permutation."""
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    shuffled = np.random.default_rng(seed).permuted(np.tile(b, (permutations, 1)), axis=1) @ a / norm
    rho = float(a @ b) / norm
    return rho, _share_beyond(np.abs(shuffled), abs(rho))


def _fit(x: Array, y: Array, resamples: int, alpha: float, seed: int) -> pd.DataFrame:
    """Least squares with an intercept: x (n, k) and y (n,) -> value, low, high, p for each of the k columns."""
    rng = np.random.default_rng(seed)
    n, k = x.shape
    design = np.column_stack([np.ones(n), x])
    values = np.linalg.lstsq(design, y, rcond=None)[0]
    samples = rng.integers(n, size=(resamples, n))
    drawn = np.concatenate(
        [
            np.einsum("rkn,rn->rk", np.linalg.pinv(design[part]), y[part])
            for part in np.array_split(samples, max(1, resamples // _CHUNK))
        ]
    )
    low, high = np.quantile(drawn[:, 1:], [alpha / 2, 1 - alpha / 2], axis=0)
    order = rng.permuted(np.tile(np.arange(n), (resamples, 1)), axis=1)
    p = []
    for j in range(1, k + 1):
        reduced = np.delete(design, j, axis=1)
        fitted = reduced @ np.linalg.lstsq(reduced, y, rcond=None)[0]
        permuted = fitted + (y - fitted)[order]
        p.append(_share_beyond(np.abs(_t_values(design, permuted, j)), abs(float(_t_values(design, y[None], j)[0]))))
    return pd.DataFrame({"value": values[1:], "low": low, "high": high, "p": p})


def _t_values(design: Array, responses: Array, column: int) -> Array:
    """t of one coefficient for each of (m, n) responses -> (m,)."""
    inverse = np.linalg.pinv(design)
    coefficients = responses @ inverse.T
    residuals = responses - coefficients @ design.T
    freedom = len(design) - design.shape[1]
    variance = (residuals**2).sum(axis=1) / freedom * float((inverse[column] ** 2).sum())
    # a perfect fit has no residual variance: its t is as large as can be
    return coefficients[:, column] / np.sqrt(np.maximum(variance, 1e-24))


def _share_beyond(permuted: Array, seen: float) -> float:
    """Permutation p: how many of the permuted values, and the seen one itself, are as large as it is."""
    return (1 + int((permuted >= seen * (1 - 1e-9)).sum())) / (1 + len(permuted))


def _standardised(rows: pd.DataFrame, names: Sequence[str]) -> Array:
    x = rows[list(names)].to_numpy(float)
    return (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)


def _varies(values: Array) -> bool:
    return len(values) > 1 and float(np.ptp(values)) > 1e-9 * max(1.0, float(np.abs(values).max()))
