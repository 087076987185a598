"""Rescoring and mask NMS against loops in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.panoptic.options import PredictOptions
from pfcn_jax.panoptic.rescore import mask_iou, mask_means, rescore, suppress
from pfcn_jax.types import Kernels


def scene(rng: np.random.Generator, count: int, valid: int, shape: tuple[int, int] = (12, 16)) -> tuple:
    """Kernels, valid ones first and best first, and a feature."""
    kernels = Kernels(
        weight=jnp.asarray(rng.normal(size=(count, 6)), jnp.float32),
        class_id=jnp.asarray(rng.integers(0, 3, count), jnp.int32),
        score=jnp.asarray(np.sort(rng.random(count))[::-1], jnp.float32),
        valid=jnp.arange(count) < valid,
    )
    return kernels, jnp.asarray(rng.normal(size=(*shape, 6)), jnp.float32)


def slow_masks(kernels: Kernels, feature: jax.Array, extent: tuple[int, int], threshold: float) -> tuple:
    used = np.asarray(feature, np.float64)[: -(-extent[0] // 4), : -(-extent[1] // 4)]
    p = 1 / (1 + np.exp(-np.einsum("me,hwe->mhw", np.asarray(kernels.weight, np.float64), used)))
    return p, p > threshold


@pytest.mark.parametrize("valid", [0, 1, 5, 11])
@pytest.mark.parametrize("extent", [(48, 64), (32, 32)])
def test_scores_are_means_inside_the_mask_over_the_extent(valid: int, extent: tuple[int, int]) -> None:
    kernels, feature = scene(np.random.default_rng(0), 11, valid)
    weight = kernels.weight.at[0].set(0.0)  # probability 1/2 everywhere: empty at a threshold of 0.6
    kernels = kernels.replace(weight=weight)
    p, mask = slow_masks(kernels, feature, extent, 0.6)
    expected = [float(p[i][mask[i]].mean()) if i < valid and mask[i].any() else 0.0 for i in range(11)]
    run = jax.jit(lambda k, f, e: mask_means(k, f, e, threshold=0.6, chunk=4))
    np.testing.assert_allclose(run(kernels, feature, jnp.asarray(extent)), expected, rtol=1e-5)


def test_long_sums_keep_four_digits() -> None:
    """A mask of 200 thousand positions: a running float32 sum must not drift."""
    feature = jnp.asarray(np.random.default_rng(1).uniform(0.5, 3.0, (256, 800, 1)), jnp.float32)
    kernels = Kernels(
        weight=jnp.ones((1, 1)), class_id=jnp.zeros(1, jnp.int32), score=jnp.ones(1), valid=jnp.ones(1, bool)
    )
    ours = jax.jit(lambda k, f: mask_means(k, f, jnp.asarray([1024, 3200]), threshold=0.4))(kernels, feature)
    expected = (1 / (1 + np.exp(-np.asarray(feature, np.float64)))).mean()
    np.testing.assert_allclose(ours[0], expected, rtol=1e-5)


def test_keeps_the_best_above_the_least_score_in_order() -> None:
    extent = (48, 64)
    kernels, feature = scene(np.random.default_rng(2), 9, 7)
    p, mask = slow_masks(kernels, feature, extent, 0.4)
    score = np.asarray([kernels.score[i] * p[i][mask[i]].mean() for i in range(7)])
    least = float(np.sort(score)[2] + 1e-4)
    order = [i for i in np.argsort(-score, kind="stable") if score[i] > least]
    for slots in (3, 20):
        run = jax.jit(
            lambda k, f, slots=slots: rescore(
                k, f, jnp.asarray(extent), PredictOptions(min_score=least, max_things=slots)
            )
        )
        ours = run(kernels, feature)
        count = min(slots, len(order))
        np.testing.assert_array_equal(ours.valid, np.arange(slots) < count)
        np.testing.assert_array_equal(ours.class_id[:count], np.asarray(kernels.class_id)[order[:count]])
        np.testing.assert_allclose(ours.score[:count], score[order[:count]], rtol=1e-5)
        np.testing.assert_array_equal(ours.weight[:count], np.asarray(kernels.weight)[order[:count]])


@pytest.mark.parametrize("valid", [0, 1, 6, 11])
def test_mask_iou_counts_positions_of_the_extent(valid: int) -> None:
    extent = (44, 40)
    kernels, feature = scene(np.random.default_rng(3), 11, valid, shape=(13, 16))
    _, mask = slow_masks(kernels, feature, extent, 0.4)
    run = jax.jit(lambda k, f, e: mask_iou(k, f, e, threshold=0.4, rows=4, chunk=4))
    ours = run(kernels, feature, jnp.asarray(extent))
    expected = np.zeros((11, 11))
    for i, j in np.ndindex(valid, valid):
        expected[i, j] = (mask[i] & mask[j]).sum() / max((mask[i] | mask[j]).sum(), 1)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_greedy_suppression_is_the_loop() -> None:
    rng = np.random.default_rng(4)
    run = jax.jit(lambda k, o: suppress(k, o, threshold=0.5))
    revived = 0
    for _ in range(30):
        kernels, _ = scene(rng, 10, 8)
        overlap = rng.random((10, 10)).astype(np.float32)
        kept: list[int] = []
        for i in range(8):
            rivals = [j for j in range(i) if overlap[j, i] > 0.5 and kernels.class_id[j] == kernels.class_id[i]]
            if not any(j in kept for j in rivals):
                kept.append(i)
                revived += bool(rivals)
        np.testing.assert_array_equal(np.flatnonzero(run(kernels, jnp.asarray(overlap))), kept)
    assert revived > 0  # some were overlapped by suppressed ones only


def test_nms_lets_one_of_two_equal_masks_live() -> None:
    kernels, feature = scene(np.random.default_rng(5), 4, 4)
    kernels = kernels.replace(
        weight=kernels.weight.at[2].set(kernels.weight[0]),
        class_id=jnp.asarray([1, 0, 1, 0]),
        score=jnp.asarray([0.9, 0.8, 0.7, 0.6]),
    )
    extent = jnp.asarray([48, 64])
    scores = np.asarray(kernels.score * mask_means(kernels, feature, extent, threshold=0.4))
    kept = rescore(kernels, feature, extent, PredictOptions(mask_nms=True, mask_nms_threshold=0.99, max_things=4))
    without = rescore(kernels, feature, extent, PredictOptions(max_things=4))
    np.testing.assert_allclose(without.score, np.sort(scores)[::-1], rtol=1e-6)
    assert kept.valid.tolist() == [True, True, True, False]
    np.testing.assert_allclose(np.asarray(kept.score)[:3], np.sort(np.delete(scores, 2))[::-1], rtol=1e-6)
