"""Runs, areas and boxes against a pass over every segment."""

from __future__ import annotations

import numpy as np
import pytest

from pfcn_jax.data.segments import count_pixels, find_runs, tight_boxes


def slow_boxes(segment_map: np.ndarray, rows: int) -> np.ndarray:
    boxes = np.zeros((rows, 4))
    for row in range(rows):
        y, x = np.nonzero(segment_map == row + 1)
        if y.size:
            boxes[row] = x.min(), y.min(), x.max() + 1, y.max() + 1
    return boxes


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (13, 17), (40, 31)])
def test_areas_and_boxes(shape):
    rng = np.random.default_rng(shape[0])
    for rows in (0, 1, 5, 300):
        segment_map = rng.integers(0, rows + 1, shape).astype(np.int32)
        segment_map[: shape[0] // 2] = segment_map[0, 0]  # long runs, and many values without pixels
        runs = find_runs(segment_map)
        assert (np.diff(runs.start) > 0).all() and runs.length.sum() == segment_map.size
        np.testing.assert_array_equal(runs.expand(), segment_map)
        read = rng.integers(0, shape[0], 20), np.sort(rng.integers(0, shape[1], 33))
        resampled = runs.resample(*read, np.dtype(np.uint16))
        np.testing.assert_array_equal(resampled, segment_map[read[0]][:, read[1]])
        assert resampled.dtype == np.uint16
        np.testing.assert_array_equal(count_pixels(runs, rows), [(segment_map == row + 1).sum() for row in range(rows)])
        np.testing.assert_array_equal(tight_boxes(runs, rows), slow_boxes(segment_map, rows))


def test_a_run_ends_at_the_end_of_its_row():
    runs = find_runs(np.ones((3, 4), np.int32))
    np.testing.assert_array_equal(runs.start, [0, 4, 8])
    np.testing.assert_array_equal(runs.length, [4, 4, 4])


def test_a_window_of_a_larger_map_is_read_as_it_is():
    whole = np.arange(48, dtype=np.int32).reshape(6, 8) // 3
    window = whole[1:5, 2:7]
    np.testing.assert_array_equal(tight_boxes(find_runs(window), 15), slow_boxes(window, 15))
