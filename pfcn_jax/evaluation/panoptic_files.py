"""PQ of anybody's COCO-panoptic files, read as training reads its labels: a fault is an error that names file and id.

The format: a JSON with `annotations` (one per image: image_id, file_name of a PNG, segments_info) and, in the labels,
`categories` (id, name, isthing); and a folder of PNGs whose colors are segment ids (see pfcn_jax/codec.py), 0 = void.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Int, Int32

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.coco_json import other_type_hint, parse_classes, parse_parts
from pfcn_jax.data.datasets.coco import rows_of_ids
from pfcn_jax.data.decode import decode_ids
from pfcn_jax.data.example import DataError, sides
from pfcn_jax.data.image_files import find_normalized
from pfcn_jax.data.panoptic_json import read_annotations, read_segments
from pfcn_jax.data.segments import count_pixels
from pfcn_jax.errors import UserError
from pfcn_jax.metrics.breakdown import top_confusions
from pfcn_jax.metrics.pq import (
    PQCounts,
    PQResult,
    SegmentMatches,
    count_matches,
    count_overlap,
    match_overlap,
    pq_result,
)

T = TypeVar("T")
_CONFUSIONS = 5  # that a message names
ImageId = int | str
Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class PanopticImage:
    """One image's PNG and its segments, in the JSON's order (the last crowd of a class is what counts)."""

    image_id: ImageId
    png: pathlib.Path
    segment_ids: Int32[np.ndarray, " s"]
    class_id: Int32[np.ndarray, " s"]
    crowd: Bool[np.ndarray, " s"]
    area: Int[np.ndarray, " s"]  # as the JSON declares it, -1 where it does not


class PanopticFiles:
    """Predicted files and the labels that they are scored against.

    Attributes:
      classes: of the labels; class c of every result is entry c.
    """

    def __init__(self, gt_json: Path, gt_dir: Path, pred_json: Path, pred_dir: Path, *, workers: int | None = None):
        """Reads the JSON files and checks that both name the same images.

        Args:
          gt_json: the labels' JSON file.
          gt_dir: the folder of their PNGs.
          pred_json: the predictions' JSON file.
          pred_dir: the folder of their PNGs.
          workers: threads that read PNGs; None takes one per CPU, at most 8.

        Raises:
          UserError: a file or folder is missing, broken or contradicts another; the message names it.
        """
        labels = _read_parts(gt_json, ("categories", "annotations"))
        predictions = _read_parts(pred_json, ("annotations",))
        self.classes = parse_classes(labels["categories"], os.fspath(gt_json))
        self._truth = _read_images(gt_json, labels["annotations"], gt_dir, self.classes)
        self._predicted = _read_images(pred_json, predictions["annotations"], pred_dir, self.classes)
        self._workers = workers
        if not self._truth:
            raise DataError(f"{gt_json}: no annotated image to score", kind="nothing-labelled")
        if absent := [image_id for image_id in self._truth if image_id not in self._predicted]:
            hint = other_type_hint(absent[0], self._predicted, os.fspath(pred_json))
            raise UserError(
                f"{gt_json}: {_listed(absent)} without a prediction in {pred_json}{hint}", code="images-differ"
            )
        if extra := [image_id for image_id in self._predicted if image_id not in self._truth]:
            raise UserError(f"{pred_json}: predicts {_listed(extra)}, unknown to {gt_json}", code="images-differ")

    def score(self) -> PQResult:
        """PQ over all images.

        Raises:
          DataError: a PNG is missing, broken or contradicts its JSON.
        """
        total = PQCounts.zeros(len(self.classes))
        for found in self._matches(any_class=False):
            total = total + count_matches(found, total.num_classes)
        return pq_result(total, self.classes.is_thing)

    def confused_categories(self) -> list[tuple[int, int, int]]:
        """The most frequent (labeled class, predicted class, count) of segments that match except for their classes."""
        classes = len(self.classes)
        confusion = np.zeros((classes + 1, classes + 1), np.int64)  # as `Breakdown.confusion`
        for found in self._matches(any_class=True):
            np.add.at(confusion, (found.gt_classes[found.gt_row], found.pred_classes[found.pred_row]), 1)
        return top_confusions(confusion, _CONFUSIONS)

    def overlaps(self) -> Iterator[tuple[PanopticImage, PanopticImage, Int[np.ndarray, "1+G 1+P"]]]:
        """Labels, prediction and the pixels that their segments share (`pq.count_overlap`), in the labels' order.

        Raises:
          DataError: as `score`.
        """

        def read(image_id: ImageId) -> tuple[PanopticImage, PanopticImage, np.ndarray]:
            truth, predicted = self._truth[image_id], self._predicted[image_id]
            gt_map, pred_map = _read_rows(truth), _read_rows(predicted)
            if gt_map.shape != pred_map.shape:
                raise DataError(
                    f"{predicted.png}: is {sides(pred_map.shape)}, but {truth.png} is {sides(gt_map.shape)}",
                    kind="label-size",
                )
            rows = len(truth.segment_ids), len(predicted.segment_ids)
            return truth, predicted, count_overlap(gt_map, rows[0], pred_map, rows[1])

        return _in_threads(read, list(self._truth), self._workers)

    def _matches(self, *, any_class: bool) -> Iterator[SegmentMatches]:
        for truth, predicted, overlap in self.overlaps():
            labels = (truth.class_id, truth.crowd)
            yield match_overlap(overlap, *labels, predicted.class_id, len(self.classes), any_class=any_class)


def confusion_hint(files: PanopticFiles, result: PQResult) -> str:
    """Why PQ is 0 although masks match: segments found under other categories. "" if that is not so."""
    if result.all.PQ > 0.0 or not (confused := files.confused_categories()):
        return ""
    ids, names = files.classes.category_ids, files.classes.names

    def category(c: int) -> str:
        return f"{names[c]!r} (id {ids[c]})"

    pairs = ", ".join(f"{count} of {category(gt)} predicted as {category(pred)}" for gt, pred, count in confused)
    return f"PQ is 0, but masks match under other categories: {pairs}; are the category ids those of the labels?"


def _read_rows(image: PanopticImage) -> Int32[np.ndarray, "h w"]:
    """The PNG with ids replaced by 1 + their place in `segment_ids`; PNG and JSON must name the same ids."""
    name = f"{image.png} (image {image.image_id})"
    try:
        data = (find_normalized(image.png) or image.png).read_bytes()
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}", kind="label-missing") from error
    runs = rows_of_ids(decode_ids(data, name), image.segment_ids, name)
    painted = count_pixels(runs, len(image.segment_ids))
    if (differs := (image.area >= 0) & (image.area != painted)).any():
        i = int(np.flatnonzero(differs)[0])
        raise DataError(
            f"{name}: segment {int(image.segment_ids[i])} has {int(painted[i])} pixels, but the JSON says area "
            f"{int(image.area[i])}",
            kind="area-differs",
        )
    return runs.expand()


def _in_threads(work: Callable[[ImageId], T], items: list[ImageId], workers: int | None) -> Iterator[T]:
    """Results in the order of `items`, so that the first error is the same in every run."""
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}")
    if workers == 1:
        yield from map(work, items)
        return
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)


def _read_parts(path: Path, parts: tuple[str, ...]) -> dict[str, list[Any]]:
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", kind="json-missing") from error
    return parse_parts(data, os.fspath(path), "panoptic", parts)


def _read_images(path: Path, annotations: list[Any], folder: Path, classes: ClassTable) -> dict[ImageId, PanopticImage]:
    if not pathlib.Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder (of the PNGs of {path})", kind="label-missing")
    by_image, _ = read_annotations(annotations, os.fspath(path))
    return {
        image_id: _read_image(f"{path}: image {image_id}", entry, pathlib.Path(folder), classes)
        for image_id, entry in by_image.items()
    }


def _read_image(where: str, entry: Mapping[str, Any], folder: pathlib.Path, classes: ClassTable) -> PanopticImage:
    segments = read_segments(entry, classes, where)
    ids, class_id, crowd, area, _ = zip(*segments, strict=True) if segments else ((), (), (), (), ())
    return PanopticImage(
        image_id=entry["image_id"],
        png=folder / entry["file_name"],
        segment_ids=np.array(ids, np.int32),
        class_id=np.array(class_id, np.int32),
        crowd=np.array(crowd, bool),
        area=np.array(area, np.int64),
    )


def _listed(ids: list[ImageId]) -> str:
    shown = ", ".join(repr(image_id) for image_id in ids[:3])
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return f"image{'s' if len(ids) > 1 else ''} {shown}{more}"
