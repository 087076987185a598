"""Training targets against tensors recorded from the original implementation.

Where ours differs on purpose the comparison leaves out exactly the slots concerned, found by computing them: an
instance whose mask vanishes at 1/4 resolution is a positive of the original (with a false Gaussian at the first cell)
and none of ours.
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pfcn_jax.panoptic.labels import DenseMasks, LevelCells, from_id_map, quarter_taps
from pfcn_jax.panoptic.options import TargetOptions
from pfcn_jax.panoptic.targets import (
    Targets,
    build_targets,
    center_cells,
    gaussian_radius,
    mass_centers,
)
from pfcn_jax.studies.parity.reference import Check, Recorded, check, recorded_files
from pfcn_jax.types import IGNORE, LEVELS, RegionChannels, SegmentTable

NUM_THINGS, NUM_STUFF = 80, 53
OPTIONS = TargetOptions(max_positives=32)  # more than any recorded image has
TOLERANCE = 1e-5  # of target values, which are at most 1


@struct.dataclass
class Labels:
    """Labels of one recorded image, padded to its batch: overlapping masks and a separate semantic map."""

    masks: DenseMasks  # at full resolution
    region_ids: np.ndarray  # region channel + 1, 0 = ignore
    class_id: np.ndarray
    box: np.ndarray
    size: np.ndarray
    padded_size: np.ndarray


def recorded_labels(recorded: Recorded, image: int) -> Labels:
    """The labels of image `image` of a `gt_*` or `train_*` file."""
    height, width = (int(n) for n in recorded["padded"]) if "padded" in recorded else recorded["input"].shape[-2:]
    masks, regions = recorded[f"in{image}.masks"], recorded[f"in{image}.sem_seg"].astype(np.int32)
    regions = np.where(regions == IGNORE, 0, regions + 1)
    size = np.asarray(regions.shape, np.int32)
    padding = [(0, height - int(size[0])), (0, width - int(size[1]))]
    return Labels(
        masks=DenseMasks(values=jnp.asarray(np.pad(masks.astype(np.float32), [(0, 0), *padding]))),
        region_ids=np.pad(regions, padding),
        class_id=recorded[f"in{image}.classes"].astype(np.int32),
        box=recorded[f"in{image}.boxes"].astype(np.float32).reshape(-1, 4),
        size=size,
        padded_size=np.asarray([height, width], np.int32),
    )


@jax.jit
def targets_of(labels: Labels) -> Targets:
    """Our targets for recorded labels."""
    height, width = labels.region_ids.shape
    rows, columns = quarter_taps(jnp.asarray(labels.size), (height, width))
    every = jnp.ones(labels.class_id.shape, bool)
    return build_targets(
        labels.masks.resample(rows, columns),
        from_id_map(jnp.asarray(labels.region_ids)).resample(rows, columns),
        SegmentTable(jnp.asarray(labels.class_id), every, ~every, jnp.asarray(labels.box), every),
        jnp.asarray(labels.padded_size),
        LevelCells.of_canvas((height, width)),
        RegionChannels(NUM_THINGS, NUM_STUFF),
        OPTIONS,
    )


@jax.jit
def centers_of(labels: Labels, targets: Targets) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mass centers per instance with their visibility, and the center cell of every pair in `targets.things`."""
    position, visible = mass_centers(targets.instance_masks, jnp.ones(labels.class_id.shape, bool))
    height, width = labels.region_ids.shape
    if labels.class_id.shape[0] == 0:
        return position, visible, jnp.zeros((targets.things.row.shape[0], 2), jnp.int32)
    return (
        position,
        visible,
        center_cells(position, targets.things, targets.padded_size, LevelCells.of_canvas((height, width))),
    )


def check_targets(recorded: Recorded) -> list[Check]:
    """Every target of every image and level of a `gt_*` file."""
    checks = []
    for image in range(int(recorded["batch"])):
        labels = recorded_labels(recorded, image)
        targets = targets_of(labels)
        kept = vanished_removed(recorded, labels, targets, image)
        for index, level in enumerate(LEVELS):
            checks += _check_thing_targets(recorded, labels, targets, image, index, kept[level])
            checks += _check_stuff_targets(recorded, targets, image, index)
    if "in0.masks_stride4" in recorded:
        checks += _check_masks_and_centers(recorded)
    return checks


def vanished_removed(recorded: Recorded, labels: Labels, targets: Targets, image: int) -> dict[str, np.ndarray]:
    """Which of the original's slots of each level hold an instance that is visible at 1/4 resolution.

    The original lists the instances of a level in their order, so the slots follow from the boxes alone.
    """
    box = labels.box.astype(np.float64)
    side = np.sqrt((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]))
    visible = np.asarray(targets.instance_masks.take(jnp.arange(len(box)))).max(axis=(1, 2), initial=0.0) > 0.0
    kept = {}
    for level, (low, high) in zip(LEVELS, OPTIONS.level_ranges):
        on_level = (side >= low) & (side <= high)
        slots = np.zeros(recorded[f"gt.{level}.index_mask"].shape[1], bool)
        slots[: on_level.sum()] = visible[on_level]
        kept[level] = slots
    return kept


