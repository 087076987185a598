"""`prepare voc`: Pascal VOC's `JPEGImages`, `SegmentationClass`, `SegmentationObject` and `ImageSets/Segmentation`.

Without SegmentationObject the connected parts of a class are instances. Masks hold palette indices (VOC) or colors
(exports of CVAT and others, with their labelmap.txt). 255 is void.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

from pfcn_jax.data.classes import Color
from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.colors import (
    has_indices,
    match_colors,
    pack,
    read_color_table,
    read_colors,
    voc_color,
)
from pfcn_jax.data.importers.common import (
    Found,
    add_label_flags,
    list_images,
    sort_classes,
    write_dataset,
)
from pfcn_jax.data.importers.files import read_text
from pfcn_jax.data.importers.labelled import Drawing, Labelled, Shape
from pfcn_jax.data.importers.mask_files import MaskFolder, read_values
from pfcn_jax.data.importers.registry import register
from pfcn_jax.data.importers.semantic import VOID, draw_classes

NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
NO_CLASS = "lie on no class (background or void in SegmentationClass)"
SEVERAL = "lie on several classes in SegmentationClass"
UNKNOWN = "are values or colors of SegmentationClass that stand for no class (--classes)"
NO_OBJECT = "pixels of a thing class that SegmentationObject does not number become void"
_BORDER = 255
_BACKGROUND = ("background", "_background_", "__background__")
_NO_MASK = "have no PNG in SegmentationClass"
_NO_IMAGE = "are named by ImageSets, but are not in JPEGImages"
NOT_LISTED = "are in no list of ImageSets/Segmentation"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help="folder with JPEGImages, or one with a single such folder in it")
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="a name a line (line i is value i, or value i + 1 without a line `background`), or a table of colors, as "
        "CVAT's labelmap.txt (default: VOC's 20)",
    )
    add_label_flags(parser, own_splits=True)


@register("voc", help="Pascal VOC's class and object PNGs -> COCO-panoptic", add_flags=add_flags)
def run(args: argparse.Namespace) -> list[str]:
    root = _find_root(pathlib.Path(args.root))
    table = _read_names(pathlib.Path(args.classes)) if args.classes else _palette(["background", *NAMES])
    names = [name for name, _ in table[1:]]
    classes, background = sort_classes(args, names)
    class_masks = MaskFolder(root / "SegmentationClass")
    object_masks = MaskFolder(root / "SegmentationObject") if (root / "SegmentationObject").is_dir() else None
    images, left_out = _find_images(root, class_masks)
    colors = [color for _, color in table]
    lookup = np.array([VOID, *(classes.names.index(name) for name in names)], np.int32)  # 0: background

    def label(image: pathlib.Path, size: tuple[int, int]) -> Labelled:
        drawing = Drawing(size)
        values = read_class_mask(class_masks.require(image), size, colors, drawing)
        void = values < 0
        class_map = np.where(values > 0, lookup[np.maximum(values, 0)], VOID)
        if object_masks is None:
            draw_classes(drawing, class_map, classes.is_thing)
        else:
            path = object_masks.require(image)
            void |= draw_object_mask(drawing, read_object_mask(path, size), class_map, classes.is_thing, path)
        return drawing.finish(background, void)

    notes = [] if object_masks else ["no SegmentationObject: connected parts of a class are instances"]
    return write_dataset(args, Found(classes, images, label, left_out, notes, args.skip_bad))


def _find_root(root: pathlib.Path) -> pathlib.Path:
    """The folder with JPEGImages: `root`, or the only one below it (VOCdevkit/VOC2012)."""
    below = sorted(path.parent for path in (*root.glob("*/JPEGImages"), *root.glob("*/*/JPEGImages")))
    if (root / "JPEGImages").is_dir():
        return root
    if len(below) != 1:
        there = f"several: {', '.join(path.name for path in below)}" if below else "none"
        raise DataError(f"{root}: wanted a folder with JPEGImages and SegmentationClass in it; there is {there}")
    return below[0]


def _palette(names: Sequence[str]) -> list[tuple[str, Color]]:
    return [(name, voc_color(index)) for index, name in enumerate(names)]


def _read_names(path: pathlib.Path) -> list[tuple[str, Color]]:
    """(name, color) by value of the masks; 0 is the background."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    names = [line for line in lines if line and not line.startswith("#") and line != "__ignore__"]
    if not names:
        raise DataError(f"{path}: no class name in it", kind="category-invalid")
    if path.suffix.lower() in (".json", ".csv") or all(":" in name for name in names):
        table = [(entry.name, entry.color) for entry in read_color_table(path)]
        table.sort(key=lambda pair: pair[0] not in _BACKGROUND)
        return table if table[0][0] in _BACKGROUND else [("background", (0, 0, 0)), *table]
    return _palette(names if names[0] in _BACKGROUND else ["background", *names])


