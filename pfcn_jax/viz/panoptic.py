"""The image of a panoptic segmentation: class colors with a shade per instance, outlines, and names."""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, Integer, UInt8

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.viz import labels as labelling

CROWD = 60  # with more segments than this, only those that can hold their name get one
_VALUES = (1.0, 0.80, 0.92)  # brightness of the first, second, third instance of a class, and so on round
_NUMBERED_SPREAD = 0.25  # of hues around the color of a class, where the number of its instances is not known


@dataclasses.dataclass(frozen=True)
class OverlayStyle:
    """How segments are drawn over their image."""

    alpha: float = 0.5  # opacity of the color over the image, 0..1
    labels: bool = True  # write names and scores


_USUAL = OverlayStyle()


def segment_colors(
    class_ids: Integer[np.ndarray, " S"] | Sequence[int],
    colors: Integer[np.ndarray, "C 3"],
    numbers: Integer[np.ndarray, " S"] | Sequence[int] | None = None,
) -> UInt8[np.ndarray, "S 3"]:
    """A color per segment: its class's own for the first of the class, hues around it for those that follow.

    The hues spread further the more segments a class has, up to the whole circle for dozens of them.

    Args:
      class_ids: class of every segment.
      colors: RGB of every class.
      numbers: of every segment among those of its class (default: their order). A color depends on class and number
        alone, so that an object of a film keeps its own.
    """
    class_ids = np.asarray(class_ids, np.int64).reshape(-1)
    colors = np.asarray(colors)
    seen: dict[int, int] = {}
    shades = np.zeros((len(class_ids), 3), np.uint8)
    total = np.bincount(class_ids, minlength=len(colors))
    for row, class_id in enumerate(class_ids.tolist()):
        k = seen.get(class_id, 0) if numbers is None else int(numbers[row])
        seen[class_id] = k + 1
        hue, saturation, value = colorsys.rgb_to_hsv(*(int(part) / 255 for part in colors[class_id]))
        spread = min(0.5, 0.07 + 0.012 * int(total[class_id])) if numbers is None else _NUMBERED_SPREAD
        if k:
            hue = (hue + spread * (2 * ((0.5 + k * 0.6180339887498949) % 1.0) - 1)) % 1.0
            saturation, value = max(saturation, 0.35), max(value, 0.45) * _VALUES[k % 3]
        shades[row] = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value)]
    return shades


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    segment_map: Integer[np.ndarray, "h w"],
    classes: ClassTable,
    class_ids: Integer[np.ndarray, " S"] | Sequence[int],
    scores: Float[np.ndarray, " S"] | Sequence[float] | None = None,
    *,
    numbers: Integer[np.ndarray, " S"] | Sequence[int] | None = None,
    scale: float = 1.0,
    style: OverlayStyle = _USUAL,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Draws a panoptic segmentation over its image.

    Args:
      image: RGB.
      segment_map: 0 is void and stays as it is in the image; i > 0 is row i - 1 of `class_ids` and `scores`.
      classes: names, colors and kinds; things get bolder outlines, stuff fainter fill, and labels of things are placed
        first.
      class_ids: class of every segment. A segment without pixels is not drawn.
      scores: written behind the names ("cat 0.87") if given; NaN leaves a name without one.
      numbers: decide the colors of segments of one class (`segment_colors`).
      scale: magnifies image and drawing (names on a 256-pixel image are hard to read).
      style: opacity of the colors, with or without names.

    Raises:
      ValueError: shapes that do not belong together, ids beyond the rows, classes beyond the names.
    """
    class_ids = np.asarray(class_ids, np.int64).reshape(-1)
    _check(image, segment_map, classes, class_ids, scores)
    segment_map = segment_map.astype(np.int32)
    if scale != 1.0:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
        segment_map = cv2.resize(segment_map, size, interpolation=cv2.INTER_NEAREST_EXACT)
    thing = np.asarray(classes.is_thing, bool)[class_ids]
    shades = segment_colors(class_ids, classes.palette, numbers)
    boxes = _boxes(segment_map, len(class_ids))
    drawn = _fill(image, segment_map, shades, np.where(thing, style.alpha, 0.85 * style.alpha))
    _draw_outlines(drawn, segment_map, shades, thing, boxes)
    if style.labels:
        values = [None] * len(class_ids) if scores is None else [float(score) for score in scores]
        texts = [_text(classes.names[c], value) for c, value in zip(class_ids.tolist(), values)]
        placed = _place_labels(segment_map, texts, thing, boxes)
        drawn = labelling.draw(drawn, list(placed.values()), shades[list(placed)])
    return drawn


def _check(image, segment_map, classes, class_ids, scores) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must be uint8 [h, w, 3], got {image.dtype} {list(image.shape)}")
    if segment_map.shape != image.shape[:2]:
        raise ValueError(
            f"segment map {list(segment_map.shape)} does not belong to an image of {list(image.shape[:2])}"
        )
    if int(segment_map.min()) < 0 or int(segment_map.max()) > len(class_ids):
        low, high = int(segment_map.min()), int(segment_map.max())
        raise ValueError(f"segment map holds ids {low}..{high}, but there are {len(class_ids)} segments")
    if scores is not None and len(scores) != len(class_ids):
        raise ValueError(f"{len(class_ids)} segments, but {len(scores)} scores")
    if len(class_ids) and not 0 <= int(class_ids.min()) <= int(class_ids.max()) < len(classes):
        low, high = int(class_ids.min()), int(class_ids.max())
        raise ValueError(f"classes {low}..{high}, but {len(classes)} names")


def _text(name: str, score: float | None) -> str:
    name = " ".join(name.split())  # a label is one line
    return name if score is None or np.isnan(score) else f"{name} {score:.2f}"


def _boxes(segment_map: np.ndarray, count: int) -> list[tuple[int, int, int, int] | None]:
    """(y0, x0, y1, x1) around each segment, exclusive ends; None for one without pixels."""
    low = np.full((count + 1, 2), max(segment_map.shape), np.int64)
    high = np.zeros((count + 1, 2), np.int64)
    for row in range(segment_map.shape[0]):
        line = segment_map[row]
        start = np.concatenate([[0], 1 + np.flatnonzero(line[1:] != line[:-1])])
        ids, end = line[start], np.append(start[1:], line.size)
        np.minimum.at(low[:, 1], ids, start)
        np.maximum.at(high[:, 1], ids, end)
        low[ids, 0] = np.minimum(low[ids, 0], row)
        high[ids, 0] = row + 1
    return [(int(l[0]), int(l[1]), int(h[0]), int(h[1])) if h[0] else None for l, h in zip(low[1:], high[1:])]  # noqa: E741


def _fill(image: np.ndarray, segment_map: np.ndarray, shades: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blends each segment's color over its pixels."""
    color = np.concatenate([np.zeros((1, 3)), shades]).astype(np.float32)
    opacity = np.concatenate([[0.0], alpha]).astype(np.float32)
    kept = (1.0 - opacity)[segment_map][..., None] * image
    return np.rint(kept + (opacity[:, None] * color)[segment_map]).astype(np.uint8)


