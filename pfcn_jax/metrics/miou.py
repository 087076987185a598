"""Mean IoU of a semantic segmentation: IoU of a class = right pixels / (labeled + predicted - right pixels).

The classes of the semantic map are the model's region channels. With the paper's single channel for any thing, the mean
is over "thing" and the stuff classes; with a channel for every class (`model.region_classes = "all"`) over all classes.
The two are different figures: they must not be compared, and the summary says which one it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
from jaxtyping import Float, Int, Integer

from pfcn_jax.metrics.protocol import Labels, Metric, Output, PredictedImage, Summary, Task, format_score
from pfcn_jax.metrics.registry import register
from pfcn_jax.types import IGNORE

_NO_REGION = -1  # in maps of region channels, where 255 may be a channel


@dataclasses.dataclass(frozen=True)
class SemanticCounts:
    """Pixels by (labeled class, predicted class); the last column holds labeled pixels with no predicted class."""

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
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SemanticCounts:
        return cls(np.asarray(arrays["confusion"], np.int64))


def semantic_counts(
    gt: Integer[np.ndarray, "H W"], pred: Integer[np.ndarray, "H W"], num_classes: int, *, ignore: int = IGNORE
) -> SemanticCounts:
    """The counts of one image from two maps of class ids.

    Pixels labeled `ignore` do not count, whatever is predicted there. Pixels predicted `ignore` elsewhere have no
    class: they are missed pixels of the labeled class.

    Raises:
      ValueError: shapes that differ, values that are neither a class nor `ignore`, or an `ignore` that is a class.
    """
    gt, pred = np.asarray(gt), np.asarray(pred)
    if gt.shape != pred.shape:
        raise ValueError(f"semantic maps of shapes {list(gt.shape)} and {list(pred.shape)} cannot be compared")
    if 0 <= ignore < num_classes:
        raise ValueError(f"ignore = {ignore} is one of the {num_classes} classes")
    labeled = gt != ignore
    gt, pred = gt[labeled].astype(np.int64), pred[labeled].astype(np.int64)
    no_class = pred == ignore
    for name, values in (("labeled", gt), ("predicted", pred[~no_class])):
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
    """In percent. A class that is neither labeled nor predicted has IoU NaN and takes no part in the mean of N."""

    mIoU: float
    N: int
    IoU: Float[np.ndarray, " C"]


def semantic_result(counts: SemanticCounts) -> SemanticResult:
    """mIoU; NaN where there is nothing to average."""
    confusion = counts.confusion
    right = np.diagonal(confusion)
    labeled = confusion.sum(axis=1)
    union = labeled + confusion[:, :-1].sum(axis=0) - right
    present = union > 0
    iou = np.where(present, 100.0 * right / np.maximum(union, 1), np.nan)
    n = int(present.sum())
    return SemanticResult(
        mIoU=float(iou[present].mean()) if n else float("nan"),
        N=n,
        IoU=iou,
    )


@register("miou")
@dataclasses.dataclass
class MeanIoU(Metric):
    """mIoU of the semantic map over a data set."""

    counts: SemanticCounts
    needs: ClassVar[tuple[Output, ...]] = ("semantic_map",)

    @classmethod
    def zeros(cls, task: Task) -> Self:
        return cls(task, SemanticCounts.zeros(task.regions.count))

    def add(self, labels: Labels, prediction: PredictedImage) -> None:
        assert prediction.semantic_map is not None
        labeled = semantic_map(labels.segment_map, self.task.regions.of_class(labels.class_id), ignore=_NO_REGION)
        self.counts += semantic_counts(labeled, prediction.semantic_map, self.task.regions.count, ignore=_NO_REGION)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return self.counts.to_arrays()

    @classmethod
    def from_arrays(cls, task: Task, arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(task, SemanticCounts.from_arrays(arrays))

    def summary(self) -> Summary:
        miou = semantic_result(self.counts).mIoU
        over = mean_over(self.task)
        return Summary(
            {"mIoU": miou, "mIoU_over": over}, {"mIoU": miou}, (f"mIoU: {format_score(miou)} (over {over})",)
        )


def mean_over(task: Task) -> str:
    """The classes that mIoU is a mean over, in words: one class for any thing, or all classes."""
    if task.thing_regions == task.num_things:
        return "all classes"
    return "any thing as one class, and stuff classes"
