"""Modulated deformable convolution (DCN v2): a convolution that samples each tap where the input tells it to.

Two forms, each with its gradient: tap by tap, in the memory of one map (on a CPU a whole prediction is 1.4 times as
fast), and all taps at once on a GPU, in nine times the memory (tap by tap would read and write the float32 sums nine
times there). The gradients are written out: JAX's own of the scan fuses the sum over channels with the reads, and
starts a scatter from a fresh map for each neighbor. Figures: docs/decisions.md; `benchmark layers` times both.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from pfcn_jax.parallel.platform import by_platform

NEIGHBORS = 4


def deformable_conv(
    x: Float[Array, "B h w I"],
    offset_mask: Float[Array, "B ho wo M"],
    kernel: Float[Array, "k k I O"],
    *,
    stride: int = 1,
) -> Float[Array, "B ho wo O"]:
    """y(p) = sum over taps t of mask_t(p) * x(p + t + offset_t(p)) @ kernel_t, bilinear, zero outside.

    Of the M = 3 k k offset/mask channels the first two thirds are offsets, (row, column) interleaved per tap, the
    rest masks: a sigmoid, not doubled as in the DCN v2 paper. Positions, weights and sums are float32; samples and
    products have the type of `x`, which is also that of the result. Reverse mode only.
    """
    batch, height, width, channels = x.shape
    index, weight = sampling(offset_mask.astype(jnp.float32), kernel.shape[0], stride, height, width)
    y = sample_and_multiply(
        x.reshape(batch, height * width, channels), index, weight, kernel.reshape(-1, channels, kernel.shape[-1])
    )
    return y.reshape(*offset_mask.shape[:3], kernel.shape[-1])


def sampling(
    offset_mask: Float[Array, "B ho wo M"], size: int, stride: int, height: int, width: int
) -> tuple[Int[Array, "taps 4 B ho*wo"], Float[Array, "taps 4 B ho*wo"]]:
    """For every tap and output position: the four neighbors in a map stored row by row, and mask x bilinear weight.

    A neighbor outside has weight 0. Positions are clamped just outside of the map: far ones would overflow."""
    taps = size * size
    channels = jnp.moveaxis(offset_mask, -1, 0)  # [3 k k, B, ho, wo]
    offset = channels[: 2 * taps].reshape(taps, 2, *channels.shape[1:])
    mask = jax.nn.sigmoid(channels[2 * taps :])
    tap_row, tap_column = jnp.divmod(jnp.arange(taps, dtype=jnp.int32), size)
    pad = (size - 1) // 2
    row = jnp.arange(channels.shape[2], dtype=jnp.int32) * stride - pad
    column = jnp.arange(channels.shape[3], dtype=jnp.int32) * stride - pad
    y = (tap_row[:, None] + row[None, :]).astype(jnp.float32)[:, None, :, None] + offset[:, 0]
    x = (tap_column[:, None] + column[None, :]).astype(jnp.float32)[:, None, None, :] + offset[:, 1]
    y, x = jnp.clip(y, -2.0, height + 1.0), jnp.clip(x, -2.0, width + 1.0)
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = y - top, x - left
    indices, weights = [], []
    for step_y, weight_y in ((0, 1.0 - down), (1, down)):
        for step_x, weight_x in ((0, 1.0 - right), (1, right)):
            at_y, at_x = top.astype(jnp.int32) + step_y, left.astype(jnp.int32) + step_x
            inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
            indices.append(jnp.clip(at_y, 0, height - 1) * width + jnp.clip(at_x, 0, width - 1))
            weights.append(jnp.where(inside, weight_y * weight_x * mask, 0.0))
    shape = (taps, NEIGHBORS, offset_mask.shape[0], -1)
    return jnp.stack(indices, axis=1).reshape(shape), jnp.stack(weights, axis=1).reshape(shape)


def _read(x: Float[Array, "B N I"], index: Int[Array, "B P"]) -> Float[Array, "B P I"]:
    return jax.vmap(lambda rows, at: rows.at[at].get(mode="promise_in_bounds"))(x, index)


def _add(
    x: Float[Array, "B N I"], index: Int[Array, "B P"], values: Float[Array, "B P I"], weight: Float[Array, "B P"]
) -> Float[Array, "B N I"]:
    """Adds weight x values. Zero-weight samples are skipped: otherwise all that are outside of the map scatter to the
    same border position, and serialize."""
    index = jnp.where(weight == 0.0, x.shape[1], index)
    values = (values * weight.astype(values.dtype)[..., None]).astype(x.dtype)
    return jax.vmap(lambda rows, at, value: rows.at[at].add(value, mode="drop"))(x, index, values)


@jax.custom_vjp
def sample_and_multiply(
    x: Float[Array, "B N I"],
    index: Int[Array, "T 4 B P"],
    weight: Float[Array, "T 4 B P"],
    kernel: Float[Array, "T I O"],
) -> Float[Array, "B P O"]:
    """sum over taps of (sum over neighbors of weight x row of `x`) @ kernel."""
    arguments = (x, index, weight, kernel)
    return by_platform(*arguments, gpu=at_once, default=tap_by_tap)


def _forward(x, index, weight, kernel):
    return sample_and_multiply(x, index, weight, kernel), (x, index, weight, kernel)


def _backward(saved, gradient):
    arguments = (*saved, gradient)
    of_x, of_weight, of_kernel = by_platform(*arguments, gpu=at_once_backward, default=tap_by_tap_backward)
    return of_x, None, of_weight, of_kernel


sample_and_multiply.defvjp(_forward, _backward)


# ------------------------------------------------------------------------------------------------------ tap by tap
def _sample(x: Float[Array, "B N I"], index: Int[Array, "4 B P"], weight: Float[Array, "4 B P"]) -> Array:
    """Samples of a tap at every output position: `[B, P, I]`."""
    parts = (_read(x, index[n]) * weight[n].astype(x.dtype)[..., None] for n in range(NEIGHBORS))
    return functools.reduce(jnp.add, parts)


def tap_by_tap(x: Array, index: Array, weight: Array, kernel: Array) -> Float[Array, "B P O"]:
    """`sample_and_multiply` in the memory of one tap, with float32 sums over the taps."""

    def one_tap(total, tap):
        tap_index, tap_weight, tap_kernel = tap
        flat = _sample(x, tap_index, tap_weight).reshape(-1, x.shape[-1])
        return total + jnp.matmul(flat, tap_kernel, preferred_element_type=jnp.float32), None

    start = jnp.zeros((index.shape[2] * index.shape[3], kernel.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(one_tap, start, (index, weight, kernel))
    return total.astype(x.dtype).reshape(*index.shape[2:], -1)


def tap_by_tap_backward(x: Array, index: Array, weight: Array, kernel: Array, gradient: Array) -> tuple[Array, ...]:
    """Gradients of `x`, `weight` and `kernel`. Samples are read again; the scan carries the map of the first."""
    channels = x.shape[-1]
    gradient = gradient.reshape(-1, kernel.shape[-1])
    ones = jnp.ones((channels, 1), x.dtype)

    def one_tap(x_gradient, tap):
        tap_index, tap_weight, tap_kernel = tap
        of_sample = (gradient @ tap_kernel.T).reshape(*tap_index.shape[1:], channels)
        sample, of_weight = jnp.zeros_like(of_sample), []
        for n in range(NEIGHBORS):
            value = _read(x, tap_index[n])
            sample = sample + value * tap_weight[n].astype(x.dtype)[..., None]
            # A product with ones, not a sum: it keeps the reads out of the loop that sums.
            of_weight.append(jnp.matmul(of_sample * value, ones, preferred_element_type=jnp.float32)[..., 0])
            x_gradient = _add(x_gradient, tap_index[n], of_sample, tap_weight[n])
        of_kernel = jnp.matmul(sample.reshape(-1, channels).T, gradient, preferred_element_type=jnp.float32)
        return x_gradient, (jnp.stack(of_weight), of_kernel.astype(kernel.dtype))

    x_gradient, (of_weight, of_kernel) = jax.lax.scan(one_tap, jnp.zeros(x.shape, jnp.float32), (index, weight, kernel))
    return x_gradient.astype(x.dtype), of_weight, of_kernel


# ---------------------------------------------------------------------------------------------------- all at once
def _taps_in_a_row(values: Shaped[Array, "T 4 B P"]) -> Shaped[Array, "4 B P*T"]:
    """The taps of a position in a row, in the layout of the rows of one matrix product."""
    return values.transpose(1, 2, 3, 0).reshape(*values.shape[1:3], -1)


def at_once(x: Array, index: Array, weight: Array, kernel: Array) -> Float[Array, "B P O"]:
    """`sample_and_multiply` as one matrix product, in the memory of all taps."""
    taps, channels, features = kernel.shape
    samples = _sample(x, _taps_in_a_row(index), _taps_in_a_row(weight)).reshape(-1, taps * channels)
    return (samples @ kernel.reshape(-1, features)).reshape(*index.shape[2:], features)


def at_once_backward(x: Array, index: Array, weight: Array, kernel: Array, gradient: Array) -> tuple[Array, ...]:
    """Gradients of `x`, `weight` and `kernel`, as `tap_by_tap_backward` gives them."""
    taps, channels, features = kernel.shape
    batch, positions = index.shape[2:]
    index, weight = _taps_in_a_row(index), _taps_in_a_row(weight)
    gradient, flat = gradient.reshape(-1, features), kernel.reshape(-1, features)
    of_sample = (gradient @ flat.T).reshape(batch, positions * taps, channels)
    samples = _sample(x, index, weight).reshape(-1, taps * channels)
    of_kernel = jnp.matmul(samples.T, gradient, preferred_element_type=jnp.float32).reshape(kernel.shape)
    of_weight, x_gradient = [], jnp.zeros(x.shape, jnp.float32)
    for n in range(NEIGHBORS):
        of_weight.append(jnp.sum(of_sample * _read(x, index[n]), axis=-1, dtype=jnp.float32))
        x_gradient = _add(x_gradient, index[n], of_sample, weight[n])
    by_tap = jnp.stack(of_weight).reshape(NEIGHBORS, batch, positions, taps).transpose(3, 0, 1, 2)
    return x_gradient.astype(x.dtype), by_tap, of_kernel.astype(kernel.dtype)
