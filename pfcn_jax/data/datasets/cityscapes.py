"""Cityscapes as its owners ship it (leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, unpacked).

    <root>/leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png           images
    <root>/gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_instanceIds.png         labels, 16-bit gray

A label value below 1000 is a label id, one from 1000 on is label id * 1000 + the number of the instance. The rules are
those of the benchmark's panoptic evaluation: labels without a train id are void; a value below 1000 of a class with
instances (a group: "persongroup", "cargroup", ...) is a crowd. Category ids are the label ids, as in the benchmark's
own panoptic files.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.layouts import VOID_CLASS, Entry, LabelledFolder, list_folders, lookup, require_folder
from pfcn_jax.data.decode import decode_values
from pfcn_jax.data.example import DataError
from pfcn_jax.data.options import DataOptions
from pfcn_jax.data.registry import register

INSTANCE_FACTOR = 1000
_IMAGE, _LABELS = "_leftImg8bit.png", "_gtFine_instanceIds.png"
_NO_TRAIN_ID = 255


class Label(NamedTuple):
    """A line of the benchmark's label table."""

    name: str
    id: int
    train_id: int
    group: str
    has_instances: bool
    color: tuple[int, int, int]


LABELS = (
    Label("unlabeled", 0, 255, "void", False, (0, 0, 0)),
    Label("ego vehicle", 1, 255, "void", False, (0, 0, 0)),
    Label("rectification border", 2, 255, "void", False, (0, 0, 0)),
    Label("out of roi", 3, 255, "void", False, (0, 0, 0)),
    Label("static", 4, 255, "void", False, (0, 0, 0)),
    Label("dynamic", 5, 255, "void", False, (111, 74, 0)),
    Label("ground", 6, 255, "void", False, (81, 0, 81)),
    Label("road", 7, 0, "flat", False, (128, 64, 128)),
    Label("sidewalk", 8, 1, "flat", False, (244, 35, 232)),
    Label("parking", 9, 255, "flat", False, (250, 170, 160)),
    Label("rail track", 10, 255, "flat", False, (230, 150, 140)),
    Label("building", 11, 2, "construction", False, (70, 70, 70)),
    Label("wall", 12, 3, "construction", False, (102, 102, 156)),
    Label("fence", 13, 4, "construction", False, (190, 153, 153)),
    Label("guard rail", 14, 255, "construction", False, (180, 165, 180)),
    Label("bridge", 15, 255, "construction", False, (150, 100, 100)),
    Label("tunnel", 16, 255, "construction", False, (150, 120, 90)),
    Label("pole", 17, 5, "object", False, (153, 153, 153)),
    Label("polegroup", 18, 255, "object", False, (153, 153, 153)),
    Label("traffic light", 19, 6, "object", False, (250, 170, 30)),
    Label("traffic sign", 20, 7, "object", False, (220, 220, 0)),
    Label("vegetation", 21, 8, "nature", False, (107, 142, 35)),
    Label("terrain", 22, 9, "nature", False, (152, 251, 152)),
    Label("sky", 23, 10, "sky", False, (70, 130, 180)),
    Label("person", 24, 11, "human", True, (220, 20, 60)),
    Label("rider", 25, 12, "human", True, (255, 0, 0)),
    Label("car", 26, 13, "vehicle", True, (0, 0, 142)),
    Label("truck", 27, 14, "vehicle", True, (0, 0, 70)),
    Label("bus", 28, 15, "vehicle", True, (0, 60, 100)),
    Label("caravan", 29, 255, "vehicle", True, (0, 0, 90)),
    Label("trailer", 30, 255, "vehicle", True, (0, 0, 110)),
    Label("train", 31, 16, "vehicle", True, (0, 80, 100)),
    Label("motorcycle", 32, 17, "vehicle", True, (0, 0, 230)),
    Label("bicycle", 33, 18, "vehicle", True, (119, 11, 32)),
)  # "license plate" has id -1, which no label file holds


def class_table() -> ClassTable:
    """The 19 evaluated classes: 8 things, then 11 stuff, each kind in the order of the train ids."""
    return ClassTable.from_coco(
        {
            "id": label.id,
            "name": label.name,
            "isthing": int(label.has_instances),
            "color": label.color,
            "supercategory": label.group,
        }
        for label in LABELS
        if label.train_id != _NO_TRAIN_ID
    )


class Cityscapes(LabelledFolder):
    """A split of Cityscapes with fine annotations, as a `Source`."""

    def __init__(self, root: str | os.PathLike[str], split: str):
        """Lists the files; the id of an example is `<city>_<sequence>_<frame>`.

        Raises:
          DataError: a folder is missing, or no image is in it.
        """
        base = pathlib.Path(root)
        images = require_folder(base / "leftImg8bit" / split, f"Cityscapes images of split {split!r}")
        labels = require_folder(base / "gtFine" / split, f"Cityscapes fine annotations of split {split!r}")
        entries = []
        for image in sorted(images.glob(f"*/*{_IMAGE}")):
            stem = image.name.removesuffix(_IMAGE)
            entries.append(Entry(stem, image, (labels / image.parent.name / f"{stem}{_LABELS}",)))
        if not entries:
            raise DataError(f"{images}: no <city>/*{_IMAGE}", kind="picture-missing")
        super().__init__(class_table(), entries, root=images)
        self._class_of_label = np.full(len(LABELS), VOID_CLASS, np.int32)
        for category, class_id in self.classes.class_of_category.items():
            self._class_of_label[category] = class_id
        self._has_instances = np.array([label.has_instances for label in LABELS])

    def read_values(self, labels: Sequence[bytes], names: Sequence[str]) -> Int[np.ndarray, "h w"]:
        return decode_values(labels[0], names[0])

    def classify(self, values: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        group = values < INSTANCE_FACTOR
        label = np.where(group, values, values // INSTANCE_FACTOR)
        class_id = lookup(label, self._class_of_label)
        return class_id, group & lookup(label, self._has_instances.astype(np.int32)).astype(bool) & (class_id >= 0)


@register("cityscapes", splits=lambda root: list_folders(root, "gtFine/*"))
def open_cityscapes(options: DataOptions, split: str) -> Cityscapes:
    return Cityscapes(options.root, split)
