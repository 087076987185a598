"""Synthetic head outputs with a known number of instances: what everything after the heads is timed on.

A scene is the outputs of a network for an image with n well separated things and a few bands of stuff, so that the
number of kernels, masks and segments is known and does not depend on weights. `make_scene` draws it,
`post_program` is the function to time, and `scene_rows` the part `scenes` of the `benchmark` verb.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from pfcn_jax.panoptic.options import OutputSpec, PredictOptions
from pfcn_jax.panoptic.predict import Embeddings, Prediction, predict_image
from pfcn_jax.studies.benchmark.measure import Row, Yardstick, compile_program, time_runs
from pfcn_jax.types import FEATURE_STRIDE, STRIDES, DenseOutputs, ImageGeometry, RegionChannels, image_geometry

Scene = tuple[DenseOutputs, ImageGeometry]
# (input, instances, original size, options, masks for AP)
COCO = RegionChannels(80, 53)
_USUAL = PredictOptions()
_CITY = PredictOptions(candidates=200, max_things=200)
_HUNDRED = PredictOptions(candidates=100)  # all may lie on one level, which keeps 50 otherwise
_NMS, _HUNDRED_NMS = (dataclasses.replace(options, mask_nms=True) for options in (_USUAL, _HUNDRED))
Case = tuple[tuple[int, int], int, tuple[int, int], PredictOptions, bool]
CASES: tuple[Case, ...] = (
    ((800, 1088), 10, (480, 640), _USUAL, False),
    ((800, 1088), 50, (480, 640), _USUAL, False),
    ((800, 1088), 100, (480, 640), _HUNDRED, False),
    ((1024, 2048), 200, (1024, 2048), _CITY, False),
    ((800, 1088), 100, (3000, 4000), _HUNDRED, False),
    ((800, 1088), 10, (480, 640), _NMS, False),
    ((800, 1088), 100, (480, 640), _HUNDRED_NMS, False),
    ((800, 1088), 10, (3000, 4000), _USUAL, True),
    ((800, 1088), 100, (3000, 4000), _HUNDRED, True),
)
_LOGIT = 6.0  # at the middle of a mask; 0 at its border
_RANGES = (64.0, 128.0, 256.0, 512.0)  # largest side of an instance on p3, p4, p5, p6; above: p7


def make_scene(
    canvas: tuple[int, int],
    instances: int,
    original_size: tuple[int, int],
    *,
    classes: RegionChannels = COCO,
    stuff: int = 6,
    channels: tuple[int, int] = (256, 64),
    overlap: float = 1.1,
    seed: int = 0,
) -> Scene:
    """Dense outputs of one image that fills its canvas, and its geometry.

    Instances lie on a jittered grid; each is an ellipse. The encoded feature holds 1, y, x, y^2, x^2, so that a kernel
    is an ellipse's equation; the other channels of the kernels are random and meet zeros, so that none are fused.

    Args:
      canvas: (height, width) of the input, multiples of 32.
      instances: number of things.
      stuff: vertical bands of stuff, each of its own class.
      channels: of the kernel map and of the encoded feature.
      overlap: size of an instance relative to its cell of the grid; above 1 neighbors touch.
    """
    rng = np.random.default_rng(seed)
    (height, width), (kernel_channels, encoder_channels) = canvas, channels
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
        center_logits = np.full((*shape, classes.num_things), -9.0, np.float32)
        band = np.minimum(np.arange(shape[1]) * stride * stuff // width, stuff - 1)
        share = np.bincount(band, minlength=stuff) / shape[1]
        region_logits = np.full((*shape, classes.count), -6.0, np.float32)
        region_logits[:, np.arange(shape[1]), 1 + band] = 3.0
        kernel_map = np.broadcast_to((bands / np.maximum(share, 1e-6)[:, None])[band], (*shape, kernel_channels)).copy()
        for i in np.flatnonzero(level_of == level):
            y, x = (min(int(center[i, axis] / stride), shape[axis] - 1) for axis in (0, 1))
            center_logits[y, x, rng.integers(classes.num_things)] = 4.0
            kernel_map[y, x] = equations[i]
        centers.append(center_logits)
        regions.append(region_logits)
        kernels.append(kernel_map.astype(np.float32))
    feature: Any = _coordinates(canvas, encoder_channels)
    outputs = DenseOutputs(tuple(centers), tuple(regions), tuple(kernels), feature)
    size = np.array(canvas, np.int32)
    return outputs, image_geometry(size, np.array(original_size, np.int32))


def post_program(
    options: PredictOptions, output: OutputSpec, *, encoder_channels: int = 64
) -> Callable[[DenseOutputs, ImageGeometry], Prediction]:
    """Everything after the heads, for the scenes above. The embedding takes the first channels of a kernel."""

    def embed(kernels: Float[Array, "M K"]) -> Float[Array, "M E"]:
        return kernels[:, :encoder_channels]

    def run(outputs: DenseOutputs, geometry: ImageGeometry) -> Prediction:
        regions = RegionChannels(outputs.center_logits[0].shape[-1], outputs.region_logits[0].shape[-1] - 1)
        return predict_image(outputs, Embeddings(embed, embed), geometry, options, regions, output)

    return run


def scene_rows(yardstick: Yardstick, *, seconds: float, cases: tuple[Case, ...] = CASES) -> list[Row]:
    """Time and memory of everything after the heads, by number of instances and size of the output."""
    rows = []
    for canvas, instances, original, options, masks in cases:
        scene = jax.device_put(make_scene(canvas, instances, original))
        program = compile_program(post_program(options, OutputSpec(original, thing_masks=masks)), *scene)
        row: Row = {
            "input": "x".join(map(str, canvas)),
            "output": "x".join(map(str, original)),
            "instances": instances,
            "with": "mask NMS" if options.mask_nms else "masks for AP" if masks else "",
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
