"""Focal, position and dice losses against slow NumPy forms; streamed dice against all masks in memory."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.panoptic.dice import plain_dice, streaming_dice
from pfcn_jax.panoptic.labels import DenseMasks, IdMapMasks
from pfcn_jax.panoptic.losses import (
    LossSums,
    combine,
    focal_loss,
    loss_sums,
    position_sums,
    stuff_dice_sums,
    thing_dice_sums,
)
from pfcn_jax.panoptic.options import LossOptions
from pfcn_jax.types import DenseOutputs
from tests.panoptic import slow_training as slow
from tests.panoptic.test_guidance import CANVAS, maps, scene_targets, slow_scene
from tests.panoptic.training_scene import EXTENT, NUM_STUFF, NUM_THINGS

HEIGHT, WIDTH, CHANNELS = 12, 16, 5
WHOLE = jnp.array([4 * HEIGHT, 4 * WIDTH])


def test_focal_loss_with_soft_targets() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(4, 50)) * 4, rng.uniform(size=(4, 50)).round(1)
    usual = functools.partial(focal_loss, alpha=0.25, gamma=2.0)
    value = jax.jit(usual)(jnp.asarray(logits, jnp.float32), jnp.asarray(target, jnp.float32))
    np.testing.assert_allclose(value, slow.focal(logits, target), rtol=2e-5, atol=1e-7)
    other = focal_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(target, jnp.float32), alpha=0.5, gamma=1.5)
    np.testing.assert_allclose(other, slow.focal(logits, target, 0.5, 1.5), rtol=2e-5, atol=1e-7)


def test_focal_loss_is_finite_at_the_ends() -> None:
    logits = jnp.array([-200.0, 200.0, -200.0, 200.0])
    target = jnp.array([0.0, 0.0, 1.0, 1.0])
    value, slope = jax.vmap(jax.value_and_grad(functools.partial(focal_loss, alpha=0.25, gamma=2.0)))(logits, target)
    np.testing.assert_allclose(value, [0.0, 150.0, 50.0, 0.0], rtol=1e-5)
    np.testing.assert_allclose(slope, [0.0, 0.75, -0.25, 0.0], atol=1e-5)


@pytest.mark.parametrize("canvas", [EXTENT, CANVAS])
def test_position_sums_and_their_gradients(canvas: tuple[int, int]) -> None:
    centers, regions = maps(NUM_THINGS, seed=3, canvas=canvas), maps(1 + NUM_STUFF, seed=4, canvas=canvas)
    targets, expected = scene_targets(canvas), slow_scene()
    ours = jax.jit(position_sums, static_argnums=3)(centers, regions, targets, LossOptions())
    for level, (heatmap, region) in enumerate(zip(expected.heatmap, expected.region)):
        height, width = heatmap.shape[:2]
        sums = [
            slow.focal(np.asarray(logits[level])[:height, :width], target).sum()
            for logits, target in ((centers, heatmap), (regions, region))
        ]
        np.testing.assert_allclose(ours[0][level], sums[0], rtol=1e-5)
        np.testing.assert_allclose(ours[1][level], sums[1] / (height * width), rtol=1e-5)

    def total(centers, regions):
        parts = position_sums(centers, regions, targets, LossOptions())
        return jnp.sum(parts[0]) + jnp.sum(parts[1])

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(centers, regions):
        for level, (height, width) in enumerate(heatmap.shape[:2] for heatmap in expected.heatmap):
            slope = np.asarray(gradient[level])
            assert slope[:height, :width].any() and not slope[height:].any() and not slope[:, width:].any()


def dice_case(slots: int = 7, used: int = 5, k: int = 3, *, dense: bool = False, dtype=jnp.float32):
    rng = np.random.default_rng(slots + 10 * used + 100 * k)
    ids = IdMapMasks(
        ids=jnp.asarray(rng.integers(0, slots + 1, (4, HEIGHT, WIDTH)), jnp.int32),
        weight=jnp.asarray(np.array([0.1, 0.2, 0.3, 0.4])[:, None, None] * np.ones((1, HEIGHT, WIDTH)), jnp.float32),
    )
    weight = rng.uniform(size=(slots, k))
    return {
        "kernel": jnp.asarray(rng.normal(size=(slots, k, CHANNELS)), jnp.float32),
        "weight": jnp.asarray(weight / weight.sum(axis=1, keepdims=True), jnp.float32),
        "valid": jnp.arange(slots) < used,
        "feature": jnp.asarray(rng.normal(size=(HEIGHT, WIDTH, CHANNELS)), dtype),
        "masks": DenseMasks(values=ids.take(jnp.arange(slots))) if dense else ids,
        "rows": jnp.asarray(rng.permutation(slots), jnp.int32),
        "padded_size": WHOLE,
    }


def slow_dice(case) -> np.ndarray:
    kernel, weight = np.asarray(case["kernel"], np.float64), np.asarray(case["weight"], np.float64)
    feature = np.asarray(case["feature"].astype(jnp.float32), np.float64)
    masks = np.asarray(case["masks"].take(case["rows"]), np.float64)
    out = np.zeros(len(kernel))
    for slot in np.flatnonzero(case["valid"]):
        for i in range(kernel.shape[1]):
            out[slot] += weight[slot, i] * slow.dice(feature @ kernel[slot, i], masks[slot])
    return out


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("function", [plain_dice, streaming_dice])
def test_dice_values(function, dense: bool) -> None:
    case = dice_case(dense=dense)
    np.testing.assert_allclose(jax.jit(function)(**case), slow_dice(case), rtol=1e-5, atol=1e-6)


def values_and_gradients(function, case, **options):
    factor = jnp.asarray(np.random.default_rng(9).uniform(0.5, 2.0, case["valid"].shape[0]), jnp.float32)

    def total(kernel, weight, feature):
        value = function(**{**case, "kernel": kernel, "weight": weight, "feature": feature}, **options)
        return jnp.sum(value * factor)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(case["kernel"], case["weight"], case["feature"])


@pytest.mark.parametrize(
    "slots, used, k, slots_at_once",
    [(7, 5, 3, 2), (7, 7, 3, 3), (7, 1, 1, 4), (4, 4, 2, 100), (5, 0, 3, 2), (1, 1, 7, 1)],
)
def test_streaming_equals_plain(slots: int, used: int, k: int, slots_at_once: int) -> None:
    case = dice_case(slots, used, k)
    plain = values_and_gradients(plain_dice, case)
    streamed = values_and_gradients(streaming_dice, case, pixels_at_once=slots_at_once * k * HEIGHT * WIDTH)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), streamed, plain)
    assert used == 0 or all(np.asarray(g).any() for g in streamed[1])
    if used == 0:
        assert not any(np.asarray(g).any() for g in streamed[1])


def test_streaming_under_map_over_a_batch() -> None:
    """Images with different numbers of instances, one program, gradients through the loop over images."""
    cases = [dice_case(7, used) for used in (5, 0, 2)]
    batch = jax.tree.map(lambda *values: jnp.stack(values), *cases)

    def total(kernel, feature, mapped):
        def one(case):
            return jnp.sum(streaming_dice(**case, pixels_at_once=2 * 3 * HEIGHT * WIDTH))

        return jnp.sum(mapped(one)({**batch, "kernel": kernel, "feature": feature}))

    expected = [values_and_gradients_plain(case) for case in cases]
    for mapped in (lambda one: functools.partial(jax.lax.map, one), jax.vmap):
        run = jax.jit(jax.value_and_grad(functools.partial(total, mapped=mapped), argnums=(0, 1)))
        value, gradients = run(batch["kernel"], batch["feature"])
        np.testing.assert_allclose(value, sum(float(v) for v, _ in expected), rtol=1e-5)
        for ours, name in zip(gradients, (0, 1)):
            reference = np.stack([np.asarray(g[name]) for _, g in expected])
            np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-6)


def values_and_gradients_plain(case):
    def total(kernel, feature):
        return jnp.sum(plain_dice(**{**case, "kernel": kernel, "feature": feature}))

    return jax.value_and_grad(total, argnums=(0, 1))(case["kernel"], case["feature"])


def test_dice_gradient_is_the_slope_of_its_value() -> None:
    """Central differences in float64 NumPy, apart from any of our code."""
    case = dice_case(3, 3, 2)
    gradient = jax.jit(jax.grad(lambda kernel: jnp.sum(streaming_dice(**{**case, "kernel": kernel}))))(case["kernel"])
    kernel = np.asarray(case["kernel"], np.float64)
    for index in [(0, 0, 0), (1, 1, 3), (2, 0, 4)]:
        ends = []
        for sign in (1, -1):
            moved = kernel.copy()
            moved[index] += sign * 1e-4
            ends.append(slow_dice({**case, "kernel": moved}).sum())
        np.testing.assert_allclose(gradient[index], (ends[0] - ends[1]) / 2e-4, rtol=1e-3, atol=1e-6)


def test_half_precision_feature() -> None:
    case = dice_case(dtype=jnp.bfloat16)
    value, gradients = values_and_gradients(streaming_dice, case)
    assert value.dtype == jnp.float32 and gradients[2].dtype == jnp.bfloat16
    exact, exact_gradients = values_and_gradients(
        streaming_dice, {**case, "feature": case["feature"].astype(jnp.float32)}
    )
    np.testing.assert_allclose(value, exact, rtol=5e-3)
    for ours, reference in zip(gradients, exact_gradients):
        reference = np.asarray(reference, np.float32)
        np.testing.assert_allclose(np.asarray(ours, np.float32), reference, atol=2e-2 * np.abs(reference).max())


def test_nothing_beyond_the_extent_counts() -> None:
    case = dice_case()
    inner = values_and_gradients(streaming_dice, case)
    grown = {
        **case,
        "feature": jnp.pad(case["feature"], [(0, 4), (0, 3), (0, 0)], constant_values=9.0),
        "masks": jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 4), (0, 3)]), case["masks"]),
    }
    outer = values_and_gradients(streaming_dice, grown)
    np.testing.assert_allclose(outer[0], inner[0], rtol=1e-6)
    np.testing.assert_allclose(outer[1][0], inner[1][0], rtol=1e-4, atol=1e-7)
    assert not np.asarray(outer[1][2])[HEIGHT:].any() and not np.asarray(outer[1][2])[:, WIDTH:].any()


def test_sums_of_a_scene_and_the_batch_they_make() -> None:
    """All sums and the four losses from head outputs, against the formulas."""
    rng = np.random.default_rng(11)
    targets, expected = scene_targets(), slow_scene()
    centers, regions = maps(NUM_THINGS, seed=3), maps(1 + NUM_STUFF, seed=4)
    feature = rng.normal(size=(EXTENT[0] // 4, EXTENT[1] // 4, CHANNELS))
    slots, stuff_slots = targets.things.valid.shape[0], targets.stuff.valid.shape[0]
    things, stuff = rng.normal(size=(slots, 2, CHANNELS)), rng.normal(size=(stuff_slots, CHANNELS))
    weight = np.tile([0.7, 0.3], (slots, 1))
    as_float32 = [jnp.asarray(values, jnp.float32) for values in (feature, things, weight, stuff)]
    outputs = DenseOutputs(centers, regions, (), as_float32[0])
    sums = jax.jit(loss_sums, static_argnums=5)(outputs, *as_float32[1:], targets, LossOptions())

    thing = [
        sum(w * slow.dice(feature @ things[slot, i], expected.masks[row]) for i, w in enumerate((0.7, 0.3)))
        for slot, (row, _) in enumerate(expected.pairs)
    ]
    region = [
        slow.dice(feature @ stuff[slot], expected.region_masks[channel])
        for slot, (channel, _) in enumerate(expected.present)
    ]
    ours = jax.jit(thing_dice_sums)(as_float32[1], as_float32[2], as_float32[0], targets)
    np.testing.assert_allclose(ours[: len(thing)], thing, rtol=1e-5)
    assert not np.asarray(ours)[len(thing) :].any()
    ours = jax.jit(stuff_dice_sums)(as_float32[3], as_float32[0], targets)
    np.testing.assert_allclose(ours[: len(region)], region, rtol=1e-5)
    focal = sum(slow.focal(np.asarray(a), b).sum() for a, b in zip(centers, expected.heatmap))
    means = sum(slow.focal(np.asarray(a), b).mean(axis=(0, 1)).sum() for a, b in zip(regions, expected.region))

    batch = jax.tree.map(lambda value: value + value, sums)  # the same image twice
    losses = combine(batch, LossOptions())
    np.testing.assert_allclose(losses["loss_pos_th"], focal / len(expected.pairs), rtol=1e-5)
    np.testing.assert_allclose(losses["loss_pos_st"], means, rtol=1e-5)
    np.testing.assert_allclose(losses["loss_seg_th"], 3 * np.mean(thing), rtol=1e-5)
    np.testing.assert_allclose(losses["loss_seg_st"], 3 * np.mean(region), rtol=1e-5)
    weighted = combine(batch, LossOptions(position_weight=2.0, segmentation_weight=4.0))
    np.testing.assert_allclose(weighted["loss_pos_th"], 2 * losses["loss_pos_th"], rtol=1e-6)
    np.testing.assert_allclose(weighted["loss_seg_st"] * 3, 4 * losses["loss_seg_st"], rtol=1e-6)


def test_positives_are_counted_over_the_batch_not_per_image() -> None:
    one = {"regions": 0.5, "thing_dice": 2.0, "stuff_dice": 3.0, "stuff_pairs": 6.0, "images": 1.0}
    first = LossSums(centers=jnp.array(30.0), positives=jnp.array(9.0), thing_pairs=jnp.array(8.0), **one)
    second = LossSums(centers=jnp.array(10.0), positives=jnp.array(1.0), thing_pairs=jnp.array(0.0), **one)
    losses = combine(jax.tree.map(lambda a, b: jnp.asarray(a + b), first, second), LossOptions())
    np.testing.assert_allclose(losses["loss_pos_th"], 4.0)
    np.testing.assert_allclose(losses["loss_pos_st"], 0.5)
    np.testing.assert_allclose(losses["loss_seg_th"], 3 * 4.0 / 8)
    np.testing.assert_allclose(losses["loss_seg_st"], 3 * 6.0 / 12)


def test_batch_without_a_thing_does_not_blow_up() -> None:
    zero = jnp.zeros(())
    sums = LossSums(jnp.array(900.0), jnp.array(8.0), zero, zero, zero, zero, zero, jnp.array(2.0))
    losses = combine(sums, LossOptions())
    np.testing.assert_allclose(losses["loss_pos_th"], 900.0 / 20)
    np.testing.assert_allclose([losses["loss_pos_st"], losses["loss_seg_th"], losses["loss_seg_st"]], [4.0, 0.0, 0.0])
    nothing = combine(jax.tree.map(jnp.zeros_like, sums), LossOptions())  # only filler images
    assert all(float(value) == 0.0 for value in nothing.values())
