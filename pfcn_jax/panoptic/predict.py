"""Prediction of one image, from the network's outputs to segments: the right half of the paper's figure 2.

`propose` goes from peaks to fused, embedded kernels, `paste` from there to segments. Each returns what it made, and
every kernel and segment says what it was made of (`Kernels.source`, `Kernels.head`, `PanopticPrediction.kernel`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import struct
from jaxtyping import Array, Float, Int, UInt8

from pfcn_jax.errors import UserError
from pfcn_jax.panoptic.fusion import Fusion, fuse_stuff, fuse_things
from pfcn_jax.panoptic.kernels import pick_things, pool_stuff
from pfcn_jax.panoptic.merge import merge, packed_thing_masks
from pfcn_jax.panoptic.options import OutputSpec, PredictOptions
from pfcn_jax.panoptic.rescore import rescore
from pfcn_jax.panoptic.upsample import make_upsampler
from pfcn_jax.panoptic.views import Embed, View, view_feature, view_stuff, view_things
from pfcn_jax.parallel.platform import by_platform
from pfcn_jax.types import DenseOutputs, ImageGeometry, Kernels, PanopticPrediction, RegionChannels

# Output pixels per tile and axis: what fits into a CPU's caches; on a GPU, where launching a kernel costs more than
# the work of a small tile, mostly the whole image.
TILE, GPU_TILE = 128, 1024


class Embeddings(NamedTuple):
    """The model's embeddings of kernels, `[M, K] -> [M, E]`."""

    things: Embed
    stuff: Embed


@struct.dataclass
class Proposed:
    """Embedded kernels of one image, before and after fusion."""

    things: Fusion  # `things.picked` M slots, `things.fused` the heads
    pooled: Kernels | None  # stuff: one slot per channel of each level; None with several views
    stuff: Kernels  # fused: one slot per region channel
    feature: Float[Array, "*B h w E"]  # encoded feature that the kernels apply to


@struct.dataclass
class Prediction:
    """Everything about one image. Optional parts are None when not asked for."""

    panoptic: PanopticPrediction
    things: Kernels  # rescored, best first, before the merge: the detections that AP scores
    thing_masks: UInt8[Array, "*B M H0 W0/8"] | None  # their masks at the original size, bits packed along rows
    semantic_map: Int[Array, "*B H0 W0"] | None  # region channel of every pixel (for mIoU), -1 beyond the image


def propose(
    outputs: DenseOutputs,
    embed: Embeddings,
    geometry: ImageGeometry,
    options: PredictOptions,
    views: Sequence[tuple[DenseOutputs, View]] = (),
) -> Proposed:
    """Picks peaks and pools regions, embeds their kernels and fuses them (paper section 3.4).

    Args:
      outputs: of the network for the image (no batch axis).
      views: further views of the image (other scales, mirror images) with the network's outputs for them.
    """
    if views:
        seen = [outputs, *(dense for dense, _ in views)]
        shown = [View(geometry.size, geometry.padded_size), *(view for _, view in views)]
        things = view_things(seen, shown, geometry.size, embed.things, options)
        pooled, stuff = None, view_stuff(seen, shown, embed.stuff, threshold=options.stuff_threshold)
        feature = view_feature(seen, shown, geometry.size, geometry.padded_size)
    else:
        things = pick_things(
            outputs.center_logits,
            outputs.kernel_map,
            geometry.padded_size,
            candidates=options.candidates,
            threshold=options.center_threshold,
        )
        things = dataclasses.replace(things, weight=embed.things(things.weight))
        pooled = pool_stuff(
            outputs.region_logits, outputs.kernel_map, geometry.padded_size, threshold=options.stuff_threshold
        )
        pooled = dataclasses.replace(pooled, weight=embed.stuff(pooled.weight))
        stuff = fuse_stuff(pooled, channels=outputs.region_logits[0].shape[-1])
        feature = outputs.feature
    fusion = fuse_things(things, threshold=options.fusion_threshold, class_aware=options.class_aware_fusion)
    return Proposed(fusion, pooled, stuff, feature)


def paste(
    proposed: Proposed,
    geometry: ImageGeometry,
    options: PredictOptions,
    regions: RegionChannels,
    output: OutputSpec,
) -> Prediction:
    """Rescores the fused kernels of one image and pastes their masks into a panoptic segmentation."""
    things = rescore(
        proposed.things.fused, proposed.feature, geometry.padded_size, options, chunk=output.chunk
    )  # [max_things]

    def at_original_size(
        things: Kernels, stuff: Kernels, feature: Array, geometry: ImageGeometry, *, tile: int
    ) -> tuple[PanopticPrediction, Array, Array | None]:
        upsampler = make_upsampler(
            geometry, map_shape=feature.shape[:2], output_shape=output.shape, tile=tile, window=output.window
        )
        panoptic, semantic_map = merge(things, stuff, feature, upsampler, regions, options, chunk=output.chunk)
        if not output.thing_masks:
            return panoptic, semantic_map, None
        masks = packed_thing_masks(things, feature, upsampler, threshold=options.mask_threshold)
        return panoptic, semantic_map, masks

    arguments = (things, proposed.stuff, proposed.feature, geometry)
    if output.tile is None:
        cut, whole = (functools.partial(at_original_size, tile=tile) for tile in (TILE, GPU_TILE))
        pasted = by_platform(*arguments, gpu=whole, default=cut)
    else:
        pasted = at_original_size(*arguments, tile=output.tile)
    panoptic, semantic_map, masks = pasted
    return Prediction(
        panoptic=panoptic,
        things=things,
        thing_masks=masks,
        semantic_map=semantic_map if output.semantic_map else None,
    )


def predict_image(
    outputs: DenseOutputs,
    embed: Embeddings,
    geometry: ImageGeometry,
    options: PredictOptions,
    regions: RegionChannels,
    output: OutputSpec,
    views: Sequence[tuple[DenseOutputs, View]] = (),
) -> Prediction:
    """Segments one image: pick and pool, embed, fuse, rescore, merge (paper section 3.4)."""
    return paste(propose(outputs, embed, geometry, options, views), geometry, options, regions, output)


def crop_prediction(prediction: Prediction, size: Any) -> Prediction:
    """One image's prediction without the padding of the output canvas.

    Raises:
      UserError: the image is larger than the output canvas, so that the program has cut its result off.
    """
    height, width = int(size[0]), int(size[1])
    canvas = prediction.panoptic.segment_map.shape
    if height > canvas[0] or width > canvas[1]:
        raise UserError(
            f"an image of {height} x {width} pixels (height x width) does not fit into the output canvas of "
            f"{canvas[0]} x {canvas[1]}: its segments would be cut off; use an output_shape that holds it"
        )
    panoptic = dataclasses.replace(prediction.panoptic, segment_map=prediction.panoptic.segment_map[:height, :width])
    masks, semantic = prediction.thing_masks, prediction.semantic_map
    return dataclasses.replace(
        prediction,
        panoptic=panoptic,
        thing_masks=None if masks is None else masks[:, :height],
        semantic_map=None if semantic is None else semantic[:height, :width],
    )
