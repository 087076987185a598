"""The part `original`: our seconds against those of the original implementation, scaled by the machine's speed.

The original was timed on two CPU cores with the recorded weights, on the photo 000000142238 of COCO's validation set
(prediction) and on it and 000000439180 together (a training step), while a float32 matrix product ran at these rates.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import numpy as np

from pfcn_jax.data.decode import decode_picture
from pfcn_jax.data.inputs import open_training
from pfcn_jax.data.transforms import resized_size
from pfcn_jax.errors import UserError
from pfcn_jax.studies.benchmark.measure import Row, Yardstick
from pfcn_jax.studies.benchmark.prediction import measure_prediction
from pfcn_jax.studies.benchmark.subject import BASE, ENHANCED, Subject, place, reference_subject
from pfcn_jax.studies.benchmark.training import measure_training
from pfcn_jax.types import round_up

PHOTO = "images/000000142238.jpg"


@dataclasses.dataclass(frozen=True)
class Original:
    """One measurement of the original: seconds, and the least and most GFLOP/s of a matrix product then."""

    variant: str
    short_side: int
    max_long_side: int
    seconds: float
    matmul_gflops: tuple[float, float]


PREDICTIONS = (
    Original(BASE, 400, 666, 1.84, (75.0, 85.0)),
    Original(BASE, 512, 854, 2.68, (100.0, 130.0)),
    Original(BASE, 600, 1000, 4.19, (100.0, 130.0)),
    Original(BASE, 800, 1333, 8.35, (100.0, 130.0)),
    Original(ENHANCED, 800, 1333, 15.0, (100.0, 130.0)),
)
STEPS = (
    Original(BASE, 512, 854, 18.8, (100.0, 130.0)),
    Original(ENHANCED, 512, 854, 47.8, (100.0, 130.0)),
)


def compare(row: Row, original: Original) -> Row:
    """How many times faster than the original, for the least and the most that the machine may have given it."""
    ours = row["seconds"] * row["matmul_gflops"]
    low, high = (original.seconds * rate / ours for rate in original.matmul_gflops)
    return {"original_s": original.seconds, "times_faster_low": low, "times_faster_high": high}


def _labels(original: Original) -> Row:
    return {"model": original.variant, "short_side": original.short_side}


def prediction_rows(args: argparse.Namespace, folder: pathlib.Path) -> list[Row]:
    """Prediction end to end, in batches of `--batch` times the photo, and the part after the heads."""
    picture = decode_picture((folder / PHOTO).read_bytes(), str(folder / PHOTO))
    yardstick, measured = Yardstick(), []
    for original in _chosen(PREDICTIONS, args):
        subject = _sized(reference_subject(args, original.variant), original)
        for batch in args.batch:
            placed = place([picture], batch, subject.config)
            row, _ = measure_prediction("predict", subject, placed, yardstick, seconds=args.seconds)
            post, _ = measure_prediction("post", subject, placed, yardstick, seconds=args.seconds / 2)
            row = _labels(original) | row
            # Both times in products of matrices: the machine's speed may have changed in between.
            row["after_heads_s"] = post["seconds"]
            row["after_heads_share"] = post["seconds"] * post["matmul_gflops"] / (row["seconds"] * row["matmul_gflops"])
            one_by_one: Row = {**row, "seconds": row["seconds_per_picture"]}
            measured.append(row | compare(one_by_one, original))
    return measured


def training_rows(args: argparse.Namespace, folder: pathlib.Path) -> list[Row]:
    """The training step on both photos."""
    yardstick, measured = Yardstick(), []
    for original in _chosen(STEPS, args):
        subject = _sized(reference_subject(args, original.variant), original, root=folder)
        row = measure_training(subject, yardstick, batch=2, seconds=args.seconds)
        measured.append(_labels(original) | row | compare(row, original))
    return measured


def rows(args: argparse.Namespace) -> list[Row]:
    """Prediction, training, or both (`--only`)."""
    if not args.reference or not args.pictures:
        raise UserError("`original` needs --reference DIR and --pictures DIR (the folder two_photos)")
    folder = pathlib.Path(args.pictures[0])
    if not (folder / PHOTO).is_file():
        raise UserError(f"{folder / PHOTO}: no such picture; expected the folder two_photos")
    measured = []
    if args.only in (None, "predict"):
        measured += prediction_rows(args, folder)
    if args.only in (None, "train"):
        measured += training_rows(args, folder)
    return measured


def _chosen(settings: tuple[Original, ...], args: argparse.Namespace) -> list[Original]:
    variants = (BASE, ENHANCED) if args.enhanced is None else ((ENHANCED,) if args.enhanced else (BASE,))
    return [
        setting
        for setting in settings
        if setting.variant in variants and (not args.sizes or setting.short_side in args.sizes)
    ]


def _sized(subject: Subject, original: Original, *, root: pathlib.Path | None = None) -> Subject:
    """The fast thresholds and the original's input size; with `root`, training on its pictures at this size alone."""
    config = subject.config
    data = dataclasses.replace(
        config.data, eval_short_side=original.short_side, eval_max_long_side=original.max_long_side
    )
    if root is not None:
        data = dataclasses.replace(
            data,
            source="coco",
            root=str(root),
            short_sides=(original.short_side,),
            max_long_side=original.max_long_side,
            flip=0.0,
            workers=0,
        )
        sizes = [
            resized_size((int(height), int(width)), original.short_side, original.max_long_side)
            for height, width in open_training(data).sizes()
        ]
        height, width = (int(round_up(side)) for side in np.max(sizes, axis=0))
        data = dataclasses.replace(data, canvases=((height, width),))
    inference = dataclasses.replace(config.inference, center_threshold=0.2, stuff_threshold=0.1)
    return dataclasses.replace(subject, config=dataclasses.replace(config, data=data, inference=inference))
