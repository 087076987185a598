"""COCO: panoptic (a PNG of ids for each image, and one JSON) and instances (RLE masks with scores)."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from pfcn_jax.codec import write_id_png
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.inference.formats.registry import ImageEntry, register
from pfcn_jax.inference.result import Result
from pfcn_jax.utils.atomic import write_json


def _image(entry: ImageEntry, result: Result) -> dict[str, Any]:
    height, width = result.size
    return {"id": entry.image_id, "file_name": entry.path, "height": height, "width": width}


@register("coco-panoptic")
class CocoPanoptic:
    """`panoptic/NAME.png` with ids as colors, and `panoptic.json` (or a JSON of another name)."""

    def __init__(self, folder: pathlib.Path, classes: ClassTable, *, json_name: str = "panoptic.json"):
        self._folder, self._classes, self._json_name = folder, classes, json_name
        self._entries: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.write_maps = True  # False: the JSON alone

    def add(self, entry: ImageEntry, result: Result) -> None:
        annotation = result.to_coco(entry.image_id, f"{entry.name}.png")
        self._entries[entry.key] = (_image(entry, result), annotation)
        if self.write_maps:
            path = self._folder / "panoptic" / f"{entry.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_id_png(path, result.segment_map)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the images so far."""
        return tuple(self._entries)

    def finish(self, order: Sequence[str]) -> None:
        entries = [self._entries[key] for key in order if key in self._entries]
        content = {
            "images": [image for image, _ in entries],
            "annotations": [annotation for _, annotation in entries],
            "categories": self._classes.to_coco(),
        }
        write_json(self._folder / self._json_name, content)


@register("coco-instances")
class CocoInstances:
    """`instances.json`: the things, as compressed RLE with scores. Its `annotations` are what `COCO.loadRes` takes."""

    def __init__(self, folder: pathlib.Path, classes: ClassTable):
        self._folder, self._classes = folder, classes
        self._entries: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}

    def add(self, entry: ImageEntry, result: Result) -> None:
        self._entries[entry.key] = (_image(entry, result), result.to_coco_instances(entry.image_id))

    def finish(self, order: Sequence[str]) -> None:
        images, annotations = [], []
        for key in order:
            if key in self._entries:
                image, found = self._entries[key]
                images.append(image)
                annotations += found
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
        categories = [entry for entry in self._classes.to_coco() if entry["isthing"]]
        write_json(
            self._folder / "instances.json", {"images": images, "annotations": annotations, "categories": categories}
        )
