"""Ids that segments keep from frame to frame: things by their masks and by their kernels, stuff by its class.

A kernel is what tells an object from all others of its image, so that it serves as an embedding: the kernels of one
object in two frames have a cosine similarity near 1, also when it has moved far or was hidden in between.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from scipy.optimize import linear_sum_assignment

from pfcn_jax.data.segments import count_pixels, find_runs, tight_boxes
from pfcn_jax.inference.result import Result
from pfcn_jax.panoptic.predict import Prediction

_SMALLEST_NORM = 1e-8


@dataclasses.dataclass(frozen=True)
class TrackOptions:
    """Thresholds above which a thing is one of an earlier frame. One of the two measures may be off (None).

    Kernels of different things of one class have a cosine far above 0, too: only what exceeds `min_similarity` counts.
    """

    min_iou: float | None = 0.1  # of its mask and the last mask of the earlier one
    min_similarity: float | None = 0.6  # cosine of their kernels
    memory: int = 15  # frames that a thing is remembered for after it was last seen


@dataclasses.dataclass(frozen=True)
class _Sighting:
    """A thing in the frame where it was last seen."""

    frame: int
    class_id: int
    area: int
    box: tuple[slice, slice]  # rows, columns
    mask: Bool[np.ndarray, "h w"]  # inside its box
    kernel: Float[np.ndarray, " E"]  # of length 1


class Tracker:
    """Follows the segments of one video.

    Stuff of class c has the id c + 1; ids of things count up from `num_classes` + 1.

    Raises:
      ValueError: both measures of `options` are off.
    """

    def __init__(self, num_classes: int, options: TrackOptions | None = None):
        self._options = options or TrackOptions()
        if self._options.min_iou is None and self._options.min_similarity is None:
            raise ValueError("a tracker needs min_iou or min_similarity")
        self._known: dict[int, _Sighting] = {}  # by id
        self._next_id = num_classes + 1
        self._frame = -1

    def track(self, result: Result, prediction: Prediction) -> Result:
        """The result of the next frame under the ids of its tracks; `prediction` is what it was made from."""
        class_id = np.array([segment.class_id for segment in result.segments], np.int64)
        is_thing = np.array([segment.is_thing for segment in result.segments], bool)
        return result.with_track_ids(
            self.update(result.segment_map, class_id, is_thing, segment_kernels(prediction, is_thing))
        )

    def update(
        self,
        segment_map: Integer[np.ndarray, "h w"],
        class_id: Integer[np.ndarray, " S"],
        is_thing: Bool[np.ndarray, " S"],
        kernels: Float[np.ndarray, "S E"],
    ) -> Int[np.ndarray, " S"]:
        """Ids of the segments of the next frame, no two of them equal.

        A thing gets the id of a remembered thing of its class if the IoU of their masks or the cosine of their kernels
        exceeds its threshold. The assignment maximizes the sum of IoU + (cosine - threshold) / (1 - threshold) over
        the pairs. Other things get new ids.

        Args:
          segment_map: 0 is void, i > 0 is row i - 1 of the arrays beside it. Every row has pixels.
          class_id: of each segment; one segment for each class of stuff.
          kernels: of each segment; those of stuff are not read.
        """
        self._frame += 1
        oldest = self._frame - 1 - self._options.memory
        self._known = {track: seen for track, seen in self._known.items() if seen.frame >= oldest}
        ids = np.asarray(class_id, np.int64) + 1
        rows = np.flatnonzero(is_thing)
        found = _sightings(self._frame, segment_map, class_id, rows, kernels)
        for track, row, sighting in zip(self._assign(segment_map, rows, found), rows, found):
            if track is None:
                track, self._next_id = self._next_id, self._next_id + 1
            ids[row] = track
            self._known[track] = sighting
        return ids

    def _assign(self, segment_map: np.ndarray, rows: np.ndarray, found: list[_Sighting]) -> list[int | None]:
        """The id of the remembered thing that each thing is, or None."""
        tracks, earlier = list(self._known), list(self._known.values())
        affinity = self._affinity(segment_map, rows, found, earlier)
        assigned: list[int | None] = [None] * len(found)
        for thing, track in zip(*linear_sum_assignment(affinity, maximize=True)):
            if affinity[thing, track] > 0.0:
                assigned[thing] = tracks[track]
        return assigned

    def _affinity(
        self, segment_map: np.ndarray, rows: np.ndarray, found: list[_Sighting], earlier: list[_Sighting]
    ) -> Float[np.ndarray, "things tracks"]:
        """Sum of the measures of each pair, 0 for a pair that cannot be one thing."""
        affinity = np.zeros((len(found), len(earlier)))
        alike = np.zeros(affinity.shape, bool)
        if not alike.size:
            return affinity
        if (least := self._options.min_iou) is not None:
            iou = _mask_iou(segment_map, rows, found, earlier)
            affinity, alike = affinity + iou, alike | (iou > least)
        if (least := self._options.min_similarity) is not None:
            cosine = np.stack([thing.kernel for thing in found]) @ np.stack([track.kernel for track in earlier]).T
            affinity, alike = affinity + np.maximum(cosine - least, 0.0) / (1.0 - least), alike | (cosine > least)
        same_class = np.array([thing.class_id for thing in found])[:, None] == [track.class_id for track in earlier]
        return np.where(alike & same_class, affinity, 0.0)


def segment_kernels(prediction: Prediction, is_thing: Bool[np.ndarray, " S"]) -> Float[np.ndarray, "S E"]:
    """The kernels that made the S valid segments of a prediction; zeros for stuff."""
    slots = np.asarray(prediction.panoptic.kernel)[np.asarray(prediction.panoptic.valid)]
    weight = np.asarray(prediction.things.weight, np.float32)
    return np.where(is_thing[:, None], weight[np.where(is_thing, slots, 0)], np.float32(0))


def _sightings(
    frame: int, segment_map: np.ndarray, class_id: np.ndarray, rows: np.ndarray, kernels: np.ndarray
) -> list[_Sighting]:
    """The segments of `rows` with their masks and kernels."""
    runs = find_runs(segment_map)
    areas, boxes = count_pixels(runs, len(class_id)), tight_boxes(runs, len(class_id)).astype(int)
    found = []
    for row in rows.tolist():
        x0, y0, x1, y1 = boxes[row]
        box = slice(y0, y1), slice(x0, x1)
        kernel = np.asarray(kernels[row], np.float64)
        unit = kernel / max(float(np.linalg.norm(kernel)), _SMALLEST_NORM)
        found.append(_Sighting(frame, int(class_id[row]), int(areas[row]), box, segment_map[box] == row + 1, unit))
    return found


def _mask_iou(
    segment_map: np.ndarray, rows: np.ndarray, found: list[_Sighting], earlier: list[_Sighting]
) -> Float[np.ndarray, "things tracks"]:
    """IoU of the masks of this frame with the last masks of earlier things."""
    segments = int(rows.max()) + 1
    area = np.array([thing.area for thing in found])
    iou = np.zeros((len(found), len(earlier)))
    for track, seen in enumerate(earlier):
        under = segment_map[seen.box][seen.mask]
        shared = np.bincount(under[under <= segments], minlength=segments + 1)[rows + 1]
        iou[:, track] = shared / (area + seen.area - shared)
    return iou
