"""Targets against slow NumPy forms; every edge of the labels; independence of the canvas."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.panoptic.labels import DenseMasks, LevelCells, from_id_map, level_masks, quarter_taps
from pfcn_jax.panoptic.options import TargetOptions
from pfcn_jax.panoptic.targets import (
    Slots,
    Targets,
    assign_levels,
    build_targets,
    center_cells,
    gaussian_radius,
    make_targets,
    mass_centers,
)
from pfcn_jax.types import STRIDES, ImageGeometry, RegionChannels, SegmentTable
from tests.panoptic import slow_training as slow
from tests.panoptic.training_scene import EXTENT, NUM_STUFF, NUM_THINGS, SIZE, as_table, on_canvas, scene

CANVAS = (128, 192)  # larger than the extent on both axes


def shapes_of(canvas: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple((-(-canvas[0] // s), -(-canvas[1] // s)) for s in STRIDES)


@functools.partial(jax.jit, static_argnames=("max_positives", "center"))
def ours(segment_map, segments, size, extent, *, max_positives=16, center="mass") -> Targets:
    return make_targets(
        segment_map,
        segments,
        ImageGeometry(size, extent, size),
        RegionChannels(NUM_THINGS, NUM_STUFF),
        TargetOptions(max_positives=max_positives, center=center),
    )


take = jax.jit(lambda masks, rows: masks.take(rows))


def of_scene(canvas: tuple[int, int] = EXTENT, slots: int = 12, **options) -> Targets:
    segment_map, table = scene()
    segment_map = jnp.asarray(on_canvas(segment_map, *canvas))
    return ours(segment_map, as_table(table, slots), jnp.array(SIZE), jnp.array(EXTENT), **options)


def pairs(slots) -> list[tuple[int, int]]:
    return [(int(r), int(level)) for r, level, v in zip(slots.row, slots.level, slots.valid) if v]


def assert_same(targets: Targets, expected: slow.Slow) -> None:
    for level, (heatmap, region) in enumerate(zip(expected.heatmap, expected.region)):
        height, width = heatmap.shape[:2]
        for value, reference in ((targets.center_heatmap, heatmap), (targets.region_score, region)):
            value = np.asarray(value[level])
            np.testing.assert_allclose(value[:height, :width], reference, atol=2e-5)
            assert not value[height:].any() and not value[:, width:].any(), "something outside the extent"
    assert pairs(targets.things) == expected.pairs
    assert pairs(targets.stuff) == expected.present
    assert int(targets.thing_count) == len(expected.pairs)
    assert int(targets.dropped) == 0


@pytest.mark.parametrize("canvas", [EXTENT, CANVAS])
@pytest.mark.parametrize("center", ["mass", "box"])
def test_targets_of_a_scene(canvas: tuple[int, int], center: str) -> None:
    segment_map, table = scene()
    expected = slow.targets(segment_map, table, SIZE, EXTENT, num_things=NUM_THINGS, num_stuff=NUM_STUFF, center=center)
    targets = of_scene(canvas, center=center)
    assert_same(targets, expected)
    height, width = EXTENT[0] // 4, EXTENT[1] // 4
    rows = jnp.asarray([row for row, _ in expected.pairs])
    masks = np.asarray(take(targets.instance_masks, rows))
    np.testing.assert_allclose(
        masks[:, :height, :width], np.stack([expected.masks[int(row)] for row in rows]), atol=2e-5
    )
    assert not masks[:, height:].any() and not masks[:, :, width:].any()
    regions = np.asarray(take(targets.region_masks, jnp.arange(1 + NUM_STUFF)))
    np.testing.assert_allclose(regions[:, :height, :width], np.stack(expected.region_masks), atol=2e-5)
    cells = LevelCells(shapes_of(canvas))
    for row, level in expected.pairs:
        mask = np.asarray(take(targets.cell_masks, jnp.array([row])))[0]
        mask = mask[cells.level == level].reshape(cells.level_shapes[level])
        reference = expected.level_masks[row, level]
        np.testing.assert_allclose(mask[: reference.shape[0], : reference.shape[1]], reference, atol=2e-5)
        assert not mask[reference.shape[0] :].any() and not mask[:, reference.shape[1] :].any()


ODD_EXTENTS = [(160, 224), (352, 96), (96, 416), (128, 256)]


@pytest.mark.parametrize("extent", ODD_EXTENTS)
def test_targets_where_strides_do_not_divide_the_image(extent: tuple[int, int]) -> None:
    """Multiples of 32 alone, large objects at the far border: every level, p6 and p7 with their own scale."""
    canvas = tuple(max(sides) for sides in zip(*ODD_EXTENTS))  # one program for all of them
    height, width = extent
    rng = np.random.default_rng(height)
    segment_map, table = np.zeros(extent, np.int32), []
    for side in (0.15, 0.3, 0.5, 0.7, 0.95, 0.98):
        bottom, right = height - int(rng.integers(0, 5)), width - int(rng.integers(0, 5))
        box = (right - max(int(width * side), 8), bottom - max(int(height * side), 8), right, bottom)
        table.insert(0, (int(rng.integers(NUM_THINGS)), False, box))
    for row, (_, _, (x0, y0, x1, y1)) in enumerate(table):  # the largest first: each keeps a rim
        segment_map[y0:y1, x0:x1] = row + 1
    expected = slow.targets(segment_map, table, extent, extent, num_things=NUM_THINGS, num_stuff=NUM_STUFF)
    assert {level for _, level in expected.pairs} >= {0, 1, 2, 3}
    size = jnp.array(extent)
    assert_same(ours(jnp.asarray(on_canvas(segment_map, *canvas)), as_table(table, 12), size, size), expected)


@pytest.mark.parametrize("height", [800, 1184, 480])
def test_center_cells_follow_the_ratio_of_the_sizes(height: int) -> None:
    """800 rows: p6 has 13 and p7 has 7 rows, so a center moves by 13/200 and 7/200, not by 1/16 and 1/32."""
    extent, cells = (height, 1344), LevelCells(shapes_of((height, 1344)))
    run = jax.jit(lambda position, slots: center_cells(position, slots, jnp.array(extent), cells))
    position = np.stack([np.arange(height / 4), np.linspace(0, 335, height // 4)], axis=1).astype(np.float32) + 0.3
    for level, (rows, columns) in enumerate(cells.level_shapes):
        slots = Slots(
            row=jnp.arange(len(position)),
            class_id=jnp.zeros((len(position),), jnp.int32),
            level=jnp.full((len(position),), level, jnp.int32),
            valid=jnp.ones((len(position),), bool),
        )
        cell = np.asarray(run(jnp.asarray(position), slots))
        scale = np.array([rows / (height / 4), columns / 336])
        np.testing.assert_array_equal(cell, np.floor(position.astype(np.float64) * scale))


def test_vanished_instance_is_no_positive_and_draws_nothing() -> None:
    targets = of_scene()
    rows = [row for row, _ in pairs(targets.things)]
    assert 5 not in rows, "the one-pixel thing lies between the pixels read at 1/4 resolution"
    assert not np.asarray(targets.center_heatmap[0])[0, 0].any(), "a false Gaussian in the corner"


def test_one_pixel_instance_that_is_read_is_positive_on_p3() -> None:
    segment_map = np.zeros((64, 64), np.int32)
    segment_map[9, 14] = 1  # rows 1, 2 (mod 4) and columns likewise are read at scale 4
    table = as_table([(1, False, (14, 9, 15, 10))], 12)
    size = jnp.array([64, 64])
    targets = ours(jnp.asarray(segment_map), table, size, size)
    assert pairs(targets.things) == [(0, 0)]
    heatmap = np.asarray(targets.center_heatmap[0])
    assert heatmap[1, 1, 1] == 1.0 and heatmap.sum() == 1.0
    assert float(targets.instance_masks.take(jnp.array([0])).sum()) == 0.25


def test_crowd_is_any_thing_in_the_regions_and_makes_no_instance() -> None:
    segment_map = jnp.ones((64, 64), jnp.int32)
    size = jnp.array([64, 64])
    targets = ours(segment_map, as_table([(2, True, (0, 0, 64, 64))], 12), size, size)
    assert pairs(targets.things) == [] and int(targets.thing_count) == 0
    assert pairs(targets.stuff) == [(0, level) for level in range(5)]
    assert all(np.asarray(score)[..., 0].min() == 1.0 for score in targets.region_score)
    assert not any(np.asarray(heatmap).any() for heatmap in targets.center_heatmap)


@pytest.mark.parametrize("table", [[], [(0, False, (0, 0, 9, 9))]])
def test_all_void(table) -> None:
    size = jnp.array([64, 64])
    targets = ours(jnp.zeros((64, 64), jnp.int32), as_table(table, 12), size, size)
    assert not np.asarray(targets.things.valid).any() and not np.asarray(targets.stuff.valid).any()
    assert int(targets.thing_count) == 0 and int(targets.dropped) == 0
    assert not any(np.asarray(m).any() for m in (*targets.center_heatmap, *targets.region_score))


def test_table_without_rows() -> None:
    empty = SegmentTable(
        class_id=jnp.zeros((0,), jnp.int32),
        is_thing=jnp.zeros((0,), bool),
        is_crowd=jnp.zeros((0,), bool),
        box=jnp.zeros((0, 4), jnp.float32),
        valid=jnp.zeros((0,), bool),
    )
    size = jnp.array([64, 64])
    targets = ours(jnp.zeros((64, 64), jnp.int32), empty, size, size)
    assert int(targets.thing_count) == 0 and not np.asarray(targets.stuff.valid).any()


def test_more_instances_than_slots_are_counted_and_still_drawn() -> None:
    everything, few = of_scene(), of_scene(max_positives=3)
    total = int(everything.thing_count)
    assert int(few.thing_count) == total and int(few.dropped) == total - 3
    assert pairs(few.things) == pairs(everything.things)[:3]
    for one, other in zip(few.center_heatmap, everything.center_heatmap):
        np.testing.assert_array_equal(one, other)


def test_result_does_not_depend_on_canvas_batch_mates_or_free_slots() -> None:
    reference = of_scene()
    empty = as_table([], 12)
    segment_map, table = jnp.asarray(scene()[0]), as_table(scene()[1], 12)
    batch = jax.tree.map(lambda *rows: jnp.stack(rows), (segment_map, table), (jnp.zeros_like(segment_map), empty))
    sizes = jnp.array([SIZE, SIZE])
    many = jax.vmap(ours)(*batch, sizes, jnp.array([EXTENT, EXTENT]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-6), many, reference)
    assert int(many.thing_count[1]) == 0

    wide = of_scene(CANVAS, slots=20)
    for level in range(5):
        height, width = shapes_of(EXTENT)[level]
        for name in ("center_heatmap", "region_score"):
            a, b = getattr(wide, name)[level][:height, :width], getattr(reference, name)[level]
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert pairs(wide.things) == pairs(reference.things)


def test_dense_masks_answer_as_the_id_map_does() -> None:
    segment_map, table = scene()
    cells = LevelCells(shapes_of(EXTENT))
    wanted = jnp.array([3, 0, 8, 50])

    @jax.jit
    def at_both_resolutions(masks):
        quarter = masks.resample(*quarter_taps(jnp.array(SIZE), EXTENT))
        return quarter.take(wanted), level_masks(quarter, jnp.array(EXTENT), cells).take(wanted)

    masks = np.stack([segment_map == row + 1 for row in range(len(table))]).astype(np.float32)
    dense = at_both_resolutions(DenseMasks(values=jnp.asarray(masks)))
    sparse = at_both_resolutions(from_id_map(jnp.asarray(segment_map)))
    for one, other in zip(dense, sparse):
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert np.asarray(one)[:3].any(axis=tuple(range(1, one.ndim))).all() and not np.asarray(one)[3].any()


def test_overlapping_masks_keep_their_own_centers() -> None:
    masks = np.zeros((2, 16, 16), np.float32)
    masks[0, 2:9, 2:9] = 1.0
    masks[1, 4:13, 4:13] = 0.25  # soft pixels count fully in the center
    masks[1, 4, 4] = 1.0
    center, visible = mass_centers(DenseMasks(values=jnp.asarray(masks)), jnp.array([True, True]))
    np.testing.assert_array_equal(center, [[5.0, 5.0], [8.0, 8.0]])
    assert np.asarray(visible).all()


def test_center_clamps_inside_the_level() -> None:
    # A box center at the very end of the image: index hl would be one past the end.
    masks = DenseMasks(values=jnp.ones((1, 16, 16), jnp.float32))
    build = functools.partial(
        build_targets,
        masks,
        from_id_map(jnp.zeros((64, 64), jnp.int32)).resample(*quarter_taps(jnp.array([64, 64]), (64, 64))),
        as_table([(0, False, (60, 60, 68, 68))], 1),
        jnp.array([64, 64]),
        LevelCells.of_canvas((64, 64)),
        RegionChannels(1, 1),
        TargetOptions(max_positives=2, center="box"),
    )
    targets = jax.jit(build)()
    assert float(targets.center_heatmap[0][7, 7, 0]) == 1.0


def test_levels_are_inclusive_and_overlap() -> None:
    sides = [0.5, 1, 32, 64, 64.5, 128, 129, 2048, 2049]
    box = jnp.array([[3.0, 5.0, 3.0 + side, 5.0 + side] for side in sides])
    expected = [[low <= side <= high for low, high in TargetOptions().level_ranges] for side in sides]
    np.testing.assert_array_equal(assign_levels(box, TargetOptions().level_ranges), expected)
    assert not np.asarray(assign_levels(jnp.array([[5.0, 5.0, 1.0, 1.0]]), TargetOptions().level_ranges)).any()


def test_radius_has_the_integer_part_of_float64() -> None:
    sides = np.arange(1, 700, 3)
    height, width = (values.reshape(-1) for values in np.meshgrid(sides, sides[::-1]))
    size = np.concatenate([np.stack([height, width], axis=-1)[:: 7 * stride] / stride for stride in STRIDES])
    expected = np.array([slow.radius(*pair) for pair in size])
    value = np.asarray(jax.jit(functools.partial(gaussian_radius, min_overlap=0.7))(jnp.asarray(size, jnp.float32)))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_array_equal(np.floor(value), np.floor(expected))
    assert np.isfinite(np.asarray(gaussian_radius(jnp.zeros((1, 2)), min_overlap=0.7))).all()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="level shapes"):
        LevelCells(((4, 4),))
