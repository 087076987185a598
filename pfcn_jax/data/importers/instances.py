"""`prepare instances`: a COCO detection JSON (`instances_*.json`) with polygons or RLE.

Where instances overlap the smaller one lies above the larger, crowds lie below all.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.coco_json import (
    CATEGORY_ID,
    IMAGE,
    IS_CROWD,
    OF_IMAGE,
    other_type_hint,
    parse_classes,
    parse_parts,
    read_entry,
)
from pfcn_jax.data.example import DataError, sides
from pfcn_jax.data.image_files import find_normalized
from pfcn_jax.data.importers.common import (
    Found,
    add_background_flag,
    add_output_flags,
    add_skip_bad_flag,
    background_is_thing,
    choose_kinds,
    list_images,
    write_dataset,
)
from pfcn_jax.data.importers.files import read_file
from pfcn_jax.data.importers.image_index import ImageIndex
from pfcn_jax.data.importers.labelled import Drawing, Labelled, Shape
from pfcn_jax.data.importers.polygons import EMPTY, FEW_POINTS, NESTED, Polygon, draw_polygons, polygon_fault
from pfcn_jax.data.importers.registry import register
from pfcn_jax.data.kinds import raise_errors

_ANNOTATION = (OF_IMAGE, CATEGORY_ID, IS_CROWD)
NO_SEGMENTATION = "have no segmentation (a box alone is no mask)"
BAD_RLE = "have an unusable RLE"
UNLISTED = "are not in the JSON"


@dataclasses.dataclass(frozen=True)
class _Annotation:
    category_id: int
    is_crowd: bool
    segmentation: Any
    name: str  # for messages


@dataclasses.dataclass(frozen=True)
class DetectionOptions:
    """Options for reading a detection file.

    Fields:
      background: name of a stuff class for all other pixels; empty: they are void.
      skip_bad: leave out segmentations that cannot be used, and count them, instead of refusing the file.
      crowds_as_instances: ignore `iscrowd`, which some tools set for every brush mask.
      things, stuff: names of categories, as `choose_kinds` wants them.
    """

    background: str = "background"
    skip_bad: bool = False
    crowds_as_instances: bool = False
    things: Sequence[str] = ()
    stuff: Sequence[str] = ()


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", required=True, help="COCO detection file, as instances_train2017.json")
    parser.add_argument(
        "--crowds-as-instances", action="store_true", help="ignore iscrowd (CVAT sets it for brush masks)"
    )
    add_skip_bad_flag(parser)
    add_background_flag(parser)
    add_output_flags(parser)


@register("instances", help="a COCO detection JSON -> COCO-panoptic", add_flags=add_flags)
def run(args: argparse.Namespace) -> list[str]:
    options = DetectionOptions(args.background, args.skip_bad, args.crowds_as_instances)
    found = from_detection(args.json, args.images, options)
    return write_dataset(args, found)


def from_detection(
    path: str | os.PathLike[str], folder: str | os.PathLike[str] | ImageIndex, options: DetectionOptions
) -> Found:
    """The classes, image files and labels of a COCO detection JSON.

    Args:
      folder: that the file names of the JSON are relative to, or images to find by the end of the name.

    Raises:
      DataError: not such a JSON, an id or a file name twice, or an image without a file.
    """
    content = parse_parts(read_file(pathlib.Path(path), "json-missing"), str(path), "detection")
    for part in ("categories", "images", "annotations"):
        if not content[part]:
            raise DataError(f"{path}: {part} is empty; is it a COCO detection file?", kind="json-part-missing")
    images = _read_images(content["images"], str(path))
    annotations = _read_annotations(content["annotations"], images, str(path))
    categories, notes = _drop_unused_root(content["categories"], annotations)
    classes = _classes(categories, options, str(path))
    for one in (one for own in annotations.values() for one in own):
        if one.category_id not in classes.class_of_category:
            raise DataError(
                f"{path}: {one.name}: category {one.category_id} is not in categories", kind="category-unknown"
            )
    if isinstance(folder, ImageIndex):
        files = folder.require_all([image["file_name"] for image in images.values()], pathlib.Path(path))
    else:
        files = _find_files(images, pathlib.Path(folder))
    by_file = {file: image for image, file in zip(images.values(), files)}
    last = classes.names.index(options.background) if options.background else None

    def label(file: pathlib.Path, size: tuple[int, int]) -> Labelled:
        image = by_file[file]
        listed = (image["height"], image["width"])
        if listed != size:
            hint = "; height and width are exchanged" if listed == size[::-1] else ""
            raise DataError(f"{file}: is {sides(size)}, but the JSON says {sides(listed)}{hint}", kind="picture-size")
        drawing, shapes = Drawing(size, found=len(annotations[image["id"]])), []
        for one in annotations[image["id"]]:
            mask, fault = _read_segmentation(one.segmentation, size)
            if fault:
                drawing.fault(f"{path}: {one.name}", fault, is_lost=mask is None)
            if mask is not None:
                is_crowd = one.is_crowd and not options.crowds_as_instances
                pixels = _draw(mask, size, f"{path}: {one.name}")
                shapes.append(Shape(classes.class_of_category[one.category_id], pixels, is_crowd))
        drawing.draw_stacked(shapes, classes.is_thing)
        return drawing.finish(last)

    if isinstance(folder, ImageIndex):
        left_out = folder.unlisted(files, UNLISTED)
    else:
        listed, left_out = list_images(folder, deep=True)
        left_out |= {UNLISTED: [str(path) for path in listed if path not in by_file]}
    return Found(classes, {"": sorted(files)}, label, left_out, notes, options.skip_bad)


def _read_images(entries: Sequence[Any], path: str) -> dict[Any, dict[str, Any]]:
    images: dict[Any, dict[str, Any]] = {}
    names: dict[str, Any] = {}
    for position, entry in enumerate(entries):
        image = read_entry(entry, IMAGE, f"{path}: images[{position}]", raise_errors)
        assert image is not None
        if image["id"] in images:
            raise DataError(
                f"{path}: image id {image['id']!r} appears twice in images ({images[image['id']]['file_name']} and "
                f"{image['file_name']}); give each image its own",
                kind="image-repeated",
            )
        if image["file_name"] in names:
            raise DataError(
                f"{path}: the file {image['file_name']} appears twice in images (ids {names[image['file_name']]!r} and "
                f"{image['id']!r}); join their annotations under one id",
                kind="image-repeated",
            )
        images[image["id"]] = image
        names[image["file_name"]] = image["id"]
    return images


def _read_annotations(entries: Sequence[Any], images: Mapping[Any, Any], path: str) -> dict[Any, list[_Annotation]]:
    """The annotations by image id."""
    annotations: dict[Any, list[_Annotation]] = {image_id: [] for image_id in images}
    for position, entry in enumerate(entries):
        where = f"{path}: annotations[{position}]"
        values = read_entry(entry, _ANNOTATION, where, raise_errors)
        assert values is not None
        if values["image_id"] not in images:
            raise DataError(
                f"{where}: of image {values['image_id']!r}, which is not in images"
                f"{other_type_hint(values['image_id'], images, 'images')}",
                kind="annotation-without-image",
            )
        file = images[values["image_id"]]["file_name"]
        name = f"annotation {entry.get('id', f'[{position}]')!r:.40} of {file}"
        one = _Annotation(values["category_id"], bool(values["iscrowd"]), entry.get("segmentation"), name)
        annotations[values["image_id"]].append(one)
    return annotations


def _drop_unused_root(
    categories: Sequence[Any], annotations: Mapping[Any, Sequence[_Annotation]]
) -> tuple[list[Any], list[str]]:
    """Without the category that stands for the whole data set in Roboflow's files: nothing uses it, and it has the name
    of another one, or is the supercategory of all others."""
    used = {one.category_id for own in annotations.values() for one in own}
    entries = [entry if isinstance(entry, dict) else {} for entry in categories]
    names = collections.Counter(str(entry.get("name")) for entry in entries)
    above = {str(entry.get("supercategory")) for entry in entries if entry.get("supercategory") != "none"}
    kept, notes = [], []
    for entry, original in zip(entries, categories):
        name = str(entry.get("name"))
        is_root = entry.get("supercategory") == "none" and above == {name}
        if type(entry.get("id")) is int and entry["id"] not in used and (names[name] > 1 or is_root):
            why = "its name repeated" if names[name] > 1 else "the supercategory of all others"
            notes.append(f"category {entry['id']} {name!r} is unused and {why}: left out")
            names[name] -= 1
        else:
            kept.append(original)
    return kept, notes


def _classes(categories: Sequence[Any], options: DetectionOptions, path: str) -> ClassTable:
    """All categories as things but those that are chosen as stuff, and the background as stuff."""
    entries = [entry if isinstance(entry, dict) else {} for entry in categories]
    names = [str(entry.get("name")) for entry in entries]
    _, stuff = choose_kinds(options, names, background=options.background)
    for entry, name in zip(entries, names):
        if options.background == name and entry.get("isthing") == 1 and name not in options.stuff:
            raise background_is_thing(name)
    classes = [
        {"isthing": 1} | entry | ({"isthing": 0} if name in stuff else {}) if entry else original
        for entry, name, original in zip(entries, names, categories)
    ]
    if options.background and options.background not in names:
        ids = [entry["id"] for entry in entries if type(entry.get("id")) is int]
        classes.append({"id": max(ids, default=0) + 1, "name": options.background, "isthing": 0})
    return parse_classes(classes, path)


def _read_segmentation(
    segmentation: Any, size: tuple[int, int]
) -> tuple[list[Polygon] | Mapping[str, Any] | None, str]:
    """The usable part of a segmentation (None if nothing is), and its first fault ("" if there is none)."""
    if segmentation is None:
        return None, NO_SEGMENTATION
    if isinstance(segmentation, dict):
        return (segmentation, "") if _is_rle(segmentation, size) else (None, BAD_RLE)
    if not isinstance(segmentation, list):
        return None, NESTED
    if not segmentation:
        return None, EMPTY
    faults = [polygon_fault(polygon, size) for polygon in segmentation]
    if (
        all(fault == FEW_POINTS for fault in faults)
        and len(segmentation) > 2
        and all(isinstance(polygon, list) and len(polygon) == 2 for polygon in segmentation)
    ):
        return None, NESTED  # [[x, y], [x, y], ...]
    sound = [polygon for polygon, fault in zip(segmentation, faults) if not fault]
    return sound or None, next((fault for fault in faults if fault), "")


def _is_rle(rle: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """True for RLE of the right size: counts that add up, or COCO's compressed text."""
    counts = rle.get("counts")
    listed = rle.get("size")
    if not isinstance(listed, list) or [type(side) for side in listed] != [int, int] or tuple(listed) != size:
        return False
    if isinstance(counts, list):
        whole = all(type(count) is int and 0 <= count <= size[0] * size[1] for count in counts)
        return whole and sum(counts) == size[0] * size[1]
    return isinstance(counts, str) and counts.isascii() and _sum_of_compressed(counts) == size[0] * size[1]


