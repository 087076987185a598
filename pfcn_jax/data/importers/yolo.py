"""`prepare yolo`: YOLO segmentation labels (`class x y x y ...` in 0..1, a line an object) that a data.yaml describes.

The layouts of Ultralytics (`images/train`, `labels/train`) and of Roboflow (`train/images`, `train/labels`).
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pfcn_jax.data.coco_json import show
from pfcn_jax.data.example import DataError
from pfcn_jax.data.image_files import is_image, yolo_label_path
from pfcn_jax.data.importers.common import (
    SPLIT_NAMES,
    Found,
    add_label_flags,
    list_images,
    sort_classes,
    write_dataset,
)
from pfcn_jax.data.importers.files import read_file, read_text
from pfcn_jax.data.importers.labelled import Drawing, Labelled, Shape
from pfcn_jax.data.importers.polygons import FEW_POINTS, draw_polygons
from pfcn_jax.data.importers.registry import register

BOX = "are boxes without a polygon (5 numbers a line; export as segmentation)"
NO_NUMBERS = "have something else than numbers on their line"
ODD = "have an x without a y (an odd number of coordinates)"
NOT_NORMALIZED = "have coordinates outside of 0..1 (fractions of width and height are wanted)"
UNKNOWN_CLASS = "have a class that the names of the data.yaml lack"
_NO_FILE = "no label file; written as images without objects, as YOLO reads them"
_MARGIN = 1e-3  # exporters round, so coordinates may lie this far outside


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="data.yaml, or the folder that it lies in")
    add_label_flags(parser, own_splits=True)


@register("yolo", help="YOLO segmentation with a data.yaml -> COCO-panoptic", add_flags=add_flags)
def run(args: argparse.Namespace) -> list[str]:
    path = pathlib.Path(args.data)
    path = path / "data.yaml" if path.is_dir() else path
    content = _read_yaml(path)
    names = _read_names(content, path)
    classes, background = sort_classes(args, list(names.values()))
    class_ids = {index: classes.names.index(name) for index, name in names.items()}
    images, left_out, notes = _find_images(content, path)
    notes += _compare(images, path)

    def label(image: pathlib.Path, size: tuple[int, int]) -> Labelled:
        return _read_labels(label_path(image), class_ids, size, classes.is_thing, background)

    return write_dataset(args, Found(classes, images, label, left_out, notes, args.skip_bad))


def label_path(image: pathlib.Path) -> pathlib.Path:
    """The label file of an image: where YOLO has it, or beside the image if it is only there."""
    wanted, beside = yolo_label_path(image), image.with_suffix(".txt")
    return beside if not wanted.exists() and beside.exists() else wanted


def _read_yaml(path: pathlib.Path) -> dict[Any, Any]:
    data = read_file(path)
    try:
        content = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not YAML ({' '.join(str(error).split())})", kind="label-unreadable") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {show(content)}, wanted: names and train", kind="label-unreadable")
    return content


def _read_names(content: Mapping[str, Any], path: pathlib.Path) -> dict[int, str]:
    """Class index -> name."""
    names = content.get("names")
    if not isinstance(names, (list, dict)) or not names:
        raise DataError(
            f"{path}: names is {show(names)}, wanted: the class names as a list, or as index: name",
            kind="category-invalid",
        )
    found: dict[int, str] = {}
    for index, name in enumerate(names) if isinstance(names, list) else names.items():
        if isinstance(index, str) and index.isdecimal():
            index = int(index)
        if type(index) is not int or index < 0 or index in found:
            raise DataError(f"{path}: names: the index {show(index)} is no number of its own", kind="category-invalid")
        if type(name) not in (int, str) or name == "":
            raise DataError(
                f"{path}: names: class {index} is {show(name)}, put quotes around it", kind="category-invalid"
            )
        found[index] = str(name)
    repeated = [name for name in found.values() if list(found.values()).count(name) > 1]
    if repeated:
        raise DataError(f"{path}: names: {repeated[0]!r} appears twice", kind="category-invalid")
    count = content.get("nc", len(found))
    if count != len(found):
        raise DataError(f"{path}: nc is {show(count)}, but names has {len(found)} classes", kind="category-invalid")
    return found


def _find_images(
    content: Mapping[str, Any], path: pathlib.Path
) -> tuple[dict[str, list[pathlib.Path]], dict[str, list[str]], list[str]]:
    """The images by split, those that are not decoded by reason, and remarks."""
    images: dict[str, list[pathlib.Path]] = {}
    left_out: dict[str, list[str]] = {}
    notes = []
    for split in (split for split in SPLIT_NAMES if content.get(split)):
        entries = content[split] if isinstance(content[split], list) else [content[split]]
        for entry in entries:
            if not isinstance(entry, str) or "\0" in entry:
                raise DataError(f"{path}: {split} is {show(entry)}, wanted: a folder or a list file")
            place = _locate(entry, content.get("path"), path)
            if place is None and split == "test":
                notes.append(f"warning: {path} names {entry} as test, which is not there: left out")
                continue
            if place is None:
                raise DataError(
                    f"{path}: {split} is {entry!r}, but there is no such folder below {path.parent}; correct the entry",
                    kind="picture-missing",
                )
            found, unreadable = _read_list(place) if place.is_file() else list_images(place, deep=True)
            images.setdefault(split, []).extend(found)
            for reason, names in unreadable.items():
                left_out.setdefault(reason, []).extend(names)
    if not images:
        raise DataError(f"{path}: names no images; wanted: train and val, each a folder or a list file")
    return {split: list(dict.fromkeys(part)) for split, part in images.items()}, left_out, notes


def _locate(entry: str, base: Any, path: pathlib.Path) -> pathlib.Path | None:
    """The folder or list file of an entry; None if there is none.

    An entry is relative to `path:` (which is relative to the YAML file), or else to the YAML file. Roboflow writes
    `../train/images` for a folder beside the YAML file.
    """
    entry = entry.replace("\\", "/")
    bases = [path.parent / base.replace("\\", "/")] if isinstance(base, str) and base else []
    for place in (*bases, path.parent):
        for name in (entry, entry.removeprefix("../")):
            if os.path.exists(place / name):
                return place / name
    return None


def _read_list(path: pathlib.Path) -> tuple[list[pathlib.Path], dict[str, list[str]]]:
    """The images that a list file names, relative to it or to the folders above it."""
    lines = [line.strip().replace("\\", "/") for line in read_text(path).splitlines()]
    found: list[pathlib.Path] = []
    other: list[pathlib.Path] = []
    for line in filter(None, lines):
        place = next((base / line for base in path.parents if os.path.isfile(base / line)), None)
        if place is None:
            raise DataError(f"{path}: {line}: no such image", kind="picture-missing")
        (found if is_image(place) else other).append(place)
    if not found:
        raise DataError(f"{path}: names no image")
    return found, {"are no images by their suffix": [str(place) for place in other]} if other else {}


def _compare(images: Mapping[str, Sequence[pathlib.Path]], path: pathlib.Path) -> list[str]:
    """Lines about label files without an image.

    Raises:
      DataError: no image has a label file.
    """
    wanted = {label_path(image) for part in images.values() for image in part}
    folders = {place.parent for place in wanted}
    there = {place for folder in folders if folder.is_dir() for place in folder.glob("*.txt")}
    if not wanted & there:
        raise DataError(
            f"{path}: none of {len(wanted)} images has a label file (looked for {min(wanted)})", kind="label-missing"
        )
    orphans = sorted(place for place in there - wanted if place.name != "classes.txt")
    return [f"warning: {len(orphans)} label files belong to no image, as {orphans[0]}"] if orphans else []


def _read_labels(
    path: pathlib.Path,
    class_ids: Mapping[int, int],
    size: tuple[int, int],
    is_thing: Sequence[bool],
    background: int | None,
) -> Labelled:
    exists = path.is_file()
    lines = read_text(path).splitlines() if exists else []
    numbered = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    drawing = Drawing(size, found=len(numbered))
    if not exists:
        drawing.notes.append(_NO_FILE)
    shapes = []
    for number, words in numbered:
        parsed = _parse_line(words, class_ids)
        if isinstance(parsed, str):
            drawing.fault(f"line {number} of {path}", parsed)
            continue
        index, fractions = parsed
        polygon = [value * size[1 - position % 2] for position, value in enumerate(fractions)]
        shapes.append(Shape(class_ids[index], draw_polygons([polygon], size)))
    drawing.draw_stacked(shapes, is_thing)
    return drawing.finish(background)


def _parse_line(words: Sequence[str], class_ids: Mapping[int, int]) -> tuple[int, list[float]] | str:
    """The class index and x, y, x, y, ... in 0..1 of a line; or the reason why it cannot be used."""
    try:
        index, *values = map(float, words)
    except ValueError:
        return NO_NUMBERS
    if not all(map(math.isfinite, (index, *values))):
        return NO_NUMBERS
    if index not in class_ids:
        return UNKNOWN_CLASS
    if len(values) in (4, 5):  # 5: with a confidence
        return BOX
    if len(values) < 6:
        return FEW_POINTS
    if len(values) % 2:
        return ODD
    if min(values) < -_MARGIN or max(values) > 1 + _MARGIN:
        return NOT_NORMALIZED
    return int(index), values
