"""Labels at 1/4 and at level resolution, read from the id map without a stack of full-size masks.

A bilinear resampling of a one-hot map needs, for each output pixel, only the ids of the few input pixels it reads and
their weights; the mask of segment i is then the sum of the weights whose id is i.  `IdMapMasks` keeps exactly that
(4 taps at 1/4 resolution, 16 after the second resampling, to a level), `DenseMasks` keeps masks that may overlap.
Both answer `take(rows)`, so that everything downstream is written once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Integer

from pfcn_jax.panoptic.resample import Taps, linear_taps
from pfcn_jax.types import FEATURE_STRIDE, STRIDES, RegionChannels, SegmentTable

NO_LABEL = -1  # region channel of a pixel that is void, ignored or padding


@struct.dataclass
class IdMapMasks:
    """Soft masks of a resampled id map. `cells` is one or more axes of output positions.

    Id 0 belongs to no row; row r of the table is id r + 1.
    """

    ids: Int[Array, " taps *cells"]
    weight: Float[Array, " taps *cells"]

    def take(self, rows: Int[Array, " n"]) -> Float[Array, " n *cells"]:
        """The masks of `rows`, values in [0, 1]; a row that the map does not hold is all zero."""
        wanted = jnp.reshape(rows + 1, (-1,) + (1,) * (self.ids.ndim - 1))
        total = jnp.zeros((rows.shape[0], *self.ids.shape[1:]), jnp.float32)
        for ids, weight in zip(self.ids, self.weight):  # one fused expression, never [n, taps, ...] in memory
            total = total + jnp.where(ids[None] == wanted, weight[None], 0.0)
        return total

    def resample(self, rows: Taps, columns: Taps) -> IdMapMasks:
        """Resamples maps `[taps, h, w]` along both axes; the number of taps is multiplied by 4."""
        ids, weights = [], []
        for index_y, weight_y in zip(rows.index, rows.weight):
            for index_x, weight_x in zip(columns.index, columns.weight):
                ids.append(self.ids[:, index_y][:, :, index_x])
                weights.append(self.weight[:, index_y][:, :, index_x] * (weight_y[:, None] * weight_x[None, :])[None])
        return IdMapMasks(ids=jnp.concatenate(ids), weight=jnp.concatenate(weights))

    def onto(self, taps: Sequence[tuple[Taps, Taps]]) -> IdMapMasks:
        """Resamples to several grids and puts their cells on one axis, grid after grid."""
        parts = [self.resample(rows, columns) for rows, columns in taps]
        return IdMapMasks(
            ids=jnp.concatenate([part.ids.reshape(part.ids.shape[0], -1) for part in parts], axis=1),
            weight=jnp.concatenate([part.weight.reshape(part.weight.shape[0], -1) for part in parts], axis=1),
        )


@struct.dataclass
class DenseMasks:
    """Soft masks kept one by one: they may overlap, as COCO's polygons do."""

    values: Float[Array, " n *cells"]

    def take(self, rows: Int[Array, " m"]) -> Float[Array, " m *cells"]:
        """The masks of `rows`; a row beyond the last is all zero."""
        if self.values.shape[0] == 0:
            return jnp.zeros((rows.shape[0], *self.values.shape[1:]), jnp.float32)
        return jnp.take(self.values, rows, axis=0, mode="fill", fill_value=0.0)

    def resample(self, rows: Taps, columns: Taps) -> DenseMasks:
        """Resamples masks `[n, h, w]` along both axes."""
        values = sum(self.values[:, index] * weight[None, :, None] for index, weight in zip(rows.index, rows.weight))
        values = sum(values[:, :, index] * weight[None, None] for index, weight in zip(columns.index, columns.weight))
        return DenseMasks(values=values)

    def onto(self, taps: Sequence[tuple[Taps, Taps]]) -> DenseMasks:
        """Resamples to several grids and puts their cells on one axis, grid after grid."""
        parts = [self.resample(rows, columns).values for rows, columns in taps]
        flat = [part.reshape(part.shape[0], math.prod(part.shape[1:])) for part in parts]
        return DenseMasks(values=jnp.concatenate(flat, axis=1))


Masks = IdMapMasks | DenseMasks


def from_id_map(id_map: Integer[Array, "H W"]) -> IdMapMasks:
    """The id map itself as hard masks of one tap."""
    return IdMapMasks(ids=id_map[None].astype(jnp.int32), weight=jnp.ones((1, *id_map.shape), jnp.float32))


