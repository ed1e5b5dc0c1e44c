"""The scores by model size that TD-MPC2's paper reports, as a small table that comes with the project."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

TABLE = Path(__file__).with_name("published.csv")


def published_points() -> pd.DataFrame:
    """Published scores: task_set (as in the task registry), parameters_millions (nominal), score (normalised, 0 to
    100; a mean over tasks), source; no interval was published with them."""
    return pd.read_csv(TABLE)
