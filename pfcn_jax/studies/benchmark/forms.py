"""The parts `dice` and `layers`: each form in use beside the plain one that gives the same numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pfcn_jax.models.ops import convolution, deformable
from pfcn_jax.panoptic.dice import plain_dice, streaming_dice
from pfcn_jax.panoptic.labels import IdMapMasks
from pfcn_jax.studies.benchmark.measure import Row, Yardstick, against_matmul, compile_program, time_runs

INSTANCES = (10, 50, 100)
_SLOTS, _KERNELS = 200, 7  # of the canonical config


def plain_conv(x: Array, kernel: Array, *, stride: int = 1) -> Array:
    """The operator for convolutions, without a form of its own."""
    pad = [((kernel.shape[0] - 1) // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_pool(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def scanned_deformable(x: Array, offset_mask: Array, kernel: Array) -> Array:
    """The scan over taps as JAX differentiates it."""
    return _deformable(deformable.tap_by_tap, x, offset_mask, kernel)


def gathered_deformable(x: Array, offset_mask: Array, kernel: Array) -> Array:
    """All taps at once as JAX differentiates them."""
    return _deformable(deformable.at_once, x, offset_mask, kernel)


def _deformable(product: Callable[..., Array], x: Array, offset_mask: Array, kernel: Array) -> Array:
    batch, height, width, channels = x.shape
    index, weight = deformable.sampling(offset_mask, kernel.shape[0], 1, height, width)
    taps = kernel.reshape(-1, channels, kernel.shape[-1])
    return product(x.reshape(batch, -1, channels), index, weight, taps).reshape(*x.shape[:3], -1)


def measure_form(
    name: str,
    form: str,
    function: Callable[..., Array],
    arrays: tuple[Array, ...],
    yardstick: Yardstick,
    seconds: float,
) -> Row:
    """Forward and backward of one form: the gradients of all arrays for a cotangent of ones."""

    def both(*arrays: Array) -> tuple[Array, ...]:
        out, pull = jax.vjp(function, *arrays)
        return (out, *pull(jnp.ones_like(out)))

    program = compile_program(both, *arrays)
    row: Row = {"what": name, "form": form}
    with yardstick.around(row):
        timing = time_runs(lambda: program.run(*arrays), seconds=seconds)
    return against_matmul(row | timing.row() | program.row())


def layer_rows(
    *, canvas: tuple[int, int], channels: int, dtype: Any, yardstick: Yardstick, seconds: float
) -> list[Row]:
    """1x1, 3x3 and 7x7 convolutions, pooling and deformable convolution at the sizes of an image on `canvas`."""
    height, width = canvas
    random = np.random.default_rng(0)

    def array(*shape: int, scale: float = 1.0) -> Array:
        return jnp.asarray(random.normal(size=shape) * scale, dtype)

    quarter, eighth = (1, height // 4, width // 4), (1, height // 8, width // 8)
    wide = (array(*eighth, 2 * channels), array(1, 1, 2 * channels, channels, scale=0.05))
    square = (array(*quarter, channels), array(3, 3, channels, channels, scale=0.02))
    image = (array(1, height, width, 3), array(7, 7, 3, 64, scale=0.1))
    half = (jnp.maximum(array(1, height // 2, width // 2, 64), 0),)
    sampled = (array(*eighth, channels), array(*eighth, 27), array(3, 3, channels, channels, scale=0.02))

    def stem(operator: Callable[..., Array]) -> Callable[..., Array]:  # nobody wants an image's gradient
        return lambda x, kernel: operator(jax.lax.stop_gradient(x), kernel, stride=2)

    cases: list[tuple[str, str, Callable[..., Array], tuple[Array, ...]]] = [
        ("1x1 convolution, stride 8", "matrix product (in use)", convolution.conv2d, wide),
        ("1x1 convolution, stride 8", "operator", plain_conv, wide),
        ("3x3 convolution, stride 4", "weight gradient: products on a CPU (in use)", convolution.conv2d, square),
        ("3x3 convolution, stride 4", "operator", plain_conv, square),
        (
            "7x7 convolution of the image",
            "operator on a CPU, else in blocks (in use)",
            stem(convolution.conv2d),
            image,
        ),
        ("7x7 convolution of the image", "operator", stem(plain_conv), image),
        ("3x3 maximum", "selections (in use)", convolution.max_pool, half),
        ("3x3 maximum", "operator", plain_pool, half),
        ("deformable 3x3, stride 8", "written-out backward (in use)", deformable.deformable_conv, sampled),
        ("deformable 3x3, stride 8", "scan over taps, differentiated", scanned_deformable, sampled),
        ("deformable 3x3, stride 8", "all taps at once", gathered_deformable, sampled),
    ]
    return [measure_form(*case, yardstick, seconds) for case in cases]


def dice_rows(*, map_shape: tuple[int, int], channels: int, yardstick: Yardstick, seconds: float) -> list[Row]:
    """Weighted dice, forward and backward: streamed with the slots of a training, plain with just those in use."""
    random = np.random.default_rng(0)
    height, width = map_shape
    feature = jnp.asarray(random.normal(size=(height, width, channels)), jnp.float32)
    measured = []
    for instances in INSTANCES:
        ids = jnp.asarray(random.integers(0, instances + 1, size=(1, height, width)), jnp.int32)
        masks = IdMapMasks(ids=ids, weight=jnp.ones(ids.shape, jnp.float32))
        for form, function, slots in (("streamed (in use)", streaming_dice, _SLOTS), ("plain", plain_dice, instances)):
            kernel = jnp.asarray(random.normal(size=(slots, _KERNELS, channels)) * 0.1, jnp.float32)
            weight = jnp.full((slots, _KERNELS), 1.0 / _KERNELS, jnp.float32)
            valid = jnp.arange(slots) < instances
            rows = jnp.minimum(jnp.arange(slots, dtype=jnp.int32), instances - 1)
            extent = jnp.asarray([4 * height, 4 * width], jnp.int32)
            dice = functools.partial(_dice_of, function, masks, valid, rows, extent)
            row = measure_form(f"{instances} instances", form, dice, (kernel, weight, feature), yardstick, seconds)
            measured.append({key: value for key, value in row.items() if "flop" not in key and key != "efficiency"})
    return measured  # (without operations: the loop over slots is as long as the data say)


def _dice_of(
    function: Callable[..., Array],
    masks: IdMapMasks,
    valid: Array,
    rows: Array,
    extent: Array,
    kernel: Array,
    weight: Array,
    feature: Array,
) -> Array:
    return function(kernel, weight, valid, feature, masks, rows, extent)
