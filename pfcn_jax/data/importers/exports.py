"""The common part of the importers for annotation tools: flags, splits, and COCO files among the exports."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pfcn_jax.data.coco_json import show
from pfcn_jax.data.example import DataError, sides
from pfcn_jax.data.image_files import is_hidden, is_image
from pfcn_jax.data.importers.common import SPLIT_NAMES, Found, add_label_flags
from pfcn_jax.data.importers.image_index import ImageIndex
from pfcn_jax.data.importers.instances import DetectionOptions, from_detection
from pfcn_jax.data.importers.labelled import Labelled


def add_export_flags(parser: argparse.ArgumentParser, what: str, *, own_splits: bool = True) -> None:
    """Adds `--input` and the flags that all importers of tools have.

    Args:
      what: that `--input` names.
      own_splits: the tool has splits.
    """
    parser.add_argument("--input", required=True, help=what)
    parser.add_argument("--images", metavar="DIR", help="folder with the images somewhere below (default: the input)")
    add_label_flags(parser, own_splits=own_splits)


def find_one(path: pathlib.Path, kinds: Mapping[str, Sequence[str]], tool: str) -> tuple[str, list[pathlib.Path]]:
    """The kind of an export and its label files, from what lies in a folder (or in the one folder inside it).

    Args:
      path: the folder, or a label file.
      kinds: name of a kind -> patterns of its files; the first that finds some counts.

    Raises:
      DataError: nothing, a zip file, or exports of several kinds.
    """
    names = ", ".join(f"{kind} ({patterns[0]})" for kind, patterns in kinds.items())
    if path.is_file():
        for kind, patterns in kinds.items():
            if any(path.match(pattern) for pattern in patterns):
                return kind, [path]
        hint = "; unpack it" if path.suffix.lower() == ".zip" else ""
        raise DataError(f"{path}: no export of {tool}: {names}{hint}", kind="label-missing")
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder", kind="label-missing")
    inside = [own for own in sorted(path.iterdir()) if own.is_dir() and not is_hidden(own)]
    for folder in (path, *(inside if len(inside) == 1 else ())):
        found = {}
        for kind, patterns in kinds.items():
            matches = ([own for own in sorted(folder.glob(pattern)) if not is_hidden(own)] for pattern in patterns)
            found[kind] = next((files for files in matches if files), [])
        there = {kind: files for kind, files in found.items() if files}
        if len(there) > 1:
            (first, (one, *_)), (second, (other, *_)), *_ = there.items()
            raise DataError(
                f"{folder}: {first} ({one.name}) and {second} ({other.name}); name one by --input FILE",
                kind="label-format",
            )
        if there:
            return next(iter(there.items()))
    zips = "; unpack the zip file" if list(path.glob("*.zip")) else ""
    raise DataError(f"{path}: no export of {tool}: {names}{zips}", kind="label-missing")


def list_export_images(args: argparse.Namespace, root: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The folder of `--images`, or of the export, and the image files below it, without those of `--output`."""
    folder, output = pathlib.Path(args.images or root), pathlib.Path(args.output).resolve()
    files = [path for path in folder.rglob("*") if is_image(path) and output not in path.resolve().parents]
    return folder, files


def name_splits(found: Mapping[str, Sequence[pathlib.Path]]) -> dict[str, list[pathlib.Path]]:
    """Images by split: the tool's names if they are those of splits (train, Validation, ...), else all in `train`."""
    is_split = all(name.lower() in SPLIT_NAMES for name in found)
    splits: dict[str, list[pathlib.Path]] = {}
    for name, images in found.items():
        splits.setdefault(name.lower() if is_split else "train", []).extend(images)
    return splits


def require_size(listed: tuple[Any, Any], size: tuple[int, int], label_file: object) -> None:
    """Raises DataError unless a label file's size of an image (height, width) is the image's."""
    if not all(type(side) is int for side in listed):
        raise DataError(f"{label_file}: its size is {show(list(listed))}, must be numbers", kind="value-invalid")
    if listed != size:
        hint = "; height and width are exchanged" if listed == size[::-1] else ""
        raise DataError(
            f"{label_file}: is for an image of {sides(listed)}, but the image is {sides(size)}{hint}", kind="label-size"
        )


def from_coco_exports(files: Mapping[str, tuple[pathlib.Path, ImageIndex]], options: DetectionOptions) -> Found:
    """The images and labels of a tool's COCO files.

    Args:
      files: split -> its JSON and its images.

    Raises:
      DataError: what `from_detection` refuses, or splits with different classes.
    """
    parts = {split: from_detection(path, index, options) for split, (path, index) in files.items()}
    first, *others = parts
    for split in others:
        if difference := parts[first].classes.difference(parts[split].classes):
            raise DataError(f"{files[first][0]} and {files[split][0]}: {difference}", kind="splits-differ")
    images = {split: [image for part in found.images.values() for image in part] for split, found in parts.items()}
    split_of = {image: split for split, part in images.items() for image in part}

    def label(image: pathlib.Path, size: tuple[int, int]) -> Labelled:
        return parts[split_of[image]].label(image, size)

    left_out: dict[str, list[str]] = {}
    listed = {str(image) for image in split_of}
    for found in parts.values():
        for reason, names in found.left_out.items():
            own = left_out.setdefault(reason, [])
            own += [name for name in names if name not in listed and name not in own]
    notes = list(dict.fromkeys(note for found in parts.values() for note in found.notes))
    return dataclasses.replace(parts[first], images=name_splits(images), label=label, left_out=left_out, notes=notes)
