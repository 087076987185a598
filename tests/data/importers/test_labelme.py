"""LabelMe files: every kind of shape, groups, images beside, elsewhere and inside; each fault is named and counted."""

from __future__ import annotations

import base64
import io
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.inference.outlines import outline
from tests.data.importers.support import (
    SIZE,
    STUFF,
    THINGS,
    imported,
    name_of,
    prepare,
    save_images,
    scenes,
    segments_of,
    square,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder


def box(y0: float, x0: float, y1: float, x1: float, label: str = "cat", **more: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": "rectangle", "points": [[x0, y0], [x1, y1]], "group_id": None, **more}


def mask_shape(mask: np.ndarray, label: str, **more: Any) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    (top, bottom), (left, right) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
    png = io.BytesIO()
    Image.fromarray(mask[top : bottom + 1, left : right + 1].astype(np.uint8)).save(png, format="PNG")
    text = base64.b64encode(png.getvalue()).decode()
    return {"label": label, "shape_type": "mask", "points": [[left, top], [right, bottom]], "mask": text, **more}


def write_file(path: pathlib.Path, image: str, shapes: list[Any], /, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None}
    path.write_text(json.dumps(content | {"imageHeight": SIZE[0], "imageWidth": SIZE[1]} | more))


def shapes_of_scene(index: int) -> list[dict[str, Any]]:
    """Simple segments as polygons, others as masks in two halves of one group."""
    scene, shapes = scenes()[index], []
    for row in range(len(scene.class_id)):
        mask, name = scene.segment_map == row + 1, name_of(scene, row)
        rings = outline(mask)
        if rings.is_simple:
            shapes.append({"label": name, "points": rings.outer[0].astype(float).tolist(), "shape_type": "polygon"})
            continue
        middle = int(np.median(np.flatnonzero(mask.any(1))))
        for half in (np.arange(SIZE[0])[:, None] < middle, np.arange(SIZE[0])[:, None] >= middle):
            if (mask & half).any():
                shapes.append(mask_shape(mask & half, name, group_id=row))
    return shapes


def test_the_same_segments(tmp_path, capsys):
    save_images(tmp_path / "data/images", ["a", "b", "c", "unlabelled"][:3])
    Image.new("RGB", (8, 8)).save(tmp_path / "data/images/unlabelled.png")
    for index, (name, path) in enumerate((("a", "..\\images\\a.png"), ("b", "../images/b.png"), ("c", "C:\\x\\c.png"))):
        write_file(tmp_path / f"data/labels/{name}.json", path, shapes_of_scene(index))
    flags = ["--labels", tmp_path / "data/labels", "--images", tmp_path / "data/images", "--background", ""]
    flags += ["--things", *THINGS, "--stuff", *STUFF, "--output", tmp_path / "out"]
    assert prepare("labelme", *flags, "--split", "train") == 0
    out = capsys.readouterr().out
    shapes = sum(len(shapes_of_scene(index)) for index in range(3))
    segments = sum(len(scene.class_id) for scene in scenes())
    assert shapes > segments, "a scene has a segment in several shapes"
    assert f"objects: {shapes} found = {segments} written + 0 left out + {shapes - segments} joined with others" in out
    assert "images: 4 found = 3 written + 1 left out" in out and "1 images have no LabelMe file" in out
    assert imported(tmp_path / "out") == {f"{n}.png": segments_of(s) for n, s in zip("abc", scenes())}
    assert CocoFolder(tmp_path / "out", "train").classes.names == (*THINGS, *STUFF)


@pytest.fixture
def labels(tmp_path) -> pathlib.Path:
    """A folder with one image; `label` writes its file."""
    save_images(tmp_path / "labels", ["a"])
    return tmp_path / "labels"


def label(labels: pathlib.Path, *shapes: Any, **more: Any) -> None:
    write_file(labels / "a.json", "a.png", list(shapes), **more)


def flags_of(labels: pathlib.Path) -> list[Any]:
    return ["--labels", labels, "--output", labels.parent / "out", "--split", "train"]


def test_kinds_of_shapes(labels, capsys):
    label(
        labels,
        box(20, 10, 10, 30),  # its corners in the other order
        {"label": "dog", "points": [[40, 10], [60, 10], [60, 20], [40, 20]]},  # without shape_type, as LabelMe 3 writes
        {"label": "dog", "shape_type": "circle", "points": [[80, 40], [80, 50]]},
        box(60, 100, 80, 120, label="__ignore__"),
        box(70, 10, 90, 30, flags={"crowd": True}),
        flags={"blurred": True},
    )
    assert prepare("labelme", *flags_of(labels)) == 0
    out = capsys.readouterr().out
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    circle = (y - 40) ** 2 + (x - 80) ** 2 <= 100
    shapes = [
        ("cat", square(10, 10, 20, 30)),
        ("cat", square(70, 10, 90, 30)),
        ("dog", square(10, 40, 20, 60)),
        ("dog", circle),
    ]
    void = square(60, 100, 80, 120)
    rest = ~np.logical_or.reduce([mask for _, mask in shapes]) & ~void
    expected = {(name, mask.tobytes()) for name, mask in [*shapes, ("background", rest)]}
    assert imported(labels.parent / "out") == {"a.png": expected}
    assert CocoFolder(labels.parent / "out", "train")[0].is_crowd.sum() == 1
    assert "objects: 5 found = 4 written + 1 left out" in out and "__ignore__" in out
    assert "1 images: the flag 'blurred' is set" in out


def test_groups_join_shapes_of_one_label(labels):
    label(
        labels,
        box(10, 10, 20, 20, group_id=1),
        box(30, 10, 40, 20, group_id=1),
        box(50, 10, 60, 20, "dog", group_id=1),
        box(50, 30, 60, 40, group_id=2),
    )
    assert prepare("labelme", *flags_of(labels), "--background", "") == 0
    assert imported(labels.parent / "out")["a.png"] == {
        ("cat", (square(10, 10, 20, 20) | square(30, 10, 40, 20)).tobytes()),
        ("dog", square(50, 10, 60, 20).tobytes()),
        ("cat", square(50, 30, 60, 40).tobytes()),
    }


def test_an_image_inside_of_its_file(labels):
    data = (labels / "a.png").read_bytes()
    (labels / "a.png").unlink()
    label(labels, box(10, 10, 20, 20), imageData=base64.b64encode(data).decode())
    assert prepare("labelme", *flags_of(labels)) == 0
    assert (labels.parent / "out/train/a.png").read_bytes() == data


FAULTS: list[tuple[Any, str]] = [
    ({"label": "cat", "shape_type": "point", "points": [[4, 4]]}, "shape_type 'point' (text), which has no area"),
    ({"label": "cat", "shape_type": "linestrip", "points": [[4, 4], [9, 9], [9, 4]]}, "'linestrip'"),
    ({"label": "cat", "shape_type": ["x"], "points": [[4, 4], [9, 9]]}, "shape_type ['x']"),
    ({"label": "cat", "points": [[4, 4], [9, 9]]}, "fewer than three points"),
    ({"label": "cat", "points": []}, "empty segmentation"),
    ({"label": "cat", "points": [4, 4, 9, 9, 4, 9]}, "not pairs of numbers"),
    ({"label": "cat", "points": [[200, 4], [209, 9], [209, 4]]}, "outside of the image"),
    ({"label": "cat", "points": [[10**400, 4], [209, 9], [209, 4]]}, "outside of the image"),
    ({"label": "cat", "points": [[0.1, 0.1], [0.5, 0.5], [0.1, 0.5]]}, "0..1 instead of pixels"),
    ({"label": "cat", "shape_type": "circle", "points": [[4, 4]]}, "do not fit their shape_type"),
    ({"label": "cat", "shape_type": "circle", "points": [[400, 4], [401, 4]]}, "outside of the image"),
    (mask_shape(square(4, 4, 9, 9), "cat") | {"points": [[4, 4], [9, 9]]}, "not of the size that its two points say"),
    (mask_shape(square(4, 4, 9, 9), "cat") | {"mask": "no"}, "no PNG in base64"),
    (mask_shape(square(4, 4, 9, 9), "cat") | {"points": [[204, 4], [208, 8]]}, "outside of the image"),
    ({"label": "", "points": [[4, 4], [9, 9], [9, 4]]}, "have no label"),
    ({"label": 3, "points": [[4, 4], [9, 9], [9, 4]]}, "have no label"),
    (None, "have no label"),
]


@pytest.mark.parametrize(("shape", "reason"), FAULTS, ids=[reason for _, reason in FAULTS])
def test_faults_are_counted_and_can_be_skipped(labels, capsys, shape, reason):
    label(labels, box(10, 10, 20, 20), shape)
    assert prepare("labelme", *flags_of(labels)) == 2
    message = capsys.readouterr().err
    assert "1 objects cannot be used: 1 " in message and reason in message
    assert f"shapes[1] of {labels / 'a.json'}" in message and "--skip-bad" in message
    assert prepare("labelme", *flags_of(labels), "--skip-bad") == 0
    assert "objects: 2 found = 1 written + 1 left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"imageHeight": 128, "imageWidth": 96},
            "is for an image of 128 x 96 (height x width), but the image is 96 x 128",
        ),
        ({"imageHeight": "96"}, "imageHeight is '96' (text)"),
        ({"imagePath": 5}, "imagePath is 5"),
        ({"imagePath": ".."}, "imagePath is '..'"),
        ({"imagePath": "b.png"}, "1 images have no file and no imageData, as b.png of"),
        ({"imagePath": "b.png", "imageData": "%"}, "imageData is no base64"),
        ({"imagePath": "b.png", "imageData": "AAAA"}, "b.png: broken image"),
        ({"imagePath": "x" * 5000}, "have no file"),
        ({"shapes": {}}, "shapes is {}"),
    ],
)
def test_damaged_files_are_named(labels, capsys, more, message):
    label(labels, box(10, 10, 20, 20), **more)
    assert prepare("labelme", *flags_of(labels)) == 2
    assert message in capsys.readouterr().err


def test_files_that_do_not_fit_together(labels, capsys):
    label(labels, box(10, 10, 20, 20))
    (labels / "other.json").write_text("[]")
    write_file(labels / "lost.json", "lost.png", [])
    assert prepare("labelme", *flags_of(labels), "--skip-bad") == 0
    out = capsys.readouterr().out
    assert "1 JSON files have no shapes" in out and "images: 2 found = 1 written + 1 left out" in out
    write_file(labels / "twice.json", "a.png", [])
    assert prepare("labelme", *flags_of(labels), "--skip-bad") == 2
    assert "both label" in capsys.readouterr().err
    (labels / "twice.json").write_text("{")
    assert prepare("labelme", *flags_of(labels), "--skip-bad") == 2
    assert "twice.json: not JSON" in capsys.readouterr().err
    for path in labels.glob("*.json"):
        path.unlink()
    assert prepare("labelme", *flags_of(labels)) == 2
    assert "no LabelMe file" in capsys.readouterr().err
