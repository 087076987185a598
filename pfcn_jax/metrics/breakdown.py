"""Panoptic quality broken down by the size of segments, by confused classes, and by pixel.

Sizes are those of COCO's detection metrics: small below 32 x 32 pixels, large from 96 x 96 on, counted in the pixels of
a segment at the image's original size. A match and a miss belong to the labeled segment's size, a false positive to
its own.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int, Integer, UInt8

from pfcn_jax.metrics.pq import PQCounts, SegmentMatches, count_matches

SIZES = ("small", "medium", "large")
_SIZE_LIMITS = (32 * 32, 96 * 96)  # pixels from which on a segment is medium, large

# Values of an error map.
CORRECT, FALSE_POSITIVE, FALSE_NEGATIVE, BOTH, WRONG_CLASS, BOUNDARY, IGNORED = range(7)


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Counts per size, and which class was taken for which; addable, integers throughout."""

    by_size: tuple[PQCounts, ...]  # small, medium, large
    # [labeled, predicted]: pairs that overlap with an IoU above 1/2 whatever their classes. Row C: predicted segments
    # that match nothing; column C: labeled segments that nothing matches.
    confusion: Int[np.ndarray, "C+1 C+1"]

    @classmethod
    def zeros(cls, num_classes: int) -> Breakdown:
        nothing = PQCounts.zeros(num_classes)
        return cls((nothing,) * len(SIZES), np.zeros((num_classes + 1, num_classes + 1), np.int64))

    def __add__(self, other: Breakdown) -> Breakdown:
        sizes = tuple(mine + theirs for mine, theirs in zip(self.by_size, other.by_size, strict=True))
        return Breakdown(sizes, self.confusion + other.confusion)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The int64 arrays, to travel between hosts."""
        sizes = {
            f"{size}_{name}": array
            for size, counts in zip(SIZES, self.by_size)
            for name, array in counts.to_arrays().items()
        }
        return {"confusion": self.confusion, **sizes}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Breakdown:
        names = [field.name for field in dataclasses.fields(PQCounts)]
        sizes = tuple(PQCounts.from_arrays({name: arrays[f"{size}_{name}"] for name in names}) for size in SIZES)
        return cls(sizes, np.asarray(arrays["confusion"], np.int64))


def size_index(area: Integer[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """0, 1, 2 for small, medium, large segments of so many pixels."""
    return np.digitize(area, _SIZE_LIMITS)


def breakdown(found: SegmentMatches, any_class: SegmentMatches, num_classes: int) -> Breakdown:
    """One image's part.

    Args:
      found: `match_segments` of the image, any_class: the same with `any_class=True`.
    """
    gt_size, pred_size = size_index(found.gt_area), size_index(found.pred_area)
    by_size = tuple(
        count_matches(found, num_classes, gt_counted=gt_size == size, pred_counted=pred_size == size)
        for size in range(len(SIZES))
    )
    confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    pairs = (found.gt_classes[any_class.gt_row], found.pred_classes[any_class.pred_row])
    np.add.at(confusion, pairs, 1)
    np.add.at(confusion[:, num_classes], found.gt_classes[any_class.missed], 1)
    np.add.at(confusion[num_classes], found.pred_classes[any_class.wrong], 1)
    return Breakdown(by_size, confusion)


def top_confusions(confusion: Int[np.ndarray, "C+1 C+1"], count: int) -> list[tuple[int, int, int]]:
    """The most frequent pairs of different classes: (labeled, predicted, how often), at most `count`."""
    mixed = confusion[:-1, :-1].copy()
    np.fill_diagonal(mixed, 0)
    order = np.argsort(-mixed, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, mixed.shape)
    return [(int(r), int(c), int(mixed[r, c])) for r, c in zip(rows, columns) if mixed[r, c]]


def error_map(
    gt_map: Integer[np.ndarray, "H W"], pred_map: Integer[np.ndarray, "H W"], any_class: SegmentMatches
) -> UInt8[np.ndarray, "H W"]:
    """The kind of error of every pixel: `CORRECT`, `FALSE_POSITIVE`, ...

    A pixel of a matched pair is correct, or of the wrong class if the pair's classes differ. A pixel of a predicted
    segment that matches nothing is a false positive, one of a labeled segment that nothing matches a false negative,
    one of such two segments both. What is left lies between matched segments: an error of their boundaries. Pixels
    without a label and of crowds are ignored.

    Args:
      any_class: `match_segments` of the two maps with `any_class=True`.
    """
    # By (labeled id, predicted id), like `overlap`: one table lookup per pixel.
    kind = np.full(any_class.overlap.shape, BOUNDARY, np.uint8)
    made_up = np.concatenate([[False], any_class.wrong])
    not_found = np.concatenate([[False], any_class.missed])
    kind[:, made_up] = FALSE_POSITIVE
    kind[not_found] = FALSE_NEGATIVE
    kind[np.ix_(not_found, made_up)] = BOTH
    same = any_class.gt_classes[any_class.gt_row] == any_class.pred_classes[any_class.pred_row]
    kind[1 + any_class.gt_row, 1 + any_class.pred_row] = np.where(same, CORRECT, WRONG_CLASS)
    judged = not_found.copy()
    judged[1 + any_class.gt_row] = True
    kind[~judged] = IGNORED
    return kind[gt_map, pred_map]
