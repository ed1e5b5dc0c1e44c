"""Published learning curves: folders ALGORITHM/TASK.csv with columns step, reward or success, seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.results import add_registry
from analysis.tables import counted, read_csv_files
from tdmpc2.errors import UserError, nearest
from tdmpc2.tasks import OWN, TASKS

Report = Callable[[Mapping[int, str]], None]
"""Takes messages by index of file."""
VALUE_COLUMNS = {"reward": "return", "success": "success"}
"""Metric by the name of the published files' value column."""
NOTABLE_GAP = 0.1
"""A seed that begins or ends this part of the task's steps apart from the others is told by itself; those that are
nearer, often by one evaluation, are told in one line for each algorithm."""
_LARGEST_STEP = 2.0**53
"""Beyond it numbers read as floating point are not whole steps any more."""
_RANGE_TOLERANCE = 0.01
"""Part of a metric's range that a value may lie outside of it, for rounding."""


@dataclass(frozen=True)
class Reference:
    """Published curves."""

    folder: Path
    """Where they were read from."""
    table: pd.DataFrame
    """As `SweepResults.table`, with kind `published`, size missing, and run ALGORITHM/FILE."""
    problems: tuple[str, ...]
    """What is amiss or was not taken as it stands, one line a file, `ALGORITHM/FILE: ...`: unknown tasks, unreadable
    rows, seeds recorded twice, seeds that are missing, seeds that begin later or end earlier than the task's others;
    and one line an algorithm, `ALGORITHM: ...`, for small such gaps and for tasks that it lacks."""


def check_reference_folder(folder: Path) -> None:
    """Refuse a folder without published curves.

    Raises:
        UserError: it does not exist (the nearest existing name is given) or holds no ALGORITHM/TASK.csv.
    """
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        match = nearest(folder.name, siblings)
        raise UserError(f"no reference folder {folder}" + (f"; did you mean {folder.parent / match}?" if match else ""))
    if not _files(folder):
        inside = folder / "results"  # of a checked-out copy of the reference project
        meant = inside if _files(inside) else folder.resolve().parent if list(folder.glob("*.csv")) else None
        raise UserError(f"{folder}: no ALGORITHM/TASK.csv in it" + (f"; did you mean {meant}?" if meant else ""))


def published_task(stem: str) -> str:
    """The task that a published file's name without its ending stands for: MyoSuite's are called myo-hand-TASK."""
    return stem.replace("myo-hand-", "myo-", 1)


def load_reference(folder: Path | str) -> Reference:
    """Read published curves. MyoSuite's files, named myo-hand-TASK, become the tasks myo-TASK.

    A seed that stands twice in a file at the same step is averaged there; rows without a number, and values that the
    metric cannot have, are left out. All of it is reported.

    Args:
        folder: holds ALGORITHM/TASK.csv with columns step (environment steps), reward or success, seed.

    Raises:
        UserError: as `check_reference_folder`.
    """
    folder = Path(folder)
    check_reference_folder(folder)
    paths, faults = _distinct_files(_files(folder))
    tasks = [published_task(path.stem) for path in paths]
    algorithms = [path.parent.name for path in paths]
    rows, unreadable = read_csv_files(paths, required=["step", "seed"], appended=False)
    for index, messages in unreadable.items():
        faults.setdefault(paths[index], []).extend(m.removeprefix(f"{paths[index].name}: ") for m in messages)

    def report(messages: Mapping[int, str]) -> None:
        for index, message in messages.items():
            faults.setdefault(paths[index], []).append(message)

    empty = set(range(len(paths))) - set(rows["source"]) - unreadable.keys()
    report(dict.fromkeys(sorted(empty), "no rows in it"))
    rows = _usable_rows(rows, report)
    table = rows.melt(["source", "step", "seed"], list(VALUE_COLUMNS), var_name="metric", value_name="value")
    table["metric"] = table["metric"].map(VALUE_COLUMNS)
    table = table[np.isfinite(table["value"])]
    table = _values_in_range(table, report)
    report(_other_metrics(table, tasks))
    table, repeated = _average_repeated(table)
    report(repeated)

    source = table["source"].to_numpy(dtype=int)
    known = pd.DataFrame({"algorithm": algorithms, "task": tasks}, dtype=object)
    own, overall = _gaps(table, known)
    report(own)
    problems = [f"{path.parent.name}/{path.stem}: {'; '.join(messages)}" for path, messages in sorted(faults.items())]
    table = table.assign(
        env_steps=table["step"].astype(np.int64),
        seed=table["seed"].astype("Int64"),
        run=np.array([f"{path.parent.name}/{path.stem}" for path in paths], dtype=object)[source],
        task=np.array(tasks, dtype=object)[source],
        algorithm=np.array(algorithms, dtype=object)[source],
        kind="published",
        size=pd.array([pd.NA] * len(table), dtype="Int64"),
    )
    return Reference(folder, add_registry(table), (*problems, *overall))


