"""Targets, losses, prediction and test-time augmentation: their settings as frozen dataclasses.

These are the sections `targets`, `loss`, `inference` and `tta` of the config; the functions of this room take them as
they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

from pfcn_jax.utils.settings import dynamic_names, setting


@dataclasses.dataclass(frozen=True)
class TargetOptions:
    """Targets of the heads (paper section 3.2)."""

    # sqrt(box area) in pixels of p3..p7, inclusive; ranges overlap, so an instance may be positive on two levels
    level_ranges: tuple[tuple[float, float], ...] = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
    center: Literal["mass", "box"] = "mass"  # mean of the mask's pixels, or middle of the box
    min_overlap: float = setting(0.7, at_least=0, at_most=1)  # IoU that a box shifted by the Gaussian's radius keeps
    max_positives: int = setting(200, at_least=1)  # (instance, level) pairs per image; more are dropped and counted
    # "image": padding beyond the image rounded up to 32 never counts; "canvas": it does, as in the original
    padding: Literal["image", "canvas"] = "image"


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Weights and forms of the four losses (paper section 3.3)."""

    position_weight: float = setting(1.0, at_least=0)
    segmentation_weight: float = setting(3.0, at_least=0)
    focal_alpha: float = setting(0.25, at_least=0, at_most=1)
    focal_gamma: float = setting(2.0, at_least=0)
    positives: int = setting(7, at_least=1)  # k: kernels per (instance, level) pair
    weighted_dice: bool = True  # False: plain dice over the k kernels


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """From heads to segments (paper section 3.4). A threshold above 1 lets nothing pass.

    A pytree: the thresholds are leaves, so that one compiled program can serve all of their values; the other fields
    are compiled in.
    """

    candidates: int = setting(50, at_least=1, affects="scores")  # peaks kept per level, over all classes
    center_threshold: float = setting(0.05, at_least=0, affects="scores", dynamic=True)  # of peaks
    stuff_threshold: float = setting(0.05, at_least=0, affects="scores", dynamic=True)  # of stuff regions
    # cosine similarity; above 1 switches fusion off
    fusion_threshold: float = setting(0.9, at_least=0, affects="scores", dynamic=True)
    class_aware_fusion: bool = setting(True, affects="scores")  # fuse within a class only
    mask_nms: bool = setting(False, affects="scores")  # mask NMS after fusion (ablation)
    mask_nms_threshold: float = setting(0.5, at_least=0, affects="scores")  # IoU
    mask_threshold: float = setting(0.4, at_least=0, affects="scores", dynamic=True)  # of pixels of a thing
    min_score: float = setting(0.05, at_least=0, affects="scores", dynamic=True)  # after rescoring
    max_things: int = setting(100, at_least=1, affects="scores")
    merge_score: float = setting(0.2, at_least=0, affects="scores", dynamic=True)  # things below are not pasted
    # a thing is skipped if a larger share of its mask is taken
    merge_overlap: float = setting(0.5, at_least=0, affects="scores", dynamic=True)
    min_stuff_area: int = setting(4096, at_least=0, affects="scores", dynamic=True)  # pixels at the original size

    def as_data(self) -> PredictOptions:
        """The same options with NumPy scalars for thresholds: arguments of a compiled program."""
        usual = PredictOptions()
        types = {name: np.int32 if isinstance(getattr(usual, name), int) else np.float32 for name in THRESHOLDS}
        arrays: dict[str, Any] = {name: make(getattr(self, name)) for name, make in types.items()}
        return dataclasses.replace(self, **arrays)


THRESHOLDS = dynamic_names(PredictOptions)
jax.tree_util.register_dataclass(
    PredictOptions,
    data_fields=list(THRESHOLDS),
    meta_fields=[field.name for field in dataclasses.fields(PredictOptions) if field.name not in THRESHOLDS],
)


@dataclasses.dataclass(frozen=True)
class TTAOptions:
    """Test-time augmentation: further views of each image at `evaluate` and `predict` (docs/inference.md)."""

    # besides the image itself, relative to data.eval_short_side: (0.75, 1.25)
    scales: tuple[float, ...] = setting((), affects="scores")
    flip: bool = setting(False, affects="scores")  # each of them also mirrored


@dataclasses.dataclass(frozen=True)
class OutputSpec:
    """Static parts of a prediction: the output canvas, what to return, and how the work is cut.

    Results do not depend on `tile`, `window` and `chunk` (see `make_upsampler`, `rescore`).
    """

    shape: tuple[int, int]  # output canvas (height, width), at least as large as every original size
    thing_masks: bool = False  # return the masks of things, for AP
    semantic_map: bool = False  # return the region channel of every pixel, for mIoU
    tile: int | None = None  # None: by the platform that runs the program
    window: int | None = None
    chunk: int = 16
