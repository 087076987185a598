"""PQ against a slow, obvious implementation of the rules, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pfcn_jax.metrics import pq


def slow_counts(gt_map, gt_classes, gt_crowd, pred_map, pred_classes, num_classes):
    """The rules, one pair of segments at a time, on sets of pixels."""
    flat = lambda ids, i: set(np.flatnonzero(np.asarray(ids).ravel() == i).tolist())  # noqa: E731
    void = flat(gt_map, 0)
    gt = {i: flat(gt_map, i + 1) for i in range(len(gt_classes))}
    pred = {i: flat(pred_map, i + 1) for i in range(len(pred_classes))}
    gt, pred = ({i: s for i, s in d.items() if s} for d in (gt, pred))
    tp, fp, fn, iou = ([0] * num_classes for _ in range(4))
    matched_gt, matched_pred = set(), set()
    for g, g_set in gt.items():
        for p, p_set in pred.items():
            if gt_crowd[g] or gt_classes[g] != pred_classes[p]:
                continue
            value = len(g_set & p_set) / len((g_set | p_set) - (void & p_set))
            if value > 0.5:
                tp[gt_classes[g]] += 1
                iou[gt_classes[g]] += value
                matched_gt.add(g)
                matched_pred.add(p)
    for g in gt:
        if g not in matched_gt and not gt_crowd[g]:
            fn[gt_classes[g]] += 1
    for p, p_set in pred.items():
        if p in matched_pred:
            continue
        excused = len(p_set & void)
        crowds = [g for g in gt if gt_crowd[g] and gt_classes[g] == pred_classes[p]]
        if crowds:
            excused += len(p_set & gt[crowds[-1]])
        if excused / len(p_set) <= 0.5:
            fp[pred_classes[p]] += 1
    return tp, fp, fn, iou


def random_case(seed):
    """A labeled and a predicted map that agree in part: blocks, of which some change id, and some noise."""
    rng = np.random.default_rng(seed)
    height, width, cell = int(rng.integers(1, 24)), int(rng.integers(1, 24)), int(rng.integers(1, 7))
    num_gt, num_pred, num_classes = int(rng.integers(0, 9)), int(rng.integers(0, 9)), int(rng.integers(1, 4))
    grid = rng.integers(0, num_gt + 1, (height // cell + 1, width // cell + 1))
    gt_map = np.kron(grid, np.ones((cell, cell), int))[:height, :width]
    pred_map = np.where(rng.random(gt_map.shape) < rng.choice([0.0, 0.3, 1.0]), 0, gt_map)
    pred_map = np.minimum(pred_map, num_pred)
    noise = rng.random(gt_map.shape) < rng.choice([0.0, 0.1, 0.5])
    pred_map = np.where(noise, rng.integers(0, num_pred + 1, gt_map.shape), pred_map)
    gt_classes = rng.integers(0, num_classes, num_gt)
    pred_classes = rng.integers(0, num_classes, num_pred)
    shared = min(num_gt, num_pred)
    pred_classes[:shared] = np.where(rng.random(shared) < 0.7, gt_classes[:shared], pred_classes[:shared])
    return gt_map, gt_classes, rng.random(num_gt) < 0.3, pred_map, pred_classes, num_classes


def assert_equals_slow(case):
    counts = pq.pq_counts(*case)
    tp, fp, fn, iou = slow_counts(*case)
    np.testing.assert_array_equal(counts.tp, tp)
    np.testing.assert_array_equal(counts.fp, fp)
    np.testing.assert_array_equal(counts.fn, fn)
    np.testing.assert_allclose(counts.iou, iou, rtol=0, atol=1e-13)
    return counts


def test_random_maps_equal_the_slow_rules():
    totals = np.zeros(3, int)
    for seed in range(400):
        counts = assert_equals_slow(random_case(seed))
        totals += [counts.tp.sum(), counts.fp.sum(), counts.fn.sum()]
    assert totals.min() > 100  # the cases are worth something


def test_exactly_half_is_no_match_and_no_excuse():
    gt_map = np.array([[1, 1, 1, 1, 0, 0, 2, 2]])
    pred_map = np.array([[1, 1, 0, 0, 2, 2, 2, 2]])
    counts = assert_equals_slow((gt_map, [0, 1], [False, False], pred_map, [0, 2], 3))
    np.testing.assert_array_equal(counts.tp, [0, 0, 0])
    np.testing.assert_array_equal(counts.fn, [1, 1, 0])
    np.testing.assert_array_equal(counts.fp, [1, 0, 1])


def test_void_under_a_prediction_leaves_its_union():
    gt_map = np.array([[0, 0, 0, 1, 1, 1]])
    pred_map = np.array([[1, 1, 1, 1, 1, 0]])
    counts = assert_equals_slow((gt_map, [0], [False], pred_map, [0], 1))
    assert counts.iou[0] == 2 / 3


def test_crowds_are_not_looked_for_and_excuse_their_class_only():
    gt_map = np.ones((2, 8), int)
    pred_map = np.repeat([[1, 1, 1, 2, 2, 2, 3, 3]], 2, axis=0)
    counts = assert_equals_slow((gt_map, [1], [True], pred_map, [1, 0, 1], 2))
    np.testing.assert_array_equal(counts.fp, [1, 0])
    assert counts.fn.sum() == counts.tp.sum() == 0


def test_of_two_crowds_of_a_class_the_last_one_excuses():
    gt_map = np.array([[1, 1, 1, 2, 2, 2]])
    pred_map = np.array([[1, 1, 1, 2, 2, 2]])
    counts = assert_equals_slow((gt_map, [0, 0], [True, True], pred_map, [0, 0], 1))
    assert counts.fp[0] == 1


def test_rows_without_a_pixel_are_no_segments():
    gt_map, pred_map = np.array([[0, 2]]), np.array([[3, 3]])
    counts = pq.pq_counts(gt_map, [-1, 0, 0], [False] * 3, pred_map, [9, -7, 0, 9], 1)
    np.testing.assert_array_equal([counts.tp, counts.fp, counts.fn], [[1], [0], [0]])


def test_nothing_anywhere():
    counts = assert_equals_slow((np.zeros((3, 4), np.uint8), [], [], np.zeros((3, 4), np.int16), [], 2))
    result = pq.pq_result(counts, [True, False])
    assert result.all == pq.PQGroup(PQ=0.0, SQ=0.0, RQ=0.0, N=0)


@pytest.mark.parametrize("change, message", [
    ({"gt_map": np.zeros((2, 3), int)}, r"shapes \[2, 3\] and \[2, 2\]"),
    ({"gt_map": np.full((2, 2), 2)}, "labeled id map holds ids 2..2, but has 1 segments"),
    ({"pred_map": np.full((2, 2), 3)}, "predicted id map holds ids 3..3, but has 1 segments"),
    ({"pred_map": np.full((2, 2), -1)}, "predicted id map holds ids -1..-1"),
    ({"pred_map": np.ones((2, 2))}, "must hold integers, got float64"),
    ({"gt_classes": [2]}, "labeled segment has class 2, but there are 2 classes"),
    ({"pred_classes": [-1]}, "predicted segment has class -1"),
    ({"gt_crowd": []}, "1 labeled classes, but 0 crowd flags"),
])  # fmt: skip
def test_what_cannot_be_counted_is_refused(change, message):
    ones = np.ones((2, 2), int)
    case = {"gt_map": ones, "gt_classes": [0], "gt_crowd": [False], "pred_map": ones, "pred_classes": [0]} | change
    with pytest.raises(ValueError, match=message):
        pq.pq_counts(**case, num_classes=2)


def test_sums_have_the_same_bits_in_any_order_and_split():
    rng = np.random.default_rng(1)
    many = [pq.pq_counts(*random_case(seed)[:5], 3) for seed in range(60)]
    forward = sum(many, pq.PQCounts.zeros(3))
    shuffled = sum([many[i] for i in rng.permutation(60)], pq.PQCounts.zeros(3))
    hosts = [sum(part, pq.PQCounts.zeros(3)) for part in (many[:7], many[7:31], many[31:])]
    by_element = {k: sum(h.to_arrays()[k] for h in hosts) for k in hosts[0].to_arrays()}
    for other in (shuffled, pq.PQCounts.from_arrays(by_element)):
        for name, array in forward.to_arrays().items():
            np.testing.assert_array_equal(other.to_arrays()[name], array)
        np.testing.assert_array_equal(other.iou.view(np.int64), forward.iou.view(np.int64))
    np.testing.assert_allclose(forward.iou, np.sum([c.iou for c in many], axis=0), rtol=1e-13)
    with pytest.raises(ValueError, match="3 and of 2 classes"):
        _ = forward + pq.PQCounts.zeros(2)


def test_result_by_hand():
    half = np.ldexp([0.8, 0.0, 1.5, 0.0], 53 - 26)
    units = np.stack([half.astype(np.int64), np.zeros(4, np.int64)], axis=1)
    counts = pq.PQCounts(*(np.array(a) for a in ([1, 0, 2, 0], [1, 2, 0, 0], [0, 0, 2, 0])), units)
    result = pq.pq_result(counts, [True, True, False, False])
    np.testing.assert_allclose(result.PQ, [80 / 1.5, 0, 50, 0], rtol=1e-7)
    np.testing.assert_allclose(result.SQ, [80, 0, 75, 0], rtol=1e-7)
    np.testing.assert_allclose(result.RQ, [100 / 1.5, 0, 200 / 3, 0], rtol=1e-7)
    assert (result.all.N, result.things.N, result.stuff.N) == (3, 2, 1)  # the last class does not exist
    np.testing.assert_allclose(result.things.PQ, 40 / 1.5, rtol=1e-7)
    np.testing.assert_allclose(result.all.PQ, (80 / 1.5 + 50) / 3, rtol=1e-7)
    as_dict = result.to_dict([5, 7, 11, 13])
    assert as_dict["Things"] == {"PQ": result.things.PQ, "SQ": result.things.SQ, "RQ": result.things.RQ, "N": 2}
    assert as_dict["per_class"][11] == {
        "PQ": result.PQ[2],
        "SQ": result.SQ[2],
        "RQ": result.RQ[2],
        "TP": 2,
        "FP": 0,
        "FN": 2,
    }
    with pytest.raises(ValueError, match="4 classes, but 3"):
        pq.pq_result(counts, [True, True, False])
