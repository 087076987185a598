"""A panoptic JSON as flat arrays, checked: training stops at the first error, a check of a data set collects all."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Bool, Int, Int32

from pfcn_jax.codec import MAX_ID
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.coco_json import (
    CATEGORY_ID,
    FILE_NAME,
    IMAGE,
    IS_CROWD,
    OF_IMAGE,
    Field,
    other_type_hint,
    parse_classes,
    parse_parts,
    read_entry,
)
from pfcn_jax.data.example import DataError
from pfcn_jax.data.kinds import Report, raise_errors

VOID_ID = 0  # of unlabelled pixels in a panoptic PNG
_SEGMENTS = Field("segments_info", lambda value: isinstance(value, list), "a list of segments")
_ANNOTATION = (OF_IMAGE, FILE_NAME, _SEGMENTS)
_SEGMENT = (Field("id", CATEGORY_ID.accepts, CATEGORY_ID.wanted), CATEGORY_ID, IS_CROWD)
_UNDECLARED = (-1, -1, -1, -1)
_MAX_AREA = 2**53  # beyond any image: larger ones are as wrong as this


@dataclasses.dataclass(frozen=True)
class PanopticIndex:
    """A panoptic JSON as flat arrays: COCO's train2017 takes 20 MB instead of over a gigabyte of dictionaries.

    The segments of example i are rows offset[i]..offset[i + 1] - 1 of the last three fields, in the order of the file.
    """

    classes: ClassTable
    image_ids: tuple[int | str, ...]
    file_names: tuple[str, ...]
    label_names: tuple[str, ...]
    size: Int32[np.ndarray, "examples 2"]
    offset: Int[np.ndarray, " examples_and_one"]
    segment_id: Int32[np.ndarray, " segments"]
    class_id: Int32[np.ndarray, " segments"]
    is_crowd: Bool[np.ndarray, " segments"]

    def __len__(self) -> int:
        return len(self.image_ids)

    def segments(self, index: int) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Segment ids, class ids and crowd flags of one example."""
        rows = slice(self.offset[index], self.offset[index + 1])
        return self.segment_id[rows], self.class_id[rows], self.is_crowd[rows]


@dataclasses.dataclass(frozen=True)
class Declared:
    """Areas and boxes that the JSON declares for the segments of an index, -1 where it declares none."""

    area: Int[np.ndarray, " segments"]
    box: Int[np.ndarray, "segments 4"]  # x, y, width, height
    damaged: frozenset[Any]  # ids of images that lost a segment: their files cannot agree with the index


def read_index(path: str | os.PathLike[str]) -> PanopticIndex:
    """`parse_panoptic` of a file: its index.

    Raises:
      DataError: the file does not exist, or as `parse_panoptic`.
    """
    return read_panoptic(path)[0]


def read_panoptic(path: str | os.PathLike[str], report: Report = raise_errors) -> tuple[PanopticIndex, Declared]:
    """`parse_panoptic` of a file, which must exist."""
    try:
        data = pathlib.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such panoptic JSON", kind="json-missing") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", kind="json-missing") from error
    return parse_panoptic(data, os.fspath(path), report)


def parse_panoptic(data: bytes, path: str, report: Report = raise_errors) -> tuple[PanopticIndex, Declared]:
    """The index of a panoptic JSON. Examples are the annotated ones of `images`, in its order.

    Args:
      data: of the file.
      path: its name, for messages.
      report: receives every fault; what is faulty is left out of the index if it returns.

    Raises:
      DataError: nothing could be read: not JSON, no usable categories, no annotated image; and what `report` raises.
    """
    content = parse_parts(data, path, "panoptic")
    classes = parse_classes(content["categories"], path)
    images, left_out = _by_image_id(content["images"], IMAGE, "images", path, report)
    annotations, also = read_annotations(content["annotations"], path, report)
    left_out |= also
    for image_id in annotations.keys() - images.keys() - left_out:
        hint = other_type_hint(image_id, images, "images")
        message = f"{path}: the annotation of image {image_id!r} has no entry in images{hint}"
        report("annotation-without-image", message)
    for image_id in images.keys() - annotations.keys() - left_out:
        report("image-without-annotation", f"{path}: image {image_id} ({images[image_id]['file_name']})")
    labelled = [(image, annotations[image_id]) for image_id, image in images.items() if image_id in annotations]
    if not labelled:
        raise DataError(f"{path}: no annotated image", kind="unusable")
    _report_repeated_files(labelled, path, report)
    return _flatten(path, classes, labelled, report)


def read_annotations(
    entries: Sequence[Any], path: str, report: Report = raise_errors
) -> tuple[dict[Any, dict[str, Any]], set[Any]]:
    """The sound annotations (image_id, file_name, segments_info) by image id, and the ids of the others."""
    return _by_image_id(entries, _ANNOTATION, "annotations", path, report)


