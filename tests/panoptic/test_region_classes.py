"""A region channel for every class instead of "any thing" (the authors' Cityscapes): targets, merge, counts, heads."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.datasets.scenes import Scenes, class_table
from pfcn_jax.data.pipeline import empty_arrays, to_batch
from pfcn_jax.errors import ConfigError
from pfcn_jax.metrics.miou import MeanIoU
from pfcn_jax.metrics.protocol import Labels, PredictedImage, Task
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.panoptic.options import OutputSpec, TargetOptions
from pfcn_jax.panoptic.targets import make_targets
from pfcn_jax.steps import loss_fn, predict_step
from pfcn_jax.types import RegionChannels, image_geometry
from tests.panoptic import test_merge as merging
from tests.panoptic.training_scene import EXTENT, NUM_STUFF, NUM_THINGS, SIZE, as_table, on_canvas, scene
from tests.support.tiny import TINY


@functools.partial(jax.jit, static_argnames=("num_things", "num_stuff", "thing_regions"))
def targets(segment_map, table, *, num_things: int, num_stuff: int, thing_regions: int):
    return make_targets(
        segment_map,
        table,
        image_geometry(jnp.array(SIZE)),
        RegionChannels(num_things, num_stuff, thing_regions),
        TargetOptions(max_positives=16),
    )


def test_targets_are_those_of_things_taken_for_stuff():
    ids, rows = scene()
    segment_map, table = jnp.asarray(on_canvas(ids, *EXTENT)), as_table(rows, 12)
    ours = targets(segment_map, table, num_things=NUM_THINGS, num_stuff=NUM_STUFF, thing_regions=NUM_THINGS)
    # The same classes, all of them stuff behind one thing class that does not occur: channel c + 1 is class c.
    shifted = dataclasses.replace(table, class_id=table.class_id + 1)
    theirs = targets(segment_map, shifted, num_things=1, num_stuff=NUM_THINGS + NUM_STUFF, thing_regions=1)
    usual = targets(segment_map, table, num_things=NUM_THINGS, num_stuff=NUM_STUFF, thing_regions=1)
    for own, other, default in zip(ours.region_score, theirs.region_score, usual.region_score):
        assert own.shape[-1] == NUM_THINGS + NUM_STUFF
        np.testing.assert_array_equal(own, other[..., 1:])
        np.testing.assert_array_equal(own[..., NUM_THINGS:], default[..., 1:])
    assert all(np.asarray(ours.region_score[0][..., c]).any() for c in range(NUM_THINGS + NUM_STUFF))
    present = sorted(
        (int(s) - 1, int(v)) for s, v, ok in zip(theirs.stuff.class_id, theirs.stuff.level, theirs.stuff.valid) if ok
    )
    own = sorted((int(s), int(v)) for s, v, ok in zip(ours.stuff.class_id, ours.stuff.level, ours.stuff.valid) if ok)
    assert own == present
    for own, default in zip(ours.center_heatmap, usual.center_heatmap):  # centers know nothing of it
        np.testing.assert_array_equal(own, default)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_merge_leaves_pixels_of_thing_regions_void(seed):
    things, stuff = merging.scene(seed, 6, merging.CHANNELS)
    arguments = merging.coordinates(), merging.arrays((64, 90), (64, 96), (60, 90))
    run = functools.partial(merging.jitted, things, stuff, *arguments, merging.thresholds(min_stuff_area=20))
    regions = 3
    panoptic, semantic = run(thing_regions=regions)
    usual, semantic_usual = run()
    np.testing.assert_array_equal(semantic, semantic_usual)
    placed = int(np.asarray(usual.is_thing).sum())
    usual_map = np.asarray(usual.segment_map)
    on_things = (usual_map > 0) & (usual_map <= placed)
    expected = np.where(on_things, usual_map, 0)
    rows = []
    for channel in range(regions, merging.CHANNELS):
        free = (np.asarray(semantic) == channel) & ~on_things
        if free.sum() >= 20:
            rows.append((merging.NUM_THINGS + channel - regions, int(free.sum())))
            expected[free] = placed + len(rows)
    np.testing.assert_array_equal(panoptic.segment_map, expected)
    found = np.flatnonzero(np.asarray(panoptic.valid) & ~np.asarray(panoptic.is_thing))
    assert list(zip(panoptic.class_id[found].tolist(), panoptic.area[found].tolist())) == rows and rows


def test_heads_losses_and_prediction_have_a_channel_for_every_class():
    classes = class_table()
    config = from_command_line([*TINY, "--config.model.region_classes=all"])
    model = build_model(config.model, *classes.counts)
    variables = abstract_variables(model)
    assert model.regions.things == classes.num_things
    assert variables["params"]["position_head"]["regions"]["kernel"].shape[-1] == len(classes)
    batch = to_batch(empty_arrays(2, (64, 64), 8))
    total, _ = jax.eval_shape(
        functools.partial(loss_fn, model=model, config=config), variables["params"], variables["batch_stats"], batch
    )
    assert total.shape == ()
    step = functools.partial(predict_step, model=model, config=config, output=OutputSpec((64, 64)))
    predicted = jax.eval_shape(step, variables, batch.image, batch.size, batch.original_size)
    assert predicted.panoptic.valid.shape == (2, config.inference.max_things + classes.num_stuff)
    with pytest.raises(ConfigError, match=r"region_classes: .*stuff, all"):
        from_command_line([*TINY, "--config.model.region_classes=things"])


@pytest.mark.parametrize("regions", [1, 5])
def test_semantic_counts_follow_the_region_channels(regions):
    source = Scenes("val", size=(64, 64), length=1)
    example, classes = source[0], source.classes
    miou = MeanIoU.zeros(Task(classes, regions))
    class_of_pixel = np.concatenate([[-1], example.class_id])[example.segment_map]
    thing = class_of_pixel < classes.num_things
    channel = np.where(thing, 0 if regions == 1 else class_of_pixel, class_of_pixel - classes.num_things + regions)

    miou.add(
        Labels(0, example.segment_map, example.class_id, example.is_crowd),
        PredictedImage(
            segment_map=example.segment_map,
            class_id=example.class_id,
            score=np.ones(len(example.class_id)),
            semantic_map=np.where(example.segment_map > 0, channel, 0),
        ),
    )
    confusion = miou.counts.confusion
    assert confusion.shape == (regions + classes.num_stuff, regions + classes.num_stuff + 1)
    assert np.trace(confusion) == confusion.sum() == (example.segment_map > 0).sum()
    if regions == classes.num_things:
        pixels = [int((class_of_pixel == c).sum()) for c in range(len(classes))]
        assert np.diagonal(confusion).tolist() == pixels
