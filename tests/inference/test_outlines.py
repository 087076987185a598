"""Outlines against masks of every kind: filled again they give the same pixels; areas add up."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pfcn_jax.inference.outlines import outline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decoder


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = [np.ones((1, 1), bool), np.ones((3, 5), bool), np.eye(4, dtype=bool), ~np.eye(5, dtype=bool)]
    ring = np.ones((7, 7), bool)
    ring[2:5, 2:5] = False
    ring[3, 3] = True  # an island in a hole
    found.append(ring)
    for number in range(60):
        height, width = rng.integers(1, 40, 2)
        mask = rng.random((height, width)) < rng.uniform(0.1, 0.95)
        if number % 3 == 0:
            mask = cv2.GaussianBlur(mask.astype(np.float32), (5, 5), 0) > 0.5
        found.append(mask)
    return [mask for mask in found if mask.any()]


def area(ring: np.ndarray) -> float:
    x, y = ring.astype(float).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


@pytest.mark.parametrize("mask", masks(), ids=lambda mask: "x".join(map(str, mask.shape)))
def test_filled_again_it_is_the_mask(mask):
    height, width = mask.shape
    rings = outline(mask)
    joined = rings.joined().astype(float).reshape(-1).tolist()
    filled = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([joined], height, width)))
    np.testing.assert_array_equal(filled.astype(bool), mask)
    assert all(area(ring) > 0 for ring in rings.outer) and all(area(ring) < 0 for ring in rings.holes)
    assert sum(area(ring) for ring in (*rings.outer, *rings.holes)) == mask.sum()
    count, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    assert len(rings.outer) == count - 1
    assert rings.is_simple == (len(rings.outer) == 1 and not rings.holes)


def test_a_hole_belongs_to_the_smallest_ring_around_it():
    mask = np.zeros((15, 15), bool)
    mask[1:14, 1:14] = True
    mask[3:12, 3:12] = False  # hole of the frame
    mask[5:10, 5:10] = True  # an island ...
    mask[7, 7] = False  # ... with a hole of its own
    parts = outline(mask).polygons()
    assert sorted(len(part) for part in parts) == [2, 2]
    for outer, hole in parts:
        assert outer.min() < hole.min() and hole.max() < outer.max()
        assert area(outer) + area(hole) in (169 - 81, 25 - 1)
