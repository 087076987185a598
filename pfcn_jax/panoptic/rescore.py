"""Scores of things from their masks at 1/4 resolution, and mask NMS for the ablation.

The masks are never kept: a chunk of kernels at a time is applied to the feature, with as many chunks as there are
valid kernels, so that time and memory follow the image's content and not the number of slots.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pfcn_jax.panoptic.kernels import Threshold, convolve, in_use, pad_slots, sort_by_score, take
from pfcn_jax.panoptic.options import PredictOptions
from pfcn_jax.types import FEATURE_STRIDE, Kernels


def mask_means(
    kernels: Kernels,
    feature: Float[Array, "h w E"],
    padded_size: Int[Array, " 2"],
    *,
    threshold: Threshold,
    chunk: int = 16,
) -> Float[Array, " M"]:
    """Mean probability of each kernel's mask (probability > threshold) at 1/4 resolution; 0 where the mask is empty.

    Valid slots must come first; the others get 0. The mask extends over the padding of the image's own padded size.
    """
    slots = kernels.score.shape[0]
    used = in_use(feature.shape[:2], padded_size, FEATURE_STRIDE)
    weight = pad_slots(kernels, chunk).weight

    def step(index: Int[Array, ""], means: Float[Array, " M"]) -> Float[Array, " M"]:
        some = lax.dynamic_slice_in_dim(weight, index * chunk, chunk)
        probability = jax.nn.sigmoid(convolve(some, feature))
        mask = (probability > threshold) & used[None, :, :]
        total = jnp.sum(jnp.where(mask, probability, 0.0), axis=(1, 2))
        count = jnp.sum(mask, axis=(1, 2), dtype=jnp.float32)
        return lax.dynamic_update_slice_in_dim(means, total / jnp.maximum(count, 1.0), index * chunk, axis=0)

    chunks = _ceil_div(jnp.sum(kernels.valid, dtype=jnp.int32), chunk)
    means = lax.fori_loop(0, chunks, step, jnp.zeros(weight.shape[0], jnp.float32))[:slots]
    return jnp.where(kernels.valid, means, 0.0)


def rescore(
    kernels: Kernels,
    feature: Float[Array, "h w E"],
    padded_size: Int[Array, " 2"],
    options: PredictOptions,
    *,
    chunk: int = 16,
) -> Kernels:
    """The image's things, best first: `options.max_things` slots, valid ones first.

    The new score is score x mean probability inside the mask (paper section 3.4; the original's product). Kernels
    whose new score does not exceed `options.min_score` are dropped. With `options.mask_nms`, a mask whose IoU with a
    better kept one of its class exceeds `options.mask_nms_threshold` is suppressed before the best are kept.

    Args:
      kernels: fused kernels, valid slots first (as `fuse_things` returns them).
      chunk: kernels applied at a time.
    """
    means = mask_means(kernels, feature, padded_size, threshold=options.mask_threshold, chunk=chunk)
    score = kernels.score * means
    above = kernels.valid & (score > options.min_score)
    things = sort_by_score(dataclasses.replace(kernels, score=score, valid=above))
    if options.mask_nms:
        overlap = mask_iou(things, feature, padded_size, threshold=options.mask_threshold)
        kept = suppress(things, overlap, threshold=options.mask_nms_threshold)
        things = take(dataclasses.replace(things, valid=kept), jnp.argsort(~kept, stable=True))
    best = take(things, jnp.arange(min(options.max_things, things.score.shape[0])))
    return pad_slots(best, options.max_things)


def mask_iou(
    kernels: Kernels,
    feature: Float[Array, "h w E"],
    padded_size: Int[Array, " 2"],
    *,
    threshold: Threshold,
    rows: int = 16,
    chunk: int = 32,
) -> Float[Array, "M M"]:
    """IoU of every pair of masks at 1/4 resolution, over the padded image; 0 for invalid slots.

    Valid slots must come first. A loop over strips of `rows`, as far as the padded image reaches; in each strip a loop
    over the valid slots, a `chunk` at a time: n valid masks cost n x n / 2 x h x w products.
    """
    h, w, _ = feature.shape
    rows = min(rows, h)
    feature = jnp.pad(feature, ((0, -h % rows), (0, 0), (0, 0)))
    used = in_use((feature.shape[0], w), padded_size, FEATURE_STRIDE)
    slots, weight = kernels.score.shape[0], pad_slots(kernels, chunk).weight
    chunks = _ceil_div(jnp.sum(kernels.valid, dtype=jnp.int32), chunk)

    def visit(strip: Int[Array, ""], both: Float[Array, "M M"]) -> Float[Array, "M M"]:
        part = lax.dynamic_slice_in_dim(feature, strip * rows, rows)
        inside = lax.dynamic_slice_in_dim(used, strip * rows, rows)

        def add_masks(index: Int[Array, ""], masks: Float[Array, "M p"]) -> Float[Array, "M p"]:
            logits = convolve(lax.dynamic_slice_in_dim(weight, index * chunk, chunk), part)
            mask = ((jax.nn.sigmoid(logits) > threshold) & inside[None, :, :]).reshape(chunk, rows * w)
            return lax.dynamic_update_slice_in_dim(masks, mask.astype(jnp.float32), index * chunk, axis=0)

        masks = lax.fori_loop(0, chunks, add_masks, jnp.zeros((weight.shape[0], rows * w), jnp.float32))

        def add_pairs(pair: Int[Array, ""], both: Float[Array, "M M"]) -> Float[Array, "M M"]:
            corner = (pair // chunks * chunk, pair % chunks * chunk)
            one, other = (lax.dynamic_slice_in_dim(masks, first, chunk) for first in corner)
            before = lax.dynamic_slice(both, corner, (chunk, chunk))
            # Zeros and ones: exact in any precision. Pairs below the diagonal are mirrored at the end.
            product = lax.cond(
                corner[0] <= corner[1], lambda: jnp.matmul(one, other.T), lambda: jnp.zeros((chunk, chunk), jnp.float32)
            )
            return lax.dynamic_update_slice(both, before + product, corner)

        return lax.fori_loop(0, chunks * chunks, add_pairs, both)

    strips = _ceil_div(_ceil_div(padded_size[0], FEATURE_STRIDE), rows)
    both = jnp.zeros((weight.shape[0], weight.shape[0]), jnp.float32)
    both = jnp.triu(lax.fori_loop(0, strips, visit, both))
    both = (both + jnp.triu(both, 1).T)[:slots, :slots]
    both = jnp.where(kernels.valid[:, None] & kernels.valid[None, :], both, 0.0)
    area = jnp.diagonal(both)
    return both / jnp.maximum(area[:, None] + area[None, :] - both, 1.0)


def suppress(kernels: Kernels, overlap: Float[Array, "M M"], *, threshold: Threshold) -> Bool[Array, " M"]:
    """Greedy NMS: the slots that no better kept slot of the same class overlaps by more than `threshold`.

    Slots must be sorted, best first. A suppressed slot suppresses nothing.
    """
    slots = jnp.arange(kernels.score.shape[0])
    same = kernels.class_id[:, None] == kernels.class_id[None, :]
    rival = same & (overlap > threshold) & (slots[:, None] < slots[None, :])

    def step(index: Int[Array, ""], kept: Bool[Array, " M"]) -> Bool[Array, " M"]:
        return kept & ~(rival[index] & kept[index])

    return lax.fori_loop(0, jnp.sum(kernels.valid, dtype=jnp.int32), step, kernels.valid)


def _ceil_div(number: Int[Array, ""], divisor: int) -> Int[Array, ""]:
    return (number + (divisor - 1)) // divisor
