"""YOLO segmentation: `images/NAME`, `labels/NAME.txt` with one polygon a line in 0..1, and `data.yaml`. Things only."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.image_files import yolo_label_path
from pfcn_jax.inference.formats.registry import ImageEntry, register
from pfcn_jax.inference.outlines import outline
from pfcn_jax.inference.result import Result
from pfcn_jax.utils.atomic import write_text


@register("yolo")
class Yolo:
    """Class index, then x y of each corner. Several parts and holes are joined by bridges of no width.

    Images are copied, not linked: YOLO tools rewrite damaged JPEGs in their place.
    """

    def __init__(self, folder: pathlib.Path, classes: ClassTable):
        self._folder = folder
        self._names = [name for name, thing in zip(classes.names, classes.is_thing) if thing]

    def add(self, entry: ImageEntry, result: Result) -> None:
        size = np.array(result.size[::-1], np.float64)
        lines = []
        for segment in result.segments:
            if segment.is_thing:
                corners = outline(result.mask(segment)).joined() / size
                lines.append(f"{segment.class_id} " + " ".join(f"{value:.7g}" for value in corners.reshape(-1)))
        image = self._folder / "images" / f"{entry.name}{pathlib.Path(entry.path).suffix}"
        image.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(entry.path, image)
        write_text(yolo_label_path(image), "".join(f"{line}\n" for line in lines))

    def finish(self, order: Sequence[str]) -> None:
        names = "\n".join(f"  {index}: {json.dumps(name)}" for index, name in enumerate(self._names))
        write_text(self._folder / "data.yaml", f"train: images\nnames:\n{names}\n")
