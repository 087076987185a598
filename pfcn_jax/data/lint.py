"""A panoptic JSON read past its errors: every error is a finding, and what is left is an index that can be read.

`coco.parse_index` stops at the first error, as training should; a check of a data set wants all of them.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from pfcn_jax.codec import MAX_ID
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.coco import VOID_ID, PanopticIndex, index_content
from pfcn_jax.data.sources import DataError

Report = Callable[[str, str], None]  # (kind, message)


@dataclasses.dataclass(frozen=True)
class Declared:
    """What the JSON says of every segment of the index, -1 where it says nothing."""

    area: Int[np.ndarray, " segments"]
    box: Int[np.ndarray, "segments 4"]  # x, y, width, height
    damaged: frozenset[Any]  # ids of images that lost a segment: their files cannot agree with the index


def lint(path: pathlib.Path, report: Report) -> tuple[PanopticIndex, Declared]:
    """Reads a panoptic JSON, reports everything that is wrong in it, and leaves that out.

    Raises:
      DataError: nothing is left to read: no JSON, no categories that can be used, or no labelled image.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", kind="json-missing") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})", kind="json-broken") from error
    missing = [key for key in ("categories", "images", "annotations") if key not in content]
    if missing:
        raise DataError(f"{path}: no {', '.join(missing)}; is it a COCO-panoptic file?", kind="json-part-missing")
    try:
        classes = ClassTable.from_coco(content["categories"])
    except ValueError as error:
        raise DataError(f"{path}: {error}", kind="category-invalid") from error
    keys = {"images": ("id", "file_name", "height", "width"), "annotations": ("image_id", "file_name", "segments_info")}
    images, left_out = _unique(content["images"], keys["images"], "images", path.name, report)
    annotations, also = _unique(content["annotations"], keys["annotations"], "annotations", path.name, report)
    left_out |= also
    for image_id in annotations.keys() - images.keys() - left_out:
        report("annotation-without-image", f"{path.name}: the annotation of image {image_id} has no entry in images")
    for image_id in images.keys() - annotations.keys() - left_out:
        report("image-without-annotation", f"{path.name}: image {image_id} ({images[image_id]['file_name']})")
    names = collections.Counter(image["file_name"] for image in images.values())
    for name, count in names.items():
        if count > 1:
            report("picture-repeated", f"{path.name}: {count} images have the file {name}")
    damaged = set()
    kept = []
    for image_id, annotation in annotations.items():
        if image_id not in images:
            continue
        segments = _segments(annotation, classes, f"{path.name}: image {image_id}", report)
        if len(segments) < len(annotation["segments_info"]):
            damaged.add(image_id)
        kept.append({**annotation, "segments_info": segments})
    content = {"categories": content["categories"], "images": list(images.values()), "annotations": kept}
    index = index_content(content, str(path))
    by_image = {annotation["image_id"]: annotation["segments_info"] for annotation in kept}
    listed = [segment for image_id in index.image_ids for segment in by_image[image_id]]
    area = np.array([_declared_area(segment) for segment in listed], np.int64)
    box = np.array([_declared_box(segment) for segment in listed], np.float64)
    return index, Declared(area, np.rint(box).astype(np.int64).reshape(-1, 4), frozenset(damaged))


def _unique(
    entries: Sequence[Mapping[str, Any]], keys: Sequence[str], part: str, path: str, report: Report
) -> tuple[dict[Any, dict[str, Any]], set[Any]]:
    """The complete entries by id (the first of `keys`), of repeated ids the first; and the ids of incomplete ones."""
    table: dict[Any, dict[str, Any]] = {}
    incomplete, key = set(), keys[0]
    for position, entry in enumerate(entries):
        missing = [name for name in keys if name not in entry]
        if missing:
            report("entry-incomplete", f"{path}: {part}[{position}] has no {', '.join(missing)}")
            incomplete.add(entry.get(key))
        elif entry[key] in table:
            report("image-repeated", f"{path}: image id {entry[key]} appears twice in {part}")
        else:
            table[entry[key]] = dict(entry)
    return table, incomplete


def _declared_area(segment: Mapping[str, Any]) -> int:
    """The area that a segment declares; -1 if it declares none that could be true."""
    area = segment.get("area")
    return int(area) if isinstance(area, (int, float)) and math.isfinite(area) else -1


def _declared_box(segment: Mapping[str, Any]) -> tuple[float, ...]:
    """The box (x, y, width, height) that a segment declares; -1 four times if it declares none that could be true."""
    box = segment.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(isinstance(side, (int, float)) for side in box):
        return tuple(box) if all(map(math.isfinite, box)) else (-1, -1, -1, -1)
    return -1, -1, -1, -1


def _segments(annotation: Mapping[str, Any], classes: ClassTable, where: str, report: Report) -> list[dict[str, Any]]:
    """The usable segments of an annotation."""
    class_of = classes.class_of_category
    own: dict[int, dict[str, Any]] = {}
    stuff: collections.Counter[int] = collections.Counter()
    for segment in annotation["segments_info"]:
        if "id" not in segment or "category_id" not in segment:
            report("entry-incomplete", f"{where}: a segment without id or category_id")
            continue
        name = f"{where}, segment {segment['id']}"
        if not isinstance(segment["id"], int) or not isinstance(segment["category_id"], int):
            report("entry-incomplete", f"{name}: id and category_id must be whole numbers")
            continue
        if segment["category_id"] not in class_of:
            report("category-unknown", f"{name}: category {segment['category_id']}")
        elif not VOID_ID < segment["id"] <= MAX_ID:
            report("segment-id-invalid", f"{name}: must be in 1..{MAX_ID} (0 is void)")
        elif segment["id"] in own:
            report("segment-id-repeated", name)
        else:
            own[segment["id"]] = dict(segment)
            class_id = class_of[segment["category_id"]]
            if not classes.is_thing[class_id]:
                stuff[class_id] += 1
                if segment.get("iscrowd", 0):
                    report("stuff-crowd", f"{name}: {classes.names[class_id]}")
    for class_id, count in stuff.items():
        if count > 1:
            report("stuff-repeated", f"{where}: {count} segments of {classes.names[class_id]}")
    return list(own.values())
