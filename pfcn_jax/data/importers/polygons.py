"""Polygons of label files: which cannot be used, and the pixels of those that can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

EMPTY = "have an empty segmentation"
FEW_POINTS = "have a polygon of fewer than three points"
NORMALIZED = "have a polygon in 0..1 instead of pixels"
OUTSIDE = "have a polygon outside of the image"
NESTED = "have wrongly nested polygons (wanted: [[x, y, x, y, ...], ...])"

Polygon = Sequence[float]  # x, y, x, y, ... in pixels; 0, 0 is the image's upper left corner


def polygon_fault(polygon: Any, size: tuple[int, int]) -> str:
    """The reason why a polygon `[x, y, x, y, ...]` cannot be used; "" if it can.

    Args:
      polygon: any value that a file may hold in the place of a polygon.
      size: (height, width) of the image.
    """
    if not isinstance(polygon, list) or not all(type(value) in (int, float) for value in polygon):
        return NESTED
    if not polygon:
        return EMPTY
    try:
        points = np.array(polygon, np.float64)
    except OverflowError:  # a whole number that no float holds
        return OUTSIDE
    if len(polygon) % 2 or len(polygon) < 6:
        return FEW_POINTS if len(polygon) < 6 else NESTED
    if not np.isfinite(points).all():
        return OUTSIDE
    x, y = points[::2], points[1::2]
    if points.min() >= 0 and points.max() <= 1.0 and max(size) > 2:
        return NORMALIZED
    if x.max() <= 0 or y.max() <= 0 or x.min() >= size[1] or y.min() >= size[0]:
        return OUTSIDE
    return OUTSIDE if np.abs(points).max() > 100 * max(size) else ""


def flatten_points(points: Any) -> list[float] | None:
    """`[x, y, x, y, ...]` of `[[x, y], [x, y], ...]`; None if it is something else than pairs of numbers."""
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        return None
    flat = [value for point in points for value in point]
    return flat if all(type(value) in (int, float) for value in flat) else None


def draw_polygons(polygons: Sequence[Polygon], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels inside of any of the polygons, by COCO's rule; each has passed `polygon_fault`."""
    runs = coco_mask.frPyObjects([list(polygon) for polygon in polygons], *size)
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool)
