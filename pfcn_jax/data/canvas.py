"""Canvases, the few static shapes that images are padded to: which one holds an image, and padding to it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

Size = tuple[int, int]  # (height, width)


def smallest_canvas(size: Size, canvases: Sequence[Size]) -> int | None:
    """The position of the smallest canvas (by area, then by position) that holds `size`; None if none does."""
    fitting = [c for c, (height, width) in enumerate(canvases) if size[0] <= height and size[1] <= width]
    return min(fitting, key=lambda c: (canvases[c][0] * canvases[c][1], c), default=None)


def pad_into(canvas: np.ndarray, values: np.ndarray) -> None:
    """Fills a canvas `[H, W, ...]`: `values` `[h, w, ...]` top-left, zeros elsewhere.

    `values` may be (a mirrored view of) that part of the canvas itself.
    """
    height, width = values.shape[:2]
    copy_into(canvas[:height, :width], values)
    canvas[:height, width:] = 0
    canvas[height:] = 0


def copy_into(target: np.ndarray, values: np.ndarray) -> None:
    """`target[...] = values` for `[h, w, ...]`, also if `values` is (a mirrored view of) `target` itself."""
    if values.strides[1] < 0 and values.dtype == target.dtype:
        cv2.flip(values[:, ::-1], 1, dst=target)  # NumPy is slow where columns run backwards, as after `flip`
    elif not _is_same_memory(target, values):
        target[...] = values


def _is_same_memory(one: np.ndarray, other: np.ndarray) -> bool:
    mine, theirs = one.__array_interface__, other.__array_interface__
    return all(mine[key] == theirs[key] for key in ("data", "shape", "typestr", "strides"))
