"""Prediction in two halves: the network once for a picture, and what follows again and again.

What follows (pick, fuse, rescore, merge) takes its thresholds as data: one compiled program serves all of them, so that
a slider can be dragged. It is the same `segment` that `predict` and `evaluate` run.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, UInt8

from pfcn_jax.checkpoints.loading import LoadedModel
from pfcn_jax.errors import ConfigError
from pfcn_jax.inference.predictor import Predictor
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.panoptic.fusion import first_claimant, fuse_stuff, fuse_things, similarity
from pfcn_jax.panoptic.kernels import pick_things, pool_stuff, sort_by_score
from pfcn_jax.panoptic.merge import place_things
from pfcn_jax.panoptic.options import PredictOptions
from pfcn_jax.panoptic.predict import Prediction, crop_prediction
from pfcn_jax.panoptic.upsample import make_upsampler
from pfcn_jax.steps import generate, picture_extent, segment
from pfcn_jax.types import DenseOutputs, Kernels

PyTree = Any
# What may change without a new compilation; the other keys of config.inference shape the program.
THRESHOLDS = (
    "center_threshold", "stuff_threshold", "fusion_threshold", "mask_threshold", "min_score", "merge_score",
    "merge_overlap", "min_stuff_area",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Seen:
    """A picture and what the network says about it (on the device, no batch axis)."""

    image: UInt8[np.ndarray, "h w 3"]
    dense: DenseOutputs
    size: Int[Array, " 2"]  # resized, in the canvas
    extent: Int[Array, " 2"]
    original_size: Int[Array, " 2"]
    output_shape: tuple[int, int]


@struct.dataclass
class KernelCounts:
    """How many kernels of things are left after each step."""

    picked: Int[Array, ""]
    fused: Int[Array, ""]
    rescored: Int[Array, ""]


@struct.dataclass
class Trace:
    """Everything between the network and the segments. Kernels are embedded, valid slots first, best first."""

    picked: Kernels  # M slots
    position: Float[Array, "M 3"]  # level (0 = p3), row and column of the peak
    similarity: Float[Array, "M M"]
    owner: Int[Array, " M"]  # the first kernel that claims this one; itself if it heads a cluster
    fused: Kernels  # slot j: the j-th head
    things: Kernels  # rescored and thinned out; their weights are those of `fused`
    placed: Int[Array, " N"]  # slots of `things` on the canvas, in that order
    placed_count: Int[Array, ""]
    stuff: Kernels  # a slot for each channel of each level
    fused_stuff: Kernels  # a slot for each channel
    prediction: Prediction


class StagedPredictor:
    """`look` runs the network; `segment` and `trace` start from what it saw.

    The thresholds that a call leaves out are those of the model's config.

    Raises:
      ConfigError: the config asks for several views of a picture; here there is one.
    """

    def __init__(self, loaded: LoadedModel):
        self.loaded, self.config = loaded, loaded.config
        config = loaded.config
        if config.tta.flip or config.tta.scales:
            raise ConfigError("config.tta: one view of a picture is looked into; leave flip and scales out")
        self._prepare = Predictor(loaded, config).prepare
        self._look = jax.jit(functools.partial(_look, model=loaded.model))
        bound: dict[str, Any] = {"model": loaded.model, "config": config.inference}
        self._segment = jax.jit(functools.partial(_segment, **bound), static_argnames="output_shape")
        self._trace = jax.jit(functools.partial(_trace, **bound), static_argnames="output_shape")

    def look(self, image: UInt8[np.ndarray, "h w 3"]) -> Seen:
        """The network's answer to an RGB picture of any size."""
        ready = self._prepare(image)
        found = self._look(self.loaded.variables, ready.canvas[None], np.array([ready.size], np.int32))
        dense, extent = jax.block_until_ready(found)  # so that a caller can time it
        sizes = (jnp.asarray(ready.size, jnp.int32), extent, jnp.asarray(ready.original_size, jnp.int32))
        return Seen(image, dense, *sizes, output_shape=ready.output_shape)

    def segment(self, seen: Seen, **thresholds: float) -> tuple[Prediction, KernelCounts]:
        """The segments at the picture's own size, and how many kernels each step left; NumPy arrays.

        Args:
          thresholds: any of `THRESHOLDS`; the config's for the others.
        """
        prediction, counts = self._run(self._segment, seen, thresholds)
        return _to_host(prediction, seen), counts

    def trace(self, seen: Seen, **thresholds: float) -> Trace:
        """Every step of the same prediction, as NumPy arrays."""
        found = self._run(self._trace, seen, thresholds)
        return dataclasses.replace(found, prediction=_to_host(found.prediction, seen))

    def _run(self, program: Any, seen: Seen, thresholds: dict[str, float]) -> Any:
        values = threshold_values(self.config.inference, thresholds)
        sizes = (seen.size, seen.extent, seen.original_size)
        found = program(self.loaded.variables, seen.dense, *sizes, values, output_shape=seen.output_shape)
        return jax.tree.map(np.asarray, found)


