"""Resize, crop, flip and pad: image, segment map and boxes together.

An `Example` is resized into a `Sample`; the other functions take one and return a new one. The image path is the
original implementation's to the bit: the size rule with its rounding, Pillow's antialiased bilinear resize of the 8-bit
image, Pillow's nearest for labels, and boxes that are scaled (not measured again) when the image is resized. Only a
crop measures boxes anew.
"""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8
from PIL import Image

from pfcn_jax.data.canvas import Size
from pfcn_jax.data.example import Example
from pfcn_jax.data.segments import count_pixels, find_runs, map_type, tight_boxes

RESIZE_METHODS = ("pillow", "opencv")
_WINDOW_COST = 8  # Pillow's time for a pixel of a window in OpenCV's for a pixel of the whole


@dataclasses.dataclass(frozen=True)
class Window:
    """A rectangle inside an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A resized example. Rows may have lost all their pixels (`limit_segments` removes them) unless `complete` says
    that none has: whoever takes pixels away sets it to False."""

    image: UInt8[np.ndarray, "h w 3"]  # RGB
    segment_map: Integer[np.ndarray, "h w"]  # 0 = void, i = row i - 1; of a small type that holds them
    class_id: Int[np.ndarray, " n"]
    is_crowd: Bool[np.ndarray, " n"]
    box: Float[np.ndarray, "n 4"]  # x0, y0, x1, y1 in pixels, exclusive ends
    original_size: Size
    complete: bool = False

    @property
    def size(self) -> Size:
        height, width = self.segment_map.shape
        return height, width


def resized_size(size: Size, short_side: int, max_long_side: int) -> Size:
    """The size rule: the short side becomes `short_side` unless the long one would exceed `max_long_side`.

    Both sides are rounded half up; the long side is limited before rounding, as the original does.
    """
    height, width = size
    scale = short_side / min(height, width)
    new_height, new_width = (
        (float(short_side), scale * width) if height < width else (scale * height, float(short_side))
    )
    longest = max(new_height, new_width)
    if longest > max_long_side:
        shrink = max_long_side / longest
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


@functools.lru_cache(maxsize=1024)
def nearest_index(in_length: int, out_length: int) -> Int[np.ndarray, " out_length"]:
    """Index of the input that Pillow's nearest resize reads for each output along one axis.

    Pillow adds the step to the position once per pixel in float64; the same sum here keeps the same rounding.
    """
    step = in_length / out_length
    position = np.full(out_length, step)
    position[0] = step * 0.5
    return np.minimum(np.add.accumulate(position).astype(np.intp), in_length - 1)


def resize_image(
    image: UInt8[np.ndarray, "h w 3"],
    size: Size,
    *,
    method: str = "pillow",
    window: Window | None = None,
    out: UInt8[np.ndarray, "H W 3"] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """The 8-bit image at `size`, or a window of it.

    Args:
      method: `pillow` is exact. `opencv` is several times faster where nothing shrinks and differs there by at most
        one gray level; where a side shrinks it is the same as `pillow` (OpenCV has no such antialiasing).
      window: with `opencv`, a small window of a large result is computed alone, within one gray level, too.
      out: memory that the result may be written to, without a window.
    """
    if method not in RESIZE_METHODS:
        raise ValueError(f"unknown resize method {method!r}; known: {', '.join(RESIZE_METHODS)}")
    height, width = size
    if image.shape[:2] == (height, width):
        return image if window is None else image[window.slices]
    if method == "opencv" and window is not None and window.height * window.width * _WINDOW_COST < height * width:
        # Pillow rounds the corners of the window to float32: not exact, so never for `pillow`.
        down, right = image.shape[0] / height, image.shape[1] / width
        corners = (window.left * right, window.top * down, window.right * right, window.bottom * down)
        box = tuple(min(corner, side) for corner, side in zip(corners, (image.shape[1], image.shape[0]) * 2))
        shrunk = Image.fromarray(image).resize((window.width, window.height), Image.Resampling.BILINEAR, box=box)
        return np.asarray(shrunk)
    if method == "opencv" and height >= image.shape[0] and width >= image.shape[1]:
        resized = cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
    else:
        # Columns first, then rows: Pillow 13 chooses the order by the sizes and rounds in between, earlier ones do not.
        wide = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BILINEAR)
        resized = np.asarray(wide.resize((width, height), Image.Resampling.BILINEAR))
    return resized if window is None else resized[window.slices]


def _resize_map(example: Example, size: Size, window: Window | None = None) -> Integer[np.ndarray, "H W"]:
    """The segment map at `size`, or a window of it, by nearest neighbor as Pillow's; of the smallest type."""
    rows, columns = (nearest_index(*lengths) for lengths in zip(example.size, size))
    if window is not None:
        rows, columns = rows[window.slices[0]], columns[window.slices[1]]
    return example.runs.resample(rows, columns, map_type(len(example.class_id)))


