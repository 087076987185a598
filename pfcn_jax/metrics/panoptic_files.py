"""PQ of anybody's COCO-panoptic files, strictly read: every inconsistency is one error that names the file and the id.

The format: a JSON with `annotations` (one per image: image_id, file_name of a PNG, segments_info) and, in the labels,
`categories` (id, name, isthing); and a folder of PNGs whose colors are segment ids (see pfcn_jax/codec.py), 0 = void.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from pfcn_jax.codec import MAX_ID, exchange_red_blue, read_id_png
from pfcn_jax.errors import UserError
from pfcn_jax.metrics.breakdown import top_confusions
from pfcn_jax.metrics.pq import PQCounts, PQResult, SegmentMatches, count_matches, match_segments, pq_result

T = TypeVar("T")
ImageId = int | str
Path = str | os.PathLike[str]

MAX_AREA = 1 << 62  # a stated area beyond any image is as wrong as this


@dataclasses.dataclass(frozen=True)
class Categories:
    """The `categories` of a labels file, in its order; class c of the counts is entry c."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    is_thing: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class PanopticImage:
    """One image's PNG and its segments, in the JSON's order (the last crowd of a class is what counts)."""

    image_id: ImageId
    png: pathlib.Path
    segment_ids: np.ndarray  # int64 [S]
    classes: np.ndarray  # int64 [S], index into Categories
    crowd: np.ndarray  # bool [S]
    areas: np.ndarray  # int64 [S], as the JSON states them, -1 where it does not


