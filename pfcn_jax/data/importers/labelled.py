"""The labels of one image, drawn object by object, and a count of what became of each object."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Int, Int32

from pfcn_jax.data.segments import count_pixels, find_runs

HIDDEN = "lie completely below others"
NO_PIXEL = "are too small to cover a pixel"


@dataclasses.dataclass(frozen=True)
class Fault:
    """An object that cannot be used, or a part of one.

    Fields:
      name: of the object, for messages: `line 3 of labels/p1.txt`.
      reason: words that follow "N objects": `have a polygon of fewer than three points`.
      is_lost: the whole object is left out; False: the sound rest of it is used.
    """

    name: str
    reason: str
    is_lost: bool = True


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The labels of one image: 0 = void, i = row i - 1.

    Fields:
      found: objects in the label file. Each becomes a row, is left out, lost by a fault, or joined with another one.
      filled: rows that stand for no object (the background).
      joined: objects that became part of another one's row.
      left_out: reason -> number of sound objects that were left out for it ("N objects REASON").
      faults: of objects; an error unless they are to be skipped.
      notes: remarks about the file, counted over all images ("N images: NOTE").

    Raises:
      ValueError: the numbers of objects do not add up.
    """

    segment_map: Int32[np.ndarray, "h w"]
    class_id: Int32[np.ndarray, " n"]
    is_crowd: Bool[np.ndarray, " n"]
    found: int
    filled: int = 0
    joined: int = 0
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lost = sum(fault.is_lost for fault in self.faults)
        used = self.written + self.joined + sum(self.left_out.values()) + lost
        if used != self.found:
            raise ValueError(f"{self.found} objects found, but {used} written, joined, left out or lost")

    @property
    def written(self) -> int:
        """Rows that stand for an object."""
        return len(self.class_id) - self.filled


@dataclasses.dataclass(frozen=True)
class Shape:
    """The pixels of one object, its contiguous class id, and its layer: those of a higher one lie above."""

    class_id: int
    mask: Bool[np.ndarray, "h w"]
    is_crowd: bool = False
    layer: int = 0


class Drawing:
    """Draws the objects of an image and counts what becomes of each; `finish` gives the `Labelled`."""

    def __init__(self, size: tuple[int, int], found: int | None = None):
        """Begins with an empty map.

        Args:
          size: (height, width) of the image.
          found: objects in the label file; None: as many as are drawn or left out.
        """
        self.size = size
        self.notes: list[str] = []
        self._found = found
        self._map = np.zeros(size, np.int32)
        self._class_ids: list[int] = []
        self._crowds: list[bool] = []
        self._joined = 0
        self._left_out: collections.Counter[str] = collections.Counter()
        self._faults: list[Fault] = []

    def fault(self, name: str, reason: str, *, is_lost: bool = True) -> None:
        """Counts an object that cannot be used (or a part of it, which is not `is_lost`)."""
        self._faults.append(Fault(name, reason, is_lost))

    def leave_out(self, reason: str) -> None:
        """Counts a sound object that is not wanted."""
        self._left_out[reason] += 1

    def join(self, count: int = 1) -> None:
        """Counts objects that were made part of another one before it is drawn."""
        self._joined += count

    def draw(self, shape: Shape) -> None:
        """Draws an object above all before it."""
        if not shape.mask.any():
            self.leave_out(NO_PIXEL)
            return
        self._class_ids.append(shape.class_id)
        self._crowds.append(shape.is_crowd)
        self._map[shape.mask] = len(self._class_ids)

    def draw_stacked(self, shapes: Sequence[Shape], is_thing: Sequence[bool]) -> None:
        """Draws objects: crowds lowest, then in each layer stuff, then things; of a kind the smaller above the larger.

        Stuff shapes of one class become one segment.

        Args:
          is_thing: by contiguous class id.
        """
        areas = {id(shape): int(shape.mask.sum()) for shape in shapes}
        rows: dict[int, int] = {}  # of stuff classes
        for shape in sorted(shapes, key=lambda s: (not s.is_crowd, s.layer, is_thing[s.class_id], -areas[id(s)])):
            is_stuff = not is_thing[shape.class_id] and not shape.is_crowd
            if is_stuff and areas[id(shape)] and shape.class_id in rows:
                self._map[shape.mask] = rows[shape.class_id]
                self.join()
                continue
            self.draw(shape)
            if is_stuff and areas[id(shape)]:
                rows[shape.class_id] = len(self._class_ids)

    def finish(self, background: int | None = None, void: Bool[np.ndarray, "h w"] | None = None) -> Labelled:
        """The labels, without objects that lie completely below others.

        Args:
          background: class id of a stuff segment that takes the free pixels (and joins what was drawn of this class);
            None: they are void.
          void: free pixels that stay void.
        """
        kept = np.flatnonzero(count_pixels(find_runs(self._map), len(self._class_ids)) > 0)
        renumber = np.zeros(len(self._class_ids) + 1, np.int32)
        renumber[kept + 1] = np.arange(1, kept.size + 1)
        segment_map = renumber[self._map]
        class_id, is_crowd = np.array(self._class_ids, np.int32)[kept], np.array(self._crowds, bool)[kept]
        left_out = self._left_out + collections.Counter({HIDDEN: len(self._class_ids) - kept.size})
        free = segment_map == 0
        if void is not None:
            free &= ~void
        filled = 0
        if background is not None and free.any():
            drawn = np.flatnonzero((class_id == background) & ~is_crowd)
            if drawn.size:
                segment_map[free] = drawn[0] + 1
            else:
                filled = 1
                segment_map[free] = kept.size + 1
                class_id, is_crowd = np.append(class_id, np.int32(background)), np.append(is_crowd, False)
        lost = sum(fault.is_lost for fault in self._faults)
        used = class_id.size - filled + self._joined + left_out.total() + lost
        found = used if self._found is None else self._found
        faults, notes = tuple(self._faults), tuple(self.notes)
        return Labelled(segment_map, class_id, is_crowd, found, filled, self._joined, left_out, faults, notes)


def split_components(values: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Numbers the 8-connected parts of equal value, from 1; 0 stays 0."""
    parts = np.zeros(values.shape, np.int32)
    for value in np.unique(values[values > 0]).tolist():
        _, own = cv2.connectedComponents((values == value).astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        parts = np.where(own > 0, own + int(parts.max()), parts)
    return parts