def coverage(table: pd.DataFrame) -> pd.DataFrame:
    """How much there is of each algorithm in a table of published curves.

    Returns:
        algorithm, tasks, seeds (the most of any task), env_steps (the last of any task).
    """
    grouped = table.groupby("algorithm", sort=True)
    seeds = table.groupby(["algorithm", "task"])["seed"].nunique().groupby("algorithm").max()
    return pd.DataFrame(
        {"tasks": grouped["task"].nunique(), "seeds": seeds, "env_steps": grouped["env_steps"].max()}
    ).reset_index()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*.csv") if not path.parent.name.startswith("."))


def _distinct_files(files: Sequence[Path]) -> tuple[list[Path], dict[Path, list[str]]]:
    """The files of known tasks, one for each algorithm and task, and what is amiss with the others."""
    taken: dict[tuple[str, str], Path] = {}
    faults: dict[Path, list[str]] = {}
    for path in files:
        task = published_task(path.stem)
        if task not in TASKS:
            faults[path] = ["unknown task, left out"]
        elif (path.parent.name, task) in taken:
            faults[path] = [f"the same task as {taken[path.parent.name, task].name}, left out"]
        else:
            taken[path.parent.name, task] = path
    return list(taken.values()), faults


def _usable_rows(rows: pd.DataFrame, report: Report) -> pd.DataFrame:
    """The rows with a whole step and seed and at least one value."""
    rows = rows.assign(**{column: np.nan for column in VALUE_COLUMNS if column not in rows})
    numbers = rows[["step", "seed"]].to_numpy(float)
    whole = ((numbers % 1 == 0) & (numbers >= 0) & (numbers <= _LARGEST_STEP)).all(axis=1)
    report(_per_file(rows[~whole], "whose step or seed is not a whole number, left out"))
    rows = rows[whole]
    present = np.isfinite(rows[list(VALUE_COLUMNS)].to_numpy(float)).any(axis=1)
    without = rows[~present]
    nothing = ~without["source"].isin(rows[present]["source"])
    report(dict.fromkeys(sorted(without[nothing]["source"].unique()), "no reward or success in it"))
    report(_per_file(without[~nothing], "without a value, left out"))
    return rows[present]


def _values_in_range(table: pd.DataFrame, report: Report) -> pd.DataFrame:
    """The values that their metric can have: returns from 0 to 1,000, successes from 0 to 1."""
    tops = {task.metric: 100.0 / task.score_scale for task in TASKS.values() if task.domain != OWN}
    share = table["value"].astype(float) / table["metric"].map(tops).astype(float)
    possible = share.between(-_RANGE_TOLERANCE, 1 + _RANGE_TOLERANCE)
    for metric, top in tops.items():
        impossible = table[~possible & (table["metric"] == metric)]
        report(_per_file(impossible, f"with a {metric} outside of 0 to {top:,.0f}, left out"))
    return table[possible]


def _per_file(rows: pd.DataFrame, what: str) -> dict[int, str]:
    counts = rows["source"].value_counts().sort_index()
    return {int(str(source)): f"{counted(count, 'row')} {what}" for source, count in counts.items()}


def _other_metrics(table: pd.DataFrame, tasks: Sequence[str]) -> dict[int, str]:
    """The files that lack the metric by which their task is scored."""
    own = np.array([TASKS[task].metric for task in tasks], dtype=object)[table["source"].to_numpy(dtype=int)]
    scored = set(table.loc[table["metric"] == own, "source"])
    return {
        int(source): f"no {TASKS[tasks[int(source)]].metric} in it, by which the task is scored"
        for source in sorted(set(table["source"]) - scored)
    }