def threshold_values(config: PredictOptions, changed: dict[str, float]) -> dict[str, np.ndarray]:
    """All of `THRESHOLDS` as arrays: the config's, but for those that are `changed`.

    Raises:
      KeyError: a name that is no threshold.
    """
    unknown = set(changed) - set(THRESHOLDS)
    if unknown:
        raise KeyError(f"{', '.join(sorted(unknown))}: no threshold (known: {', '.join(THRESHOLDS)})")
    values = {name: changed.get(name, getattr(config, name)) for name in THRESHOLDS}
    whole = {"min_stuff_area"}
    return {name: np.asarray(value, np.int32 if name in whole else np.float32) for name, value in values.items()}


def _to_host(prediction: Prediction, seen: Seen) -> Prediction:
    return crop_prediction(prediction, seen.image.shape)


def _look(variables: PyTree, image: Array, size: Array, *, model: PanopticFCN) -> tuple[DenseOutputs, Array]:
    extent = picture_extent(size, image.shape[1:3], "picture")
    dense = generate(variables, image, size, extent, model)
    return jax.tree.map(lambda leaf: leaf[0], dense), extent[0]


def _predict(
    variables: PyTree,
    dense: DenseOutputs,
    sizes: tuple[Array, Array, Array],
    thresholds: dict[str, Any],
    model: PanopticFCN,
    config: PredictOptions,
    output_shape: tuple[int, int],
) -> Prediction:
    settings = {**dataclasses.asdict(config), **thresholds}
    return segment(variables, dense, *sizes, model=model, output_shape=output_shape, **settings)


def _picked(
    variables: PyTree,
    dense: DenseOutputs,
    extent: Array,
    thresholds: dict[str, Any],
    model: PanopticFCN,
    config: PredictOptions,
) -> Kernels:
    """Embedded kernels of things before fusion, sorted."""
    options: dict[str, Any] = {"candidates": config.candidates, "threshold": thresholds["center_threshold"]}
    kernels = pick_things(dense.center_logits, dense.kernel_map, extent, **options)
    embedded = cast(Array, model.apply(variables, kernels.weight, method="embed_things"))
    return sort_by_score(dataclasses.replace(kernels, weight=embedded))


def _segment(
    variables: PyTree,
    dense: DenseOutputs,
    size: Array,
    extent: Array,
    original_size: Array,
    thresholds: dict[str, Any],
    *,
    model: PanopticFCN,
    config: PredictOptions,
    output_shape: tuple[int, int],
) -> tuple[Prediction, KernelCounts]:
    sizes = (size, extent, original_size)
    prediction = _predict(variables, dense, sizes, thresholds, model, config, output_shape)
    picked = _picked(variables, dense, extent, thresholds, model, config)
    fused = fuse_things(picked, threshold=thresholds["fusion_threshold"], class_aware=config.class_aware_fusion)
    counts = [jnp.sum(kernels.valid, dtype=jnp.int32) for kernels in (picked, fused, prediction.things)]
    return prediction, KernelCounts(*counts)


def _trace(
    variables: PyTree,
    dense: DenseOutputs,
    size: Array,
    extent: Array,
    original_size: Array,
    thresholds: dict[str, Any],
    *,
    model: PanopticFCN,
    config: PredictOptions,
    output_shape: tuple[int, int],
) -> Trace:
    sizes = (size, extent, original_size)
    prediction = _predict(variables, dense, sizes, thresholds, model, config, output_shape)
    picked = _picked(variables, dense, extent, thresholds, model, config)
    fusion: dict[str, Any] = {
        "threshold": thresholds["fusion_threshold"],
        "class_aware": config.class_aware_fusion,
    }
    stuff = pool_stuff(dense.region_logits, dense.kernel_map, extent, threshold=thresholds["stuff_threshold"])
    embedded = cast(Array, model.apply(variables, stuff.weight, method="embed_stuff"))
    stuff = dataclasses.replace(stuff, weight=embedded)
    placed = place_things(
        prediction.things,
        dense.feature,
        extent,
        make_upsampler(*sizes, map_shape=dense.feature.shape[:2], output_shape=output_shape),
        mask_threshold=thresholds["mask_threshold"],
        merge_score=thresholds["merge_score"],
        merge_overlap=thresholds["merge_overlap"],
    )
    return Trace(
        picked=picked,
        position=_positions(dense, extent, thresholds["center_threshold"], config.candidates),
        similarity=similarity(picked.weight),
        owner=first_claimant(picked, **fusion),
        fused=fuse_things(picked, **fusion),
        things=prediction.things,
        placed=placed.slot,
        placed_count=placed.count,
        stuff=stuff,
        fused_stuff=fuse_stuff(stuff, channels=dense.region_logits[0].shape[-1]),
        prediction=prediction,
    )


def _positions(dense: DenseOutputs, extent: Array, threshold: Array, candidates: int) -> Float[Array, "M 3"]:
    """Where each picked kernel comes from: the same picking, of maps that hold their own coordinates."""
    maps = []
    for level, logits in enumerate(dense.center_logits):
        shape = logits.shape[:2]
        rows, columns = (jax.lax.broadcasted_iota(jnp.float32, shape, axis) for axis in (0, 1))
        maps.append(jnp.stack([jnp.full(shape, float(level), jnp.float32), rows, columns], axis=-1))
    picked = pick_things(dense.center_logits, tuple(maps), extent, candidates=candidates, threshold=threshold)  # type: ignore[arg-type]
    return sort_by_score(picked).weight
