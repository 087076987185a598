"""Swin T/S/B/L (Liu et al. 2021) as torchvision computes it: attention in windows of 7x7, shifted by 3 in odd blocks.

The shift of an image follows from its own padded size (a multiple of 7), not from the canvas: it is data.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from pfcn_jax.models.backbones.registry import BackboneSpec, register
from pfcn_jax.models.backbones.stages import INITIAL, StagedBackbone, check, scaled_channels, shared_fields
from pfcn_jax.models.layers import LayerNorm, drop_path, keep, used_size
from pfcn_jax.models.options import ModelOptions

BLOCKS = {"t": (2, 2, 6, 2), "s": (2, 2, 18, 2), "b": (2, 2, 18, 2), "l": (2, 2, 18, 2)}
HEADS = {"t": 3, "s": 3, "b": 4, "l": 6}  # of res2
WINDOW, SHIFT = 7, 3
EPSILON = 1e-5
_OUTSIDE = -1e9  # added to the logits of keys outside of the padded image; finite, since all keys may be outside


def position_index() -> np.ndarray:
    """[49, 49]: the row of the bias table for (query, key), from their distance in rows and columns."""
    at = np.stack(np.meshgrid(np.arange(WINDOW), np.arange(WINDOW), indexing="ij"), axis=-1).reshape(-1, 2)
    distance = at[:, None] - at[None, :] + WINDOW - 1
    return distance[..., 0] * (2 * WINDOW - 1) + distance[..., 1]


def _shift_axis(
    x: Float[Array, "B h w C"], count: Int[Array, " B"] | None, axis: int
) -> tuple[Array, Bool[Array, "B L"], Bool[Array, " B"] | None]:
    """An axis padded to windows that start SHIFT positions later, and which of its positions attention may read.

    torchvision pads the axis to a multiple P of 7 and rolls it by -3, with a mask between what the roll has joined.
    The same windows without a roll: 4 positions before the image, which nobody may read. Where P is 7 nothing shifts.

    Args:
      count: positions in use of each image; None: all.

    Returns:
      The padded map, its readable positions [B, L] (the image's own P), and which images shift (None: `x` is not
      laid out for a shift, since no image here is longer than a window).
    """
    length = x.shape[axis]
    if count is None:
        count = jnp.full((x.shape[0],), length, jnp.int32)
    own = -(-count // WINDOW) * WINDOW  # P
    padded = -(-length // WINDOW) * WINDOW
    if padded == WINDOW:
        at = jnp.arange(WINDOW)[None, :]
        return _pad(x, axis, 0, WINDOW - length), at < own[:, None], None
    total = padded + WINDOW
    front = WINDOW - SHIFT
    shifts = own > WINDOW
    x = jnp.where(
        shifts[:, None, None, None],
        _pad(x, axis, front, total - front - length),
        _pad(x, axis, 0, total - length),
    )
    at = jnp.arange(total)[None, :] - jnp.where(shifts, front, 0)[:, None]
    return x, (at >= 0) & (at < own[:, None]), shifts


def _unshift_axis(x: Float[Array, "B h w C"], shifts: Bool[Array, " B"] | None, length: int, axis: int) -> Array:
    """The positions of the map that `_shift_axis` has padded."""
    plain = jax.lax.slice_in_dim(x, 0, length, axis=axis)
    if shifts is None:
        return plain
    front = WINDOW - SHIFT
    return jnp.where(shifts[:, None, None, None], jax.lax.slice_in_dim(x, front, front + length, axis=axis), plain)


def _pad(x: Array, axis: int, before: int, after: int) -> Array:
    return jnp.pad(x, [(before, after) if a == axis else (0, 0) for a in range(x.ndim)])


def _windows(x: Shaped[Array, "B h w C"]) -> Shaped[Array, "B n 49 C"]:
    """[B, h, w, C] -> [B, windows, 49, C]; sides are multiples of 7."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels).swapaxes(2, 3)
    return x.reshape(batch, -1, WINDOW * WINDOW, channels)


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learned bias for each distance of query and key.

    Positions that only pad the image to a multiple of 7 are zero and *not* masked: their keys and values are the bias.
    """

    heads: int
    shifted: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], count: tuple[Array, Array] | None) -> Float[Array, "B h w C"]:
        """Args: `x` is zero beyond the positions in use; `count` are their rows and columns, None: all."""
        batch, height, width, channels = x.shape
        rows, columns = count if count is not None else (None, None)
        readable, row_shift, column_shift = None, None, None
        if self.shifted and max(height, width) > WINDOW:
            x, row_ok, row_shift = _shift_axis(x, rows, 1)
            x, column_ok, column_shift = _shift_axis(x, columns, 2)
            readable = (row_ok[:, :, None] & column_ok[:, None, :])[..., None]
        else:
            x = _pad(_pad(x, 1, 0, -height % WINDOW), 2, 0, -width % WINDOW)
        padded = x.shape
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=INITIAL)
        qkv = dense(3 * channels, name="qkv")(_windows(x))
        qkv = qkv.reshape(*qkv.shape[:3], 3, self.heads, channels // self.heads)
        query, key, value = (qkv[..., part, :, :] for part in range(3))
        query = query * jnp.asarray((channels // self.heads) ** -0.5, self.dtype)
        logits = jnp.einsum("bnqhd,bnkhd->bnhqk", query, key, preferred_element_type=jnp.float32)
        table = self.param("bias_table", INITIAL, ((2 * WINDOW - 1) ** 2, self.heads), jnp.float32)
        logits = logits + table[position_index()].transpose(2, 0, 1)[None, None]
        if readable is not None:
            logits = jnp.where(_windows(readable)[:, :, None, None, :, 0], logits, _OUTSIDE)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        y = jnp.einsum("bnhqk,bnkhd->bnqhd", weights, value).reshape(batch, -1, WINDOW * WINDOW, channels)
        y = dense(channels, name="proj")(y)
        y = y.reshape(batch, padded[1] // WINDOW, padded[2] // WINDOW, WINDOW, WINDOW, channels)
        y = y.swapaxes(2, 3).reshape(padded)
        return _unshift_axis(_unshift_axis(y, row_shift, height, 1), column_shift, width, 2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); each branch with its own drop path."""

    heads: int
    shifted: bool
    drop_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], used: Any, count: Any) -> Float[Array, "B h w C"]:
        channels = x.shape[-1]
        norm = functools.partial(LayerNorm, EPSILON, dtype=self.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=INITIAL)
        y = keep(norm(name="norm1")(x), used)
        y = WindowAttention(self.heads, self.shifted, dtype=self.dtype, name="attn")(y, count)
        x = x + drop_path(self, y, self.drop_rate)
        y = nn.gelu(dense(4 * channels, name="expand")(norm(name="norm2")(x)), approximate=False)
        return keep(x + drop_path(self, dense(channels, name="project")(y), self.drop_rate), used)


