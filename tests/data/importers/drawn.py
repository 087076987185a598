"""Small scenes of boxes and disks for the tests of the tools' importers, in addition to `support`."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tests.data.importers.support import Segments, square
from tests.data.importers.support import prepare as prepare_words

SIZE = (48, 64)
Objects = Sequence[tuple[str, np.ndarray]]  # class and pixels, in the order of drawing

box = functools.partial(square, size=SIZE)  # y0, x0, y1, x1


def prepare(tool: str, source: object, output: object, *flags: object) -> int:
    """The exit status of `prepare TOOL --input SOURCE --output OUTPUT FLAGS`."""
    return prepare_words(tool, "--input", source, "--output", output, *flags)


def write_image(path: pathlib.Path, size: tuple[int, int] = SIZE) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


def disk(y: int, x: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def corners(y0: float, x0: float, y1: float, x1: float) -> list[float]:
    """The polygon x, y, x, y, ... of `box` with the same numbers."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def runs_of(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of a flat mask, free pixels first."""
    flat = mask.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return np.diff(np.concatenate([[0], edges])).tolist()


def visible(objects: Objects, background: str = "background") -> Segments:
    """What is to be seen of objects that are drawn one after another, and the background; "" is void."""
    top = np.full(SIZE, -1)
    for row, (_, mask) in enumerate(objects):
        top[mask] = row
    seen = [(name, top == row) for row, (name, _) in enumerate(objects)]
    return {(name, mask.tobytes()) for name, mask in [*seen, (background, top == -1)] if mask.any() and name}


def masks_of(segments: Segments, name: str) -> list[np.ndarray]:
    """The masks of a class."""
    return [np.frombuffer(mask, bool).reshape(SIZE) for other, mask in segments if other == name]
