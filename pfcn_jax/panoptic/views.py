"""Test-time augmentation at kernel level: other scales and mirror images contribute to an image's kernels.

Every view proposes objects; each proposal is looked up in all other views, at the same place of the image. Its
kernel is then the row of its kernels in all views, and the image's feature is the row of the features of all views,
brought to the image's own grid: one product of both is the weighted mean of the mask logits of all views. So fusion,
rescoring and merge stay as they are, masks are made once, and the same object found in two views has (nearly) the same
kernel and is fused as repeats on two levels are.

A kernel is only ever applied to the feature of its own view: both know where in the view they are (coordinates).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from pfcn_jax.panoptic.fusion import fuse_stuff
from pfcn_jax.panoptic.kernels import (
    POOL_WINDOWS,
    Picks,
    Threshold,
    best_peaks,
    center_scores,
    in_use,
    keep_peaks,
    peak_source,
    pool_stuff,
)
from pfcn_jax.panoptic.options import PredictOptions
from pfcn_jax.panoptic.resample import antialiased_matrix, taps_at, taps_matrix
from pfcn_jax.types import (
    FEATURE_STRIDE,
    SIZE_DIVISOR,
    STRIDES,
    DenseOutputs,
    ImageGeometry,
    Kernels,
    KernelSource,
    round_up,
)

Embed = Callable[[Float[Array, "M K"]], Float[Array, "M E"]]
MAX_PROPOSALS = 2048  # of all views together; the best go on


@struct.dataclass
class View:
    """An image resized to `size`, mirrored or not, in a canvas of its own."""

    size: Int[Array, "*B 2"]
    padded_size: Int[Array, "*B 2"]  # `size` rounded up to multiples of 32
    mirrored: bool = struct.field(pytree_node=False, default=False)

    @property
    def geometry(self) -> ImageGeometry:
        """The view's sizes; nothing is resized back from it."""
        return ImageGeometry(self.size, self.padded_size, self.size)


@struct.dataclass
class Proposals:
    """Peaks of one view, level after level."""

    picks: Picks
    source: KernelSource
    point: Float[Array, "N 2"]  # in pixels of the image itself
    kernel: Float[Array, "N K"]  # not yet embedded


# ------------------------------------------------------------------------------------------------ images of views
def make_view(
    image: UInt8[Array, "H W 3"], size: Int[Array, " 2"], *, scale: float, mirrored: bool
) -> tuple[UInt8[Array, "Hv Wv 3"], View]:
    """The image enlarged or shrunk by `scale` (bilinear, antialiased) and mirrored, and where everything went.

    Its canvas is that of the image times `scale`, rounded up to multiples of 32.
    """
    canvas = tuple(math.ceil(side * scale / SIZE_DIVISOR) * SIZE_DIVISOR for side in image.shape[:2])
    new_size = jnp.maximum(jnp.floor(size.astype(jnp.float32) * scale + 0.5), 1.0).astype(jnp.int32)
    if scale != 1.0:
        rows, columns = (
            antialiased_matrix(canvas[axis], image.shape[axis], size[axis], new_size[axis]) for axis in (0, 1)
        )
        exact = lax.Precision.HIGHEST
        pixels = jnp.einsum("yh,hwc->ywc", rows, image.astype(jnp.float32), precision=exact)
        pixels = jnp.einsum("xw,ywc->yxc", columns, pixels, precision=exact)
        image = jnp.clip(jnp.round(pixels), 0.0, 255.0).astype(jnp.uint8)
    if mirrored:
        position = jnp.arange(canvas[1], dtype=jnp.int32)
        image = image[:, jnp.where(position < new_size[1], new_size[1] - 1 - position, position)]
    padded_size = round_up(new_size)
    return image, View(size=new_size, padded_size=padded_size, mirrored=mirrored)


def _to_view(point: Float[Array, "N 2"], size: Int[Array, " 2"], view: View) -> Float[Array, "N 2"]:
    """Points of the image (row, column in pixels) as points of a view."""
    point = point * (view.size.astype(jnp.float32) / size.astype(jnp.float32))[None, :]
    return _mirror(point, view)


def _to_image(point: Float[Array, "N 2"], size: Int[Array, " 2"], view: View) -> Float[Array, "N 2"]:
    return _mirror(point, view) * (size.astype(jnp.float32) / view.size.astype(jnp.float32))[None, :]


def _mirror(point: Float[Array, "N 2"], view: View) -> Float[Array, "N 2"]:
    if not view.mirrored:
        return point
    return jnp.stack([point[:, 0], view.size[1].astype(jnp.float32) - point[:, 1]], axis=1)


