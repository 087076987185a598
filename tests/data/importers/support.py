"""Drawn scenes with known segments for the tests of the importers, and the comparison with what was imported."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.datasets.scenes import Scenes, class_table
from pfcn_jax.data.example import Example

SIZE = (96, 128)
CLASSES = class_table()
THINGS = [name for name, is_thing in zip(CLASSES.names, CLASSES.is_thing) if is_thing]
STUFF = [name for name, is_thing in zip(CLASSES.names, CLASSES.is_thing) if not is_thing]

Segments = set[tuple[str, bytes]]  # class name and mask of each segment


def prepare(*words: object) -> int:
    """The exit status of `prepare WORDS`."""
    return front_door.main(["prepare", *map(str, words)])


@functools.cache
def scenes() -> tuple[Example, ...]:
    """Three scenes with things and stuff, without void."""
    drawn = Scenes("importers", size=SIZE, length=3)
    return tuple(drawn[index] for index in range(3))


def save_images(folder: pathlib.Path, names: Iterable[str], suffix: str = ".png") -> list[pathlib.Path]:
    """Writes the scenes' images under these names, one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}{suffix}" for name in names]
    for path, scene in zip(paths, scenes()):
        Image.fromarray(scene.image).save(path)
    return paths


def name_of(scene: Example, row: int) -> str:
    return CLASSES.names[int(scene.class_id[row])]


def segments_of(scene: Example, names: Sequence[str] = CLASSES.names, hidden: np.ndarray | None = None) -> Segments:
    """The segments of an example; pixels that are `hidden` belong to none."""
    found = set()
    for row, class_id in enumerate(scene.class_id.tolist()):
        mask = scene.segment_map == row + 1
        if hidden is not None:
            mask &= ~hidden
        if mask.any():
            found.add((names[class_id], mask.tobytes()))
    return found


def imported(root: pathlib.Path, split: str = "train") -> dict[str, Segments]:
    """File name -> segments of a data set that was written."""
    source = CocoFolder(root, split)
    names = source.classes.names
    return {source.info(i).file_name: segments_of(source[i], names) for i in range(len(source))}


def square(y0: int, x0: int, y1: int, x1: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask
