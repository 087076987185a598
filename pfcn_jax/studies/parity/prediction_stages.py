"""Recorded predictions of the original implementation, stage by stage, without a network.

Recorded embedded kernels and recorded logits go through our fusion, rescoring, upsampling and merge, each stage fed
with what the original's previous stage gave. Also: the recorded settings by our names, and the comparison of results.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pfcn_jax.panoptic.fusion import fuse_stuff, fuse_things
from pfcn_jax.panoptic.kernels import convolve
from pfcn_jax.panoptic.merge import classify_pixels, packed_thing_masks
from pfcn_jax.panoptic.options import PredictOptions
from pfcn_jax.panoptic.rescore import mask_means
from pfcn_jax.panoptic.upsample import Upsampler, make_upsampler
from pfcn_jax.studies.parity.reference import Check, Recorded, check, recorded_files
from pfcn_jax.types import ImageGeometry, Kernels, image_geometry

# Compiled once per shape: recorded runs share shapes.
_packed_thing_masks = jax.jit(packed_thing_masks, static_argnames=("threshold",))
_mask_means = jax.jit(mask_means, static_argnames=("threshold",))
_classify_pixels = jax.jit(classify_pixels)

SCORE_TOLERANCE = 1e-4
KERNEL_TOLERANCE = 1e-4  # relative to the largest entry
PIXEL_TOLERANCE = 5e-4  # share of pixels that may differ


_OPTIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "center_top_num": ("candidates", lambda number: number // 2),  # the original halves it when it predicts
    "center_thres": ("center_threshold", float),
    "sem_thres": ("stuff_threshold", float),
    "sim_thres": ("fusion_threshold", float),
    "class_spec": ("class_aware_fusion", bool),
    "inst_thres": ("mask_threshold", float),
    "panoptic_inst_thrs": ("merge_score", float),
    "panoptic_overlap_thrs": ("merge_overlap", float),
    "panoptic_stuff_limit": ("min_stuff_area", int),
}


def settings(recorded: Recorded) -> PredictOptions:
    """The options of the recorded run by our names; an option that is not known is an error."""
    ours: dict[str, Any] = {}
    if recorded.config["config"].endswith("-FAST"):
        ours.update(center_threshold=0.2, stuff_threshold=0.1)
    for name, value in recorded.config["overrides"].items():
        if name not in _OPTIONS:
            raise ValueError(f"{recorded.name}: option {name!r} of the recorded run is not known ({sorted(_OPTIONS)})")
        key, convert = _OPTIONS[name]
        ours[key] = convert(value)
    return PredictOptions(**ours)


def geometry_of(recorded: Recorded) -> ImageGeometry:
    """The sizes of the recorded image."""
    size = np.asarray(recorded["image"].shape[:2], np.int32)
    return jax.tree.map(jnp.asarray, image_geometry(size, recorded["out_size"].astype(np.int32)))


def recorded_upsampler(recorded: Recorded, map_shape: tuple[int, ...]) -> Upsampler:
    height, width = (int(n) for n in recorded["out_size"])
    return make_upsampler(geometry_of(recorded), map_shape=map_shape, output_shape=(height, width))


def valid_part(field: Any, kernels: Kernels) -> np.ndarray:
    return np.asarray(field)[np.asarray(kernels.valid)]


def compare_pixels(recorded: Recorded, name: str, ours: np.ndarray, theirs: np.ndarray) -> Check:
    """Share of pixels that differ."""
    if ours.shape != theirs.shape:
        return check(recorded.name, name, ours, theirs, PIXEL_TOLERANCE)
    share = float((ours != theirs).mean()) if theirs.size else 0.0
    return Check(recorded.name, name, share, PIXEL_TOLERANCE, share <= PIXEL_TOLERANCE)


def unpacked_masks(
    kernels: Kernels, feature: Any, recorded: Recorded, upsampler: Upsampler, options: PredictOptions
) -> np.ndarray:
    packed = _packed_thing_masks(kernels, feature, upsampler, threshold=options.mask_threshold)
    return np.unpackbits(np.asarray(packed), axis=-1, count=int(recorded["out_size"][1])).astype(bool)


def compare_probabilities(recorded: Recorded, maps: Any, upsampler: Upsampler, *, step: int) -> Check:
    """Probabilities of stuff at the original size, every fourth pixel of every `step`-th recorded class."""
    rows, columns = np.asarray(upsampler.rows)[::4], np.asarray(upsampler.columns)[::4]
    ours = np.einsum("yh,nhw,xw->nyx", rows, np.asarray(maps), columns, optimize=True)
    return check(recorded.name, "sem_seg_every4th", ours, recorded["sem_seg_every4th"][::step], SCORE_TOLERANCE)


def compare_kernels(
    recorded: Recorded,
    pattern: str,
    kernels: Kernels,
    *,
    weight: str = "embed",
    class_id: str = "class",
    score: str = "score",
) -> Iterator[Check]:
    """Valid slots against three recorded arrays; an array that was not recorded means that there was no kernel."""
    keys = {
        field: pattern.format(name) for field, name in (("weight", weight), ("class_id", class_id), ("score", score))
    }
    count = int(np.asarray(kernels.valid).sum())
    if keys["weight"] not in recorded:
        yield check(recorded.name, f"no {keys['weight']}", np.asarray(count), np.asarray(0), 0.0)
        return
    theirs = recorded[keys["weight"]]
    largest = float(np.abs(theirs).max(initial=0.0))
    yield check(recorded.name, keys["weight"], valid_part(kernels.weight, kernels), theirs, KERNEL_TOLERANCE * largest)
    yield check(recorded.name, keys["class_id"], valid_part(kernels.class_id, kernels), recorded[keys["class_id"]], 0.0)
    yield check(
        recorded.name, keys["score"], valid_part(kernels.score, kernels), recorded[keys["score"]], SCORE_TOLERANCE
    )


def check_recorded_stages(reference: pathlib.Path) -> list[Check]:
    """Every recorded result, each stage fed with what the original's previous stage gave."""
    checks: list[Check] = []
    for recorded in recorded_files(reference, "infer_*_result.npz"):
        checks += [*_check_fusion(recorded), *_check_masks(recorded), *_check_semantic(recorded)]
    return checks


