"""A result whose segments are drawn by hand, for the tests of what is written from it."""

from __future__ import annotations

import numpy as np

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.inference.result import Result, make_result
from pfcn_jax.types import PanopticPrediction

CLASSES = ClassTable(("cat", 'dog "Rex"', "sky & sea"), (7, 9, 21), (True, True, False))


def drawn_prediction(*, mirrored: bool = False) -> PanopticPrediction:
    """A simple thing, one in two parts with a hole, a stuff class around them, and void: 20 x 30 pixels."""
    segment_map = np.zeros((20, 30), np.int32)
    segment_map[:16] = 3
    segment_map[2:6, 3:9] = 1
    segment_map[8:14, 2:10] = 2
    segment_map[10:12, 5:7] = 3
    segment_map[9:12, 20:24] = 2
    if mirrored:
        segment_map = np.ascontiguousarray(segment_map[:, ::-1])
    return PanopticPrediction(
        segment_map=segment_map,
        class_id=np.array([0, 1, 2]),
        is_thing=np.array([True, True, False]),
        score=np.array([0.9, 0.75, 0.6], np.float32),
        area=np.zeros(3, np.int32),
        valid=np.ones(3, bool),
    )


def drawn_result(*, mirrored: bool = False) -> Result:
    """The prediction above of a black image."""
    prediction = drawn_prediction(mirrored=mirrored)
    return make_result(np.zeros((20, 30, 3), np.uint8), prediction, CLASSES)
