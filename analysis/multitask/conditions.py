"""Under what conditions the two sides were measured, as far as it is recorded: tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.multitask.comparison import NOT_RECORDED
from analysis.results import SERIES
from analysis.scores import last_evaluations
from analysis.study import PUBLISHED_KIND, Study
from analysis.style import series_name
from analysis.tables import counted
from analysis.words import MISSING
from tdmpc2.tasks import TASKS, expand_tasks

# The C parser reads a config ten times faster; pyyaml may have been built without it.
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLANNER = ("horizon", "iterations", "num_samples", "num_elites", "num_pi_trajs", "temperature")
_VALUES_SHOWN = 4
BUFFERS_CAPTION = (
    "Whose replay buffers each task was learned from, and where the single-task score was taken. Buffers: of these "
    "runs (the single-task runs compared with), of other runs, or not recorded."
)


def read_settings(runs: pd.DataFrame) -> dict[str, Mapping[str, Any]]:
    """The settings in each run's config.yaml, by run; without an entry for a run that has none that can be read.

    Nothing is filled in by today's defaults: what a run did not write down is not known.
    """
    settings: dict[str, Mapping[str, Any]] = {}
    for name, folder in zip(runs["run"], runs.get("folder", []), strict=False):
        try:
            values = yaml.load((Path(folder) / "config.yaml").read_text(), Loader=_YAML_LOADER)
        except (OSError, ValueError, yaml.YAMLError):
            continue  # the table of runs names the run and what is wrong with it
        if isinstance(values, dict):
            settings[str(name)] = values
    return settings


def conditions_table(study: Study, comparison: pd.DataFrame) -> pd.DataFrame:
    """What is the same on both sides of the comparison and what is not: text, one row a condition.

    Args:
        study: what was loaded.
        comparison: as `comparison.compare` returns it, of the series that are to be described together.

    Returns:
        condition, multi-task, single-task, published (where such scores are among the single-task ones), same.
    """
    runs = study.runs
    multi = _runs_of(runs, comparison[SERIES])
    singles = comparison.loc[~comparison["single_kind"].isin(["", PUBLISHED_KIND])]
    keys = singles[["single_algorithm", "single_kind", "single_size"]].assign(task_set="")
    single = _runs_of(runs, keys.set_axis(SERIES, axis=1))
    single = single[single["task"].isin(singles["task"])]
    settings = read_settings(pd.concat([multi, single]))
    last = last_evaluations(study.ours)
    last = last[last["counted"]]
    sides = [(multi, last[last["run"].isin(multi["run"])]), (single, last[last["run"].isin(single["run"])])]
    published = (comparison["single_kind"] == PUBLISHED_KIND).any()

    rows: list[tuple[str, Sequence[str], str, bool]] = []  # condition, ours, published, whether sameness is asked

    def add(condition: str, values: Sequence[str], published_value: str = NOT_RECORDED, compared: bool = True) -> None:
        rows.append((condition, values, published_value, compared))

    own = [[settings[run] for run in side["run"] if run in settings] for side, _ in sides]
    lacking = [len(side) > len(found) for (side, _), found in zip(sides, own, strict=True)]
    add("model", [_some(_names(side)) for side, _ in sides], "TD-MPC2", compared=False)
    add("acts in evaluation", [_acting(found, gap) for found, gap in zip(own, lacking, strict=True)])
    planners = [_planner(found, gap) for found, gap in zip(own, lacking, strict=True)]
    add("planner", planners)
    add("episodes in an evaluation", [_span(rows_["episodes"]) for _, rows_ in sides])
    add("success counts", [_success(rows_["task"]) for _, rows_ in sides])
    add("seeds a task", [_span(rows_.groupby(["task", *SERIES])["seed"].nunique()) for _, rows_ in sides], "3")
    repeats = [_span(pd.Series([TASKS[task].action_repeat for task in _tasks(side)])) for side, _ in sides]
    add("action repeat", repeats, repeats[0])
    add("score is taken", ["at the last evaluation", _where_single(comparison)], "at the last evaluation", False)
    add("environment steps taken", ["0", _span(comparison.loc[_ours(comparison), "single_step"])],
        _span(comparison.loc[comparison["single_kind"] == PUBLISHED_KIND, "single_step"]), False)  # fmt: skip
    add("updates", [_span(rows_["updates"].where(rows_["updates"] > 0)) for _, rows_ in sides], compared=False)
    add("batch size", [_setting(found, "batch_size", gap) for found, gap in zip(own, lacking, strict=True)])
    add("project version", [_some(set(side["version"]) - {""}) for side, _ in sides])
    table = pd.DataFrame(
        {
            "condition": [name for name, _, _, _ in rows],
            "multi-task": [values[0] for _, values, _, _ in rows],
            "single-task": [values[1] if len(single) else MISSING for _, values, _, _ in rows],
            "published": [value for _, _, value, _ in rows],
            "same": [_same(values, compared, len(single) > 0) for _, values, _, compared in rows],
        }
    )
    return table if published else table.drop(columns="published")


def buffers_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """Which buffers each task was learned from and where its single-task score was taken: text, one row a task."""
    rows = comparison

    def numbers(values: pd.Series) -> list[str]:
        return [MISSING if pd.isna(value) else f"{value:,.0f}" for value in values]

    shown = pd.DataFrame(
        {
            "task": rows["task"],
            "rows in the data set": numbers(rows["data_rows"]),
            "share": [MISSING if pd.isna(share) else f"{share:.1%}" for share in rows["data_share"]],
            "buffers": rows["buffers"],
            "buffer ends at environment step": numbers(rows["buffer_step"]),
            "single-task score at environment step": numbers(rows["single_step"]),
            "single-task agent": [
                series_name(algorithm, kind, size) if algorithm else MISSING
                for algorithm, kind, size in zip(
                    rows["single_algorithm"], rows["single_kind"], rows["single_size"], strict=True
                )
            ],
            "notes": rows["note"],
        }
    )
    return shown if (shown["notes"] != "").any() else shown.drop(columns="notes")


def _runs_of(runs: pd.DataFrame, keys: pd.DataFrame) -> pd.DataFrame:
    wanted = set(keys.drop_duplicates().itertuples(index=False, name=None))
    mine = [key in wanted for key in runs[SERIES].itertuples(index=False, name=None)]
    return runs[np.array(mine, dtype=bool)]


def _ours(comparison: pd.DataFrame) -> pd.Series:
    return ~comparison["single_kind"].isin(["", PUBLISHED_KIND])


def _names(runs: pd.DataFrame) -> list[str]:
    keys = runs[["algorithm", "size"]].drop_duplicates().sort_values(["algorithm", "size"])
    return [series_name(algorithm, "", size) for algorithm, size in keys.itertuples(index=False, name=None)]


def _tasks(runs: pd.DataFrame) -> list[str]:
    return [task for text in set(runs["task"]) if text for task in expand_tasks(str(text))]


def _acting(settings: Sequence[Mapping[str, Any]], lacking: bool) -> str:
    """How agents act when evaluated: by planning (`mpc`) or by the policy alone, in either case without noise."""
    words = {True: "by planning, without exploration noise", False: "by the policy alone, without exploration noise"}
    known = [words.get(found.get("mpc", ""), NOT_RECORDED) for found in settings]
    return _some(known + [NOT_RECORDED] * lacking) if known else NOT_RECORDED


def _planner(settings: Sequence[Mapping[str, Any]], lacking: bool) -> str:
    known = []
    for found in settings:
        whole = all(name in found for name in _PLANNER)
        known.append(", ".join(f"{name} {found[name]}" for name in _PLANNER) if whole else NOT_RECORDED)
    return _some(known + [NOT_RECORDED] * lacking) if known else NOT_RECORDED


def _setting(settings: Sequence[Mapping[str, Any]], name: str, lacking: bool) -> str:
    known = [str(found.get(name, NOT_RECORDED)) for found in settings]
    return _some(known + [NOT_RECORDED] * lacking) if known else NOT_RECORDED


def _success(tasks: pd.Series) -> str:
    metrics = {TASKS[task].metric for task in tasks}
    if not metrics:
        return MISSING
    return "at an episode's last step" if "success" in metrics else "not a measure of these tasks"


def _where_single(comparison: pd.DataFrame) -> str:
    """Where the single-task scores were taken."""
    rows = comparison[_ours(comparison) & comparison["single_score"].notna()]
    if rows.empty:
        return MISSING
    at_end = rows["single_step"] == rows["buffer_step"]
    before = rows["single_step"] < rows["buffer_step"]
    ends = {
        "where the buffer ended": at_end,
        "at the last evaluation, before the buffer ended": before,
        "at the last evaluation, as the buffers are not recorded": ~(at_end | before),
    }
    tasks = {where: rows.loc[found, "task"].nunique() for where, found in ends.items()}
    return "; ".join(f"{where} ({counted(number, 'task')})" for where, number in tasks.items() if number)


def _span(values: pd.Series) -> str:
    known = values.dropna()
    if known.empty:
        return NOT_RECORDED
    low, high = int(known.min()), int(known.max())
    text = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return text if len(known) == len(values) else f"{text}; partly {NOT_RECORDED}"


def _some(values: Iterable[str]) -> str:
    """Distinct texts, in order; of many the first few."""
    distinct = list(dict.fromkeys(str(value) for value in values))
    if not distinct:
        return NOT_RECORDED
    more = f" and {len(distinct) - _VALUES_SHOWN} more" if len(distinct) > _VALUES_SHOWN else ""
    return "; ".join(distinct[:_VALUES_SHOWN]) + more


def _same(values: Sequence[str], compared: bool, paired: bool) -> str:
    if not compared or not paired:
        return MISSING
    if any(NOT_RECORDED in value or value == MISSING for value in values):
        return NOT_RECORDED
    return "yes" if values[0] == values[1] else "no"
