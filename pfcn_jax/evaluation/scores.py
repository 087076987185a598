"""The metrics of an evaluation: images in, over threads and processes, results out."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from pfcn_jax.data.example import Example
from pfcn_jax.metrics.protocol import Labels, Metric, PredictedImage, Task
from pfcn_jax.metrics.transport import pack, unpack
from pfcn_jax.panoptic.predict import Prediction


class Scores:
    """Metrics by name. Images may be added by several threads: each has sums of its own, added up by `total`."""

    def __init__(self, metrics: Mapping[str, type[Metric]], task: Task):
        self._metrics, self._task = metrics, task
        self._parts: list[dict[str, Metric]] = []  # one for each thread
        self._own = threading.local()

    def add(self, image_id: int, example: Example, prediction: Prediction) -> None:
        """Scores one image.

        Args:
          image_id: unique over all processes.
          prediction: cropped to the image's original size, NumPy arrays.
        """
        if not hasattr(self._own, "part"):
            self._own.part = {name: metric.zeros(self._task) for name, metric in self._metrics.items()}
            self._parts.append(self._own.part)
        labels = Labels(image_id, example.segment_map, example.class_id, example.is_crowd)
        predicted = predicted_image(prediction)
        for metric in self._own.part.values():
            metric.add(labels, predicted)

    def total(self) -> dict[str, Metric]:
        """The sums over all threads and processes. Every process must call it at the same place."""
        return {name: self._sum(name, metric) for name, metric in self._metrics.items()}

    def _sum(self, name: str, metric: type[Metric]) -> Metric:
        total = _add_up(metric.zeros(self._task), [part[name] for part in self._parts])
        if jax.process_count() == 1:
            return total
        received = [metric.from_arrays(self._task, arrays) for arrays in _all_gather(total.to_arrays())]
        return _add_up(metric.zeros(self._task), received)


def _add_up(total: Metric, parts: Sequence[Metric]) -> Metric:
    for part in parts:
        total = total + part
    return total


def predicted_image(prediction: Prediction) -> PredictedImage:
    """An image's prediction as the NumPy arrays that metrics receive, without padding among the detections."""
    panoptic, things = prediction.panoptic, prediction.things
    masks, semantic = prediction.thing_masks, prediction.semantic_map
    valid = np.flatnonzero(things.valid)
    return PredictedImage(
        segment_map=np.asarray(panoptic.segment_map),
        class_id=np.asarray(panoptic.class_id),
        score=np.asarray(panoptic.score),
        thing_class_id=np.asarray(things.class_id)[valid],
        thing_score=np.asarray(things.score)[valid],
        thing_masks=None if masks is None else np.asarray(masks)[valid],
        semantic_map=None if semantic is None else np.asarray(semantic),
    )


def _all_gather(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The arrays of every process, in order; as bytes, since their lengths differ."""
    data = pack(arrays)
    lengths = multihost_utils.process_allgather(np.array([data.size], np.int32)).reshape(-1)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [unpack(row[:length]) for row, length in zip(rows, lengths)]