class PatchMerging(nn.Module):
    """Four neighbors beside each other (column by column), layer norm, linear 4C -> 2C. Odd sizes are padded."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B ho wo 2*C"]:
        features = 2 * x.shape[-1]
        x = _pad(_pad(x, 1, 0, x.shape[1] % 2), 2, 0, x.shape[2] % 2)
        x = jnp.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)
        x = LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        return nn.Dense(features, use_bias=False, dtype=self.dtype, kernel_init=INITIAL, name="reduction")(x)


class Swin(StagedBackbone):
    """See `StagedBackbone`; the stem is the paper's patch embedding."""

    heads: int = 3  # of res2; each stage doubles them

    epsilon = EPSILON

    @nn.nowrap
    def downsample(self, stage: int) -> Any:
        return PatchMerging(dtype=self.dtype, name=f"down{stage}")

    @nn.nowrap
    def block(self, stage: int, index: int, drop_rate: float, extent: Int[Array, "B 2"] | None) -> Any:
        count = None if extent is None else used_size(extent, 2**stage)
        heads, shifted = self.heads * 2 ** (stage - 2), index % 2 == 1
        block_class = nn.remat(Block) if self.remat else Block
        made = block_class(heads, shifted, drop_rate, dtype=self.dtype, name=f"res{stage}_{index}")
        return functools.partial(made, count=count)


def _build(size: str, options: ModelOptions) -> Swin:
    heads = HEADS[size]
    channels = max(heads, scaled_channels(size, options) // heads * heads)
    return Swin(blocks=BLOCKS[size], channels=channels, heads=heads, **shared_fields(options))


for _size in BLOCKS:
    register(f"swin_{_size}", BackboneSpec(functools.partial(_build, _size), check=check))
