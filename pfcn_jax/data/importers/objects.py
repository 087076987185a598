"""Objects of annotation tools before they are drawn: polygons and masks, a class, a layer, or a fault."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.importers.labelled import Drawing, Labelled, Shape
from pfcn_jax.data.importers.polygons import Polygon, draw_polygons, polygon_fault

NO_NUMBERS = "have coordinates that are no numbers"
NO_LABEL = "have no label, or an unknown one"
BAD_RLE = "have an unusable RLE"
_ELLIPSE_POINTS = 90


@runtime_checkable
class Part(Protocol):
    """Some pixels of an object."""

    def draw(self, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """The pixels in an image of `size` (height, width)."""
        ...


@dataclasses.dataclass(frozen=True)
class PolygonPart:
    """The inside of polygons."""

    polygons: Sequence[Polygon]

    def draw(self, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        return draw_polygons(self.polygons, size)


@dataclasses.dataclass(frozen=True)
class MaskPart:
    """A mask of a box in the image, as run lengths row by row that begin with free pixels.

    Fields:
      counts: they add up to height x width of the box.
      size: (height, width) of the box.
      origin: (y, x) of its upper left pixel; the box lies in the image.
    """

    counts: tuple[int, ...]
    size: tuple[int, int]
    origin: tuple[int, int] = (0, 0)

    def draw(self, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        own = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts).reshape(self.size)
        return place(own, self.origin, size)


@dataclasses.dataclass(frozen=True)
class ArrayPart:
    """A mask of a box in the image, whose upper left pixel is `origin` (y, x)."""

    mask: Bool[np.ndarray, "h w"]
    origin: tuple[int, int] = (0, 0)

    def draw(self, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        return place(self.mask, self.origin, size)


@dataclasses.dataclass(frozen=True)
class LabelObject:
    """An object of a label file.

    Fields:
      name: for messages.
      class_name: a name that the class table has, unless there is a fault.
      parts: its pixels are those of any part.
      fault: the reason why it cannot be used; words that follow "N objects".
      layer: objects of a higher one lie above.
      joined: further objects of the file that are part of this one.
    """

    name: str
    class_name: str
    parts: tuple[Part, ...] = ()
    fault: str = ""
    layer: int = 0
    joined: int = 0


def join_groups(objects: Sequence[tuple[str, LabelObject]]) -> list[LabelObject]:
    """Objects with those of one group and class made one, in the layer of the highest.

    Args:
      objects: each with the name of its group; "" for none.
    """
    groups: dict[tuple[str, str] | int, list[LabelObject]] = {}
    for position, (group, one) in enumerate(objects):
        key = (group, one.class_name) if group and not one.fault else position
        groups.setdefault(key, []).append(one)
    return [
        dataclasses.replace(
            own[0],
            parts=tuple(part for one in own for part in one.parts),
            layer=max(one.layer for one in own),
            joined=len(own) - 1,
        )
        for own in groups.values()
    ]


def draw_objects(
    objects: Sequence[LabelObject], size: tuple[int, int], classes: ClassTable, background: int | None
) -> Labelled:
    """The labels of an image: higher layers above lower ones, and in a layer the smaller object above the larger.

    Args:
      background: class id of the stuff that takes the free pixels; None: they are void.
    """
    drawing = Drawing(size, found=sum(1 + one.joined for one in objects))
    shapes = []
    for one in objects:
        if one.fault:
            drawing.fault(one.name, one.fault)
            continue
        drawing.join(one.joined)
        mask = functools.reduce(np.logical_or, [part.draw(size) for part in one.parts])
        shapes.append(Shape(classes.names.index(one.class_name), mask, layer=one.layer))
    drawing.draw_stacked(shapes, classes.is_thing)
    return drawing.finish(background)


def read_polygon(points: Sequence[float] | None, size: tuple[int, int]) -> tuple[PolygonPart | None, str]:
    """The inside of a polygon `[x, y, x, y, ...]` in pixels, or None and the reason why it cannot be used."""
    if points is None:
        return None, NO_NUMBERS
    fault = polygon_fault(points, size)
    return (None, fault) if fault else (PolygonPart([points]), "")


def place(mask: Bool[np.ndarray, "h w"], origin: tuple[int, int], size: tuple[int, int]) -> Bool[np.ndarray, "h2 w2"]:
    """A mask of `size` with a smaller one at `origin` (y, x)."""
    whole = np.zeros(size, bool)
    whole[origin[0] : origin[0] + mask.shape[0], origin[1] : origin[1] + mask.shape[1]] = mask
    return whole


def ellipse_points(center: tuple[float, float], radii: tuple[float, float], degrees: float) -> list[float]:
    """`[x, y, x, y, ...]` on an ellipse that is turned clockwise about its center (x, y)."""
    turn = math.radians(degrees)
    points = []
    for step in range(_ELLIPSE_POINTS):
        angle = 2 * math.pi * step / _ELLIPSE_POINTS
        x, y = radii[0] * math.cos(angle), radii[1] * math.sin(angle)
        points.append(center[0] + x * math.cos(turn) - y * math.sin(turn))
        points.append(center[1] + x * math.sin(turn) + y * math.cos(turn))
    return points
