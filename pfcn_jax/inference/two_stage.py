"""Prediction in two stages: the network once per image, and the rest as often as thresholds change.

The second stage (pick, fuse, rescore, merge) takes its thresholds as data: one compiled program serves all values, fast
enough for a slider. It is the `propose` and `paste` that `predict` and `evaluate` run.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, UInt8

from pfcn_jax.checkpoints.loading import LoadedModel
from pfcn_jax.errors import ConfigError
from pfcn_jax.inference.predictor import Predictor
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.panoptic.options import THRESHOLDS, OutputSpec, PredictOptions
from pfcn_jax.panoptic.predict import Prediction, Proposed, crop_prediction, paste, propose
from pfcn_jax.steps import embeddings, generate
from pfcn_jax.types import DenseOutputs, ImageGeometry, image_geometry

PyTree = Any


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An image and the network's outputs for it (on the device, no batch axis)."""

    image: UInt8[np.ndarray, "h w 3"]
    dense: DenseOutputs
    geometry: ImageGeometry
    output: OutputSpec


@dataclasses.dataclass(frozen=True)
class KernelCounts:
    """Numbers of kernels of things after each step."""

    picked: int
    fused: int
    rescored: int


@struct.dataclass
class Trace:
    """The proposed kernels and the prediction of one image, for whoever shows how one led to the other."""

    proposed: Proposed
    prediction: Prediction


class TwoStagePredictor:
    """`encode` runs the network; `segment` and `trace` start from its outputs.

    Thresholds that a call leaves out are those of the model's config.

    Raises:
      ConfigError: the config asks for several views of an image; this class supports one.
    """

    def __init__(self, loaded: LoadedModel):
        self.loaded, self.config = loaded, loaded.config
        if loaded.config.tta.flip or loaded.config.tta.scales:
            raise ConfigError("config.tta: only one view of an image is supported here; leave flip and scales out")
        self._prepare = Predictor(loaded, loaded.config).prepare
        self._encode = jax.jit(functools.partial(_encode, model=loaded.model))
        self._run = jax.jit(functools.partial(_propose_and_paste, model=loaded.model), static_argnames="output")

    def encode(self, image: UInt8[np.ndarray, "h w 3"]) -> EncodedImage:
        """The network's outputs for an RGB image of any size."""
        ready = self._prepare(image)
        sizes = (np.array([size], np.int32) for size in (ready.size, ready.original_size))
        encoded = self._encode(self.loaded.variables, ready.canvas[None], *sizes)
        dense, geometry = jax.block_until_ready(encoded)  # so that callers can time it
        return EncodedImage(image, dense, geometry, OutputSpec(ready.output_shape))

    def segment(self, encoded: EncodedImage, **thresholds: float) -> tuple[Prediction, KernelCounts]:
        """The segments at the image's own size as NumPy arrays, and the numbers of kernels after each step.

        Args:
          thresholds: any of `THRESHOLDS`; the others are those of the config.
        """
        proposed, prediction = self._propose_and_paste(encoded, thresholds)
        fusion = proposed.things
        parts = (fusion.picked, fusion.fused, prediction.things)
        counts = KernelCounts(*(int(np.sum(np.asarray(kernels.valid))) for kernels in parts))
        return _to_host(prediction, encoded), counts

    def trace(self, encoded: EncodedImage, **thresholds: float) -> Trace:
        """All intermediate results of the same prediction, as NumPy arrays."""
        proposed, prediction = self._propose_and_paste(encoded, thresholds)
        return Trace(jax.tree.map(np.asarray, proposed), _to_host(prediction, encoded))

    def _propose_and_paste(self, encoded: EncodedImage, thresholds: dict[str, float]) -> tuple[Proposed, Prediction]:
        options = with_thresholds(self.config.inference, thresholds)
        return self._run(self.loaded.variables, encoded.dense, encoded.geometry, options, output=encoded.output)


def with_thresholds(options: PredictOptions, changed: dict[str, float]) -> PredictOptions:
    """Options with some of `THRESHOLDS` changed, as data of a compiled program.

    Raises:
      KeyError: a name that is no threshold.
    """
    unknown = set(changed) - set(THRESHOLDS)
    if unknown:
        raise KeyError(f"{', '.join(sorted(unknown))}: no threshold (known: {', '.join(THRESHOLDS)})")
    return dataclasses.replace(options, **cast(dict[str, Any], changed)).as_data()


def _to_host(prediction: Prediction, encoded: EncodedImage) -> Prediction:
    return crop_prediction(jax.tree.map(np.asarray, prediction), encoded.image.shape)


def _encode(
    variables: PyTree, image: Array, size: Array, original_size: Array, *, model: PanopticFCN
) -> tuple[DenseOutputs, ImageGeometry]:
    geometry = image_geometry(size, original_size)
    dense = generate(variables, image, geometry, model)
    return jax.tree.map(lambda leaf: leaf[0], (dense, geometry))


def _propose_and_paste(
    variables: PyTree,
    dense: DenseOutputs,
    geometry: ImageGeometry,
    options: PredictOptions,
    *,
    model: PanopticFCN,
    output: OutputSpec,
) -> tuple[Proposed, Prediction]:
    proposed = propose(dense, embeddings(variables, model), geometry, options)
    return proposed, paste(proposed, geometry, options, model.regions, output)
