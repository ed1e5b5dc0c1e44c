"""The verbs of `tdmpc2 sweep` that keep results and vouch for them: verify, archive, unpack."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdmpc2.sweeps.folder import SweepFolder

AddVerb = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
EXIT_WRONG = 1


def add_verbs(add: AddVerb) -> None:
    """Add the verbs to a command line.

    Args:
        add: takes a verb's name, what runs it and its help, and returns its parser, which has --results.
    """
    verify = add("verify", verify_sweep, "check that runs and reports are as they were written, and belong together")
    verify.add_argument("name", metavar="NAME", help="a sweep that was run: a folder of --results")
    verify.add_argument("--checkpoints", action="store_true", help="read every checkpoint too, which takes long")

    archive = add("archive", archive_sweep, "pack a sweep's results into one file, to keep or to report elsewhere")
    archive.add_argument("name", metavar="NAME", help="a sweep that was run: a folder of --results")
    archive.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: NAME.tar.gz)")
    for what, text in (("replay", "replay buffers"), ("checkpoints", "checkpoints"), ("tensorboard", "events")):
        archive.add_argument(f"--with-{what}", action="store_true", help=f"pack the runs' {text} too")
    archive.add_argument("--unfinished", action="store_true", help="pack runs under way as they stand")

    unpack = add("unpack", unpack_sweep, "unpack the results of a sweep that `archive` packed")
    unpack.add_argument("file", type=Path, metavar="FILE", help="the archive")


def verify_sweep(args: argparse.Namespace) -> int:
    """`tdmpc2 sweep verify NAME`."""
    from tdmpc2.sweeps.verify import verify_sweep as verify

    checks = verify(_folder(args), args.checkpoints)
    for check in checks:
        print("\n".join(check.lines()))
    wrong = sum(len(check.wrong) for check in checks)
    if wrong:
        print(f"{args.name}: {wrong} fault(s)", file=sys.stderr)
        return EXIT_WRONG
    return 0


def archive_sweep(args: argparse.Namespace) -> int:
    """`tdmpc2 sweep archive NAME`."""
    from tdmpc2.sweeps import archive

    folder = _folder(args)
    wanted = {
        archive.REPLAY: args.with_replay,
        archive.CHECKPOINT: args.with_checkpoints,
        archive.TENSORBOARD: args.with_tensorboard,
    }
    packed = [name for name, with_it in wanted.items() if with_it]
    file = args.out or Path(f"{folder.name}.tar.gz")
    with _progress("packing") as on_bytes:
        made = archive.archive_sweep(folder, file, packed=packed, unfinished=args.unfinished, on_bytes=on_bytes)
    for notice in made.notices:
        print(f"note: {notice}")
    size = made.file.stat().st_size
    print(f"{made.file}: {_megabytes(size)}, {made.files:,} files of {_megabytes(made.bytes)} in all")
    print(f"unpack it elsewhere with: tdmpc2 sweep unpack {made.file.name} --results DIR")
    return 0


def unpack_sweep(args: argparse.Namespace) -> int:
    """`tdmpc2 sweep unpack FILE`."""
    from tdmpc2.sweeps.unpack import unpack_archive

    with _progress("unpacking") as on_bytes:
        folder = unpack_archive(args.file, Path(args.results), on_bytes)
    print(f"{folder}: unpacked, every file as it was packed")
    print(f"report on it with: make report SWEEP={folder.name} RESULTS={args.results}")
    return 0


def _folder(args: argparse.Namespace) -> SweepFolder:
    from tdmpc2.errors import unknown_name
    from tdmpc2.sweeps.folder import SweepFolder

    folder = SweepFolder(args.results, args.name)
    if not folder.path.is_dir():
        existing = [path.parent.name for path in Path(args.results).glob("*/runs")]
        raise unknown_name("sweep", args.name, existing, args.results)
    return folder


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextmanager
def _progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal, where there is one; yields what takes the bytes done and in all."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
