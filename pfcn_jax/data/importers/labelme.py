"""`prepare labelme`: LabelMe's JSON files, one an image. Shapes of one label and one `group_id` are one instance."""

from __future__ import annotations

import argparse
import base64
import binascii
import dataclasses
import io
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.coco_json import MAX_SIDE, Field, is_file_name, read_entry, show, whole
from pfcn_jax.data.example import DataError
from pfcn_jax.data.image_files import find_normalized, is_image
from pfcn_jax.data.importers.common import Found, add_label_flags, sort_classes, write_dataset
from pfcn_jax.data.importers.exports import require_size
from pfcn_jax.data.importers.files import read_json
from pfcn_jax.data.importers.labelled import Drawing, Labelled, Shape
from pfcn_jax.data.importers.polygons import OUTSIDE, draw_polygons, flatten_points, polygon_fault
from pfcn_jax.data.importers.registry import register
from pfcn_jax.data.importers.writer import read_image
from pfcn_jax.data.kinds import raise_errors

NO_LABEL = "have no label"
BAD_MASK = "have a mask that is no PNG in base64, or not of the size that its two points say"
BAD_POINTS = "have points that do not fit their shape_type"
IGNORED = "are labelled __ignore__ (void)"
NO_PAIRS = "have points that are not pairs of numbers ([[x, y], ...])"
NO_IMAGE = "have no file and no imageData"
_IGNORE = "__ignore__"  # LabelMe's own name for what becomes void
_FAR = 1e9  # no coordinate is that large
_CROWD_FLAGS = ("crowd", "iscrowd")


def _base_name(path: str) -> str:
    return pathlib.PureWindowsPath(path).name  # reads / and \\ alike


_SIDE = whole("", 1, MAX_SIDE)
_FILE = (
    Field("shapes", lambda value: isinstance(value, list), "a list of shapes"),
    Field(
        "imagePath", lambda value: is_file_name(value) and _base_name(value) not in ("", ".."), "text of a file name"
    ),
    Field("imageData", lambda value: value is None or isinstance(value, str), "text or null", default=None),
    Field("flags", lambda value: value is None or isinstance(value, dict), "an object", default=None),
    Field("imageHeight", lambda value: value is None or _SIDE.accepts(value), _SIDE.wanted, default=None),
    Field("imageWidth", lambda value: value is None or _SIDE.accepts(value), _SIDE.wanted, default=None),
)


@dataclasses.dataclass(frozen=True)
class _LabelFile:
    """A LabelMe file, without its image."""

    path: pathlib.Path
    shapes: list[Any]
    listed: tuple[int | None, int | None]  # imageHeight, imageWidth
    flags: tuple[str, ...]  # that are set
    is_embedded: bool  # the image is in the JSON alone


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", required=True, help="folder of LabelMe's JSON files, searched with its subfolders")
    parser.add_argument(
        "--images", metavar="DIR", help="folder of images (default: where each imagePath says, or in the JSON)"
    )
    add_label_flags(parser)


@register("labelme", help="LabelMe JSON files -> COCO-panoptic", add_flags=add_flags)
def run(args: argparse.Namespace) -> list[str]:
    folder = pathlib.Path(args.labels)
    files, missing, notes = _read_files(folder, pathlib.Path(args.images) if args.images else None)
    if missing and not args.skip_bad:
        raise DataError(
            f"{len(missing)} images {NO_IMAGE}, as {missing[0]}; name their folder by --images, or leave them out by "
            "--skip-bad",
            kind="picture-missing",
        )
    names = [shape.get("label") for file in files.values() for shape in file.shapes if isinstance(shape, dict)]
    labels = sorted({name for name in names if isinstance(name, str) and name and name != _IGNORE})
    classes, background = sort_classes(args, labels, is_complete=False)

    def label(image: pathlib.Path, size: tuple[int, int]) -> Labelled:
        return _draw(files[image], classes, background, size)

    def read(image: pathlib.Path) -> bytes:
        return _embedded_image(files[image].path) if files[image].is_embedded else read_image(image)

    left_out = {NO_IMAGE: missing, "have no LabelMe file": _find_unlabelled(files, args.images)}
    images = {"": sorted(files, key=lambda image: image.name)}
    return write_dataset(args, Found(classes, images, label, left_out, notes, args.skip_bad, read))


