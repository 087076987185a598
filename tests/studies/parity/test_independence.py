"""A photo alone and the same photo in a mixed batch on a larger canvas give the same segments."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np
import pytest

from pfcn_jax.panoptic.predict import Prediction
from pfcn_jax.studies.parity.independence import (
    Difference,
    Photo,
    check_independence,
    compare,
    mixed_batches,
    mixed_canvases,
    to_checks,
)
from pfcn_jax.types import Kernels, PanopticPrediction


def photo(name: str, height: int, width: int) -> Photo:
    return Photo(name, np.zeros((height, width, 3), np.uint8), (height, width))


def prediction(segment_map: np.ndarray, class_id: list[int]) -> Prediction:
    count = len(class_id)
    row = np.zeros(count)
    table = PanopticPrediction(segment_map, np.asarray(class_id), row > 1, row, row, np.ones(count, bool))
    return Prediction(table, Kernels(row, row, row, row), None, None)


def test_every_photo_is_in_one_batch_on_a_canvas_that_holds_it():
    photos = [photo(str(i), 60 + 9 * (i % 5), 100 - 11 * (i % 4)) for i in range(17)]
    seen = []
    for canvas, some in mixed_batches(photos, 4):
        assert canvas in mixed_canvases(photos) and 1 <= len(some) <= 4
        for each in some:
            assert each.size[0] <= canvas[0] and each.size[1] <= canvas[1]
            seen.append(each.name)
    assert sorted(seen) == sorted(each.name for each in photos)
    assert {canvas for canvas, _ in mixed_batches(photos, 4)} == set(mixed_canvases(photos))


def test_a_difference_is_found_and_counted():
    segment_map = np.zeros((40, 50), np.int32)
    segment_map[:20] = 1
    segment_map[20:] = 2
    one = prediction(segment_map, [3, 5])
    assert compare(photo("a", 40, 50), one, one).is_none
    other = segment_map.copy()
    other[0, 0] = 2
    almost = compare(photo("a", 40, 50), one, prediction(other, [3, 5]))
    assert almost.is_none and almost.pixels == pytest.approx(1 / 2000)
    assert compare(photo("a", 40, 50), one, prediction(segment_map, [3, 4])).segments == 1
    assert compare(photo("a", 40, 50), one, prediction(segment_map % 2, [3])).segments == 1
    other[:2] = 2
    assert not compare(photo("a", 40, 50), one, prediction(other, [3, 5])).is_none


def test_at_most_the_allowed_photos_may_differ_and_there_must_be_segments():
    differences = [Difference("a", 0, 0.0), Difference("b", 1, 0.01), Difference("c", 0, 0.001)]
    assert all(check.ok for check in to_checks(differences, 5, allowed=2))
    strict = to_checks(differences, 5, allowed=1)
    assert {check.file for check in strict if not check.ok} == {"independence", "b", "c"}
    assert not all(check.ok for check in to_checks(differences, 0, allowed=2))


@pytest.mark.slow
def test_with_the_references_random_weights(reference_dir, image_data_dir):
    """A few photos of two sizes, small; all 50 by `parity --areas independence`."""
    checks = check_independence(reference_dir, image_data_dir, short_side=160, max_photos=6)
    assert len(checks) == 2 + 2 * 6
    assert not [dataclasses.asdict(one) for one in checks if not one.ok]
    assert checks[0].max_abs_diff == 0


@pytest.mark.slow
def test_with_trained_weights(reference_dir, image_data_dir):
    """PFCN_TRAINED_COCO: the working directory of a run of configs/coco_memorize.py."""
    run = os.environ.get("PFCN_TRAINED_COCO", "")
    if not run:
        pytest.skip("set PFCN_TRAINED_COCO to the working directory of a run of configs/coco_memorize.py")
    checks = check_independence(reference_dir, image_data_dir, checkpoint=pathlib.Path(run))
    assert not [dataclasses.asdict(one) for one in checks if not one.ok]
