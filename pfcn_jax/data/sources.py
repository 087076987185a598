"""What a dataset is: classes, a length, example i. And the table of all datasets that can be opened by name."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, UInt8

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.segments import Runs, count_pixels, tight_boxes
from pfcn_jax.errors import UserError

T = TypeVar("T")


class DataError(UserError):
    """The data on disk are not what they should be. The message names the file, and the id where there is one.

    `kind` names the damage in one word (`picture-missing`, `id-unlisted`; all of them in `validate.KINDS`), so that a
    check of a whole data set can count each kind.
    """

    def __init__(self, message: str, *, kind: str = "unusable"):
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Example:
    """One picture with its labels, at its original size.

    The segment map holds 0 for void and i > 0 for row i - 1 of `class_id` and `is_crowd`; every row has pixels.
    """

    image: UInt8[np.ndarray, "h w 3"]  # RGB
    runs: Runs  # of the segment map; `find_runs` makes them from one
    class_id: Int32[np.ndarray, " n"]  # contiguous, things first
    is_crowd: Bool[np.ndarray, " n"]
    image_id: int | str  # the dataset's own
    file_name: str  # of the picture, as the dataset names it

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.runs.shape

    @functools.cached_property
    def segment_map(self) -> Int32[np.ndarray, "h w"]:
        segment_map = self.runs.expand()
        segment_map.flags.writeable = False  # it stays with the example
        return segment_map

    @functools.cached_property
    def area(self) -> Int[np.ndarray, " n"]:
        """Pixels of each row."""
        return count_pixels(self.runs, len(self.class_id))

    @functools.cached_property
    def box(self) -> Float[np.ndarray, "n 4"]:
        """Tight x0, y0, x1, y1 (exclusive ends) of each row, in pixels."""
        return tight_boxes(self.runs, len(self.class_id))


@dataclasses.dataclass(frozen=True)
class ExampleInfo:
    """What is known about an example without reading its picture."""

    image_id: int | str
    file_name: str
    size: tuple[int, int]  # (height, width)


class Source(Protocol):
    """A dataset. It must be picklable (worker processes get a copy) and safe to read from several threads."""

    @property
    def classes(self) -> ClassTable: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Example `index` in 0..len-1.

        Raises:
          IndexError: out of range (negative ones too).
          DataError: the files of this example are broken or do not fit together.
        """
        ...

    def info(self, index: int) -> ExampleInfo:
        """Id, file name and size of example `index`, cheaply."""
        ...

    def sizes(self) -> Int32[np.ndarray, "examples 2"]:
        """(height, width) of every picture, cheaply: batches are planned from it."""
        ...


def check_index(index: int, length: int) -> None:
    """Raises IndexError unless 0 <= index < length."""
    if not 0 <= index < length:
        raise IndexError(f"example {index} of {length}")


@dataclasses.dataclass(frozen=True)
class FirstExamples:
    """The first `count` examples of a source, for a quick look or a periodic evaluation."""

    source: Source
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"the first {self.count} examples: at least one is needed")

    @property
    def classes(self) -> ClassTable:
        return self.source.classes

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int) -> Example:
        check_index(index, len(self))
        return self.source[index]

    def info(self, index: int) -> ExampleInfo:
        check_index(index, len(self))
        return self.source.info(index)

    def sizes(self) -> Int32[np.ndarray, "examples 2"]:
        return self.source.sizes()[: len(self)]


class CachedExamples:
    """A source whose decoded examples stay in memory once read. Every process that loads has its own copy."""

    def __init__(self, source: Source):
        self.source = source
        self._examples: dict[int, Example] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "_examples": {}}  # a worker process starts with an empty memory

    @property
    def classes(self) -> ClassTable:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self._examples.get(index)
        if example is None:
            example = self.source[index]
            for array in (example.image, example.runs.value, example.runs.start, example.runs.length):
                array.flags.writeable = False  # whoever changes it in place would change it for ever
            self._examples[index] = example
        return example

    def info(self, index: int) -> ExampleInfo:
        return self.source.info(index)

    def sizes(self) -> Int32[np.ndarray, "examples 2"]:
        return self.source.sizes()


