"""`prepare cvat`: what CVAT exports as COCO 1.0, CVAT for images 1.1, or Segmentation mask 1.1.

Where objects overlap, CVAT's layers decide; in one layer the smaller object lies above the larger.
"""

from __future__ import annotations

import argparse
import pathlib

from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.common import Found, sort_classes, write_dataset
from pfcn_jax.data.importers.cvat_masks import LABEL_MAP, from_segmentation_masks
from pfcn_jax.data.importers.cvat_xml import read_cvat_xml, read_objects
from pfcn_jax.data.importers.exports import (
    add_export_flags,
    find_one,
    from_coco_exports,
    list_export_images,
    name_splits,
    require_size,
)
from pfcn_jax.data.importers.image_index import ImageIndex
from pfcn_jax.data.importers.instances import UNLISTED, DetectionOptions
from pfcn_jax.data.importers.labelled import Labelled
from pfcn_jax.data.importers.objects import draw_objects
from pfcn_jax.data.importers.registry import register

_COCO, _XML, _MASKS = "COCO 1.0", "CVAT for images 1.1", "Segmentation mask 1.1"
_FILES = {
    _COCO: ("annotations/instances_*.json", "instances_*.json"),
    _XML: ("annotations.xml", "*.xml"),
    _MASKS: (LABEL_MAP,),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_export_flags(parser, f"folder of the unpacked export, as {', '.join(_FILES)}")


@register("cvat", help="an export of CVAT (COCO, CVAT for images, masks) -> COCO-panoptic", add_flags=add_flags)
def run(args: argparse.Namespace) -> list[str]:
    kind, files = find_one(pathlib.Path(args.input), _FILES, "CVAT")
    root = files[0].parent.parent if files[0].parent.name == "annotations" else files[0].parent
    images = ImageIndex(*list_export_images(args, root))
    read = {_COCO: _from_coco, _XML: _from_xml, _MASKS: from_segmentation_masks}[kind]
    return [f"{files[0]}: {kind}", *write_dataset(args, read(files, images, args))]


def _from_coco(files: list[pathlib.Path], images: ImageIndex, args: argparse.Namespace) -> Found:
    """Images and labels of COCO files. CVAT marks brush masks as crowds only to write them as RLE."""
    options = DetectionOptions(args.background, args.skip_bad, True, args.things, args.stuff)
    subsets = {path.stem.removeprefix("instances_"): path for path in files}
    return from_coco_exports({name: (path, images.prefer(name)) for name, path in subsets.items()}, options)


def _from_xml(files: list[pathlib.Path], images: ImageIndex, args: argparse.Namespace) -> Found:
    if len(files) > 1:
        raise DataError(f"{files[0]} and {files[1]}: several XML files; name one by --input FILE", kind="label-format")
    names, listed = read_cvat_xml(files[0])
    classes, background = sort_classes(args, names)
    paths = images.require_all([f"{image.subset}/{image.name}".removeprefix("/") for image in listed], files[0])
    by_path = dict(zip(paths, listed))

    def label(path: pathlib.Path, size: tuple[int, int]) -> Labelled:
        image = by_path[path]
        require_size(image.size, size, f"{files[0]}: {image.name}")
        return draw_objects(read_objects(image, names), size, classes, background)

    splits: dict[str, list[pathlib.Path]] = {}
    for path, image in by_path.items():
        splits.setdefault(image.subset or "train", []).append(path)
    empty = sum(not len(image.element) for image in listed)
    notes = [f"warning: {empty} images have no shape and are written as background only"] if empty else []
    return Found(classes, name_splits(splits), label, images.unlisted(paths, UNLISTED), notes, args.skip_bad)
