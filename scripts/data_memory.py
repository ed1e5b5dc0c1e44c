"""Memory, start and sampling time of a data set as large as the released one of mt80, measured.

Two data sets are made below a folder, and removed afterwards. One has as many rows as asked in sparse files: its logs
of episodes are real, all rows are holes, which the system serves as zeros without reading the disk. That shows what
many rows cost in memory and at the start, and no more. The other is smaller and dense, every row on disk, and is
sampled with nothing of it in the page cache, then again with whatever the first pass left there. Each is opened in a
fresh process, as training opens it. Anonymous memory is the process's own; file memory is the page cache, seen through
memory maps, which the system takes back when it needs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tdmpc2.data.dataset import Dataset, StoreSource, build
from tdmpc2.data.episodes import RECORD
from tdmpc2.data.layout import EPISODE_LOG, Layout, create_files, field_path
from tdmpc2.tasks import TASK_SETS, get_task

MT80_ROWS = 550_450_000
BATCH = 1024
HORIZON = 3


@dataclasses.dataclass(frozen=True)
class Result:
    """What one data set took."""

    data: str
    rows: int
    episodes: int
    stores: int
    open_seconds: float
    """From reading the manifest to the first batch."""
    start_seconds: float
    """From the process's start to the first batch: torch is imported in it."""
    resident_mib: float
    """Memory more than before the data set was opened, after all batches."""
    anonymous_mib: float
    """Part of it that is the process's own."""
    peak_mib: float
    """Largest resident memory of the process, torch and all."""
    first_ms: float
    """Median of the first batches sampled, in milliseconds, with an empty page cache if the data are dense."""
    later_ms: float
    """Median of as many batches drawn by the same random numbers again, in milliseconds."""
    wait_ms: float
    """Median wait for a prefetched batch while 300 ms of other work follow each, in milliseconds."""


