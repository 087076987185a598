"""From a config to sources and pipelines: the only place where data settings become data objects."""

from __future__ import annotations

import functools

import numpy as np

from pfcn_jax.data.augment import LargeScaleJitter, Recipe, ResizeShortSide
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.coco import PanopticFiles
from pfcn_jax.data.decode import stored_orientation
from pfcn_jax.data.example import DataError, Source
from pfcn_jax.data.options import DataOptions
from pfcn_jax.data.pipeline import LoaderOptions, Pipeline
from pfcn_jax.data.plan import BatchPlan
from pfcn_jax.data.registry import find_dataset, list_splits
from pfcn_jax.data.scoring import ScoringPipeline
from pfcn_jax.data.sources import CachedExamples, FirstExamples
from pfcn_jax.utils.stderr import print_lines

_ORIENTATIONS = 32  # images whose EXIF data are read when a training starts


def open_split(config: DataOptions, split: str, examples: int) -> Source:
    """A split of the configured data set; `examples` > 0 takes only its first ones."""
    source = find_dataset(config.source).open(config, split)
    if examples:
        source = FirstExamples(source, examples)
    return CachedExamples(source) if config.cache else source


def open_training(config: DataOptions) -> Source:
    """The split to learn from: the configured one, or the one in the data directory that is named `train...`.

    Raises:
      DataError: no such split, or none of its things is an instance.
    """
    split = config.train_split or find_split(config, "train")
    source = open_split(config, split, config.train_examples)
    where = f"{config.root}, split {split!r}"
    _require_instances(source, where)
    _warn_of_rotation(source, where)
    return source


def open_evaluation(
    config: DataOptions, examples: int, *, split: str = "", classes: ClassTable | None = None
) -> Source:
    """The split to score (see `evaluation_split`).

    Args:
      classes: those that the model has learned.

    Raises:
      DataError: the split has other classes than these; they would be scored as one another.
    """
    split = evaluation_split(config, split)
    source = open_split(config, split, examples)
    difference = classes.difference(source.classes) if classes else ""
    if difference:
        raise DataError(
            f"{config.root or config.source}, split {split!r}: its classes are not those of the model ({difference}); "
            "give every split the same categories",
            kind="splits-differ",
        )
    _warn_of_rotation(source, f"{config.root}, split {split!r}")
    return source


def evaluation_split(config: DataOptions, split: str = "") -> str:
    """The name of the split to score: the given one, the configured one, or the one in `root` named val...."""
    return split or config.eval_split or find_split(config, "val")


def find_split(config: DataOptions, kind: str) -> str:
    """The one split whose name starts with `kind`; a data set with a single split is used for both."""
    splits = list_splits(config.source, config.root)
    found = [split for split in splits if split.startswith(kind)]
    if len(found) == 1:
        return found[0]
    key = {"train": "train_split", "val": "eval_split"}[kind]
    if not found and len(splits) == 1 and not (kind == "train" and splits[0].startswith(("val", "test"))):
        _say_once(
            f"{config.root}: '{splits[0]}' is the only split: it is learned from and scored; that says nothing about "
            f"new images (set data.{key} otherwise)"
        )
        return splits[0]
    what = f"{len(found)} splits start with {kind!r}" if found else f"no split starts with {kind!r}"
    raise DataError(
        f"{config.root}: {what} (there are {', '.join(splits)}); set --config.data.{key}=NAME", kind="no-split"
    )


def _panoptic_files(source: Source) -> PanopticFiles | None:
    """The COCO-panoptic files below subsets and caches; None for other data sets."""
    while isinstance(source, (FirstExamples, CachedExamples)):
        source = source.source
    return source if isinstance(source, PanopticFiles) else None


