"""Small sound exports of annotation tools: two photos with a disk in each, as the importers of `prepare` read them."""

from __future__ import annotations

import base64
import io
import json
import pathlib
import zlib
from typing import Any

import numpy as np
from PIL import Image

from pfcn_jax.data.importers.colors import voc_color
from tests.support.fault_inputs import NAMES, SIZE, Change, disk, make_detection, save_photos

CORNERS = [[10, 10], [40, 10], [40, 40], [10, 40]]  # x, y in pixels
STEMS = [pathlib.PurePath(name).stem for name in NAMES]
CAT = 8  # VOC's index


def _write_json(path: pathlib.Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def yolo_line(*numbers: float) -> Change:
    """Labels of one line instead of those of the first image."""
    return lambda root: (root / "labels/a.txt").write_text(" ".join(map(str, numbers)) + "\n")


def make_yolo(root: pathlib.Path) -> None:
    save_photos(root / "images")
    (root / "labels").mkdir()
    fractions = [value for x, y in CORNERS for value in (x / SIZE[1], y / SIZE[0])]
    for stem in STEMS:
        (root / f"labels/{stem}.txt").write_text(f"0 {' '.join(map(str, fractions))}\n")
    (root / "data.yaml").write_text("train: images\nnames: [disk]\n")


def make_labelme(root: pathlib.Path) -> None:
    save_photos(root / "images")
    shape = {"label": "disk", "shape_type": "polygon", "points": CORNERS, "group_id": None, "flags": {}}
    for name, stem in zip(NAMES, STEMS):
        file = {"version": "5.5.0", "flags": {}, "shapes": [shape], "imagePath": f"../images/{name}", "imageData": None}
        _write_json(root / f"labels/{stem}.json", file | {"imageHeight": SIZE[0], "imageWidth": SIZE[1]})


def make_voc(root: pathlib.Path) -> None:
    save_photos(root / "JPEGImages")
    for folder, value in (("SegmentationClass", CAT), ("SegmentationObject", 1)):
        (root / folder).mkdir()
        for stem in STEMS:
            save_indices(root / folder / f"{stem}.png", disk() * value)


def save_indices(path: pathlib.Path, values: np.ndarray) -> None:
    """A PNG with VOC's palette."""
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([part for index in range(256) for part in voc_color(index)])
    image.save(path)


def make_palette(root: pathlib.Path) -> None:
    save_photos(root / "images")
    (root / "masks").mkdir()
    colors = np.array([[0, 0, 200], [200, 30, 0]], np.uint8)
    for stem in STEMS:
        Image.fromarray(colors[disk().astype(int)]).save(root / f"masks/{stem}.png")
    table = [{"name": "ground", "color": [0, 0, 200], "isthing": 0}, {"name": "disk", "color": [200, 30, 0]}]
    _write_json(root / "colors.json", [{"isthing": 1} | entry for entry in table])


def make_cvat(root: pathlib.Path) -> None:
    save_photos(root / "images")
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in CORNERS)
    shape = f'<polygon label="disk" points="{points}" occluded="0" z_order="0"></polygon>'
    images = "".join(
        f'<image id="{i}" name="{name}" width="{SIZE[1]}" height="{SIZE[0]}">{shape}</image>'
        for i, name in enumerate(NAMES)
    )
    meta = "<meta><task><labels><label><name>disk</name></label></labels></task></meta>"
    (root / "annotations.xml").write_text(f"<annotations><version>1.1</version>{meta}{images}</annotations>")


def make_label_studio(root: pathlib.Path) -> None:
    save_photos(root / "images")
    value = {"points": [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in CORNERS], "polygonlabels": ["disk"]}
    region = {"id": "r", "type": "polygonlabels", "value": value, "original_width": SIZE[1], "original_height": SIZE[0]}
    tasks = [
        {"id": i, "data": {"image": f"/data/upload/1/{name}"}, "annotations": [{"id": i, "result": [region]}]}
        for i, name in enumerate(NAMES)
    ]
    _write_json(root / "tasks.json", tasks)


def make_roboflow(root: pathlib.Path) -> None:
    make_detection(root)
    (root / "images").rename(root / "train")
    (root / "instances.json").rename(root / "train/_annotations.coco.json")


def make_supervisely(root: pathlib.Path) -> None:
    save_photos(root / "set/img")
    _write_json(root / "meta.json", {"classes": [{"title": "disk", "shape": "any"}], "tags": []})
    file = io.BytesIO()
    Image.fromarray(disk()[10:31, 20:41].astype(np.uint8) * 255).save(file, format="PNG")
    data = base64.b64encode(zlib.compress(file.getvalue())).decode()
    bitmap = {"classTitle": "disk", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [20, 10]}}
    points = {"exterior": CORNERS[:3], "interior": []}
    polygon = {"classTitle": "disk", "geometryType": "polygon", "points": points}
    for name in NAMES:
        content = {"size": {"height": SIZE[0], "width": SIZE[1]}, "objects": [bitmap, polygon]}
        _write_json(root / f"set/ann/{name}.json", content)
