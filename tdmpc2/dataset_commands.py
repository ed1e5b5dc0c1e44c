"""The command `tdmpc2 dataset`: build, list, info, import-chunks."""

from __future__ import annotations

import argparse
import csv
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmpc2.analysis_process import run_analysis
from tdmpc2.errors import UserError, require
from tdmpc2.tasks import TASK_SETS, TASKS, expand_tasks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.table import Table

    from tdmpc2.data.dataset import Dataset
    from tdmpc2.training.datasets import RunChoice

CHUNKED_SETS = ("mt30", "mt80")
EXIT_INTERRUPTED = 130
HISTOGRAM_BINS = 10
_BLOCKS = " ▁▂▃▄▅▆▇█"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `dataset` to a command line; each verb's `run_command` takes the parsed options and returns the exit code."""
    dataset = subparsers.add_parser("dataset", help="multi-task data sets: build, list, info, import-chunks")
    verbs = dataset.add_subparsers(dest="dataset_verb", required=True, metavar="VERB")

    def add(verb: str, run_command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        parser = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        parser.set_defaults(run_command=run_command)
        parser.add_argument("--results", default="results", metavar="DIR", help="folder of all results")
        return parser

    build = add("build", build_command, "make a data set of finished runs' replay; nothing is copied unless asked for")
    build.add_argument("name", metavar="NAME", help="the data set's name; it is made in DIR/datasets")
    build.add_argument(
        "--from",
        dest="sources",
        action="append",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="a sweep's folder, a run's, or a folder of runs; may be given several times",
    )
    build.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks and task sets, in the order of their ids")
    build.add_argument("--seeds", nargs="+", metavar="SEED", help="seeds of the runs (default: all)")
    build.add_argument("--sizes", nargs="+", metavar="SIZE", help="model sizes of the runs (default: all)")
    build.add_argument("--labels", nargs="+", metavar="LABEL", help="labels of the runs, '' for none (default: all)")
    build.add_argument("--copy", action="store_true", help="copy the replay into the data set's folder, to move it")

    add("list", list_command, "show the data sets that there are")

    info = add("info", info_command, "show what a data set holds of each task, and whether its stores are there")
    info.add_argument("name", metavar="NAME|PATH", help="a data set's name (in DIR/datasets) or folder")
    info.add_argument("--csv", type=Path, metavar="FILE", help="write the table here too")
    info.add_argument("--figure", type=Path, metavar="FILE", help="draw the returns' distributions: FILE.png, FILE.svg")
    info.add_argument("--check", action="store_true", help="only see whether all stores are there and as they were")

    chunks = add("import-chunks", import_command, "read TD-MPC2's released data files into a data set")
    chunks.add_argument("folder", type=Path, metavar="FOLDER", help="folder of chunk_0.pt, chunk_1.pt, ...")
    chunks.add_argument("--task-set", required=True, choices=CHUNKED_SETS, help="the set whose tasks they are of")
    chunks.add_argument("--name", metavar="NAME", help="the data set's name (default: the task set's)")


def build_command(args: argparse.Namespace) -> int:
    """`tdmpc2 dataset build NAME --from FOLDER`."""
    from tdmpc2.data.dataset import MANIFEST
    from tdmpc2.training.datasets import DATASETS, build_dataset, find_runs

    names = None if args.tasks is None else expand_tasks(tuple(_split(args.tasks)), where="--tasks")
    seeds, sizes = _whole_numbers(args.seeds, "--seeds"), _whole_numbers(args.sizes, "--sizes")
    _require_begun(args.sources, names, seeds, sizes, args.labels)
    choice = find_runs(args.sources, names, seeds, sizes, args.labels)
    stores = [run.store for run in choice.runs]
    folder = Path(args.results) / DATASETS
    existed = (folder / args.name / MANIFEST).is_file()
    dataset = build_dataset(args.name, stores, choice.tasks, folder, args.copy)
    for note in _notes(choice):
        print(note)
    print(f"{dataset.folder}: {'is there already, as asked for' if existed else 'built'}")
    print(_totals(dataset))
    print(_next_command(dataset.name, [task.name for task in dataset.tasks], args.results))
    return 0


def _split(words: Iterable[str]) -> list[str]:
    """Words that may hold several values with commas between them."""
    return [part.strip() for word in words for part in word.split(",") if part.strip()]


def _whole_numbers(words: Sequence[str] | None, option: str) -> list[int] | None:
    if words is None:
        return None
    numbers = []
    for word in _split(words):
        text = word.removesuffix("M") if option == "--sizes" else word  # as runs are named: 5M
        require(text.isdecimal(), f"{option}: {word!r} is no whole number")
        numbers.append(int(text))
    return numbers


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    console.width = max(console.width, 150)  # tables are wide; what a narrow terminal wraps is at least not lost
    return console


def _require_begun(
    sources: Iterable[Path],
    tasks: Sequence[str] | None,
    seeds: Sequence[int] | None,
    sizes: Sequence[int] | None,
    labels: Sequence[str] | None,
) -> None:
    """Refuse where a sweep has planned a run that is asked for and has not begun: the data would lack it in silence."""
    from tdmpc2.sweeps.folder import SweepFolder

    waiting = []
    for source in sources:
        sweep = SweepFolder(source.parent, source.name)
        for entry in sweep.read_plan():
            stem = re.escape(f"{entry.task}-{entry.model_size}M")
            name = re.fullmatch(rf"{stem}(?:-(.+))?-seed{entry.seed}", entry.name)  # None for pixels
            asked = (
                entry.kind == "online"
                and entry.task in (TASKS if tasks is None else tasks)
                and (seeds is None or entry.seed in seeds)
                and (sizes is None or entry.model_size in sizes)
                and name is not None
                and (labels is None or (name[1] or "") in labels)
            )
            if asked and not sweep.run(entry.name).config_file.is_file():
                waiting.append(f"{source}: {entry.name}")
    require(
        not waiting,
        "planned, but not begun: " + ", ".join(waiting) + ". Run them (`tdmpc2 sweep run`), or leave them out by "
        "naming others with --tasks or --seeds",
    )


def _notes(choice: RunChoice) -> list[str]:
    """What a person should know of how the runs were chosen."""
    notes = [f"left out ({reason}): {', '.join(names)}" for reason, names in choice.passed_over.items()]
    if choice.variants:
        (task, seed), runs = next(iter(choice.variants.items()))
        notes.append(
            f"several runs of one task and seed, all are taken ({_counted(len(choice.variants), 'case')}, as of {task} "
            f"seed {seed}: {', '.join(run.folder.path.name for run in runs)}); choose with --sizes or --labels"
        )
    return notes


def _totals(dataset: Dataset) -> str:
    transitions = sum(record.transitions for record in dataset.stores)
    env_steps = sum(record.transitions * TASKS[record.task].action_repeat for record in dataset.stores)
    episodes = sum(record.episodes for record in dataset.stores)
    return (
        f"{_counted(len(dataset.tasks), 'task')}, {_counted(len(dataset.stores), 'replay store')}, "
        f"{_counted(episodes, 'episode')}, {_counted(transitions, 'transition')} (agent steps; {env_steps:,} "
        "environment steps)"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _next_command(name: str, tasks: Sequence[str], results: str) -> str:
    """The command that trains on a data set of these tasks."""
    task = next((known for known in CHUNKED_SETS if TASK_SETS[known] == tuple(tasks)), ",".join(tasks))
    words = ["tdmpc2", "train", f"task={task}", f"data={name}"]
    words += [] if results == "results" else [f"results_dir={results}"]
    return f"train on it with: {shlex.join(words)}"


def list_command(args: argparse.Namespace) -> int:
    """`tdmpc2 dataset list`."""
    from rich.table import Table

    from tdmpc2.data.dataset import Dataset
    from tdmpc2.training.datasets import dataset_folders

    folders = dataset_folders(args.results)
    if not folders:
        print(f"{args.results}: no data sets; `tdmpc2 dataset build NAME --from {args.results}/SWEEP` makes one")
        return 0
    table = Table(box=None, pad_edge=False)
    table.add_column("data set", no_wrap=True)
    for column in ("tasks", "stores", "episodes", "transitions (agent steps)"):
        table.add_column(column, justify="right")
    table.add_column("folder", overflow="fold")
    for folder in folders:
        try:
            dataset = Dataset.read(folder)
        except UserError as error:
            table.add_row(folder.name, "", "", "", "", f"cannot be used: {error}")
            continue
        held = (
            len(dataset.tasks),
            len(dataset.stores),
            sum(record.episodes for record in dataset.stores),
            sum(record.transitions for record in dataset.stores),
        )
        table.add_row(folder.name, *(f"{number:,}" for number in held), str(folder))
    _console().print(table)
    return 0


def info_command(args: argparse.Namespace) -> int:
    """`tdmpc2 dataset info NAME|PATH`."""
    from tdmpc2.data.summary import episode_returns
    from tdmpc2.training.datasets import find_dataset, store_faults, task_rows

    require(not args.check or (args.csv is None and args.figure is None), "--check: not with --csv or --figure")
    dataset = find_dataset(args.name, args.results)
    faults = store_faults(dataset)
    if faults:
        if not args.check:
            _console().print(_contents_table(dataset))
            print(_totals(dataset))
        listed = "\n  ".join(faults)
        raise UserError(f"{len(faults)} of {len(dataset.stores)} replay stores cannot be used:\n  {listed}")
    if not args.check:
        returns = episode_returns(dataset)
        rows = task_rows(dataset, returns)
        _console().print(_returns_table(rows, returns))
        disk = _readable_bytes(sum(row["disk_bytes"] for row in rows))
        print(f"{dataset.folder}: {_totals(dataset)}, {disk} on disk")
        if args.csv is not None:
            _write_csv(rows, args.csv)
        if args.figure is not None:
            _draw(dataset, args.figure)
    print(f"all {_counted(len(dataset.stores), 'replay store')} there, and as they were when the data set was built")
    return 0


def _contents_table(dataset: Dataset) -> Table:
    """What the manifest alone says."""
    from rich.table import Table

    from tdmpc2.training.datasets import task_seeds

    table = Table(box=None, pad_edge=False)
    for column, justify in (("id", "right"), ("task", "left"), ("seeds", "left")):
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]  # one of rich's words
    for column in ("stores", "episodes", "transitions"):
        table.add_column(column, justify="right")
    for task in dataset.tasks:
        records = [record for record in dataset.stores if record.task == task.name]
        held = (len(records), sum(r.episodes for r in records), sum(r.transitions for r in records))
        table.add_row(str(task.id), task.name, task_seeds(dataset, task.name), *(f"{number:,}" for number in held))
    return table


def _returns_table(rows: Sequence[dict[str, Any]], returns: Any) -> Table:
    """What a data set holds of each task, and how its episodes' returns are spread."""
    from rich.table import Table

    table = Table(
        box=None,
        pad_edge=False,
        caption="transitions are agent steps; min to mean are of the episodes' returns; on the right these are counted "
        "from the smallest to the largest",
        caption_justify="left",
    )
    columns = "id task seeds stores episodes transitions disk min 25% median 75% max mean".split()
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "seeds") else "right", no_wrap=True)
    table.add_column("returns", no_wrap=True)
    for row in rows:
        spread = [row[f"return_{name}"] for name in ("min", "q25", "median", "q75", "max", "mean")]
        table.add_row(
            str(row["id"]),
            row["task"],
            row["seeds"],
            *(f"{row[name]:,}" for name in ("stores", "episodes", "transitions")),
            _readable_bytes(row["disk_bytes"]),
            *(f"{value:,.1f}" for value in spread),
            text_histogram(returns[row["task"]]),
        )
    return table


