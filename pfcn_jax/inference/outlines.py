"""Masks as rings along pixel borders: exact, so that filling them again gives the same pixels."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

Ring = Int[np.ndarray, "n 2"]  # corners (x, y) in pixel borders, 0..width and 0..height; not closed


@dataclasses.dataclass(frozen=True)
class Outline:
    """The border of a mask. Outer rings run clockwise on the screen, holes counterclockwise."""

    outer: tuple[Ring, ...]
    holes: tuple[Ring, ...]

    @property
    def is_simple(self) -> bool:
        """True for one part without a hole, which every polygon format can hold."""
        return len(self.outer) == 1 and not self.holes

    def joined(self) -> Ring:
        """All rings as one polygon, connected by bridges of no width; exact where filling is even-odd."""
        first, *rest = [*self.outer, *self.holes]
        parts = [first, first[:1]]
        for ring in rest:
            parts += [ring, ring[:1], first[:1]]
        return np.concatenate(parts) if rest else first

    def polygons(self) -> list[list[Ring]]:
        """[outer ring, its holes ...] of each part, as GeoJSON wants them."""
        parts = [[ring] for ring in self.outer]
        for hole in self.holes:
            owners = [part for part in parts if _contains(part[0], hole)]
            smallest = min(owners, key=lambda part: abs(_area(part[0])))
            smallest.append(hole)
        return parts


def outline(mask: Bool[np.ndarray, "h w"]) -> Outline:
    """The rings of a mask. Parts that touch at a corner only are separate rings (4-connected), holes likewise."""
    follow = _border_steps(np.pad(mask, 1))
    outer: list[Ring] = []
    holes: list[Ring] = []
    while follow:
        ring = _corners(_trace(follow))
        (outer if _area(ring) > 0 else holes).append(ring)
    return Outline(tuple(outer), tuple(holes))


def _border_steps(padded: Bool[np.ndarray, "H W"]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Start point -> end points of unit steps along the border, with the mask on the right-hand side."""
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def add(rows: np.ndarray, columns: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> None:
        for y, x in zip((rows - 1).tolist(), (columns - 1).tolist()):  # without the padding
            steps.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))

    inside = padded[1:-1, 1:-1]
    for neighbour, start, end in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # nothing above: run right along the top
        (padded[1:-1, 2:], (1, 0), (1, 1)),  # nothing to the right: run down
        (padded[2:, 1:-1], (1, 1), (0, 1)),  # nothing below: run left
        (padded[1:-1, :-2], (0, 1), (0, 0)),  # nothing to the left: run up
    ):
        rows, columns = np.nonzero(inside & ~neighbour)
        add(rows + 1, columns + 1, start, end)
    return steps


def _trace(steps: dict[tuple[int, int], list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Removes one closed ring from the steps; where rings meet at a corner it turns right and stays with its part."""
    start = next(iter(steps))
    ring, point, before = [start], start, (0, 0)
    while True:
        choices = steps[point]
        turns = [(end[0] - point[0], end[1] - point[1]) for end in choices]
        right = (-before[1], before[0])
        pick = turns.index(right) if len(choices) > 1 and right in turns else 0
        following = choices.pop(pick)
        if not choices:
            del steps[point]
        before, point = turns[pick], following
        if point == start:
            return ring
        ring.append(point)


def _corners(ring: list[tuple[int, int]]) -> Ring:
    """Only the points where the ring turns."""
    points = np.array(ring, np.int32)
    ahead, behind = np.roll(points, -1, axis=0) - points, points - np.roll(points, 1, axis=0)
    return points[np.any(ahead != behind, axis=1)]


def _area(ring: Ring) -> float:
    """Signed area in pixels; positive for clockwise on the screen (y grows downwards)."""
    x, y = ring.astype(np.float64).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2.0)


def _contains(ring: Ring, other: Ring) -> bool:
    """True if a ring goes around another one that does not cross it."""
    x, y = other[0] + np.array([0.25, 0.25]) * np.sign(other.mean(axis=0) - other[0] + 1e-9)
    inside, (x0, y0) = False, ring[-1]
    for x1, y1 in ring:
        if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
            inside = not inside
        x0, y0 = x1, y1
    return inside
