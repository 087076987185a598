"""Synthetic head outputs with a known number of instances: what everything after the heads is timed on.

A scene is what the network would say about an image with n well separated things and a few bands of stuff, so that
the number of kernels, masks and segments is known and does not depend on weights. `make_scene` draws it,
`post_program` is the function to time, and `scene_rows` the part `scenes` of the `benchmark` verb.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from pfcn_jax.panoptic.predict import Prediction, predict_image
from pfcn_jax.studies.benchmark.measure import Row, Yardstick, compile_program, time_runs
from pfcn_jax.types import FEATURE_STRIDE, STRIDES, DenseOutputs, round_up

Scene = tuple[DenseOutputs, np.ndarray, np.ndarray, np.ndarray]
# (input, instances, original size, what is asked for)
_CITY = {"candidates": 200, "max_things": 200}
_HUNDRED = {"candidates": 100}  # all may lie on one level, which keeps 50 otherwise
CASES: tuple[tuple[tuple[int, int], int, tuple[int, int], dict[str, Any]], ...] = (
    ((800, 1088), 10, (480, 640), {}),
    ((800, 1088), 50, (480, 640), {}),
    ((800, 1088), 100, (480, 640), _HUNDRED),
    ((1024, 2048), 200, (1024, 2048), _CITY),
    ((800, 1088), 100, (3000, 4000), _HUNDRED),
    ((800, 1088), 10, (480, 640), {"mask_nms": True}),
    ((800, 1088), 100, (480, 640), {**_HUNDRED, "mask_nms": True}),
    ((800, 1088), 10, (3000, 4000), {"with_thing_masks": True}),
    ((800, 1088), 100, (3000, 4000), {**_HUNDRED, "with_thing_masks": True}),
)
_LOGIT = 6.0  # at the middle of a mask; 0 at its border
_RANGES = (64.0, 128.0, 256.0, 512.0)  # largest side of an instance on p3, p4, p5, p6; above: p7


def make_scene(
    canvas: tuple[int, int],
    instances: int,
    original_size: tuple[int, int],
    *,
    num_things: int = 80,
    num_stuff: int = 53,
    stuff: int = 6,
    kernel_channels: int = 256,
    encoder_channels: int = 64,
    overlap: float = 1.1,
    seed: int = 0,
) -> Scene:
    """Dense outputs of one image that fills its canvas, its size, its extent and its original size.

    Instances lie on a jittered grid; each is an ellipse. The encoded feature holds 1, y, x, y^2, x^2, so that a kernel
    is an ellipse's equation; the other channels of the kernels are random and meet zeros, so that none are fused.

    Args:
      canvas: (height, width) of the input, multiples of 32.
      instances: number of things.
      stuff: vertical bands of stuff, each of its own class.
      overlap: size of an instance relative to its cell of the grid; above 1 neighbours touch.
    """
    rng = np.random.default_rng(seed)
    height, width = canvas
    rows = max(1, round(math.sqrt(instances * height / width)))
    columns = -(-instances // rows)
    cell = np.array([height / rows, width / columns])
    grid = np.stack(np.divmod(np.arange(instances), columns), axis=1)
    center = (grid + rng.uniform(0.4, 0.6, (instances, 2))) * cell  # pixels
    radius = np.maximum(overlap * cell / 2 * rng.uniform(0.7, 1.0, (instances, 2)), 6.0)
    equations = np.zeros((instances, kernel_channels), np.float32)
    equations[:, :5] = _ellipse(center / canvas, radius / canvas)
    equations[:, 5:encoder_channels] = rng.normal(size=(instances, encoder_channels - 5)) * np.abs(equations).max()
    bands = _bands(stuff, kernel_channels)

    level_of = np.searchsorted(_RANGES, 2 * radius.max(axis=1))
    centers: list[Any] = []
    regions: list[Any] = []
    kernels: list[Any] = []
    for level, stride in enumerate(STRIDES):
        shape = (-(-height // stride), -(-width // stride))
        center_logits = np.full((*shape, num_things), -9.0, np.float32)
        band = np.minimum(np.arange(shape[1]) * stride * stuff // width, stuff - 1)
        share = np.bincount(band, minlength=stuff) / shape[1]
        region_logits = np.full((*shape, 1 + num_stuff), -6.0, np.float32)
        region_logits[:, np.arange(shape[1]), 1 + band] = 3.0
        kernel_map = np.broadcast_to((bands / np.maximum(share, 1e-6)[:, None])[band], (*shape, kernel_channels)).copy()
        for i in np.flatnonzero(level_of == level):
            y, x = (min(int(center[i, axis] / stride), shape[axis] - 1) for axis in (0, 1))
            center_logits[y, x, rng.integers(num_things)] = 4.0
            kernel_map[y, x] = equations[i]
        centers.append(center_logits)
        regions.append(region_logits)
        kernels.append(kernel_map.astype(np.float32))
    feature: Any = _coordinates(canvas, encoder_channels)
    outputs = DenseOutputs(tuple(centers), tuple(regions), tuple(kernels), feature)
    size = np.array(canvas, np.int32)
    return outputs, size, round_up(size), np.array(original_size, np.int32)


def post_program(
    output_shape: tuple[int, int], *, encoder_channels: int = 64, **options: Any
) -> Callable[..., Prediction]:
    """Everything after the heads, for the scenes above: `(outputs, size, extent, original_size) -> Prediction`.

    `options` are keywords of `predict_image`. The embedding takes the first channels of a kernel.
    """

    def embed(kernels: Float[Array, "M K"]) -> Float[Array, "M E"]:
        return kernels[:, :encoder_channels]

    def run(outputs: DenseOutputs, size: Array, extent: Array, original_size: Array) -> Prediction:
        return predict_image(outputs, embed, embed, size, extent, original_size, output_shape=output_shape, **options)

    return run


def scene_rows(yardstick: Yardstick, *, seconds: float, cases: tuple[Any, ...] = CASES) -> list[Row]:
    """Time and memory of everything after the heads, by number of instances and size of the output."""
    rows = []
    for canvas, instances, original, options in cases:
        scene = jax.device_put(make_scene(canvas, instances, original))
        program = compile_program(post_program(original, **options), *scene)
        asked = [name for name in ("mask_nms", "with_thing_masks") if options.get(name)]
        row: Row = {
            "input": "x".join(map(str, canvas)),
            "output": "x".join(map(str, original)),
            "instances": instances,
            "with": {"mask_nms": "mask NMS", "with_thing_masks": "masks for AP"}[asked[0]] if asked else "",
        }
        with yardstick.around(row):
            timing = time_runs(functools.partial(program.run, *scene), seconds=seconds)
        result = program.run(*scene)
        row |= timing.row() | {"things": int(result.things.valid.sum()), "segments": int(result.panoptic.valid.sum())}
        rows.append(row | {"temporary_mb": program.temporary_bytes / 1e6, "compile_s": program.compile_seconds})
    return rows


def _ellipse(center: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Coefficients of 1, y, x, y^2, x^2 of logit (1 - ((y - cy) / ry)^2 - ((x - cx) / rx)^2), `[n, 5]`."""
    square = 1.0 / radius**2
    constant = 1.0 - np.sum(center**2 * square, axis=1, keepdims=True)
    return _LOGIT * np.concatenate([constant, 2.0 * center * square, -square], axis=1)


def _bands(stuff: int, channels: int) -> np.ndarray:
    """Kernels that are highest in their own vertical band, `[stuff, channels]`."""
    center = np.stack([np.full(stuff, 0.5), (np.arange(stuff) + 0.5) / stuff], axis=1)
    kernels = np.zeros((stuff, channels), np.float32)
    kernels[:, :5] = _ellipse(center, np.broadcast_to(np.array([4.0, 1.0 / stuff]), (stuff, 2)))
    return kernels


@functools.cache
def _coordinates(canvas: tuple[int, int], channels: int) -> np.ndarray:
    h, w = (side // FEATURE_STRIDE for side in canvas)
    y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    feature = np.zeros((h, w, channels), np.float32)
    feature[:, :, :5] = np.stack([np.ones_like(y), y, x, y * y, x * x], axis=-1)
    return feature
