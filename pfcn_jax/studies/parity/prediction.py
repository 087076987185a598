"""The whole prediction against the original implementation: from the image to the segments, on its weights."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import struct

from pfcn_jax.panoptic.kernels import POOL_WINDOWS, center_peaks, convolve, pick_things, pool_stuff
from pfcn_jax.panoptic.options import OutputSpec, PredictOptions
from pfcn_jax.panoptic.predict import Prediction, Proposed, paste, propose
from pfcn_jax.panoptic.rescore import mask_means
from pfcn_jax.panoptic.upsample import Upsampler, make_upsampler
from pfcn_jax.steps import embeddings
from pfcn_jax.studies.parity.network import load_model
from pfcn_jax.studies.parity.prediction_records import (
    SCORE_TOLERANCE,
    compare_kernels,
    compare_pixels,
    compare_probabilities,
    geometry_of,
    settings,
    valid_part,
)
from pfcn_jax.studies.parity.reference import Check, Recorded, check, recorded_files
from pfcn_jax.types import LEVELS, STRIDES, DenseOutputs, ImageGeometry, Kernels

AREA_TOLERANCE = 1e-3  # relative


def check_prediction(reference: pathlib.Path, pattern: str = "infer_*_result.npz") -> list[Check]:
    """Every recorded result from its image: network, picks, kernels, masks, merge."""
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
            dense[key] = _run_network(model, variables, recorded)
        checks += check_chain(recorded, dense[key], model, variables)
    return checks


def _checkpoint(recorded: Recorded) -> str:
    """Two checkpoints were recorded; every other setting shares one of them."""
    return "Star-R50-3x" if recorded.config["config"].startswith("Star") else "R50-1x"


def _run_network(model: Any, variables: Any, recorded: Recorded) -> DenseOutputs:
    geometry = geometry_of(recorded)
    height, width = (int(side) for side in geometry.size)
    canvas = np.zeros((1, *(int(side) for side in geometry.padded_size), 3), np.uint8)
    canvas[0, :height, :width] = recorded["image"][:, :, ::-1]  # recorded as BGR
    outputs = _apply(model, variables, canvas, geometry.size[None], geometry.padded_size[None])
    return jax.tree.map(lambda batch: batch[0], outputs)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Any, variables: Any, *batch: jax.Array) -> DenseOutputs:
    return model.apply(variables, *batch)


@struct.dataclass
class Stages:
    """All stages on the way from the heads to the segments of one image."""

    peaks: tuple[jax.Array, ...]  # per level
    picked: Kernels  # of all levels, not yet embedded
    pooled: Kernels
    proposed: Proposed
    prediction: Prediction
    thing_logits: jax.Array
    stuff_logits: jax.Array
    means: jax.Array
    upsampler: Upsampler


# Compiled once per shape; thresholds and sizes are data, so that recorded settings share a program.
@functools.partial(jax.jit, static_argnames=("model", "output"))
def _run_stages(
    model: Any,
    variables: Any,
    outputs: DenseOutputs,
    geometry: ImageGeometry,
    options: PredictOptions,
    *,
    output: OutputSpec,
) -> Stages:
    """`predict_image` with all intermediate results."""
    padded_size = geometry.padded_size
    levels = zip(outputs.center_logits, STRIDES, POOL_WINDOWS)
    proposed = propose(outputs, embeddings(variables, model), geometry, options)
    fused, feature = proposed.things.fused, proposed.feature
    return Stages(
        peaks=tuple(center_peaks(logits, padded_size, stride=s, window=window) for logits, s, window in levels),
        picked=pick_things(
            outputs.center_logits,
            outputs.kernel_map,
            padded_size,
            candidates=options.candidates,
            threshold=options.center_threshold,
        ),
        pooled=pool_stuff(outputs.region_logits, outputs.kernel_map, padded_size, threshold=options.stuff_threshold),
        proposed=proposed,
        prediction=paste(proposed, geometry, options, model.regions, output),
        thing_logits=convolve(fused.weight, feature),
        stuff_logits=convolve(proposed.stuff.weight, feature),
        means=mask_means(fused, feature, padded_size, threshold=options.mask_threshold),
        upsampler=make_upsampler(geometry, map_shape=feature.shape[:2], output_shape=output.shape),
    )


def check_chain(recorded: Recorded, outputs: DenseOutputs, model: Any, variables: Any) -> list[Check]:
    """All stages of one recorded result."""
    height, width = (int(n) for n in recorded["out_size"])
    output = OutputSpec((height, width), thing_masks=True, semantic_map=True)
    options = settings(recorded).as_data()
    stages = _run_stages(model, variables, outputs, geometry_of(recorded), options, output=output)
    checks: list[Check] = []
    for index, level in enumerate(LEVELS):
        picked, pooled = (_on_level(kernels, index) for kernels in (stages.picked, stages.pooled))
        checks += _check_picks(recorded, level, stages.peaks[index], picked)
        checks += compare_kernels(recorded, f"{level}.thing_{{}}", picked, weight="kernel")
        checks += compare_kernels(recorded, f"{level}.stuff_{{}}", pooled, weight="kernel")
    things, stuff = stages.proposed.things, stages.proposed.pooled
    checks += compare_kernels(recorded, "thing_{}", things.picked, class_id="class_sorted", score="score_sorted")
    checks += compare_kernels(recorded, "stuff_{}", stuff, class_id="class_all", score="score_all")
    checks += compare_kernels(recorded, "thing_{}_fused", things.fused)
    checks += compare_kernels(recorded, "stuff_{}_fused", stages.proposed.stuff)
    checks += _check_masks(recorded, stages)
    return checks + _check_segments(recorded, stages)


def _on_level(kernels: Kernels, level: int) -> Kernels:
    assert kernels.source is not None
    here = np.asarray(kernels.source.level) == level
    return jax.tree.map(lambda field: np.asarray(field)[here], kernels)


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
    name, final, semantic_map = recorded.name, stages.prediction.things, np.asarray(stages.prediction.semantic_map)
    fused, stuff = stages.proposed.things.fused, stages.proposed.stuff
    checks = []
    for key, logits, kernels in (
        ("thing_logits", stages.thing_logits, fused),
        ("stuff_logits", stages.stuff_logits, stuff),
    ):
        ours = valid_part(logits, kernels)[:, : recorded[key].shape[2], : recorded[key].shape[3]]
        checks.append(recorded.compare(key, np.moveaxis(ours, 0, -1)[None], relative=1e-4))
    probability = jax.nn.sigmoid(valid_part(stages.stuff_logits, stuff))
    checks.append(compare_probabilities(recorded, probability, stages.upsampler))
    for key, value, kernels, tolerance in (
        ("rescored_unsorted", fused.score * stages.means, fused, SCORE_TOLERANCE),
        ("final_class", final.class_id, final, 0.0),
        ("final_score", final.score, final, SCORE_TOLERANCE),
        ("sem_present", stuff.class_id, stuff, 0.0),
    ):
        checks.append(check(name, key, valid_part(value, kernels), recorded[key], tolerance))
    masks = np.unpackbits(valid_part(stages.prediction.thing_masks, final), axis=-1, count=int(recorded["out_size"][1]))
    checks.append(compare_pixels(recorded, "final_mask", masks.astype(bool), recorded["final_mask"]))
    checks.append(_check_boxes(recorded, masks.astype(bool)))
    checks.append(compare_pixels(recorded, "sem_argmax", semantic_map, recorded["sem_argmax"]))
    return checks


def _check_segments(recorded: Recorded, stages: Stages) -> list[Check]:
    """The map, and the list: the original counts things by class and stuff by region channel, both from its heads."""
    name, panoptic, theirs = recorded.name, stages.prediction.panoptic, recorded["panoptic_seg"]
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

    instances = np.asarray(panoptic.kernel)[valid][is_thing]
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
