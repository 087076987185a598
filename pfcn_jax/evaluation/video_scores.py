"""VPQ and STQ of videos, together: from frames in memory, or from COCO-panoptic files of frames."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.panoptic_files import PanopticFiles, PanopticImage
from pfcn_jax.metrics.pq import PQGroup, PQResult
from pfcn_jax.metrics.protocol import format_score
from pfcn_jax.metrics.stq import STQResult, stq_result
from pfcn_jax.metrics.video import FrameSegments, VideoOverlaps
from pfcn_jax.metrics.vpq import vpq_result
from pfcn_jax.utils.tables import as_text

WINDOWS = (1, 5, 10, 15)  # frames


@dataclasses.dataclass(frozen=True)
class VideoScores:
    """Scores of a set of videos, in percent."""

    vpq: Mapping[int, PQResult]  # by window, in frames
    stq: STQResult
    videos: int
    frames: int

    @property
    def mean_vpq(self) -> float:
        """VPQ: the mean of VPQ^k over the windows; NaN if there is nothing to find or to be wrong."""
        return float(np.mean([_score(result.all) for result in self.vpq.values()]))

    def to_dict(self, category_ids: Sequence[int]) -> dict[str, Any]:
        """Plain numbers; an undefined score is None."""
        by_window = {str(window): result.to_dict(category_ids) for window, result in self.vpq.items()}
        quality = {name: _plain(value) for name, value in dataclasses.asdict(self.stq).items()}
        counts = {"videos": self.videos, "frames": self.frames}
        return {"VPQ": _plain(self.mean_vpq), "windows": by_window, **quality, **counts}

    def table(self) -> str:
        """VPQ by window, and STQ, as a text table."""
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for column in ("all", "things", "stuff"):
            table.add_column(column, justify="right")
        for window, result in self.vpq.items():
            groups = (result.all, result.things, result.stuff)
            table.add_row(f"VPQ, k = {window}", *(format_score(_score(group)) for group in groups))
        table.add_row("VPQ", format_score(self.mean_vpq))
        for name in ("STQ", "AQ", "SQ"):
            table.add_row(name, format_score(getattr(self.stq, name)))
        return f"{as_text(table)}\n{self.videos} videos, {self.frames} frames, {self.stq.tracks} labeled tracks"


def score_videos(videos: Sequence[VideoOverlaps], windows: Sequence[int] = WINDOWS) -> VideoScores:
    """VPQ for each window (in frames), and STQ, of videos of the same classes.

    Raises:
      UserError: no video, a window below 1, or one that is longer than every video.
    """
    if not videos:
        raise UserError("no video to score")
    longest = max(map(len, videos))
    for window in windows:
        if not 1 <= window <= longest:
            raise UserError(f"a window of {window} frames: must be from 1 to {longest}, the longest video")
    is_thing = videos[0].is_thing
    return VideoScores(
        vpq={window: vpq_result(videos, window, is_thing) for window in windows},
        stq=stq_result(videos, is_thing),
        videos=len(videos),
        frames=sum(map(len, videos)),
    )


def read_videos(files: PanopticFiles) -> list[VideoOverlaps]:
    """The videos of COCO-panoptic files whose images are frames.

    The frames of a video are the PNGs of one folder of the labels, in the order of the labels' JSON. A segment's id is
    that of its thing, in every frame of its video.

    Raises:
      DataError: as `PanopticFiles.score`.
    """
    videos: dict[pathlib.Path, VideoOverlaps] = {}
    for truth, predicted, overlap in files.overlaps():
        video = videos.setdefault(truth.png.parent, VideoOverlaps(files.classes.is_thing))
        video.add(_segments(truth), _segments(predicted), overlap)
    return list(videos.values())


def _segments(image: PanopticImage) -> FrameSegments:
    return FrameSegments(image.class_id, image.segment_ids, image.crowd)


def _score(group: PQGroup) -> float:
    return group.PQ if group.N else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value
