"""Filming episodes while they are evaluated: frames wait in a file on disk, and become an MP4 or tiles of a gallery."""

from __future__ import annotations

import bisect
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import gymnasium
import imageio.v2 as iio
import numpy as np
from gymnasium.vector import SyncVectorEnv
from PIL import Image

from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec
from tdmpc2.training.evaluation import Evaluator

Frame = np.ndarray[Any, Any]
"""(height, width, 3) of uint8."""
FRAME_RATE = 25
"""Frames per second of an environment that does not say how many agent steps a second has."""


class Reel:
    """Frames of several films, in a temporary file that is gone at the end of the `with` block.

    Films of many tasks are taken at the same time: eighty of 500 frames would need 18 GB of memory, and as many
    encoders at work 6 GB. Frames are kept without loss, in about a fifth of their size.

    Args:
        folder: where the file is, for as long as it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed at the block's end
        self._end = 0
        self._steps: dict[int, list[int]] = {}
        self._places: dict[int, list[tuple[int, int]]] = {}

    def add(self, film: int, step: int, frame: Frame) -> None:
        """Keep a frame.

        Args:
            film: number of the film.
            step: the step that it shows, later than those before it.
            frame: the picture.
        """
        packed = io.BytesIO()
        Image.fromarray(frame).save(packed, "png", compress_level=1)
        self._file.seek(self._end)
        self._file.write(packed.getbuffer())
        self._steps.setdefault(film, []).append(step)
        self._places.setdefault(film, []).append((self._end, len(packed.getbuffer())))
        self._end += len(packed.getbuffer())

    def steps(self, film: int) -> Sequence[int]:
        """The steps of a film that there are frames of, in order."""
        return self._steps.get(film, [])

    def index(self, film: int, step: int) -> int:
        """Which frame of a film is the newest at a step; the last one from then on."""
        return max(0, bisect.bisect_right(self._steps[film], step) - 1)

    def frame(self, film: int, index: int) -> Frame:
        """A frame of a film, by its place among them."""
        offset, size = self._places[film][index]
        self._file.seek(offset)
        return np.asarray(Image.open(io.BytesIO(self._file.read(size))))

    def frames(self, film: int) -> Iterator[Frame]:
        """All frames of a film, in order."""
        return (self.frame(film, index) for index in range(len(self.steps(film))))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the file."""
        self._file.close()


class Camera(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that is filmed from its next step to the end of that episode, a frame before each step.

    Args:
        env: the environment.
        keep: takes the step's number and its frame.
        wanted: whether a step is to be filmed.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        keep: Callable[[int, Frame], None],
        wanted: Callable[[int], bool] = lambda step: True,
    ) -> None:
        super().__init__(env)
        self._keep, self._wanted = keep, wanted
        self._step = 0
        self._over = False

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Film the scene as it is before the step, and take it."""
        if not self._over and self._wanted(self._step):
            self._keep(self._step, np.asarray(self.env.render()))
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._step += 1
        self._over = self._over or bool(terminated or truncated)
        return obs, reward, bool(terminated), bool(truncated), info


class FilmedEvaluator(Evaluator):
    """An evaluator that can film its episodes, in one evaluation; its environments are in this process.

    Args:
        tasks: one task an episode.
        seed: the seed that all episodes derive from.
        spec: of the agent to be evaluated.

    Raises:
        UserError: as `Evaluator`.
    """

    def __init__(self, tasks: Sequence[str], seed: int, spec: AgentSpec) -> None:
        super().__init__(tasks, spec.obs, seed, parallel=False, spec=spec)

    def film(
        self,
        episodes: Iterable[int],
        keep: Callable[[int, int, Frame], None],
        wanted: Callable[[int, int], bool] = lambda rate, step: True,
    ) -> tuple[dict[int, int], dict[int, str]]:
        """Set up cameras, and try whether there is anything to be seen.

        Args:
            episodes: numbers of the episodes to film.
            keep: takes the number of an episode, that of its step, and the frame before that step.
            wanted: of a world with so many steps a second, whether a step is to be filmed.

        Returns:
            for each episode that will be filmed, how many steps a second its world has; for each that cannot be, why.
        """
        asked = set(episodes)
        rates: dict[int, int] = {}
        unseen: dict[int, str] = {}
        for rows, env in self._parts:
            assert isinstance(env, SyncVectorEnv)  # not in processes
            env.reset()  # the evaluation begins with resets of its own
            for place, row in enumerate(rows.tolist()):
                if row not in asked:
                    continue
                filmed = env.envs[place]
                try:
                    filmed.render()
                except UserError as error:
                    unseen[row] = str(error)
                else:
                    rates[row] = int(filmed.metadata.get("render_fps", FRAME_RATE))
                    env.envs[place] = Camera(filmed, partial(keep, row), partial(wanted, rates[row]))
        return rates, unseen


def write_film(path: Path, frames: Iterable[Frame], fps: float) -> None:
    """Write an MP4 that browsers play; where that fails, nothing is left of it.

    Args:
        path: the file.
        frames: of one even height and width; the film's frames in order.
        fps: frames per second.
    """
    try:
        writer: Any = iio.get_writer(path, format="FFMPEG", fps=fps, codec="libx264", macro_block_size=2)
        with writer:
            for frame in frames:
                writer.append_data(frame)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
