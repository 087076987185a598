"""The composed prediction: canvas independence, empty images, lowering for every platform."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from pfcn_jax.panoptic.fusion import fuse_stuff, fuse_things
from pfcn_jax.panoptic.kernels import pick_things, pool_stuff
from pfcn_jax.panoptic.merge import merge
from pfcn_jax.panoptic.options import OutputSpec, PredictOptions
from pfcn_jax.panoptic.predict import Embeddings, paste, predict_image, propose
from pfcn_jax.panoptic.rescore import rescore
from pfcn_jax.panoptic.upsample import make_upsampler
from pfcn_jax.types import STRIDES, DenseOutputs, ImageGeometry, RegionChannels

THINGS, CHANNELS, KERNEL, EMBED = 3, 4, 6, 5
OPTIONS = PredictOptions(candidates=5, center_threshold=0.3, max_things=8, min_stuff_area=20, merge_overlap=0.9)
OUTPUT = OutputSpec((80, 90), tile=32, window=16)
EVERYTHING = dataclasses.replace(OUTPUT, thing_masks=True, semantic_map=True)
REGIONS = RegionChannels(THINGS, CHANNELS - 1)


def embedding(seed: int):
    """An embedding with a bias, as the model's."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(KERNEL, EMBED)), rng.normal(size=EMBED)

    def embed(kernels: jax.Array) -> jax.Array:
        return kernels @ jnp.asarray(weight, jnp.float32) + jnp.asarray(bias, jnp.float32)[None, :]

    return embed


