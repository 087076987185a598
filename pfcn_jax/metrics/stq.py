"""Segmentation and tracking quality (Weber et al., "STEP: Segmenting and Tracking Every Pixel", NeurIPS 2021).

    STQ = sqrt(AQ x SQ)
    AQ  = 1 / |tracks| x sum over tracks g of 1 / |g| x sum over predicted ids p of TPA(p, g) x IoU_id(p, g)
    IoU_id = TPA / (TPA + FPA + FNA)

g and p are the pixels of a labeled and of a predicted id of things over the whole video, TPA = |p and g|,
FPA = |p| - TPA, FNA = |g| - TPA; classes do not matter. The mean is over the tracks of all videos. SQ is the mean IoU
of classes over all labeled pixels. As in the authors' evaluator, predicted pixels on crowds of things belong to no p,
those on void do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int

from pfcn_jax.metrics.miou import SemanticCounts, semantic_result
from pfcn_jax.metrics.video import Tube, VideoOverlaps


@dataclasses.dataclass(frozen=True)
class STQResult:
    """In percent; NaN without a labeled track (AQ, STQ) or a labeled pixel (SQ, STQ)."""

    STQ: float
    AQ: float
    SQ: float
    tracks: int


def association(video: VideoOverlaps) -> tuple[float, int]:
    """The sum of AQ over the labeled tracks of a video, each 0..1, and their number."""
    truth, predicted = _tracks(video.truth, video), _tracks(video.predicted, video)
    pixels = video.window()
    crowd = np.array([False, *(tube.is_crowd and video.is_thing[tube.class_id] for tube in video.truth)])
    shared = truth @ pixels @ predicted.T  # TPA
    gt_area, pred_area = truth @ pixels.sum(axis=1), predicted @ pixels[~crowd].sum(axis=0)
    iou = shared / np.maximum(gt_area[:, None] + pred_area[None, :] - shared, 1)
    return float((shared * iou / np.maximum(gt_area[:, None], 1)).sum()), int((gt_area > 0).sum())


def class_pixels(video: VideoOverlaps) -> SemanticCounts:
    """Labeled pixels of a video by (labeled class, predicted class)."""
    classes = len(video.is_thing)
    gt_class = np.array([tube.class_id for tube in video.truth], np.int64)
    pred_class = np.array([classes, *(tube.class_id for tube in video.predicted)], np.int64)  # void: no class
    confusion = np.zeros((classes, classes + 1), np.int64)
    np.add.at(confusion, (gt_class[:, None], pred_class[None, :]), video.window()[1:])
    return SemanticCounts(confusion)


def stq_result(videos: Iterable[VideoOverlaps], is_thing: tuple[bool, ...]) -> STQResult:
    """STQ, AQ and SQ over videos."""
    total, tracks, pixels = 0.0, 0, SemanticCounts.zeros(len(is_thing))
    for video in videos:
        of_video, count = association(video)
        total, tracks, pixels = total + of_video, tracks + count, pixels + class_pixels(video)
    quality = 100.0 * total / tracks if tracks else float("nan")
    segmentation = semantic_result(pixels).mIoU
    return STQResult(STQ=float(np.sqrt(quality * segmentation)), AQ=quality, SQ=segmentation, tracks=tracks)


def _tracks(tubes: tuple[Tube, ...], video: VideoOverlaps) -> Int[np.ndarray, "tracks 1+tubes"]:
    """The tubes of each id of things, as rows of 0 and 1; an id may have tubes of several classes."""
    things = [video.is_thing[tube.class_id] and not tube.is_crowd for tube in tubes]
    ids = sorted({tube.track_id for tube, thing in zip(tubes, things) if thing})
    member = [[False, *(thing and tube.track_id == track_id for tube, thing in zip(tubes, things))] for track_id in ids]
    return np.array(member, np.int64).reshape(len(ids), 1 + len(tubes))
