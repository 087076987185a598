"""Pasting things and stuff into one panoptic segmentation at the original size (paper section 3.4).

Things are placed one after the other, because each one depends on what lies there already; but a thing touches only
the tiles of its box, and its mask is made from its kernel when its turn comes. Nothing of the size [things, H0, W0]
exists.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from pfcn_jax.panoptic.kernels import Threshold, convolve, pad_slots, take
from pfcn_jax.panoptic.options import PredictOptions
from pfcn_jax.panoptic.upsample import (
    Upsampler,
    for_each_tile,
    output_box,
    tile_frame,
    upsample_tile,
    whole_box,
)
from pfcn_jax.types import VOID, Kernels, PanopticPrediction, RegionChannels

OUTSIDE = -1  # semantic map beyond the image


@struct.dataclass
class Placed:
    """Things on the canvas: segment i of the map is row i - 1."""

    segment_map: Int[Array, "H0 W0"]
    count: Int[Array, ""]
    slot: Int[Array, " N"]  # which thing became the row
    area: Int[Array, " N"]  # pixels that it got


def probabilities(weight: Float[Array, "N E"], feature: Float[Array, "h w E"]) -> Float[Array, "N h w"]:
    """Mask probabilities at 1/4 resolution."""
    return jax.nn.sigmoid(convolve(weight, feature))


def place_things(
    things: Kernels,
    feature: Float[Array, "h w E"],
    upsampler: Upsampler,
    options: PredictOptions,
    *,
    chunk: int = 16,
) -> Placed:
    """Places the things with a score of at least `options.merge_score` in the order of their slots (best first).

    A thing is skipped if its mask at the original size is empty or if more than `options.merge_overlap` of it is taken
    already; else it gets the free pixels of its mask.
    """
    slots = things.score.shape[0]
    wanted = jnp.sum(things.valid & (things.score >= options.merge_score), dtype=jnp.int32)
    weight = pad_slots(things, chunk).weight
    canvas = (upsampler.row_index.shape[1], upsampler.column_index.shape[1])
    nothing = jnp.zeros(slots, jnp.int32)
    placed = Placed(segment_map=jnp.full(canvas, VOID, jnp.int32), count=jnp.int32(0), slot=nothing, area=nothing)

    def place_chunk(index: Int[Array, ""], placed: Placed) -> Placed:
        first = index * chunk
        maps = probabilities(lax.dynamic_slice_in_dim(weight, first, chunk), feature)
        boxes = output_box(maps, upsampler, threshold=options.mask_threshold)

        def place(offset: Int[Array, ""], placed: Placed) -> Placed:
            return _place_one(
                placed,
                first + offset,
                lax.dynamic_index_in_dim(maps, offset, axis=0, keepdims=False),
                boxes[offset],
                upsampler,
                options,
            )

        return lax.fori_loop(0, jnp.minimum(wanted - first, chunk), place, placed)

    return lax.fori_loop(0, (wanted + (chunk - 1)) // chunk, place_chunk, placed)


def _place_one(
    placed: Placed,
    slot: Int[Array, ""],
    probability: Float[Array, "h w"],
    box: Int[Array, " 4"],
    upsampler: Upsampler,
    options: PredictOptions,
) -> Placed:
    """Writes the thing while it counts, and erases it again in the rarer case that it covers too much."""
    segment_id = placed.count + 1

    def write(corner, carry):
        segment_map, area, free = carry
        start, own = tile_frame(upsampler, corner, box)
        value = upsample_tile(probability[:, None, :], upsampler, corner, start)[:, 0, :]
        mask = own & (value > options.mask_threshold)
        before = lax.dynamic_slice(segment_map, start, upsampler.tile)
        after = jnp.where(mask & (before == VOID), segment_id, before)
        segment_map = lax.dynamic_update_slice(segment_map, after, start)
        # What was placed is read from the new map: a second reader of the old one would cost a copy of the canvas.
        segment_map = lax.optimization_barrier(segment_map)
        now = lax.dynamic_slice(segment_map, start, upsampler.tile)
        area += jnp.sum(mask, dtype=jnp.int32)
        free += jnp.sum(own & (now == segment_id), dtype=jnp.int32)
        return segment_map, area, free

    def erase(corner, segment_map):
        start, own = tile_frame(upsampler, corner, to_erase)
        before = lax.dynamic_slice(segment_map, start, upsampler.tile)
        return lax.dynamic_update_slice(segment_map, jnp.where(own & (before == segment_id), VOID, before), start)

    zero = jnp.int32(0)
    segment_map, area, free = for_each_tile(upsampler, box, write, (placed.segment_map, zero, zero))
    share = (area - free).astype(jnp.float32) / jnp.maximum(area, 1).astype(jnp.float32)
    accepted = (share <= options.merge_overlap) & (free > 0)
    to_erase = jnp.where(accepted, jnp.zeros_like(box), box)
    return Placed(
        segment_map=for_each_tile(upsampler, to_erase, erase, segment_map),
        count=placed.count + accepted.astype(jnp.int32),
        slot=placed.slot.at[placed.count].set(jnp.where(accepted, slot, 0), mode="drop"),
        area=placed.area.at[placed.count].set(jnp.where(accepted, free, 0), mode="drop"),
    )


def classify_pixels(
    stuff: Kernels,
    feature: Float[Array, "h w E"],
    segment_map: Int[Array, "H0 W0"],
    upsampler: Upsampler,
    *,
    chunk: int = 8,
) -> tuple[Int[Array, "H0 W0"], Int[Array, " Q"]]:
    """The region channel of highest probability at every pixel, and how many free pixels each slot of `stuff` has.

    Equal probabilities: the lower slot. Without any valid slot (the original fails there) all pixels are channel 0,
    "any thing", which becomes void. Beyond the image: `OUTSIDE`.

    Args:
      stuff: fused kernels of stuff, one slot per region channel.
      segment_map: pixels that are not void here are not free.
      chunk: slots resampled at a time.
    """
    slots = stuff.score.shape[0]
    order = jnp.argsort(~stuff.valid, stable=True)
    compact = pad_slots(take(stuff, order), chunk)
    count = jnp.sum(stuff.valid, dtype=jnp.int32)
    chunks = (count + (chunk - 1)) // chunk
    maps = _stuff_maps(compact.weight, feature, chunks, chunk=chunk)
    box = whole_box(upsampler)

    def visit(corner, carry):
        best_map, free_count = carry
        start, own = tile_frame(upsampler, corner, box)

        def compare(index, best):
            some = lax.dynamic_slice_in_dim(maps, index * chunk, chunk, axis=1)
            value = upsample_tile(some, upsampler, corner, start)
            for offset in range(chunk):
                slot = index * chunk + offset
                better = (value[:, offset, :] > best[0]) & (slot < count)
                best = (jnp.where(better, value[:, offset, :], best[0]), jnp.where(better, slot, best[1]))
            return best

        unknown = (jnp.full(upsampler.tile, -1.0, jnp.float32), jnp.zeros(upsampler.tile, jnp.int32))
        _, best = lax.fori_loop(0, chunks, compare, unknown)
        free = own & (lax.dynamic_slice(segment_map, start, upsampler.tile) == VOID)
        before = lax.dynamic_slice(best_map, start, upsampler.tile)
        best_map = lax.dynamic_update_slice(best_map, jnp.where(own, best, before), start)
        return best_map, free_count + _count_slots(jnp.where(free, best, -1), chunks, slots=maps.shape[1], chunk=chunk)

    start = (jnp.full(segment_map.shape, OUTSIDE, jnp.int32), jnp.zeros(maps.shape[1], jnp.int32))
    best_map, free_count = for_each_tile(upsampler, box, visit, start)
    channel = jnp.where(count > 0, compact.class_id, 0)
    semantic_map = jnp.where(best_map >= 0, channel[jnp.maximum(best_map, 0)], OUTSIDE)
    return semantic_map, jnp.zeros(slots, jnp.int32).at[order].set(free_count[:slots])


def _stuff_maps(
    weight: Float[Array, "Q E"], feature: Float[Array, "h w E"], chunks: Int[Array, ""], *, chunk: int
) -> Float[Array, "h Q w"]:
    """Probabilities of the first `chunks` chunks of kernels, interleaved by rows as `upsample_tile` wants them."""
    h, w, _ = feature.shape

    def step(index, maps):
        some = probabilities(lax.dynamic_slice_in_dim(weight, index * chunk, chunk), feature)
        return lax.dynamic_update_slice_in_dim(maps, jnp.swapaxes(some, 0, 1), index * chunk, axis=1)

    return lax.fori_loop(0, chunks, step, jnp.zeros((h, weight.shape[0], w), jnp.float32))


def _count_slots(best: Int[Array, "ty tx"], chunks: Int[Array, ""], *, slots: int, chunk: int) -> Int[Array, " slots"]:
    """How often each slot occurs, a chunk of slots at a time (a histogram without scatter)."""

    def step(index, counts):
        slot = index * chunk + jnp.arange(chunk, dtype=jnp.int32)
        some = jnp.sum(best[None, :, :] == slot[:, None, None], axis=(1, 2), dtype=jnp.int32)
        return lax.dynamic_update_slice_in_dim(counts, some, index * chunk, axis=0)

    return lax.fori_loop(0, chunks, step, jnp.zeros(slots, jnp.int32))


def merge(
    things: Kernels,
    stuff: Kernels,
    feature: Float[Array, "h w E"],
    upsampler: Upsampler,
    regions: RegionChannels,
    options: PredictOptions,
    *,
    chunk: int = 16,
    stuff_chunk: int = 8,
) -> tuple[PanopticPrediction, Int[Array, "H0 W0"]]:
    """Things in the order of their scores, then stuff on the free pixels, and the semantic map.

    Stuff with fewer than `options.min_stuff_area` free pixels at the original size is dropped; region channels of
    things become void.

    Args:
      things: rescored things, sorted (see `rescore`).
      stuff: fused kernels of stuff, one slot per region channel (see `fuse_stuff`).
      chunk: things applied to the feature at a time.
      stuff_chunk: kernels of stuff upsampled at a time.

    Returns:
      The panoptic prediction with P = things + stuff slots, things in the order of placing, then stuff by class; and
      the region channel of every pixel, `OUTSIDE` beyond the image.
    """
    placed = place_things(things, feature, upsampler, options, chunk=chunk)
    semantic_map, free = classify_pixels(stuff, feature, placed.segment_map, upsampler, chunk=stuff_chunk)
    large = stuff.valid & (stuff.class_id >= regions.things) & (free > 0) & (free >= options.min_stuff_area)
    # Row of each region channel's segment: stuff follows the things without a gap.
    segment_id = jnp.where(large, placed.count + jnp.cumsum(large, dtype=jnp.int32), VOID)
    of_channel = jnp.zeros(stuff.score.shape[0], jnp.int32).at[stuff.class_id].set(segment_id)
    ground = jnp.where(semantic_map >= 0, of_channel[jnp.maximum(semantic_map, 0)], VOID)
    segment_map = jnp.where(placed.segment_map == VOID, ground, placed.segment_map)
    placed = dataclasses.replace(placed, segment_map=segment_map)
    return _table(placed, things, stuff, segment_id, free, regions), semantic_map


def _table(
    placed: Placed,
    things: Kernels,
    stuff: Kernels,
    segment_id: Int[Array, " C"],
    free: Int[Array, " C"],
    regions: RegionChannels,
) -> PanopticPrediction:
    """The prediction of a complete segment map."""
    thing_slots, channels = things.score.shape[0], stuff.score.shape[0]
    is_thing = jnp.arange(thing_slots) < placed.count
    # Slot `slots` takes what is not placed and is cut off: channels of things never become segments.
    slots = thing_slots + channels - regions.things
    target = jnp.where(segment_id > 0, segment_id - 1, slots)

    def rows(of_things: Array, of_stuff: Array) -> Array:
        column = (
            jnp.zeros(slots + 1, of_stuff.dtype)
            .at[:thing_slots]
            .set(jnp.where(is_thing, of_things, jnp.zeros_like(of_things)))
        )
        return column.at[target].set(of_stuff)[:slots]

    of_stuff = segment_id > 0
    return PanopticPrediction(
        segment_map=placed.segment_map,
        class_id=rows(things.class_id[placed.slot], regions.stuff_class(stuff.class_id)),
        is_thing=rows(is_thing.astype(jnp.int32), jnp.zeros_like(segment_id)) > 0,
        score=rows(things.score[placed.slot], stuff.score),
        area=rows(placed.area, free),
        valid=rows(is_thing.astype(jnp.int32), of_stuff.astype(jnp.int32)) > 0,
        kernel=rows(placed.slot, stuff.class_id),
    )


def packed_thing_masks(
    things: Kernels,
    feature: Float[Array, "h w E"],
    upsampler: Upsampler,
    *,
    threshold: Threshold,
    chunk: int = 16,
) -> UInt8[Array, "M H0 W0/8"]:
    """The masks of all valid things at the original size, before any merging (for AP), one bit a pixel.

    Bits lie along rows as `numpy.packbits` packs them: `numpy.unpackbits(masks[i], axis=-1, count=W0)` unpacks. Valid
    slots must come first; only they are computed, and of each only the tiles of its box.
    """
    slots, height, width = things.score.shape[0], upsampler.row_index.shape[1], upsampler.column_index.shape[1]
    weight = pad_slots(things, chunk).weight
    count = jnp.sum(things.valid, dtype=jnp.int32)

    def pack_chunk(index: Int[Array, ""], masks: UInt8[Array, "M H0 W0/8"]) -> UInt8[Array, "M H0 W0/8"]:
        first = index * chunk
        maps = probabilities(lax.dynamic_slice_in_dim(weight, first, chunk), feature)
        boxes = output_box(maps, upsampler, threshold=threshold)

        def pack_one(offset: Int[Array, ""], masks: UInt8[Array, "M H0 W0/8"]) -> UInt8[Array, "M H0 W0/8"]:
            box = boxes[offset]
            probability = lax.dynamic_index_in_dim(maps, offset, axis=0, keepdims=False)[:, None, :]

            def write(corner, masks):
                start, own = tile_frame(upsampler, corner, box)
                mask = own & (upsample_tile(probability, upsampler, corner, start)[:, 0, :] > threshold)
                return _write_bits(masks, mask, first + offset, start)

            return for_each_tile(upsampler, box, write, masks)

        return lax.fori_loop(0, jnp.minimum(count - first, chunk), pack_one, masks)

    empty = jnp.zeros((slots, height, -(-width // 8)), jnp.uint8)
    return lax.fori_loop(0, (count + (chunk - 1)) // chunk, pack_chunk, empty)


def _write_bits(
    masks: UInt8[Array, "M H0 W0/8"],
    mask: Bool[Array, "ty tx"],
    slot: Int[Array, ""],
    start: tuple[Int[Array, ""], Int[Array, ""]],
) -> UInt8[Array, "M H0 W0/8"]:
    """Adds the pixels of a tile whose upper left pixel is `start` to one packed mask."""
    ty, tx = mask.shape
    width = min(-(-tx // 8) + 2, masks.shape[2])  # bytes that hold the tile wherever in a byte it begins
    first_byte = jnp.minimum(start[1] // 8, masks.shape[2] - width)
    aligned = lax.dynamic_update_slice(
        jnp.zeros((ty, 8 * width), jnp.bool_), mask, (jnp.zeros_like(slot), start[1] - 8 * first_byte)
    )
    corner = (slot, start[0], first_byte)
    before = lax.dynamic_slice(masks, corner, (1, ty, width))
    return lax.dynamic_update_slice(masks, before | jnp.packbits(aligned, axis=-1)[None], corner)
