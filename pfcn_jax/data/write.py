"""Writing examples as a COCO-panoptic folder: to look at drawn scenes, to change formats, and for tests."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from pfcn_jax.codec import write_id_png
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.example import Example
from pfcn_jax.utils.atomic import write_text

PICTURE_FORMATS: dict[str, dict[str, Any]] = {"jpg": {"quality": 95, "subsampling": 0}, "png": {}}


def write_coco_folder(
    root: str | os.PathLike[str],
    split: str,
    examples: Iterable[Example],
    classes: ClassTable,
    *,
    picture_format: str = "jpg",
) -> pathlib.Path:
    """Writes `<root>/<split>/`, `<root>/annotations/panoptic_<split>.json` and `.../panoptic_<split>/`.

    Images are named by their position, ids count from 1; segment ids are spread over the PNG's three bytes so that
    a reader that forgets one of them fails.

    Args:
      picture_format: `jpg` (lossy, as COCO) or `png` (the images come back bit for bit).

    Returns:
      The root.
    """
    if picture_format not in PICTURE_FORMATS:
        raise ValueError(f"unknown image format {picture_format!r}; known: {', '.join(PICTURE_FORMATS)}")
    root = pathlib.Path(root)
    picture_dir, label_dir = root / split, root / "annotations" / f"panoptic_{split}"
    picture_dir.mkdir(parents=True, exist_ok=True)
    label_dir.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id, example in enumerate(examples, start=1):
        height, width = example.size
        name = f"{image_id:012d}"
        picture = f"{name}.{picture_format}"
        Image.fromarray(example.image).save(picture_dir / picture, **PICTURE_FORMATS[picture_format])
        ids, segments = _paint(example, classes)
        write_id_png(label_dir / f"{name}.png", ids)
        images.append({"id": image_id, "file_name": picture, "height": height, "width": width})
        annotations.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments})
    content = {"categories": classes.to_coco(), "images": images, "annotations": annotations}
    write_text(root / "annotations" / f"panoptic_{split}.json", json.dumps(content))
    return root


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