def resize(
    example: Example, size: Size, *, method: str = "pillow", canvas: UInt8[np.ndarray, "H W 3"] | None = None
) -> Sample:
    """The example at `size`; boxes are scaled by the two ratios.

    Args:
      method: see `resize_image`.
      canvas: memory whose top left corner the image may be written to, so that it is where it belongs already.
    """
    out = None
    if canvas is not None and size[0] <= canvas.shape[0] and size[1] <= canvas.shape[1]:
        out = canvas[: size[0], : size[1]]
    return Sample(
        image=resize_image(example.image, size, method=method, out=out),
        segment_map=_resize_map(example, size),
        class_id=example.class_id,
        is_crowd=example.is_crowd,
        box=_scaled_boxes(example, size),
        original_size=example.size,
        # Enlarging repeats rows and columns, but loses none.
        complete=size[0] >= example.size[0] and size[1] >= example.size[1],
    )


def _scaled_boxes(example: Example, size: Size) -> Float[np.ndarray, "n 4"]:
    ratio = np.array([size[1] / example.size[1], size[0] / example.size[0]] * 2)
    return example.box * ratio[None, :]


def flip(sample: Sample) -> Sample:
    """Left and right exchanged; image and map are views (`canvas.copy_into` copies such views fast)."""
    width = sample.size[1]
    x0, y0, x1, y1 = sample.box.T
    return dataclasses.replace(
        sample,
        image=sample.image[:, ::-1],
        segment_map=sample.segment_map[:, ::-1],
        box=np.stack([width - x1, y0, width - x0, y1], axis=1),
    )


def random_window(
    example: Example,
    resized: Size,
    size: Size,
    rng: np.random.Generator,
    *,
    is_thing: Bool[np.ndarray, " classes"] | None = None,
) -> Window:
    """A window of `size` (or less, where the image is smaller) anywhere in the example as it will be once `resized`.

    With `is_thing` (by class id), the window contains the box center of an instance drawn at random, if there is one:
    the rule of the paper's Cityscapes and Mapillary Vistas runs.
    """
    limit = np.maximum(np.array(resized) - np.array(size), 0)
    low, high = np.zeros(2, np.int64), limit
    if is_thing is not None:
        box = _scaled_boxes(example, resized)
        instances = np.flatnonzero(is_thing[example.class_id] & ~example.is_crowd & (box[:, 2] > box[:, 0]))
        if instances.size:
            x0, y0, x1, y1 = box[rng.choice(instances)]
            center = np.array([(y0 + y1) / 2, (x0 + x1) / 2])
            low = np.clip(np.floor(center).astype(np.int64) - np.array(size) + 1, 0, limit)
            high = np.clip(np.floor(center).astype(np.int64), 0, limit)
    top, left = (int(rng.integers(low[axis], high[axis] + 1)) for axis in (0, 1))
    return Window(top, left, min(size[0], resized[0]), min(size[1], resized[1]))


def resize_and_crop(example: Example, size: Size, window: Window, *, method: str = "pillow") -> Sample:
    """A window of the example at `size`, without making labels that nobody will see; boxes are measured in it."""
    segment_map = _resize_map(example, size, window)
    return Sample(
        image=resize_image(example.image, size, method=method, window=window),
        segment_map=segment_map,
        class_id=example.class_id,
        is_crowd=example.is_crowd,
        box=tight_boxes(find_runs(segment_map), len(example.class_id)),
        original_size=example.size,
    )


def limit_segments(sample: Sample, max_segments: int) -> tuple[Sample, int]:
    """Only rows with pixels, at most the `max_segments` largest (in their order), and how many were dropped for it.

    The pixels of a dropped row become void. Equal areas: the earlier row stays.
    """
    if sample.complete and len(sample.class_id) <= max_segments:
        return sample, 0
    area = count_pixels(find_runs(sample.segment_map), len(sample.class_id))
    keep = area > 0
    surplus = max(int(keep.sum()) - max_segments, 0)
    if surplus:
        keep = np.zeros_like(keep)
        keep[np.argsort(-area, kind="stable")[:max_segments]] = True
    return _keep_rows(sample, keep), surplus


def _keep_rows(sample: Sample, keep: Bool[np.ndarray, " n"]) -> Sample:
    if keep.all():
        return dataclasses.replace(sample, complete=True)
    new_value = np.zeros(len(keep) + 1, sample.segment_map.dtype)
    new_value[1:][keep] = np.arange(1, int(keep.sum()) + 1)
    return dataclasses.replace(
        sample,
        segment_map=new_value[sample.segment_map],
        class_id=sample.class_id[keep],
        is_crowd=sample.is_crowd[keep],
        box=sample.box[keep],
        complete=True,
    )
