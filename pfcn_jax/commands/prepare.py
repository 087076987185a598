"""`prepare`: brings data into a layout that trains: instance or semantic labels -> COCO-panoptic, COCO -> ArrayRecord.

Kinds:
  instances  a COCO detection JSON (polygons or RLE) and its pictures
  masks      pictures, and for each thing class a folder of PNGs in which every instance has its own value
  semantic   pictures, and PNGs of category ids with a list of the categories
  tfds       a COCO-panoptic folder, or COCO's zip files as downloaded, -> ArrayRecord (TFDS's coco/2017_panoptic)
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.coco import CocoFolder, PanopticFiles
from pfcn_jax.data.datasets.coco_zips import CocoZips
from pfcn_jax.data.importers.labels import (
    Labeller,
    from_detection,
    from_id_masks,
    from_semantic,
    hold_out,
    list_pictures,
    write_splits,
)
from pfcn_jax.data.sources import DataError
from pfcn_jax.errors import UserError
from pfcn_jax.utils.progress import ProgressDisplay

_SPLITS = ("train2017=train", "val2017=validation")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{instances,masks,semantic,tfds}")
    instances = kinds.add_parser("instances", help="a COCO detection JSON -> COCO-panoptic", allow_abbrev=False)
    instances.add_argument("--json", required=True, help="COCO detection file, as instances_train2017.json")
    masks = kinds.add_parser("masks", help="PNGs of instance ids -> COCO-panoptic", allow_abbrev=False)
    masks.add_argument(
        "--masks",
        required=True,
        nargs="+",
        metavar="NAME=DIR",
        help="class name and its folder of PNGs; later ones lie above",
    )
    masks.add_argument(
        "--components", action="store_true", help="connected parts of one value are instances (masks of 0 and 255)"
    )
    for kind in (instances, masks):
        kind.add_argument(
            "--background", default="background", help="stuff class of all other pixels; '' leaves them void"
        )
    semantic = kinds.add_parser("semantic", help="PNGs of category ids -> COCO-panoptic", allow_abbrev=False)
    semantic.add_argument("--masks", required=True, help="folder of PNGs with the pictures' names")
    semantic.add_argument(
        "--classes",
        required=True,
        help='JSON: [{"id": 1, "name": "car", "isthing": 1}, ...]; ids are the PNGs\' values',
    )
    semantic.add_argument("--ignore", type=int, nargs="*", default=[255], help="values that become void (default: 255)")
    for kind in (instances, masks, semantic):
        kind.add_argument("--pictures", required=True, help="folder of pictures")
        kind.add_argument("--output", required=True, help="folder to write; data.root of the training")
        where = kind.add_mutually_exclusive_group(required=True)
        where.add_argument("--split", help="write all pictures as this split, as train or val")
        where.add_argument("--val", type=float, help="write splits train and val, this fraction held out by name")
        kind.add_argument("--workers", type=int, default=4)
    tfds = kinds.add_parser("tfds", help="COCO-panoptic folder or COCO's zips -> ArrayRecord", allow_abbrev=False)
    tfds.add_argument("--input", required=True, help="COCO-panoptic folder, or the folder of COCO's zip files")
    tfds.add_argument("--output", required=True, help="TFDS data directory to write into")
    tfds.add_argument(
        "--splits", nargs="+", default=list(_SPLITS), metavar="THEIRS=OURS", help=f"default: {' '.join(_SPLITS)}"
    )


def main(args: argparse.Namespace) -> int:
    if args.config_argv:
        raise UserError("prepare takes no config; see `prepare --help`")
    if args.kind == "tfds":
        return _prepare_tfds(args)
    if args.kind == "instances":
        classes, pictures, label = from_detection(args.json, args.pictures, background=args.background)
    else:
        pictures = list_pictures(args.pictures)
        classes, label = _mask_labels(args) if args.kind == "masks" else _semantic_labels(args)
    splits = {args.split: pictures} if args.split else hold_out(pictures, args.val)
    display = ProgressDisplay(len(pictures), label="prepare")
    counts = write_splits(
        args.output,
        splits,
        classes,
        label,
        workers=args.workers,
        on_picture=lambda done: display.update(done, "") if done % 50 == 0 or done == len(pictures) else None,
    )
    display.close()
    sizes = ", ".join(f"{name}: {len(part)} pictures" for name, part in splits.items())
    print(f"{args.output}: {sizes}; {counts['segments']} segments of {len(classes)} classes")
    if counts["hidden"]:
        print(f"{counts['hidden']} instances lie completely below others and are left out")
    return 0


def _mask_labels(args: argparse.Namespace) -> tuple[ClassTable, Labeller]:
    folders = {name: pathlib.Path(folder) for name, folder in _pairs(args.masks)}
    for folder in folders.values():
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of masks")
        stems = {path.stem for path in folder.glob("*.png")}
        if not stems & {path.stem for path in list_pictures(args.pictures)}:
            raise UserError(f"{folder}: no PNG has the name of a picture in {args.pictures}")
    return from_id_masks(folders, components=args.components, background=args.background)


def _semantic_labels(args: argparse.Namespace) -> tuple[ClassTable, Labeller]:
    try:
        classes = ClassTable.from_coco(json.loads(pathlib.Path(args.classes).read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{args.classes}: not a list of categories ({error})") from error
    if classes.num_things == 0:
        raise UserError(f'{args.classes}: no class has "isthing": 1; at least one must be countable')
    return classes, from_semantic(pathlib.Path(args.masks), classes, ignore=args.ignore)


def _prepare_tfds(args: argparse.Namespace) -> int:
    from pfcn_jax.data.datasets.tfds import prepare  # needed by nobody else here, and slow to import

    opened: dict[str, PanopticFiles] = {}
    for theirs, ours in _pairs(args.splits):
        zipped = (pathlib.Path(args.input) / f"{theirs}.zip").is_file()
        opened[ours] = CocoZips(args.input, theirs) if zipped else CocoFolder(args.input, theirs)
    root = prepare(args.output, opened)
    counts = ", ".join(f"{name}: {len(files)} pictures" for name, files in opened.items())
    print(f"{root}: {counts}\ntrain with --config.data.source=tfds --config.data.root={root}")
    return 0


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [(name, value) for name, _, value in (word.partition("=") for word in words)]
    if not all(name and value for name, value in pairs) or len({name for name, _ in pairs}) < len(pairs):
        raise DataError(f"{' '.join(words)}: expected NAME=VALUE pairs with different names")
    return pairs
