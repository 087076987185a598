"""CVAT's "Segmentation mask 1.1": VOC's masks in the colors of `labelmap.txt`, with images perhaps elsewhere."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.colors import read_color_table
from pfcn_jax.data.importers.common import Found, sort_classes
from pfcn_jax.data.importers.exports import name_splits
from pfcn_jax.data.importers.files import read_text
from pfcn_jax.data.importers.image_index import ImageIndex, StemIndex
from pfcn_jax.data.importers.labelled import Drawing, Labelled
from pfcn_jax.data.importers.semantic import VOID
from pfcn_jax.data.importers.voc import NOT_LISTED, draw_object_mask, read_class_mask, read_object_mask

LABEL_MAP = "labelmap.txt"
_CLASSES, _OBJECTS = "SegmentationClass", "SegmentationObject"
_BACKGROUND = "background"  # CVAT's name of pixels without an object
WITHOUT_MASK = "have no mask"


def from_segmentation_masks(files: Sequence[pathlib.Path], index: ImageIndex, args: argparse.Namespace) -> Found:
    """The images and labels of an export.

    Args:
      files: its `labelmap.txt`.
      args: with `things`, `stuff`, `background` and `skip_bad`.

    Raises:
      DataError: there are no masks, an image is missing, or `labelmap.txt` is none.
    """
    root = files[0].parent
    table = read_color_table(files[0])
    classes, background = sort_classes(args, [entry.name for entry in table if entry.name != _BACKGROUND])
    colors = [entry.color for entry in table]
    class_of = [VOID if entry.name == _BACKGROUND else classes.names.index(entry.name) for entry in table]
    folder = root / _CLASSES
    masks = sorted(path for path in folder.rglob("*.png") if not path.name.startswith("."))
    if not masks:
        raise DataError(f"{folder}: no masks", kind="label-missing")
    images = StemIndex(index.folder, [path for path in index.files if not {_CLASSES, _OBJECTS} & {*path.parts}])
    written = [path.relative_to(folder).as_posix() for path in masks]
    mask_of = dict(zip(images.require_all(written, folder), written))

    def label(image: pathlib.Path, size: tuple[int, int]) -> Labelled:
        drawing = Drawing(size)
        values = read_class_mask(folder / mask_of[image], size, colors, drawing)
        class_map = np.where(values >= 0, np.array(class_of, np.int32)[values], VOID)
        path = root / _OBJECTS / mask_of[image]
        void = draw_object_mask(drawing, read_object_mask(path, size), class_map, classes.is_thing, path)
        return drawing.finish(background, void | (values < 0))

    splits, unlisted = _splits(root / "ImageSets" / "Segmentation", mask_of)
    left_out = {**images.unlisted(mask_of, WITHOUT_MASK), NOT_LISTED: unlisted}
    return Found(classes, splits, label, left_out, skip_bad=args.skip_bad)


def _splits(
    folder: pathlib.Path, mask_of: Mapping[pathlib.Path, str]
) -> tuple[dict[str, list[pathlib.Path]], list[str]]:
    """Images by split, and those that the lists leave out; without lists all are in `train`."""
    lists = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    lines = {path.stem: read_text(path).splitlines() for path in lists}
    subset_of = {line.strip(): name for name, own in lines.items() for line in own if line.strip()}
    splits: dict[str, list[pathlib.Path]] = {}
    unlisted = []
    for image, mask in mask_of.items():
        subset = subset_of.get(mask.removesuffix(".png"), "") if subset_of else "train"
        if subset:
            splits.setdefault(subset, []).append(image)
        else:
            unlisted.append(str(image))
    return name_splits(splits), unlisted
