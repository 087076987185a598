"""Convolution and pooling: values against a slow NumPy version, gradients against the plain operators."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.models.ops import convolution
from tests.models import oracles


def plain_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    pad = [((kernel.shape[0] - 1) // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_conv2d(size: int, stride: int) -> None:
    rng = np.random.default_rng(size)
    x = rng.normal(size=(2, 6, 8, 5)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 5, 3)).astype(np.float32)
    ours = jax.jit(convolution.conv2d, static_argnames="stride")(x, kernel, stride=stride)
    theirs = np.stack([oracles.conv(row, kernel, stride) for row in x])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 8), (7, 5), (2, 2)])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_gradients_of_conv2d_are_the_operators_also_inside_of_a_loop(
    size: int, stride: int, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(size)
    x = jnp.asarray(rng.normal(size=(2, *shape, 5)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 5, 3)), jnp.float32)
    theirs, their_vjp = jax.vjp(lambda *arrays: plain_conv(*arrays, stride=stride), x, kernel)
    cotangent = jnp.asarray(rng.normal(size=theirs.shape), jnp.float32)

    def gradients(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(lambda *arrays: convolution.conv2d(*arrays, stride=stride), x, kernel)[1](cotangent)

    of_x, of_kernel = jax.jit(gradients)(x, cotangent)
    for one, other in zip((of_x, of_kernel), their_vjp(cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    images = (x[:, None], cotangent[:, None])
    of_each = jax.jit(lambda images: jax.lax.map(lambda image: gradients(*image), images))(images)
    np.testing.assert_allclose(of_each[0][:, 0], of_x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(of_each[1].sum(0), of_kernel, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "stride", "shape"), [(3, 1, (6, 8)), (3, 2, (7, 5)), (5, 2, (8, 6)), (7, 1, (3, 4))])
def test_depthwise_conv2d_and_its_gradients_are_the_operators(size: int, stride: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(size)
    x = jnp.asarray(rng.normal(size=(2, *shape, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 1, 3)), jnp.float32)
    padding = convolution.same_padding(shape, size, stride)

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=3
        )

    theirs, their_vjp = jax.vjp(plain, x, kernel)
    cotangent = jnp.asarray(rng.normal(size=theirs.shape), jnp.float32)

    def both(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, ...]:
        ours, vjp = jax.vjp(lambda *arrays: convolution.depthwise_conv2d(*arrays, stride, padding), x, kernel)
        return (ours, *vjp(cotangent))

    for one, other in zip(jax.jit(both)(x, kernel), (theirs, *their_vjp(cotangent)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_max_pool_has_the_values_and_gradients_of_the_operator_for_windows() -> None:
    """With ties: of equal values the first one in a window, row by row, gets the gradient."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 4, size=(2, 8, 12, 3)), jnp.float32)  # zeros as after ReLU, and many ties
    cotangent = jnp.asarray(rng.normal(size=(2, 4, 6, 3)), jnp.float32)

    def windows(x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

    ours, our_vjp = jax.vjp(convolution.max_pool, x)
    theirs, their_vjp = jax.vjp(windows, x)
    np.testing.assert_array_equal(ours, theirs)
    # A window of zeros at the border: our first zero is one of the padding. The gradient of a ReLU is 0 there anyway.
    positive = (x > 0).astype(x.dtype)
    np.testing.assert_allclose(our_vjp(cotangent)[0] * positive, their_vjp(cotangent)[0] * positive, atol=1e-6)


@pytest.mark.parametrize("form", [functools.partial(convolution.conv2d, stride=2), convolution._in_blocks])
@pytest.mark.parametrize("shape", [(8, 12), (2, 2), (14, 6)])
def test_stem_convolution_has_the_values_and_gradients_of_the_plain_form(shape, form) -> None:
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, *shape, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(7, 7, 3, 5)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(2, shape[0] // 2, shape[1] // 2, 5)), jnp.float32)

    ours, our_vjp = jax.vjp(form, x, kernel)
    theirs, their_vjp = jax.vjp(lambda *arrays: plain_conv(*arrays, stride=2), x, kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    for one, other in zip(our_vjp(cotangent), their_vjp(cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1, 30, 1000], ids=["a row a block", "blocks of 3 rows, the last of 1", "one block"])
@pytest.mark.parametrize("batch", [1, 2])
def test_weight_gradient_as_products_equals_the_operators(
    batch: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "_LARGE_MAP", 0)
    monkeypatch.setattr(convolution, "_BLOCK_POSITIONS", block)
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(batch, 10, 8, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 5)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(batch, 10, 8, 5)), jnp.float32)

    assert "custom_vjp" in str(jax.make_jaxpr(convolution.conv2d)(x, kernel))  # or this test compares nothing
    ours, our_vjp = jax.vjp(convolution.conv2d, x, kernel)
    theirs, their_vjp = jax.vjp(plain_conv, x, kernel)
    np.testing.assert_array_equal(ours, theirs)
    for one, other in zip(our_vjp(cotangent), their_vjp(cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
