"""The predictions at the end of a replayed training against those of the original's runs.

They are shown and not judged: one perturbed run of the original says too little about how far its predictions part.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.panoptic.options import OutputSpec
from pfcn_jax.steps import predict_step
from pfcn_jax.studies.parity.reference import Recorded
from pfcn_jax.studies.parity.trace import Trace
from pfcn_jax.types import round_up

PyTree = Any
Maps = dict[str, Int[np.ndarray, "h w"]]  # by the image's name, as "b0.in1"
ORIGINAL, PERTURBED = "final", "final_ulp"  # the prefixes of the recorded predictions


@dataclasses.dataclass(frozen=True)
class PredictionRow:
    """Pixels whose semantic class differs from the original's float32 run: their share in each image."""

    run: str
    shares: np.ndarray

    @property
    def median(self) -> float:
        return float(np.median(self.shares))


def compare_predictions(trace: Trace, model: PanopticFCN, variables: PyTree) -> list[PredictionRow]:
    """Ours and the original's perturbed run against its float32 run; empty if the file has no predictions.

    Semantic maps alone: the original's own runs differ in most of the panoptic map (README of the reference data).
    """
    names = [key.split("/")[2].removesuffix(".sem_argmax") for key in trace.recorded.arrays if _is_map(key)]
    if not names:
        return []
    base = _recorded(trace.recorded, ORIGINAL, names)
    rows = {"ours": predict_maps(trace, model, variables, names)}
    if f"{PERTURBED}/default/{names[0]}.sem_argmax" in trace.recorded:
        rows["float32_ulp"] = _recorded(trace.recorded, PERTURBED, names)
    return [
        PredictionRow(run, np.array([(maps[name] != base[name]).mean() for name in names]))
        for run, maps in rows.items()
    ]


def _is_map(key: str) -> bool:
    return key.startswith(f"{ORIGINAL}/default/") and key.endswith(".sem_argmax")


def _recorded(recorded: Recorded, run: str, names: list[str]) -> Maps:
    return {name: recorded[f"{run}/default/{name}.sem_argmax"] for name in names}


def predict_maps(trace: Trace, model: PanopticFCN, variables: PyTree, names: list[str]) -> Maps:
    """Semantic maps of the trace's images, each predicted alone and at its own size, on one canvas for all."""
    images = {name: trace.recorded[f"{name}.image"][..., ::-1] for name in names}  # recorded as BGR
    height, width = (round_up(max(image.shape[axis] for image in images.values())) for axis in (0, 1))
    step = functools.partial(
        predict_step, model=model, config=trace.config, output=OutputSpec((height, width), semantic_map=True)
    )
    predict = jax.jit(lambda *arrays: step(variables, *arrays).semantic_map)
    maps = {}
    for name, image in images.items():
        rows, columns = image.shape[:2]
        canvas = np.zeros((1, height, width, 3), np.uint8)
        canvas[0, :rows, :columns] = image
        size = np.array([[rows, columns]], np.int32)
        maps[name] = np.asarray(predict(canvas, size, size))[0, :rows, :columns]
    return maps
