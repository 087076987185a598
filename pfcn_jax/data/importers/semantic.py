"""`prepare semantic`: PNGs of category ids. Stuff: a segment a class; things: an instance a connected part."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from pfcn_jax.codec import id_to_rgb
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.coco_json import parse_classes
from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.common import Found, add_output_flags, list_images, write_dataset
from pfcn_jax.data.importers.files import read_json
from pfcn_jax.data.importers.labelled import Drawing, Labelled, Shape, split_components
from pfcn_jax.data.importers.mask_files import MaskFolder, read_values
from pfcn_jax.data.importers.registry import register
from pfcn_jax.data.importers.writer import Labeller

VOID = -1  # in a map of class ids


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--masks", required=True, help="folder of PNGs with the images' names")
    parser.add_argument(
        "--classes",
        required=True,
        help='JSON: [{"id": 1, "name": "car", "isthing": 1}, ...]; ids are the PNGs\' values',
    )
    parser.add_argument("--ignore", type=int, nargs="*", default=[255], help="values that become void (default: 255)")
    add_output_flags(parser)


@register("semantic", help="PNGs of category ids -> COCO-panoptic", add_flags=add_flags)
def run(args: argparse.Namespace) -> list[str]:
    classes = _read_classes(pathlib.Path(args.classes))
    images, left_out = list_images(args.images)
    folder = MaskFolder(pathlib.Path(args.masks))
    notes = folder.compare(images, args.images, missing_is_error=True)
    label = from_semantic(folder, classes, ignore=args.ignore)
    return write_dataset(args, Found(classes, {"": images}, label, left_out, notes))


def from_semantic(folder: MaskFolder, classes: ClassTable, *, ignore: Sequence[int]) -> Labeller:
    """Labels from PNGs of category ids.

    Args:
      ignore: values that become void. Any other value that is no category id is an error.
    """
    class_of = classes.class_of_category

    def label(image: pathlib.Path, size: tuple[int, int]) -> Labelled:
        path = folder.require(image)
        values = read_values(path, size)
        class_map = np.full(size, VOID, np.int32)
        for value in np.unique(values).tolist():
            if value in ignore:
                continue
            if value not in class_of:
                raise DataError(
                    f"{path}: value {value} is no category id{_color_hint(values, classes)} (add it to the classes, or "
                    "to --ignore)",
                    kind="label-value",
                )
            class_map[values == value] = class_of[value]
        drawing = Drawing(size)
        draw_classes(drawing, class_map, classes.is_thing)
        return drawing.finish()

    return label


def draw_classes(drawing: Drawing, class_map: Int32[np.ndarray, "h w"], is_thing: Sequence[bool]) -> None:
    """Draws a map of contiguous class ids and VOID: a segment for stuff, one for each connected part of a thing."""
    for class_id in np.unique(class_map[class_map != VOID]).tolist():
        mask = (class_map == class_id).astype(np.int32)
        parts = split_components(mask) if is_thing[class_id] else mask
        for part in range(1, int(parts.max()) + 1):
            drawing.draw(Shape(class_id, parts == part))


def _color_hint(values: np.ndarray, classes: ClassTable) -> str:
    """Says so if the values of an RGB mask are the colors of the classes."""
    for value in np.unique(values[values > 255]).tolist():
        color = tuple(id_to_rgb(np.array(value)).tolist())
        if color in classes.colors:
            name = classes.names[classes.colors.index(color)]
            return f"; the mask is color-coded: {color} is the color of {name!r}. Use `prepare palette`"
    return "; an RGB mask holds colors: use `prepare palette`" if int(values.max()) > 0xFFFF else ""


def _read_classes(path: pathlib.Path) -> ClassTable:
    classes = parse_classes(read_json(path), str(path))
    if classes.num_things == 0:
        raise DataError(f'{path}: no class has "isthing": 1; at least one must be countable', kind="no-thing")
    return classes
