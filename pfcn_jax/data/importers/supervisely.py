"""`prepare supervisely`: a project of Supervisely, `meta.json` with folders `ann` and `img` for each data set.

Objects lie above those before them in the file. Points are pixels, and a polygon covers the pixels of its border, as
Supervisely draws it.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import io
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool
from PIL import Image

from pfcn_jax.data.coco_json import show
from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.common import Found, sort_classes, write_dataset
from pfcn_jax.data.importers.exports import (
    add_export_flags,
    list_export_images,
    name_splits,
    require_size,
)
from pfcn_jax.data.importers.files import read_json
from pfcn_jax.data.importers.image_index import ImageIndex
from pfcn_jax.data.importers.labelled import Labelled
from pfcn_jax.data.importers.objects import ArrayPart, LabelObject, draw_objects, join_groups
from pfcn_jax.data.importers.polygons import NESTED, flatten_points, polygon_fault
from pfcn_jax.data.importers.registry import register

BAD_BITMAP = "have a bitmap that cannot be decoded, or lies outside of the image"
NO_CLASS = "have a class that meta.json does not list"
WITHOUT_FILE = "have no annotation file"
_MAX_BITMAP = 1 << 28  # bytes of a bitmap's PNG


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_export_flags(parser, "folder with meta.json")


@register("supervisely", help="a Supervisely project -> COCO-panoptic", add_flags=add_flags)
def run(args: argparse.Namespace) -> list[str]:
    root = _find_root(pathlib.Path(args.input))
    found = from_supervisely(root, ImageIndex(*list_export_images(args, root)), args)
    return [f"{root}: a Supervisely project", *write_dataset(args, found)]


def from_supervisely(root: pathlib.Path, index: ImageIndex, args: argparse.Namespace) -> Found:
    """The images and labels of a project.

    Args:
      index: the images.
      args: with `things`, `stuff`, `background` and `skip_bad`.

    Raises:
      DataError: no data set, a class without a title, or an annotation file whose image is missing.
    """
    shapes = _read_meta(root / "meta.json")
    classes, background = sort_classes(args, list(shapes))
    annotations: dict[pathlib.Path, pathlib.Path] = {}
    splits: dict[str, list[pathlib.Path]] = {}
    for folder in sorted(path for path in root.rglob("ann") if path.is_dir()):
        data_set = folder.parent
        files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
        images = index.require_all([_image_name(path, data_set) for path in files], folder)
        annotations |= dict(zip(images, files))
        splits[data_set.relative_to(root).as_posix()] = images
    if not annotations:
        raise DataError(f"{root}: no data set with a folder ann of JSON files", kind="label-missing")

    def label(image: pathlib.Path, size: tuple[int, int]) -> Labelled:
        path = annotations[image]
        objects = read_objects(read_json(path), path, size, shapes)
        return draw_objects(objects, size, classes, background)

    without = [str(path) for path in index.files if path not in annotations and path.parent.name == "img"]
    return Found(classes, name_splits(splits), label, {WITHOUT_FILE: without}, skip_bad=args.skip_bad)


def _find_root(folder: pathlib.Path) -> pathlib.Path:
    found = [path for path in (folder, *sorted(folder.glob("*"))) if (path / "meta.json").is_file()]
    if len(found) != 1:
        there = f"{len(found)} projects, as {found[0]}" if found else "no meta.json"
        raise DataError(f"{folder}: {there}; --input is the folder of one Supervisely project", kind="json-missing")
    return found[0]


def _read_meta(path: pathlib.Path) -> dict[str, str]:
    """The shape of each class ("any" if it has none)."""
    content = read_json(path)
    entries = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: classes is {show(entries)}, must be a list of classes", kind="json-part-missing")
    shapes: dict[str, str] = {}
    for position, entry in enumerate(entries):
        title = entry.get("title") if isinstance(entry, dict) else None
        if not isinstance(title, str) or not title:
            raise DataError(f"{path}: classes[{position}]: title is {show(title)}, must be text", kind="value-invalid")
        shapes[title] = str(entry.get("shape", "any"))
    return shapes


def _image_name(path: pathlib.Path, data_set: pathlib.Path) -> str:
    """The path of the image of `ann/NAME.EXT.json`, or in old projects of `ann/NAME.json`."""
    name = path.name.removesuffix(".json")
    images = data_set / "img"
    if not (images / name).is_file() and images.is_dir():
        name = next((other.name for other in sorted(images.glob(f"{_escape(name)}.*")) if other.stem == name), name)
    return str(images / name)


def _escape(text: str) -> str:
    return "".join(f"[{char}]" if char in "[]*?" else char for char in text)


def read_objects(
    content: Any, path: pathlib.Path, size: tuple[int, int], shapes: Mapping[str, str]
) -> list[LabelObject]:
    """The objects of an annotation file.

    Raises:
      DataError: not such a file, or of another image size than `size`.
    """
    entries = content.get("objects") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{path}: objects is {show(entries)}, must be a list", kind="json-part-missing")
    listed = content.get("size")
    if isinstance(listed, dict) and (listed.get("height"), listed.get("width")) != (None, None):
        require_size((listed.get("height"), listed.get("width")), size, path)
    objects: list[tuple[str, LabelObject]] = []
    for position, entry in enumerate(entries):
        name = f"objects[{position}] of {path}"
        if not isinstance(entry, dict):
            raise DataError(f"{name}: must be an object, got {show(entry)}", kind="value-invalid")
        title = entry.get("classTitle")
        if not isinstance(title, str) or title not in shapes:
            objects.append(("", LabelObject(name, "", fault=NO_CLASS)))
            continue
        kind = entry.get("geometryType") or shapes[title]
        if kind == "any":  # old files do not say it
            kind = "bitmap" if entry.get("bitmap") else "polygon"
        part, fault = _read_geometry(entry, str(kind), size)
        instance = entry.get("instance")  # the same for figures that are bound to one object
        one = LabelObject(name, title, (part,) if part else (), fault, layer=position)
        objects.append((instance if isinstance(instance, str) else "", one))
    return join_groups(objects)


def _read_geometry(entry: Mapping[str, Any], kind: str, size: tuple[int, int]) -> tuple[ArrayPart | None, str]:
    """The pixels of an object, or None and the reason why it has none."""
    if kind == "bitmap":
        part = _read_bitmap(entry.get("bitmap"), size)
        return part, "" if part else BAD_BITMAP
    if kind == "polygon":
        return _read_polygon(entry.get("points"), size)
    return None, f"are of the kind {kind:.40}, which is no mask"


def _read_bitmap(bitmap: Any, size: tuple[int, int]) -> ArrayPart | None:
    origin = bitmap.get("origin") if isinstance(bitmap, dict) else None
    if not isinstance(origin, list) or [type(value) for value in origin] != [int, int] or min(origin) < 0:
        return None
    try:
        data = base64.b64decode(bitmap.get("data"), validate=True)
        if not data.startswith(b"\x89PNG"):
            stream = zlib.decompressobj()
            data = stream.decompress(data, _MAX_BITMAP)
            if not stream.eof:
                return None
        mask = _decode_bitmap(data, (size[0] - origin[1], size[1] - origin[0]))
    except (TypeError, ValueError, binascii.Error, zlib.error, OSError, SyntaxError, Image.DecompressionBombError):
        return None
    return ArrayPart(mask, (origin[1], origin[0]))


def _decode_bitmap(data: bytes, limit: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The opaque pixels of a PNG with transparency, else those that are not 0.

    Raises:
      ValueError: larger than `limit` (height, width).
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.height > limit[0] or image.width > limit[1]:
            raise ValueError("outside of the image")
        if "A" in image.getbands() or "transparency" in image.info:
            return np.asarray(image.convert("RGBA"))[:, :, 3] > 0
        values = np.asarray(image)
    return np.asarray(values.any(axis=-1) if values.ndim == 3 else values > 0)


def _read_polygon(points: Any, size: tuple[int, int]) -> tuple[ArrayPart | None, str]:
    exterior = points.get("exterior") if isinstance(points, dict) else None
    interior = (points.get("interior") or []) if isinstance(points, dict) else None
    if not isinstance(interior, list):
        return None, NESTED
    rings = [flatten_points(ring) for ring in (exterior, *interior)]
    for ring in rings:
        if fault := NESTED if ring is None else polygon_fault(ring, size):
            return None, fault
    pixels = [np.rint(np.array(ring).reshape(-1, 2)).astype(np.int32) for ring in rings]
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [pixels[0]], 1)
    if len(pixels) > 1:
        cv2.fillPoly(mask, pixels[1:], 0)
    return ArrayPart(mask.astype(bool)), ""
