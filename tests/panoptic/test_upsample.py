"""The matrices, windows and tiles of the way to the original size, against the two resizes one after the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.panoptic.upsample import (
    for_each_tile,
    make_upsampler,
    output_box,
    tile_frame,
    upsample_tile,
    whole_box,
)
from pfcn_jax.types import ImageGeometry, image_geometry


def slow_resize(x: np.ndarray, out: tuple[int, int]) -> np.ndarray:
    """Bilinear, half-pixel centers, no antialiasing, pixel by pixel."""
    result = np.zeros(out)
    for i in range(out[0]):
        for j in range(out[1]):
            at = [max((p + 0.5) * x.shape[a] / out[a] - 0.5, 0.0) for a, p in enumerate((i, j))]
            y, x_ = (min(int(p), x.shape[a] - 1) for a, p in enumerate(at))
            y1, x1 = min(y + 1, x.shape[0] - 1), min(x_ + 1, x.shape[1] - 1)
            fy, fx = at[0] - y, at[1] - x_
            result[i, j] = (1 - fy) * ((1 - fx) * x[y, x_] + fx * x[y, x1]) + fy * (
                (1 - fx) * x[y1, x_] + fx * x[y1, x1]
            )
    return result


def slow_original(probability: np.ndarray, size, extent, original) -> np.ndarray:
    """x4 on the extent, crop to the image, resize to the original."""
    used = probability[: extent[0] // 4, : extent[1] // 4]
    large = slow_resize(used, (extent[0], extent[1]))
    return slow_resize(large[: size[0], : size[1]], original)


def tiled(maps: np.ndarray, upsampler, shape: tuple[int, int]) -> jax.Array:
    """All tiles put together; NaN where no tile says that the pixel is its own, and a count of how many do."""
    box = whole_box(upsampler)

    def body(corner, carry):
        values, count = carry
        start, own = tile_frame(upsampler, corner, box)
        new = upsample_tile(jnp.asarray(maps), upsampler, corner, start)
        for n in range(maps.shape[1]):
            before = jax.lax.dynamic_slice(values[n], start, upsampler.tile)
            after = jax.lax.dynamic_update_slice(values[n], jnp.where(own, new[:, n], before), start)
            values = values.at[n].set(after)
        before = jax.lax.dynamic_slice(count, start, upsampler.tile)
        return values, jax.lax.dynamic_update_slice(count, before + own.astype(jnp.int32), start)

    empty = (jnp.full((maps.shape[1], *shape), jnp.nan), jnp.zeros(shape, jnp.int32))
    return for_each_tile(upsampler, box, body, empty)


SIZES = [  # size of the image, original size
    ((50, 61), (33, 40)),  # smaller than the input
    ((64, 64), (90, 75)),  # larger
    ((33, 64), (64, 33)),
    ((64, 32), (1, 1)),
    ((1, 1), (20, 30)),
    ((64, 64), (3, 100)),
]


@pytest.mark.parametrize("tile,window", [(16, 8), (128, 64), (24, 12)])
def test_tiles_give_the_two_resizes_at_any_size_without_compiling_again(tile: int, window: int) -> None:
    shape = (96, 104)
    maps = np.random.default_rng(0).random((20, 2, 24)).astype(np.float32)

    @jax.jit
    def run(size, extent, original):
        geometry = ImageGeometry(size, extent, original)
        upsampler = make_upsampler(geometry, map_shape=(20, 24), output_shape=shape, tile=tile, window=window)
        return tiled(maps, upsampler, shape)

    for size, original in SIZES:
        extent = tuple(-(-n // 32) * 32 for n in size)
        values, count = run(*(jnp.asarray(n, jnp.int32) for n in (size, extent, original)))
        inside = np.zeros(shape, int)
        inside[: original[0], : original[1]] = 1
        np.testing.assert_array_equal(count, inside)
        for n in range(2):
            expected = slow_original(maps[:, n].astype(np.float64), size, extent, original)
            np.testing.assert_allclose(values[n][: original[0], : original[1]], expected, atol=1e-5)
    assert run._cache_size() == 1


def test_windows_reach_far_enough_for_every_step() -> None:
    rng = np.random.default_rng(1)

    @jax.jit
    def axis(size, original):
        geometry = image_geometry(size, original)
        return make_upsampler(geometry, map_shape=(64, 64), output_shape=(300, 300), tile=40, window=16)

    for _ in range(200):
        size = rng.integers(1, 257, 2)
        original = rng.integers(1, 301, 2)
        upsampler = axis(jnp.asarray(size, jnp.int32), jnp.asarray(original, jnp.int32))
        for index, step, length in zip((upsampler.row_index, upsampler.column_index), upsampler.step, original):
            low, high = np.asarray(index).min(0)[:length], np.asarray(index).max(0)[:length]
            ends = np.minimum(np.arange(length) + int(step), length) - 1
            assert int(step) >= 1
            assert (high[ends] - low + 1).max() <= 16, (size, original)


def test_boxes_hold_every_pixel_above_the_threshold_and_nothing_needless() -> None:
    size, extent, original, shape = (50, 61), (64, 64), (70, 81), (80, 96)
    maps = np.zeros((4, 24, 20), np.float32)
    maps[0, 5:8, 3:9] = 0.9
    maps[1, 10, 10] = 0.6
    maps[2, 0, 18] = 1.0  # beyond the extent
    maps[3, 15, 4] = 1.0  # in the padding of the image, below its last row
    geometry = ImageGeometry(*(jnp.asarray(n, jnp.int32) for n in (size, extent, original)))
    upsampler = make_upsampler(geometry, map_shape=(24, 20), output_shape=shape)
    boxes = np.asarray(output_box(jnp.asarray(maps), upsampler, threshold=0.4))
    for n in (0, 1):
        above = slow_original(maps[n], size, extent, original) > 0.4
        y, x = np.nonzero(above)
        top, left, bottom, right = boxes[n]
        assert top <= y.min() and left <= x.min() and bottom > y.max() and right > x.max()
        assert bottom - top <= (y.max() - y.min()) + 16 and right - left <= (x.max() - x.min()) + 16
    assert boxes[2].tolist() == [0, 0, 0, 0]
    assert boxes[3][0] == boxes[3][2] == 0
