"""The merge against the obvious one: every mask at full size, pasted with NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.panoptic.merge import OUTSIDE, merge, packed_thing_masks, place_things
from pfcn_jax.panoptic.options import PredictOptions
from pfcn_jax.panoptic.resample import linear_taps, taps_matrix
from pfcn_jax.panoptic.upsample import make_upsampler
from pfcn_jax.types import ImageGeometry, Kernels, RegionChannels

NUM_THINGS, CHANNELS, MAP, CANVAS = 7, 5, (16, 24), (100, 90)


def matrix(length: int, in_size: int, out_size: int, in_length: int) -> np.ndarray:
    return np.asarray(taps_matrix(linear_taps(length, in_size, out_size), in_length), np.float64)


def slow_original(p: np.ndarray, size, extent, original) -> np.ndarray:
    """Two resizes one after the other (their matrices face pixel loops in the test of the upsampler)."""
    for axis in (0, 1):
        cells = extent[axis] // 4
        first = matrix(4 * cells, cells, 4 * cells, cells)[: size[axis]]
        p = np.moveaxis(p, axis + 1, 0)[:cells]
        p = np.tensordot(matrix(original[axis], size[axis], original[axis], size[axis]) @ first, p, axes=1)
        p = np.moveaxis(p, 0, axis + 1)
    return p


def slow_merge(things, stuff, feature, size, extent, original, *, merge_score=0.2, overlap=0.5, limit=1):
    """(segment map, [(class, is_thing, score, area)], semantic map, masks of the valid things)."""
    used = np.asarray(feature, np.float64)

    def full(kernels: Kernels) -> np.ndarray:
        weight = np.asarray(kernels.weight, np.float64)[np.asarray(kernels.valid)]
        p = 1 / (1 + np.exp(-np.einsum("me,hwe->mhw", weight, used)))
        return slow_original(p, size, extent, original)

    masks = full(things) > 0.4
    segment_map = np.zeros(original, int)
    rows = []
    for mask, class_id, score in zip(masks, np.asarray(things.class_id), np.asarray(things.score)):
        if score < merge_score or not mask.any() or (mask & (segment_map > 0)).sum() / mask.sum() > overlap:
            continue
        free = mask & (segment_map == 0)
        segment_map[free] = len(rows) + 1
        rows.append((class_id, True, score, free.sum()))
    channels = np.asarray(stuff.class_id)[np.asarray(stuff.valid)]
    semantic = channels[full(stuff).argmax(0)] if len(channels) else np.zeros(original, int)
    for channel in channels[channels > 0]:
        free = (semantic == channel) & (segment_map == 0)
        if free.sum() >= limit:
            segment_map[free] = len(rows) + 1
            rows.append((NUM_THINGS + channel - 1, False, np.asarray(stuff.score)[channel], free.sum()))
    return segment_map, rows, semantic, masks


def blob(rng: np.random.Generator, spread: float) -> np.ndarray:
    """A kernel whose mask is an ellipse of `coordinates`' feature."""
    y, x = rng.random(2)
    ry, rx = spread * (0.5 + rng.random(2))
    top = 6.0
    return np.asarray(
        [
            top * (1 - (y / ry) ** 2 - (x / rx) ** 2),
            2 * top * y / ry**2,
            2 * top * x / rx**2,
            -top / ry**2,
            -top / rx**2,
        ]
    )


def coordinates() -> jax.Array:
    y, x = np.meshgrid(np.linspace(0, 1, MAP[0]), np.linspace(0, 1, MAP[1]), indexing="ij")
    return jnp.asarray(np.stack([np.ones(MAP), y, x, y * y, x * x], axis=-1), jnp.float32)


