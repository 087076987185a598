"""Mean IoU of a semantic segmentation: IoU of a class = right pixels / (labelled + predicted - right pixels)."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Integer

from pfcn_jax.types import IGNORE


@dataclasses.dataclass(frozen=True)
class SemanticCounts:
    """Pixels by (labelled class, predicted class); the last column holds labelled pixels with no predicted class."""

    confusion: Int[np.ndarray, "C C+1"]

    @classmethod
    def zeros(cls, num_classes: int) -> SemanticCounts:
        return cls(np.zeros((num_classes, num_classes + 1), np.int64))

    @property
    def num_classes(self) -> int:
        return self.confusion.shape[0]

    def __add__(self, other: SemanticCounts) -> SemanticCounts:
        if self.num_classes != other.num_classes:
            raise ValueError(f"counts of {self.num_classes} and of {other.num_classes} classes cannot be added")
        return SemanticCounts(self.confusion + other.confusion)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The int64 array; it may be summed over hosts element by element (in 64 bits) instead of `+`."""
        return {"confusion": self.confusion}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> SemanticCounts:
        return cls(np.asarray(arrays["confusion"], np.int64))


def semantic_counts(
    gt: Integer[np.ndarray, "H W"], pred: Integer[np.ndarray, "H W"], num_classes: int, *, ignore: int = IGNORE
) -> SemanticCounts:
    """The counts of one picture from two maps of class ids.

    Pixels labelled `ignore` do not count, whatever is predicted there. Pixels predicted `ignore` elsewhere have no
    class: they are missed pixels of the labelled class.

    Raises:
      ValueError: shapes that differ, values that are neither a class nor `ignore`, or an `ignore` that is a class.
    """
    gt, pred = np.asarray(gt), np.asarray(pred)
    if gt.shape != pred.shape:
        raise ValueError(f"semantic maps of shapes {list(gt.shape)} and {list(pred.shape)} cannot be compared")
    if 0 <= ignore < num_classes:
        raise ValueError(f"ignore = {ignore} is one of the {num_classes} classes")
    labelled = gt != ignore
    gt, pred = gt[labelled].astype(np.int64), pred[labelled].astype(np.int64)
    no_class = pred == ignore
    for name, values in (("labelled", gt), ("predicted", pred[~no_class])):
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            low, high = int(values.min()), int(values.max())
            raise ValueError(f"{name} classes {low}..{high}, but there are {num_classes} (ignore = {ignore})")
    pred[no_class] = num_classes
    counts = np.bincount(gt * (num_classes + 1) + pred, minlength=num_classes * (num_classes + 1))
    return SemanticCounts(counts.reshape(num_classes, num_classes + 1))


def semantic_map(
    segment_map: Integer[np.ndarray, "H W"], class_ids: Integer[np.ndarray, " S"], *, ignore: int = IGNORE
) -> Int[np.ndarray, "H W"]:
    """The class of every pixel of an id map (0 = void, i = row i - 1 of `class_ids`); void becomes `ignore`."""
    return np.concatenate([[ignore], np.asarray(class_ids, np.int64)]).astype(np.int32)[segment_map]


@dataclasses.dataclass(frozen=True)
class SemanticResult:
    """In percent. A class that is neither labelled nor predicted has IoU NaN and takes no part in the mean of N."""

    mIoU: float
    pixel_accuracy: float
    N: int
    IoU: Float[np.ndarray, " C"]


def semantic_result(counts: SemanticCounts) -> SemanticResult:
    """mIoU and pixel accuracy; NaN where there is nothing to average."""
    confusion = counts.confusion
    right = np.diagonal(confusion)
    labelled = confusion.sum(axis=1)
    union = labelled + confusion[:, :-1].sum(axis=0) - right
    present = union > 0
    iou = np.where(present, 100.0 * right / np.maximum(union, 1), np.nan)
    n, total = int(present.sum()), int(labelled.sum())
    return SemanticResult(
        mIoU=float(iou[present].mean()) if n else float("nan"),
        pixel_accuracy=100.0 * int(right.sum()) / total if total else float("nan"),
        N=n,
        IoU=iou,
    )
