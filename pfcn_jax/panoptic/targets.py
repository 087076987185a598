"""Targets of the heads: object centers, stuff regions, and the list of positives (paper section 3.2).

Every function is for one image. `make_targets` starts from the id map and the table of segments; `build_targets` is
the same from masks at 1/4 resolution, whatever they come from.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Integer

from pfcn_jax.panoptic.labels import (
    IdMapMasks,
    LevelCells,
    Masks,
    from_id_map,
    level_masks,
    quarter_taps,
    region_id_map,
)
from pfcn_jax.panoptic.loops import trip_count
from pfcn_jax.panoptic.options import TargetOptions
from pfcn_jax.types import FEATURE_STRIDE, ImageGeometry, RegionChannels, SegmentTable

REGION_THRESHOLD = 0.5
_ROWS_AT_ONCE = 8  # instances per step of the mass-center loop


@struct.dataclass
class Slots:
    """A compact list: the slots in use come first. Unused slots have row and class out of range or 0, valid False."""

    row: Int[Array, " P"]  # things: row of the table; stuff: the region channel
    class_id: Int[Array, " P"]  # things: thing class; stuff: the region channel
    level: Int[Array, " P"]
    valid: Bool[Array, " P"]


@struct.dataclass
class Targets:
    """Targets of one image (a leading batch axis after vmap)."""

    center_heatmap: tuple[Float[Array, "_hl _wl T"], ...]
    region_score: tuple[Float[Array, "_hl _wl C"], ...]  # 0, or soft in [0.5, 1]
    things: Slots  # the (instance, level) pairs that the dice is computed for
    thing_count: Int[Array, ""]  # all (instance, level) pairs: those in `things` and those dropped
    dropped: Int[Array, ""]  # pairs that found no slot: in the heatmap and in thing_count, without a kernel
    stuff: Slots  # the (region channel, level) pairs present
    instance_masks: Masks  # at 1/4 resolution, [h, w]
    region_masks: IdMapMasks  # at 1/4 resolution, [h, w]; row c is region channel c
    cell_masks: Masks  # instances at level resolution, over the A cells
    padded_size: Int[Array, " 2"]


def make_targets(
    segment_map: Integer[Array, "H W"],
    segments: SegmentTable,
    geometry: ImageGeometry,
    regions: RegionChannels,
    options: TargetOptions,
) -> Targets:
    """Targets of one image from its id map.

    A crowd makes no instance; its pixels count as "any thing" in the regions, as in the original implementation.

    Args:
      segment_map: 0 = void, i = row i - 1 of `segments`; 0 outside `geometry.size`.
      segments: table without batch axis, S rows.
    """
    canvas = segment_map.shape
    rows, columns = quarter_taps(geometry.size, canvas)
    return build_targets(
        from_id_map(segment_map).resample(rows, columns),
        from_id_map(region_id_map(segment_map, segments, regions)).resample(rows, columns),
        segments,
        geometry.padded_size,
        LevelCells.of_canvas(canvas),
        regions,
        options,
    )


def build_targets(
    instance_masks: Masks,
    region_masks: IdMapMasks,
    segments: SegmentTable,
    padded_size: Int[Array, " 2"],
    cells: LevelCells,
    regions: RegionChannels,
    options: TargetOptions,
) -> Targets:
    """Targets from masks at 1/4 resolution (row i of `instance_masks` is row i of `segments`)."""
    class_id, box = segments.class_id, segments.box
    is_instance = segments.valid & segments.is_thing & ~segments.is_crowd
    if class_id.shape[0] == 0:  # an empty table: one row that is no instance spares every loop the special case
        class_id, box, is_instance = jnp.zeros((1,), jnp.int32), jnp.zeros((1, 4), jnp.float32), jnp.zeros((1,), bool)
    mass_center, visible = mass_centers(instance_masks, is_instance)
    box_center = (box[:, :2] + box[:, 2:])[:, ::-1] / (2.0 * FEATURE_STRIDE)
    position = mass_center if options.center == "mass" else box_center
    # A mask that vanishes at 1/4 resolution has nothing to learn from: no positive. (The original implementation
    # kept it, with a false Gaussian in the corner, because the mean of no pixels is NaN.)
    assigned = assign_levels(box, options.level_ranges) & (is_instance & visible)[:, None]
    pairs = _list_true(assigned, assigned.size)
    pairs = dataclasses.replace(pairs, class_id=jnp.take(class_id, pairs.row, axis=0, mode="fill", fill_value=0))

    heatmap = draw_centers(
        position, box, pairs, padded_size, num_things=regions.num_things, cells=cells, min_overlap=options.min_overlap
    )
    score = region_scores(region_masks, padded_size, num_regions=regions.count, cells=cells)
    present = jnp.stack([jnp.any(part > 0.0, axis=(0, 1)) for part in cells.split(score)])  # [L, C]
    stuff = _list_true(present.T, present.size)
    kept = min(options.max_positives, assigned.size)
    count = jnp.sum(assigned, dtype=jnp.int32)
    return Targets(
        center_heatmap=cells.split(heatmap),
        region_score=cells.split(score),
        things=jax.tree.map(lambda values: values[:kept], pairs),
        thing_count=count,
        dropped=jnp.maximum(count - kept, 0),
        stuff=dataclasses.replace(stuff, class_id=stuff.row),
        instance_masks=instance_masks,
        region_masks=region_masks,
        cell_masks=level_masks(instance_masks, padded_size, cells),
        padded_size=padded_size,
    )


def assign_levels(box: Float[Array, "S 4"], ranges: tuple[tuple[float, float], ...]) -> Bool[Array, "S L"]:
    """True on the levels where an instance is positive: lower <= sqrt(box area) <= upper."""
    area = jnp.maximum(box[:, 2] - box[:, 0], 0.0) * jnp.maximum(box[:, 3] - box[:, 1], 0.0)
    bounds = jnp.asarray(ranges, jnp.float32) ** 2  # compares areas: no square root that could round
    return (area[:, None] >= bounds[None, :, 0]) & (area[:, None] <= bounds[None, :, 1])


def mass_centers(masks: Masks, wanted: Bool[Array, " S"]) -> tuple[Float[Array, "S 2"], Bool[Array, " S"]]:
    """Mean (row, column) of the non-zero pixels of each mask at 1/4 resolution, and whether there is any.

    Plain, not weighted by the soft mask, as in the original implementation. Only rows in `wanted` are computed, in a
    loop over as many as there are; the others, and masks without a pixel, get (0, 0) and False.
    """
    slots = wanted.shape[0]
    padded = max(-(-slots // _ROWS_AT_ONCE), 1) * _ROWS_AT_ONCE
    rows = jnp.nonzero(wanted, size=slots, fill_value=slots)[0].astype(jnp.int32)
    rows = jnp.pad(rows, (0, padded - slots), constant_values=slots)

    def step(chunk: Array, sums: Array) -> Array:  # sums [padded, 3]: count, sum of rows, sum of columns
        start = chunk * _ROWS_AT_ONCE
        nonzero = masks.take(jax.lax.dynamic_slice_in_dim(rows, start, _ROWS_AT_ONCE)) > 0.0
        per_row = jnp.sum(nonzero, axis=2, dtype=jnp.int32)
        per_column = jnp.sum(nonzero, axis=1, dtype=jnp.int32)
        new = [jnp.sum(per_row, axis=1), _first_moment(per_row), _first_moment(per_column)]
        return jax.lax.dynamic_update_slice_in_dim(sums, jnp.stack(new, axis=1), start, axis=0)

    chunks = trip_count((jnp.sum(wanted, dtype=jnp.int32) + _ROWS_AT_ONCE - 1) // _ROWS_AT_ONCE)
    sums = jax.lax.fori_loop(0, chunks, step, jnp.zeros((padded, 3), jnp.int32))
    count = jnp.maximum(sums[:, :1], 1)
    # Whole and fractional part apart: a center that falls on an integer is exact on every device.
    mean = (sums[:, 1:] // count).astype(jnp.float32) + (sums[:, 1:] % count).astype(jnp.float32) / count.astype(
        jnp.float32
    )
    center = jnp.zeros((slots, 2), jnp.float32).at[rows].set(mean, mode="drop")
    visible = jnp.zeros((slots,), bool).at[rows].set(sums[:, 0] > 0, mode="drop")
    return center, visible


def _first_moment(counts: Int[Array, "n length"]) -> Int[Array, " n"]:
    return jnp.sum(counts * jnp.arange(counts.shape[1], dtype=jnp.int32)[None], axis=1)


def _list_true(flags: Bool[Array, "rows levels"], slots: int) -> Slots:
    """The true entries of `flags`, row after row, in a list of `slots`."""
    rows, levels = flags.shape
    index = jnp.nonzero(flags.reshape(-1), size=slots, fill_value=rows * levels)[0].astype(jnp.int32)
    valid = index < rows * levels
    return Slots(
        row=index // levels,
        class_id=jnp.zeros((slots,), jnp.int32),
        level=jnp.where(valid, index % levels, 0),
        valid=valid,
    )


def gaussian_radius(size: Float[Array, "*n 2"], *, min_overlap: float) -> Float[Array, "*n"]:
    """CornerNet's radius for a box (height, width): the smallest of its three cases.

    The published formulas lack factors 1/a in the roots (r = (b + sqrt(b^2 - 4ac)) / 2), and the original
    implementation, hence its checkpoints, uses them so. The third case, the one that decides, is written without the
    cancellation of its two large terms, so that float32 gives the integer part of the float64 value.
    """
    total = jnp.sum(size, axis=-1)
    area = jnp.prod(size, axis=-1)
    first = (total + jnp.sqrt(total**2 - 4.0 * area * (1.0 - min_overlap) / (1.0 + min_overlap))) / 2.0
    second = (2.0 * total + jnp.sqrt(4.0 * total**2 - 16.0 * (1.0 - min_overlap) * area)) / 2.0
    product = 4.0 * min_overlap * (1.0 - min_overlap) * area  # -a c
    linear = 2.0 * min_overlap * total  # -b
    third = 2.0 * product / jnp.maximum(linear + jnp.sqrt(linear**2 + 4.0 * product), 1e-12)
    return jnp.minimum(jnp.minimum(first, second), third)


def level_scales(
    padded_size: Int[Array, " 2"], pairs: Slots, cells: LevelCells, *, source: Int[Array, " 2"]
) -> Float[Array, "P 2"]:
    """Positions of each pair's level per position of a map of size `source`, for (rows, columns).

    The ratio of the two sizes, as in the original implementation: below source stride / level stride by up to half a
    cell on p6 and a cell on p7 at the far border, where `padded_size` is no multiple of the level's stride.
    """
    used = jnp.take(cells.used_sizes(padded_size), pairs.level, axis=0)
    return used.astype(jnp.float32) / source.astype(jnp.float32)[None]


def center_cells(
    position: Float[Array, "S 2"], pairs: Slots, padded_size: Int[Array, " 2"], cells: LevelCells
) -> Int[Array, "P 2"]:
    """(row, column) of each pair's center on its level, from positions at 1/4 resolution.

    Clamped into the level (the original implementation clamps one past its end).
    """
    scale = level_scales(padded_size, pairs, cells, source=padded_size // FEATURE_STRIDE)
    center = jnp.floor(jnp.take(position, pairs.row, axis=0, mode="clip") * scale)
    last = jnp.take(cells.used_sizes(padded_size), pairs.level, axis=0) - 1
    return jnp.clip(center.astype(jnp.int32), 0, last)


def draw_centers(
    position: Float[Array, "S 2"],
    box: Float[Array, "S 4"],
    pairs: Slots,
    padded_size: Int[Array, " 2"],
    *,
    num_things: int,
    cells: LevelCells,
    min_overlap: float,
) -> Float[Array, "A T"]:
    """One Gaussian per pair in its class's channel, sigma (2r + 1) / 3, cut at the radius r; overlaps by maximum.

    `position` is (row, column) at 1/4 resolution.
    """
    level_of_cell, row_column = jnp.asarray(cells.level), jnp.asarray(cells.row_column)
    in_use = cells.in_use(padded_size)
    center = center_cells(position, pairs, padded_size, cells)
    scale = level_scales(padded_size, pairs, cells, source=padded_size)
    corners = jnp.take(box, pairs.row, axis=0, mode="clip") * jnp.tile(scale[:, ::-1], (1, 2))  # x0, y0, x1, y1
    width_height = jnp.maximum(corners[:, 2:] - corners[:, :2], 0.0)
    radius = jnp.floor(gaussian_radius(width_height, min_overlap=min_overlap)).astype(jnp.int32)

    def draw(slot: Array, heatmap: Array) -> Array:  # heatmap [T, A]: a class is contiguous
        offset = row_column - center[slot][:, None]
        inside = (level_of_cell == pairs.level[slot]) & jnp.all(jnp.abs(offset) <= radius[slot], axis=0)
        inside &= in_use & pairs.valid[slot]
        sigma = (2 * radius[slot] + 1).astype(jnp.float32) / 3.0
        squared = jnp.sum(offset**2, axis=0).astype(jnp.float32)
        gaussian = jnp.where(inside, jnp.exp(-squared / (2.0 * sigma**2)), 0.0)
        return heatmap.at[pairs.class_id[slot]].max(gaussian)

    heatmap = jnp.zeros((num_things, row_column.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, trip_count(jnp.sum(pairs.valid, dtype=jnp.int32)), draw, heatmap).T


def region_scores(
    region_masks: IdMapMasks, padded_size: Int[Array, " 2"], *, num_regions: int, cells: LevelCells
) -> Float[Array, "A C"]:
    """Soft one-hot semantic labels at level resolution; values below 0.5 are 0, the others stay in [0.5, 1].

    Straight borders give many values of exactly one half, which the original keeps; the slack keeps them whatever the
    rounding of the device.
    """
    soft = level_masks(region_masks, padded_size, cells).take(jnp.arange(num_regions, dtype=jnp.int32)).T
    return jnp.where(soft >= REGION_THRESHOLD - 1e-6, soft, 0.0)
