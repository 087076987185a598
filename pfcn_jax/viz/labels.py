"""Names on segments: where a label fits, how large it may be, and drawing it.

A label is as wide as its text asks, several times its height. Squeezing a segment horizontally by that ratio turns "the
largest label that fits inside" into "the largest square that fits inside", which a chessboard distance transform gives.
Pixels under labels placed before are taken out first, so labels cannot collide.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from pfcn_jax.viz.fonts import font

PADDING = 0.30  # of the font size, on each side of the text
HEIGHT = 1.45  # of a label, in font sizes


@dataclasses.dataclass(frozen=True)
class Label:
    """A text in its box; pixels of the image, x1 and y1 exclusive."""

    text: str
    font_size: int
    x0: int
    y0: int
    x1: int
    y1: int


def label_size(text: str, font_size: int) -> tuple[int, int]:
    """(height, width) of a label."""
    width = font(font_size, text).getlength(text) + 2 * PADDING * font_size
    return int(np.ceil(HEIGHT * font_size)), int(np.ceil(width))


def place_inside(
    segment: Bool[np.ndarray, "h w"], text: str, *, largest: int, smallest: int, free: Bool[np.ndarray, "h w"]
) -> Label | None:
    """The place in a segment with most room for the text, at the largest font size that fits; None if none does.

    Where there is room for the largest font in many places, it is the one closest to the segment's middle.

    Args:
      segment, free: the pixels of the segment, and those that no label covers yet.
      largest, smallest: font sizes in pixels.
    """
    height, width = label_size(text, largest)
    ratio = width / height
    columns = max(1, int(segment.shape[1] / ratio))
    room = np.pad((segment & free).view(np.uint8) * 255, 1)  # nothing fits across the image's edge
    squeezed = cv2.resize(room, (columns + 2, room.shape[0]), interpolation=cv2.INTER_AREA)
    inner = (squeezed >= 250).astype(np.uint8)
    inner[:, [0, -1]] = 0
    radius = cv2.distanceTransform(inner, cv2.DIST_C, 3)
    fits = 2.0 * float(radius.max()) - 1.0
    size = min(largest, int(fits / HEIGHT))
    if size < smallest:
        return None
    rows, cols = np.nonzero(radius >= min(float(radius.max()), 0.65 * HEIGHT * size))
    scale = room.shape[1] / squeezed.shape[1]
    y, x = rows - 1.0, (cols + 0.5) * scale - 1.0
    middle = _middle(segment)
    nearest = int(np.argmin(((x - middle[1]) / ratio) ** 2 + (y - middle[0]) ** 2))
    return _label_at(text, size, y[nearest] + 0.5, x[nearest], segment.shape)


def place_beside(
    box: tuple[int, int, int, int],
    text: str,
    *,
    font_size: int,
    free: Bool[np.ndarray, "h w"],
    others: Bool[np.ndarray, "h w"],
) -> Label | None:
    """Above, below, or next to a segment too small to hold its label; None if all these places are taken.

    Args:
      box: (y0, x0, y1, x1) around the segment, exclusive ends.
      free: pixels that no label covers yet.
      others: pixels of other things. A name must not be taken for theirs, nor hide them: it may cover them by a third.
    """
    height, width = label_size(text, font_size)
    if height > free.shape[0] or width > free.shape[1]:
        return None
    y0, x0, y1, x1 = box
    middle_y, middle_x = (y0 + y1) / 2, (x0 + x1) / 2
    centers = [
        (y0 - height / 2 - 1, middle_x),
        (y1 + height / 2 + 1, middle_x),
        (middle_y, x1 + width / 2 + 1),
        (middle_y, x0 - width / 2 - 1),
    ]
    for center_y, center_x in centers:
        label = _label_at(text, font_size, center_y, center_x, free.shape)
        shifted = abs((label.y0 + label.y1) / 2 - center_y) > height / 2
        place = np.s_[label.y0 : label.y1, label.x0 : label.x1]
        if not shifted and free[place].all() and others[place].mean() <= 1 / 3:
            return label
    return None


def draw(
    image: UInt8[np.ndarray, "h w 3"], labels: list[Label], colors: UInt8[np.ndarray, "n 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with its labels: dark translucent boxes with round corners, text in a light tint of `colors`."""
    layer = Image.fromarray(image).convert("RGBA")
    for label, color in zip(labels, colors):
        tint = tuple(round(255 - 0.38 * (255 - part)) for part in _bright(color).tolist())
        layer.alpha_composite(_plate(label, tint), (label.x0, label.y0))
    return np.array(layer.convert("RGB"))


def _plate(label: Label, tint: tuple[int, ...]) -> Image.Image:
    """The label alone, drawn at four times its size and shrunk, since Pillow's corners are not smooth."""
    width, height, fine = label.x1 - label.x0, label.y1 - label.y0, 4
    corner = Image.new("L", (width * fine, height * fine), 0)
    ImageDraw.Draw(corner).rounded_rectangle(
        (0, 0, width * fine - 1, height * fine - 1), radius=0.32 * height * fine, fill=150
    )
    plate = Image.new("RGBA", (width, height), (16, 18, 22, 0))
    plate.putalpha(corner.resize((width, height), Image.Resampling.BOX))
    text = Image.new("RGBA", (width, height), (*tint, 0))
    ImageDraw.Draw(text).text(
        (width / 2, height / 2), label.text, fill=(*tint, 255), font=font(label.font_size, label.text), anchor="mm",
        stroke_width=0.02 * label.font_size,
    )  # fmt: skip
    return Image.alpha_composite(plate, text)


def _bright(color: np.ndarray) -> np.ndarray:
    """The color scaled so that its strongest part is 255: a tint of a dark color must still be seen."""
    return np.asarray(color, np.float64) * (255.0 / max(1.0, float(np.max(color))))


def _middle(segment: np.ndarray) -> tuple[float, float]:
    total = max(1, int(np.count_nonzero(segment)))
    rows, cols = np.count_nonzero(segment, axis=1), np.count_nonzero(segment, axis=0)
    return float(rows @ np.arange(len(rows))) / total, float(cols @ np.arange(len(cols))) / total


def _label_at(text: str, font_size: int, y: float, x: float, shape: tuple[int, ...]) -> Label:
    """The label with its center there, moved as little as needed to lie within the image."""
    height, width = label_size(text, font_size)
    y0 = min(max(0, round(y - height / 2)), max(0, shape[0] - height))
    x0 = min(max(0, round(x - width / 2)), max(0, shape[1] - width))
    return Label(text, font_size, x0, y0, min(x0 + width, shape[1]), min(y0 + height, shape[0]))
