"""Reading many small CSV files at once, with the faults of each."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd


def read_csv_files(
    paths: Sequence[Path],
    required: Sequence[str],
    text: Sequence[str] = (),
    blank: Sequence[str] = (),
    appended: bool = True,
    max_rows: int | None = None,
) -> tuple[pd.DataFrame, dict[int, list[str]]]:
    """All rows of many CSV files as one table; what cannot be read is reported per file, the rest is kept.

    All files with the same header are parsed in one go, so that thousands of small files cost little more than one
    large one.

    Args:
        paths: the files.
        required: columns every file must have; the numeric ones among them must hold finite numbers in every row.
        text: columns that hold text; all others hold numbers (blank = NaN).
        blank: numeric columns among the required ones that may hold NaN all the same; the caller checks them.
        appended: whether a program appends rows to these files. A last line without its newline is then half-written,
            and left out: its last number may be cut short and still look like a number.
        max_rows: keep at most this many rows of a file, evenly spaced, the last one always.

    Returns:
        rows: the union of the files' columns, and `source`, the index into `paths`; in the order of `paths`.
        problems: messages by index into `paths`; files without a fault have no entry.
    """
    problems: dict[int, list[str]] = {}
    bodies: dict[str, list[tuple[int, list[str]]]] = {}
    for index, path in enumerate(paths):
        try:
            content = path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")
        except FileNotFoundError:
            problems[index] = [f"{path.name}: missing"]
            continue
        except OSError as error:
            problems[index] = [f"{path.name}: {error.strerror or error}"]
            continue
        faults = []
        complete, _, tail = content.rpartition("\n")
        lines = complete.split("\n") if complete else []
        if tail and appended:
            faults.append(f"{path.name}: last row half-written, left out")
        elif tail:
            lines.append(tail)
        # Spreadsheets put a byte order mark before the first name; people put spaces behind the commas.
        columns = [name.strip() for name in lines[0].removeprefix("\ufeff").split(",")] if lines else [""]
        header = ",".join(columns)
        missing = [name for name in required if name not in columns]
        if missing:
            problems[index] = [f"{path.name}: no column {', '.join(missing)}" if header else f"{path.name}: empty"]
            continue
        if len(set(columns)) < len(columns):
            problems[index] = [f"{path.name}: two columns have the same name"]
            continue
        rows = [line for line in lines[1:] if line]
        whole = [line for line in rows if line.count(",") == header.count(",")]
        if len(whole) < len(rows):
            faults.append(_left_out(path, len(rows) - len(whole)))
        if max_rows is not None and len(whole) > max_rows:
            whole = [whole[i] for i in np.linspace(0, len(whole) - 1, max_rows).round().astype(int)]
        if faults:
            problems[index] = faults
        bodies.setdefault(header, []).append((index, whole))

    parts = [_parse(header, files, text) for header, files in bodies.items()]
    if not parts:
        return pd.DataFrame(columns=pd.Index([*required, "source"])), problems
    table = pd.concat(parts, ignore_index=True).sort_values("source", kind="stable", ignore_index=True)

    numeric = [name for name in required if name not in (*text, *blank)]
    finite = np.isfinite(table[numeric].to_numpy(dtype=float, na_value=np.nan)).all(axis=1)
    for source, count in table.loc[~finite, "source"].value_counts().items():
        index = int(str(source))
        problems.setdefault(index, []).append(_left_out(paths[index], count))
    return table[finite].reset_index(drop=True), problems


def counted(n: int, noun: str) -> str:
    """A number with its noun, e.g. `1 run`, `1,200 runs`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _left_out(path: Path, count: int) -> str:
    return f"{path.name}: {counted(count, 'unreadable row')} left out"


def _parse(header: str, files: Sequence[tuple[int, list[str]]], text: Sequence[str]) -> pd.DataFrame:
    """One table from the lines of files that share a header; a cell that is no number becomes NaN."""
    columns = header.split(",")
    table = pd.read_csv(
        io.StringIO("\n".join(line for _, lines in files for line in lines)),
        header=None,
        names=columns,
        dtype={name: str for name in text if name in columns},
        quoting=csv.QUOTE_NONE,  # a stray quotation mark in a damaged line must not swallow the lines after it
        low_memory=False,
    )
    for name in columns:
        if name not in text:
            table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    table["source"] = np.repeat([index for index, _ in files], [len(lines) for _, lines in files])
    return table
