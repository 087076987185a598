"""Sizes, confusions and error maps: by hand, and against the counts they must add up to."""

from __future__ import annotations

import numpy as np
import pytest

from pfcn_jax.metrics import breakdown as br
from pfcn_jax.metrics import pq
from tests.metrics.test_pq import random_case


def both_matches(*case):
    return pq.match_segments(*case), pq.match_segments(*case, any_class=True)


def image():
    """128 x 128, classes a b c: a large a found as it is, a b taken for c, a b that nothing finds, a made-up a, a void
    corner and a crowd of c."""
    truth, seen = np.zeros((2, 128, 128), np.int32)
    truth[:, :] = 1
    truth[:10, :10] = 0
    truth[20:60, 20:60], truth[70:80, 70:80], truth[100:110, 100:120] = 2, 3, 4
    seen[:, :] = 1
    seen[20:60, 22:60], seen[100:128, 0:40], seen[0:5, 120:128] = 2, 3, 0
    return truth, [0, 1, 1, 2], [False, False, False, True], seen, [0, 2, 0], 3


def test_sizes_and_confusions_by_hand():
    truth, classes, crowd, seen, seen_classes, count = image()
    found, any_class = both_matches(truth, classes, crowd, seen, seen_classes, count)
    parts = br.breakdown(found, any_class, count)
    small, medium, large = parts.by_size
    assert large.tp.tolist() == [1, 0, 0] and large.fn.sum() == large.fp.sum() == 0
    assert medium.fn.tolist() == [0, 1, 0] and medium.fp.tolist() == [1, 0, 1]  # 1600 pixels; 1120 and 1520 of them
    assert small.fn.tolist() == [0, 1, 0] and small.tp.sum() == small.fp.sum() == 0
    expected = np.zeros((4, 4), int)
    expected[0, 0], expected[1, 2], expected[1, 3], expected[3, 0] = 1, 1, 1, 1
    np.testing.assert_array_equal(parts.confusion, expected)
    assert br.top_confusions(parts.confusion, 5) == [(1, 2, 1)]


def test_error_map_by_hand():
    truth, _, _, seen, _, _ = case = image()
    errors = br.error_map(truth, seen, both_matches(*case)[1])
    at = {
        (64, 64): br.CORRECT, (5, 5): br.IGNORED, (105, 110): br.IGNORED, (40, 40): br.WRONG_CLASS,
        (75, 75): br.FALSE_NEGATIVE, (120, 20): br.FALSE_POSITIVE, (2, 124): br.BOUNDARY, (30, 21): br.BOUNDARY,
    }  # fmt: skip
    assert {place: errors[place] for place in at} == at
    overlapping = seen.copy()
    overlapping[70:72, 60:80] = 3  # the made-up segment reaches over the one that is missed
    matches = both_matches(truth, *case[1:3], overlapping, *case[4:])[1]
    assert br.error_map(truth, overlapping, matches)[71, 75] == br.BOTH


def test_parts_add_up_to_the_whole_and_travel():
    total, counts = br.Breakdown.zeros(3), pq.PQCounts.zeros(3)
    for seed in range(150):
        case = (*random_case(seed)[:5], 3)
        found, any_class = both_matches(*case)
        part = br.breakdown(found, any_class, 3)
        total, counts = total + part, counts + pq.pq_counts(*case)
        of_gt = part.confusion[:-1].sum(axis=1)
        exists = found.gt_area > 0
        crowd = np.asarray(case[2], bool)
        np.testing.assert_array_equal(of_gt, np.bincount(found.gt_classes[exists & ~crowd], minlength=3))
        errors = br.error_map(case[0], case[3], any_class)
        assert errors.shape == case[0].shape and (errors[case[0] == 0] == br.IGNORED).all()
        right = sum(int(found.overlap[1 + g, 1 + p]) for g, p in zip(found.gt_row, found.pred_row))
        assert (errors == br.CORRECT).sum() == right
    whole = total.by_size[0] + total.by_size[1] + total.by_size[2]
    for name, array in counts.to_arrays().items():
        np.testing.assert_array_equal(whole.to_arrays()[name], array)
    np.testing.assert_array_equal(np.diagonal(total.confusion)[:-1], counts.tp)
    again = br.Breakdown.from_arrays(total.to_arrays())
    np.testing.assert_array_equal(again.confusion, total.confusion)
    np.testing.assert_array_equal(again.by_size[2].iou_units, total.by_size[2].iou_units)


@pytest.mark.parametrize(("area", "index"), [(1, 0), (1023, 0), (1024, 1), (9215, 1), (9216, 2)])
def test_size_limits_are_cocos(area, index):
    assert br.size_index(np.array([area])).tolist() == [index]