class PanopticFiles:
    """Predicted files and the labels that they are scored against.

    Attributes:
      categories: of the labels, in their order; class c of every result is entry c.
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
        labels, predictions = _load_json(gt_json), _load_json(pred_json)
        self.categories = _read_categories(gt_json, labels)
        self._truth = _read_images(gt_json, labels, gt_dir, self.categories)
        self._predicted = _read_images(pred_json, predictions, pred_dir, self.categories)
        self._workers = workers
        if not self._truth:
            raise UserError(f"{gt_json}: no annotated image to score")
        if absent := [image_id for image_id in self._truth if image_id not in self._predicted]:
            raise UserError(f"{pred_json}: no prediction for {_listed('image', absent)} of {gt_json}")
        if extra := [image_id for image_id in self._predicted if image_id not in self._truth]:
            raise UserError(f"{pred_json}: predicts {_listed('image', extra)}, unknown to {gt_json}")

    def score(self) -> PQResult:
        """PQ over all images.

        Raises:
          UserError: a PNG is missing, broken or contradicts its JSON.
        """
        total = PQCounts.zeros(len(self.categories.ids))
        for found in self._matches(any_class=False):
            total = total + count_matches(found, total.num_classes)
        return pq_result(total, self.categories.is_thing)

    def confused_categories(self, limit: int = 5) -> list[tuple[int, int, int]]:
        """The most frequent (labeled class, predicted class, count) of segments that match except for their classes."""
        classes = len(self.categories.ids)
        confusion = np.zeros((classes + 1, classes + 1), np.int64)  # as `Breakdown.confusion`
        for found in self._matches(any_class=True):
            np.add.at(confusion, (found.gt_classes[found.gt_row], found.pred_classes[found.pred_row]), 1)
        return top_confusions(confusion, limit)

    def _matches(self, *, any_class: bool) -> Iterator[SegmentMatches]:
        def match(image_id: ImageId) -> SegmentMatches:
            truth, predicted = self._truth[image_id], self._predicted[image_id]
            gt_map, pred_map = _read_rows(truth), _read_rows(predicted)
            if gt_map.shape != pred_map.shape:
                raise UserError(f"{predicted.png}: size {_size(pred_map)}, but {truth.png} has {_size(gt_map)}")
            labels, classes = (gt_map, truth.classes, truth.crowd), len(self.categories.ids)
            return match_segments(*labels, pred_map, predicted.classes, classes, any_class=any_class)

        return _in_threads(match, list(self._truth), self._workers)


def confusion_hint(files: PanopticFiles, result: PQResult) -> str:
    """Why PQ is 0 although masks match: segments found under other categories. "" if that is not so."""
    if result.all.PQ > 0.0 or not (confused := files.confused_categories()):
        return ""
    ids, names = files.categories.ids, files.categories.names

    def category(c: int) -> str:
        return f"{names[c]!r} (id {ids[c]})"

    pairs = ", ".join(f"{count} of {category(gt)} predicted as {category(pred)}" for gt, pred, count in confused)
    return f"PQ is 0, but masks match under other categories: {pairs}; are the category ids those of the labels?"


def _read_rows(image: PanopticImage) -> np.ndarray:
    """The PNG with ids replaced by 1 + their place in `segment_ids`; PNG and JSON must name the same ids."""
    try:
        ids = read_id_png(image.png)
    except OSError as error:
        raise UserError(f"{image.png}: {error.strerror or error} (image {image.image_id})") from error
    # Looking up runs of one id instead of pixels saves nine tenths of the time.
    flat = ids.reshape(-1)
    start = np.concatenate([[0], 1 + np.flatnonzero(flat[1:] != flat[:-1])])
    length = np.diff(start, append=flat.size)
    order = np.argsort(image.segment_ids)
    known = np.concatenate([[0], image.segment_ids[order]])
    place = np.minimum(np.searchsorted(known, flat[start]), len(order))
    unknown = known[place] != flat[start]
    if unknown.any():
        value = int(flat[start][unknown][0])
        problem = f"{image.png}: id {value} is not in the JSON's segments_info (image {image.image_id})"
        if np.isin(exchange_red_blue(flat[start]), known).all():
            problem += (
                "; with red and blue exchanged all ids are: the file was written as BGR (as OpenCV does), but an id is "
                "R + 256 G + 65536 B"
            )
        raise UserError(problem)
    rows = np.concatenate([[0], 1 + order])[place]
    _check_areas(image, np.bincount(rows, weights=length, minlength=len(known)).astype(np.int64)[1:])
    return np.repeat(rows, length).reshape(ids.shape)


def _check_areas(image: PanopticImage, areas: np.ndarray) -> None:
    if (empty := areas == 0).any():
        value = int(image.segment_ids[empty][0])
        raise UserError(f"{image.png}: has no pixel of segment {value}, which the JSON lists (image {image.image_id})")
    if (differs := (image.areas >= 0) & (image.areas != areas)).any():
        i = int(np.flatnonzero(differs)[0])
        raise UserError(
            f"{image.png}: segment {int(image.segment_ids[i])} has {int(areas[i])} pixels, but the JSON says area "
            f"{int(image.areas[i])} (image {image.image_id})"
        )


def _size(id_map: np.ndarray) -> str:
    return f"{id_map.shape[1]}x{id_map.shape[0]}"


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


# --- reading the JSON ---------------------------------------------------------------------------------------------


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{path}: invalid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object with 'annotations', got a {type(content).__name__}")
    return content


def _read_categories(path: Path, content: dict[str, Any]) -> Categories:
    entries = _get(content, "categories", list, f"{path}")
    ids, names, is_thing = [], [], []
    for i, entry in enumerate(entries):
        where = f"{path}: categories[{i}]"
        ids.append(_get(entry, "id", int, where))
        names.append(str(entry.get("name", ids[-1])))
        is_thing.append(_flag(entry, "isthing", where))
    if not ids:
        raise UserError(f"{path}: no categories")
    if len(set(ids)) < len(ids):
        raise UserError(f"{path}: category id {_first_repeated(ids)} occurs twice")
    return Categories(tuple(ids), tuple(names), tuple(is_thing))


def _read_images(
    path: Path, content: dict[str, Any], folder: Path, categories: Categories
) -> dict[ImageId, PanopticImage]:
    if not pathlib.Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder (of the PNGs of {path})")
    class_of = {category_id: c for c, category_id in enumerate(categories.ids)}
    images: dict[ImageId, PanopticImage] = {}
    for i, entry in enumerate(_get(content, "annotations", list, f"{path}")):
        image_id = _get(entry, "image_id", (int, str), f"{path}: annotations[{i}]")
        if image_id in images:
            raise UserError(f"{path}: image {image_id} occurs twice")
        images[image_id] = _read_image(f"{path}: image {image_id}", entry, pathlib.Path(folder), class_of)
    return images


def _read_image(where: str, entry: dict[str, Any], folder: pathlib.Path, class_of: dict[int, int]) -> PanopticImage:
    file_name = _get(entry, "file_name", str, where)
    if not file_name or "\0" in file_name:
        raise UserError(f"{where}: {file_name!r} is no file name")
    ids, classes, crowd, areas = [], [], [], []
    for i, segment in enumerate(_get(entry, "segments_info", list, where)):
        ids.append(_get(segment, "id", int, f"{where}: segments_info[{i}]"))
        here = f"{where}: segment {ids[-1]}"
        if not 1 <= ids[-1] <= MAX_ID:
            raise UserError(f"{here}: an id must be in 1..{MAX_ID} (0 is void)")
        category_id = _get(segment, "category_id", int, here)
        if category_id not in class_of:
            raise UserError(f"{here}: unknown category {category_id}")
        classes.append(class_of[category_id])
        crowd.append(_flag(segment, "iscrowd", here) if "iscrowd" in segment else False)
        area = segment.get("area")
        areas.append(min(int(area), MAX_AREA) if isinstance(area, (int, float)) and 0 <= area < float("inf") else -1)
    if len(set(ids)) < len(ids):
        raise UserError(f"{where}: segment id {_first_repeated(ids)} occurs twice")
    return PanopticImage(
        image_id=entry["image_id"],
        png=folder / file_name,
        segment_ids=np.array(ids, np.int64),
        classes=np.array(classes, np.int64),
        crowd=np.array(crowd, bool),
        areas=np.array(areas, np.int64),
    )


def _get(entry: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """`entry[key]`, checked to be there and of its kind (True and False are no integers here)."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(entry).__name__}")
    if key not in entry:
        raise UserError(f"{where}: '{key}' is missing")
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: '{key}' has the wrong type, {type(value).__name__}")
    return value


def _flag(entry: dict[str, Any], key: str, where: str) -> bool:
    if entry.get(key) not in (0, 1):
        raise UserError(f"{where}: '{key}' must be 0 or 1, got {entry.get(key)!r}")
    return bool(entry[key])


def _first_repeated(values: list[int]) -> int:
    seen: set[int] = set()
    return next(value for value in values if value in seen or seen.add(value))  # type: ignore[func-returns-value]


def _listed(noun: str, items: list[ImageId]) -> str:
    shown = ", ".join(str(item) for item in items[:3])
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{noun}{'s' if len(items) > 1 else ''} {shown}{more}"
