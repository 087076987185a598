"""CVAT's XML ("CVAT for images 1.1"): polygons, ellipses and masks, with layers and groups."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from pfcn_jax.data.coco_json import MAX_SIDE
from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.objects import (
    BAD_RLE,
    NO_LABEL,
    LabelObject,
    MaskPart,
    Part,
    ellipse_points,
    join_groups,
    read_polygon,
)
from pfcn_jax.data.importers.xml_files import read_xml

# Elements that have no pixels.
_REFUSED = {
    "box": "are boxes (a box alone is no mask)",
    "polyline": "are polylines",
    "points": "are points",
    "cuboid": "are cuboids",
    "skeleton": "are skeletons",
}
_NO_SHAPE = ("tag",)  # labels of the whole image


@dataclasses.dataclass(frozen=True)
class XmlImage:
    """An `<image>` element.

    Fields:
      name: path as CVAT knows it.
      subset: of a project; "" in a task.
      size: (height, width).
    """

    name: str
    subset: str
    size: tuple[int, int]
    element: Element


def read_cvat_xml(path: pathlib.Path) -> tuple[list[str], list[XmlImage]]:
    """The labels, in CVAT's order, and the images of an XML file.

    Raises:
      DataError: not such a file, or a video's, or an image without name or size.
    """
    root = read_xml(path)
    if root.tag != "annotations":
        raise DataError(f"{path}: no XML of CVAT (its root is <{root.tag}>, not <annotations>)", kind="label-format")
    if root.find("track") is not None:
        raise DataError(f"{path}: has tracks; export the task as CVAT for images 1.1", kind="label-format")
    names = [label.findtext("name", "") for label in root.iterfind("./meta//labels/label")]
    images = [_read_image(element, path) for element in root.iterfind("image")]
    if not images:
        raise DataError(f"{path}: no <image>; is it CVAT for images 1.1?", kind="label-format")
    used = [shape.get("label", "") for image in images for shape in image.element if shape.tag not in _NO_SHAPE]
    return list(dict.fromkeys(name for name in names or sorted(used) if name)), images


def _read_image(element: Element, path: pathlib.Path) -> XmlImage:
    name = element.get("name", "")
    sides = []
    for key in ("height", "width"):
        text = element.get(key, "")
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_SIDE):
            raise DataError(
                f"{path}: image {name!r}: {key} is {text!r:.40}, must be a whole number", kind="value-invalid"
            )
        sides.append(int(text))
    if not name:
        raise DataError(f"{path}: image {element.get('id')!r} has no name", kind="entry-incomplete")
    return XmlImage(name, element.get("subset", ""), (sides[0], sides[1]), element)


def read_objects(image: XmlImage, names: Sequence[str]) -> list[LabelObject]:
    """The objects of an image; shapes of one label that CVAT groups are one object."""
    shapes = []
    for position, shape in enumerate(image.element):
        if shape.tag not in _NO_SHAPE:
            group = shape.get("group_id", "").strip()
            one = _read_shape(shape, f"{shape.tag} {position} of {image.name}", image.size, names)
            shapes.append((group if group != "0" else "", one))
    return join_groups(shapes)


def _read_shape(shape: Element, name: str, size: tuple[int, int], names: Sequence[str]) -> LabelObject:
    label = shape.get("label", "")
    layer = _numbers([shape.get("z_order", "0")]) or [0]
    part: Part | None = None
    fault = _REFUSED.get(shape.tag, f"are of an unknown kind (<{shape.tag}>)")
    if shape.tag == "polygon":
        part, fault = read_polygon(_numbers(shape.get("points", "").replace(";", ",").split(",")), size)
    elif shape.tag == "ellipse":
        values = _numbers(shape.get(key, default) for key, default in _ELLIPSE.items())
        points = values and ellipse_points((values[0], values[1]), (values[2], values[3]), values[4])
        part, fault = read_polygon(points, size)
    elif shape.tag == "mask":
        part = _mask(shape, size)
        fault = "" if part else BAD_RLE
    if label not in names:
        fault = NO_LABEL
    return LabelObject(name, label, (part,) if part and not fault else (), fault, layer=int(layer[0]))


_ELLIPSE = {"cx": "", "cy": "", "rx": "", "ry": "", "rotation": "0"}


def _mask(shape: Element, size: tuple[int, int]) -> Part | None:
    """The mask of a `<mask>`: run lengths, row by row, of a box in the image; None if they do not fit."""
    counts = _whole(shape.get("rle", "").split(","))
    box = _whole(shape.get(key, "") for key in ("left", "top", "width", "height"))
    if not counts or not box:
        return None
    left, top, width, height = box
    if sum(counts) != width * height or not width * height or left + width > size[1] or top + height > size[0]:
        return None
    return MaskPart(tuple(counts), (height, width), (top, left))


def _whole(texts: Iterable[str]) -> list[int] | None:
    """Whole numbers from 0 on; None if any is not."""
    words = [text.strip() for text in texts]
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        return None
    return [int(word) for word in words]


def _numbers(texts: Iterable[str]) -> list[float] | None:
    """Finite numbers; None if any is not."""
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None
