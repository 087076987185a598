"""Targets, losses, prediction and test-time augmentation: their settings as frozen dataclasses."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class TargetOptions:
    """What the heads should say (paper section 3.2)."""

    level_ranges: tuple[tuple[float, float], ...] = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
    center: Literal["mass", "box"] = "mass"  # "mass" or "box"
    min_overlap: float = 0.7  # IoU that a box shifted by the Gaussian's radius keeps
    max_positives: int = 200  # (instance, level) pairs a picture; pairs beyond are dropped and counted
    padding: Literal["picture", "canvas"] = (
        "picture"  # "picture": the canvas' padding never counts; "canvas": it does, as in the original
    )


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Weights and forms of the four losses (paper section 3.3)."""

    position_weight: float = 1.0
    segmentation_weight: float = 3.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    positives: int = 7  # k: kernels sampled for each (instance, level)
    weighted_dice: bool = True  # False: plain dice over the k kernels


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """From heads to segments (paper section 3.4)."""

    candidates: int = 50  # peaks kept on each level, over all classes
    center_threshold: float = 0.05
    stuff_threshold: float = 0.05
    fusion_threshold: float = 0.9  # cosine similarity; above 1 switches fusion off
    class_aware_fusion: bool = True
    mask_nms: bool = False  # mask NMS after fusion (ablation)
    mask_nms_threshold: float = 0.5
    mask_threshold: float = 0.4
    min_score: float = 0.05  # after rescoring by the mask's mean probability
    max_things: int = 100
    merge_score: float = 0.2
    merge_overlap: float = 0.5
    min_stuff_area: int = 4096  # pixels at the original size


@dataclasses.dataclass(frozen=True)
class TTAOptions:
    """Test-time augmentation: further views of each picture at `evaluate` and `predict` (docs/inference.md)."""

    scales: tuple[float, ...] = ()  # beside the picture itself, relative to data.eval_short_side: (0.75, 1.25)
    flip: bool = False  # each of them also mirrored
