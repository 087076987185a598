"""Parity of the image path: resize, flip, labels, masks, boxes, and the padded network input.

The recorded images are the two photos of the image data directory; their masks come from the panoptic PNG and
their boxes from its JSON, so everything is comparable, and equal to the last bit.
"""

from __future__ import annotations

import pathlib

import numpy as np

from pfcn_jax.data.augment import ResizeShortSide
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.pipeline import empty_arrays, place
from pfcn_jax.data.transforms import Sample
from pfcn_jax.studies.parity.reference import Check, Recorded, check, recorded_files
from pfcn_jax.types import IGNORE, round_up

# The pixel mean as the original has it: listed for red, green, blue, but applied to blue, green, red.
PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)


def check_images(reference: pathlib.Path, images: pathlib.Path) -> list[Check]:
    """Compares the image path and the padded input with everything recorded.

    Args:
      reference: the reference data directory.
      images: the image data directory, which holds `two_photos`.
    """
    source = CocoFolder(
        images / "two_photos",
        "two",
        images_dir="images",
        json_file="annotations/panoptic_two.json",
        labels_dir="annotations/panoptic_two",
    )
    index_of_file = {source.info(i).file_name: i for i in range(len(source))}
    checks: list[Check] = []
    for recorded in recorded_files(reference, "data_*.npz"):
        how = recorded.json("how")
        recipe = ResizeShortSide((how["short"],), how["max"], flip=float(how["flip"]))
        for number in range(2):
            if f"{number}.file" in recorded:
                example = source[index_of_file[recorded.json(f"{number}.file")]]
                sample = recipe(example, np.random.default_rng(0))
                checks += _compare_sample(recorded, number, sample, source.classes)
    for recorded in recorded_files(reference, "infer_*_feats.npz"):
        checks.append(_compare_input(recorded, source.classes))
    return checks


def _compare_sample(recorded: Recorded, number: int, sample: Sample, classes: ClassTable) -> list[Check]:
    def one(key: str, ours: np.ndarray) -> Check:
        return check(recorded.name, f"{number}.{key}", ours, recorded[f"{number}.{key}"], 0.0)

    things = np.flatnonzero(np.array(classes.is_thing)[sample.class_id] & ~sample.is_crowd)
    masks = sample.segment_map[None, :, :] == (things + 1)[:, None, None]
    return [
        one("image", sample.image[:, :, ::-1]),
        one("sem_seg", semantic_map(sample, classes)),
        one("masks", masks),
        one("classes", sample.class_id[things]),
        one("boxes", sample.box[things].astype(np.float32)),
    ]


def semantic_map(sample: Sample, classes: ClassTable) -> np.ndarray:
    """The original's semantic labels: 0 any thing (crowds too), 1.. stuff, 255 void."""
    label = np.where(sample.class_id < classes.num_things, 0, sample.class_id - classes.num_things + 1)
    return np.concatenate([[IGNORE], label]).astype(np.uint8)[sample.segment_map]


def _compare_input(recorded: Recorded, classes: ClassTable) -> Check:
    """A recorded image on its canvas: zero after normalisation outside the image, multiples of 32."""
    image = recorded["image"][:, :, ::-1]
    height, width = image.shape[:2]
    canvas = (round_up(height), round_up(width))
    nothing = np.zeros(0, np.int32)
    sample = Sample(
        image=image,
        segment_map=np.zeros((height, width), np.int32),
        class_id=nothing,
        is_crowd=nothing.astype(bool),
        box=np.zeros((0, 4)),
        original_size=(height, width),
    )
    arrays = empty_arrays(1, canvas, max_segments=1)
    place(arrays, 0, sample, 0, np.array(classes.is_thing))
    inside = (np.arange(canvas[0]) < arrays["size"][0, 0])[:, None] & (np.arange(canvas[1]) < arrays["size"][0, 1])[
        None
    ]
    bgr = arrays["image"][0, :, :, ::-1].astype(np.float32)
    normalized = np.where(inside[:, :, None], bgr - PIXEL_MEAN[None, None, :], np.float32(0.0))
    return recorded.compare("input", normalized[None], relative=0.0)
