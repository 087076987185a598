"""The scenes that post-processing is timed on hold what they say."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from pfcn_jax.panoptic.options import OutputSpec, PredictOptions
from pfcn_jax.studies.benchmark.measure import Yardstick
from pfcn_jax.studies.benchmark.scenes_post import make_scene, post_program, scene_rows
from pfcn_jax.types import RegionChannels


@pytest.mark.parametrize(("instances", "canvas"), [(3, (128, 192)), (24, (192, 256))])
def test_a_scene_has_as_many_things_and_bands_as_asked_for(instances, canvas):
    original = (100, 150)
    options, output = PredictOptions(max_things=30, min_stuff_area=16), OutputSpec((128, 160), thing_masks=True)
    run = jax.jit(post_program(options, output, encoder_channels=16))
    scene = make_scene(canvas, instances, original, classes=RegionChannels(40, 7), stuff=3, channels=(24, 16))
    result = run(*scene)
    assert int(result.things.valid.sum()) == instances
    assert int(result.panoptic.is_thing.sum()) == instances
    stuff = np.asarray(result.panoptic.valid & ~result.panoptic.is_thing)
    assert np.asarray(result.panoptic.class_id)[stuff].tolist() == [40, 41, 42][: stuff.sum()] and stuff.sum() >= 1
    masks = np.unpackbits(np.asarray(result.thing_masks), axis=-1)
    share = masks.any(axis=0).sum() / (original[0] * original[1])
    assert 0.3 < share <= 1.0


def test_rows_say_what_was_there():
    cases = (((128, 192), 3, (100, 150), PredictOptions(min_stuff_area=16, mask_nms=True), False),)
    (row,) = scene_rows(Yardstick(), seconds=0.0, cases=cases)
    assert (row["things"], row["instances"], row["output"], row["with"]) == (3, 3, "100x150", "mask NMS")
    assert row["seconds"] > 0 and row["temporary_mb"] > 0 and row["matmul_gflops"] > 0 and row["segments"] > 3
