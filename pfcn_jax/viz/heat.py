"""Score maps over images (object centers, regions, probabilities), and matrices as images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8


def heatmap(
    score: Float[np.ndarray, "hl wl"],
    image: UInt8[np.ndarray, "h w 3"],
    *,
    stride: int | None = None,
    highest: float = 1.0,
    alpha: float = 0.8,
    smooth: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """A score map in colors over a darkened image: the higher the score, the brighter and the less transparent.

    Args:
      score: probabilities or scores; NaN counts as 0.
      stride: pixels of the image per position; what reaches beyond the image (padding) is cut off. None: the map
        covers exactly the image.
      highest: the score that gets the brightest color (0 is the darkest).
      alpha: how much of the brightest color covers the image, 0..1.
      smooth: interpolate between positions; False shows each as a square.

    Raises:
      ValueError: not a map, not an image, or `stride` positions that do not cover the image.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must be uint8 [h, w, 3], got {image.dtype} {list(image.shape)}")
    if score.ndim != 2 or score.size == 0:
        raise ValueError(f"score must be [hl, wl], got {list(score.shape)}")
    height, width = image.shape[:2]
    full = (height, width) if stride is None else (score.shape[0] * stride, score.shape[1] * stride)
    if full[0] < height or full[1] < width:
        raise ValueError(f"{list(score.shape)} positions of stride {stride} do not cover {height} x {width} pixels")
    level = np.clip(np.nan_to_num(np.asarray(score, np.float32)) / highest, 0.0, 1.0)
    method = cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST
    level = cv2.resize(level, (full[1], full[0]), interpolation=method)[:height, :width, None]
    level = np.clip(level, 0.0, 1.0)  # cubic interpolation overshoots
    index = np.rint(255 * level).astype(np.uint8)
    color = cv2.cvtColor(cv2.applyColorMap(index, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB).astype(np.float32)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    ground = 0.45 * (0.6 * gray + 0.4 * image.astype(np.float32))
    opacity = alpha * np.sqrt(level)  # the root lets weak responses show
    return np.rint((1.0 - opacity) * ground + opacity * color).astype(np.uint8)


def similarity_matrix(
    values: Float[np.ndarray, "n n"], ends: Sequence[int] = (), *, side: int = 512
) -> UInt8[np.ndarray, "side side 3"]:
    """A matrix of similarities as an image: dark at 0 and below, bright at 1; squares frame groups of rows.

    Args:
      ends: where each group of rows ends (exclusive), ascending; groups of one row get no frame.
      side: pixels of the image, about.
    """
    count = max(1, len(values))
    cell = max(2, side // count)
    level = np.clip(np.asarray(values, np.float32), 0.0, 1.0) if len(values) else np.zeros((1, 1))
    index = np.rint(255 * level).astype(np.uint8).repeat(cell, axis=0).repeat(cell, axis=1)
    drawn = np.ascontiguousarray(cv2.cvtColor(cv2.applyColorMap(index, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB))
    start = 0
    for end in ends:
        if end - start > 1:
            cv2.rectangle(drawn, (start * cell, start * cell), (end * cell - 1, end * cell - 1), (255, 255, 255), 2)
        start = end
    return drawn