def _check_thing_targets(
    recorded: Recorded, labels: Labels, targets: Targets, image: int, index: int, kept: np.ndarray
) -> list[Check]:
    level, name = LEVELS[index], f"[{image}] gt.{LEVELS[index]}."
    things = targets.things
    here = np.asarray(things.valid & (things.level == index))
    rows = np.asarray(things.row)[here]
    theirs = {key: recorded[f"gt.{level}.{key}"][image] for key in ("inst", "index", "index_mask", "class", "center")}
    used = theirs["index_mask"] > 0
    width = theirs["center"].shape[-1]
    center = np.asarray(centers_of(labels, targets)[2])[here]
    masks = np.asarray(targets.instance_masks.take(jnp.asarray(rows)))
    # The false Gaussians of the original: class channel, around cell (0, 0), as far as their radius.
    heatmap = np.moveaxis(np.asarray(targets.center_heatmap[index]), -1, 0)
    compared = np.ones(heatmap.shape, bool)
    for slot in np.flatnonzero(used & ~kept):
        row = _rows_on_level(labels, index)[slot]
        side = labels.box[row, 2:] - labels.box[row, :2]
        cells = np.asarray(heatmap.shape[1:][::-1])  # width, height
        radius = int(
            gaussian_radius(jnp.asarray(side * cells / labels.padded_size[::-1]), min_overlap=OPTIONS.min_overlap)
        )
        compared[labels.class_id[row], : radius + 1, : radius + 1] = False
    return [
        check(recorded.name, f"{name}index_mask", np.asarray(len(rows)), np.sum(used & kept), 0.0),
        check(recorded.name, f"{name}inst", masks, theirs["inst"][used & kept], TOLERANCE),
        check(recorded.name, f"{name}index", center[:, 0] * width + center[:, 1], theirs["index"][used & kept], 0.0),
        check(recorded.name, f"{name}class", labels.class_id[rows], theirs["class"][used & kept], 0.0),
        check(recorded.name, f"{name}center", heatmap[compared], theirs["center"][compared], TOLERANCE),
        check(
            recorded.name,
            f"{name}center, left out: false Gaussians",
            heatmap[~compared],
            0.0 * theirs["center"][~compared],
            0.0,
        ),
    ]


def _rows_on_level(labels: Labels, index: int) -> np.ndarray:
    box = labels.box.astype(np.float64)
    side = np.sqrt((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]))
    low, high = OPTIONS.level_ranges[index]
    return np.flatnonzero((side >= low) & (side <= high))


def _check_stuff_targets(recorded: Recorded, targets: Targets, image: int, index: int) -> list[Check]:
    level, name = LEVELS[index], f"[{image}] gt.{LEVELS[index]}."
    theirs = {k: recorded[f"gt.{level}.{k}"][image] for k in ("sem_scores", "sem_labels", "sem_masks", "sem_index")}
    stuff = targets.stuff
    here = np.asarray(stuff.valid & (stuff.level == index))
    channels = np.asarray(stuff.class_id)[here]
    score = np.moveaxis(np.asarray(targets.region_score[index]), -1, 0)
    slots = len(theirs["sem_index"])

    def padded(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.zeros((slots - len(values), *values.shape[1:]), values.dtype)])

    soft = np.asarray(targets.region_masks.take(jnp.asarray(channels)))
    return [
        check(recorded.name, f"{name}sem_scores", score, theirs["sem_scores"], TOLERANCE),
        check(recorded.name, f"{name}sem_index", padded(np.ones(len(channels))), theirs["sem_index"], 0.0),
        check(
            recorded.name,
            f"{name}sem_masks",
            padded((score[channels] > 0).astype(np.float32)),
            theirs["sem_masks"],
            0.0,
        ),
        check(recorded.name, f"{name}sem_labels", padded(soft), theirs["sem_labels"], TOLERANCE),
    ]


def _check_masks_and_centers(recorded: Recorded) -> list[Check]:
    labels = recorded_labels(recorded, 0)
    targets = targets_of(labels)
    theirs_masks, theirs_centers = recorded["in0.masks_stride4"], recorded["in0.mass_centers"]
    ours = np.asarray(targets.instance_masks.take(jnp.arange(len(theirs_masks))))
    center, visible, _ = centers_of(labels, targets)
    seen = np.asarray(visible)
    height, width = theirs_masks.shape[1:]
    return [
        check(recorded.name, "in0.masks_stride4", ours[:, :height, :width], theirs_masks, TOLERANCE),
        check(recorded.name, "in0.masks_stride4: visible", seen, ~np.isnan(theirs_centers[:, 0]), 0.0),
        check(
            recorded.name, "in0.mass_centers", np.asarray(center)[seen][:, ::-1], theirs_centers[seen], TOLERANCE * 10
        ),
    ]


def check_all_targets(reference: pathlib.Path) -> list[Check]:
    """The targets of every recorded batch."""
    return [one for recorded in recorded_files(reference, "gt_*.npz") for one in check_targets(recorded)]
