"""Guided positions and pooled stuff kernels against slow NumPy forms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.panoptic.guidance import guide_things, pool_stuff
from pfcn_jax.panoptic.options import TargetOptions
from pfcn_jax.panoptic.targets import Targets, make_targets
from pfcn_jax.types import STRIDES, ImageGeometry, RegionChannels
from tests.panoptic import slow_training as slow
from tests.panoptic.training_scene import EXTENT, NUM_STUFF, NUM_THINGS, SIZE, as_table, on_canvas, scene

CHANNELS = 6
CANVAS = (128, 192)
guide = jax.jit(guide_things, static_argnames=("num_positions", "weighted"))
pool = jax.jit(pool_stuff)


def shapes_of(canvas: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple((-(-canvas[0] // s), -(-canvas[1] // s)) for s in STRIDES)


@functools.partial(jax.jit, static_argnames="max_positives")
def targets_of(segment_map, segments, size, extent, *, max_positives: int) -> Targets:
    return make_targets(
        segment_map,
        segments,
        ImageGeometry(size, extent, size),
        RegionChannels(NUM_THINGS, NUM_STUFF),
        TargetOptions(max_positives=max_positives),
    )


def scene_targets(canvas: tuple[int, int] = EXTENT, max_positives: int = 16) -> Targets:
    segment_map, table = scene()
    segment_map = jnp.asarray(on_canvas(segment_map, *canvas))
    return targets_of(segment_map, as_table(table, 12), jnp.array(SIZE), jnp.array(EXTENT), max_positives=max_positives)


def slow_scene() -> slow.Slow:
    return slow.targets(*scene(), SIZE, EXTENT, num_things=NUM_THINGS, num_stuff=NUM_STUFF)


def maps(channels: int, *, seed: int, canvas: tuple[int, int] = EXTENT, dtype=jnp.float32) -> list[jax.Array]:
    """The same numbers inside the extent whatever the canvas; beyond it large ones that must not be read."""
    rng = np.random.default_rng(seed)
    out = []
    for shape, inner in zip(shapes_of(canvas), shapes_of(EXTENT)):
        values = np.full((*shape, channels), 50.0)
        values[: inner[0], : inner[1]] = rng.normal(size=(*inner, channels))
        out.append(jnp.asarray(values, dtype))
    return out


@pytest.mark.parametrize("canvas", [EXTENT, CANVAS])
@pytest.mark.parametrize("k", [1, 7])
def test_guided_positions(canvas: tuple[int, int], k: int) -> None:
    expected, table = slow_scene(), scene()[1]
    logits, kernels = maps(NUM_THINGS, seed=0, canvas=canvas), maps(CHANNELS, seed=1, canvas=canvas)
    guided = guide(logits, kernels, scene_targets(canvas), num_positions=k, weighted=True)
    short = 0
    for slot, (row, level) in enumerate(expected.pairs):
        class_logits = np.asarray(logits[level])[..., table[row][0]]
        cells = slow.top_positions(class_logits, expected.level_masks[row, level], k)
        score = np.array([slow.sigmoid(class_logits[cell]) for cell in cells] + [0.0] * (k - len(cells)))
        short += len(cells) < k
        np.testing.assert_allclose(guided.score[slot], score, rtol=1e-5)
        np.testing.assert_allclose(guided.weight[slot], score / score.sum(), rtol=1e-5)
        found = np.stack([np.asarray(kernels[level])[cell] for cell in cells])
        np.testing.assert_array_equal(np.asarray(guided.kernel[slot])[: len(cells)], found)
    assert short == 0 or k > 1, "every mask has a cell"
    assert short > 0 or k == 1, "the scene must hold a mask with fewer cells than k"
    unused = np.asarray(guided.weight)[len(expected.pairs) :]
    assert unused.size and not unused.any() and not np.asarray(guided.valid)[len(expected.pairs) :].any()


def test_equal_logits_take_the_first_cells() -> None:
    logits = [jnp.zeros((*shape, NUM_THINGS)) for shape in shapes_of(EXTENT)]
    where = [
        jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij"), axis=-1).astype(jnp.float32)
        for h, w in shapes_of(EXTENT)
    ]
    guided = guide(logits, where, scene_targets(), num_positions=4, weighted=True)
    expected = slow_scene()
    for slot, (row, level) in enumerate(expected.pairs):
        first = np.argwhere(expected.level_masks[row, level] > 0.1)[:4]
        np.testing.assert_array_equal(np.asarray(guided.kernel[slot])[: len(first)], first)
        np.testing.assert_allclose(np.asarray(guided.weight[slot])[: len(first)], 1 / len(first), rtol=1e-6)


def test_plain_weights_are_uniform_over_the_positions_found() -> None:
    logits, kernels = maps(NUM_THINGS, seed=0), maps(CHANNELS, seed=1)
    guided = guide(logits, kernels, scene_targets(), num_positions=7, weighted=False)
    found = np.asarray(guided.score) > 0
    expected = found / np.maximum(found.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(guided.weight, expected, rtol=1e-6)


def test_a_level_with_fewer_cells_than_positions() -> None:
    segment_map = jnp.ones((32, 32), jnp.int32)
    table = as_table([(1, False, (0, 0, 32, 32))], 2)
    size = jnp.array([32, 32])
    targets = targets_of(segment_map, table, size, size, max_positives=4)
    levels = np.asarray(targets.things.level)[np.asarray(targets.things.valid)]
    assert levels.tolist() == [0, 1], "32 pixels: on p3 (4 x 4 cells) and p4 (2 x 2)"
    logits = [jnp.ones((*shape, NUM_THINGS)) for shape in shapes_of((32, 32))]
    kernels = [jnp.ones((*shape, CHANNELS)) for shape in shapes_of((32, 32))]
    guided = guide(logits, kernels, targets, num_positions=30, weighted=True)  # more than all levels together have
    np.testing.assert_array_equal((np.asarray(guided.weight) > 0).sum(axis=1), [16, 4, 0, 0])
    np.testing.assert_allclose(np.asarray(guided.weight).sum(axis=1), [1, 1, 0, 0], rtol=1e-6)


def test_mask_without_a_cell_on_its_level_has_weight_zero_and_finite_gradients() -> None:
    segment_map = np.zeros((64, 64), np.int32)
    segment_map[9, 14] = 1  # a quarter of a 1/4 pixel, a sixteenth of a p3 cell: below 0.1
    size = jnp.array([64, 64])
    table = as_table([(1, False, (14, 9, 15, 10))], 2)
    targets = targets_of(jnp.asarray(segment_map), table, size, size, max_positives=2)
    assert np.asarray(targets.things.valid).tolist() == [True, False]
    logits = [jnp.ones((*shape, NUM_THINGS)) for shape in shapes_of((64, 64))]

    def total(logits):
        guided = guide_things(logits, logits, targets, num_positions=3, weighted=True)
        return jnp.sum(guided.weight**2 + guided.score), guided

    gradient, guided = jax.jit(jax.grad(total, has_aux=True))(logits)
    assert not np.asarray(guided.weight).any()
    assert all(not np.asarray(level).any() for level in gradient)


def test_gradient_reaches_the_center_head_and_the_kernel_map() -> None:
    """d/dlogit of sum c w with w = s / sum(s), against the formula: s (1 - s) (c - sum c w) / sum(s)."""
    logits, kernels = maps(NUM_THINGS, seed=0), maps(CHANNELS, seed=1)
    targets, table, expected = scene_targets(), scene()[1], slow_scene()
    k = 3
    factor = np.random.default_rng(5).normal(size=(16, k))

    def total(logits, kernels):
        guided = guide_things(logits, kernels, targets, num_positions=k, weighted=True)
        return jnp.sum(guided.weight * jnp.asarray(factor, jnp.float32)) + jnp.sum(guided.kernel[:7])

    of_logits, of_kernels = jax.jit(jax.grad(total, argnums=(0, 1)))(logits, kernels)
    reference = [np.zeros(level.shape) for level in logits]
    read = [np.zeros(level.shape[:2]) for level in logits]
    missing = 0
    for slot, (row, level) in enumerate(expected.pairs):
        class_logits = np.asarray(logits[level])[..., table[row][0]]
        cells = slow.top_positions(class_logits, expected.level_masks[row, level], k)
        s = np.array([slow.sigmoid(class_logits[cell]) for cell in cells])
        c = factor[slot, : len(cells)]
        for cell, slope in zip(cells, s * (1 - s) * (c - (c * s).sum() / s.sum()) / s.sum()):
            reference[level][(*cell, table[row][0])] += slope
            read[level][cell] += 1
        missing += k - len(cells)
    for level in range(5):
        np.testing.assert_allclose(of_logits[level], reference[level], atol=1e-6)
        counts = np.asarray(of_kernels[level])
        if level == 0:  # positions that were not found point at the first cell of p3
            read[0][0, 0] += missing
        np.testing.assert_allclose(counts, np.repeat(read[level][..., None], CHANNELS, axis=2), atol=1e-6)


@pytest.mark.parametrize("canvas", [EXTENT, CANVAS])
def test_pooled_stuff(canvas: tuple[int, int]) -> None:
    kernels, expected = maps(CHANNELS, seed=2, canvas=canvas), slow_scene()
    pooled = np.asarray(pool(kernels, scene_targets(canvas)))
    for slot, (channel, level) in enumerate(expected.present):
        region = expected.region[level][..., channel] > 0
        inside = np.asarray(kernels[level])[: region.shape[0], : region.shape[1]]
        np.testing.assert_allclose(pooled[slot], inside[region].sum(axis=0) / region.size, rtol=1e-5, atol=1e-6)
    assert not pooled[len(expected.present) :].any()


def test_half_precision_maps() -> None:
    rounded = maps(CHANNELS, seed=2, dtype=jnp.bfloat16)
    half = pool(rounded, scene_targets())
    assert half.dtype == jnp.float32
    exact = pool([level.astype(jnp.float32) for level in rounded], scene_targets())
    np.testing.assert_allclose(half, exact, rtol=1e-5, atol=1e-6)
    logits, kernels = maps(NUM_THINGS, seed=0, dtype=jnp.bfloat16), maps(CHANNELS, seed=1, dtype=jnp.bfloat16)
    guided = guide(logits, kernels, scene_targets(), num_positions=3, weighted=True)
    assert guided.weight.dtype == jnp.float32 and guided.kernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(guided.weight).sum(axis=1)[:7], 1.0, rtol=1e-5)


def test_vmapped_images_do_not_mix() -> None:
    targets = scene_targets()
    empty = targets_of(
        jnp.zeros(EXTENT, jnp.int32), as_table([], 12), jnp.array(SIZE), jnp.array(EXTENT), max_positives=16
    )
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), empty, targets)
    logits, kernels = maps(NUM_THINGS, seed=0), maps(CHANNELS, seed=1)
    twice = jax.tree.map(lambda x: jnp.stack([x + 1.0, x]), (logits, kernels))
    guided = jax.jit(jax.vmap(functools.partial(guide_things, num_positions=3, weighted=True)))(*twice, both)
    alone = guide(logits, kernels, targets, num_positions=3, weighted=True)
    np.testing.assert_allclose(guided.weight[1], alone.weight, rtol=1e-6)
    np.testing.assert_array_equal(guided.kernel[1], alone.kernel)
    assert not np.asarray(guided.weight[0]).any()
