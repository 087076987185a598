"""Videos for `predict`: frames in, an overlay video and one JSON line a frame out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from pfcn_jax.data.example import DataError
from pfcn_jax.errors import UserError
from pfcn_jax.inference.formats.coco import CocoPanoptic
from pfcn_jax.inference.formats.registry import ImageEntry
from pfcn_jax.inference.predictor import Predictor
from pfcn_jax.inference.result import Result, make_result
from pfcn_jax.inference.tracking import Tracker
from pfcn_jax.utils.atomic import atomic_path

_FPS_UNKNOWN = 25.0
_CODEC = "mp4v"


class Frames:
    """The frames of a video file, RGB, at most `limit` of them (0: all).

    Raises:
      DataError: it cannot be opened.
    """

    def __init__(self, source: pathlib.Path, *, limit: int = 0):
        self.name = str(source)
        self._capture = cv2.VideoCapture(str(source))
        if not self._capture.isOpened():
            self._capture.release()
            raise DataError(f"{self.name}: cannot be opened as a video", kind="video-unreadable")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else _FPS_UNKNOWN
        stated = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.stated = int(stated) if 0 < stated < 1e9 else 0
        self._limit = limit
        self.read = 0

    @property
    def expected(self) -> int:
        """The number of frames that will come; 0 if nobody knows."""
        return min(self.stated, self._limit) if self.stated and self._limit else self.stated or self._limit

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        try:
            while not self._limit or self.read < self._limit:
                good, frame = self._capture.read()
                if not good or frame is None:
                    break
                self.read += 1
                yield self.read - 1, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            self._capture.release()

    def check_complete(self) -> None:
        """To be called after the last frame.

        Raises:
          DataError: no frame came, or fewer than expected.
        """
        if self.read and self.read >= self.expected:
            return
        missing = f"only {self.read} of {self.expected} frames" if self.read else "not one frame"
        raise DataError(f"{self.name}: {missing} could be read", kind="video-unreadable")


class VideoWriter:
    """An MP4 that appears under its name when it is complete; made for the size of the first frame."""

    def __init__(self, path: pathlib.Path, fps: float):
        self._path, self._fps = path, fps
        self._writer: cv2.VideoWriter | None = None
        self._file = contextlib.ExitStack()  # holds the atomic write of the file while frames come

    def write(self, frame: np.ndarray) -> None:
        """One RGB frame; odd sides get a row or column more, because the codec halves the colors."""
        height, width = frame.shape[:2]
        frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._writer is None:
            temporary = self._file.enter_context(atomic_path(self._path))
            fourcc = cv2.VideoWriter.fourcc(*_CODEC)
            writer = cv2.VideoWriter(str(temporary), fourcc, self._fps, (frame.shape[1], frame.shape[0]))
            if not writer.isOpened():
                raise UserError(f"{self._path}: OpenCV cannot write this video; leave the overlay out")
            self._writer = writer
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            self._file.close()


@dataclasses.dataclass(frozen=True)
class FrameOutputs:
    """Paths of the outputs of one video; None: not wanted."""

    name: str  # of the video; its frames are NAME/000000, NAME/000001, ...
    lines: pathlib.Path
    overlay: pathlib.Path | None
    maps: CocoPanoptic | None  # of the frames of all videos; to be finished by the caller


def segment_video(
    frames: Frames,
    predictor: Predictor,
    outputs: FrameOutputs,
    on_frame: Callable[[int, Result], None],
    *,
    tracker: Tracker | None = None,
) -> None:
    """Segments every frame. What was written before an error or Ctrl-C stays and is complete.

    Args:
      tracker: gives a segment the same id in every frame; None: ids are counted anew in each.

    Raises:
      DataError: no frame, or fewer than the file promises (after those that can be read were written).
    """
    classes = predictor.loaded.classes
    outputs.lines.parent.mkdir(parents=True, exist_ok=True)
    video = VideoWriter(outputs.overlay, frames.fps) if outputs.overlay else None
    done = 0
    try:
        with outputs.lines.open("w", encoding="utf-8") as lines:
            for index, image, prediction in predictor.stream(frames):
                result = make_result(image, prediction.panoptic, classes)
                if tracker:
                    result = tracker.track(result, prediction)
                segments = [segment.to_coco() for segment in result.segments]
                line = {"frame": index, "seconds": round(index / frames.fps, 4), "segments_info": segments}
                lines.write(json.dumps(line) + "\n")
                if video:
                    video.write(np.asarray(result.overlay()))
                if outputs.maps:
                    frame = f"{outputs.name}/{index:06d}"
                    outputs.maps.add(ImageEntry(frame, frame, frame, f"{frame}.png"), result)
                done += 1
                on_frame(done, result)
        frames.check_complete()
    finally:
        if video:
            video.close()
        if not done:
            outputs.lines.unlink(missing_ok=True)
