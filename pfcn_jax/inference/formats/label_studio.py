"""Label Studio: `label_studio.json`, tasks with pre-annotations as polygons in percent, things and stuff."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.inference.formats.registry import ImageEntry, register
from pfcn_jax.inference.outlines import outline
from pfcn_jax.inference.result import Result
from pfcn_jax.utils.atomic import write_json, write_text

LABELING = (
    '<View><Image name="image" value="$image"/>'
    '<PolygonLabels name="label" toName="image">{labels}</PolygonLabels></View>\n'
)


@register("label-studio")
class LabelStudio:
    """For the labeling interface with an Image `image` and PolygonLabels `label` (written to `label_studio.xml`)."""

    def __init__(self, folder: pathlib.Path, classes: ClassTable):
        self._folder, self._classes = folder, classes
        self._tasks: dict[str, dict[str, Any]] = {}

    def add(self, entry: ImageEntry, result: Result) -> None:
        height, width = result.size
        percent = np.array([100.0 / width, 100.0 / height])
        regions = [
            {
                "id": f"segment-{segment.id}",
                "type": "polygonlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": round(segment.score, 5),
                "value": {
                    "points": (outline(result.mask(segment)).joined() * percent).tolist(),
                    "polygonlabels": [segment.class_name],
                    "closed": True,
                },
            }
            for segment in result.segments
        ]
        mean = sum(segment.score for segment in result.segments) / max(len(result.segments), 1)
        prediction = {"model_version": "pfcn_jax", "score": round(mean, 5), "result": regions}
        self._tasks[entry.key] = {"data": {"image": entry.path}, "predictions": [prediction]}

    def finish(self, order: Sequence[str]) -> None:
        labels = "".join(f"<Label value={quoteattr(name)}/>" for name in self._classes.names)
        write_json(self._folder / "label_studio.json", [self._tasks[key] for key in order if key in self._tasks])
        write_text(self._folder / "label_studio.xml", LABELING.format(labels=labels))
