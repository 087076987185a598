"""Deformable convolution against a loop over positions and taps: values, and gradients by finite differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.models.ops import deformable
from pfcn_jax.models.ops.deformable import deformable_conv
from tests.models import oracles


def _example(stride: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 6, 4, 5)).astype(np.float32)
    offset_mask = rng.normal(size=(2, 6 // stride, 4 // stride, 27)).astype(np.float32)
    offset_mask[..., :18] *= spread
    return x, offset_mask, rng.normal(size=(3, 3, 5, 3)).astype(np.float32)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("spread", [0.0, 0.7, 5.0])  # 5: many positions outside of the map
def test_values(stride: int, spread: float) -> None:
    x, offset_mask, kernel = _example(stride, spread)
    ours = jax.jit(deformable_conv, static_argnames="stride")(x, offset_mask, kernel, stride=stride)
    theirs = np.stack([oracles.deformable_conv(a, b, kernel, stride) for a, b in zip(x, offset_mask, strict=True)])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_zero_offsets_and_open_masks_are_a_plain_convolution() -> None:
    x, offset_mask, kernel = _example(1, 0.0)
    offset_mask[..., 18:] = 40.0
    ours = deformable_conv(x, offset_mask, kernel)
    np.testing.assert_allclose(ours, np.stack([oracles.conv(row, kernel) for row in x]), rtol=1e-4, atol=1e-4)


def test_far_positions_read_zero() -> None:
    x, offset_mask, kernel = _example(1, 0.0)
    for far in (-1e9, 1e9, -1e30):
        offset_mask[..., :18] = far
        assert not np.asarray(deformable_conv(x, offset_mask, kernel)).any()


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients(stride: int) -> None:
    """Each gradient along random directions, against central differences of the float64 loop."""
    x, offset_mask, kernel = _example(stride, 0.8, seed=3)
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(*offset_mask.shape[:3], kernel.shape[-1])).astype(np.float32)

    def ours(*arguments: jax.Array) -> jax.Array:
        return jnp.sum(deformable_conv(*arguments, stride=stride) * weight)

    def theirs(x: np.ndarray, offset_mask: np.ndarray, kernel: np.ndarray) -> float:
        rows = [oracles.deformable_conv(a, b, kernel, stride) for a, b in zip(x, offset_mask, strict=True)]
        return float((np.stack(rows) * weight).sum())

    arguments = [argument.astype(np.float64) for argument in (x, offset_mask, kernel)]
    gradients = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(x, offset_mask, kernel)
    step = 1e-6
    for position, gradient in enumerate(gradients):
        for _ in range(3):
            direction = rng.normal(size=gradient.shape)
            values = []
            for sign in (1, -1):
                moved = list(arguments)
                moved[position] = moved[position] + sign * step * direction
                values.append(theirs(*moved))
            slope = (values[0] - values[1]) / (2 * step)
            assert float((np.asarray(gradient, np.float64) * direction).sum()) == pytest.approx(
                slope, rel=2e-4, abs=1e-3
            )


def test_each_offset_gradient() -> None:
    """Every single offset and mask of one position, one at a time: order of rows, columns, taps and masks."""
    x, offset_mask, kernel = _example(1, 0.8, seed=5)
    x, offset_mask = x[:1], offset_mask[:1]
    gradient = jax.grad(lambda o: jnp.sum(deformable_conv(x, o, kernel)[0, 2, 1]))(jnp.asarray(offset_mask))
    step = 1e-6
    for channel in range(27):
        values = []
        for sign in (1, -1):
            moved = offset_mask.astype(np.float64)
            moved[0, 2, 1, channel] += sign * step
            values.append(oracles.deformable_conv(x[0].astype(np.float64), moved[0], kernel)[2, 1].sum())
        expected = (values[0] - values[1]) / (2 * step)
        assert float(gradient[0, 2, 1, channel]) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert not np.asarray(gradient).reshape(-1, 27)[np.arange(24) != 2 * 4 + 1].any()


def test_bfloat16_stays_close() -> None:
    x, offset_mask, kernel = _example(1, 0.7)
    small = [jnp.asarray(x, jnp.bfloat16), jnp.asarray(offset_mask), jnp.asarray(kernel, jnp.bfloat16)]
    y = deformable_conv(*small)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(deformable_conv(x, offset_mask, kernel))
    np.testing.assert_allclose(np.asarray(y, np.float32), exact, atol=0.03 * np.abs(exact).max())
    gradients = jax.grad(lambda *a: jnp.sum(deformable_conv(*a).astype(jnp.float32)), argnums=(0, 1, 2))(*small)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.float32, jnp.bfloat16]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("spread", [0.7, 5.0])
def test_all_taps_at_once_are_the_taps_one_by_one(dtype: type, spread: float) -> None:
    """The two forms, of which a platform runs one, and their gradients."""
    x, offset_mask, kernel = _example(1, spread, seed=7)
    index, weight = deformable.sampling(jnp.asarray(offset_mask), 3, 1, 6, 4)
    arguments = (jnp.asarray(x, dtype).reshape(2, 24, 5), index, weight, jnp.asarray(kernel, dtype).reshape(9, 5, 3))
    gradient = jnp.asarray(np.random.default_rng(8).normal(size=(2, 24, 3)), dtype)
    apart = (deformable.tap_by_tap(*arguments), *deformable.tap_by_tap_backward(*arguments, gradient))
    together = (deformable.at_once(*arguments), *deformable.at_once_backward(*arguments, gradient))
    for one, other in zip(apart, together, strict=True):
        assert one.dtype == other.dtype
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, atol=(1e-5 if dtype == jnp.float32 else 2e-2) * np.abs(one).max())
