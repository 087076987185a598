"""The whole prediction against the original implementation: from the picture to the segments, on its weights."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pfcn_jax.panoptic.fusion import fuse_stuff, fuse_things
from pfcn_jax.panoptic.kernels import (
    POOL_WINDOWS,
    center_peaks,
    concatenate,
    convolve,
    pick_level,
    pool_level,
    sort_by_score,
)
from pfcn_jax.panoptic.merge import merge, packed_thing_masks
from pfcn_jax.panoptic.predict import Prediction, predict_image
from pfcn_jax.panoptic.rescore import mask_means, rescore
from pfcn_jax.panoptic.upsample import Upsampler, make_upsampler
from pfcn_jax.studies.parity.network import load_model
from pfcn_jax.studies.parity.prediction_stages import (
    SCORE_TOLERANCE,
    compare_kernels,
    compare_pixels,
    compare_probabilities,
    settings,
    sizes,
    valid_part,
)
from pfcn_jax.studies.parity.reference import Check, Recorded, check, recorded_files
from pfcn_jax.types import LEVELS, STRIDES, DenseOutputs, Kernels, PanopticPrediction

AREA_TOLERANCE = 1e-3  # relative


def check_prediction(reference: pathlib.Path, pattern: str = "infer_*_result.npz") -> list[Check]:
    """Every recorded result from its picture: network, picks, kernels, masks, merge."""
    checks: list[Check] = []
    models: dict[str, tuple[Any, Any]] = {}
    dense: dict[bytes, DenseOutputs] = {}
    for recorded in recorded_files(reference, pattern):
        variant = _checkpoint(recorded)
        if variant not in models:
            models[variant] = load_model(reference, variant)
        model, variables = models[variant]
        key = variant.encode() + recorded["image"].tobytes()
        if key not in dense:
            dense[key] = _run_network(model, variables, recorded, margin=0)
        checks += check_chain(recorded, dense[key], model, variables)
    return checks


def _checkpoint(recorded: Recorded) -> str:
    """Two checkpoints were recorded; every other setting shares one of them."""
    return "Star-R50-3x" if recorded.config["config"].startswith("Star") else "R50-1x"


def _run_network(model: Any, variables: Any, recorded: Recorded, margin: int) -> DenseOutputs:
    size, extent, _ = sizes(recorded)
    canvas = np.zeros((1, extent[0] + margin, extent[1] + margin, 3), np.uint8)
    canvas[0, : size[0], : size[1]] = recorded["image"][:, :, ::-1]  # recorded as BGR
    outputs = _apply(model, variables, canvas, size[None], extent[None])
    return jax.tree.map(lambda batch: batch[0], outputs)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Any, variables: Any, *batch: jax.Array) -> DenseOutputs:
    return model.apply(variables, *batch)


@struct.dataclass
class Stages:
    """Everything on the way from the heads to the segments of one picture."""

    peaks: tuple[jax.Array, ...]  # per level
    picked: tuple[Kernels, ...]
    pooled: tuple[Kernels, ...]
    things: Kernels  # embedded
    stuff: Kernels
    fused: Kernels
    fused_stuff: Kernels
    thing_logits: jax.Array
    stuff_logits: jax.Array
    means: jax.Array
    final: Kernels
    final_masks: jax.Array  # packed
    panoptic: PanopticPrediction
    semantic_map: jax.Array
    upsampler: Upsampler


# Compiled once per shape; thresholds and sizes are data, so that recorded settings share a program.
@functools.partial(jax.jit, static_argnames=("model", "output_shape", "candidates", "fusion_threshold", "class_aware"))
def _run_stages(
    model: Any,
    variables: Any,
    outputs: DenseOutputs,
    size: jax.Array,
    extent: jax.Array,
    original_size: jax.Array,
    data: dict[str, jax.Array],
    *,
    output_shape: tuple[int, int],
    candidates: int,
    fusion_threshold: float,
    class_aware: bool,
) -> Stages:
    """`predict_image` with nothing thrown away: each stage is fed with our own previous stage."""
    feature, maps = outputs.feature, outputs.kernel_map
    peaks, picked, pooled = [], [], []
    for level, stride in enumerate(STRIDES):
        peaks.append(center_peaks(outputs.center_logits[level], extent, stride=stride, window=POOL_WINDOWS[level]))
        limits: dict[str, Any] = {"candidates": candidates, "threshold": data["center_threshold"]}
        picked.append(pick_level(peaks[level], maps[level], extent, stride=stride, **limits))
        threshold: Any = data["stuff_threshold"]
        pooled.append(pool_level(outputs.region_logits[level], maps[level], extent, stride=stride, threshold=threshold))

    def embed(parts: list[Kernels], method: str) -> Kernels:
        kernels = concatenate(parts)
        return dataclasses.replace(kernels, weight=model.apply(variables, kernels.weight, method=method))

    things, stuff = embed(picked, "embed_things"), embed(pooled, "embed_stuff")
    fused = fuse_things(things, threshold=fusion_threshold, class_aware=class_aware)
    fused_stuff = fuse_stuff(stuff, channels=outputs.region_logits[0].shape[-1])
    cut: Any = data["mask_threshold"]
    final = rescore(fused, feature, extent, mask_threshold=cut)
    upsampler = make_upsampler(size, extent, original_size, map_shape=feature.shape[:2], output_shape=output_shape)
    rules: dict[str, Any] = {name: data[name] for name in ("merge_score", "merge_overlap", "min_stuff_area")}
    num_things = outputs.center_logits[0].shape[-1]
    panoptic, semantic_map = merge(
        final, fused_stuff, feature, extent, upsampler, num_things=num_things, mask_threshold=cut, **rules
    )
    return Stages(
        peaks=tuple(peaks),
        picked=tuple(picked),
        pooled=tuple(pooled),
        things=sort_by_score(things),
        stuff=stuff,
        fused=fused,
        fused_stuff=fused_stuff,
        thing_logits=convolve(fused.weight, feature),
        stuff_logits=convolve(fused_stuff.weight, feature),
        means=mask_means(fused, feature, extent, threshold=cut),
        final=final,
        final_masks=packed_thing_masks(final, feature, extent, upsampler, threshold=cut),
        panoptic=panoptic,
        semantic_map=semantic_map,
        upsampler=upsampler,
    )


def check_chain(recorded: Recorded, outputs: DenseOutputs, model: Any, variables: Any) -> list[Check]:
    """All stages of one recorded result."""
    options = dataclasses.asdict(settings(recorded))
    static = {
        "candidates": options.pop("candidates"),
        "fusion_threshold": options.pop("fusion_threshold"),
        "class_aware": options.pop("class_aware_fusion"),
    }
    height, width = (int(n) for n in recorded["out_size"])
    stages = _run_stages(model, variables, outputs, *sizes(recorded), options, output_shape=(height, width), **static)
    checks: list[Check] = []
    for index, level in enumerate(LEVELS):
        checks += _check_picks(recorded, level, stages.peaks[index], stages.picked[index])
        checks += compare_kernels(recorded, f"{level}.thing_{{}}", stages.picked[index], weight="kernel")
        checks += compare_kernels(recorded, f"{level}.stuff_{{}}", stages.pooled[index], weight="kernel")
    things, stuff = stages.things, stages.stuff
    checks += compare_kernels(recorded, "thing_{}", things, class_id="class_sorted", score="score_sorted")
    checks += compare_kernels(recorded, "stuff_{}", stuff, class_id="class_all", score="score_all")
    checks += compare_kernels(recorded, "thing_{}_fused", stages.fused)
    checks += compare_kernels(recorded, "stuff_{}_fused", stages.fused_stuff)
    checks += _check_masks(recorded, stages)
    return checks + _check_segments(recorded, stages)


def _check_picks(recorded: Recorded, level: str, peaks: Any, picked: Kernels) -> Iterator[Check]:
    """Peak map, and the list of the best, before the threshold: same positions and classes in the same order."""
    theirs = recorded[f"{level}.center_peaks"]
    step = recorded.meta[f"{level}.center_peaks"]["step"]
    rows, columns = theirs.shape[2:]
    ours = np.moveaxis(np.asarray(peaks), -1, 0)[::step, :rows, :columns]
    yield check(recorded.name, f"{level}.center_peaks", ours[None], theirs, SCORE_TOLERANCE)

    score, class_id = recorded[f"{level}.topk_score"][0], recorded[f"{level}.topk_class"][0]
    ours_score, ours_class = (np.asarray(field)[: len(score)] for field in (picked.score, picked.class_id))
    some = score > 0  # the rest is no peak, in any order
    yield check(recorded.name, f"{level}.topk_score", ours_score[some], score[some], SCORE_TOLERANCE)
    yield check(recorded.name, f"{level}.topk_class", ours_class[some], class_id[some], 0.0)
    flat = np.asarray(peaks)[:rows, :columns][
        recorded[f"{level}.topk_index"][0] // columns, recorded[f"{level}.topk_index"][0] % columns, class_id
    ]
    yield check(recorded.name, f"{level}.topk_index", flat[some], ours_score[some], 0.0)


def _check_masks(recorded: Recorded, stages: Stages) -> list[Check]:
    """Logits, new scores, and at the original size: probabilities of stuff and the masks of the best things."""
    name, final = recorded.name, stages.final
    checks = []
    for key, logits, kernels in (
        ("thing_logits", stages.thing_logits, stages.fused),
        ("stuff_logits", stages.stuff_logits, stages.fused_stuff),
    ):
        ours = valid_part(logits, kernels)[:, : recorded[key].shape[2], : recorded[key].shape[3]]
        checks.append(recorded.compare(key, np.moveaxis(ours, 0, -1)[None], relative=1e-4))
    probability = jax.nn.sigmoid(valid_part(stages.stuff_logits, stages.fused_stuff))
    checks.append(compare_probabilities(recorded, probability, stages.upsampler, step=1))
    for key, value, kernels, tolerance in (
        ("rescored_unsorted", stages.fused.score * stages.means, stages.fused, SCORE_TOLERANCE),
        ("final_class", final.class_id, final, 0.0),
        ("final_score", final.score, final, SCORE_TOLERANCE),
        ("sem_present", stages.fused_stuff.class_id, stages.fused_stuff, 0.0),
    ):
        checks.append(check(name, key, valid_part(value, kernels), recorded[key], tolerance))
    masks = np.unpackbits(valid_part(stages.final_masks, final), axis=-1, count=int(recorded["out_size"][1]))
    checks.append(compare_pixels(recorded, "final_mask", masks.astype(bool), recorded["final_mask"]))
    checks.append(_check_boxes(recorded, masks.astype(bool)))
    checks.append(compare_pixels(recorded, "sem_argmax", np.asarray(stages.semantic_map), recorded["sem_argmax"]))
    return checks


def _check_segments(recorded: Recorded, stages: Stages) -> list[Check]:
    """The map, and the list: the original counts things by class and stuff by region channel, both from its heads."""
    name, panoptic, theirs = recorded.name, stages.panoptic, recorded["panoptic_seg"]
    info = recorded.json("segments_info")
    valid = np.asarray(panoptic.valid)
    checks = [
        compare_pixels(recorded, "panoptic_seg", np.asarray(panoptic.segment_map), theirs),
        check(name, "number of segments", valid.sum(), np.asarray(len(info)), 0.0),
    ]
    if valid.sum() != len(info):
        return checks
    num_things = stages.peaks[0].shape[-1]
    is_thing, class_id, area, score = (
        np.asarray(column)[valid] for column in (panoptic.is_thing, panoptic.class_id, panoptic.area, panoptic.score)
    )

    def column(key: str, *, things_only: bool = False) -> np.ndarray:
        return np.asarray([entry[key] for entry in info if entry["isthing"] or not things_only])

    # The score travels unchanged from the list of things into the table: it names the thing.
    finals = np.asarray(stages.final.score).tolist()
    instances = np.asarray([finals.index(value) for value in score[is_thing].tolist()])
    counted = np.bincount(np.asarray(panoptic.segment_map).ravel(), minlength=len(info) + 1)[1:]
    checks += [
        check(name, "segments: id", np.flatnonzero(valid) + 1, column("id"), 0.0),
        check(name, "segments: isthing", is_thing, column("isthing"), 0.0),
        check(
            name,
            "segments: category_id",
            np.where(is_thing, class_id, class_id - num_things + 1),
            column("category_id"),
            0.0,
        ),
        check(name, "segments: instance_id", instances, column("instance_id", things_only=True), 0.0),
        check(name, "segments: score", score[is_thing], column("score", things_only=True), SCORE_TOLERANCE),
        check(name, "segments: area is that of the map", area, counted, 0.0),
    ]
    expected_area = np.bincount(theirs.ravel(), minlength=len(info) + 1)[1:]
    allowed = np.maximum(AREA_TOLERANCE * expected_area, 1.0)  # pixels
    excess = float((np.abs(area - expected_area) / allowed).max(initial=0.0))
    return [*checks, Check(name, "segments: area (1 = 0.1% or a pixel)", excess, 1.0, excess <= 1.0)]


def check_composed(reference: pathlib.Path, file: str, *, margin: int = 0) -> list[Check]:
    """`predict_image`, the function that the engine calls, on one recorded picture.

    Args:
      margin: extra rows and columns of canvas, of the input and of the result; nothing may depend on it.
    """
    (recorded,) = recorded_files(reference, file)
    model, variables = load_model(reference, _checkpoint(recorded))
    outputs = _run_network(model, variables, recorded, margin)
    height, width = (int(n) for n in recorded["out_size"])

    def embed(method: str) -> Callable[[jax.Array], Any]:
        return lambda kernels: model.apply(variables, kernels, method=method)

    def run(outputs: DenseOutputs, *sizes: jax.Array) -> Prediction:
        return predict_image(
            outputs,
            embed("embed_things"),
            embed("embed_stuff"),
            *sizes,
            output_shape=(height + margin, width + margin),
            with_semantic_map=True,
            with_thing_masks=True,
            **dataclasses.asdict(settings(recorded)),
        )

    ours = jax.jit(run)(outputs, *(jnp.asarray(value) for value in sizes(recorded)))
    packed = valid_part(ours.thing_masks, ours.things)
    masks = np.unpackbits(packed, axis=-1, count=width + margin).astype(bool)[:, :height, :width]
    maps = {"panoptic_seg": ours.panoptic.segment_map, "sem_argmax": ours.semantic_map}
    return [
        *(
            compare_pixels(recorded, key, np.asarray(value)[:height, :width], recorded[key])
            for key, value in maps.items()
        ),
        compare_pixels(recorded, "final_mask", masks, recorded["final_mask"]),
    ]


def _check_boxes(recorded: Recorded, masks: np.ndarray) -> Check:
    """Boxes (x0, y0, x1, y1, ends exclusive) of those masks that agree in every pixel."""
    if masks.shape != recorded["final_mask"].shape:
        return check(recorded.name, "final_box", masks, recorded["final_mask"], 0.0)
    same = (masks == recorded["final_mask"]).all(axis=(1, 2))
    boxes = np.zeros((len(masks), 4), np.float32)
    for row, mask in enumerate(masks):
        y, x = np.nonzero(mask)
        if len(y):
            boxes[row] = (x.min(), y.min(), x.max() + 1, y.max() + 1)
    return check(recorded.name, f"final_box ({same.sum()})", boxes[same], recorded["final_box"][same], 0.0)
