"""Previews of an evaluation: image, labels and prediction in one row."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
from PIL import Image

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.example import Example
from pfcn_jax.panoptic.predict import Prediction
from pfcn_jax.types import PanopticPrediction
from pfcn_jax.viz import overlay, panel_row

_SMALL = 320  # images with a shorter long side are enlarged, so that labels can be read


class PreviewWriter:
    """Writes the first `count` images that process 0 evaluates into a folder, one PNG each."""

    def __init__(self, folder: pathlib.Path, classes: ClassTable, count: int):
        self._folder, self._classes, self._left = folder, classes, count if jax.process_index() == 0 else 0

    def __call__(self, example: Example, prediction: Prediction) -> None:
        if self._left <= 0:
            return
        self._left -= 1
        self._folder.mkdir(parents=True, exist_ok=True)
        scale = max(1.0, round(_SMALL / max(example.image.shape[:2])))
        labels = overlay(example.image, example.segment_map, self._classes, example.class_id, scale=scale)
        enlarged = example.image.repeat(int(scale), axis=0).repeat(int(scale), axis=1)
        panels = [enlarged, labels, draw_prediction(example.image, prediction.panoptic, self._classes, scale=scale)]
        name = pathlib.PurePath(example.file_name).stem + ".png"
        Image.fromarray(panel_row(panels, ["image", "labels", "prediction"])).save(self._folder / name)


def compact(prediction: PanopticPrediction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segment map with the ids 1..n of the segments that exist (0 = void), and their classes and scores `[n]`."""
    rows = np.flatnonzero(np.asarray(prediction.valid))
    renumber = np.zeros(len(prediction.valid) + 1, np.int32)
    renumber[rows + 1] = np.arange(1, len(rows) + 1)
    return renumber[prediction.segment_map], np.asarray(prediction.class_id)[rows], np.asarray(prediction.score)[rows]


def draw_prediction(
    image: np.ndarray, prediction: PanopticPrediction, classes: ClassTable, *, scale: float = 1.0
) -> np.ndarray:
    """The image with its predicted segments, their classes and scores; `prediction` is cropped to the image."""
    segment_map, class_id, score = compact(prediction)
    return overlay(image, segment_map, classes, class_id, score, scale=scale)
