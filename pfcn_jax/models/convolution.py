"""Convolution and pooling in the forms that are fast: the numbers of the plain operators, measured per form.

`python -m pfcn_jax.main benchmark layers` times each form beside the plain one.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def conv2d(
    x: Float[Array, "B h w I"], kernel: Float[Array, "k k I O"], *, stride: int = 1
) -> Float[Array, "B ho wo O"]:
    """Convolution with (k - 1) / 2 zeros on every side, channels last.

    A 1x1 convolution is written as the matrix product that it is: the same numbers, and on a CPU its weight gradient
    is five times faster than that of the convolution operator.
    """
    size = kernel.shape[0]
    if size == 1:
        x = x[:, ::stride, ::stride]
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], kernel.shape[-1])
    if size == 7 and stride == 2 and x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0:
        return _stem_conv(x, kernel)
    if size == 3 and stride == 1 and math.prod(x.shape[1:]) > _LARGE_MAP:
        return _conv_of_large_map(x, kernel)
    return _conv(x, kernel, stride, (size - 1) // 2)


def _conv(x: Float[Array, "B h w I"], kernel: Float[Array, "k k I O"], stride: int, pad: int) -> Array:
    padding = [(pad, pad), (pad, pad)]
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers)


# The operator's weight gradient has the whole map as its window, and a CPU's library computes it at a sixth of the rate
# of a matrix product. As matrix products over blocks of about this many positions, which stay in its cache, it is
# three times as fast; one block takes no loop.
_BLOCK_POSITIONS = 900
_LARGE_MAP = 300_000  # values of a picture's map that the operator still finds in the cache


@jax.custom_vjp
def _conv_of_large_map(x: Float[Array, "B h w I"], kernel: Float[Array, "3 3 I O"]) -> Float[Array, "B h w O"]:
    """3x3 convolution of stride 1 whose weight gradient is, on a CPU, nine matrix products a block of the map."""
    return _conv(x, kernel, 1, 1)


def _large_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, 1, 1), (x, kernel)


def _large_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def operator(x: Array, gradient: Array) -> Array:
        (of_kernel,) = jax.linear_transpose(lambda kernel: _conv(x, kernel, 1, 1), kernel)(gradient)
        return of_kernel

    def products(x: Array, gradient: Array) -> Array:
        of_pictures = jax.vmap(_kernel_gradient)(x, gradient)  # apart: devices hold different pictures
        return jnp.sum(of_pictures, axis=0).astype(kernel.dtype)

    (of_x,) = jax.linear_transpose(lambda x: _conv(x, kernel, 1, 1), x)(gradient)
    return of_x, jax.lax.platform_dependent(x, gradient, cpu=products, default=operator)


_conv_of_large_map.defvjp(_large_forward, _large_backward)


def _kernel_gradient(x: Float[Array, "h w I"], gradient: Float[Array, "h w O"]) -> Float[Array, "3 3 I O"]:
    """Sum over positions p of x[p + (i, j) - 1] gradient[p], for each of the nine (i, j).

    Both maps are laid out as one line of rows of w + 2 positions, so that a step (i, j) is an offset i (w + 2) + j.
    """
    height, width = x.shape[:2]
    line = width + 2
    rows = min(height, max(1, round(_BLOCK_POSITIONS / line)))  # of a block
    blocks = math.ceil(height / rows)
    below = blocks * rows - height
    # One more row than the steps reach, because the last one goes two positions past its line.
    x = jnp.pad(x, ((1, 2 + below), (1, 1), (0, 0))).reshape(-1, x.shape[2])
    gradient = jnp.pad(gradient, ((0, below), (0, 2), (0, 0))).reshape(-1, gradient.shape[2])
    offsets = [i * line + j for i in range(3) for j in range(3)]

    def add(block: Int[Array, ""], total: Float[Array, "9 O I"]) -> Float[Array, "9 O I"]:
        start = block * rows * line
        seen = jax.lax.dynamic_slice_in_dim(x, start, (rows + 3) * line)
        wanted = jax.lax.dynamic_slice_in_dim(gradient, start, rows * line)
        wanted = jax.lax.optimization_barrier(wanted.T)  # transposed once, not in each of the products
        products = [
            jnp.matmul(wanted, seen[offset : offset + rows * line], preferred_element_type=jnp.float32)
            for offset in offsets
        ]
        return total + jnp.stack(products)

    total = jnp.zeros((9, gradient.shape[1], x.shape[1]), jnp.float32)
    total = add(jnp.int32(0), total) if blocks == 1 else jax.lax.fori_loop(0, blocks, add, total)
    return total.reshape(3, 3, *total.shape[1:]).swapaxes(2, 3)


def _stem_conv(x: Float[Array, "B H W I"], kernel: Float[Array, "7 7 I O"]) -> Float[Array, "B H/2 W/2 O"]:
    """The 7x7 convolution of stride 2 with 3 zeros on every side, as a 4x4 one of stride 1 on blocks of 2x2 pixels.

    The same products and sums with four times as many channels: three fill no vector register of a CPU and little of
    a matrix unit.
    """
    batch, channels = x.shape[0], x.shape[3]
    # The window of output i starts at pixel 2 i - 3: with a row of zeros before the kernel, at 2 i - 4, an even one.
    x = jnp.pad(x, ((0, 0), (4, 2), (4, 2), (0, 0)))
    blocks = (x.shape[1] // 2, x.shape[2] // 2)
    x = x.reshape(batch, blocks[0], 2, blocks[1], 2, channels).transpose(0, 1, 3, 2, 4, 5)
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(4, 2, 4, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    return jax.lax.conv_general_dilated(
        x.reshape(batch, *blocks, 4 * channels),
        kernel.reshape(4, 4, 4 * channels, -1),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.named_scope("max_pool")
def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 C"]:
    """Maximum over 3x3 windows of stride 2, of a map with even sides and without negative values (zeros pad it).

    Of equal values the first, row by row, gets the gradient, as with the operator for windows; whose backward pass,
    a search for the position in each window, costs a CPU ten times as much as these selections.
    """

    def along(x: Array, axis: int) -> Array:  # the pixels 2 i - 1, 2 i, 2 i + 1
        pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        even, odd = (jax.lax.index_in_dim(pairs, side, axis + 1, keepdims=False) for side in (0, 1))
        zero = jnp.zeros_like(jax.lax.slice_in_dim(odd, 0, 1, axis=axis))
        before = jnp.concatenate([zero, jax.lax.slice_in_dim(odd, 0, odd.shape[axis] - 1, axis=axis)], axis=axis)
        first = jnp.where(before >= even, before, even)
        return jnp.where(first >= odd, first, odd)

    return along(along(x, 2), 1)
