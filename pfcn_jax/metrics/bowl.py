"""The score of the 2018 Data Science Bowl, by which instances of cells and nuclei are compared (Caicedo et al. 2019).

    score of an image = mean over t = 0.50, 0.55, ..., 0.95 of TP(t) / (TP(t) + FP(t) + FN(t))

A predicted and a labeled instance match at t if their IoU exceeds t. The score of a data set is the mean over its
images; an image without labeled and predicted instances does not count. Here over all things, within their classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np
from jaxtyping import Int

from pfcn_jax.metrics.pq import SegmentMatches, match_segments, segments_of
from pfcn_jax.metrics.protocol import Labels, Metric, PredictedImage, Summary, Task, format_score
from pfcn_jax.metrics.registry import register

THRESHOLDS = np.arange(50, 100, 5) / 100
_UNIT = 2.0**-40  # scores are added as whole multiples, so that their order does not matter


@register("bowl")
@dataclasses.dataclass
class BowlScore(Metric):
    """Sums of the scores of images."""

    sums: Int[np.ndarray, " 2"]  # images that count, and the sum of their scores in units

    @classmethod
    def zeros(cls, task: Task) -> Self:
        return cls(task, np.zeros(2, np.int64))

    def add(self, labels: Labels, prediction: PredictedImage) -> None:
        score = image_score(
            match_segments(*segments_of(labels, prediction), self.task.num_classes), self.task.num_things
        )
        if score is not None:
            self.sums += [1, round(score / _UNIT)]

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {"bowl": self.sums}

    @classmethod
    def from_arrays(cls, task: Task, arrays: Mapping[str, np.ndarray]) -> Self:
        return cls(task, np.asarray(arrays["bowl"], np.int64))

    def summary(self) -> Summary:
        images, total = (int(value) for value in self.sums)
        score = total * _UNIT / images if images else float("nan")
        return Summary({"bowl": score}, {"bowl": score}, (f"Data Science Bowl score: {format_score(score, 3)}",))


def image_score(found: SegmentMatches, num_things: int) -> float | None:
    """The score of one image, 0..1; None if it has neither labeled nor predicted things."""
    iou = found.iou[found.gt_classes[found.gt_row] < num_things]
    wrong = int(np.sum(found.wrong & (found.pred_classes < num_things)))
    missed = int(np.sum(found.missed & (found.gt_classes < num_things)))
    if len(iou) + wrong + missed == 0:
        return None
    matched = np.sum(iou[:, None] > THRESHOLDS[None, :], axis=0)
    # A pair that does not match at t is one wrong and one missed instance.
    either = len(iou) + wrong + missed + (len(iou) - matched)
    return float(np.mean(matched / either))