def _by_image_id(
    entries: Sequence[Any], fields: Sequence[Field], part: str, path: str, report: Report
) -> tuple[dict[Any, dict[str, Any]], set[Any]]:
    """The sound entries by image id (the first of `fields`), and the ids of those that were left out."""
    table: dict[Any, dict[str, Any]] = {}
    left_out, key = set(), fields[0].name
    for position, entry in enumerate(entries):
        values = read_entry(entry, fields, f"{path}: {part}[{position}]", report)
        if values is None:
            if isinstance(entry, dict) and isinstance(entry.get(key), (int, float, str)):
                left_out.add(entry[key])
        elif values[key] in table:
            report("image-repeated", f"{path}: image id {values[key]!r} appears twice in {part}")
        else:
            table[values[key]] = values
    return table, left_out


def _report_repeated_files(
    labelled: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], path: str, report: Report
) -> None:
    by_file = collections.defaultdict(set)
    count = collections.Counter(image["file_name"] for image, _ in labelled)
    for image, annotation in labelled:
        by_file[image["file_name"]].add(annotation["file_name"])
    for name, labels in by_file.items():
        if len(labels) > 1:
            shown = ", ".join(sorted(labels)[:3])
            report("labels-contradict", f"{path}: {name} has {len(labels)} label files ({shown}); keep one")
        elif count[name] > 1:
            report("picture-repeated", f"{path}: {count[name]} images have the file {name}")


def _flatten(
    path: str, classes: ClassTable, labelled: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], report: Report
) -> tuple[PanopticIndex, Declared]:
    offset, segments, damaged = [0], [], set()
    for image, annotation in labelled:
        own = read_segments(annotation, classes, f"{path}: image {image['id']}", report)
        if len(own) < len(annotation["segments_info"]):
            damaged.add(image["id"])
        segments += own
        offset.append(len(segments))
    index = PanopticIndex(
        classes=classes,
        image_ids=tuple(image["id"] for image, _ in labelled),
        file_names=tuple(image["file_name"] for image, _ in labelled),
        label_names=tuple(annotation["file_name"] for _, annotation in labelled),
        size=np.array([(image["height"], image["width"]) for image, _ in labelled], np.int32),
        offset=np.array(offset, np.int64),
        segment_id=np.array([segment[0] for segment in segments], np.int32),
        class_id=np.array([segment[1] for segment in segments], np.int32),
        is_crowd=np.array([segment[2] for segment in segments], bool),
    )
    area = np.array([segment[3] for segment in segments], np.int64)
    box = np.array([segment[4] for segment in segments], np.int64).reshape(-1, 4)
    return index, Declared(area, box, frozenset(damaged))


def read_segments(
    annotation: Mapping[str, Any], classes: ClassTable, where: str, report: Report = raise_errors
) -> list[tuple[int, int, bool, int, Sequence[int]]]:
    """The sound segments of an annotation: id, class id, crowd, declared area and box (-1 where it declares none)."""
    class_of = classes.class_of_category
    own: dict[int, tuple[int, int, bool, int, Sequence[int]]] = {}
    stuff: collections.Counter[int] = collections.Counter()
    for position, entry in enumerate(annotation["segments_info"]):
        values = read_entry(entry, _SEGMENT, f"{where}, segments_info[{position}]", report)
        if values is None:
            continue
        segment_id, category_id, crowd = values["id"], values["category_id"], bool(values["iscrowd"])
        name = f"{where}, segment {segment_id}"
        if category_id not in class_of:
            report("category-unknown", f"{name}: unknown category {category_id}")
        elif not VOID_ID < segment_id <= MAX_ID:
            report("segment-id-invalid", f"{name}: a segment id must be in 1..{MAX_ID} (0 is void)")
        elif segment_id in own:
            report("segment-id-repeated", f"{name}: this segment id appears twice")
        else:
            class_id = class_of[category_id]
            own[segment_id] = (segment_id, class_id, crowd, _declared_area(entry), _declared_box(entry))
            if not classes.is_thing[class_id]:
                stuff[class_id] += 1
                if crowd:
                    report("stuff-crowd", f"{name}: {classes.names[class_id]}")
    for class_id, count in stuff.items():
        if count > 1:
            report("stuff-repeated", f"{where}: {count} segments of {classes.names[class_id]}")
    return list(own.values())


def _is_measure(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and abs(value) < 2**53  # neither NaN nor infinite


def _declared_area(segment: Mapping[str, Any]) -> int:
    """The area that a segment declares; -1 if it declares none that could be true."""
    area = segment.get("area")
    return int(min(area, _MAX_AREA)) if isinstance(area, (int, float)) and 0 <= area < float("inf") else -1


def _declared_box(segment: Mapping[str, Any]) -> Sequence[int]:
    """The box (x, y, width, height) that a segment declares; -1 four times if it declares none that could be true."""
    box = segment.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(map(_is_measure, box)):
        return [round(side) for side in box]
    return _UNDECLARED