def align_feature(
    feature: Float[Array, "hv wv E"],
    view: View,
    size: Int[Array, " 2"],
    padded_size: Int[Array, " 2"],
    shape: tuple[int, ...],
) -> Float[Array, "h w E"]:
    """A view's encoded feature on the 1/4 grid of the image itself (bilinear); zero beyond the padded image."""
    matrices = []
    for axis in (0, 1):
        center = (jnp.arange(shape[axis], dtype=jnp.float32) + 0.5) * FEATURE_STRIDE
        both = jnp.stack([center, center], axis=1)
        source = _to_view(both, size, view)[:, axis] / FEATURE_STRIDE - 0.5
        used = jnp.arange(shape[axis]) * FEATURE_STRIDE < padded_size[axis]
        matrices.append(
            taps_matrix(taps_at(source, view.padded_size[axis] // FEATURE_STRIDE, used), feature.shape[axis])
        )
    exact = lax.Precision.HIGHEST
    tall = jnp.einsum("yh,hwe->ywe", matrices[0], feature.astype(jnp.float32), precision=exact)
    return jnp.einsum("xw,ywe->yxe", matrices[1], tall, precision=exact)


# ------------------------------------------------------------------------------------------------------------ things
def _scores(outputs: DenseOutputs, padded_size: Int[Array, " 2"]) -> list[Float[Array, "_hl _wl T"]]:
    levels = zip(outputs.center_logits, STRIDES, POOL_WINDOWS, strict=True)
    return [center_scores(logits, padded_size, stride=stride, window=window) for logits, stride, window in levels]


def _propose(
    outputs: DenseOutputs,
    peaks: Sequence[Float[Array, "_hl _wl T"]],
    view: View,
    size: Int[Array, " 2"],
    index: int,
    options: PredictOptions,
) -> Proposals:
    """Proposals of view number `index`."""
    parts = []
    for level, stride in enumerate(STRIDES):
        picks = best_peaks(
            peaks[level],
            view.padded_size,
            stride=stride,
            candidates=options.candidates,
            threshold=options.center_threshold,
        )
        source = peak_source(picks, level, peaks[level].shape[1], index)
        parts.append(
            Proposals(
                picks=picks,
                source=source,
                point=_to_image(
                    (source.cell.astype(jnp.float32) + 0.5) * _pixels_per_cell(view, stride)[None], size, view
                ),
                kernel=_at(outputs.kernel_map[level], picks.position),
            )
        )
    return jax.tree.map(lambda *fields: jnp.concatenate(fields), *parts)


def _used(view: View, stride: int) -> Int[Array, " 2"]:
    return (view.padded_size + (stride - 1)) // stride


def _pixels_per_cell(view: View, stride: int) -> Float[Array, " 2"]:
    """Pixels of a view per position of a level, as the targets place centers: the ratio of the sizes.

    Less than the stride on p6 and p7 where the view is no multiple of it.
    """
    return view.padded_size.astype(jnp.float32) / _used(view, stride).astype(jnp.float32)


def _at(values: Float[Array, "hl wl C"], position: Int[Array, " N"]) -> Float[Array, "N C"]:
    return values.reshape(-1, values.shape[2])[position].astype(jnp.float32)


def look_up(
    outputs: DenseOutputs,
    scores: Sequence[Float[Array, "_hl _wl T"]],
    peaks: Sequence[Float[Array, "_hl _wl T"]],
    view: View,
    point: Float[Array, "N 2"],
    class_id: Int[Array, " N"],
    home: Int[Array, " N"],
) -> tuple[Float[Array, " N"], Float[Array, "N K"]]:
    """What a view says about objects of known class at known points of it: their scores and kernels.

    On the level where the object was found and the two beside it: the best peak of its class within one position of
    the point, or, where there is none, the point's own position. The level of the highest score decides, where a
    level beside counts half: a larger or smaller object of the class may lie there.

    Args:
      scores: see `center_scores`.
      peaks: see `keep_peaks`.
      point: row and column in pixels of the view.
      home: index of the level where the object was found.
    """
    best, score = jnp.full(class_id.shape, -1.0, jnp.float32), jnp.zeros(class_id.shape, jnp.float32)
    kernel = jnp.zeros((*class_id.shape, 1), jnp.float32)
    for level, stride in enumerate(STRIDES):
        used = _used(view, stride)
        cell = jnp.clip((point / _pixels_per_cell(view, stride)[None]).astype(jnp.int32), 0, used[None, :] - 1)
        columns = scores[level].shape[1]
        position = cell[:, 0] * columns + cell[:, 1]
        value = scores[level].reshape(-1, scores[level].shape[2])[position, class_id]
        flat_peaks = peaks[level].reshape(-1, peaks[level].shape[2])
        highest = jnp.zeros_like(value)
        for step in ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)):
            near = cell + jnp.asarray(step, jnp.int32)[None, :]
            inside = jnp.all((near >= 0) & (near < used[None, :]), axis=1)
            there = jnp.where(inside, near[:, 0] * columns + near[:, 1], 0)
            peak = jnp.where(inside, flat_peaks[there, class_id], 0.0)
            better = peak > highest
            position, highest = jnp.where(better, there, position), jnp.where(better, peak, highest)
        value = jnp.where(highest > 0.0, highest, value)
        trusted = jnp.where(home == level, 1.0, 0.5) * value
        better = (jnp.abs(home - level) <= 1) & (trusted > best)
        best, score = jnp.where(better, trusted, best), jnp.where(better, value, score)
        kernel = jnp.where(better[:, None], _at(outputs.kernel_map[level], position), kernel)
    return score, kernel


