"""Convolutions in the forms that are fast on each platform; the same numbers as the plain operators.

Figures: docs/decisions.md. `python -m pfcn_jax.main benchmark layers` times each form beside the plain one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pfcn_jax.parallel.platform import by_platform


def conv2d(
    x: Float[Array, "B h w I"], kernel: Float[Array, "k k I O"], *, stride: int = 1
) -> Float[Array, "B ho wo O"]:
    """Convolution with (k - 1) / 2 zeros on every side, channels last.

    A 1x1 convolution is written as a matrix product: on a CPU its weight gradient is several times as fast as the
    convolution operator's.
    """
    size = kernel.shape[0]
    if size == 1:
        x = x[:, ::stride, ::stride]
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], kernel.shape[-1])
    if size == 7 and stride == 2 and x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0:
        return by_platform(x, kernel, cpu=_on_pixels, default=_in_blocks)
    return _conv(x, kernel, stride, (size - 1) // 2)


# ------------------------------------------------------------------------------------------- the operator's gradients
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: Float[Array, "B h w I"], kernel: Float[Array, "k k I O"], stride: int, pad: int) -> Array:
    """The operator, with gradients written for a CPU: XLA's own are far slower there inside a loop (gradient
    accumulation), and so is the weight gradient of a large map anywhere."""
    return _operator(x, kernel, stride, pad)


def _operator(x: Array, kernel: Array, stride: int, pad: int) -> Array:
    return _canonical(x, kernel, [(pad, pad)] * 2, stride=stride)


def _canonical(
    x: Array,
    kernel: Array,
    padding: Sequence[tuple[int, int]],
    *,
    stride: int = 1,
    x_dilation: int = 1,
    kernel_dilation: int = 1,
    groups: int = 1,
) -> Array:
    """The operator in the one layout that a CPU's library knows: XLA transposes any other, but not inside a loop."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        lhs_dilation=(x_dilation, x_dilation),
        rhs_dilation=(kernel_dilation, kernel_dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _forward(x: Array, kernel: Array, stride: int, pad: int) -> tuple[Array, tuple[Array, Array]]:
    return _operator(x, kernel, stride, pad), (x, kernel)


def _backward(stride: int, pad: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def by_operators(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        of_x = jax.linear_transpose(lambda x: _operator(x, kernel, stride, pad), x)
        of_kernel = jax.linear_transpose(lambda kernel: _operator(x, kernel, stride, pad), kernel)
        return (*of_x(gradient), *of_kernel(gradient))

    def on_a_cpu(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        if kernel.shape[0] == 3 and (stride, pad) == (1, 1) and math.prod(x.shape[1:]) > _LARGE_MAP:
            of_images = jax.vmap(_gradient_in_blocks)(x, gradient)  # one by one: devices hold different images
            of_kernel = jnp.sum(of_images, axis=0).astype(kernel.dtype)
        else:
            of_kernel = _gradient_of_kernel(x, gradient, kernel.shape[0], stride, pad)
        return _gradient_of_x(kernel, gradient, x.shape, stride, pad), of_kernel

    return by_platform(x, kernel, gradient, cpu=on_a_cpu, default=by_operators)


_conv.defvjp(_forward, _backward)


def _gradient_of_x(kernel: Array, gradient: Array, shape: tuple[int, ...], stride: int, pad: int) -> Array:
    """A convolution of the gradient, with zeros between if the stride is 2, with the kernel mirrored and transposed."""
    size = kernel.shape[0]
    before = size - 1 - pad
    spread = [(length - 1) * stride + 1 for length in gradient.shape[1:3]]
    padding = [(before, shape[axis + 1] - spread[axis] + size - 1 - before) for axis in (0, 1)]
    kernel = jax.lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    return _canonical(gradient, kernel, padding, x_dilation=stride)


def _gradient_of_kernel(x: Array, gradient: Array, size: int, stride: int, pad: int) -> Array:
    """A convolution of the map with the gradient as its kernel: channels and images swap places."""
    spread = [(length - 1) * stride + 1 for length in gradient.shape[1:3]]
    padding = [(pad, size - 1 - pad - x.shape[axis + 1] + spread[axis]) for axis in (0, 1)]
    x, gradient = x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)
    return _canonical(x, gradient, padding, kernel_dilation=stride).transpose(1, 2, 0, 3)


# XLA's weight gradient of a large map is slow; fastest is one product for each block of about this many positions.
_BLOCK_POSITIONS = 450
_LARGE_MAP = 300_000  # values of an image's map that still fit in the cache


def _gradient_in_blocks(x: Float[Array, "h w I"], gradient: Float[Array, "h w O"]) -> Float[Array, "3 3 I O"]:
    """Sum over positions p of x[p + (i, j) - 1] gradient[p], for each of the nine steps (i, j).

    Both maps are laid out as one line of rows of w + 2 positions, so that a step (i, j) is an offset i (w + 2) + j.
    A block's nine shifted maps are concatenated, so that one product gives all nine sums.
    """
    height, width = x.shape[:2]
    line = width + 2
    rows = min(height, max(1, round(_BLOCK_POSITIONS / line)))  # of a block
    blocks = math.ceil(height / rows)
    below = blocks * rows - height
    # One row more than the steps reach, because the last one goes two positions past its line.
    x = jnp.pad(x, ((1, 2 + below), (1, 1), (0, 0))).reshape(-1, x.shape[2])
    gradient = jnp.pad(gradient, ((0, below), (0, 2), (0, 0))).reshape(-1, gradient.shape[2])
    offsets = [i * line + j for i in range(3) for j in range(3)]

    def add(block: Int[Array, ""], total: Float[Array, "O J"]) -> Float[Array, "O J"]:
        start = block * rows * line
        seen = jax.lax.dynamic_slice_in_dim(x, start, (rows + 3) * line)
        wanted = jax.lax.dynamic_slice_in_dim(gradient, start, rows * line)
        shifted = jnp.concatenate([seen[offset : offset + rows * line] for offset in offsets], axis=1)
        wanted = jax.lax.optimization_barrier(wanted.T)  # a separate transpose is faster than one inside the product
        return total + jnp.matmul(wanted, shifted, preferred_element_type=jnp.float32)

    total = jnp.zeros((gradient.shape[1], 9 * x.shape[1]), jnp.float32)
    total = add(jnp.int32(0), total) if blocks == 1 else jax.lax.fori_loop(0, blocks, add, total)
    return total.reshape(-1, 3, 3, x.shape[1]).transpose(1, 2, 3, 0)


def _on_pixels(x: Float[Array, "B H W I"], kernel: Float[Array, "7 7 I O"]) -> Float[Array, "B H/2 W/2 O"]:
    return _conv(x, kernel, 2, 3)


def _in_blocks(x: Float[Array, "B H W I"], kernel: Float[Array, "7 7 I O"]) -> Float[Array, "B H/2 W/2 O"]:
    """The 7x7 convolution of stride 2 with 3 zeros on every side, as a 4x4 one of stride 1 on blocks of 2x2 pixels.

    The same products and sums with four times as many channels: three fill little of a matrix unit. A CPU is twice as
    fast without.
    """
    batch, channels = x.shape[0], x.shape[3]
    # The window of output i starts at pixel 2 i - 3: with a row of zeros before the kernel, at 2 i - 4, an even one.
    x = jnp.pad(x, ((0, 0), (4, 2), (4, 2), (0, 0)))
    blocks = (x.shape[1] // 2, x.shape[2] // 2)
    x = x.reshape(batch, blocks[0], 2, blocks[1], 2, channels).transpose(0, 1, 3, 2, 4, 5)
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(4, 2, 4, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    return _conv(x.reshape(batch, *blocks, 4 * channels), kernel.reshape(4, 4, 4 * channels, -1), 1, 0)


# ---------------------------------------------------------------------------------------------- depthwise convolution
Pads = tuple[tuple[int, int], tuple[int, int]]  # zeros above and below, left and right


def same_padding(size: tuple[int, int], kernel_size: int, stride: int) -> Pads:
    """Padding of a map of `size` as TensorFlow's `SAME`: the odd zero goes to the bottom and the right."""
    total = [max((-(-length // stride) - 1) * stride + kernel_size - length, 0) for length in size]
    return (total[0] // 2, -(-total[0] // 2)), (total[1] // 2, -(-total[1] // 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv2d(
    x: Float[Array, "B h w C"], kernel: Float[Array, "k k 1 C"], stride: int, padding: Pads
) -> Float[Array, "B ho wo C"]:
    """Convolution of each channel with a kernel of its own.

    On a CPU it is written as a sum over taps, which XLA computes in one pass over the map; its operator for grouped
    convolutions takes ten to forty times as long there, forward and backward.
    """
    return by_platform(
        x,
        kernel,
        cpu=lambda x, kernel: _sum_over_taps(x, kernel, stride, padding),
        default=lambda x, kernel: _grouped(x, kernel, stride, padding),
    )


def _sum_over_taps(x: Array, kernel: Array, stride: int, padding: Pads) -> Array:
    """Sums are float32 for every type of `x`."""
    size = kernel.shape[0]
    height, width = ((x.shape[axis + 1] + sum(padding[axis]) - size) // stride + 1 for axis in (0, 1))
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
    total = jnp.zeros((x.shape[0], height, width, x.shape[3]), jnp.float32)
    for i in range(size):
        rows = padded[:, i : i + (height - 1) * stride + 1 : stride]
        for j in range(size):
            columns = rows[:, :, j : j + (width - 1) * stride + 1 : stride]
            total += columns * kernel[i, j, 0].astype(jnp.float32)[None, None, None, :]
    return total.astype(x.dtype)


def _grouped(x: Array, kernel: Array, stride: int, padding: Pads) -> Array:
    return _canonical(x, kernel, padding, stride=stride, groups=x.shape[-1])


def _depthwise_forward(x: Array, kernel: Array, stride: int, padding: Pads) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_conv2d(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride: int, padding: Pads, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    def by_operators(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda x, kernel: _grouped(x, kernel, stride, padding), x, kernel)[1](gradient)

    def on_a_cpu(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        (of_x,) = jax.vjp(lambda x: _sum_over_taps(x, kernel, stride, padding), x)[1](gradient)
        return of_x, _gradient_of_taps(x, gradient, kernel.shape[0], stride, padding).astype(kernel.dtype)

    return by_platform(*saved, gradient, cpu=on_a_cpu, default=by_operators)


def _gradient_of_taps(x: Array, gradient: Array, size: int, stride: int, padding: Pads) -> Float[Array, "k k 1 C"]:
    """Sum over positions p of x[stride p + (i, j)] gradient[p], for each tap (i, j).

    Row by row: a row's products with all taps fit in the cache, and a product with ones adds them up; XLA's reduction
    over positions adds one number at a time.
    """
    batch, height, width, channels = gradient.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    columns = [slice(j, j + (width - 1) * stride + 1, stride) for j in range(size)]
    ones = jnp.ones((1, width), jnp.float32)

    def add(index: Int[Array, ""], total: Float[Array, "1 J"]) -> Float[Array, "1 J"]:
        image, row = index // height, index % height
        shape = (1, size, padded.shape[2], channels)
        rows = jax.lax.dynamic_slice(padded, (image, row * stride, 0, 0), shape)[0].astype(jnp.float32)
        wanted = gradient[image, row].astype(jnp.float32)
        products = [rows[i, column] * wanted for i in range(size) for column in columns]
        return total + ones @ jnp.concatenate(products, axis=-1)

    total = jax.lax.fori_loop(0, batch * height, add, jnp.zeros((1, size * size * channels), jnp.float32))
    return total.reshape(size, size, 1, channels)


depthwise_conv2d.defvjp(_depthwise_forward, _depthwise_backward)


# ---------------------------------------------------------------------------------------------------------- pooling
@jax.named_scope("max_pool")
def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 C"]:
    """Maximum over 3x3 windows of stride 2, of a map with even sides and without negative values (zeros pad it).

    Of equal values the first, row by row, gets the gradient, as with the operator for windows; whose backward pass,
    a search for the position in each window, costs a CPU several times as much as these selections.
    """

    def along(x: Array, axis: int) -> Array:  # the pixels 2 i - 1, 2 i, 2 i + 1
        pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        even, odd = (jax.lax.index_in_dim(pairs, side, axis + 1, keepdims=False) for side in (0, 1))
        zero = jnp.zeros_like(jax.lax.slice_in_dim(odd, 0, 1, axis=axis))
        before = jnp.concatenate([zero, jax.lax.slice_in_dim(odd, 0, odd.shape[axis] - 1, axis=axis)], axis=axis)
        first = jnp.where(before >= even, before, even)
        return jnp.where(first >= odd, first, odd)

    return along(along(x, 2), 1)
