"""Supervisely's projects give the segments that were drawn; what has no pixels is refused with its number."""

from __future__ import annotations

import base64
import io
import json
import pathlib
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.importers.drawn import SIZE, box, disk, prepare, visible, write_image
from tests.data.importers.support import imported

# The three by three ring of the documentation of Supervisely's Python package (`Bitmap.base64_2_data`).
RING = (
    "eJzrDPBz5+WS4mJgYOD19HAJAtLMIMwIInOeqf8BUmwBPiGuQPr///9Lb86/C2QxlgT5BTM4PLuRBuTwebo4hlTMSa44sKHhISMDuxpTYrr03F6g"
    "DIOnq5/LOqeEJgDM5ht6"
)


def bitmap(label: str, mask: np.ndarray, mode: str = "1", **more: Any) -> dict[str, Any]:
    """An object with the part of a mask that is not empty, as a PNG of a mode."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    own = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if mode == "RGBA":
        png = Image.fromarray(np.dstack([np.full((*own.shape, 3), 90, np.uint8), own.astype(np.uint8) * 255]))
    else:
        png = Image.fromarray(own.astype(np.uint8) * 255).convert(mode)
    file = io.BytesIO()
    png.save(file, format="PNG", **({"transparency": 0} if mode == "1" else {}))
    data = base64.b64encode(zlib.compress(file.getvalue())).decode()
    origin = [int(columns[0]), int(rows[0])]
    return {"classTitle": label, "geometryType": "bitmap", "bitmap": {"data": data, "origin": origin}, **more}


def polygon(label: str, exterior: list[list[float]], *interior: list[list[float]], **more: Any) -> dict[str, Any]:
    points = {"exterior": exterior, "interior": list(interior)}
    return {"classTitle": label, "geometryType": "polygon", "points": points, **more}


def write_project(root: pathlib.Path, data_sets: dict[str, list[dict[str, Any]]], suffix: str = ".png.json") -> None:
    """A project with one image `a.png` in each data set."""
    classes = [{"title": "cell", "shape": "bitmap"}, {"title": "field", "shape": "any", "color": "#00ff00"}]
    root.mkdir(exist_ok=True)
    (root / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
    for name, objects in data_sets.items():
        write_image(root / name / "img/a.png")
        content = {"description": "", "tags": [], "size": {"height": SIZE[0], "width": SIZE[1]}, "objects": objects}
        path = root / name / "ann" / f"a{suffix}"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))


def square(y0: int, x0: int, y1: int, x1: int) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


@pytest.mark.parametrize("mode", ["1", "L", "RGBA"])
def test_bitmaps_and_polygons_with_holes_in_their_order(tmp_path, capsys, mode):
    objects = [
        bitmap("cell", disk(22, 14, 5), mode),
        polygon("field", square(10, 5, 30, 40), square(15, 25, 20, 30)),  # above the cell: it comes later
        bitmap("cell", disk(12, 10, 4), mode),
        polygon("cell", square(40, 50, 44, 54)),
        bitmap("cell", box(40, 10, 42, 12), mode, instance="one"),
        bitmap("cell", box(40, 20, 42, 22), mode, instance="one"),
    ]
    write_project(tmp_path / "in", {"ds": objects})
    assert prepare("supervisely", tmp_path / "in", tmp_path / "out", "--skip-bad") == 0
    text = capsys.readouterr().out
    assert "objects: 6 found = 4 written + 1 left out + 1 joined with others" in text
    field = box(10, 5, 31, 41) & ~box(15, 25, 21, 31)  # points are pixels, the border is inside
    pair = box(40, 10, 42, 12) | box(40, 20, 42, 22)
    drawn = [("field", field), ("cell", disk(12, 10, 4)), ("cell", box(40, 50, 45, 55)), ("cell", pair)]
    assert imported(tmp_path / "out", "train")["a.png"] == visible([("cell", disk(22, 14, 5)), *drawn])


def test_a_bitmap_of_the_tool_itself(tmp_path):
    own = {"classTitle": "cell", "geometryType": "bitmap", "bitmap": {"data": RING, "origin": [7, 5]}}
    write_project(tmp_path / "in", {"ds": [own]})
    assert prepare("supervisely", tmp_path / "in", tmp_path / "out") == 0
    ring = box(5, 7, 8, 10) & ~box(6, 8, 7, 9)
    assert imported(tmp_path / "out", "train")["a.png"] == visible([("cell", ring)])


def test_data_sets_with_names_of_splits_and_old_file_names(tmp_path):
    old = bitmap("cell", disk(20, 20, 6)) | {"geometryType": None, "points": {"exterior": [], "interior": []}}
    write_project(tmp_path / "in", {"train": [old], "Validation": [polygon("field", square(1, 1, 9, 9))]}, ".json")
    assert prepare("supervisely", tmp_path / "in", tmp_path / "out", "--stuff", "field", "--background", "") == 0
    assert imported(tmp_path / "out", "train")["a.png"] == visible([("cell", disk(20, 20, 6))], "")
    assert imported(tmp_path / "out", "val")["a.png"] == visible([("field", box(1, 1, 10, 10))], "")


def test_objects_without_pixels_are_counted(tmp_path, capsys):
    good = bitmap("cell", disk(20, 20, 6))
    rectangle = {"classTitle": "field", "geometryType": "rectangle", "points": {"exterior": [[1, 1], [5, 5]]}}
    outside = bitmap("cell", box(0, 0, 10, 10)) | {"bitmap": good["bitmap"] | {"origin": [60, 5]}}
    broken = [good | {"bitmap": {"data": data, "origin": [1, 1]}} for data in ("%%%", "aGVsbG8=", RING[:-8], None, 5)]
    faults = [
        good | {"classTitle": "horse"},
        polygon("field", [[1, 1], [2, 2]]),
        polygon("field", square(1, 1, 9, 9), [[2, 2], [3]]),
        {"classTitle": "field", "geometryType": "point", "points": {"exterior": [[1, 1]], "interior": []}},
    ]
    write_project(tmp_path / "in", {"ds": [good, rectangle, rectangle, outside, *broken, *faults]})
    write_image(tmp_path / "in/ds/img/more.png")
    assert prepare("supervisely", tmp_path / "in", tmp_path / "out") == 2
    message = capsys.readouterr().err
    for words in (
        "12 objects cannot be used",
        "2 are of the kind rectangle, which is no mask",
        "6 have a bitmap that cannot be decoded, or lies outside",
        "1 have a class that meta.json does not list, as objects[9] of",
        "1 have a polygon of fewer than three points",
        "1 are of the kind point",
    ):
        assert words in message
    assert prepare("supervisely", tmp_path / "in", tmp_path / "out", "--skip-bad") == 0
    text = capsys.readouterr().out
    assert "objects: 13 found = 1 written + 12 left out" in text and "1 images have no annotation file" in text


def test_faults_of_files_are_named(tmp_path, capsys):
    write_project(tmp_path / "in", {"ds": []})
    path = tmp_path / "in/ds/ann/a.png.json"
    content = json.loads(path.read_text())
    for change, words in (
        ({"size": {"height": SIZE[1], "width": SIZE[0]}}, "height and width are exchanged"),
        ({"size": {"height": "48", "width": 64}}, "must be numbers"),
        ({"objects": {}}, "objects is {} (an object), must be a list"),
        ({"objects": ["cell"]}, "objects[0] of"),
    ):
        path.write_text(json.dumps(content | change))
        assert prepare("supervisely", tmp_path / "in", tmp_path / "out") == 2
        assert words in capsys.readouterr().err
    (tmp_path / "in/ds/img/a.png").unlink()
    assert prepare("supervisely", tmp_path / "in", tmp_path / "out") == 2
    assert "1 of 1 images are not below" in capsys.readouterr().err
    (tmp_path / "in/meta.json").write_text('{"classes": [{"name": "cell"}]}')
    assert prepare("supervisely", tmp_path, tmp_path / "out") == 2
    assert "classes[0]: title is null, must be text" in capsys.readouterr().err
    assert prepare("supervisely", tmp_path / "in/ds", tmp_path / "out") == 2
    assert "no meta.json" in capsys.readouterr().err
