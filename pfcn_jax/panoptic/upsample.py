"""Probabilities at 1/4 resolution -> the image's original size, tile by tile, with all sizes as data.

The original upsamples by 4 (bilinear), crops the padding and resizes to the original size (bilinear, no
antialiasing). Both steps are linear and separable, so one matrix per axis does both, and the result is exact. A tile
of the output reads a small window of the map only; tiles are made where an object is, and nowhere else, so that the
cost follows the content. (A GPU takes tiles so large that one is mostly the whole image.) Tiles are dense products of
matrices: fast on every accelerator, no gather.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pfcn_jax.panoptic.kernels import Threshold
from pfcn_jax.panoptic.resample import Taps, linear_taps, taps_matrix
from pfcn_jax.types import FEATURE_STRIDE, ImageGeometry

Carry = TypeVar("Carry")

_ROUNDING = 1e-6  # of sums of bilinear weights


@struct.dataclass
class Upsampler:
    """How every output position reads the 1/4 map. Rows beyond the original size are zero."""

    rows: Float[Array, "H0 h"]
    columns: Float[Array, "W0 w"]
    row_index: Int[Array, "taps H0"]  # the map's rows that an output row reads
    column_index: Int[Array, "taps W0"]
    limit: Int[Array, " 2"]  # original size, at most the canvas
    padded_size: Int[Array, " 2"]
    step: Int[Array, " 2"]  # output pixels that a tile may own: its window reaches no further
    tile: tuple[int, int] = struct.field(pytree_node=False)
    window: tuple[int, int] = struct.field(pytree_node=False)


def make_upsampler(
    geometry: ImageGeometry,
    *,
    map_shape: tuple[int, ...],
    output_shape: tuple[int, int],
    tile: int = 128,
    window: int | None = None,
) -> Upsampler:
    """The upsampler of one image.

    Args:
      geometry: an original size that does not fit into `output_shape` is cut off.
      map_shape: static (h, w) of the 1/4 map.
      output_shape: static output canvas.
      tile: output pixels that are made at a time, each way.
      window: map positions that a tile may read, each way (at least 8). None: as many as a whole tile needs when the
        image fills both canvases. An image that is shrunk more gets smaller tiles, never a wrong result.
    """
    sizes = (geometry.size, geometry.padded_size, geometry.original_size)
    size, padded_size, original_size = (jnp.maximum(value, 1) for value in sizes)
    tiles, windows, rows_and_columns = [], [], []
    for axis in (0, 1):
        length, in_length = output_shape[axis], map_shape[axis]
        tiles.append(min(tile, length))
        windows.append(min(window or _round_up(tiles[axis] * in_length / length + 6, 8), in_length))
        taps = composed_taps(length, size[axis], padded_size[axis], original_size[axis], in_length=in_length)
        step = _step(size[axis], original_size[axis], tile=tiles[axis], window=windows[axis], in_length=in_length)
        rows_and_columns.append((taps_matrix(taps, in_length), taps.index, step))
    (rows, row_index, row_step), (columns, column_index, column_step) = rows_and_columns
    return Upsampler(
        rows=rows,
        columns=columns,
        row_index=row_index,
        column_index=column_index,
        limit=jnp.minimum(original_size, jnp.asarray(output_shape, original_size.dtype)).astype(jnp.int32),
        padded_size=geometry.padded_size,
        step=jnp.stack([row_step, column_step]),
        tile=(tiles[0], tiles[1]),
        window=(windows[0], windows[1]),
    )


def _round_up(number: float, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


def _step(
    size: Int[Array, ""], original_size: Int[Array, ""], *, tile: int, window: int, in_length: int
) -> Int[Array, ""]:
    """Output positions whose inputs fit into a window: n neighbors read at most (n - 1) * ratio + 4 inputs."""
    if window == in_length:
        return jnp.int32(tile)
    ratio = size.astype(jnp.float32) / (FEATURE_STRIDE * original_size.astype(jnp.float32))
    return jnp.clip(jnp.floor((window - 5) / ratio).astype(jnp.int32) + 1, 1, tile)


def composed_taps(
    length: int, size: Int[Array, ""], padded_size: Int[Array, ""], original_size: Int[Array, ""], *, in_length: int
) -> Taps:
    """The four taps of each output position in the 1/4 map: x4, crop to `size`, resize to `original_size`."""
    cells = -(-padded_size // FEATURE_STRIDE)
    enlarge = linear_taps(FEATURE_STRIDE * in_length, cells, FEATURE_STRIDE * cells)
    resize = linear_taps(length, size, original_size)
    index = enlarge.index[:, resize.index]  # [2, 2, length]
    weight = enlarge.weight[:, resize.index] * resize.weight[None, :, :]
    return Taps(index=index.reshape(4, length), weight=weight.reshape(4, length))


def output_box(probability: Float[Array, "N h w"], upsampler: Upsampler, *, threshold: Threshold) -> Int[Array, "N 4"]:
    """Box (top, left, bottom, right; ends exclusive) outside of which no output pixel exceeds `threshold`.

    An output pixel is a mean of positions, so it can only exceed what one of them exceeds. No such position: an
    empty box.
    """
    hot = probability > threshold - _ROUNDING
    cells = jnp.arange(max(hot.shape[1:])) * FEATURE_STRIDE
    hot_rows = jnp.any(hot & (cells[: hot.shape[2]] < upsampler.padded_size[1])[None, None, :], axis=2)
    hot_columns = jnp.any(hot & (cells[: hot.shape[1]] < upsampler.padded_size[0])[None, :, None], axis=1)
    top, bottom = _hot_range(hot_rows, upsampler.row_index, upsampler.limit[0])
    left, right = _hot_range(hot_columns, upsampler.column_index, upsampler.limit[1])
    return jnp.stack([top, left, bottom, right], axis=-1)


def _hot_range(
    hot: Bool[Array, "N in"], index: Int[Array, "taps n"], limit: Int[Array, ""]
) -> tuple[Int[Array, " N"], Int[Array, " N"]]:
    """First and one past the last output position that reads a hot input."""
    position = jnp.arange(index.shape[1], dtype=jnp.int32)
    reads = jnp.any(hot[:, index], axis=1) & (position < limit)[None, :]
    first = jnp.min(jnp.where(reads, position[None, :], index.shape[1]), axis=1)
    last = jnp.max(jnp.where(reads, position[None, :] + 1, 0), axis=1)
    return jnp.minimum(first, last), last


def whole_box(upsampler: Upsampler) -> Int[Array, " 4"]:
    """The box of the whole image."""
    return jnp.concatenate([jnp.zeros(2, jnp.int32), upsampler.limit])


def for_each_tile(
    upsampler: Upsampler,
    box: Int[Array, " 4"],
    body: Callable[[tuple[Int[Array, ""], Int[Array, ""]], Carry], Carry],
    carry: Carry,
) -> Carry:
    """Runs `body(corner, carry)` for the upper left corner of every tile of `box`: as many as the box needs.

    Where one tile is the whole canvas, `body` runs exactly once, without a loop to wait for, also for an empty box: it
    may change nothing but the pixels that `tile_frame` calls the tile's own.
    """
    if upsampler.tile == (upsampler.rows.shape[0], upsampler.columns.shape[0]) and upsampler.window == (
        upsampler.rows.shape[1],
        upsampler.columns.shape[1],
    ):
        return body((box[0], box[1]), carry)
    rows = _tiles(box[2] - box[0], upsampler.step[0])
    columns = _tiles(box[3] - box[1], upsampler.step[1])

    def step(index: Int[Array, ""], carry: Carry) -> Carry:
        row, column = index // jnp.maximum(columns, 1), index % jnp.maximum(columns, 1)
        return body((box[0] + row * upsampler.step[0], box[1] + column * upsampler.step[1]), carry)

    return lax.fori_loop(0, rows * columns, step, carry)


def _tiles(length: Int[Array, ""], step: Int[Array, ""]) -> Int[Array, ""]:
    return (jnp.maximum(length, 0) + step - 1) // step


def tile_frame(
    upsampler: Upsampler, corner: tuple[Int[Array, ""], Int[Array, ""]], box: Int[Array, " 4"]
) -> tuple[tuple[Int[Array, ""], Int[Array, ""]], Bool[Array, "ty tx"]]:
    """Where the tile at `corner` lies on the canvas, and which of its pixels are its own.

    At the canvas's far edge the tile is moved back to fit; its own pixels stay the same.
    """
    canvas = (upsampler.row_index.shape[1], upsampler.column_index.shape[1])
    start, own = [], []
    for axis in (0, 1):
        begin = jnp.minimum(corner[axis], canvas[axis] - upsampler.tile[axis])
        position = begin + jnp.arange(upsampler.tile[axis], dtype=jnp.int32)
        end = jnp.minimum(corner[axis] + upsampler.step[axis], box[2 + axis])
        start.append(begin)
        own.append((position >= corner[axis]) & (position < end))
    return (start[0], start[1]), own[0][:, None] & own[1][None, :]


def upsample_tile(
    maps: Float[Array, "h N w"],
    upsampler: Upsampler,
    corner: tuple[Int[Array, ""], Int[Array, ""]],
    start: tuple[Int[Array, ""], Int[Array, ""]],
) -> Float[Array, "ty N tx"]:
    """N maps, interleaved by rows, on the tile at `start`; exact on the tile's own pixels (those from `corner` on)."""
    (ty, tx), (wy, wx) = upsampler.tile, upsampler.window
    h, count, w = maps.shape
    y = jnp.minimum(jnp.min(lax.dynamic_slice_in_dim(upsampler.row_index, corner[0], 1, axis=1)), h - wy)
    x = jnp.minimum(jnp.min(lax.dynamic_slice_in_dim(upsampler.column_index, corner[1], 1, axis=1)), w - wx)
    part = lax.dynamic_slice(maps, (y, jnp.zeros_like(y), x), (wy, count, wx))
    rows = lax.dynamic_slice(upsampler.rows, (start[0], y), (ty, wy))
    columns = lax.dynamic_slice(upsampler.columns, (start[1], x), (tx, wx))
    exact = lax.Precision.HIGHEST
    tall = jnp.matmul(rows, part.reshape(wy, count * wx), precision=exact).reshape(ty * count, wx)
    return jnp.matmul(tall, columns.T, precision=exact).reshape(ty, count, tx)