def _coco(root: str, split: str, **options: Any) -> Source:
    from pfcn_jax.data.datasets.coco import CocoFolder

    return CocoFolder(root, split, **options)


def _tfds(root: str, split: str, **options: Any) -> Source:
    from pfcn_jax.data.datasets.tfds import TfdsSource

    return TfdsSource(root, split, **options)


def _cityscapes(root: str, split: str, **options: Any) -> Source:
    from pfcn_jax.data.datasets.cityscapes import Cityscapes

    return Cityscapes(root, split, **options)


def _mapillary(root: str, split: str, **options: Any) -> Source:
    from pfcn_jax.data.datasets.mapillary import open_mapillary

    return open_mapillary(root, split, **options)


def _ade20k(root: str, split: str, **options: Any) -> Source:
    from pfcn_jax.data.datasets.ade20k import open_ade20k

    return open_ade20k(root, split, **options)


def _scenes(root: str, split: str, **options: Any) -> Source:
    from pfcn_jax.data.datasets.scenes import Scenes

    del root  # scenes are drawn, not read
    return Scenes(split, **options)


# The imports are inside the functions: a dataset that is not used costs nothing, and its file may import this one.
SOURCES: dict[str, Callable[..., Source]] = {
    "coco": _coco,
    "tfds": _tfds,
    "cityscapes": _cityscapes,
    "mapillary": _mapillary,
    "ade20k": _ade20k,
    "scenes": _scenes,
}


def _list_coco(root: pathlib.Path) -> list[str]:
    found = [*root.glob("annotations/panoptic_*.json"), *root.glob("panoptic_*.json")]
    return [path.stem.removeprefix("panoptic_") for path in found]


def _list_tfds(root: str | os.PathLike[str]) -> list[str]:
    from pfcn_jax.data.datasets.tfds import list_splits

    return list_splits(root)


def _list_folders(root: pathlib.Path, pattern: str) -> list[str]:
    """The parts of matching folders that stand for `*`."""
    position = pattern.split("/").index("*") - len(pattern.split("/"))
    return [path.parts[position] for path in root.glob(pattern) if path.is_dir()]


_SPLITS: dict[str, Callable[[pathlib.Path], list[str]]] = {
    "coco": _list_coco,
    "tfds": _list_tfds,
    "cityscapes": lambda root: _list_folders(root, "gtFine/*"),
    "mapillary": lambda root: _list_folders(root, "*/images"),
    "ade20k": lambda root: _list_folders(root, "images/*") + _list_folders(root, "ADEChallengeData2016/images/*"),
    "scenes": lambda _: ["train", "val"],
}


def list_splits(name: str, root: str | os.PathLike[str]) -> list[str]:
    """The splits of a dataset that lie below `root`, in name order.

    Raises:
      DataError: there is none.
    """
    base = pathlib.Path(root)
    if name == "tfds" and "://" in os.fspath(root):  # remote
        return sorted(_list_tfds(root))
    if name != "scenes" and not base.is_dir():
        raise DataError(f"{base}: no such data directory")
    splits = sorted(set(_SPLITS[name](base)))
    if not splits:
        raise DataError(f"{base}: no split of a {name!r} data set found; docs/datasets.md shows the layout")
    return splits


def open_source(name: str, root: str | os.PathLike[str], split: str, **options: Any) -> Source:
    """Opens a dataset.

    Args:
      name: a key of `SOURCES`: `coco` (a COCO-panoptic folder of any categories), `tfds` (the same prepared with
        TensorFlow Datasets), `cityscapes`, `mapillary`, `ade20k` (as their owners ship them) or `scenes` (drawn by
        the package).
      root: the data directory; not used by `scenes`.
      split: the dataset's name of the part, as `train2017` or `val`.
      **options: keyword arguments of that dataset, see its file.

    Raises:
      ValueError: an unknown name; the message lists the known ones.
      DataError: the directory is not such a dataset.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(sorted(SOURCES))}")
    return SOURCES[name](os.fspath(root), split, **options)