def view_things(
    outputs: Sequence[DenseOutputs],
    views: Sequence[View],
    size: Int[Array, " 2"],
    embed: Embed,
    options: PredictOptions,
) -> Kernels:
    """Kernels of things of all views, `[M, V E]`, not yet fused.

    A thing's score is the mean of its scores in all views and must be above `options.center_threshold`. These scores
    weight the views' mask logits, w_v = s_v / sum(s), as training weights the positions of an object.
    """
    scores = [_scores(output, view.padded_size) for output, view in zip(outputs, views, strict=True)]
    peaks = [[keep_peaks(level) for level in levels] for levels in scores]
    parts = [
        _propose(output, peak, view, size, index, options)
        for index, (output, peak, view) in enumerate(zip(outputs, peaks, views, strict=True))
    ]
    proposals: Proposals = jax.tree.map(lambda *fields: jnp.concatenate(fields), *parts)
    order = lax.top_k(
        jnp.where(proposals.picks.valid, proposals.picks.score, -1.0),
        min(MAX_PROPOSALS, proposals.picks.score.shape[0]),
    )[1]
    proposals = jax.tree.map(lambda field: field[order], proposals)

    found, kernels = [], []
    for v, (output, view) in enumerate(zip(outputs, views, strict=True)):
        point = _to_view(proposals.point, size, view)
        score, kernel = look_up(
            output, scores[v], peaks[v], view, point, proposals.picks.class_id, proposals.source.level
        )
        own = proposals.source.view == v
        found.append(jnp.where(own, proposals.picks.score, score))
        kernels.append(embed(jnp.where(own[:, None], proposals.kernel, kernel)))
    score = jnp.stack(found, axis=1)  # [M, V]
    mean = jnp.mean(score, axis=1)
    return Kernels(
        weight=_weighted_row(kernels, score),
        class_id=proposals.picks.class_id,
        score=mean,
        valid=proposals.picks.valid & (mean > options.center_threshold),
        source=proposals.source,
    )


def _weighted_row(kernels: Sequence[Float[Array, "M E"]], score: Float[Array, "M V"]) -> Float[Array, "M V*E"]:
    share = score / jnp.maximum(jnp.sum(score, axis=1, keepdims=True), 1e-6)
    return jnp.concatenate([kernel * share[:, v, None] for v, kernel in enumerate(kernels)], axis=1)


# ------------------------------------------------------------------------------------------------------------- stuff
def view_stuff(
    outputs: Sequence[DenseOutputs], views: Sequence[View], embed: Embed, *, threshold: Threshold
) -> Kernels:
    """One kernel for each region channel, `[C, V E]`, fused over levels and joined over views.

    A channel's score is the mean over all views, 0 where a view does not see it, and must be above `threshold`.
    """
    parts = []
    for output, view in zip(outputs, views, strict=True):
        pooled = pool_stuff(output.region_logits, output.kernel_map, view.padded_size, threshold=threshold)
        pooled = dataclasses.replace(pooled, weight=embed(pooled.weight))
        parts.append(fuse_stuff(pooled, channels=output.region_logits[0].shape[-1]))
    score = jnp.stack([jnp.where(part.valid, part.score, 0.0) for part in parts], axis=1)  # [C, V]
    mean = jnp.mean(score, axis=1)
    return Kernels(
        weight=_weighted_row([part.weight for part in parts], score),
        class_id=parts[0].class_id,
        score=mean,
        valid=mean > threshold,
    )


def view_feature(
    outputs: Sequence[DenseOutputs], views: Sequence[View], size: Int[Array, " 2"], padded_size: Int[Array, " 2"]
) -> Float[Array, "h w V*E"]:
    """The features of all views on the grid of the first, which is the image itself."""
    own = outputs[0].feature.astype(jnp.float32)
    own = jnp.where(in_use(own.shape[:2], padded_size, FEATURE_STRIDE)[:, :, None], own, 0.0)
    others = [
        align_feature(output.feature, view, size, padded_size, own.shape[:2])
        for output, view in zip(outputs[1:], views[1:], strict=True)
    ]
    return jnp.concatenate([own, *others], axis=2)
