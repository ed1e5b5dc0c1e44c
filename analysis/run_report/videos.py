"""The films in a run's folder: copies beside the page, posters and frames."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LARGEST = 20 * 2**20
"""Bytes up to which a film is copied and shown."""
MOST_FILMS = 4
"""Films that are shown, the newest."""
FRAMES = 6
"""Frames of a film on the contact sheet."""


@dataclass(frozen=True)
class Film:
    """One film that can be shown."""

    path: Path
    """The MP4 in the run's folder."""
    frames: tuple[np.ndarray, ...]
    """Up to `FRAMES` frames, evenly spaced from the first to the last: (height, width, 3) of uint8."""
    times: tuple[float, ...]
    """When they are shown, in seconds of the film."""


def read_films(folder: Path) -> tuple[list[Film], list[str]]:
    """The newest films of a run.

    Args:
        folder: the run's folder.

    Returns:
        films, the newest first, and what is not shown, with the reason.
    """
    paths = sorted((folder / "videos").glob("*.mp4"), key=lambda path: (-path.stat().st_mtime, path.name))
    films: list[Film] = []
    left_out = []
    for path in paths:
        size = path.stat().st_size
        if size > LARGEST:
            left_out.append(f"{path.name}: {size / 2**20:.0f} MiB, more than {LARGEST // 2**20}")
        elif len(films) == MOST_FILMS:
            left_out.append(f"{path.name}: older than the {MOST_FILMS} shown")
        else:
            try:
                films.append(_read_film(path))
            except OSError as error:
                left_out.append(f"{path.name}: cannot be read ({str(error).splitlines()[0]})")
    return films, left_out


def _read_film(path: Path) -> Film:
    import imageio.v3 as iio

    fps = float(iio.immeta(path)["fps"])
    count = sum(1 for _ in iio.imiter(path))
    wanted = np.unique(np.linspace(0, max(0, count - 1), FRAMES).round().astype(int)).tolist() if count else []
    # read twice: a film of 1,000 frames is larger in memory than it looks
    frames = [frame for index, frame in enumerate(iio.imiter(path)) if index in wanted]
    if not frames:
        raise OSError("no frame in it")
    return Film(path, tuple(frames), tuple(index / fps for index in wanted))


def place_film(film: Film, output: Path) -> tuple[str, str]:
    """Copy a film and write its poster, the frame in its middle, into the report's folder.

    Args:
        film: a film.
        output: the report's folder.

    Returns:
        Paths of the film and of its poster, relative to that folder.
    """
    import imageio.v3 as iio

    copy, poster = output / "videos" / film.path.name, output / "figures" / f"run_film_{film.path.stem}.png"
    for path in (copy, poster):
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(film.path, copy)
    iio.imwrite(poster, film.frames[len(film.frames) // 2])
    return copy.relative_to(output).as_posix(), poster.relative_to(output).as_posix()
