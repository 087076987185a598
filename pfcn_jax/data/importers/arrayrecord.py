"""`prepare tfds`: a COCO-panoptic folder, or COCO's zip files as downloaded, as ArrayRecord (coco/2017_panoptic)."""

from __future__ import annotations

import argparse
import pathlib

from pfcn_jax.data.datasets.coco import CocoFolder, PanopticFiles
from pfcn_jax.data.datasets.coco_zips import CocoZips
from pfcn_jax.data.importers.common import pairs
from pfcn_jax.data.importers.registry import register

_SPLITS = ("train2017=train", "val2017=validation")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", required=True, help="COCO-panoptic folder, or the folder of COCO's zip files")
    parser.add_argument("--output", required=True, help="TFDS data directory to write into")
    parser.add_argument(
        "--splits", nargs="+", default=list(_SPLITS), metavar="THEIRS=OURS", help=f"default: {' '.join(_SPLITS)}"
    )
    parser.add_argument("--dry-run", action="store_true", help="open and count everything, write nothing")


@register("tfds", help="COCO-panoptic folder or COCO's zips -> ArrayRecord", add_flags=add_flags)
def run(args: argparse.Namespace) -> list[str]:
    from pfcn_jax.data.datasets.tfds import prepare, require_one_table  # TFDS takes seconds to import

    opened: dict[str, PanopticFiles] = {}
    for theirs, ours in pairs(args.splits):
        zipped = (pathlib.Path(args.input) / f"{theirs}.zip").is_file()
        opened[ours] = CocoZips(args.input, theirs) if zipped else CocoFolder(args.input, theirs)
    counts = ", ".join(
        f"{name}: {len(files)} annotated images with {len(files.index.segment_id)} segments"
        for name, files in opened.items()
    )
    require_one_table(opened)
    if args.dry_run:
        return [f"dry run: nothing is written; without --dry-run {args.output} would get {counts}"]
    root = prepare(args.output, opened)
    return [f"{root}: {counts}", f"train with --config.data.source=tfds --config.data.root={root}"]
