"""ADE20K panoptic: 150 classes of the scene parsing challenge, 100 of them things (category ids 0..149).

    <root>/images/<split>/*.jpg                               images; splits `training` and `validation`
    <root>/ade20k_panoptic_{train,val}.json (and a folder)    COCO-panoptic files, read where they are there; else
    <root>/annotations/<split>/*.png                          8-bit gray, category id + 1, 0 = other
    <root>/annotations_instance/<split>/*.png                 8-bit RGB: R = 1..100 (i-th thing), G = instance or 0

Root is the folder `ADEChallengeData2016` or the one above it. Without panoptic files they are composed by the
benchmark's rule: stuff comes from `annotations`, instances from `annotations_instance` and lie over it, thing pixels
without an instance are void, and there are no crowds.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.datasets.layouts import (
    UNKNOWN_CLASS,
    VOID_CLASS,
    LabelledFolder,
    list_folders,
    lookup,
    pair_up,
    require_folder,
)
from pfcn_jax.data.decode import decode_ids, decode_values
from pfcn_jax.data.example import DataError, Source
from pfcn_jax.data.options import DataOptions
from pfcn_jax.data.registry import register

_SHORT = {"training": "train", "validation": "val"}  # in the names of the panoptic files
_FOLDER = "ADEChallengeData2016"
_INSTANCE = 256  # values from here on are instances: 256 * number + thing


def class_table() -> ClassTable:
    """The 150 classes with the challenge's names and colors, things first."""
    return ClassTable.from_coco(json.loads(pathlib.Path(__file__).with_name("ade20k_classes.json").read_text()))


def _splits(root: str) -> list[str]:
    return list_folders(root, "images/*") + list_folders(root, f"{_FOLDER}/images/*")


@register("ade20k", splits=_splits)
def open_ade20k(options: DataOptions, split: str) -> Source:
    """A split of ADE20K from the panoptic files or, without them, from the challenge's own.

    Raises:
      DataError: a part of the layout is missing.
    """
    base = pathlib.Path(options.root)
    if (base / _FOLDER).is_dir():
        base /= _FOLDER
    require_folder(base / "images" / split, f"ADE20K images of split {split!r}")
    panoptic = f"ade20k_panoptic_{_SHORT.get(split, split)}"
    if (base / f"{panoptic}.json").is_file():
        return CocoFolder(base, split, images_dir=f"images/{split}", json_file=f"{panoptic}.json", labels_dir=panoptic)
    return Ade20kAnnotations(base, split)


class Ade20kAnnotations(LabelledFolder):
    """A split of ADE20K from its semantic and its instance files, as a `Source`."""

    def __init__(self, root: str | os.PathLike[str], split: str):
        base = pathlib.Path(root)
        semantic = require_folder(base / "annotations" / split, "ADE20K semantic labels")
        instances = require_folder(base / "annotations_instance" / split, "ADE20K instance labels")
        images = base / "images" / split
        entries = pair_up(images.glob("*.jpg"), [(semantic, ".png"), (instances, ".png")])
        super().__init__(class_table(), entries, root=images)
        table = self.classes
        self._stuff_of_semantic = np.full(len(table) + 1, VOID_CLASS, np.int32)
        for category, class_id in table.class_of_category.items():
            if not table.is_thing[class_id]:
                self._stuff_of_semantic[category + 1] = class_id
        # Things are in ascending order of their ids, in the instance files as in the table.
        self._thing_of_red = np.concatenate([[UNKNOWN_CLASS], np.arange(table.num_things)]).astype(np.int32)

    def read_values(self, labels: Sequence[bytes], names: Sequence[str]) -> Int[np.ndarray, "h w"]:
        semantic = decode_values(labels[0], names[0])
        color = decode_ids(labels[1], names[1])
        if semantic.shape != color.shape:
            raise DataError(f"{names[0]} and {names[1]}: sizes differ", kind="label-size")
        red, green = color & 255, (color >> 8) & 255
        return np.where(green > 0, _INSTANCE * green + red, semantic)

    def classify(self, values: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        stuff = lookup(values, self._stuff_of_semantic)
        thing = lookup(values % _INSTANCE, self._thing_of_red)
        return np.where(values >= _INSTANCE, thing, stuff), np.zeros(values.shape, bool)
