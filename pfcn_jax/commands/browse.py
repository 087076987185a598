"""`browse`: one PNG of many images: examples with their labels drawn, then the targets as the network sees them.

The upper part shows examples of a split. The lower part shows images as training gets them (resized, flipped,
cropped): the object centers and the stuff regions of every level. A wrong label map shows in seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.example import Source
from pfcn_jax.data.inputs import open_split, open_training, train_pipeline
from pfcn_jax.errors import UserError
from pfcn_jax.panoptic.targets import Targets, make_targets
from pfcn_jax.steps import batch_geometry
from pfcn_jax.types import LEVELS, STRIDES, Batch
from pfcn_jax.viz import contact_sheet, heatmap, overlay
from pfcn_jax.viz.regions import draw_regions

_CELL = (240, 320)
_COLUMNS = 1 + len(LEVELS)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="browse.png", help="the PNG to write (default: browse.png)")
    parser.add_argument("--split", default="", help="default: the split that the config trains on")
    parser.add_argument("--first", type=int, default=0, help="number of the first example")
    parser.add_argument("--count", type=int, default=12, help="examples with their labels")
    parser.add_argument("--targets", type=int, default=3, help="images with their targets; 0: none")


def main(args: argparse.Namespace) -> int:
    config = from_command_line(args.config_argv)
    source = open_split(config.data, args.split, 0) if args.split else open_training(config.data)
    if not 0 <= args.first < len(source) or args.count < 1:
        raise UserError(f"--first {args.first} --count {args.count}: there are {len(source)} examples")
    parts = [label_sheet(source, args.first, args.count)]
    if args.targets > 0:
        parts.append(target_sheet(config, source, args.targets))
    output = pathlib.Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_stack(parts)).save(output)
    print(
        f"{output}: {min(args.count, len(source) - args.first)} of {len(source)} examples, {args.targets} with targets"
    )
    return 0


def label_sheet(source: Source, first: int, count: int) -> UInt8[np.ndarray, "H W 3"]:
    """Examples `first`, `first + 1`, ... with all segments drawn and named."""
    images, titles = [], []
    for index in range(first, min(first + count, len(source))):
        example = source[index]
        height, width = example.segment_map.shape
        images.append(_draw(source.classes, example.image, example.segment_map, example.class_id))
        void = 100 * float((example.segment_map == 0).mean())
        name = pathlib.PurePath(example.file_name).name
        titles.append(f"{height} x {width}, {len(example.class_id)} segments, {void:.0f} % void: {name}")
    return contact_sheet(images, titles, columns=_COLUMNS, cell=_CELL)


def target_sheet(config: Config, source: Source, count: int) -> UInt8[np.ndarray, "H W 3"]:
    """Training images with their targets: for each a row of centers (p3..p7) and a row of regions."""
    images: list[np.ndarray] = []
    titles: list[str] = []
    here = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=0))  # a few batches: no processes
    cells = 2 * _COLUMNS
    with iter(
        train_pipeline(here.data, source, batch_size=here.train.batch_size, seed=here.seed, process=(0, 1))
    ) as batches:
        while len(titles) < cells * count:
            batch = next(batches)
            for row in np.flatnonzero(batch.valid)[: count - len(titles) // cells].tolist():
                panels, names = _target_panels(batch, row, config, source.classes)
                images += panels
                titles += names
    return contact_sheet(images, titles, columns=_COLUMNS, cell=_CELL)


def _target_panels(batch: Batch, row: int, config: Config, classes: ClassTable) -> tuple[list[np.ndarray], list[str]]:
    height, width = batch.size[row].tolist()
    image = np.ascontiguousarray(batch.image[row, :height, :width])
    targets = jax.tree.map(np.asarray, image_targets(batch, row, config, classes))
    class_id = np.asarray(batch.segments.class_id[row])[np.asarray(batch.segments.valid[row])]
    labels = _draw(classes, image, np.asarray(batch.segment_map[row, :height, :width]), class_id)
    on_level = np.bincount(targets.things.level[targets.things.valid], minlength=len(LEVELS))
    centers = [heatmap(score.max(axis=-1), image, stride=s) for score, s in zip(targets.center_heatmap, STRIDES)]
    regions = [draw_regions(score, image, s, classes) for score, s in zip(targets.region_score, STRIDES)]
    dropped = f", {int(targets.dropped)} dropped" if targets.dropped else ""
    titles = [f"example {int(batch.image_id[row])}: {height} x {width}{dropped}"]
    titles += [f"{level}: {count} centers" for level, count in zip(LEVELS, on_level.tolist())]
    titles += ["image", *(f"{level}: regions (white: things)" for level in LEVELS)]
    return [labels, *centers, image, *regions], titles


def image_targets(batch: Batch, row: int, config: Config, classes: ClassTable) -> Targets:
    """The targets of one image of a batch, exactly as the training step makes them."""
    regions = config.model.regions(*classes.counts)
    arrays = (batch.segment_map, batch.segments, batch_geometry(batch, config.targets))
    return _make_targets(*jax.tree.map(lambda leaf: leaf[row], arrays), regions, config.targets)


_make_targets = jax.jit(make_targets, static_argnums=(3, 4))


def _draw(classes: ClassTable, image: np.ndarray, segment_map: np.ndarray, class_id: np.ndarray) -> np.ndarray:
    scale = min(_CELL[0] / image.shape[0], _CELL[1] / image.shape[1])  # names are drawn at the size of the cell
    return overlay(image, segment_map, classes, class_id, scale=scale)


def _stack(parts: list[np.ndarray]) -> np.ndarray:
    """Sheets below each other, filled up with white on the right."""
    width = max(part.shape[1] for part in parts)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in parts]
    return np.concatenate(padded)
