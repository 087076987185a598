"""LabelMe: `labelme/NAME.json` for each image, things and stuff; opens in the editor for correction."""

from __future__ import annotations

import base64
import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.inference.formats.registry import ImageEntry, register
from pfcn_jax.inference.outlines import outline
from pfcn_jax.inference.result import Result, Segment
from pfcn_jax.utils.atomic import write_json


@register("labelme")
class LabelMe:
    """A segment of one part is a polygon; with several parts or holes it is a mask in its box (LabelMe 5 and later)."""

    def __init__(self, folder: pathlib.Path, classes: ClassTable):
        self._folder = folder

    def add(self, entry: ImageEntry, result: Result) -> None:
        height, width = result.size
        path = self._folder / "labelme" / f"{entry.name}.json"
        write_json(
            path,
            {
                "version": "5.5.0",
                "flags": {},
                "shapes": [_shape(result, segment) for segment in result.segments],
                "imagePath": os.path.relpath(entry.path, path.parent).replace(os.sep, "/"),
                "imageData": None,
                "imageHeight": height,
                "imageWidth": width,
            },
        )

    def finish(self, order: Sequence[str]) -> None:
        """Nothing: every image has a file of its own."""


def _shape(result: Result, segment: Segment) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "label": segment.class_name,
        "group_id": segment.id,
        "description": f"score {segment.score:.3f}",
        "flags": {},
        "mask": None,
    }
    rings = outline(result.mask(segment))
    if rings.is_simple:
        return shape | {"shape_type": "polygon", "points": rings.outer[0].astype(float).tolist()}
    x0, y0, x1, y1 = segment.box
    png = io.BytesIO()
    Image.fromarray(result.mask(segment)[y0:y1, x0:x1]).save(png, "PNG")
    corners = [[float(x0), float(y0)], [float(x1 - 1), float(y1 - 1)]]  # inclusive, as LabelMe has them
    return shape | {"shape_type": "mask", "points": corners, "mask": base64.b64encode(png.getvalue()).decode()}
