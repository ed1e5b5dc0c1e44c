"""Where the multi-task agents gain and lose: mean differences by suite, embodiment and objective."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.significance import adjust, paired_test

GROUPINGS = {"suite": "suite", "embodiment": "embodiment", "objective": "objective"}
"""Column of a comparison by the name of a grouping."""
OTHERS = "others (one task each)"
"""Name of the group of all tasks that share theirs with no other task."""
MIN_GROUP = 3
"""Groups of fewer tasks have no interval."""
GROUP_COLUMNS = ["grouping", "group", "tasks", "difference", "low", "high", "p", "p_bh", "members"]
"""Columns of `group_differences`."""


def group_differences(comparison: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Mean difference of each group of tasks of one series.

    The interval is Student's over tasks (groups are small, where a bootstrap is too narrow), p is of the sign-flip
    permutation test over the group's tasks, corrected over all groups of a grouping (Benjamini and Hochberg, 1995).
    Groups of a single task stand together as one. A grouping that puts all tasks into one group is left out.

    Args:
        comparison: one series' rows of what `comparison.compare` returns.
        alpha: 1 - level of the intervals.

    Returns:
        grouping (one of `GROUPINGS`), group, tasks (how many, with both scores), difference (mean), low, high (NaN
        below three tasks), p (NaN below two), p_bh, members (names); within a grouping by falling difference, the
        others last.
    """
    both = comparison[comparison["difference"].notna()]
    parts = []
    for grouping, column in GROUPINGS.items():
        sizes = both[column].map(both[column].value_counts())
        label = both[column].where(sizes > 1, OTHERS)
        if label.nunique() < 2:
            continue
        rows = pd.DataFrame([_group(str(name), part, alpha) for name, part in both.groupby(label)])
        rows.insert(0, "grouping", grouping)
        rows["p_bh"] = adjust(rows["p"].to_numpy(float), "bh")
        rows = rows.assign(last=rows["group"] == OTHERS).sort_values(
            ["last", "difference"], ascending=[True, False], kind="stable"
        )
        parts.append(rows[GROUP_COLUMNS])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=pd.Index(GROUP_COLUMNS))


def _group(name: str, rows: pd.DataFrame, alpha: float) -> dict[str, object]:
    values = rows["difference"].to_numpy(float)
    low, high = student_interval(values, alpha)
    return {
        "group": name,
        "tasks": len(values),
        "difference": float(values.mean()),
        "low": low,
        "high": high,
        "p": paired_test(values, level=1 - alpha).p if len(values) > 1 else np.nan,
        "members": ", ".join(sorted(rows["task"])),
    }


def student_interval(values: np.ndarray, alpha: float = 0.05) -> tuple[float, float]:
    """Student's interval of the mean of (n,) values; NaN below `MIN_GROUP` of them."""
    n = len(values)
    if n < MIN_GROUP:
        return np.nan, np.nan
    half = float(stdtrit(n - 1, 1 - alpha / 2)) * float(np.std(values, ddof=1)) / n**0.5
    return float(values.mean()) - half, float(values.mean()) + half