def dense(extent: tuple[int, int], canvas: tuple[int, int], *, center_bias: float = 0.0) -> DenseOutputs:
    """Random outputs in the extent, garbage beyond."""
    rng = np.random.default_rng(0)

    def level(stride: int, channels: int, scale: float = 1.0, bias: float = 0.0) -> jax.Array:
        rows, columns = (-(-n // stride) for n in extent)
        full = np.full((-(-canvas[0] // stride), -(-canvas[1] // stride), channels), 7.0, np.float32)
        full[:rows, :columns] = scale * rng.normal(size=(rows, columns, channels)) + bias
        return jnp.asarray(full)

    return DenseOutputs(
        center_logits=tuple(level(s, THINGS, 1.0, center_bias) for s in STRIDES),
        region_logits=tuple(level(s, CHANNELS) for s in STRIDES),
        kernel_map=tuple(level(s, KERNEL) for s in STRIDES),
        feature=level(4, EMBED),
    )


def embeddings() -> Embeddings:
    return Embeddings(things=embedding(1), stuff=embedding(2))


def predict(outputs, size, extent, original, views=(), output=OUTPUT, **options):
    geometry = ImageGeometry(size, extent, original)
    options = dataclasses.replace(OPTIONS, **options)
    return predict_image(outputs, embeddings(), geometry, options, REGIONS, output, views)


def arrays(*values) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(value, jnp.int32) for value in values)


SIZES = arrays((50, 61), (64, 64), (70, 81))


def test_result_does_not_depend_on_the_canvas_or_on_how_the_work_is_cut() -> None:
    run = functools.partial(predict, output=EVERYTHING)
    lone = jax.jit(run)(dense((64, 64), (64, 64)), *SIZES)
    assert int(lone.panoptic.is_thing.sum()) > 1 and int((lone.panoptic.valid & ~lone.panoptic.is_thing).sum()) > 0
    cut = functools.partial(predict, output=dataclasses.replace(EVERYTHING, tile=128, window=None, chunk=3))
    for other in (jax.jit(run)(dense((64, 64), (96, 128)), *SIZES), jax.jit(cut)(dense((64, 64), (64, 64)), *SIZES)):
        np.testing.assert_array_equal(other.panoptic.segment_map, lone.panoptic.segment_map)
        np.testing.assert_array_equal(other.semantic_map, lone.semantic_map)
        np.testing.assert_array_equal(other.thing_masks, lone.thing_masks)
        np.testing.assert_array_equal(other.panoptic.class_id, lone.panoptic.class_id)
        np.testing.assert_allclose(other.panoptic.score, lone.panoptic.score, rtol=1e-5)


def test_every_kernel_and_segment_says_what_it_was_made_of() -> None:
    outputs, geometry = dense((64, 64), (96, 128)), ImageGeometry(*SIZES)

    @jax.jit
    def run(outputs, geometry):
        proposed = propose(outputs, embeddings(), geometry, OPTIONS)
        return proposed, paste(proposed, geometry, OPTIONS, REGIONS, OUTPUT)

    proposed, prediction = run(outputs, geometry)
    picked, fused, things = proposed.things.picked, proposed.things.fused, prediction.things
    for slot in np.flatnonzero(picked.valid):
        level, (row, column) = int(picked.source.level[slot]), picked.source.cell[slot].tolist()
        kernel = outputs.kernel_map[level][row, column][None]
        np.testing.assert_allclose(picked.weight[slot], embedding(1)(kernel)[0], rtol=1e-5, atol=1e-6)
    for slot in np.flatnonzero(fused.valid):
        members = (proposed.things.owner == fused.head[slot]) & picked.valid
        np.testing.assert_allclose(fused.weight[slot], picked.weight[members].mean(axis=0), rtol=1e-4, atol=1e-5)
        assert fused.class_id[slot] == picked.class_id[fused.head[slot]]
    of_head = dict(zip(fused.head[fused.valid].tolist(), fused.weight[fused.valid]))
    for slot in np.flatnonzero(things.valid):
        np.testing.assert_array_equal(things.weight[slot], of_head[int(things.head[slot])])
    panoptic = prediction.panoptic
    rows = np.flatnonzero(panoptic.valid & panoptic.is_thing)
    assert len(rows) > 1
    np.testing.assert_array_equal(panoptic.score[rows], things.score[panoptic.kernel[rows]])
    rows = np.flatnonzero(panoptic.valid & ~panoptic.is_thing)
    np.testing.assert_array_equal(panoptic.class_id[rows], REGIONS.stuff_class(panoptic.kernel[rows]))
    np.testing.assert_array_equal(panoptic.score[rows], proposed.stuff.score[panoptic.kernel[rows]])
    pooled = proposed.pooled
    for slot in np.flatnonzero(pooled.valid):
        assert slot == int(pooled.source.level[slot]) * CHANNELS + int(pooled.class_id[slot])


@pytest.mark.slow
def test_composition_is_its_stages_in_the_papers_order() -> None:
    outputs = dense((64, 64), (64, 64))
    size, extent, original = SIZES
    ours = predict(outputs, size, extent, original)
    things = pick_things(outputs.center_logits, outputs.kernel_map, extent, candidates=5, threshold=0.3)
    things = fuse_things(things.replace(weight=embedding(1)(things.weight)), threshold=0.9, class_aware=True).fused
    things = rescore(things, outputs.feature, extent, OPTIONS)
    stuff = pool_stuff(outputs.region_logits, outputs.kernel_map, extent, threshold=0.05)
    stuff = fuse_stuff(stuff.replace(weight=embedding(2)(stuff.weight)), channels=CHANNELS)
    upsampler = make_upsampler(ImageGeometry(*SIZES), map_shape=(16, 16), output_shape=(80, 90))
    expected, _ = merge(things, stuff, outputs.feature, upsampler, REGIONS, OPTIONS)
    np.testing.assert_array_equal(ours.panoptic.segment_map, expected.segment_map)
    np.testing.assert_array_equal(ours.panoptic.class_id, expected.class_id)
    np.testing.assert_array_equal(ours.things.score, things.score)
    assert ours.thing_masks is None and ours.semantic_map is None


@pytest.mark.parametrize(
    "options", [{"center_threshold": 2.0}, {"stuff_threshold": 2.0}, {"center_threshold": 2.0, "stuff_threshold": 2.0}]
)
def test_an_image_without_things_or_without_stuff_is_a_result(options: dict[str, float]) -> None:
    ours = jax.jit(functools.partial(predict, output=EVERYTHING, **options))(dense((64, 64), (64, 64)), *SIZES)
    panoptic = ours.panoptic
    if "center_threshold" in options:
        assert not panoptic.is_thing.any() and not ours.things.valid.any()
    if "stuff_threshold" in options:
        assert not (panoptic.valid & ~panoptic.is_thing).any()
        assert set(np.unique(ours.semantic_map)) == {-1, 0}
    if len(options) == 2:
        assert not panoptic.segment_map.any() and not panoptic.valid.any()
    else:
        assert panoptic.valid.any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours))


def test_nms_and_no_fusion_are_options() -> None:
    run = jax.jit(predict, static_argnames=("fusion_threshold", "mask_nms", "mask_nms_threshold"))
    outputs = dense((64, 64), (64, 64))
    counts = [
        int(run(outputs, *SIZES, **options).things.valid.sum())
        for options in (
            {"fusion_threshold": 2.0},
            {"fusion_threshold": 2.0, "mask_nms": True, "mask_nms_threshold": 0.2},
            {"fusion_threshold": 0.2},
        )
    ]
    assert counts[0] == 8 and counts[1] < 8 and counts[2] < 8


def test_lowers_for_every_platform() -> None:
    def batch(outputs, sizes):
        return jax.lax.map(lambda row: predict(row[0], *row[1], output=EVERYTHING, mask_nms=True), (outputs, sizes))

    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), (dense((64, 64), (64, 64)), SIZES))
    exported = export.export(jax.jit(batch), platforms=("cpu", "cuda", "tpu"))(*stacked)
    assert exported.platforms == ("cpu", "cuda", "tpu")
