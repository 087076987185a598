"""`prepare roboflow`: what Roboflow exports as COCO segmentation, or as semantic segmentation masks.

Roboflow's splits are kept: train, valid (written as val) and test.
"""

from __future__ import annotations

import argparse
import csv
import io
import pathlib
import re
from collections.abc import Mapping

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.common import Found, choose_kinds, write_dataset
from pfcn_jax.data.importers.exports import add_export_flags, find_one, from_coco_exports, name_splits
from pfcn_jax.data.importers.files import read_text
from pfcn_jax.data.importers.image_index import ImageIndex
from pfcn_jax.data.importers.instances import DetectionOptions
from pfcn_jax.data.importers.labelled import Labelled
from pfcn_jax.data.importers.mask_files import MaskFolder
from pfcn_jax.data.importers.registry import register
from pfcn_jax.data.importers.semantic import from_semantic
from pfcn_jax.data.importers.writer import Labeller

_COCO, _MASKS = "COCO segmentation", "semantic segmentation masks"
_COCO_FILE, _CLASS_FILE = "_annotations.coco.json", "_classes.csv"
_FILES = {
    _COCO: (f"*/{_COCO_FILE}", _COCO_FILE),
    _MASKS: (f"*/{_CLASS_FILE}", _CLASS_FILE),
}
_MASK = "_mask"  # at the end of a mask's name
_VERSION = re.compile(r"\.rf\.[0-9a-zA-Z]+$")  # that Roboflow appends to the name of a (perhaps augmented) image
_IGNORE = 255


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_export_flags(parser, "folder of the unpacked export, with train, valid and test")


@register("roboflow", help="an export of Roboflow (COCO segmentation, masks) -> COCO-panoptic", add_flags=add_flags)
def run(args: argparse.Namespace) -> list[str]:
    path = pathlib.Path(args.input)
    if (path / "data.yaml").is_file():
        raise DataError(f"{path}: a YOLO export; prepare yolo --data {path / 'data.yaml'}", kind="label-format")
    kind, files = find_one(path, _FILES, "Roboflow")
    found = (_from_coco if kind == _COCO else _from_masks)({file.parent.name: file for file in files}, args)
    lines = [f"{path}: Roboflow's {kind}", *write_dataset(args, found)]
    if args.val is not None:
        lines += _warn_of_versions(found)
    return lines


def _from_coco(files: Mapping[str, pathlib.Path], args: argparse.Namespace) -> Found:
    options = DetectionOptions(args.background, args.skip_bad, things=args.things, stuff=args.stuff)
    folder = pathlib.Path(args.images) if args.images else None
    return from_coco_exports({name: (file, ImageIndex(folder or file.parent)) for name, file in files.items()}, options)


def _from_masks(files: Mapping[str, pathlib.Path], args: argparse.Namespace) -> Found:
    """Images and labels of semantic masks: `NAME_mask.png` beside `NAME.jpg`."""
    tables = {name: read_classes(file) for name, file in files.items()}
    first, *others = tables
    for name in others:
        if tables[name] != tables[first]:
            raise DataError(f"{files[first]} and {files[name]} list different classes", kind="splits-differ")
    classes = _class_table(tables[first], args)
    labels: dict[pathlib.Path, Labeller] = {}
    splits: dict[str, list[pathlib.Path]] = {}
    notes: list[str] = []
    for name, file in files.items():
        index = ImageIndex(file.parent, sorted(file.parent.iterdir()))
        images = [path for path in index.files if not path.stem.endswith(_MASK)]
        masks = MaskFolder(file.parent, ending=_MASK)
        notes += masks.compare(images, str(file.parent), missing_is_error=True) if images else []
        labels |= dict.fromkeys(images, from_semantic(masks, classes, ignore=[_IGNORE]))
        splits[name] = images

    def label(image: pathlib.Path, size: tuple[int, int]) -> Labelled:
        return labels[image](image, size)

    things = [name for name, is_thing in zip(classes.names, classes.is_thing) if is_thing]
    notes.append(
        f"connected parts of {', '.join(things)} are instances; name classes that cannot be counted by --stuff"
    )
    return Found(classes, name_splits(splits), label, notes=notes, skip_bad=args.skip_bad)


def read_classes(path: pathlib.Path) -> dict[int, str]:
    """The class of each pixel value in `_classes.csv`: a header, and rows `value, name`.

    Raises:
      DataError: a row of another form, a value or a name twice, or no row.
    """
    classes: dict[int, str] = {}
    try:
        rows = list(csv.reader(io.StringIO(read_text(path)), skipinitialspace=True))
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file ({error})", kind="label-format") from error
    for number, row in enumerate(rows, start=1):
        if number == 1 or not row:
            continue
        value, name = (row[0].strip(), row[1].strip()) if len(row) == 2 else ("", "")
        if not (value.isascii() and value.isdigit() and len(value) < 6 and name):
            raise DataError(f"{path}: line {number} is {','.join(row)!r:.60}, must be value, name", kind="label-format")
        if int(value) in classes or name in classes.values():
            raise DataError(f"{path}: line {number}: value {value} or name {name!r} appears twice", kind="label-format")
        classes[int(value)] = name
    if not classes:
        raise DataError(f"{path}: no classes", kind="label-format")
    return classes


def _class_table(names: Mapping[int, str], args: argparse.Namespace) -> ClassTable:
    """Classes with the pixel values as category ids; all are things but the background and those of `--stuff`."""
    stuff = {*choose_kinds(args, list(names.values()), background=args.background)[1], "background"}
    entries = [{"id": value, "name": name, "isthing": int(name not in stuff)} for value, name in names.items()]
    if not any(entry["isthing"] for entry in entries):
        raise DataError(f"classes {', '.join(names.values())}: at least one must be a thing", kind="no-thing")
    return ClassTable.from_coco(entries)


def _warn_of_versions(found: Found) -> list[str]:
    """A line about images that are versions of one source, which `--val` may divide among training and validation."""
    stems = [path.stem for part in found.images.values() for path in part]
    sources = [_VERSION.sub("", stem) for stem in stems]
    repeated = len(sources) - len(set(sources))
    if not repeated:
        return []
    return [
        f"warning: {repeated} images are further versions of others (NAME.rf.*), and --val divides them by file: the "
        "same image may be learned from and scored; use Roboflow's own splits"
    ]
