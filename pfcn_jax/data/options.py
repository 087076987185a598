"""Options of the data pipeline."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pfcn_jax.utils.settings import setting


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Sources of images and their way to the canvas."""

    # "coco" (any COCO-panoptic folder), "tfds", "cityscapes", "mapillary", "ade20k" (as their owners ship them),
    # "scenes" (drawn by the package), or your own as "module:name"; docs/datasets.md, docs/extending.md
    source: str = "coco"
    root: str = "data/coco"  # folder of the data set; not read by "scenes"
    train_split: str = ""  # "": the split in `root` that is named train...
    eval_split: str = setting("", affects="scores")  # "": the split in `root` that is named val...
    train_examples: int = setting(0, at_least=0)  # use only the first n examples of the split; 0 = all
    eval_examples: int = setting(0, at_least=0, affects="scores")
    scene_size: tuple[int, int] = (128, 128)  # "scenes" only: height, width
    short_sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800)  # one is drawn for each training image
    max_long_side: int = setting(1333, at_least=1)
    train_resize: Literal["pillow", "opencv"] = "pillow"  # as the original, or faster and off by one gray level
    eval_short_side: int = setting(800, at_least=1, affects="scores")
    eval_max_long_side: int = setting(1333, at_least=1, affects="scores")
    canvases: tuple[tuple[int, int], ...] = ((800, 1344), (1344, 800), (800, 1088), (1088, 800))  # one compilation each
    eval_canvases: tuple[tuple[int, int], ...] = setting(
        ((800, 1344), (1344, 800), (800, 1088), (1088, 800)), affects="scores"
    )
    flip: float = setting(0.5, at_least=0, at_most=1)  # probability of a horizontal flip
    crop: tuple[int, int] = (0, 0)  # training window (height, width) after resizing; (0, 0): the whole image
    crop_with_instance: bool = False  # the window holds at least one instance
    # Large-scale jitter: instead of the short sides, an image is fitted into `crop` and scaled by a factor drawn from
    # this range, as (0.1, 2.0); (0, 0): off.
    jitter: tuple[float, float] = (0.0, 0.0)
    max_segments: int = setting(255, at_least=1)  # rows of the segment table (to 255: a byte per pixel)
    cache: bool = setting(False, affects="speed")  # decoded images stay in memory, in each loading process
    workers: int = setting(4, at_least=0, affects="speed")  # decoding processes; 0 = in the training process
    # A training image that cannot be read stops the run, or is replaced by its neighbor on the canvas.
    on_broken: Literal["stop", "skip"] = "stop"
    max_broken: int = setting(100, at_least=0)  # "skip": broken images of a run that are allowed; one more stops it
