"""A tiny dataset in the COCO-panoptic layout, written from drawn scenes; other tests may use it too."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from pfcn_jax.codec import write_id_png
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.scenes import Scenes, class_table
from pfcn_jax.data.example import Example
from pfcn_jax.data.segments import find_runs

_SAVE_OPTIONS: dict[str, dict[str, Any]] = {"jpg": {"quality": 95, "subsampling": 0}, "png": {}}
SIZES = ((96, 128), (128, 96), (112, 112), (80, 144))


def tiny_examples(count: int, *, split: str = "train", crowd: bool = True) -> list[Example]:
    """`count` scenes of four sizes; with `crowd`, the first thing of every third one is a crowd, and void is there."""
    examples = []
    for index in range(count):
        example = Scenes(split, size=SIZES[index % len(SIZES)], length=count)[index]
        is_crowd = example.is_crowd.copy()
        segment_map = example.segment_map.copy()
        if crowd and index % 3 == 0 and (example.class_id < 5).any():
            is_crowd[0] = True
        segment_map[-3:, :7] = 0
        kept = np.isin(np.arange(len(is_crowd)) + 1, segment_map)
        assert kept.all(), "the void corner hides a whole segment: take another scene"
        examples.append(dataclasses.replace(example, runs=find_runs(segment_map), is_crowd=is_crowd))
    return examples


def write_tiny_coco(
    root: pathlib.Path, *, splits: dict[str, int] | None = None, image_format: str = "jpg"
) -> pathlib.Path:
    """Writes splits (name -> number of images; default 6 of "train", 4 of "val") and returns the root."""
    for split, count in (splits or {"train": 6, "val": 4}).items():
        write_coco_folder(root, split, tiny_examples(count, split=split), class_table(), image_format=image_format)
    return root


def write_coco_folder(
    root: pathlib.Path, split: str, examples: Iterable[Example], classes: ClassTable, *, image_format: str = "jpg"
) -> None:
    """Writes `<root>/<split>/`, `<root>/annotations/panoptic_<split>.json` and `.../panoptic_<split>/`.

    Images are named by their position, ids count from 1; segment ids are spread over the PNG's three bytes so that
    a reader that forgets one of them fails. `jpg` is lossy, as COCO; from `png` the images come back bit for bit.
    """
    image_dir, label_dir = root / split, root / "annotations" / f"panoptic_{split}"
    image_dir.mkdir(parents=True, exist_ok=True)
    label_dir.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id, example in enumerate(examples, start=1):
        height, width = example.size
        name = f"{image_id:012d}"
        file_name = f"{name}.{image_format}"
        Image.fromarray(example.image).save(image_dir / file_name, **_SAVE_OPTIONS[image_format])
        ids, segments = _paint(example, classes)
        write_id_png(label_dir / f"{name}.png", ids)
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        annotations.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments})
    content = {"categories": classes.to_coco(), "images": images, "annotations": annotations}
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))


def _paint(example: Example, classes: ClassTable) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The id map and `segments_info` of an example."""
    count = len(example.class_id)
    value = np.arange(count + 1, dtype=np.int32)
    id_of_row = value + (value % 7) * 256 + (value % 11) * 65536
    segments = []
    for row in range(count):
        x0, y0, x1, y1 = example.box[row].astype(int).tolist()
        segments.append(
            {
                "id": int(id_of_row[row + 1]),
                "category_id": classes.category_ids[int(example.class_id[row])],
                "iscrowd": int(example.is_crowd[row]),
                "area": int(example.area[row]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
        )
    return id_of_row[example.segment_map], segments
