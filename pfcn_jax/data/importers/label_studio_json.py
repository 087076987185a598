"""Label Studio's JSON export: tasks with annotations, whose results are regions in percent or in brush run lengths."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from pfcn_jax.data.coco_json import show
from pfcn_jax.data.example import DataError
from pfcn_jax.data.image_files import SUFFIXES, compose
from pfcn_jax.data.importers.brush_rle import decode_brush
from pfcn_jax.data.importers.exports import require_size
from pfcn_jax.data.importers.image_index import ImageIndex, simplify
from pfcn_jax.data.importers.objects import (
    BAD_RLE,
    NO_LABEL,
    ArrayPart,
    LabelObject,
    Part,
    ellipse_points,
    read_polygon,
)
from pfcn_jax.data.importers.polygons import flatten_points

SEVERAL_LABELS = "have several labels"
ROTATED = "were drawn on an image that Label Studio had rotated"
OPEN = "have a polygon that was not closed"
NOT_ANNOTATED = "have no annotation"
PREDICTED = "have only predictions (pre-annotations; --predictions takes them as labels)"
SKIPPED = "were skipped by the annotator"
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # of uploaded files
# A key that only this kind of region has -> why it is no mask. In the order in which they are looked for.
_REFUSED = {
    "imageDataURL": "are bitmasks (export them as brush labels or PNG)",
    "vertices": "are vectors",
    "height": "are rectangles (a box alone is no mask)",
    "x": "are key points",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A task and the annotation that counts.

    Fields:
      image: path or URL of the image, as Label Studio knows it.
      results: of the annotation; None: there is none to use.
      left_out: the reason, if so.
      others: further annotations of the task.
    """

    name: str
    image: str
    results: Sequence[Any] | None
    left_out: str = ""
    others: int = 0


class UploadIndex(ImageIndex):
    """Images by the paths and URLs in Label Studio's data, with or without the prefix of uploaded files."""

    def find(self, written: str) -> pathlib.Path | None:
        for path in _spellings(written):
            folder, _, name = path.rpartition("/")
            for other in (name, _UPLOAD_PREFIX.sub("", name)):
                for key in (compose, simplify):
                    if (found := self.find_by(f"{folder}/{other}", key)) is not None:
                        return found
        return None


def _spellings(written: str) -> list[str]:
    """Paths that a path or URL may mean: as it stands, and decoded as `/data/local-files/?d=PATH` or as a URL."""
    try:
        parts = urllib.parse.urlsplit(written)
        local = urllib.parse.parse_qs(parts.query).get("d", [])
    except ValueError:  # no URL
        return [written.replace("\\", "/")]
    own = [] if parts.netloc else [written, urllib.parse.unquote(written)]
    paths = [*local, *own, parts.path, urllib.parse.unquote(parts.path)]
    return [path.replace("\\", "/") for path in dict.fromkeys(paths) if path]


def read_tasks(content: Any, path: pathlib.Path, *, use_predictions: bool = False) -> list[Task]:
    """The tasks of an export.

    Args:
      use_predictions: of tasks without annotations the predictions count.

    Raises:
      DataError: not such a file; names what is wrong.
    """
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: must be a list of tasks, got {show(content)}", kind="json-part-missing")
    return [_read_task(entry, f"{path}: task [{position}]", use_predictions) for position, entry in enumerate(content)]


def _read_task(entry: Any, name: str, use_predictions: bool) -> Task:
    data = entry.get("data") if isinstance(entry, dict) else None
    if not isinstance(data, dict):
        raise DataError(
            f"{name}: data is {show(data)}, must be an object; is it the JSON export?", kind="value-invalid"
        )
    name = f"{name} (id {entry.get('id')!r:.40})"
    image = image_of(data, name)
    key = "completions" if "completions" in entry and "annotations" not in entry else "annotations"
    if not entry.get(key) and entry.get("predictions"):
        if not use_predictions:
            return Task(name, image, None, PREDICTED)
        key = "predictions"
    annotations = entry.get(key, [])
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise DataError(f"{name}: {key} is {show(annotations)}, must be a list of objects", kind="value-invalid")
    done = [one for one in annotations if not (one.get("was_cancelled") or one.get("skipped"))]
    if not done:
        return Task(name, image, None, SKIPPED if annotations else NOT_ANNOTATED)
    latest = max(
        done, key=lambda one: (bool(one.get("ground_truth")), str(one.get("updated_at") or one.get("created_at")))
    )
    results = latest.get("result")
    if not isinstance(results, list):
        raise DataError(f"{name}: result is {show(results)}, must be a list", kind="value-invalid")
    return Task(name, image, results, others=len(done) - 1)


