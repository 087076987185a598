"""Video panoptic quality (Kim et al., "Video Panoptic Segmentation", CVPR 2020).

Over every window of k consecutive frames, the tubes of labels and prediction match as segments do in PQ: with the same
class and an IoU above 1/2, where the pixels of all k frames count. With the true positives, false positives and false
negatives of a class over all windows of all videos,

    VPQ^k = mean over classes of (sum of IoU over TP) / (TP + FP / 2 + FN / 2)        VPQ = mean over k of VPQ^k

VPQ^1 is PQ. Void and crowds are treated as in PQ. k counts labeled frames: the paper's 1, 2, 3, 4 on Cityscapes-VPS,
of which every fifth frame is labeled.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pfcn_jax.metrics.pq import PQCounts, PQResult, count_matches, match_overlap, pq_result
from pfcn_jax.metrics.video import VideoOverlaps


def vpq_counts(video: VideoOverlaps, window: int) -> PQCounts:
    """Sums of matches over all windows of a video; a video that is shorter than the window has none.

    Args:
      window: k, in frames.
    """
    classes = len(video.is_thing)
    gt_class, gt_crowd = [tube.class_id for tube in video.truth], [tube.is_crowd for tube in video.truth]
    pred_class = [tube.class_id for tube in video.predicted]
    total = PQCounts.zeros(classes)
    for start in range(len(video) - window + 1):
        found = match_overlap(video.window(start, window), gt_class, gt_crowd, pred_class, classes)
        total += count_matches(found, classes)
    return total


def vpq_result(videos: Iterable[VideoOverlaps], window: int, is_thing: tuple[bool, ...]) -> PQResult:
    """VPQ^k over videos, in percent: of all classes, of things, of stuff, and of each class."""
    counts = sum((vpq_counts(video, window) for video in videos), PQCounts.zeros(len(is_thing)))
    return pq_result(counts, np.array(is_thing))
