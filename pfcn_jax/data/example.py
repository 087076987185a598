"""The contract of every data set: `Source` (classes, a length, example i), `Example` and `DataError`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, UInt8

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.segments import Runs, count_pixels, tight_boxes
from pfcn_jax.errors import UserError


class DataError(UserError):
    """The data on disk are not what they should be. The message names the file, and the id where there is one.

    `kind`, its code, names the damage in one word (`picture-missing`, `id-unlisted`; all of them in `kinds.KINDS`), so
    that a check of a whole data set can count each kind.
    """

    def __init__(self, message: str, *, kind: str = "unusable"):
        super().__init__(message, code=kind)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Example:
    """One image with its labels, at its original size.

    The segment map holds 0 for void and i > 0 for row i - 1 of `class_id` and `is_crowd`; every row has pixels.
    """

    image: UInt8[np.ndarray, "h w 3"]  # RGB
    runs: Runs  # of the segment map; `find_runs` makes them from one
    class_id: Int32[np.ndarray, " n"]  # contiguous, things first
    is_crowd: Bool[np.ndarray, " n"]
    image_id: int | str  # the dataset's own
    file_name: str  # of the image, as the dataset names it

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
    """Facts about an example that need no decoding."""

    image_id: int | str
    file_name: str
    size: tuple[int, int]  # (height, width)


@runtime_checkable
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
        """(height, width) of every image, cheaply: batches are planned from it."""
        ...


def sides(shape: Sequence[int]) -> str:
    """`H x W (height x width)` of an array's shape, for a message."""
    return f"{shape[0]} x {shape[1]} (height x width)"


def check_index(index: int, length: int) -> None:
    """Raises IndexError unless 0 <= index < length."""
    if not 0 <= index < length:
        raise IndexError(f"example {index} of {length}")
