"""An image's prediction depends on the image alone: not on batch size, batch mates or the canvas it is padded to.

Every photo is predicted alone on its own canvas (its size rounded up to multiples of 32, as the original pads), and
again in batches of mixed photos on three canvases (landscape, portrait, square). Both must give the same segments.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from pfcn_jax.checkpoints.loading import load_checkpoint
from pfcn_jax.config.schema import Config
from pfcn_jax.data.example import Source
from pfcn_jax.data.plan import output_shape
from pfcn_jax.data.registry import open_source
from pfcn_jax.data.transforms import resize_image, resized_size
from pfcn_jax.panoptic.options import OutputSpec
from pfcn_jax.panoptic.predict import Prediction, crop_prediction
from pfcn_jax.parallel.sharding import local_row
from pfcn_jax.steps import predict_step
from pfcn_jax.studies.parity.network import load_model
from pfcn_jax.studies.parity.reference import Check
from pfcn_jax.types import round_up
from pfcn_jax.viz.preview import compact

Size = tuple[int, int]
PIXELS_THAT_MAY_DIFFER = 5e-4  # of a photo
_PHOTOS_AT_ONCE = 4
# Random weights put values everywhere, also within rounding of a threshold; weights that were trained do not.
ALLOWED_OF_50 = {"random": 2, "trained": 0}


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo as the network gets it."""

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    original_size: Size

    @property
    def size(self) -> Size:
        return self.image.shape[0], self.image.shape[1]

    @property
    def own_canvas(self) -> Size:
        return round_up(self.size[0]), round_up(self.size[1])


@dataclasses.dataclass(frozen=True)
class Difference:
    """One photo alone against the same photo in a batch."""

    name: str
    segments: int  # rows of the segment list that differ
    pixels: float  # share of pixels whose segment differs

    @property
    def is_none(self) -> bool:
        return self.segments == 0 and self.pixels <= PIXELS_THAT_MAY_DIFFER


def read_photos(source: Source, *, short_side: int, max_long_side: int) -> list[Photo]:
    """All images of a source, resized by the evaluation's rule, sorted by the canvas they need."""
    photos = []
    for index in range(len(source)):
        example = source[index]
        original = (example.image.shape[0], example.image.shape[1])
        image = resize_image(example.image, resized_size(original, short_side, max_long_side))
        photos.append(Photo(example.file_name, image, original))
    return sorted(photos, key=lambda photo: photo.own_canvas)


def mixed_canvases(photos: Sequence[Photo]) -> tuple[Size, Size, Size]:
    """Landscape, portrait and square: the smallest three that hold all photos, each photo two of them."""
    short = max(min(photo.own_canvas) for photo in photos)
    long = max(max(photo.own_canvas) for photo in photos)
    return (short, long), (long, short), (long, long)


def mixed_batches(photos: Sequence[Photo], batch_size: int) -> Iterable[tuple[Size, list[Photo]]]:
    """Batches in random order of photos; every third photo goes on the square canvas."""
    landscape, portrait, square = mixed_canvases(photos)
    groups: dict[Size, list[Photo]] = {landscape: [], portrait: [], square: []}
    for number, index in enumerate(np.random.default_rng(0).permutation(len(photos))):
        photo = photos[index]
        lying = portrait if photo.size[0] > photo.size[1] else landscape
        groups[square if number % 3 == 0 else lying].append(photo)
    for canvas, group in groups.items():
        for first in range(0, len(group), batch_size):
            yield canvas, group[first : first + batch_size]


def make_predict(
    variables: Any, model: Any, config: Config, shape: Size
) -> Callable[[Size, Sequence[Photo], int], list[Prediction]]:
    """`(canvas, photos, batch size) -> predictions`, compiled once for each canvas and batch size."""
    step = jax.jit(functools.partial(predict_step, model=model, config=config, output=OutputSpec(shape)))

    def predict(canvas: Size, photos: Sequence[Photo], batch_size: int) -> list[Prediction]:
        image = np.zeros((batch_size, *canvas, 3), np.uint8)
        size = np.ones((batch_size, 2), np.int32)  # rows without a photo are a black pixel
        original = np.ones((batch_size, 2), np.int32)
        for row, photo in enumerate(photos):
            image[row, : photo.size[0], : photo.size[1]] = photo.image
            size[row], original[row] = photo.size, photo.original_size
        predicted = step(variables, image, size, original)
        return [crop_prediction(local_row(predicted, row), photo.original_size) for row, photo in enumerate(photos)]

    return predict


def compare(photo: Photo, alone: Prediction, batched: Prediction) -> Difference:
    """Segment lists (class by class, in order) and maps of a photo's two predictions."""
    (map_1, class_1, _), (map_2, class_2, _) = compact(alone.panoptic), compact(batched.panoptic)
    common = min(len(class_1), len(class_2))
    rows = int((class_1[:common] != class_2[:common]).sum()) + abs(len(class_1) - len(class_2))
    return Difference(photo.name, rows, float((map_1 != map_2).mean()))


def find_differences(
    photos: Sequence[Photo], variables: Any, model: Any, config: Config
) -> tuple[list[Difference], int]:
    """Every photo alone against the photo in a mixed batch; also how many segments there are in all."""
    predict = make_predict(variables, model, config, output_shape([photo.original_size for photo in photos]))
    batched: dict[str, Prediction] = {}
    for canvas, some in mixed_batches(photos, _PHOTOS_AT_ONCE):
        batched.update(zip((photo.name for photo in some), predict(canvas, some, _PHOTOS_AT_ONCE)))
    differences, segments = [], 0
    for photo in photos:
        alone = predict(photo.own_canvas, [photo], 1)[0]
        segments += int(alone.panoptic.valid.sum())
        differences.append(compare(photo, alone, batched[photo.name]))
    return differences, segments


def check_independence(
    reference: pathlib.Path,
    images: pathlib.Path,
    *,
    checkpoint: pathlib.Path | None = None,
    short_side: int = 320,
    max_photos: int = 0,
) -> list[Check]:
    """The photos of `coco_sample` with the reference's random weights, or with those of a checkpoint.

    Args:
      short_side: photos are resized to this, the long side to at most 5/3 of it.
      max_photos: only the first so many (in the order of their canvases); 0 = all.
    """
    source = open_source("coco", str(images / "coco_sample"), "val2017")
    if checkpoint is None:
        (model, variables), config, kind = load_model(reference, "R50-1x"), Config(), "random"
    else:
        loaded = load_checkpoint(checkpoint)
        model, variables, config, kind = loaded.model, loaded.variables, loaded.config, "trained"
    photos = read_photos(source, short_side=short_side, max_long_side=short_side * 5 // 3)
    photos = photos[:max_photos] if max_photos else photos
    differences, segments = find_differences(photos, variables, model, config)
    return to_checks(differences, segments, allowed=ALLOWED_OF_50[kind])


def to_checks(differences: Sequence[Difference], segments: int, *, allowed: int) -> list[Check]:
    """Checks of how many photos differ, and of each photo; photos within the allowed number are ok."""
    differing = sum(not difference.is_none for difference in differences)
    excused = differing <= allowed
    name = "independence"
    checks = [
        Check(name, "photos that differ", differing, allowed, excused),
        Check(name, "photos without any segment in all of them", float(segments == 0), 0.0, segments > 0),
    ]
    for difference in differences:
        ok = difference.is_none or excused
        checks.append(Check(difference.name, "segments that differ", difference.segments, 0.0, ok))
        checks.append(Check(difference.name, "pixels that differ", difference.pixels, PIXELS_THAT_MAY_DIFFER, ok))
    return checks
