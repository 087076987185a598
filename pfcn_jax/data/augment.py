"""From an example to the sample that goes on the canvas: the recipes of training and evaluation."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from pfcn_jax.data.canvas import Size
from pfcn_jax.data.example import Example
from pfcn_jax.data.transforms import Sample, flip, random_window, resize, resize_and_crop, resized_size


@runtime_checkable
class Recipe(Protocol):
    """Makes a sample of an example. `largest_size` bounds the result, so that a canvas can be chosen beforehand."""

    def largest_size(self, size: Size) -> Size:
        """The largest (height, width) that an image of `size` can get."""
        ...

    def resized_range(self, size: Size) -> tuple[Size, Size]:
        """The smallest and the largest (height, width) of an image of `size` before a window is cut out."""
        ...

    def __call__(
        self, example: Example, rng: np.random.Generator, canvas: UInt8[np.ndarray, "H W 3"] | None = None
    ) -> Sample:
        """`canvas`: memory that the result's image may lie in, top left."""
        ...


@dataclasses.dataclass(frozen=True)
class ResizeShortSide:
    """The original's recipe: short side drawn from a list, long side limited, flip, and optionally a crop.

    Fields:
      short_sides: one is drawn for each image; a single one makes the recipe deterministic (with flip 0).
      max_long_side: limit of the long side.
      flip: probability of exchanging left and right.
      crop_size: a window of at most (height, width) is cut out after resizing; None: the whole image.
      crop_classes: is_thing by class id: the window then holds an instance (paper: Cityscapes, Mapillary Vistas).
      resize_method: see `transforms.resize_image`.
    """

    short_sides: tuple[int, ...]
    max_long_side: int
    flip: float = 0.0
    crop_size: Size | None = None
    crop_classes: tuple[bool, ...] | None = None
    resize_method: str = "pillow"

    def __post_init__(self) -> None:
        if not self.short_sides or min(self.short_sides) < 1 or self.max_long_side < 1:
            raise ValueError(f"short sides {self.short_sides} with at most {self.max_long_side}: all must be >= 1")
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"flip is a probability, got {self.flip}")

    def largest_size(self, size: Size) -> Size:
        largest = self.resized_range(size)[1]
        if self.crop_size is None:
            return largest
        return min(largest[0], self.crop_size[0]), min(largest[1], self.crop_size[1])

    def resized_range(self, size: Size) -> tuple[Size, Size]:
        # Monotonic in the short side: the rule scales both sides by one factor, then rounds.
        smallest, largest = min(self.short_sides), max(self.short_sides)
        return resized_size(size, smallest, self.max_long_side), resized_size(size, largest, self.max_long_side)

    def __call__(
        self, example: Example, rng: np.random.Generator, canvas: UInt8[np.ndarray, "H W 3"] | None = None
    ) -> Sample:
        short_side = int(rng.choice(self.short_sides)) if len(self.short_sides) > 1 else self.short_sides[0]
        flipped = self.flip > 0.0 and rng.random() < self.flip
        size = resized_size(example.size, short_side, self.max_long_side)
        if self.crop_size is None:
            sample = resize(example, size, method=self.resize_method, canvas=canvas)
        else:
            is_thing = None if self.crop_classes is None else np.array(self.crop_classes, bool)
            window = random_window(example, size, self.crop_size, rng, is_thing=is_thing)
            sample = resize_and_crop(example, size, window, method=self.resize_method)
        return flip(sample) if flipped else sample


@dataclasses.dataclass(frozen=True)
class LargeScaleJitter:
    """The image fitted into `canvas`, scaled again by a factor drawn from `scale_range`, and a random window of it.

    The augmentation of Ghiasi et al. ("Simple Copy-Paste", CVPR 2021, section 3) for training from scratch or for long;
    they draw from 0.1..2.0 on 1024 x 1024.

    Fields:
      canvas: (height, width) that an image is fitted into and that a window has at most.
      scale_range: lowest and highest factor; drawn uniformly.
      flip: probability of exchanging left and right.
      crop_classes: is_thing by class id: a window then holds an instance.
      resize_method: see `transforms.resize_image`.
    """

    canvas: Size
    scale_range: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5
    crop_classes: tuple[bool, ...] | None = None
    resize_method: str = "pillow"

    def __post_init__(self) -> None:
        if not 0.0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale range {self.scale_range}: expected 0 < low <= high")
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"flip is a probability, got {self.flip}")

    def largest_size(self, size: Size) -> Size:
        high = self.resized_range(size)[1]
        return min(high[0], self.canvas[0]), min(high[1], self.canvas[1])

    def resized_range(self, size: Size) -> tuple[Size, Size]:
        return self.resized_size(size, self.scale_range[0]), self.resized_size(size, self.scale_range[1])

    def resized_size(self, size: Size, factor: float) -> Size:
        """(height, width) of an image of `size` before the window is cut out."""
        scale = min(self.canvas[0] / size[0], self.canvas[1] / size[1]) * factor
        return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)

    def __call__(
        self, example: Example, rng: np.random.Generator, canvas: UInt8[np.ndarray, "H W 3"] | None = None
    ) -> Sample:
        size = self.resized_size(example.size, float(rng.uniform(*self.scale_range)))
        flipped = rng.random() < self.flip
        if size[0] > self.canvas[0] or size[1] > self.canvas[1]:
            is_thing = None if self.crop_classes is None else np.array(self.crop_classes, bool)
            window = random_window(example, size, self.canvas, rng, is_thing=is_thing)
            sample = resize_and_crop(example, size, window, method=self.resize_method)
        else:
            sample = resize(example, size, method=self.resize_method, canvas=canvas)
        return flip(sample) if flipped else sample
