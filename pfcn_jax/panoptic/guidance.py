"""Kernels for training, from positions that the labels choose (paper section 3.2).

Every function is for one image. A thing's kernels come from the positions inside its mask where the center head
scores its class highest; a stuff class's kernel is pooled over its region.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from pfcn_jax.panoptic.labels import LevelCells, Masks
from pfcn_jax.panoptic.loops import trip_count
from pfcn_jax.panoptic.targets import Slots, Targets

MASK_THRESHOLD = 0.1  # of the soft mask at level resolution
_SLOTS_AT_ONCE = 8  # positives per step of the search


@struct.dataclass
class GuidedKernels:
    """Kernels of things: k positions per (instance, level) pair. A position that was not found has weight 0."""

    kernel: Float[Array, "P k K"]
    weight: Float[Array, "P k"]  # sums to 1 over k, or is all 0 if no position was found
    score: Float[Array, "P k"]  # probability at the position, 0 where none was found
    valid: Bool[Array, " P"]


def level_cells(maps: Sequence[Array]) -> LevelCells:
    """The static layout of maps `[hl, wl, C]` per level."""
    return LevelCells(tuple((values.shape[0], values.shape[1]) for values in maps))


def guide_things(
    center_logits: Sequence[Float[Array, "_hl _wl T"]],
    kernel_map: Sequence[Float[Array, "_hl _wl K"]],
    targets: Targets,
    *,
    num_positions: int,
    weighted: bool,
) -> GuidedKernels:
    """The kernels of every thing pair: the top `num_positions` cells of its class inside its mask on its level.

    w_i = s_i / sum_j s_j with s the predicted probability. The weights are not detached: through them the
    segmentation loss reaches the center head, as in the original implementation. Where a level or a mask has fewer
    cells than `num_positions` the missing positions have weight 0.

    Args:
      weighted: False gives every position found the same weight (the plain dice of the paper's ablation).
    """
    cells = level_cells(center_logits)
    logits = cells.flatten(center_logits).astype(jnp.float32)  # [A, T]
    things = targets.things
    cell, found = find_positions(
        jax.lax.stop_gradient(logits), targets.cell_masks, things, cells, num_positions=num_positions
    )
    score = jax.nn.sigmoid(logits[cell, things.class_id[:, None]]) * found.astype(jnp.float32)
    share = score if weighted else found.astype(jnp.float32)
    total = jnp.sum(share, axis=1, keepdims=True)
    weight = jnp.where(total > 0.0, share / jnp.where(total > 0.0, total, 1.0), 0.0)
    kernel = cells.flatten(kernel_map)[cell]
    return GuidedKernels(kernel=kernel, weight=weight, score=score, valid=things.valid)


def find_positions(
    logits: Float[Array, "A T"],
    cell_masks: Masks,
    things: Slots,
    cells: LevelCells,
    *,
    num_positions: int,
) -> tuple[Int[Array, "P k"], Bool[Array, "P k"]]:
    """Cells (index into the A cells of all levels) in falling order of the class's logit, and which were found.

    Of equal logits the first cell wins; a position that was not found points at cell 0. The search is a loop over the
    slots in use, so its time follows the number of instances (under vmap: of the fullest image).
    """
    slots = things.valid.shape[0]
    padded = -(-slots // _SLOTS_AT_ONCE) * _SLOTS_AT_ONCE
    row, class_id, level = (
        jnp.pad(values, (0, padded - slots)) for values in (things.row, things.class_id, things.level)
    )
    by_class = logits.T  # a class is contiguous
    level_of_cell = jnp.asarray(cells.level)
    k = min(num_positions, level_of_cell.size)

    def step(chunk: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        start = chunk * _SLOTS_AT_ONCE
        part = [jax.lax.dynamic_slice_in_dim(values, start, _SLOTS_AT_ONCE) for values in (row, class_id, level)]
        inside = (cell_masks.take(part[0]) > MASK_THRESHOLD) & (level_of_cell[None] == part[2][:, None])
        value, index = jax.lax.top_k(jnp.where(inside, by_class[part[1]], -jnp.inf), k)
        new = (jnp.where(value > -jnp.inf, index, 0).astype(jnp.int32), value > -jnp.inf)
        both = [jax.lax.dynamic_update_slice_in_dim(old, update, start, axis=0) for old, update in zip(found, new)]
        return both[0], both[1]

    chunks = trip_count((jnp.sum(things.valid, dtype=jnp.int32) + _SLOTS_AT_ONCE - 1) // _SLOTS_AT_ONCE)
    nothing = (jnp.zeros((padded, k), jnp.int32), jnp.zeros((padded, k), bool))
    cell, found = jax.lax.fori_loop(0, chunks, step, nothing)
    found = found[:slots] & things.valid[:, None]
    missing = ((0, 0), (0, num_positions - k))
    return jnp.pad(jnp.where(found, cell[:slots], 0), missing), jnp.pad(found, missing)


def pool_stuff(kernel_map: Sequence[Float[Array, "_hl _wl K"]], targets: Targets) -> Float[Array, "Q K"]:
    """The kernel of every (region channel, level) pair present, before embedding.

    Sum of the kernel map over the region (hard: where the region target is not 0), divided by the area of the whole
    level in use, not of the region: what the original implementation does, in training and in prediction.
    """
    area = jnp.prod(level_cells(kernel_map).used_sizes(targets.padded_size), axis=1).astype(jnp.float32)
    pooled = [
        jnp.einsum(
            "hwc,hwk->ck",
            (score > 0.0).astype(kernels.dtype),
            kernels,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        for score, kernels in zip(targets.region_score, kernel_map)
    ]
    per_level = jnp.stack(pooled) / area[:, None, None]  # [L, C, K]
    stuff = targets.stuff
    kernel = per_level[stuff.level, jnp.minimum(stuff.class_id, per_level.shape[1] - 1)]
    return jnp.where(stuff.valid[:, None], kernel, 0.0)