def scene(seed: int, things: int, stuff: int, slots: int = 12) -> tuple[Kernels, Kernels]:
    rng = np.random.default_rng(seed)
    thing = Kernels(
        weight=jnp.asarray([blob(rng, 0.25) if i < things else np.zeros(5) for i in range(slots)], jnp.float32),
        class_id=jnp.asarray(rng.integers(0, NUM_THINGS, slots), jnp.int32),
        score=jnp.asarray(np.sort(rng.uniform(0.1, 1.0, slots))[::-1] * (np.arange(slots) < things), jnp.float32),
        valid=jnp.arange(slots) < things,
    )
    valid = np.zeros(CHANNELS, bool)
    valid[rng.permutation(CHANNELS)[:stuff]] = True
    ground = Kernels(
        weight=jnp.asarray([blob(rng, 0.6) for _ in range(CHANNELS)], jnp.float32),
        class_id=jnp.arange(CHANNELS, dtype=jnp.int32),
        score=jnp.asarray(rng.random(CHANNELS), jnp.float32),
        valid=jnp.asarray(valid),
    )
    return thing, ground


def run_merge(things, stuff, feature, sizes, options: PredictOptions, *, tile=32, window=12, thing_regions=1):
    upsampler = make_upsampler(ImageGeometry(*sizes), map_shape=MAP, output_shape=CANVAS, tile=tile, window=window)
    regions = RegionChannels(NUM_THINGS, CHANNELS - thing_regions, thing_regions)
    return merge(things, stuff, feature, upsampler, regions, options)


def thresholds(**changed) -> PredictOptions:
    """Options as data, so that one program serves all values."""
    return PredictOptions(**{"min_stuff_area": 30, **changed}).as_data()


def arrays(*values) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(value, jnp.int32) for value in values)


def assert_same(ours, semantic, expected, original) -> None:
    segment_map, rows, expected_semantic, _ = expected
    height, width = original
    np.testing.assert_array_equal(np.asarray(ours.segment_map)[:height, :width], segment_map)
    assert not np.asarray(ours.segment_map)[height:].any() and not np.asarray(ours.segment_map)[:, width:].any()
    np.testing.assert_array_equal(np.asarray(semantic)[:height, :width], expected_semantic)
    assert (np.asarray(semantic)[height:] == OUTSIDE).all() and (np.asarray(semantic)[:, width:] == OUTSIDE).all()
    count = len(rows)
    assert ours.valid.tolist() == [True] * count + [False] * (len(ours.valid) - count)
    table = [np.asarray(column)[:count] for column in (ours.class_id, ours.is_thing, ours.score, ours.area)]
    for column, values in zip(table, zip(*rows)):
        np.testing.assert_allclose(column, values)


CASES = [  # things, stuff, size of the image, original size
    (12, 5, (64, 96), (60, 90)),
    (12, 3, (50, 61), (100, 80)),  # larger than the input
    (6, 4, (64, 90), (20, 31)),  # smaller
    (0, 4, (64, 96), (60, 90)),
    (8, 0, (64, 96), (60, 90)),
    (0, 0, (64, 96), (60, 90)),
    (12, 5, (64, 96), (1, 1)),
    (12, 5, (1, 1), (40, 3)),
]
jitted = jax.jit(run_merge, static_argnames=("tile", "window", "thing_regions"))


