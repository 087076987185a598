"""Peaks, picks and pooled regions against loops in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.panoptic.kernels import (
    POOL_WINDOWS,
    center_peaks,
    convolve,
    pad_slots,
    pick_level,
    pick_things,
    pool_level,
    pool_stuff,
    sort_by_score,
)
from pfcn_jax.types import STRIDES, Kernels


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x.astype(np.float64)))


def slow_peaks(logits: np.ndarray, rows: int, columns: int, window: int) -> np.ndarray:
    """Position by position, on the part in use."""
    p = sigmoid(logits[:rows, :columns])
    reach = window // 2
    score = np.zeros_like(p)
    for y in range(rows):
        for x in range(columns):
            near = p[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
            score[y, x] = (p[y, x] + near.sum((0, 1)) / window**2) / 2
    peaks = np.zeros(logits.shape)
    for y in range(rows):
        for x in range(columns):
            best = score[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max((0, 1))
            peaks[y, x] = np.where(score[y, x] == best, score[y, x], 0.0)
    return peaks


@pytest.mark.parametrize("window", [3, 5])
@pytest.mark.parametrize("extent", [(64, 96), (32, 40), (8, 8)])
def test_peaks_are_those_of_the_part_in_use(window: int, extent: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (8, 12, 3)).astype(np.float32)
    rows, columns = -(-extent[0] // 8), -(-extent[1] // 8)
    ours = center_peaks(jnp.asarray(logits), jnp.asarray(extent), stride=8, window=window)
    np.testing.assert_allclose(ours, slow_peaks(logits, rows, columns, window), atol=1e-6)
    beyond = logits.copy()
    beyond[rows:] = 50.0
    beyond[:, columns:] = 50.0
    np.testing.assert_array_equal(center_peaks(jnp.asarray(beyond), jnp.asarray(extent), stride=8, window=window), ours)


def slow_picks(peaks: np.ndarray, rows: int, columns: int, candidates: int, threshold: float) -> list[tuple]:
    """(score, class, row, column), best first; equal ones by row, column, class."""
    found = [
        (-peaks[y, x, c], y, x, c)
        for y in range(peaks.shape[0])
        for x in range(peaks.shape[1])
        for c in range(peaks.shape[2])
    ]
    found = sorted(found)[: min(candidates, rows * columns)]
    return [(-score, c, y, x) for score, y, x, c in found if -score > threshold]


@pytest.mark.parametrize("candidates", [1, 5, 40])
@pytest.mark.parametrize("extent", [(32, 48), (16, 16), (1, 1)])
def test_picks_the_best_positions_over_all_classes(candidates: int, extent: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    rows, columns = -(-extent[0] // 8), -(-extent[1] // 8)
    peaks = np.zeros((4, 6, 3), np.float32)
    # Few different values: many are equal.
    peaks[:rows, :columns] = rng.integers(0, 4, (rows, columns, 3)) / 4
    kernel_map = rng.normal(size=(4, 6, 7)).astype(np.float32)
    ours = pick_level(
        jnp.asarray(peaks),
        jnp.asarray(kernel_map),
        jnp.asarray(extent),
        level=0,
        candidates=candidates,
        threshold=0.25,
    )
    expected = slow_picks(peaks, rows, columns, candidates, 0.25)
    valid = np.asarray(ours.valid)
    assert valid.sum() == len(expected)
    np.testing.assert_array_equal(np.asarray(ours.score)[valid], [e[0] for e in expected])
    np.testing.assert_array_equal(np.asarray(ours.class_id)[valid], [e[1] for e in expected])
    picked = np.asarray([kernel_map[y, x] for _, _, y, x in expected]).reshape(-1, 7)
    np.testing.assert_array_equal(np.asarray(ours.weight)[valid], picked)


def test_threshold_is_strict_and_no_peak_gives_no_kernel() -> None:
    peaks = np.zeros((2, 2, 1), np.float32)
    peaks[0, 0], peaks[1, 1] = 0.5, 0.25
    for threshold, count in ((0.0, 2), (0.25, 1), (0.5, 0)):
        ours = pick_level(
            jnp.asarray(peaks), jnp.zeros((2, 2, 3)), jnp.asarray([16, 16]), level=0, candidates=9, threshold=threshold
        )
        assert int(ours.valid.sum()) == count


def slow_pool(logits: np.ndarray, kernel_map: np.ndarray, rows: int, columns: int) -> dict[int, tuple]:
    best = logits[:rows, :columns].argmax(-1)
    result = {}
    for channel in np.unique(best):
        region = best == channel
        score = sigmoid(logits[:rows, :columns, channel])[region].mean()
        result[int(channel)] = (score, kernel_map[:rows, :columns][region].sum(0) / (rows * columns))
    return result


@pytest.mark.parametrize("extent", [(64, 64), (40, 24), (3, 3)])
def test_stuff_is_pooled_over_its_region_and_divided_by_the_whole_area(extent: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(8, 8, 6)).astype(np.float32)
    kernel_map = rng.normal(size=(8, 8, 5)).astype(np.float32)
    ours = pool_level(jnp.asarray(logits), jnp.asarray(kernel_map), jnp.asarray(extent), level=0, threshold=0.6)
    expected = slow_pool(logits, kernel_map, -(-extent[0] // 8), -(-extent[1] // 8))
    kept = [channel for channel, (score, _) in expected.items() if score > 0.6]
    np.testing.assert_array_equal(np.flatnonzero(ours.valid), kept)
    for channel in kept:
        np.testing.assert_allclose(ours.score[channel], expected[channel][0], rtol=1e-6)
        np.testing.assert_allclose(ours.weight[channel], expected[channel][1], atol=1e-6)


def five_levels(rng: np.random.Generator, height: int, width: int, channels: int) -> tuple[jax.Array, ...]:
    return tuple(
        jnp.asarray(rng.normal(size=(-(-height // s), -(-width // s), channels)), jnp.float32) for s in STRIDES
    )


def test_levels_follow_each_other_and_the_canvas_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    extent = jnp.asarray([96, 128])
    centers, regions, maps = (five_levels(rng, 96, 128, n) for n in (4, 5, 3))

    def grow(levels: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(
            jnp.asarray(np.pad(x, [(0, 64 // s), (0, 128 // s), (0, 0)], constant_values=9.0))
            for x, s in zip(levels, STRIDES)
        )

    def both(centers, regions, maps):
        return pick_things(centers, maps, extent, candidates=6, threshold=0.3), pool_stuff(
            regions, maps, extent, threshold=0.3
        )

    small, large = jax.jit(both)(centers, regions, maps), jax.jit(both)(grow(centers), grow(regions), grow(maps))
    assert small[0].score.shape == (6 + 6 + 6 + 4 + 1,)
    assert small[1].score.shape == (5 * 5,)
    for ours, on_canvas in zip(small, large):
        assert int(ours.valid.sum()) > 3
        for field in ("weight", "class_id", "score"):
            np.testing.assert_allclose(
                np.asarray(getattr(on_canvas, field))[np.asarray(on_canvas.valid)],
                np.asarray(getattr(ours, field))[np.asarray(ours.valid)],
                atol=1e-6,
            )
    first = pick_level(
        center_peaks(centers[0], extent, stride=8, window=POOL_WINDOWS[0]),
        maps[0],
        extent,
        level=0,
        candidates=6,
        threshold=0.3,
    )
    np.testing.assert_array_equal(small[0].weight[:6], first.weight)


def test_sorting_is_stable_and_puts_valid_slots_first() -> None:
    kernels = Kernels(
        weight=jnp.arange(6.0)[:, None],
        class_id=jnp.arange(6),
        score=jnp.asarray([0.5, 0.9, 0.5, 1.0, 0.9, 0.1]),
        valid=jnp.asarray([True, True, True, False, True, True]),
    )
    ours = jax.jit(sort_by_score)(kernels)
    np.testing.assert_array_equal(ours.class_id, [1, 4, 0, 2, 5, 3])
    np.testing.assert_array_equal(ours.valid, [True] * 5 + [False])
    assert pad_slots(ours, 4).valid.tolist() == [True] * 5 + [False] * 3


def test_convolve_is_a_product_at_every_position() -> None:
    rng = np.random.default_rng(4)
    weight, feature = rng.normal(size=(3, 5)), rng.normal(size=(4, 2, 5))
    ours = convolve(jnp.asarray(weight, jnp.bfloat16), jnp.asarray(feature, jnp.float32))
    assert ours.dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(weight, jnp.bfloat16).astype(jnp.float32))
    for m, y, x in np.ndindex(3, 4, 2):
        np.testing.assert_allclose(ours[m, y, x], rounded[m] @ feature[y, x], rtol=1e-4, atol=1e-5)
