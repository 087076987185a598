"""`prepare masks`: for each thing class a folder of PNGs in which every instance has its own value, 0 = nothing."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.common import (
    Found,
    add_background_flag,
    add_output_flags,
    list_images,
    pairs,
    things_and_background,
    write_dataset,
)
from pfcn_jax.data.importers.labelled import Drawing, Labelled, Shape, split_components
from pfcn_jax.data.importers.mask_files import MaskFolder, read_values
from pfcn_jax.data.importers.registry import register
from pfcn_jax.data.importers.writer import Labeller

_PLAIN = "the mask has 0 and 255 only and becomes one instance; with --components each connected part is one"
_BORDER = "255 beside other values becomes an instance of its own; if it is a border (VOC): --ignore 255"
_WHITE = 247  # values from here to 255 are white, up to JPEG artifacts
_SOFT_VALUES = 8  # so many gray values, with fewer pixels than white has, are a softened border


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--masks",
        required=True,
        nargs="+",
        metavar="NAME=DIR",
        help="class name and its folder of PNGs (or TIFFs); later ones lie above",
    )
    parser.add_argument(
        "--components", action="store_true", help="connected parts of one value are instances (masks of 0 and 255)"
    )
    parser.add_argument("--ignore", type=int, nargs="*", default=[], help="values that become void, as 255 of VOC")
    parser.add_argument(
        "--threshold", type=int, default=0, help="values from this on are 1, others 0 (masks softened by JPEG)"
    )
    add_background_flag(parser)
    add_output_flags(parser)


@register("masks", help="PNGs of instance ids -> COCO-panoptic", add_flags=add_flags)
def run(args: argparse.Namespace) -> list[str]:
    images, left_out = list_images(args.images)
    folders = {name: MaskFolder(pathlib.Path(folder)) for name, folder in pairs(args.masks)}
    notes = [line for folder in folders.values() for line in folder.compare(images, args.images)]
    classes, label = from_id_masks(
        folders,
        components=args.components,
        background=args.background,
        ignore=args.ignore,
        threshold=args.threshold,
    )
    return write_dataset(args, Found(classes, {"": images}, label, left_out, notes))


def from_id_masks(
    folders: Mapping[str, MaskFolder],
    *,
    components: bool,
    background: str,
    ignore: Sequence[int] = (),
    threshold: int = 0,
) -> tuple[ClassTable, Labeller]:
    """Classes and labels from masks of instance ids.

    Args:
      folders: class name -> its masks: gray (8 or 16 bits), palette, or RGB ids. A file that is not there means no
        instance of the class; where classes overlap, the later folder lies above.
      components: connected parts of one value are instances of their own (for masks of 0 and 255).
      background: name of a stuff class for all other pixels; empty: they are void.
      ignore: values that become void.
      threshold: if above 0, values from it on are 1 and all others 0.
    """
    classes, last = things_and_background(list(folders), background)

    def label(image: pathlib.Path, size: tuple[int, int]) -> Labelled:
        drawing, void = Drawing(size), np.zeros(size, bool)
        for class_id, folder in enumerate(folders.values()):
            path = folder.find(image)
            if path is None:
                continue
            values = read_values(path, size)
            ignored = np.isin(values, ignore)
            void |= ignored
            values = np.where(ignored, 0, values)
            if threshold:
                values = (values >= threshold).astype(np.int32)
            else:
                drawing.notes += _remarks(values, path, components)
            parts = split_components(values) if components else values
            for value in np.unique(parts[parts > 0]).tolist():
                drawing.draw(Shape(class_id, parts == value))
        return drawing.finish(last, void)

    return classes, label


def _remarks(values: Int[np.ndarray, "h w"], path: pathlib.Path, components: bool) -> list[str]:
    """Notes about values that usually mean something else than instance ids.

    Raises:
      DataError: a mask of 0 and 255 whose borders were softened by JPEG or by resizing.
    """
    present, count = np.unique(values[values > 0], return_counts=True)
    if not present.size or not _WHITE <= present[-1] <= 255:
        return []
    if present.size == 1:
        return [] if components or present[0] != 255 else [_PLAIN]
    middle = (present > 255 - _WHITE) & (present < _WHITE)
    if middle.sum() >= _SOFT_VALUES and count[middle].sum() < count[present >= _WHITE].sum():
        raise DataError(
            f"{path}: {present.size} values between 0 and 255, most pixels at the two ends: a mask softened by JPEG "
            "or by resizing, not instance ids; use --threshold 128 (with --components)",
            kind="label-value",
        )
    return [_BORDER] if present[-1] == 255 else []
