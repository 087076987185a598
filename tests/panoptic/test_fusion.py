"""Kernel fusion against the walk through a list that the original describes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.panoptic.fusion import fuse_stuff, fuse_things
from pfcn_jax.types import Kernels


def make(weight: np.ndarray, class_id: np.ndarray, score: np.ndarray, valid: np.ndarray) -> Kernels:
    return Kernels(
        weight=jnp.asarray(weight, jnp.float32),
        class_id=jnp.asarray(class_id, jnp.int32),
        score=jnp.asarray(score, jnp.float32),
        valid=jnp.asarray(valid),
    )


def slow_fusion(weight, class_id, score, valid, threshold: float, class_aware: bool) -> list[tuple]:
    """(class, score, mean weight) of every cluster, best first."""
    order = sorted(np.flatnonzero(valid), key=lambda i: -score[i])
    owner = {}
    for place, j in enumerate(order):
        owner[j] = j
        for i in order[:place]:
            norms = max(np.linalg.norm(weight[i]), 1e-8) * max(np.linalg.norm(weight[j]), 1e-8)
            if weight[i] @ weight[j] / norms >= threshold and (not class_aware or class_id[i] == class_id[j]):
                owner[j] = i
                break
    heads = [j for j in order if owner[j] == j]
    return [(class_id[i], score[i], np.mean([weight[j] for j in order if owner[j] == i], axis=0)) for i in heads]


def random_kernels(rng: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
    """A few directions with noise, so that there are clusters, chains and ties of the score."""
    directions = rng.normal(size=(4, 3))
    weight = directions[rng.integers(0, 4, count)] + 0.3 * rng.normal(size=(count, 3))
    score = np.round(rng.random(count), 1)
    return weight, rng.integers(0, 2, count), score, rng.random(count) < 0.8


@pytest.mark.parametrize("class_aware", [True, False])
@pytest.mark.parametrize("threshold", [0.8, 0.95])
def test_fusion_is_the_walk_through_the_list(class_aware: bool, threshold: float) -> None:
    rng = np.random.default_rng(0)
    fuse = jax.jit(lambda kernels: fuse_things(kernels, threshold=threshold, class_aware=class_aware))
    dropped = 0
    for _ in range(40):
        case = random_kernels(rng, 20)
        fusion, expected = fuse(make(*case)), slow_fusion(*case, threshold, class_aware)
        ours, count = fusion.fused, len(expected)
        np.testing.assert_array_equal(ours.valid, np.arange(20) < count)
        np.testing.assert_array_equal(ours.class_id[:count], [e[0] for e in expected])
        np.testing.assert_allclose(ours.score[:count], [e[1] for e in expected], rtol=1e-6)
        np.testing.assert_allclose(ours.weight[:count], [e[2] for e in expected], atol=1e-5)
        owner, head = np.asarray(fusion.owner), np.asarray(ours.head)[:count]
        dropped += int((owner[owner] != owner).sum())
        np.testing.assert_array_equal(owner[head], head)  # every fused kernel is the mean of its members
        picked = np.asarray(fusion.picked.weight, np.float64)
        members = [(owner == slot) & np.asarray(fusion.picked.valid) for slot in head]
        means = [picked[member].mean(axis=0) for member in members]
        np.testing.assert_allclose(ours.weight[:count], np.reshape(means, (count, 3)), atol=1e-5)
    assert dropped > 0  # the cases hold kernels whose first claimant was itself claimed


def test_a_kernel_claimed_by_a_claimed_one_is_dropped() -> None:
    angle = np.deg2rad([0.0, 20.0, 40.0])
    weight = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    case = (weight, np.zeros(3), np.asarray([0.9, 0.8, 0.7]), np.ones(3, bool))
    ours = fuse_things(make(*case), threshold=0.9, class_aware=True).fused  # cos 20 = .94 is alike, cos 40 = .77 is not
    assert ours.valid.tolist() == [True, False, False]
    np.testing.assert_allclose(ours.weight[0], weight[:2].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("threshold", [1.5, np.float32(1.5)])
def test_without_fusion_kernels_are_only_sorted(threshold: float) -> None:
    case = (np.ones((4, 2)), np.zeros(4), np.asarray([0.1, 0.4, 0.3, 0.2]), np.asarray([True, True, False, True]))
    ours = fuse_things(make(*case), threshold=threshold, class_aware=True).fused
    assert ours.valid.tolist() == [True, True, True, False]
    np.testing.assert_allclose(ours.score[:3], [0.4, 0.2, 0.1])


def test_identical_kernels_fuse_at_threshold_one_and_zero_kernels_stay_alone() -> None:
    weight = np.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    case = make(weight, np.zeros(4), np.asarray([4.0, 3.0, 2.0, 1.0]), np.ones(4, bool))
    ours = fuse_things(case, threshold=1.0, class_aware=True).fused
    assert ours.valid.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(ours.score[:3], [4.0, 2.0, 1.0])


def test_nothing_valid_stays_nothing() -> None:
    case = (np.ones((3, 2)), np.zeros(3), np.ones(3), np.zeros(3, bool))
    assert not fuse_things(make(*case), threshold=0.9, class_aware=True).fused.valid.any()
    stuff = fuse_stuff(make(*case), channels=2)
    assert not stuff.valid.any()
    assert np.isfinite(stuff.weight).all() and np.isfinite(stuff.score).all()


def test_stuff_is_averaged_per_class() -> None:
    rng = np.random.default_rng(1)
    weight, class_id, score = rng.normal(size=(12, 3)), rng.integers(0, 5, 12), rng.random(12)
    valid = rng.random(12) < 0.7
    batch = jax.tree.map(lambda *x: jnp.stack(x), *[make(weight, class_id, s, valid) for s in (score, score[::-1])])
    ours = jax.vmap(lambda kernels: fuse_stuff(kernels, channels=5))(batch)
    for row, row_score in enumerate((score, score[::-1])):
        for channel in range(5):
            members = valid & (class_id == channel)
            assert ours.valid[row, channel] == members.any()
            if members.any():
                np.testing.assert_allclose(ours.weight[row, channel], weight[members].mean(0), rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(ours.score[row, channel], row_score[members].mean(), rtol=1e-5)
