"""Prediction of one picture, from what the network says to segments: the right half of the paper's figure 2."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from pfcn_jax.errors import UserError
from pfcn_jax.panoptic.fusion import fuse_stuff, fuse_things
from pfcn_jax.panoptic.kernels import pick_things, pool_stuff
from pfcn_jax.panoptic.merge import merge, packed_thing_masks
from pfcn_jax.panoptic.rescore import rescore
from pfcn_jax.panoptic.upsample import make_upsampler
from pfcn_jax.panoptic.views import Embed, View, view_feature, view_stuff, view_things
from pfcn_jax.types import DenseOutputs, Kernels, PanopticPrediction

# Output pixels made at a time, each way: what a CPU's caches hold; on a GPU, where starting a kernel costs more than
# the work of a small tile, mostly the whole picture.
TILE, GPU_TILE = 128, 1024


@struct.dataclass
class Prediction:
    """Everything about one picture. Optional parts are None when not asked for."""

    panoptic: PanopticPrediction
    things: Kernels  # rescored, best first, before the merge: the detections that AP scores
    thing_masks: UInt8[Array, "*B M H0 W0/8"] | None  # their masks at the original size, bits packed along rows
    semantic_map: Int[Array, "*B H0 W0"] | None  # region channel of every pixel (for mIoU), -1 beyond the picture


def predict_image(
    outputs: DenseOutputs,
    embed_things: Embed,
    embed_stuff: Embed,
    size: Int[Array, " 2"],
    extent: Int[Array, " 2"],
    original_size: Int[Array, " 2"],
    *,
    output_shape: tuple[int, int],
    others: Sequence[tuple[DenseOutputs, View]] = (),
    candidates: int = 50,
    center_threshold: float = 0.05,
    stuff_threshold: float = 0.05,
    fusion_threshold: float = 0.9,
    class_aware_fusion: bool = True,
    mask_nms: bool = False,
    mask_nms_threshold: float = 0.5,
    mask_threshold: float = 0.4,
    min_score: float = 0.05,
    max_things: int = 100,
    merge_score: float = 0.2,
    merge_overlap: float = 0.5,
    min_stuff_area: int = 4096,
    thing_regions: int = 1,
    with_thing_masks: bool = False,
    with_semantic_map: bool = False,
    tile: int | None = None,
    window: int | None = None,
    chunk: int = 16,
) -> Prediction:
    """Segments one picture: pick and pool, embed, fuse, rescore, merge (paper section 3.4).

    Args:
      outputs: what the network says about the picture (no batch axis).
      embed_things: the model's embedding of kernels of things, `[M, K] -> [M, E]`.
      embed_stuff: that of stuff.
      size: the resized picture in the canvas. This and the next two are pixels, as data: one compiled program serves
        all.
      extent: with its padding.
      original_size: of the file.
      output_shape: static canvas of the result, at least as large as every original size.
      others: further views of the picture (other scales, mirror images) and what the network says about them.
      candidates: peaks per level.
      center_threshold: of peaks.
      stuff_threshold: of stuff regions.
      fusion_threshold: cosine similarity; above 1 switches the fusion of things off.
      class_aware_fusion: fuse within a class only.
      mask_nms: mask NMS after fusion.
      mask_nms_threshold: of it.
      mask_threshold: see `rescore`, as for `min_score` and `max_things`.
      merge_score: see `merge`, as for `merge_overlap`, `min_stuff_area` and `thing_regions`.
      with_thing_masks: also return the things' masks.
      with_semantic_map: also return the semantic map.
      tile: how the work is cut, as by `window` and `chunk` (see `make_upsampler`, `rescore`); results do not depend on
        it. None: by the platform that runs the program.
    """
    if others:
        seen, views = [outputs, *(dense for dense, _ in others)], [View(size, extent), *(view for _, view in others)]
        things = view_things(seen, views, size, embed_things, candidates=candidates, threshold=center_threshold)
        stuff = view_stuff(seen, views, embed_stuff, threshold=stuff_threshold)
        feature = view_feature(seen, views, size, extent)
    else:
        things = pick_things(
            outputs.center_logits, outputs.kernel_map, extent, candidates=candidates, threshold=center_threshold
        )
        things = dataclasses.replace(things, weight=embed_things(things.weight))
        stuff = pool_stuff(outputs.region_logits, outputs.kernel_map, extent, threshold=stuff_threshold)
        stuff = dataclasses.replace(stuff, weight=embed_stuff(stuff.weight))
        stuff = fuse_stuff(stuff, channels=outputs.region_logits[0].shape[-1])
        feature = outputs.feature
    things = fuse_things(things, threshold=fusion_threshold, class_aware=class_aware_fusion)
    things = rescore(
        things,
        feature,
        extent,
        mask_threshold=mask_threshold,
        min_score=min_score,
        max_things=max_things,
        mask_nms=mask_nms,
        mask_nms_threshold=mask_nms_threshold,
        chunk=chunk,
    )
    paste = functools.partial(
        _paste,
        output_shape=output_shape,
        window=window,
        with_thing_masks=with_thing_masks,
        num_things=outputs.center_logits[0].shape[-1],
        thing_regions=thing_regions,
        mask_threshold=mask_threshold,
        merge_score=merge_score,
        merge_overlap=merge_overlap,
        min_stuff_area=min_stuff_area,
        chunk=chunk,
    )
    arguments = (things, stuff, feature, size, extent, original_size)
    if tile is None:
        cut, whole = functools.partial(paste, tile=TILE), functools.partial(paste, tile=GPU_TILE)
        pasted = lax.platform_dependent(*arguments, cuda=whole, rocm=whole, default=cut)
    else:
        pasted = paste(*arguments, tile=tile)
    panoptic, semantic_map, masks = pasted
    return Prediction(
        panoptic=panoptic,
        things=things,
        thing_masks=masks,
        semantic_map=semantic_map if with_semantic_map else None,
    )


def _paste(
    things: Kernels,
    stuff: Kernels,
    feature: Float[Array, "h w E"],
    size: Int[Array, " 2"],
    extent: Int[Array, " 2"],
    original_size: Int[Array, " 2"],
    *,
    output_shape: tuple[int, int],
    tile: int,
    window: int | None,
    with_thing_masks: bool,
    mask_threshold: float,
    **options: Any,
) -> tuple[PanopticPrediction, Int[Array, "H0 W0"], UInt8[Array, "M H0 W0/8"] | None]:
    """Everything at the original size: segments, semantic map, and the masks of things if they are asked for."""
    upsampler = make_upsampler(
        size, extent, original_size, map_shape=feature.shape[:2], output_shape=output_shape, tile=tile, window=window
    )
    panoptic, semantic_map = merge(things, stuff, feature, extent, upsampler, mask_threshold=mask_threshold, **options)
    if not with_thing_masks:
        return panoptic, semantic_map, None
    return panoptic, semantic_map, packed_thing_masks(things, feature, extent, upsampler, threshold=mask_threshold)


def crop_prediction(prediction: Prediction, size: Any) -> Prediction:
    """One picture's prediction without the padding of the output canvas.

    Raises:
      UserError: the picture is larger than the output canvas, so that the program has cut its result off.
    """
    height, width = int(size[0]), int(size[1])
    canvas = prediction.panoptic.segment_map.shape
    if height > canvas[0] or width > canvas[1]:
        raise UserError(
            f"a picture of {height} x {width} pixels (height x width) does not fit into the output canvas of "
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
