"""Counts of the segments, images and pixels that each class has in what was segmented."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable

from pfcn_jax.data.classes import ClassTable

_SHOWN_CLASSES = 10


class ClassCounts:
    """Counts image by image; the class table of `predict` and `bulk`."""

    def __init__(self, classes: ClassTable):
        self._classes = classes
        self._segments: Counter[int] = Counter()
        self._images: Counter[int] = Counter()
        self._pixels: Counter[int] = Counter()

    def add(self, segments: Iterable[tuple[int, int]]) -> None:
        """Counts one image or frame, given as (class id, area in pixels) of each segment."""
        present = set()
        for class_id, area in segments:
            self._segments[class_id] += 1
            self._pixels[class_id] += area
            present.add(class_id)
        self._images.update(present)

    def to_csv(self) -> str:
        """One line for each class, in the order of the class ids."""
        file = io.StringIO(newline="")
        table = csv.writer(file)
        table.writerow(["class_id", "category_id", "name", "isthing", "color", "segments", "pictures", "pixels"])
        for c, name in enumerate(self._classes.names):
            color = "#{:02x}{:02x}{:02x}".format(*self._classes.colors[c])
            counts = (self._segments[c], self._images[c], self._pixels[c])
            table.writerow([c, self._classes.category_ids[c], name, int(self._classes.is_thing[c]), color, *counts])
        return file.getvalue()

    def summary(self) -> str:
        """The most frequent classes, on one line."""
        common = self._segments.most_common(_SHOWN_CLASSES)
        shown = [f"{count} {self._classes.names[class_id]}" for class_id, count in common]
        more = len(self._segments) - len(shown)
        return f"{self._segments.total()} segments: " + ", ".join(shown) + (f", {more} more classes" if more else "")
