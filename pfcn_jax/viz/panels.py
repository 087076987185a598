"""Rows and grids of images with titles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from pfcn_jax.viz.fonts import font

BACKGROUND = (255, 255, 255)
INK = (32, 34, 38)


def panel_row(
    panels: Sequence[UInt8[np.ndarray, "_h _w 3"]],
    titles: Sequence[str] | None = None,
    *,
    height: int | None = None,
    gap: int = 8,
) -> UInt8[np.ndarray, "H W 3"]:
    """Panels in one row, scaled to one height (by default the tallest's), each with its title above.

    Raises:
      ValueError: no panel, not RGB images, or another number of titles.
    """
    _check(panels, titles)
    height = max(panel.shape[0] for panel in panels) if height is None else height
    scaled = [_resized(panel, height, max(1, round(panel.shape[1] * height / panel.shape[0]))) for panel in panels]
    bar = _bar(height) if titles else 0
    width = sum(panel.shape[1] for panel in scaled) + gap * (len(scaled) + 1)
    sheet = Image.new("RGB", (width, gap + bar + height + gap), BACKGROUND)
    x = gap
    for i, panel in enumerate(scaled):
        sheet.paste(Image.fromarray(panel), (x, gap + bar))
        if titles:
            _write(sheet, titles[i], x, gap, panel.shape[1], bar)
        x += panel.shape[1] + gap
    return np.array(sheet)


def contact_sheet(
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
    titles: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    cell: tuple[int, int] = (240, 320),
    gap: int = 8,
) -> UInt8[np.ndarray, "H W 3"]:
    """Images in a grid, each shrunk or magnified to fit a cell (height, width) and centered in it.

    Args:
      columns: by default about as many as rows.

    Raises:
      ValueError: no image, not RGB, another number of titles, no column.
    """
    _check(images, titles)
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(images))
    bar = _bar(cell[0]) if titles else 0
    rows = math.ceil(len(images) / columns)
    pitch = (cell[0] + bar + gap, cell[1] + gap)
    sheet = Image.new("RGB", (gap + columns * pitch[1], gap + rows * pitch[0]), BACKGROUND)
    for i, image in enumerate(images):
        y, x = gap + i // columns * pitch[0], gap + i % columns * pitch[1]
        ratio = min(cell[0] / image.shape[0], cell[1] / image.shape[1])
        small = _resized(image, max(1, round(image.shape[0] * ratio)), max(1, round(image.shape[1] * ratio)))
        sheet.paste(
            Image.fromarray(small), (x + (cell[1] - small.shape[1]) // 2, y + bar + (cell[0] - small.shape[0]) // 2)
        )
        if titles:
            _write(sheet, titles[i], x, y, cell[1], bar)
    return np.array(sheet)


def _check(panels: Sequence[np.ndarray], titles: Sequence[str] | None) -> None:
    if not len(panels):
        raise ValueError("no image to show")
    for i, panel in enumerate(panels):
        if panel.dtype != np.uint8 or panel.ndim != 3 or panel.shape[2] != 3 or panel.size == 0:
            raise ValueError(f"image {i} must be uint8 [h, w, 3], got {panel.dtype} {list(panel.shape)}")
    if titles is not None and len(titles) != len(panels):
        raise ValueError(f"{len(panels)} images, but {len(titles)} titles")


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    method = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)


def _bar(height: int) -> int:
    """Height of a title above images of that height."""
    return max(16, round(height / 14))


def _write(sheet: Image.Image, title: str, x: int, y: int, width: int, height: int) -> None:
    """The title in the middle of its place; one too long ends in three dots."""
    face = font(round(0.68 * height), title)
    while title and face.getlength(title) > width:
        title = title.removesuffix("...")[:-1] + "..." if len(title.removesuffix("...")) > 1 else ""
    ImageDraw.Draw(sheet).text((x + width / 2, y + 0.42 * height), title, fill=INK, font=face, anchor="mm")


def mark_points(
    image: UInt8[np.ndarray, "h w 3"],
    points: Sequence[tuple[float, float]],
    colors: Sequence[tuple[int, int, int]],
    *,
    radius: int = 5,
) -> UInt8[np.ndarray, "h w 3"]:
    """Rings in `colors` around (row, column) points, with a dark edge so that they show on any ground."""
    marked = image.copy()
    for (row, column), color in zip(points, colors, strict=True):
        center = (round(column), round(row))
        cv2.circle(marked, center, radius, INK, 4, cv2.LINE_AA)
        cv2.circle(marked, center, radius, tuple(int(part) for part in color), 2, cv2.LINE_AA)
    return marked