@pytest.mark.parametrize("seed", range(3))
def test_merge_is_pasting_one_after_the_other_at_every_size(seed: int) -> None:
    before = jitted._cache_size()
    for number_of_things, number_of_stuff, size, original in CASES:
        extent = tuple(-(-n // 32) * 32 for n in size)
        things, stuff = scene(seed, number_of_things, number_of_stuff)
        ours, semantic = jitted(things, stuff, coordinates(), arrays(size, extent, original), thresholds())
        expected = slow_merge(things, stuff, coordinates(), size, extent, original, limit=30)
        assert_same(ours, semantic, expected, original)
    assert jitted._cache_size() - before <= 1


@pytest.mark.parametrize("window", [12, None])  # None: one tile is the whole canvas, as on a GPU
@pytest.mark.parametrize("overlap", [0.0, 0.2, 1.0])
def test_overlap_limit(overlap: float, window: int | None) -> None:
    sizes = ((64, 96), (64, 96), (60, 90))
    counts = []
    for seed in range(4):
        things, stuff = scene(seed, 12, 5)
        options = thresholds(merge_overlap=overlap)
        ours, semantic = jitted(things, stuff, coordinates(), arrays(*sizes), options, tile=128, window=window)
        if overlap < 1.0:
            assert_same(
                ours, semantic, slow_merge(things, stuff, coordinates(), *sizes, overlap=overlap, limit=30), sizes[2]
            )
        counts.append(int(ours.is_thing.sum()))
        areas = np.bincount(np.asarray(ours.segment_map).ravel(), minlength=len(ours.valid) + 1)[1:]
        np.testing.assert_array_equal(areas, ours.area)
        assert (areas[np.asarray(ours.valid)] > 0).all()  # even if everything may be covered: no empty segment
    assert sum(counts) > 0


def test_stuff_limit_counts_free_pixels_and_is_not_strict() -> None:
    sizes = ((64, 96), (64, 96), (60, 90))
    things, stuff = scene(0, 6, 5)
    _, rows, _, _ = slow_merge(things, stuff, coordinates(), *sizes)
    areas = sorted(int(area) for _, is_thing, _, area in rows if not is_thing)
    assert len(set(areas)) > 1
    for limit, expected in ((areas[1], len(areas) - 1), (areas[1] + 1, len([a for a in areas if a > areas[1]]))):
        ours, _ = jitted(things, stuff, coordinates(), arrays(*sizes), thresholds(min_stuff_area=limit))
        assert int((ours.valid & ~ours.is_thing).sum()) == expected


@functools.partial(jax.jit, static_argnames=("tile", "window"))
def packed_masks(things, sizes, *, tile, window):
    upsampler = make_upsampler(ImageGeometry(*sizes), map_shape=MAP, output_shape=CANVAS, tile=tile, window=window)
    return packed_thing_masks(things, coordinates(), upsampler, threshold=0.4, chunk=4)


@pytest.mark.parametrize("tile, window", [(10, 12), (128, 12), (128, None)])
@pytest.mark.parametrize("size, original", [((50, 61), (70, 81)), ((64, 96), (100, 87)), ((64, 96), (20, 31))])
def test_masks_of_things_before_the_merge(size: tuple, original: tuple, tile: int, window: int | None) -> None:
    extent = tuple(-(-n // 32) * 32 for n in size)
    things, stuff = scene(1, 9, 3)
    _, _, _, masks = slow_merge(things, stuff, coordinates(), size, extent, original)
    packed = packed_masks(things, arrays(size, extent, original), tile=tile, window=window)
    ours = np.unpackbits(np.asarray(packed), axis=-1, count=CANVAS[1]).astype(bool)
    np.testing.assert_array_equal(ours[:9, : original[0], : original[1]], masks)
    assert not ours[9:].any() and not ours[:, original[0] :].any() and not ours[:, :, original[1] :].any()
    assert masks.any(axis=(1, 2)).sum() > 5


def test_placed_slots_name_the_things() -> None:
    things, _ = scene(2, 12, 0)

    @jax.jit
    def run(things, sizes):
        upsampler = make_upsampler(ImageGeometry(*sizes), map_shape=MAP, output_shape=CANVAS)
        return place_things(things, coordinates(), upsampler, PredictOptions(merge_score=0.3))

    placed = run(things, arrays((64, 96), (64, 96), (60, 90)))
    slots = np.asarray(placed.slot)[: int(placed.count)]
    assert (np.diff(slots) > 0).all() and (np.asarray(things.score)[slots] >= 0.3).all()
    assert 0 < len(slots) < 12


def test_a_batch_by_map_and_by_vmap_is_the_single_ones() -> None:
    scenes = [scene(seed, things, stuff) for seed, things, stuff in ((0, 12, 5), (1, 0, 0), (2, 5, 3))]
    sizes = [((64, 96), (64, 96), (60, 90)), ((64, 96), (64, 96), (60, 90)), ((33, 40), (64, 64), (50, 41))]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[(*kernels, *arrays(*s)) for kernels, s in zip(scenes, sizes)])

    def one(row):
        things, stuff, *sizes = row
        return run_merge(things, stuff, coordinates(), sizes, thresholds())

    for batched in (jax.jit(lambda rows: jax.lax.map(one, rows)), jax.jit(jax.vmap(one))):
        ours, semantic = batched(stacked)
        for i, ((things, stuff), (size, extent, original)) in enumerate(zip(scenes, sizes)):
            expected = slow_merge(things, stuff, coordinates(), size, extent, original, limit=30)
            assert_same(jax.tree.map(lambda x, i=i: x[i], ours), semantic[i], expected, original)
