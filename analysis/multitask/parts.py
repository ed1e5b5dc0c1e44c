"""The parts of the page: one a multi-task series, and one a task set for what shows all its sizes together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.multitask.text import file_suffix
from analysis.results import SERIES
from analysis.style import series_name


@dataclass(frozen=True)
class Part:
    """Rows of a comparison that are shown together."""

    name: str
    """The series or the task set, for headings."""
    suffix: str
    """What the names of its files end with; "" where there is one part only."""
    rows: pd.DataFrame
    """Its rows of what `comparison.compare` returns."""

    def row_of(self, means: pd.DataFrame) -> Mapping[Any, Any]:
        """The row of `overview.compare_means` on this part's series."""
        key = self.rows[SERIES].iloc[0]
        (row,) = means[(means[SERIES] == key).all(axis=1)].to_dict("records")
        return row


def series_parts(comparison: pd.DataFrame) -> list[Part]:
    """One part a multi-task series: the largest task sets first, then by size."""
    counts = comparison.groupby(SERIES)["task"].transform("count")
    ordered = comparison.assign(count=counts).sort_values(
        ["count", "task_set", "size", "algorithm", "kind"], ascending=[False, True, True, True, True], kind="stable"
    )
    return _parts(comparison, SERIES, list(ordered[SERIES].drop_duplicates().itertuples(index=False, name=None)))


def set_parts(comparison: pd.DataFrame) -> list[Part]:
    """One part a task set: the largest first."""
    return _parts(comparison, ["task_set"], [(name,) for name in comparison["task_set"].value_counts(sort=True).index])


def _parts(comparison: pd.DataFrame, columns: Sequence[str], keys: Sequence[tuple[Any, ...]]) -> list[Part]:
    names = [series_name(*key) if len(columns) > 1 else str(key[0]) for key in keys]
    parts = []
    for name, key in zip(names, keys, strict=True):
        mine = pd.concat([comparison[column] == part for column, part in zip(columns, key, strict=True)], axis=1)
        parts.append(Part(name, file_suffix(name, names), comparison[mine.all(axis=1)].reset_index(drop=True)))
    return parts
