"""Mapillary Vistas, version 1.2, as its owners ship it (and as the package of version 2.0 contains it).

    <root>/config.json  (or config_v1.2.json)               labels: name, readable, color, instances, evaluate
    <root>/<split>/images/*.jpg                             images; splits `training` and `validation`
    <root>/<split>/[v1.2/]panoptic/panoptic_2018.json       COCO-panoptic, with the PNGs beside it
    <root>/<split>/[v1.2/]instances/*.png                   16-bit gray, label * 256 + number of the instance

The panoptic files are read where they are there, because the owners evaluate by them and only they mark crowds; else
the instance files. Labels that are not evaluated ("Unlabeled") are void. Category ids are label + 1, as in the
panoptic files. With version 1.2's own config these are 37 things and 28 stuff classes.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.datasets.layouts import VOID_CLASS, LabelledFolder, list_folders, lookup, pair_up, require_folder
from pfcn_jax.data.decode import decode_values
from pfcn_jax.data.example import DataError, Source
from pfcn_jax.data.options import DataOptions
from pfcn_jax.data.registry import register

INSTANCE_FACTOR = 256
_CONFIGS = ("config.json", "config_v1.2.json")
_KEYS = ("name", "readable", "color", "instances", "evaluate")
_PANOPTIC = "panoptic_2018.json"


def read_labels(root: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The label list of the owners' config; its positions are the labels of the instance files.

    Raises:
      DataError: no config, or not JSON of that form.
    """
    base = pathlib.Path(root)
    path = next((base / name for name in _CONFIGS if (base / name).is_file()), None)
    if path is None:
        raise DataError(f"{base}: no {' or '.join(_CONFIGS)}; is it the folder of Mapillary Vistas?")
    try:
        labels = json.loads(path.read_bytes())["labels"]
        return [{key: label[key] for key in _KEYS} for label in labels]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a config of Mapillary Vistas ({error!r})", kind="json-broken") from error


def class_table(labels: list[dict[str, Any]]) -> ClassTable:
    """The evaluated classes: things are the labels with instances."""
    return ClassTable.from_coco(
        {
            "id": position + 1,
            "name": label["readable"],
            "isthing": int(label["instances"]),
            "color": label["color"],
            "supercategory": label["name"],
        }
        for position, label in enumerate(labels)
        if label["evaluate"]
    )


@register("mapillary", splits=lambda root: list_folders(root, "*/images"))
def open_mapillary(options: DataOptions, split: str) -> Source:
    """A split of Mapillary Vistas from whichever label files are there.

    Raises:
      DataError: neither panoptic nor instance files are there, or a part of the layout is missing.
    """
    base = pathlib.Path(options.root)
    require_folder(base / split / "images", f"Mapillary Vistas images of split {split!r}")
    for folder in (f"{split}/v1.2", split):
        if (base / folder / "panoptic" / _PANOPTIC).is_file():
            return CocoFolder(
                base,
                split,
                images_dir=f"{split}/images",
                json_file=f"{folder}/panoptic/{_PANOPTIC}",
                labels_dir=f"{folder}/panoptic",
            )
    for folder in (f"{split}/v1.2", split):
        if (base / folder / "instances").is_dir():
            return MapillaryInstances(base, split, labels_dir=f"{folder}/instances")
    raise DataError(
        f"{base / split}: neither panoptic/{_PANOPTIC} nor instances/ (looked there and in v1.2/); unpack the labels"
    )


class MapillaryInstances(LabelledFolder):
    """A split of Mapillary Vistas from its instance files, as a `Source`."""

    def __init__(self, root: str | os.PathLike[str], split: str, *, labels_dir: str):
        base = pathlib.Path(root)
        images = base / split / "images"
        labels = read_labels(base)
        entries = pair_up(images.glob("*.jpg"), [(base / labels_dir, ".png")])
        super().__init__(class_table(labels), entries, root=images)
        self._class_of_label = np.full(len(labels), VOID_CLASS, np.int32)
        for category, class_id in self.classes.class_of_category.items():
            self._class_of_label[category - 1] = class_id

    def read_values(self, labels: Sequence[bytes], names: Sequence[str]) -> Int[np.ndarray, "h w"]:
        return decode_values(labels[0], names[0])

    def classify(self, values: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        class_id = lookup(values // INSTANCE_FACTOR, self._class_of_label)
        return class_id, np.zeros(values.shape, bool)