def _sum_of_compressed(text: str) -> int:
    """The sum of the counts in COCO's compressed RLE (5 bits a character, differences to the count before last); -1
    if it is not such text. pycocotools does not check it and reads past its end."""
    counts: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            if position >= len(text) or shift > 60:
                return -1
            code = ord(text[position]) - 48
            if not 0 <= code < 64:
                return -1
            value |= (code & 31) << shift
            more, shift, position = bool(code & 32), shift + 5, position + 1
            if not more and code & 16:
                value |= -1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        if counts[-1] < 0:
            return -1
    return sum(counts)


def _draw(mask: list[Polygon] | Mapping[str, Any], size: tuple[int, int], name: str) -> Bool[np.ndarray, "h w"]:
    """The pixels of polygons or RLE."""
    try:
        if isinstance(mask, list):
            return draw_polygons(mask, size)
        rle = coco_mask.frPyObjects(mask, *size) if isinstance(mask["counts"], list) else mask
        return coco_mask.decode(rle).astype(bool)
    except Exception as error:  # pycocotools raises that itself
        raise DataError(f"{name}: unusable segmentation ({error})", kind="segmentation-invalid") from error


def _find_files(images: Mapping[Any, Mapping[str, Any]], base: pathlib.Path) -> list[pathlib.Path]:
    """The file of each image, in their order; accents may be composed or decomposed, whichever is on disk.

    Raises:
      DataError: a file is missing.
    """
    files, missing = [], []
    for image in images.values():
        found = find_normalized(base / image["file_name"])
        files.append(found or base / image["file_name"])
        if found is None:
            missing.append(image["file_name"])
    if missing:
        hint = "; file_name has backslashes: replace them by /" if "\\" in missing[0] else ""
        if not hint and (base / pathlib.PurePosixPath(missing[0]).name).is_file():
            hint = f"; there is {base / pathlib.PurePosixPath(missing[0]).name}: --images is a folder too deep"
        raise DataError(
            f"{base / missing[0]}: no such image ({len(missing)} of {len(files)} missing){hint}", kind="picture-missing"
        )
    return files