def _draw_outlines(
    drawn: np.ndarray, segment_map: np.ndarray, shades: np.ndarray, thing: np.ndarray, boxes: list
) -> None:
    """Outlines each segment, stuff first: a lightened line for things, a thin darkened one for stuff. In place."""
    bold = max(1, round(min(drawn.shape[:2]) / 320))
    box_areas = [(box[2] - box[0]) * (box[3] - box[1]) for box, t in zip(boxes, thing) if box and t]
    if box_areas and np.median(box_areas) < (24 * bold) ** 2:
        bold = 1  # many small things: bold lines would hide them
    for row in sorted(range(len(boxes)), key=lambda r: bool(thing[r])):
        if boxes[row] is None:
            continue
        y0, x0, y1, x1 = boxes[row]
        mask = np.pad((segment_map[y0:y1, x0:x1] == row + 1).view(np.uint8), 1)
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        shade = shades[row].astype(np.float64)
        color = 255 - 0.45 * (255 - shade) if thing[row] else 0.55 * shade
        width = bold if thing[row] else 1
        cv2.drawContours(drawn, contours, -1, color.tolist(), width, cv2.LINE_AA, offset=(x0 - 1, y0 - 1))


def _place_labels(
    segment_map: np.ndarray, texts: list[str], thing: np.ndarray, boxes: list
) -> dict[int, labelling.Label]:
    """Labels by segment: things first, large ones first; inside where one fits, else beside, else none."""
    short = min(segment_map.shape)
    largest, smallest = max(10, round(short / 26)), max(9, round(short / 44))
    areas = np.bincount(segment_map.reshape(-1), minlength=len(texts) + 1)[1:]
    free = np.ones(segment_map.shape, bool)
    thing_pixels = np.concatenate([[False], thing])[segment_map]
    placed: dict[int, labelling.Label] = {}
    for row in sorted(range(len(texts)), key=lambda r: (not thing[r], -int(areas[r]), r)):
        if boxes[row] is None:
            continue
        y0, x0, y1, x1 = boxes[row]
        inside = labelling.place_inside(
            segment_map[y0:y1, x0:x1] == row + 1, texts[row], largest=largest, smallest=smallest,
            free=free[y0:y1, x0:x1],
        )  # fmt: skip
        if inside is not None:
            label = labelling.Label(
                inside.text, inside.font_size, inside.x0 + x0, inside.y0 + y0, inside.x1 + x0, inside.y1 + y0
            )
        elif len(texts) <= CROWD:
            others = thing_pixels & (segment_map != row + 1)
            beside = labelling.place_beside(boxes[row], texts[row], font_size=smallest, free=free, others=others)
            if beside is None:
                continue
            label = beside
        else:
            continue
        free[label.y0 : label.y1, label.x0 : label.x1] = False
        placed[row] = label
    return placed
