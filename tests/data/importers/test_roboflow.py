"""Roboflow's two exports give the segments that were drawn, in Roboflow's splits."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.data.importers.drawn import (
    SIZE,
    box,
    corners,
    disk,
    prepare,
    runs_of,
    visible,
    write_image,
)
from tests.data.importers.support import imported

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder
NAMES = {"train": "cat_jpg.rf.0a1b", "valid": "dog_jpg.rf.9f8e", "test": "cow_jpg.rf.77aa"}


def write_coco(root: pathlib.Path, split: str, names: list[str], annotations: list[dict]) -> None:
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "lawn", "supercategory": "pets"},
    ]
    images = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(names)]
    listed = [{"id": i, "image_id": 0, "iscrowd": 0, **own} for i, own in enumerate(annotations)]
    for name in names:
        write_image(root / split / name)
    content = {"info": {}, "categories": categories, "images": images, "annotations": listed}
    (root / split / "_annotations.coco.json").write_text(json.dumps(content))


def test_coco_keeps_the_splits_and_leaves_out_the_root_category(tmp_path, capsys):
    brush = {"counts": runs_of(disk(20, 20, 8).T), "size": list(SIZE)}
    annotations = [
        {"category_id": 2, "segmentation": [corners(0, 0, 30, 64)]},
        {"category_id": 1, "segmentation": brush},
    ]
    for split, name in NAMES.items():
        write_coco(tmp_path / "in", split, [f"{name}.png"], annotations)
    assert prepare("roboflow", tmp_path / "in", tmp_path / "out", "--stuff", "lawn") == 0
    text = capsys.readouterr().out
    assert "Roboflow's COCO segmentation" in text and "category 0 'pets' is unused" in text
    expected = visible([("lawn", box(0, 0, 30, 64)), ("cat", disk(20, 20, 8))])
    for split, name in NAMES.items():
        found = imported(tmp_path / "out", {"valid": "val"}.get(split, split))
        assert found[f"{name}.png"] == expected


def test_versions_of_an_image_are_not_divided_in_silence(tmp_path, capsys):
    own = [{"category_id": 1, "segmentation": [corners(0, 0, 30, 64)]}]
    write_coco(tmp_path / "in", "train", ["a_jpg.rf.01.png", "a_jpg.rf.02.png", "b_jpg.rf.03.png"], own)
    assert prepare("roboflow", tmp_path / "in", tmp_path / "out", "--val", "0.4") == 0
    assert "1 images are further versions of others" in capsys.readouterr().out
    assert prepare("roboflow", tmp_path / "in", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "further versions" not in text and "no split to score on" in text


def test_boxes_without_polygons_are_refused(tmp_path, capsys):
    write_coco(tmp_path / "in", "train", ["a.png"], [{"category_id": 1, "segmentation": [], "bbox": [1, 1, 5, 5]}])
    assert prepare("roboflow", tmp_path / "in", tmp_path / "out") == 2
    assert "1 have an empty segmentation" in capsys.readouterr().err


def test_splits_with_different_classes_are_refused(tmp_path, capsys):
    own = [{"category_id": 1, "segmentation": [corners(0, 0, 30, 64)]}]
    for split in ("train", "valid"):
        write_coco(tmp_path / "in", split, ["a.png"], own)
    path = tmp_path / "in/valid/_annotations.coco.json"
    path.write_text(path.read_text().replace('"lawn"', '"grass"'))
    assert prepare("roboflow", tmp_path / "in", tmp_path / "out") == 2
    assert "'lawn'" in (message := capsys.readouterr().err) and "'grass'" in message


@pytest.fixture
def masks(tmp_path) -> pathlib.Path:
    """An export as semantic masks."""
    values = np.zeros(SIZE, np.uint8)
    values[box(0, 0, 10, 64)] = 2
    values[disk(20, 20, 6) | disk(30, 50, 6)] = 1
    values[box(40, 0, 41, 64)] = 255
    for split, name in NAMES.items():
        write_image(tmp_path / "in" / split / f"{name}.png")
        Image.fromarray(values).save(tmp_path / "in" / split / f"{name}_mask.png")
        (tmp_path / "in" / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n2, lawn\n")
    return tmp_path / "in"


def test_semantic_masks(masks, tmp_path, capsys):
    assert prepare("roboflow", masks, tmp_path / "out", "--stuff", "lawn") == 0
    text = capsys.readouterr().out
    assert "semantic segmentation masks" in text and "connected parts of cat are instances" in text
    drawn = [("lawn", box(0, 0, 10, 64)), ("cat", disk(20, 20, 6)), ("cat", disk(30, 50, 6))]
    expected = visible([*drawn, ("", box(40, 0, 41, 64))])
    for split, name in NAMES.items():
        assert imported(tmp_path / "out", {"valid": "val"}.get(split, split))[f"{name}.png"] == expected


def test_faults_of_semantic_masks(masks, tmp_path, capsys):
    table = masks / "valid/_classes.csv"
    for text, words in (
        ("Pixel Value, Class\n0, background\n1, cat\n", "list different classes"),
        ("Pixel Value, Class\n0, background\none, cat\n", "line 3 is 'one,cat'"),
        ("Pixel Value, Class\n0, background\n0, cat\n", "appears twice"),
        ("Pixel Value, Class\n", "no classes"),
        (f"Pixel Value, Class\n0, {'a' * 140_000}\n", "not a CSV file"),
    ):
        table.write_text(text)
        assert prepare("roboflow", masks, tmp_path / "out") == 2
        assert words in capsys.readouterr().err
    for split in NAMES:
        (masks / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n")
    assert prepare("roboflow", masks, tmp_path / "out") == 2
    assert "value 2 is no category id" in capsys.readouterr().err
    (masks / f"test/{NAMES['test']}_mask.png").unlink()
    assert prepare("roboflow", masks, tmp_path / "out") == 2
    assert "no mask has the name of an image" in capsys.readouterr().err


def test_a_yolo_export_is_named(tmp_path, capsys):
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    assert prepare("roboflow", tmp_path, tmp_path / "out") == 2
    assert "prepare yolo --data" in capsys.readouterr().err


def test_a_raw_export(cases_dir, tmp_path):
    assert prepare("roboflow", cases_dir / "30-raw-exports/roboflow", tmp_path / "out") == 0
    train, val = (imported(tmp_path / "out", split) for split in ("train", "val"))
    assert len(train) == len(val) == 6
    counts = [sum(name != "background" for name, _ in objects) for objects in train.values()]
    listed = json.loads((cases_dir / "30-raw-exports/roboflow/train/_annotations.coco.json").read_text())
    assert sum(counts) == len(listed["annotations"]) == 18
