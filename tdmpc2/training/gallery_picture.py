"""How a gallery looks: tiles in a grid, each with its task's name and what came of the episode below it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tdmpc2.envs.simulated import RENDER_SIZE
from tdmpc2.training.films import Frame, Reel

WIDTH = 1920
"""Pixels across, at the most."""
SHAPE = 16 / 9
"""Columns to rows that a grid comes near to, where it can without many empty places."""
COLUMNS = 10
"""Columns at the most, unless more are asked for: names of tasks are well read below pictures of 188 pixels."""
GAP = 4
"""Pixels around tiles."""
FPS = 25
"""Frames of a gallery's film in a second, which is a second of the simulated worlds."""
PAPER, INK, GREY = (255, 255, 255), (20, 20, 20), (95, 95, 95)


@dataclass(frozen=True)
class Tile:
    """One episode in a gallery."""

    lines: tuple[str, ...]
    """What stands below it, its title first."""
    film: int
    """Number of its film on the reel."""
    rate: int
    """Agent steps in a second of its world."""
    length: int
    """Agent steps of the episode."""


@dataclass(frozen=True)
class Layout:
    """Where tiles are; all in pixels."""

    columns: int
    rows: int
    picture: int
    """Height and width of a tile's picture."""
    label: int
    """Height of what stands below it."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole, even, as films must be."""
        width, height = self.columns * (self.picture + GAP) + GAP, self.rows * (self.picture + self.label + GAP) + GAP
        return width + width % 2, height + height % 2

    def corner(self, place: int) -> tuple[int, int]:
        """Left and top of a tile."""
        row, column = divmod(place, self.columns)
        return GAP + column * (self.picture + GAP), GAP + row * (self.picture + self.label + GAP)

    def font_size(self, line: int) -> int:
        """Of a line of a tile's label, the title being line 0."""
        return max(11, min(20, self.picture // 14)) if line == 0 else max(10, min(16, self.picture // 17))


def choose_layout(count: int, columns: int | None = None, lines: int = 2) -> Layout:
    """A grid for some tiles, with pictures as large as they were rendered, or as fit.

    Args:
        count: how many tiles.
        columns: how many side by side; by default what comes near the shape of a screen without many empty places.
        lines: of text below each tile.
    """

    def unlike(columns: int) -> float:
        rows = math.ceil(count / columns)
        return abs(math.log(columns / rows / SHAPE)) + (columns * rows - count) / count

    columns = min(range(1, min(COLUMNS, count) + 1), key=unlike) if columns is None else min(columns, count)
    picture = min(RENDER_SIZE, (WIDTH - GAP) // columns - GAP)
    bare = Layout(columns, math.ceil(count / columns), picture, 0)
    label = sum(round(1.4 * bare.font_size(line)) for line in range(lines))
    return Layout(columns, bare.rows, picture, label)


def wanted_steps(rate: int, step: int, seconds: float | None = None) -> bool:
    """Whether the film of a gallery shows a step of a world with `rate` steps a second; `seconds`: its length."""
    frame = -(-step * FPS // rate)  # the first that is not before the step
    return frame * rate // FPS == step and (seconds is None or frame < seconds * FPS)


def count_frames(tiles: Sequence[Tile], seconds: float | None = None) -> int:
    """Frames of the film: until the last episode has ended, or for so many seconds, if that is less."""
    whole = max(math.ceil(tile.length * FPS / tile.rate) for tile in tiles)
    return whole if seconds is None else max(1, min(whole, round(seconds * FPS)))


def film(tiles: Sequence[Tile], reel: Reel, layout: Layout, frames: int) -> Iterator[Frame]:
    """The frames of the film; the array is the same one every time.

    Args:
        tiles: in the order of their places.
        reel: their films.
        layout: the grid.
        frames: how many.
    """
    canvas = _labels(tiles, layout)
    shown = [-1] * len(tiles)
    for frame in range(frames):
        for place, tile in enumerate(tiles):
            index = reel.index(tile.film, frame * tile.rate // FPS)
            if index != shown[place]:
                _place(canvas, layout, place, reel.frame(tile.film, index))
                shown[place] = index
        yield canvas


def still(tiles: Sequence[Tile], reel: Reel, layout: Layout) -> Frame:
    """The picture: each tile as it is in the middle of its film."""
    canvas = _labels(tiles, layout)
    for place, tile in enumerate(tiles):
        _place(canvas, layout, place, reel.frame(tile.film, len(reel.steps(tile.film)) // 2))
    return canvas


def _place(canvas: Frame, layout: Layout, place: int, frame: Frame) -> None:
    left, top = layout.corner(place)
    side = layout.picture
    if frame.shape[:2] != (side, side):
        frame = np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.LANCZOS))
    canvas[top : top + side, left : left + side] = frame


def _labels(tiles: Sequence[Tile], layout: Layout) -> Frame:
    """The gallery with no picture in it yet."""
    page = Image.new("RGB", layout.size, PAPER)
    draw = ImageDraw.Draw(page)
    for place, tile in enumerate(tiles):
        left, top = layout.corner(place)
        top += layout.picture
        for number, line in enumerate(tile.lines):
            size = layout.font_size(number)
            font = ImageFont.load_default(size)
            while font.getlength(line) > layout.picture and size > 8:
                size -= 1
                font = ImageFont.load_default(size)
            middle = left + layout.picture / 2
            draw.text((middle, top + 1), line, GREY if number else INK, font, anchor="ma")
            top += round(1.4 * layout.font_size(number))
    return np.array(page)
