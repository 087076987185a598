"""The part `tracking`: VPQ and STQ of drawn films with known ids, tracked by masks, by kernels and by both.

The films run at their own frame rate, at a fourth and at an eighth of it: the further a thing moves between two frames,
the less its mask says. The thresholds were chosen on films of seed 1, those of the rows of masks apart.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pfcn_jax.checkpoints.loading import load_with_config
from pfcn_jax.config.schema import Config
from pfcn_jax.data.datasets.scenes import class_table
from pfcn_jax.data.datasets.scenes_film import Film, draw_film
from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.video_scores import WINDOWS, score_videos
from pfcn_jax.inference.predictor import Predictor
from pfcn_jax.inference.tracking import Tracker, TrackOptions, segment_kernels
from pfcn_jax.metrics.pq import count_overlap
from pfcn_jax.metrics.video import FrameSegments, VideoOverlaps
from pfcn_jax.studies.benchmark.measure import Row
from pfcn_jax.viz.preview import compact

FILMS, FRAMES, STEPS = 16, 40, (1, 4, 8)
MODES: Mapping[str, TrackOptions] = {
    "masks": TrackOptions(min_iou=0.01, min_similarity=None),  # with 0.1 its scores are lower
    "kernels": TrackOptions(min_iou=None),
    "both": TrackOptions(),
}


class Segmented(NamedTuple):
    """The segments of a frame, as `Tracker.update` takes them."""

    segment_map: np.ndarray
    class_id: np.ndarray
    is_thing: np.ndarray
    kernels: np.ndarray


def rows(args: argparse.Namespace) -> tuple[Config, str, list[Row]]:
    """The scores of `--checkpoint`, a model of drawn scenes.

    Raises:
      UserError: no checkpoint, or one of other classes.
    """
    if not args.checkpoint:
        raise UserError("`tracking` scores a trained model of drawn scenes (configs/quickstart.py): give --checkpoint")
    loaded = load_with_config(pathlib.Path(args.checkpoint), args.config_argv)
    if loaded.classes.names != class_table().names:
        raise UserError(f"{args.checkpoint}: its classes are not those of the drawn scenes, which `tracking` films")
    predictor = Predictor(loaded, loaded.config)

    def segment(image: np.ndarray) -> Segmented:
        prediction = predictor(image)
        segment_map, class_id, _ = compact(prediction.panoptic)
        is_thing = np.array(loaded.classes.is_thing)[class_id]
        return Segmented(segment_map, class_id, is_thing, segment_kernels(prediction, is_thing))

    scored: list[Row] = []
    for step in STEPS:
        size = loaded.config.data.scene_size
        scored += film_rows(segment, [draw_film(i, frames=FRAMES, step=step, size=size) for i in range(FILMS)], step)
    return loaded.config, f"checkpoint {args.checkpoint}", scored


def film_rows(segment: Callable[[np.ndarray], Segmented], films: Sequence[Film], step: int) -> list[Row]:
    """One row for each of `MODES`: the scores of the same segments under the ids of its tracker."""
    segmented = [[segment(image) for image in film.images] for film in films]
    return [_scores(films, segmented, step, name, options) for name, options in MODES.items()]


def _scores(
    films: Sequence[Film], segmented: Sequence[Sequence[Segmented]], step: int, name: str, options: TrackOptions
) -> Row:
    videos = [_track(film, frames, options) for film, frames in zip(films, segmented, strict=True)]
    windows = [window for window in WINDOWS if window <= max(map(len, videos))]
    scores = score_videos(videos, windows)
    things = {f"things, k = {window}": result.things.PQ for window, result in scores.vpq.items()}
    quality = {"STQ": scores.stq.STQ, "AQ": scores.stq.AQ, "SQ": scores.stq.SQ}
    return {"every n-th frame": step, "tracked by": name, "VPQ": scores.mean_vpq, **things, **quality}


def _track(film: Film, frames: Sequence[Segmented], options: TrackOptions) -> VideoOverlaps:
    """A film's labels against its tracked segments."""
    classes, rows_of_labels = class_table(), len(film.class_id)
    tracker, video = Tracker(len(classes), options), VideoOverlaps(classes.is_thing)
    truth = FrameSegments(film.class_id, np.arange(rows_of_labels), np.zeros(rows_of_labels, bool))
    for labels, frame in zip(film.segment_maps, frames, strict=True):
        found = len(frame.class_id)
        predicted = FrameSegments(frame.class_id, tracker.update(*frame), np.zeros(found, bool))
        video.add(truth, predicted, count_overlap(labels, rows_of_labels, frame.segment_map, found))
    return video
