"""Recorded predictions: their settings by our names, and comparisons of results with their arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pfcn_jax.panoptic.options import PredictOptions
from pfcn_jax.panoptic.upsample import Upsampler
from pfcn_jax.studies.parity.reference import Check, Recorded, check
from pfcn_jax.types import ImageGeometry, Kernels, image_geometry

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


def valid_part(field: Any, kernels: Kernels) -> np.ndarray:
    return np.asarray(field)[np.asarray(kernels.valid)]


def compare_pixels(recorded: Recorded, name: str, ours: np.ndarray, theirs: np.ndarray) -> Check:
    """Share of pixels that differ."""
    if ours.shape != theirs.shape:
        return check(recorded.name, name, ours, theirs, PIXEL_TOLERANCE)
    share = float((ours != theirs).mean()) if theirs.size else 0.0
    return Check(recorded.name, name, share, PIXEL_TOLERANCE, share <= PIXEL_TOLERANCE)


def compare_probabilities(recorded: Recorded, maps: Any, upsampler: Upsampler) -> Check:
    """Probabilities of stuff at the original size, every fourth pixel."""
    rows, columns = np.asarray(upsampler.rows)[::4], np.asarray(upsampler.columns)[::4]
    ours = np.einsum("yh,nhw,xw->nyx", rows, np.asarray(maps), columns, optimize=True)
    return check(recorded.name, "sem_seg_every4th", ours, recorded["sem_seg_every4th"], SCORE_TOLERANCE)


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