def _average_repeated(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[int, str]]:
    """One value a seed and step, the mean where there are several; and by file, what was averaged."""
    keys = ["source", "seed", "step", "metric"]
    repeated = table[table.duplicated(keys, keep=False)]
    messages = {}
    for source, rows in repeated.groupby("source"):
        steps = sorted(set(rows["step"].astype(int)))
        where = f"step {steps[0]:,}" if len(steps) == 1 else f"{len(steps)} steps, {steps[0]:,} to {steps[-1]:,}"
        equal = rows.groupby(keys)["value"].nunique().max() == 1
        what = "with equal values" if equal else "averaged"
        messages[int(str(source))] = f"{_seeds(rows['seed'])} recorded more than once at {where}, {what}"
    return table.groupby(keys)["value"].mean().reset_index(), messages


def _gaps(table: pd.DataFrame, known: pd.DataFrame) -> tuple[dict[int, str], list[str]]:
    """What the curves lack, seen against one another: by file, and over all tasks of an algorithm.

    Args:
        table: source, seed, step and more.
        known: algorithm and task of each source.
    """
    spans = table.groupby(["source", "seed"])["step"].agg(["min", "max"]).reset_index()
    by_file = spans.groupby("source")
    begin, end = by_file["min"].transform("min"), by_file["max"].transform("max")
    spans = spans.assign(end=end, late=(spans["min"] - begin) / end, early=(end - spans["max"]) / end)
    spans = spans.join(known, on="source")
    usual = spans.groupby(["algorithm", "source"])["seed"].nunique().groupby("algorithm").agg(_most_common)
    messages: dict[int, list[str]] = {}
    for source, seeds in spans.groupby("source"):
        found, algorithm = messages.setdefault(int(str(source)), []), seeds["algorithm"].iloc[0]
        if len(seeds) < usual[algorithm]:
            found.append(f"only {_seeds(seeds['seed'])}, where most tasks of {algorithm} have {usual[algorithm]} seeds")
        early, late = seeds[seeds["early"] >= NOTABLE_GAP], seeds[seeds["late"] >= NOTABLE_GAP]
        ends = [f"seed {seed:.0f} at {step:,.0f}" for seed, step in zip(early["seed"], early["max"], strict=True)]
        begins = [f"seed {seed:.0f} at {step:,.0f}" for seed, step in zip(late["seed"], late["min"], strict=True)]
        if ends:
            found.append(f"ends early: {', '.join(ends)} of {seeds['end'].iloc[0]:,.0f} steps")
        if begins:
            found.append(f"begins late: {', '.join(begins)} of {seeds['end'].iloc[0]:,.0f} steps")
    overall = []
    covered = set(known["task"].iloc[spans["source"].unique()])
    for algorithm in sorted(set(spans["algorithm"])):
        seeds = spans[spans["algorithm"] == algorithm]
        lacking = sorted(covered - set(seeds["task"]))
        if lacking:
            names = f": lacks {', '.join(lacking)}" if len(lacking) <= len(covered) // 4 else ""
            overall.append(f"{algorithm}: {len(covered) - len(lacking)} of {len(covered)} tasks{names}")
        for column, what in (("early", "ends before the task's others"), ("late", "begins after the task's others")):
            near = seeds[(seeds[column] > 0) & (seeds[column] < NOTABLE_GAP)]
            if len(near):
                tasks = sorted(set(near["task"]))
                most = f"by up to {near[column].max():.1%} of its steps"
                overall.append(
                    f"{algorithm}: in {counted(len(tasks), 'task')} a seed {what}, {most}: {', '.join(tasks)}"
                )
    return {source: "; ".join(found) for source, found in messages.items() if found}, overall


def _most_common(counts: pd.Series) -> int:
    return int(counts.mode().max())


def _seeds(seeds: Iterable[float]) -> str:
    """Seeds for people, e.g. `seed 1`, `seeds 1, 2 and 3`."""
    numbers = [f"{seed:.0f}" for seed in sorted(set(seeds))]
    if len(numbers) == 1:
        return f"seed {numbers[0]}"
    return f"seeds {', '.join(numbers[:-1])} and {numbers[-1]}"
