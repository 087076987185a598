"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019) by the rules of the COCO panoptic evaluator.

    PQ = sum of IoU over true positives / (TP + FP / 2 + FN / 2) = SQ x RQ

A predicted and a labeled segment of one class match if their IoU exceeds 0.5; the union leaves out what the prediction
covers of void. Crowd segments are no segments to be found. A predicted segment that matches nothing and lies by more
than half on void and on the crowd of its class is no false positive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from rich.markup import escape
from rich.table import Table

from pfcn_jax.metrics.protocol import Labels, Metric, PredictedImage, Summary, Task
from pfcn_jax.metrics.registry import register
from pfcn_jax.utils.tables import as_text

# An IoU above 1/2 is, as a float64, a whole multiple of 2^-53. Sums of such multiples are stored as two integers, so
# that counts add up to the same bits in any order and over any number of hosts.
_IOU_UNIT_BITS = 53
_LOW_BITS = 26


@dataclasses.dataclass(frozen=True)
class PQCounts:
    """The sums behind PQ, per class; integers throughout, so that `+` is exact and order does not matter."""

    tp: Int[np.ndarray, " C"]
    fp: Int[np.ndarray, " C"]
    fn: Int[np.ndarray, " C"]
    iou_units: Int[np.ndarray, "C 2"]  # sum of IoU x 2^53 = iou_units[:, 0] x 2^26 + iou_units[:, 1]

    @classmethod
    def zeros(cls, num_classes: int) -> PQCounts:
        tp, fp, fn = np.zeros((3, num_classes), np.int64)
        return cls(tp, fp, fn, np.zeros((num_classes, 2), np.int64))

    @property
    def num_classes(self) -> int:
        return len(self.tp)

    @property
    def iou(self) -> Float[np.ndarray, " C"]:
        """Sum of the IoUs of each class's true positives, float64, correctly rounded."""
        exact = [(int(high) << _LOW_BITS) + int(low) for high, low in self.iou_units]
        return np.array([units / (1 << _IOU_UNIT_BITS) for units in exact], np.float64)

    def __add__(self, other: PQCounts) -> PQCounts:
        if self.num_classes != other.num_classes:
            raise ValueError(f"PQCounts of {self.num_classes} and of {other.num_classes} classes cannot be added")
        mine, theirs = self.to_arrays(), other.to_arrays()
        return PQCounts(**{name: mine[name] + theirs[name] for name in mine})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The int64 arrays; they may be summed over hosts element by element (in 64 bits) instead of `+`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> PQCounts:
        return cls(**{field.name: np.asarray(arrays[field.name], np.int64) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class SegmentMatches:
    """Matching segments of an image by the evaluator's rules, and the unmatched ones. G labeled, P predicted rows.

    `overlap[g, p]` counts the pixels with labeled id g and predicted id p; row and column 0 are void.
    """

    gt_classes: Int[np.ndarray, " G"]
    pred_classes: Int[np.ndarray, " P"]
    overlap: Int[np.ndarray, "1+G 1+P"]
    gt_row: Int[np.ndarray, " TP"]  # the matched pairs
    pred_row: Int[np.ndarray, " TP"]
    iou: Float[np.ndarray, " TP"]
    missed: Bool[np.ndarray, " G"]  # labeled segments that nothing matches: false negatives
    wrong: Bool[np.ndarray, " P"]  # predicted segments that match nothing and are not excused: false positives

    @property
    def gt_area(self) -> Int[np.ndarray, " G"]:
        return self.overlap.sum(axis=1)[1:]

    @property
    def pred_area(self) -> Int[np.ndarray, " P"]:
        return self.overlap.sum(axis=0)[1:]


def match_segments(
    gt_map: Integer[np.ndarray, "H W"],
    gt_classes: Integer[np.ndarray, " G"] | Sequence[int],
    gt_crowd: Bool[np.ndarray, " G"] | Sequence[bool],
    pred_map: Integer[np.ndarray, "H W"],
    pred_classes: Integer[np.ndarray, " P"] | Sequence[int],
    num_classes: int,
    *,
    any_class: bool = False,
) -> SegmentMatches:
    """Matches the segments of one image.

    In both maps 0 is void and i > 0 is row i - 1 of the arrays beside it; the rest as `match_overlap`.

    Raises:
      ValueError: maps that differ in shape, ids beyond the rows, classes outside 0..num_classes - 1.
    """
    overlap = count_overlap(gt_map, np.size(gt_classes), pred_map, np.size(pred_classes))
    return match_overlap(overlap, gt_classes, gt_crowd, pred_classes, num_classes, any_class=any_class)


def match_overlap(
    overlap: Int[np.ndarray, "1+G 1+P"],
    gt_classes: Integer[np.ndarray, " G"] | Sequence[int],
    gt_crowd: Bool[np.ndarray, " G"] | Sequence[bool],
    pred_classes: Integer[np.ndarray, " P"] | Sequence[int],
    num_classes: int,
    *,
    any_class: bool = False,
) -> SegmentMatches:
    """Matches segments by the pixels that they share, as `count_overlap` counts them.

    A row without a pixel is no segment: it is ignored whatever its class. If a class has several crowd segments, the
    last one counts, as in the COCO evaluator.

    Args:
      overlap: pixels by (labeled row, predicted row); row and column 0 are void.
      any_class: segments match by their overlap alone, whatever their classes (for confusions).

    Raises:
      ValueError: arrays of different lengths, classes outside 0..num_classes - 1.
    """
    gt_classes = np.asarray(gt_classes, np.int64).reshape(-1)
    pred_classes = np.asarray(pred_classes, np.int64).reshape(-1)
    gt_crowd = np.asarray(gt_crowd, bool).reshape(-1)
    if gt_classes.shape != gt_crowd.shape:
        raise ValueError(f"{len(gt_classes)} labeled classes, but {len(gt_crowd)} crowd flags")
    gt_area, pred_area = overlap.sum(axis=1)[1:], overlap.sum(axis=0)[1:]
    gt_exists, pred_exists = gt_area > 0, pred_area > 0
    _check_classes("labeled", gt_classes[gt_exists], num_classes)
    _check_classes("predicted", pred_classes[pred_exists], num_classes)

    on_void = overlap[0, 1:]
    gt_row, pred_row = np.nonzero(overlap[1:, 1:])
    candidate = (any_class | (gt_classes[gt_row] == pred_classes[pred_row])) & ~gt_crowd[gt_row]
    gt_row, pred_row = gt_row[candidate], pred_row[candidate]
    intersection = overlap[1 + gt_row, 1 + pred_row]
    union = gt_area[gt_row] + pred_area[pred_row] - intersection - on_void[pred_row]
    iou = intersection / union
    match = iou > 0.5  # at most one per segment, since segments do not overlap
    gt_row, pred_row, iou = gt_row[match], pred_row[match], iou[match]

    missed = gt_exists & ~gt_crowd
    missed[gt_row] = False

    unmatched = pred_exists.copy()
    unmatched[pred_row] = False
    excused = on_void.copy()
    crowd_of_class = np.full(num_classes, -1)
    crowd_rows = np.flatnonzero(gt_crowd & gt_exists)
    crowd_of_class[gt_classes[crowd_rows]] = crowd_rows  # the last one wins
    rows = np.flatnonzero(unmatched)
    rows = rows[crowd_of_class[pred_classes[rows]] >= 0]
    excused[rows] += overlap[1 + crowd_of_class[pred_classes[rows]], 1 + rows]
    wrong = unmatched & ~(excused > 0.5 * pred_area)
    return SegmentMatches(gt_classes, pred_classes, overlap, gt_row, pred_row, iou, missed, wrong)


def segments_of(labels: Labels, prediction: PredictedImage) -> tuple[Any, Any, Any, Any, Any]:
    """The first arguments of `match_segments` and `pq_counts` for what a metric gets of an image."""
    return labels.segment_map, labels.class_id, labels.is_crowd, prediction.segment_map, prediction.class_id


def pq_counts(
    gt_map: Integer[np.ndarray, "H W"],
    gt_classes: Integer[np.ndarray, " G"] | Sequence[int],
    gt_crowd: Bool[np.ndarray, " G"] | Sequence[bool],
    pred_map: Integer[np.ndarray, "H W"],
    pred_classes: Integer[np.ndarray, " P"] | Sequence[int],
    num_classes: int,
) -> PQCounts:
    """The counts of one image; arguments and errors as those of `match_segments`."""
    found = match_segments(gt_map, gt_classes, gt_crowd, pred_map, pred_classes, num_classes)
    return count_matches(found, num_classes)


def count_matches(
    found: SegmentMatches,
    num_classes: int,
    *,
    gt_counted: Bool[np.ndarray, " G"] | None = None,
    pred_counted: Bool[np.ndarray, " P"] | None = None,
) -> PQCounts:
    """Matches as counts per class.

    Args:
      gt_counted: labeled segments whose matches and misses count (default: all).
      pred_counted: predicted segments that count when they match nothing (default: all).
    """
    of_gt = np.ones(len(found.gt_classes), bool) if gt_counted is None else np.asarray(gt_counted, bool)
    of_pred = np.ones(len(found.pred_classes), bool) if pred_counted is None else np.asarray(pred_counted, bool)

    def per_class(classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes, minlength=num_classes).astype(np.int64)

    counted = of_gt[found.gt_row]
    classes = found.gt_classes[found.gt_row[counted]]
    units = np.ldexp(found.iou[counted], _IOU_UNIT_BITS).astype(np.int64)  # exact: see _IOU_UNIT_BITS
    iou_units = np.zeros((num_classes, 2), np.int64)
    np.add.at(iou_units, classes, np.stack([units >> _LOW_BITS, units & ((1 << _LOW_BITS) - 1)], axis=-1))
    return PQCounts(
        tp=per_class(classes),
        fp=per_class(found.pred_classes[found.wrong & of_pred]),
        fn=per_class(found.gt_classes[found.missed & of_gt]),
        iou_units=iou_units,
    )


def count_overlap(
    gt_map: Integer[np.ndarray, "H W"], num_gt: int, pred_map: Integer[np.ndarray, "H W"], num_pred: int
) -> Int[np.ndarray, "1+G 1+P"]:
    """Counts the pixels with each pair of a labeled and a predicted id (0 = void): int64.

    Raises:
      ValueError: maps that differ in shape, hold no integers, or ids beyond `num_gt` or `num_pred`.
    """
    gt_map, pred_map = np.asarray(gt_map), np.asarray(pred_map)
    if gt_map.ndim != 2 or gt_map.shape != pred_map.shape:
        raise ValueError(f"id maps of shapes {list(gt_map.shape)} and {list(pred_map.shape)} cannot be compared")
    for name, ids, rows in (("labeled", gt_map, num_gt), ("predicted", pred_map, num_pred)):
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"the {name} id map must hold integers, got {ids.dtype}")
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) > rows):
            raise ValueError(f"the {name} id map holds ids {int(ids.min())}..{int(ids.max())}, but has {rows} segments")
    pair = gt_map.astype(np.int64) * (1 + num_pred) + pred_map
    return np.bincount(pair.ravel(), minlength=(1 + num_gt) * (1 + num_pred)).reshape(1 + num_gt, 1 + num_pred)


