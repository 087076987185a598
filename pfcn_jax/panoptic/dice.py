"""Weighted dice without a stack of masks (paper equations 4 and 5).

With k kernels for each of P (instance, level) pairs the predicted masks are `[P, k, h, w]`: gigabytes for one image.
Only sums over pixels enter the loss, so forward and backward go through the slots in use a few at a time, make their
masks, keep the sums and drop the masks; the backward pass makes them again.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pfcn_jax.panoptic.kernels import in_use
from pfcn_jax.panoptic.labels import Masks
from pfcn_jax.panoptic.loops import trip_count
from pfcn_jax.types import FEATURE_STRIDE

_EPSILON = 1e-8  # only keeps 0 / 0 away: the denominator is a sum over all pixels
PIXELS_AT_ONCE = 2_000_000  # probabilities held at a time, over slots, kernels and pixels
_SLOTS_AT_ONCE = 16  # no more at a time however small the map: a step computes its unused slots too


def plain_dice(
    kernel: Float[Array, "P k E"],
    weight: Float[Array, "P k"],
    valid: Bool[Array, " P"],
    feature: Float[Array, "h w E"],
    masks: Masks,
    rows: Int[Array, " P"],
    padded_size: Int[Array, " 2"],
) -> Float[Array, " P"]:
    """sum_i w_i Dice(P_i, Y) per slot with all masks in memory: the formula, for tests and small images.

    Dice(P, Y) = 1 - 2 sum(P Y) / (sum P^2 + sum Y^2), P = sigmoid(kernel . feature), over the padded
    image (its padding included); Y stays soft. Unused slots give 0.
    """
    logits = jnp.einsum("pke,hwe->pkhw", kernel.astype(feature.dtype), feature, preferred_element_type=jnp.float32)
    inside = in_use(feature.shape[:2], padded_size, FEATURE_STRIDE).astype(jnp.float32)
    probability = jax.nn.sigmoid(logits) * inside[None, None]
    mask = masks.take(rows)[:, None]
    overlap = jnp.sum(probability * mask, axis=(2, 3))
    total = jnp.sum(probability**2, axis=(2, 3)) + jnp.sum(mask**2, axis=(2, 3))
    return jnp.where(valid, jnp.sum(weight * (1.0 - 2.0 * overlap / (total + _EPSILON)), axis=1), 0.0)


def streaming_dice(
    kernel: Float[Array, "P k E"],
    weight: Float[Array, "P k"],
    valid: Bool[Array, " P"],
    feature: Float[Array, "h w E"],
    masks: Masks,
    rows: Int[Array, " P"],
    padded_size: Int[Array, " 2"],
    *,
    pixels_at_once: int = PIXELS_AT_ONCE,
) -> Float[Array, " P"]:
    """`plain_dice` and its gradients in the memory of a few masks.

    Slots in use must come first. Gradients reach kernel, weight and feature; masks are labels. The matrix products
    take the feature's type, all sums are float32.
    """
    height, width, channels = feature.shape
    slots, k = weight.shape
    at_once = max(1, min(slots, _SLOTS_AT_ONCE, pixels_at_once // (k * height * width)))
    missing = -slots % at_once
    padded = [jnp.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1)) for values in (kernel, weight, rows)]
    chunks = trip_count((jnp.sum(valid, dtype=jnp.int32) + at_once - 1) // at_once)
    flat = feature.reshape(height * width, channels)
    inside = in_use(feature.shape[:2], padded_size, FEATURE_STRIDE).reshape(-1).astype(jnp.float32)
    per_slot = _dice(at_once, padded[0].astype(jnp.float32), padded[1], flat, masks, padded[2], inside, chunks)
    return jnp.where(valid, per_slot[:slots], 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dice(at_once, kernel, weight, flat, masks, rows, inside, chunks):
    return _forward(at_once, kernel, weight, flat, masks, rows, inside, chunks)[0]


def _slice(values: Array, chunk: Array, at_once: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(values, chunk * at_once, at_once)


def _write(values: Array, part: Array, chunk: Array, at_once: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(values, part, chunk * at_once, axis=0)


def _probabilities(kernel: Array, flat: Array, inside: Array) -> Float[Array, "m k x"]:
    logits = jnp.einsum("mke,xe->mkx", kernel.astype(flat.dtype), flat, preferred_element_type=jnp.float32)
    return jax.nn.sigmoid(logits) * inside[None, None]


def _forward(at_once, kernel, weight, flat, masks, rows, inside, chunks):
    def step(chunk: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        mask = masks.take(_slice(rows, chunk, at_once)).reshape(at_once, 1, -1)
        probability = _probabilities(_slice(kernel, chunk, at_once), flat, inside)
        overlap = jnp.sum(probability * mask, axis=2)
        total = jnp.sum(probability**2, axis=2) + jnp.sum(mask**2, axis=2) + _EPSILON
        return _write(sums[0], overlap, chunk, at_once), _write(sums[1], total, chunk, at_once)

    overlap, total = jax.lax.fori_loop(0, chunks, step, (jnp.zeros_like(weight), jnp.ones_like(weight)))
    per_slot = jnp.sum(weight * (1.0 - 2.0 * overlap / total), axis=1)
    return per_slot, (kernel, weight, flat, masks, rows, inside, chunks, overlap, total)


def _backward(at_once, kept, cotangent):
    kernel, weight, flat, masks, rows, inside, chunks, overlap, total = kept
    scale = cotangent[:, None] * weight

    def step(chunk: Array, grads: tuple[Array, Array]) -> tuple[Array, Array]:
        mask = masks.take(_slice(rows, chunk, at_once)).reshape(at_once, 1, -1)
        part = _slice(kernel, chunk, at_once)
        probability = _probabilities(part, flat, inside)
        # d Dice / d P = -2 Y / total + 4 overlap P / total^2; sigmoid' = P (1 - P) is 0 outside the padded image.
        inverse = 1.0 / _slice(total, chunk, at_once)
        of_mask = (-2.0 * _slice(scale, chunk, at_once) * inverse)[:, :, None]
        of_square = (4.0 * _slice(scale, chunk, at_once) * _slice(overlap, chunk, at_once) * inverse**2)[:, :, None]
        slope = (of_mask * mask + of_square * probability) * probability * (1.0 - probability)
        slope = slope.astype(flat.dtype)
        grad_kernel = jnp.einsum("mkx,xe->mke", slope, flat, preferred_element_type=jnp.float32)
        grad_flat = jnp.einsum("mkx,mke->xe", slope, part.astype(flat.dtype), preferred_element_type=jnp.float32)
        return _write(grads[0], grad_kernel, chunk, at_once), grads[1] + grad_flat

    start = (jnp.zeros_like(kernel), jnp.zeros(flat.shape, jnp.float32))
    grad_kernel, grad_flat = jax.lax.fori_loop(0, chunks, step, start)
    grad_weight = cotangent[:, None] * (1.0 - 2.0 * overlap / total)
    return grad_kernel, grad_weight, grad_flat.astype(flat.dtype), None, None, None, None


_dice.defvjp(_forward, _backward)
