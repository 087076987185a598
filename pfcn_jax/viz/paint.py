"""A few kinds of pixels in a few colors over a faded image: error maps."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Integer, UInt8


def paint_kinds(
    image: UInt8[np.ndarray, "h w 3"],
    kinds: Integer[np.ndarray, "h w"],
    colors: Sequence[tuple[int, int, int] | None],
    *,
    alpha: float = 0.75,
    scale: float = 1.0,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Colors every pixel by its kind; the image below is gray and pale, so that the colors speak.

    Args:
      kinds: row of `colors` of each pixel.
      colors: RGB of each kind; None leaves the image as it is.
      alpha: how much of the color covers the image, 0..1.
      scale: magnifies the drawing.

    Raises:
      ValueError: kinds that do not belong to the image or have no color.
    """
    if kinds.shape != image.shape[:2]:
        raise ValueError(f"kinds {list(kinds.shape)} do not belong to an image of {list(image.shape[:2])}")
    if int(kinds.min()) < 0 or int(kinds.max()) >= len(colors):
        raise ValueError(f"kinds {int(kinds.min())}..{int(kinds.max())}, but {len(colors)} colors")
    if scale != 1.0:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
        kinds = cv2.resize(kinds.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    ground = 0.5 * gray + 110.0
    color = np.array([part or (0, 0, 0) for part in colors], np.float32)
    opacity = np.array([0.0 if part is None else alpha for part in colors], np.float32)[kinds][..., None]
    return np.rint(np.minimum((1.0 - opacity) * ground + opacity * color[kinds], 255.0)).astype(np.uint8)
