"""Mean IoU against counting pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from pfcn_jax.metrics import miou


def slow_iou(pairs, num_classes):
    """IoU per class from (labeled, predicted) pairs; None where a class does not occur."""
    result = []
    for c in range(num_classes):
        both = sum(g == c and p == c for g, p in pairs)
        either = sum(c in (g, p) for g, p in pairs)
        result.append(100 * both / either if either else None)
    return result


def test_equals_counting_pixel_by_pixel():
    rng = np.random.default_rng(0)
    total, pairs = miou.SemanticCounts.zeros(5), []
    for _ in range(4):
        gt = rng.choice([0, 1, 2, 4, 255], (7, 9))  # class 3 is predicted only
        pred = np.where(rng.random((7, 9)) < 0.6, gt, rng.choice([0, 1, 3, 255], (7, 9)))
        total = total + miou.semantic_counts(gt.astype(np.uint8), pred, 5)
        pairs += [(g, p) for g, p in zip(gt.ravel().tolist(), pred.ravel().tolist()) if g != 255]
    result = miou.semantic_result(total)
    expected = slow_iou(pairs, 5)
    np.testing.assert_allclose(result.IoU, expected, rtol=1e-14)
    assert expected[3] == 0.0 and result.N == 5
    np.testing.assert_allclose(result.mIoU, np.mean(expected), rtol=1e-14)
    same = miou.SemanticCounts.from_arrays(total.to_arrays())
    np.testing.assert_array_equal(same.confusion, total.confusion)


def test_absent_classes_and_nothing_at_all():
    counts = miou.semantic_counts(np.zeros((2, 2), int), np.zeros((2, 2), int), 3)
    result = miou.semantic_result(counts)
    assert (result.mIoU, result.N) == (100.0, 1)
    np.testing.assert_array_equal(np.isnan(result.IoU), [False, True, True])
    nothing = miou.semantic_result(miou.semantic_counts(np.full((2, 2), 255), np.zeros((2, 2), int), 3))
    assert np.isnan(nothing.mIoU) and nothing.N == 0


def test_values_under_ignored_pixels_do_not_matter():
    counts = miou.semantic_counts(np.array([[255, 1]]), np.array([[77, 1]]), 2)
    np.testing.assert_array_equal(counts.confusion, [[0, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize("gt, pred, message", [
    ([[3]], [[0]], "labeled classes 3..3, but there are 3"),
    ([[-1]], [[0]], "labeled classes -1..-1"),
    ([[0]], [[3]], "predicted classes 3..3"),
    ([[0, 1]], [[0]], r"shapes \[1, 2\] and \[1, 1\]"),
])  # fmt: skip
def test_what_cannot_be_counted_is_refused(gt, pred, message):
    with pytest.raises(ValueError, match=message):
        miou.semantic_counts(np.array(gt), np.array(pred), 3)


def test_ignore_must_not_be_a_class_and_class_numbers_must_agree():
    with pytest.raises(ValueError, match="ignore = 2 is one of"):
        miou.semantic_counts(np.zeros((1, 1), int), np.zeros((1, 1), int), 3, ignore=2)
    with pytest.raises(ValueError, match="3 and of 4 classes"):
        _ = miou.SemanticCounts.zeros(3) + miou.SemanticCounts.zeros(4)


def test_semantic_map_of_an_id_map():
    segment_map = np.array([[0, 1], [2, 2]], np.uint16)
    np.testing.assert_array_equal(miou.semantic_map(segment_map, np.array([4, 9])), [[255, 4], [9, 9]])
    np.testing.assert_array_equal(miou.semantic_map(np.zeros((1, 2), int), np.array([], int)), [[255, 255]])
