"""Bilinear resampling with sizes as data: which inputs an output position reads, and with which weights.

The rule is PyTorch's `interpolate(mode="bilinear", align_corners=False)`: output i reads the source at
(i + 0.5) * in_size / out_size - 0.5, clamped at 0 from below, and the neighbor above is clamped to the last input.
Both sizes may be traced scalars, so that one compiled program serves every image size on a canvas.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Taps:
    """Output position i is sum_t weight[t, i] * input[index[t, i]]."""

    index: Int[Array, "taps n"]
    weight: Float[Array, "taps n"]


def linear_taps(length: int, in_size: Int[Array, ""] | int, out_size: Int[Array, ""] | int) -> Taps:
    """The two taps of each output position along one axis.

    Args:
      length: static number of output positions; those at or beyond `out_size` get weight 0.
      in_size: number of input positions in use, at least 1.
      out_size: number of output positions in use, at least 1.
    """
    in_size = jnp.asarray(in_size, jnp.int32)
    out_size = jnp.asarray(out_size, jnp.int32)
    position = jnp.arange(length, dtype=jnp.float32)
    scale = in_size.astype(jnp.float32) / out_size.astype(jnp.float32)
    return taps_at((position + 0.5) * scale - 0.5, in_size, jnp.arange(length) < out_size)


def taps_at(source: Float[Array, " n"], in_size: Int[Array, ""] | int, used: Bool[Array, " n"]) -> Taps:
    """The two taps that read a line of `in_size` positions at `source` (0: the first position), the ends repeated.

    Output positions that are not `used` get weight 0.
    """
    in_size = jnp.asarray(in_size, jnp.int32)
    source = jnp.maximum(source, 0.0)
    low = jnp.minimum(source.astype(jnp.int32), in_size - 1)
    high = jnp.minimum(low + 1, in_size - 1)
    fraction = jnp.clip(source - low.astype(jnp.float32), 0.0, 1.0)
    weight = used.astype(jnp.float32)
    return Taps(index=jnp.stack([low, high]), weight=jnp.stack([(1.0 - fraction) * weight, fraction * weight]))


def taps_matrix(taps: Taps, in_length: int) -> Float[Array, "n in_length"]:
    """The taps as a dense matrix, for a matmul: `matrix @ column` resamples a column."""
    column = jnp.arange(in_length, dtype=taps.index.dtype)
    hit = (taps.index[:, :, None] == column[None, None, :]).astype(taps.weight.dtype)
    return jnp.sum(hit * taps.weight[:, :, None], axis=0)


def antialiased_matrix(
    length: int, in_length: int, in_size: Int[Array, ""], out_size: Int[Array, ""]
) -> Float[Array, "n in_length"]:
    """The matrix of Pillow's bilinear resize: a triangle as wide as the pixels of the coarser of both sides.

    Args:
      length: static number of output positions; rows at or beyond `out_size` are zero.
      in_length: static number of input positions; columns at or beyond `in_size` are zero.
    """
    scale = in_size.astype(jnp.float32) / out_size.astype(jnp.float32)
    center = (jnp.arange(length, dtype=jnp.float32) + 0.5) * scale
    distance = jnp.abs(jnp.arange(in_length, dtype=jnp.float32)[None, :] + 0.5 - center[:, None])
    weight = jnp.maximum(1.0 - distance / jnp.maximum(scale, 1.0), 0.0)
    weight = jnp.where((jnp.arange(in_length) < in_size)[None, :], weight, 0.0)
    weight = weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1e-6)
    return jnp.where((jnp.arange(length) < out_size)[:, None], weight, 0.0)
