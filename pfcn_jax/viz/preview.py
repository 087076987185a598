"""Pictures of an evaluation: picture, labels and prediction side by side."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
from PIL import Image

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.example import Example
from pfcn_jax.panoptic.predict import Prediction
from pfcn_jax.types import PanopticPrediction
from pfcn_jax.viz import overlay, side_by_side

_SMALL = 320  # pictures with a shorter long side are drawn larger, so that labels can be read


class PreviewWriter:
    """Writes the first `count` pictures that process 0 evaluates into a folder, one PNG each."""

    def __init__(self, folder: pathlib.Path, classes: ClassTable, count: int):
        self._folder, self._classes, self._left = folder, classes, count if jax.process_index() == 0 else 0

    def __call__(self, example: Example, prediction: Prediction) -> None:
        if self._left <= 0:
            return
        self._left -= 1
        self._folder.mkdir(parents=True, exist_ok=True)
        scale = max(1.0, round(_SMALL / max(example.image.shape[:2])))
        names, colors, is_thing = self._classes.names, self._classes.colors, self._classes.is_thing
        truth = overlay(
            example.image, example.segment_map, names, example.class_id, colors=colors, is_thing=is_thing, scale=scale
        )
        picture = example.image.repeat(int(scale), axis=0).repeat(int(scale), axis=1)
        panels = [picture, truth, draw_prediction(example.image, prediction.panoptic, self._classes, scale=scale)]
        name = pathlib.PurePath(example.file_name).stem + ".png"
        Image.fromarray(side_by_side(panels, ["picture", "labels", "prediction"])).save(self._folder / name)


def compact(prediction: PanopticPrediction) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segment map with the ids 1..n of the segments that exist (0 = void), and their classes and scores `[n]`."""
    rows = np.flatnonzero(np.asarray(prediction.valid))
    renumber = np.zeros(len(prediction.valid) + 1, np.int32)
    renumber[rows + 1] = np.arange(1, len(rows) + 1)
    return renumber[prediction.segment_map], np.asarray(prediction.class_id)[rows], np.asarray(prediction.score)[rows]


def draw_prediction(
    image: np.ndarray, prediction: PanopticPrediction, classes: ClassTable, *, scale: float = 1.0
) -> np.ndarray:
    """The picture with its predicted segments, their classes and scores; `prediction` is cropped to the picture."""
    segment_map, class_id, score = compact(prediction)
    return overlay(
        image,
        segment_map,
        classes.names,
        class_id,
        score,
        classes.colors,
        is_thing=classes.is_thing,
        scale=scale,
    )