def kernels_of(weight: np.ndarray, class_id: np.ndarray, score: np.ndarray) -> Kernels:
    return Kernels(
        weight=jnp.asarray(weight, jnp.float32),
        class_id=jnp.asarray(class_id, jnp.int32),
        score=jnp.asarray(score, jnp.float32),
        valid=jnp.ones(len(score), jnp.bool_),
    )


def _check_fusion(recorded: Recorded) -> Iterator[Check]:
    options = settings(recorded)
    things = kernels_of(recorded["thing_embed"], recorded["thing_class_sorted"], recorded["thing_score_sorted"])
    fused = fuse_things(things, threshold=options.fusion_threshold, class_aware=options.class_aware_fusion).fused
    yield from compare_kernels(recorded, "thing_{}_fused", fused)
    keep = recorded["thing_keep"]
    expected = recorded["thing_score_sorted"][keep]
    yield check(recorded.name, "scores of thing_keep", valid_part(fused.score, fused), expected, 0.0)
    stuff = kernels_of(recorded["stuff_embed"], recorded["stuff_class_all"], recorded["stuff_score_all"])
    yield from compare_kernels(recorded, "stuff_{}_fused", fuse_stuff(stuff, channels=54))


def _identity_kernels(recorded: Recorded, key: str, class_id: np.ndarray, score: np.ndarray) -> tuple[Kernels, Any]:
    """Recorded logits as a feature map whose kernels are unit vectors: the recorded channels, exactly."""
    step = recorded.meta[key]["step"]
    feature = jnp.asarray(np.moveaxis(recorded[key][0], 0, -1))
    unit = np.eye(feature.shape[-1], dtype=np.float32)
    return kernels_of(unit, class_id[::step], score[::step]), feature


def _check_masks(recorded: Recorded) -> Iterator[Check]:
    """Recorded logits of things (as many as were recorded) -> new scores; and the masks among the final ones."""
    options = settings(recorded)
    key = "thing_logits"
    kernels, feature = _identity_kernels(recorded, key, recorded["thing_class_fused"], recorded["thing_score_fused"])
    padded_size = geometry_of(recorded).padded_size
    score = kernels.score * _mask_means(kernels, feature, padded_size, threshold=options.mask_threshold)
    expected = recorded["rescored_unsorted"][:: recorded.meta[key]["step"]]
    yield check(recorded.name, "rescored_unsorted from logits", np.asarray(score), expected, SCORE_TOLERANCE / 10)

    upsampler = recorded_upsampler(recorded, feature.shape[:2])
    unpacked = unpacked_masks(kernels, feature, recorded, upsampler, options)
    # Rows of final_mask by their scores, which are all different.
    finals = {float(value): row for row, value in enumerate(recorded["final_score"])}
    rows = [(slot, finals[float(value)]) for slot, value in enumerate(expected) if float(value) in finals]
    ours = np.stack([unpacked[slot] for slot, _ in rows])
    theirs = recorded["final_mask"][[row for _, row in rows]]
    yield compare_pixels(recorded, f"final_mask from logits ({len(rows)} of them)", ours, theirs)


def _check_semantic(recorded: Recorded) -> Iterator[Check]:
    """Recorded logits of stuff -> probabilities at the original size, and, if all were recorded, their argmax."""
    key = "stuff_logits"
    kernels, feature = _identity_kernels(recorded, key, recorded["stuff_class_fused"], recorded["stuff_score_fused"])
    upsampler = recorded_upsampler(recorded, feature.shape[:2])
    step = recorded.meta[key]["step"]
    yield compare_probabilities(recorded, jax.nn.sigmoid(convolve(kernels.weight, feature)), upsampler, step=step)
    if step == 1:
        shape = tuple(int(n) for n in recorded["out_size"])
        semantic, _ = _classify_pixels(kernels, feature, jnp.zeros(shape, jnp.int32), upsampler)
        yield compare_pixels(recorded, "sem_argmax from logits", np.asarray(semantic), recorded["sem_argmax"])
