"""`prepare palette`: semantic masks in the colors of their classes (CamVid), with a table of the colors."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np

from pfcn_jax.data.classes import ClassTable, parse_color
from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.colors import ColorEntry, match_colors, read_color_table, read_colors
from pfcn_jax.data.importers.common import (
    Found,
    add_kind_flags,
    add_output_flags,
    add_skip_bad_flag,
    choose_kinds,
    list_images,
    write_dataset,
)
from pfcn_jax.data.importers.labelled import Drawing, Labelled
from pfcn_jax.data.importers.mask_files import MaskFolder
from pfcn_jax.data.importers.registry import register
from pfcn_jax.data.importers.semantic import VOID, draw_classes
from pfcn_jax.data.importers.writer import Labeller

UNKNOWN = "are colors that the table lacks (add them, or name them by --void)"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--masks", required=True, help="folder of PNGs with the images' names")
    parser.add_argument(
        "--colors",
        required=True,
        metavar="FILE",
        help='JSON [{"name": "car", "color": [64, 0, 128], "isthing": 1}, ...], CSV name,r,g,b[,isthing], or text with '
        "`64 0 128 car` (CamVid's label_colors.txt) or `car:64,0,128::` (CVAT's labelmap.txt) a line",
    )
    parser.add_argument(
        "--void",
        nargs="*",
        default=["void"],
        metavar="NAME",
        help="classes of the table, or colors as #rrggbb, that become void (default: void, in any case)",
    )
    add_kind_flags(parser, default="as the table says, else stuff")
    add_skip_bad_flag(parser)
    add_output_flags(parser)


@register("palette", help="masks in class colors (CamVid) -> COCO-panoptic", add_flags=add_flags)
def run(args: argparse.Namespace) -> list[str]:
    path = pathlib.Path(args.colors)
    entries, void = _divide(read_color_table(path), args.void, path)
    classes = _classes(args, entries, path)
    images, left_out = list_images(args.images)
    folder = MaskFolder(pathlib.Path(args.masks))
    notes = folder.compare(images, args.images, missing_is_error=True)
    label = from_colors(folder, classes, void)
    return write_dataset(args, Found(classes, {"": images}, label, left_out, notes, args.skip_bad))


def from_colors(folder: MaskFolder, classes: ClassTable, void: Sequence[tuple[int, int, int]]) -> Labeller:
    """Labels from masks in the colors of `classes`; the colors of `void` become void."""
    known = [*classes.colors, *void]

    def label(image: pathlib.Path, size: tuple[int, int]) -> Labelled:
        path = folder.require(image)
        indices, unknown = match_colors(read_colors(path, size), known, path)
        drawing = Drawing(size)
        for color, pixels in unknown.items():
            drawing.fault(f"{color} in {pixels} pixels of {path}", UNKNOWN)
        draw_classes(drawing, np.where(indices < len(classes), indices, VOID).astype(np.int32), classes.is_thing)
        return drawing.finish()

    return label


def _divide(
    entries: Sequence[ColorEntry], wanted: Sequence[str], path: pathlib.Path
) -> tuple[list[ColorEntry], list[tuple[int, int, int]]]:
    """The classes of the table, and the colors that become void.

    Raises:
      DataError: a name of `--void` that the table lacks.
    """
    names = {name.casefold() for name in wanted if parse_color(name) is None} - {"void"}
    unknown = names - {entry.name.casefold() for entry in entries}
    if unknown:
        raise DataError(f"--void {min(unknown)}: no class of {path}, and no color as #rrggbb", kind="category-unknown")
    colors = [color for name in wanted if (color := parse_color(name)) is not None]
    names |= {"void"} & {name.casefold() for name in wanted}
    classes = [entry for entry in entries if entry.name.casefold() not in names and entry.color not in colors]
    return classes, [*colors, *(entry.color for entry in entries if entry not in classes)]


def _classes(args: argparse.Namespace, entries: Sequence[ColorEntry], path: pathlib.Path) -> ClassTable:
    """The class table, with category ids from 1 in the order of the file."""
    said = {entry.name: entry.is_thing for entry in entries}
    if args.things or args.stuff:
        things, _ = choose_kinds(args, list(said))
    else:
        things = [name for name, is_thing in said.items() if is_thing]
    if not things:
        raise DataError(f"{path}: no class is a thing; name the countable ones by --things", kind="no-thing")
    table = [
        {"id": number, "name": entry.name, "isthing": int(entry.name in things), "color": list(entry.color)}
        for number, entry in enumerate(entries, start=1)
    ]
    return ClassTable.from_coco(table)