def _find_images(root: pathlib.Path, masks: MaskFolder) -> tuple[dict[str, list[pathlib.Path]], dict[str, list[str]]]:
    """The images with a mask by split, and those left out by reason."""
    found, left_out = list_images(root / "JPEGImages")
    by_stem = {path.stem: path for path in found}
    lists = sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
    if {"train", "val"} <= {path.stem for path in lists}:
        lists = [path for path in lists if path.stem != "trainval"]  # both together
    names = {path.stem: _read_list(path) for path in lists} or {"": list(by_stem)}
    splits: dict[str, list[pathlib.Path]] = {}
    missing, unlabelled = set(), set()
    for split, part in names.items():
        missing |= {f"{name} (split {split})" for name in part if name not in by_stem}
        images = [by_stem[name] for name in dict.fromkeys(part) if name in by_stem]
        splits[split] = [image for image in images if masks.find(image)]
        unlabelled |= {str(image) for image in images if not masks.find(image)}
    listed = {name for part in names.values() for name in part}
    others = sorted(str(path) for path in found if path.stem not in listed)
    return splits, {**left_out, _NO_IMAGE: sorted(missing), _NO_MASK: sorted(unlabelled), NOT_LISTED: others}


def _read_list(path: pathlib.Path) -> list[str]:
    return [line.split()[0] for line in read_text(path).splitlines() if line.strip()]


def read_class_mask(
    path: pathlib.Path, size: tuple[int, int], colors: Sequence[Color], drawing: Drawing
) -> Int32[np.ndarray, "h w"]:
    """Values 0..classes of a class mask, -1 = void; counts what stands for no class."""
    if has_indices(path):
        values = read_values(path, size)
        unknown = {value: int((values == value).sum()) for value in np.unique(values[values >= len(colors)]).tolist()}
        unknown.pop(_BORDER, None)
        values = np.where(values < len(colors), values, VOID)
    else:
        values, unknown = match_colors(read_colors(path, size), colors, path)
        unknown.pop(voc_color(_BORDER), None)
    for value, pixels in unknown.items():
        drawing.fault(f"{value} in {pixels} pixels of {path}", UNKNOWN)
    return values.astype(np.int32)


def read_object_mask(path: pathlib.Path, size: tuple[int, int]) -> Int32[np.ndarray, "h w"]:
    """A number for each object; 0 = none, or its border."""
    if has_indices(path):
        values, border = read_values(path, size), _BORDER
    else:
        values, border = read_colors(path, size), pack(voc_color(_BORDER))
    return np.where(values == border, 0, values).astype(np.int32)


def draw_object_mask(
    drawing: Drawing,
    objects: Int32[np.ndarray, "h w"],
    class_map: Int32[np.ndarray, "h w"],
    is_thing: Sequence[bool],
    path: pathlib.Path,
) -> Bool[np.ndarray, "h w"]:
    """Draws each object with the class that its pixels have, and stuff without an object; returns what becomes void."""
    shapes, void = [], np.zeros(objects.shape, bool)
    for number in np.unique(objects[objects > 0]).tolist():
        mask = objects == number
        present = np.unique(class_map[mask & (class_map != VOID)]).tolist()
        if len(present) == 1:
            shapes.append(Shape(present[0], mask & (class_map == present[0])))
        else:
            drawing.fault(f"object {number} of {path}", SEVERAL if present else NO_CLASS)
            void |= mask
    rest = np.where(objects == 0, class_map, VOID)
    for class_id in np.unique(rest[rest != VOID]).tolist():
        if is_thing[class_id]:
            void |= rest == class_id
            drawing.notes.append(NO_OBJECT)
        else:
            shapes.append(Shape(class_id, rest == class_id))
    drawing.notes = list(dict.fromkeys(drawing.notes))
    drawing.draw_stacked(shapes, is_thing)
    return void