def _require_instances(source: Source, where: str) -> None:
    """Raises DataError if a panoptic JSON lists things, and all of them are crowds."""
    files = _panoptic_files(source)
    if files is None:
        return
    index = files.index
    is_thing = np.array(index.classes.is_thing, bool)[index.class_id]
    if is_thing.any() and index.is_crowd[is_thing].all():
        raise DataError(
            f"{where}: all {int(is_thing.sum())} things are crowds (iscrowd 1), no instance to learn from; if they are "
            "instances: prepare instances --crowds-as-instances",
            kind="no-instances",
        )


def _warn_of_rotation(source: Source, where: str) -> None:
    """Says on stderr how many of the first images have an EXIF orientation."""
    files = _panoptic_files(source)
    if files is None:
        return
    seen = min(len(files), _ORIENTATIONS)
    rotated = sum(stored_orientation(files.read_image(i)) != 1 for i in range(seen))
    if rotated:
        _say_once(
            f"{where}: {rotated} of the first {seen} images have an EXIF orientation; labels must belong to the pixels "
            "as stored (validate-data counts all; prepare --upright turns them)"
        )


@functools.cache
def _say_once(text: str) -> None:
    print_lines(text)


def training_recipe(config: DataOptions, classes: ClassTable) -> Recipe:
    """The recipe of training: the original's choice of short sides, or large-scale jitter."""
    window = config.crop if config.crop != (0, 0) else None
    instances = classes.is_thing if config.crop_with_instance else None
    if config.jitter != (0.0, 0.0) and window is not None:
        return LargeScaleJitter(
            canvas=window,
            scale_range=config.jitter,
            flip=config.flip,
            crop_classes=instances,
            resize_method=config.train_resize,
        )
    return ResizeShortSide(
        short_sides=config.short_sides,
        max_long_side=config.max_long_side,
        flip=config.flip,
        crop_size=window,
        crop_classes=instances,
        resize_method=config.train_resize,
    )


def evaluation_recipe(config: DataOptions) -> ResizeShortSide:
    """The recipe of evaluation."""
    return ResizeShortSide(short_sides=(config.eval_short_side,), max_long_side=config.eval_max_long_side)


def train_pipeline(
    data: DataOptions, source: Source, *, batch_size: int, seed: int, process: tuple[int, int]
) -> Pipeline:
    """Endless shuffled batches of `batch_size` images over all processes.

    Args:
      process: (index, number) of this process: it reads its own rows of a batch only.

    Raises:
      DataError: an image fits on no canvas.
    """
    recipe = training_recipe(data, source.classes)
    plan = BatchPlan(
        source.sizes(), recipe.largest_size, canvases=data.canvases, batch_size=batch_size, shuffle=True, seed=seed
    )
    return Pipeline(
        source,
        recipe,
        plan,
        process=process,
        max_segments=data.max_segments,
        max_broken=data.max_broken if data.on_broken == "skip" else None,
        options=LoaderOptions(data.workers),
    )


def eval_pipeline(data: DataOptions, source: Source, *, batch_size: int, process: tuple[int, int]) -> Pipeline:
    """Every image once; the last batch of each canvas is padded. Results do not depend on `batch_size`."""
    recipe, plan = _evaluation_plan(data, source, batch_size)
    options = LoaderOptions(data.workers)
    return Pipeline(source, recipe, plan, process=process, max_segments=data.max_segments, options=options)


def scoring_pipeline(
    data: DataOptions,
    source: Source,
    *,
    batch_size: int,
    process: tuple[int, int],
    with_images: bool = False,
) -> ScoringPipeline:
    """Every image once, with its original labels beside the batch. Results do not depend on `batch_size`."""
    recipe, plan = _evaluation_plan(data, source, batch_size)
    return ScoringPipeline(source, recipe, plan, process=process, workers=data.workers, with_images=with_images)


def _evaluation_plan(data: DataOptions, source: Source, batch_size: int) -> tuple[ResizeShortSide, BatchPlan]:
    recipe = evaluation_recipe(data)
    canvases = data.eval_canvases
    return recipe, BatchPlan(
        source.sizes(), recipe.largest_size, canvases=canvases, batch_size=batch_size, shuffle=False
    )