def _check_classes(name: str, classes: np.ndarray, num_classes: int) -> None:
    bad = classes[(classes < 0) | (classes >= num_classes)]
    if bad.size:
        raise ValueError(f"a {name} segment has class {int(bad[0])}, but there are {num_classes} classes")


@dataclasses.dataclass(frozen=True)
class PQGroup:
    """Means over the N classes of a group that have a segment, labeled or predicted; in percent. All 0 if N is 0."""

    PQ: float
    SQ: float
    RQ: float
    N: int


@dataclasses.dataclass(frozen=True)
class PQResult:
    """PQ in percent: of all classes, of things, of stuff, and of each class (0 where it has no segment at all)."""

    all: PQGroup
    things: PQGroup
    stuff: PQGroup
    PQ: Float[np.ndarray, " C"]
    SQ: Float[np.ndarray, " C"]
    RQ: Float[np.ndarray, " C"]
    counts: PQCounts

    def to_dict(self, category_ids: Sequence[int] | None = None) -> dict[str, dict]:
        """Plain numbers: `{"All": {"PQ", "SQ", "RQ", "N"}, "Things": .., "Stuff": .., "per_class": {id: {..}}}`.

        A class has PQ, SQ, RQ, TP, FP, FN. Its key is `category_ids[c]`, without them c.
        """
        keys = range(self.counts.num_classes) if category_ids is None else category_ids
        per_class = {
            int(key): {
                **{name: float(getattr(self, name)[c]) for name in ("PQ", "SQ", "RQ")},
                **{name: int(getattr(self.counts, name.lower())[c]) for name in ("TP", "FP", "FN")},
            }
            for c, key in enumerate(keys)
        }
        groups = {"All": self.all, "Things": self.things, "Stuff": self.stuff}
        return {**{name: dataclasses.asdict(group) for name, group in groups.items()}, "per_class": per_class}