def _read_files(
    folder: pathlib.Path, folder_of_images: pathlib.Path | None
) -> tuple[dict[pathlib.Path, _LabelFile], list[str], list[str]]:
    """Image -> its label file; label files without an image; remarks."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of LabelMe files", kind="json-missing")
    files: dict[pathlib.Path, _LabelFile] = {}
    missing, other = [], []
    for path in sorted(folder.rglob("*.json")):
        content = read_json(path)
        if not isinstance(content, dict) or "shapes" not in content:
            other.append(str(path))
            continue
        values = read_entry(content, _FILE, str(path), raise_errors)
        assert values is not None
        image = _find_image(values["imagePath"], path, folder_of_images)
        if image is None and not values["imageData"]:
            missing.append(f"{values['imagePath']} of {path}")
            continue
        key = image or path.with_name(_base_name(values["imagePath"]))
        if key in files:
            raise DataError(f"{path} and {files[key].path}: both label {key}", kind="labels-contradict")
        flags = tuple(str(name) for name, value in (values["flags"] or {}).items() if value is True)
        listed = (values["imageHeight"], values["imageWidth"])
        files[key] = _LabelFile(path, values["shapes"], listed, flags, image is None)
    if not files and not missing:
        raise DataError(f"{folder}: no LabelMe file (a JSON with shapes and imagePath) in it", kind="json-missing")
    notes = [f"warning: {len(other)} JSON files have no shapes and are left out, as {other[0]}"] if other else []
    return files, missing, notes


def _find_unlabelled(files: Mapping[pathlib.Path, _LabelFile], folder_of_images: str | None) -> list[str]:
    """Images in the folder of images, or in those where labelled images lie, that no label file names."""
    there = set(pathlib.Path(folder_of_images).rglob("*")) if folder_of_images else set()
    for folder in {image.parent for image, file in files.items() if not file.is_embedded}:
        there |= set(folder.iterdir())
    known = {os.path.normpath(image) for image in files}
    return sorted(str(path) for path in there if is_image(path) and os.path.normpath(path) not in known)


def _find_image(name: str, path: pathlib.Path, folder_of_images: pathlib.Path | None) -> pathlib.Path | None:
    """The image of a label file: where `imagePath` says, or a file of its base name in the folders of either."""
    for base in (path.parent, *([folder_of_images] if folder_of_images else [])):
        for relative in (name, name.replace("\\", "/"), _base_name(name)):
            if (found := find_normalized(base / relative)) is not None:
                return pathlib.Path(os.path.normpath(found))  # one file, one name
    return None


def _embedded_image(path: pathlib.Path) -> bytes:
    try:
        return base64.b64decode(read_json(path)["imageData"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{path}: imageData is no base64 ({error})", kind="picture-unreadable") from error


def _draw(file: _LabelFile, classes: ClassTable, background: int | None, size: tuple[int, int]) -> Labelled:
    height, width = file.listed
    require_size((height or size[0], width or size[1]), size, file.path)
    drawing = Drawing(size, found=len(file.shapes))
    if file.flags:
        drawing.notes.append(f"the flag {file.flags[0]!r} is set; flags of images are not used")
    void = np.zeros(size, bool)
    groups: dict[Any, Shape] = {}
    for position, entry in enumerate(file.shapes):
        drawn = _read_shape(entry, size)
        if isinstance(drawn, str):
            drawing.fault(f"shapes[{position}] of {file.path}", drawn)
        elif entry["label"] == _IGNORE:
            void |= drawn
            drawing.leave_out(IGNORED)
        else:
            group = entry.get("group_id")
            key = (entry["label"], repr(group)) if group is not None else position
            is_crowd = _is_crowd(entry)
            if key in groups:
                drawing.join()
                drawn, is_crowd = drawn | groups[key].mask, is_crowd or groups[key].is_crowd
            groups[key] = Shape(classes.names.index(entry["label"]), drawn, is_crowd)
    drawing.draw_stacked(list(groups.values()), classes.is_thing)
    return drawing.finish(background, void)


def _is_crowd(shape: dict[str, Any]) -> bool:
    flags = shape.get("flags")
    return isinstance(flags, dict) and any(flags.get(name) is True for name in _CROWD_FLAGS)


def _read_shape(shape: Any, size: tuple[int, int]) -> Bool[np.ndarray, "h w"] | str:
    """The pixels of a shape; or the reason why it cannot be used."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"]:
        return NO_LABEL
    kind = shape.get("shape_type") or "polygon"  # files before LabelMe 3.5 have none
    points = flatten_points(shape.get("points"))
    if points is None:
        return NO_PAIRS
    if not all(abs(value) < _FAR for value in points):  # nor NaN
        return OUTSIDE
    if kind == "mask":
        return _decode_mask(shape.get("mask"), points, size)
    if kind == "circle":
        return _draw_circle(points, size) if len(points) == 4 else BAD_POINTS
    if kind == "rectangle" and len(points) == 4:
        x0, y0, x1, y1 = points
        points = [x0, y0, x1, y0, x1, y1, x0, y1]
    if kind not in ("polygon", "rectangle", "rotation"):
        return f"are of shape_type {show(kind)}, which has no area"
    return polygon_fault(points, size) or draw_polygons([points], size)


def _draw_circle(points: Sequence[float], size: tuple[int, int]) -> Bool[np.ndarray, "h w"] | str:
    """The pixels whose centers lie inside of the circle around the first point, through the second."""
    x, y, edge_x, edge_y = points
    rows, columns = np.arange(size[0])[:, None] + 0.5, np.arange(size[1]) + 0.5
    mask = (columns - x) ** 2 + (rows - y) ** 2 <= (edge_x - x) ** 2 + (edge_y - y) ** 2
    inside = 0 <= x <= size[1] and 0 <= y <= size[0]
    return mask if mask.any() or inside else OUTSIDE


def _decode_mask(text: Any, points: Sequence[float], size: tuple[int, int]) -> Bool[np.ndarray, "h w"] | str:
    """The pixels of a mask: a PNG in base64 of the box between two points, both included."""
    if len(points) != 4 or not isinstance(text, str):
        return BAD_MASK
    left, top, right, bottom = (math.floor(value + 0.5) for value in points)
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            if image.size != (right - left + 1, bottom - top + 1):
                return BAD_MASK
            part = np.asarray(image.convert("L") if image.mode not in ("1", "L") else image) > 0
    except Exception:  # Pillow's readers raise errors of many kinds
        return BAD_MASK
    mask = np.zeros(size, bool)
    rows = slice(max(top, 0), max(min(bottom + 1, size[0]), 0))
    columns = slice(max(left, 0), max(min(right + 1, size[1]), 0))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return OUTSIDE
    mask[rows, columns] = part[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return mask