def make_dataset(folder: Path, rows: int, tasks: int, stores: int, steps: int, dense: bool) -> Dataset:
    """A data set of about so many rows: episodes of `steps` steps, evenly over the first tasks of mt80.

    Args:
        folder: where.
        rows: of all stores together.
        tasks: how many.
        stores: of each task.
        steps: agent steps of an episode.
        dense: whether rows are written; holes otherwise.
    """
    sources = []
    per_store = max(1, round(rows / (steps + 1) / (tasks * stores)))
    for number in range(tasks * stores):
        task = get_task(TASK_SETS["mt80"][number // stores])
        layout = Layout(
            task=task.name,
            obs_shape=(task.obs_dim or 1,),
            obs_dtype="float32",
            action_dim=task.action_dim,
            capacity=per_store * (steps + 1),
            slack=1,
        )
        store = folder / "stores" / f"{number:03}"
        create_files(store, layout)
        index = np.arange(per_store)
        log = np.stack([index * (steps + 1), np.full_like(index, steps + 1), index], axis=1)
        (store / EPISODE_LOG).write_bytes(log.astype(RECORD).tobytes())
        if dense:
            _fill(store, layout, number)
        sources.append(StoreSource(store, seed=number % stores, finished=True))
    return build("data", sources, TASK_SETS["mt80"][:tasks], folder)


def _fill(store: Path, layout: Layout, seed: int) -> None:
    """Write every row: float fields with noise, the flags with zeros."""
    noise = np.random.default_rng(seed).random(2**20, np.float32).tobytes()
    for name, field in layout.fields.items():
        left = layout.physical_rows * field.row_bytes
        with field_path(store, name).open("wb") as file:
            while left:
                left -= file.write((bytes(len(noise)) if field.dtype == "bool" else noise)[:left])
            file.flush()
            os.fsync(file.fileno())


def forget_cached(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(folder: Path, batches: int, name: str) -> Result:
    """Open a data set and sample it, in this process, which should have done nothing else."""
    import psutil
    import torch

    from tdmpc2.data.multitask import MultitaskReplay
    from tdmpc2.data.prefetch import Prefetcher

    before, begin = _memory(), time.perf_counter()
    dataset = Dataset.read(folder)
    replay = MultitaskReplay(dataset, HORIZON)
    with Prefetcher(replay, BATCH, torch.Generator().manual_seed(0), torch.device("cpu")) as prefetcher:
        prefetcher.next()
        opened, started = time.perf_counter() - begin, time.time() - psutil.Process().create_time()
        out = replay.empty_batch(BATCH)
        times: list[list[float]] = [[], []]
        for pass_times in times:
            generator = torch.Generator().manual_seed(1)
            for _ in range(batches):
                start = time.perf_counter()
                replay.sample(BATCH, generator, out)
                pass_times.append(1e3 * (time.perf_counter() - start))
        waits = []
        for _ in range(6):
            time.sleep(0.3)
            start = time.perf_counter()
            prefetcher.next()
            waits.append(1e3 * (time.perf_counter() - start))
        after = _memory()
    return Result(
        data=name,
        rows=sum(record.rows for record in dataset.stores),
        episodes=sum(record.episodes for record in dataset.stores),
        stores=len(dataset.stores),
        open_seconds=opened,
        start_seconds=started,
        resident_mib=after["VmRSS"] - before["VmRSS"],
        anonymous_mib=after["RssAnon"] - before["RssAnon"],
        peak_mib=after["VmHWM"],
        first_ms=float(np.median(times[0])),
        later_ms=float(np.median(times[1])),
        wait_ms=float(np.median(waits)),
    )


def _memory() -> dict[str, float]:
    """Memory of this process in MiB, as Linux names it."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {
        words[0].rstrip(":"): int(words[1]) / 1024 for words in lines if words[0].startswith(("VmRSS", "VmHWM", "RssA"))
    }


def measured_apart(folder: Path, batches: int, name: str) -> Result:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--folder", str(folder), "--batches", str(batches), "--measure", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def results(arguments: argparse.Namespace, folder: Path) -> Iterator[Result]:
    """Make, measure and remove each data set."""
    row_bytes = 150  # of mt80's tasks, on average about this
    sizes = [("sparse", arguments.rows, False)]
    if arguments.dense_gb > 0:
        sizes.append(("dense", int(arguments.dense_gb * 1e9 / row_bytes), True))
    for name, rows, dense in sizes:
        place = folder / name
        dataset = make_dataset(place, rows, arguments.tasks, arguments.stores, arguments.steps, dense)
        if dense:
            forget_cached(place)
        yield measured_apart(dataset.folder, arguments.batches, name)
        shutil.rmtree(place)


def print_table(found: list[Result]) -> None:
    """A line a measurement, a column a data set, in Markdown."""
    print(f"\n| | {' | '.join(result.data for result in found)} |\n|---|{'---|' * len(found)}")
    for field in dataclasses.fields(Result)[1:]:
        values = [getattr(result, field.name) for result in found]
        shown = [f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" for value in values]
        print(f"| {field.name.replace('_', ' ')} | {' | '.join(shown)} |")
    print()


def main() -> None:
    """Measure, print a table and then all numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True, help="where data are made, and removed again")
    parser.add_argument("--rows", type=int, default=MT80_ROWS, help="rows of the sparse data set (default: mt80's)")
    parser.add_argument("--tasks", type=int, default=80, help="tasks, of mt80")
    parser.add_argument("--stores", type=int, default=3, help="stores of each task")
    parser.add_argument("--steps", type=int, default=100, help="agent steps of an episode")
    parser.add_argument("--dense-gb", type=float, default=10, help="gigabytes of the dense data set; 0 for none")
    parser.add_argument("--batches", type=int, default=50, help=f"batches of {BATCH} x {HORIZON + 1} in each pass")
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(dataclasses.asdict(measure(arguments.folder, arguments.batches, arguments.measure))))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        found = list(results(arguments, Path(temporary)))
    print_table(found)
    print(json.dumps([dataclasses.asdict(result) for result in found]))


if __name__ == "__main__":
    main()