def pq_result(counts: PQCounts, is_thing: Bool[np.ndarray, " C"] | Sequence[bool]) -> PQResult:
    """PQ, SQ and RQ from counts; a class without TP, FP and FN takes no part in any mean."""
    is_thing = np.asarray(is_thing, bool)
    if is_thing.shape != counts.tp.shape:
        raise ValueError(f"counts of {counts.num_classes} classes, but {is_thing.size} are said to be thing or stuff")
    iou = counts.iou
    weight = counts.tp + 0.5 * counts.fp + 0.5 * counts.fn
    present = weight > 0
    values = {
        "PQ": 100.0 * iou / np.where(present, weight, 1.0),
        "SQ": 100.0 * iou / np.maximum(counts.tp, 1),
        "RQ": 100.0 * counts.tp / np.where(present, weight, 1.0),
    }

    def group(members: np.ndarray) -> PQGroup:
        members = members & present
        n = int(members.sum())
        return PQGroup(**{k: float(v[members].mean()) if n else 0.0 for k, v in values.items()}, N=n)

    everything = np.ones_like(is_thing)
    return PQResult(group(everything), group(is_thing), group(~is_thing), **values, counts=counts)


def format_table(result: PQResult, names: Sequence[str] | None = None) -> str:
    """PQ, SQ and RQ of all classes, things and stuff, and of each class that has a segment, as a text table.

    A group without a class that has a segment has no score: "-". A class that was only predicted has PQ 0, which counts
    in the means.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in ("PQ", "SQ", "RQ", "N", "TP", "FP", "FN"):
        table.add_column(column, justify="right")
    for title, group in (("All", result.all), ("Things", result.things), ("Stuff", result.stuff)):
        scores = [f"{value:.2f}" if group.N else "-" for value in (group.PQ, group.SQ, group.RQ)]
        table.add_row(title, *scores, str(group.N))
    table.add_section()
    counts = result.counts
    for c in range(counts.num_classes):
        tp, fp, fn = (int(part[c]) for part in (counts.tp, counts.fp, counts.fn))
        if tp + fp + fn:
            values = (f"{float(part[c]):.2f}" for part in (result.PQ, result.SQ, result.RQ))
            name = escape(names[c]) if names else f"class {c}"  # brackets in a name are no markup
            table.add_row(name, *values, "", str(tp), str(fp), str(fn))
    return as_text(table)


@register("pq")
@dataclasses.dataclass
class PanopticQuality(Metric):
    """PQ, SQ and RQ over a data set."""

    counts: PQCounts

    @classmethod
    def zeros(cls, task: Task) -> Self:
        return cls(task, PQCounts.zeros(task.num_classes))

    def add(self, labels: Labels, prediction: PredictedImage) -> None:
        self.counts += pq_counts(*segments_of(labels, prediction), self.task.num_classes)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return self.counts.to_arrays()

    @classmethod
    def from_arrays(cls, task: Task, arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(task, PQCounts.from_arrays(arrays))

    def result(self) -> PQResult:
        return pq_result(self.counts, self.task.classes.is_thing)

    def summary(self) -> Summary:
        result, classes = self.result(), self.task.classes
        nan = float("nan")  # of a group without a class
        scores = {"PQ": result.all, "PQ_th": result.things, "PQ_st": result.stuff}
        figures = {name: group.PQ if group.N else nan for name, group in scores.items()}
        figures |= {name: getattr(result.all, name) if result.all.N else nan for name in ("SQ", "RQ")}
        return Summary(
            values=result.to_dict(classes.category_ids),
            figures=figures,
            lines=(format_table(result, classes.names),),
        )
