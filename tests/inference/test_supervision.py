"""`Result.to_supervision`, with the package itself: its annotators draw the masks and names of things and stuff."""

from __future__ import annotations

import numpy as np
import pytest
import supervision

from pfcn_jax.inference.result import Result
from tests.inference.drawn import CLASSES, drawn_result

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def result() -> Result:
    return drawn_result()


def test_things_and_stuff_with_names_scores_and_masks(result):
    found = result.to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 3
    assert found.data["class_name"].tolist() == list(CLASSES.names) and found.class_id.tolist() == [0, 1, 2]
    assert found.data["is_thing"].tolist() == [True, True, False]
    np.testing.assert_allclose(found.confidence, [segment.score for segment in result.segments])
    for index, segment in enumerate(result.segments):
        np.testing.assert_array_equal(found.mask[index], result.mask(segment))
        assert tuple(found.xyxy[index]) == segment.box
    assert found.area.tolist() == [segment.area for segment in result.segments]
    things = found[found.data["is_thing"]]  # its own way to leave out the stuff
    assert things.data["class_name"].tolist() == list(CLASSES.names[:2])


def test_the_mask_annotator_colors_the_pixels_of_each_segment(result):
    colors = supervision.ColorPalette([supervision.Color(*RED), supervision.Color(*BLUE), supervision.Color(0, 255, 0)])
    annotator = supervision.MaskAnnotator(color=colors, opacity=1.0)
    bgr = annotator.annotate(np.full((*result.size, 3), 7, np.uint8), result.to_supervision())
    drawn = bgr[:, :, ::-1]
    for segment, color in zip(result.segments, (RED, BLUE, (0, 255, 0)), strict=True):
        assert (drawn[result.mask(segment)] == color).all(), segment
    assert (drawn[result.mask(0)] == 7).all()  # void


def test_the_label_annotator_writes_the_class_names(result):
    annotator = supervision.LabelAnnotator(text_scale=0.3)
    canvas, found = np.zeros((*result.size, 3), np.uint8), result.to_supervision()
    by_itself = annotator.annotate(canvas.copy(), found)
    named = annotator.annotate(canvas.copy(), found, labels=list(CLASSES.names))
    np.testing.assert_array_equal(by_itself, named)
    assert (annotator.annotate(canvas.copy(), found, labels=["x"] * 3) != named).any()


def test_a_result_without_segments_is_no_detection(result):
    nothing = Result(result.image, np.zeros_like(result.segment_map), (), CLASSES)
    found = nothing.to_supervision()
    assert len(found) == 0 and found.mask.shape == (0, *result.size)
    canvas = np.zeros((*result.size, 3), np.uint8)
    for annotator in (supervision.MaskAnnotator(), supervision.LabelAnnotator()):
        np.testing.assert_array_equal(annotator.annotate(canvas.copy(), found), canvas)