def image_of(data: Mapping[str, Any], name: str) -> str:
    """The image of a task: its `image`, else the one value that ends like an image file.

    Raises:
      DataError: there is none, or several.
    """
    if isinstance(data.get("image"), str) and data["image"]:
        return str(data["image"])
    texts = [value for value in data.values() if isinstance(value, str)]
    found = [text for text in texts if any(end.lower().endswith(SUFFIXES) for end in _spellings(text))]
    if len(found) != 1:
        there = "several images" if found else "no image"
        raise DataError(
            f"{name}: {there} in data (keys {', '.join(data)}); one image a task is read", kind="value-invalid"
        )
    return found[0]


def label_names(tasks: Sequence[Task]) -> list[str]:
    """Labels of all regions, by name."""
    results = [result for task in tasks for result in task.results or () if isinstance(result, dict)]
    values = [result["value"] for result in results if isinstance(result.get("value"), dict)]
    regions = [value for value in values if any(key in value for key in ("points", "rle", "radiusX"))]
    return sorted({name for value in regions for name in _labels(value)})


def read_objects(task: Task, size: tuple[int, int]) -> list[LabelObject]:
    """The regions of a task.

    Raises:
      DataError: a result is no object, or belongs to an image of another size than `size`.
    """
    labelled = set()
    for result in task.results or ():
        if not isinstance(result, dict):
            raise DataError(f"{task.name}: a result is {show(result)}, must be an object", kind="value-invalid")
        if isinstance(result.get("value"), dict) and _labels(result["value"]):
            labelled.add(str(result.get("id")))
    objects = []
    for position, result in enumerate(task.results or ()):
        value = result.get("value")
        if not isinstance(value, dict) or not _is_region(value):
            continue  # choices, texts, relations
        labels = _labels(value)
        if not labels and str(result.get("id")) in labelled:
            continue  # the same region stands in the list with its label
        name = f"result [{position}] of {task.name}"
        if "original_height" in result or "original_width" in result:
            require_size((result.get("original_height"), result.get("original_width")), size, task.name)
        part, fault = _read_region(value, size)
        if result.get("image_rotation"):
            fault = ROTATED
        if len(labels) != 1:
            fault = SEVERAL_LABELS if labels else NO_LABEL
        objects.append(LabelObject(name, "" if fault else labels[0], (part,) if part and not fault else (), fault))
    return objects


def _is_region(value: Mapping[str, Any]) -> bool:
    return any(key in value for key in ("points", "rle", "radiusX", *_REFUSED))


def _labels(value: Mapping[str, Any]) -> list[str]:
    """The labels in a result's value, as under `polygonlabels`."""
    found = [own for key, own in value.items() if key.endswith("labels") and isinstance(own, list)]
    return [name for own in found for name in own if isinstance(name, str) and name]


def _read_region(value: Mapping[str, Any], size: tuple[int, int]) -> tuple[Part | None, str]:
    """The pixels of a region, or None and the reason why it cannot be used."""
    percent = np.array([size[1], size[0]]) / 100.0  # pixels of a percent of width and height
    if "rle" in value:
        mask = _brush(value["rle"], size)
        return (None, BAD_RLE) if mask is None else (ArrayPart(mask), "")
    if "points" in value:
        if value.get("closed") is False:
            return None, OPEN
        flat = _finite(flatten_points(value["points"]))
        return read_polygon(None if flat is None else (np.reshape(flat, (-1, 2)) * percent).ravel().tolist(), size)
    if "radiusX" in value:
        numbers = _finite([value.get(key, 0) for key in ("x", "y", "radiusX", "radiusY", "rotation")])
        if numbers is None:
            return read_polygon(None, size)
        x, y, across, down = (np.array(numbers[:4]) * np.tile(percent, 2)).tolist()
        return read_polygon(ellipse_points((x, y), (across, down), numbers[4]), size)
    return None, next(reason for key, reason in _REFUSED.items() if key in value)


def _finite(values: Sequence[Any] | None) -> list[float] | None:
    """The values as floats; None if any is no finite number."""
    if values is None or not all(type(value) in (int, float) for value in values):
        return None
    try:
        floats = [float(value) for value in values]
    except OverflowError:  # a whole number that no float holds
        return None
    return floats if all(map(math.isfinite, floats)) else None


def _brush(rle: Any, size: tuple[int, int]) -> Bool[np.ndarray, "h w"] | None:
    if not isinstance(rle, list) or not all(type(byte) is int and 0 <= byte <= 255 for byte in rle):
        return None
    try:
        return decode_brush(rle, size)
    except ValueError:
        return None