def text_histogram(values: NDArray[np.float64], bins: int = HISTOGRAM_BINS) -> str:
    """How numbers are spread, as a line of blocks from the smallest to the largest; a space where there is none.

    Args:
        values: (n,) finite numbers, n > 0.
        bins: characters.
    """
    import numpy as np

    counts, _ = np.histogram(values, bins=bins)
    levels = np.ceil(counts / counts.max() * (len(_BLOCKS) - 1)).astype(int)
    return "".join(_BLOCKS[level] for level in levels)


def _readable_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _write_csv(rows: Sequence[dict[str, Any]], file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"--csv: {file} cannot be written ({error.strerror})") from None
    print(f"{file}: written")


def _draw(dataset: Dataset, file: Path) -> None:
    """Have the analysis package draw the figure: in a process of its own, since nothing here knows of plotting."""
    said = run_analysis(
        "analysis.datasets",
        [str(dataset.folder), "--output", str(file)],
        absent="--figure: is drawn by the package `analysis`, which is not installed here",
        failed="--figure: could not be drawn: ",
    )
    print(said, end="")


class ImportProgress:
    """A bar over all chunks with an estimate of what is left or, where there is no terminal, a line for each chunk.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=120,
        )
        self._task: TaskID | None = None
        self._line = ""

    def __enter__(self) -> ImportProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, chunk: int, chunks: int, episodes_done: int, episodes: int) -> None:
        """Show how far it is: `chunk` of `chunks` (from 0) under way, `episodes_done` of its `episodes` read."""
        line = f"chunk {chunk + 1} of {chunks}"
        completed = chunk + episodes_done / max(episodes, 1)
        if self._task is None:  # what an earlier call has read does not count as this one's speed
            begun: Any = completed  # rich takes parts of a step too, though its types say whole numbers
            self._task = self._bar.add_task(line, total=chunks, completed=begun)
        self._bar.update(self._task, description=line, completed=completed)
        if not self._console.is_terminal and line != self._line:
            self._console.print(line)
        self._line = line


def import_command(args: argparse.Namespace) -> int:
    """`tdmpc2 dataset import-chunks FOLDER --task-set mt30`."""
    from rich.console import Console

    from tdmpc2.data.chunks import import_chunks
    from tdmpc2.training.datasets import DATASETS

    name = args.task_set if args.name is None else args.name
    target = Path(args.results) / DATASETS
    progress = ImportProgress(Console(stderr=True))
    try:
        with progress:
            dataset = import_chunks(args.folder, args.task_set, target, name, progress.show)
    except KeyboardInterrupt:
        words = ["tdmpc2", "dataset", "import-chunks", str(args.folder), "--task-set", args.task_set]
        words += [] if args.name is None else ["--name", args.name]
        words += [] if args.results == "results" else ["--results", args.results]
        print(f"\ninterrupted; the same command goes on: {shlex.join(words)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"{dataset.folder}: {_totals(dataset)}")
    print(_next_command(dataset.name, [task.name for task in dataset.tasks], args.results))
    return 0