def quarter_taps(size: Int[Array, " 2"], canvas: tuple[int, ...]) -> tuple[Taps, Taps]:
    """Taps from the image to its map at 1/4 resolution on the canvas (rows, columns).

    The map has int(size / 4 + 0.5) positions in use, so its scale is exactly 4 only if the size is a multiple of 4.
    """
    stride = FEATURE_STRIDE
    quarter = jnp.maximum((size + stride // 2) // stride, 1)
    rows, columns = (linear_taps(canvas[axis] // stride, size[axis], quarter[axis]) for axis in (0, 1))
    return rows, columns


def region_id_map(
    segment_map: Integer[Array, "H W"], segments: SegmentTable, regions: RegionChannels
) -> Int[Array, "H W"]:
    """The semantic labels as an id map: region channel + 1, and 0 where there is no label. Crowds count as things."""
    ids = jnp.where(segments.valid, regions.of_class(segments.class_id), NO_LABEL) + 1
    lookup = jnp.concatenate([jnp.zeros((1,), ids.dtype), ids])
    return jnp.take(lookup, segment_map.astype(jnp.int32), axis=0, mode="fill", fill_value=0)


@dataclasses.dataclass(frozen=True)
class LevelCells:
    """The positions of all levels on one axis of A cells, level after level, row-major: all static."""

    level_shapes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...] = STRIDES

    def __post_init__(self) -> None:
        if len(self.level_shapes) != len(self.strides):
            raise ValueError(f"{len(self.level_shapes)} level shapes for {len(self.strides)} strides")

    @classmethod
    def of_canvas(cls, canvas: tuple[int, ...]) -> LevelCells:
        """The levels p3..p7 of a canvas (height, width)."""
        return cls(tuple((-(-canvas[0] // stride), -(-canvas[1] // stride)) for stride in STRIDES))

    @property
    def level(self) -> np.ndarray:
        """Index of each cell's level, int32 [A]."""
        return np.repeat(np.arange(len(self.strides)), [h * w for h, w in self.level_shapes]).astype(np.int32)

    @property
    def row_column(self) -> np.ndarray:
        """Row and column of each cell on its level, int32 [2, A]."""
        return np.concatenate([np.indices(shape).reshape(2, -1) for shape in self.level_shapes], axis=1).astype(
            np.int32
        )

    def used_sizes(self, padded_size: Int[Array, " 2"]) -> Int[Array, "L 2"]:
        """Rows and columns in use per level: ceil(padded_size / stride)."""
        strides = jnp.asarray(self.strides, jnp.int32)[:, None]
        return (padded_size[None].astype(jnp.int32) + strides - 1) // strides

    def in_use(self, padded_size: Int[Array, " 2"]) -> Bool[Array, " A"]:
        """Which cells lie inside the padded image."""
        used = jnp.take(self.used_sizes(padded_size), jnp.asarray(self.level), axis=0)  # [A, 2]
        return jnp.all(used > jnp.asarray(self.row_column).T, axis=1)

    def flatten(self, maps: Sequence[Array]) -> Array:
        """`[hl, wl, C]` per level -> `[A, C]`."""
        return jnp.concatenate([values.reshape(-1, values.shape[-1]) for values in maps])

    def split(self, cells: Array) -> tuple[Array, ...]:
        """`[A, C]` -> `[hl, wl, C]` per level."""
        ends = np.cumsum([h * w for h, w in self.level_shapes])[:-1].tolist()
        parts = jnp.split(cells, ends)
        return tuple(part.reshape(*shape, cells.shape[-1]) for part, shape in zip(parts, self.level_shapes))


def level_masks(quarter: Masks, padded_size: Int[Array, " 2"], cells: LevelCells) -> Masks:
    """Masks at 1/4 `[h, w]` resampled (bilinear) to every level: masks over the A cells.

    padded_size / 4 positions become ceil(padded_size / stride) positions, as the original does: on a level whose stride
    does not divide the padded size the scale is a little below stride / 4.
    """
    used = cells.used_sizes(padded_size)
    source = padded_size // FEATURE_STRIDE
    taps = [
        (linear_taps(height, source[0], used[index, 0]), linear_taps(width, source[1], used[index, 1]))
        for index, (height, width) in enumerate(cells.level_shapes)
    ]
    return quarter.onto(taps)
