"""Tubes of a video, labeled and predicted, and the pixels that they share: what VPQ and STQ are counted from.

A tube is a segment over all frames of a video: a thing by its id, stuff by its class. The crowds of a class are one
tube, which nothing has to find.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer

_NO_TRACK = -1


class Tube(NamedTuple):
    """One tube: the same class, id and kind in every frame."""

    class_id: int
    track_id: int  # -1 for stuff and crowds
    is_crowd: bool


@dataclasses.dataclass(frozen=True)
class FrameSegments:
    """The segments of one frame, in the rows of its id map."""

    class_id: Integer[np.ndarray, " S"]
    track_id: Integer[np.ndarray, " S"]  # of things; that of stuff and crowds does not matter
    is_crowd: Bool[np.ndarray, " S"]


class VideoOverlaps:
    """Shared pixels of labeled and predicted tubes in each frame of one video, added frame by frame.

    Attributes:
      is_thing: of every class.
      truth: the labeled tubes so far; G of them.
      predicted: the predicted tubes so far; P of them.
    """

    def __init__(self, is_thing: Sequence[bool]):
        self.is_thing = tuple(bool(thing) for thing in is_thing)
        self._truth: dict[Tube, int] = {}
        self._predicted: dict[Tube, int] = {}
        self._frames: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        """The number of frames."""
        return len(self._frames)

    @property
    def truth(self) -> tuple[Tube, ...]:
        return tuple(self._truth)

    @property
    def predicted(self) -> tuple[Tube, ...]:
        return tuple(self._predicted)

    def add(self, truth: FrameSegments, predicted: FrameSegments, overlap: Int[np.ndarray, "1+S_gt 1+S_pred"]) -> None:
        """Adds the next frame.

        Args:
          overlap: pixels by (labeled row, predicted row); row and column 0 are void (`pq.count_overlap`).
        """
        row, column = self._rows(truth, self._truth), self._rows(predicted, self._predicted)
        gt, pred = np.nonzero(overlap)
        self._frames.append((row[gt], column[pred], overlap[gt, pred]))

    def window(self, start: int = 0, length: int | None = None) -> Int[np.ndarray, "1+G 1+P"]:
        """Shared pixels over `length` frames from `start` on (None: all that follow); row and column 0 are void."""
        total = np.zeros((1 + len(self._truth), 1 + len(self._predicted)), np.int64)
        for row, column, pixels in self._frames[start : None if length is None else start + length]:
            np.add.at(total, (row, column), pixels)
        return total

    def _rows(self, segments: FrameSegments, tubes: dict[Tube, int]) -> Int[np.ndarray, " 1+S"]:
        """The row of each segment's tube, after that of void; new tubes are added to `tubes`."""
        rows = [0]
        for class_id, track_id, is_crowd in zip(
            segments.class_id.tolist(), segments.track_id.tolist(), segments.is_crowd.tolist(), strict=True
        ):
            followed = self.is_thing[class_id] and not is_crowd
            tube = Tube(class_id, track_id if followed else _NO_TRACK, is_crowd)
            rows.append(tubes.setdefault(tube, 1 + len(tubes)))
        return np.array(rows, np.int64)
