"""Detection JSON, instance ids and semantic classes become panoptic: what is on top, what is void, what is an error."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pfcn_jax import main as front_door
from pfcn_jax.codec import write_id_png
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.common import hold_out
from pfcn_jax.data.registry import open_source
from tests.data.fixtures import write_tiny_coco

SIZE = (40, 60)


@pytest.fixture
def pictures(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(folder / f"p{index}.png")
    return folder


def run(*words: object) -> int:
    return front_door.main(["prepare", *map(str, words)])


def box(y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def masks_of(example, name: str, classes) -> list[np.ndarray]:
    return [
        example.segment_map == row + 1 for row, c in enumerate(example.class_id.tolist()) if classes.names[c] == name
    ]


def test_id_masks_of_two_classes(pictures, tmp_path, capsys):
    cells, dust = tmp_path / "cells", tmp_path / "dust"
    cells.mkdir(), dust.mkdir()
    for index in range(6):
        ids = box(2, 2, 10, 10) * 3 + box(20, 20, 30, 30) * 700
        Image.fromarray(ids.astype(np.uint16)).save(cells / f"p{index}.png")
    write_id_png(dust / "p0.png", box(8, 8, 12, 12) * 70000)
    flags = ["--images", pictures, "--masks", f"cell={cells}", f"dust={dust}", "--output", tmp_path / "out"]
    assert run("masks", *flags, "--split", "train") == 0
    assert "train: 6 images; 19 segments of 3 classes" in capsys.readouterr().out
    source = CocoFolder(tmp_path / "out", "train")
    assert source.classes.names == ("cell", "dust", "background") and source.classes.is_thing == (True, True, False)
    first, second = source[0], source[1]
    assert (pictures / "p0.png").read_bytes() == (tmp_path / "out/train/p0.png").read_bytes()
    one, two = masks_of(first, "cell", source.classes)
    np.testing.assert_array_equal(one, box(2, 2, 10, 10) & ~box(8, 8, 12, 12))  # the later folder lies above
    np.testing.assert_array_equal(two, box(20, 20, 30, 30))
    np.testing.assert_array_equal(masks_of(first, "dust", source.classes)[0], box(8, 8, 12, 12))
    assert (first.segment_map > 0).all() and not masks_of(second, "dust", source.classes)


def test_binary_masks_are_divided_into_components(pictures, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for index in range(6):
        both = box(2, 2, 10, 10) | box(20, 20, 30, 30) | box(10, 10, 12, 12)  # the last touches the first at a corner
        Image.fromarray((both * 255).astype(np.uint8)).save(masks / f"p{index}.png")
    flags = ["--images", pictures, "--masks", f"cell={masks}", "--output", tmp_path / "out", "--background", ""]
    assert run("masks", *flags, "--val", "0.3", "--components") == 0
    train, val = CocoFolder(tmp_path / "out", "train"), CocoFolder(tmp_path / "out", "val")
    assert len(train) + len(val) == 6 and len(val) >= 1 and train.classes == val.classes
    assert not {train.info(i).file_name for i in range(len(train))} & {val.info(i).file_name for i in range(len(val))}
    for source in (train, val):
        example = source[0]
        assert len(example.class_id) == 2 and (example.segment_map == 0).any()  # no background class: void


def test_semantic_masks(pictures, tmp_path, capsys):
    masks = tmp_path / "masks"
    masks.mkdir()
    values = np.full(SIZE, 7)
    values[box(0, 0, 10, 60)] = 9
    values[box(15, 5, 20, 10) | box(30, 40, 35, 50)] = 4
    values[box(38, 58, 40, 60)] = 255
    for index in range(6):
        Image.fromarray(values.astype(np.uint8)).save(masks / f"p{index}.png")
    classes = tmp_path / "classes.json"
    table = [{"id": 9, "name": "sky", "isthing": 0}, {"id": 7, "name": "sea", "isthing": 0, "color": [0, 0, 200]},
             {"id": 4, "name": "boat", "isthing": 1}]  # fmt: skip
    classes.write_text(json.dumps(table))
    flags = ["--images", pictures, "--masks", masks, "--classes", classes, "--output", tmp_path / "out"]
    assert run("semantic", *flags, "--split", "train") == 0
    source = open_source("coco", tmp_path / "out", "train")
    assert source.classes.names == ("boat", "sea", "sky") and source.classes.colors[1] == (0, 0, 200)
    example = source[3]
    boats = masks_of(example, "boat", source.classes)
    assert len(boats) == 2
    np.testing.assert_array_equal(boats[0] | boats[1], values == 4)
    np.testing.assert_array_equal(masks_of(example, "sea", source.classes)[0], values == 7)
    np.testing.assert_array_equal(example.segment_map == 0, values == 255)
    classes.write_text(json.dumps([entry | {"isthing": 0} for entry in table]))
    assert run("semantic", *flags, "--split", "train") == 2
    assert "at least one must be countable" in capsys.readouterr().err
    classes.write_text(json.dumps(table))
    assert run("semantic", *flags, "--split", "train", "--ignore") == 2
    assert "value 255 is no category id" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder
def test_detection_json_with_polygons_rle_and_a_crowd(pictures, tmp_path, capsys):
    rle = coco_mask.encode(np.asfortranarray(box(12, 12, 16, 16).astype(np.uint8)))
    left_half = {"size": SIZE, "counts": [0, 40 * 30, 40 * 30]}  # column by column
    small = [[13, 13, 15, 13, 15, 15, 13, 15]]

    def instance(number: int, category: int, segmentation, crowd: int = 0) -> dict:
        return {"id": number, "image_id": 50, "category_id": category, "iscrowd": crowd, "segmentation": segmentation}

    annotations = [
        instance(1, 3, {"size": SIZE, "counts": rle["counts"].decode()}),
        instance(2, 8, [[10, 10, 30, 10, 30, 30, 10, 30]]),
        instance(3, 8, left_half, crowd=1),
        instance(4, 3, small),
        instance(5, 3, small),
        instance(6, 3, [[50.1, 5.1, 50.2, 5.1, 50.2, 5.2]]),
    ]
    content = {
        "images": [{"id": 50, "file_name": "p1.png", "height": 40, "width": 60},
                   {"id": 51, "file_name": "p2.png", "height": 40, "width": 60}],
        "annotations": annotations,
        "categories": [{"id": 8, "name": "boat"}, {"id": 3, "name": "fish"}],
    }  # fmt: skip
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    flags = ["--json", path, "--images", pictures, "--output", tmp_path / "out", "--split", "train"]
    assert run("instances", *flags, "--background", "water") == 0
    out = capsys.readouterr().out
    assert "1 objects lie completely below others" in out and "1 objects are too small to cover a pixel" in out
    assert "images: 6 found = 2 written + 4 left out" in out and "4 images are not in the JSON" in out
    assert "objects: 6 found = 4 written + 2 left out + 0 joined" in out
    source = CocoFolder(tmp_path / "out", "train")
    assert source.classes.names == ("fish", "boat", "water") and source.classes.category_ids == (3, 8, 9)
    example = source[0]
    crowd, boat = masks_of(example, "boat", source.classes)
    assert example.is_crowd.tolist() == [True, False, False, False, False]
    fish = masks_of(example, "fish", source.classes)
    np.testing.assert_array_equal(fish[0] | fish[1], box(12, 12, 16, 16))
    np.testing.assert_array_equal(boat, box(10, 10, 30, 30) & ~box(12, 12, 16, 16))
    np.testing.assert_array_equal(crowd, box(0, 0, 40, 30) & ~box(10, 10, 30, 30))
    empty = source[1]
    assert empty.class_id.tolist() == [2] and (empty.segment_map == 1).all()
    for change, message in (
        ({"segmentation": []}, "instances.json: annotation 1 of p1.png"),
        ({"segmentation": [[1, 2]]}, "fewer than three points"),
        ({"category_id": 5}, "category 5 is not in categories"),
        ({"image_id": 7}, "annotations[0]: of image 7, which is not in images"),
        ({"image_id": "50"}, "it is text here, a number in images"),
    ):
        path.write_text(json.dumps(content | {"annotations": [annotations[0] | change, *annotations[1:]]}))
        assert run("instances", *flags) == 2
        assert message in capsys.readouterr().err
    del content["images"][1]["height"]
    path.write_text(json.dumps(content))
    assert run("instances", *flags) == 2
    assert "images[1] has no height" in capsys.readouterr().err


def test_a_dry_run_says_the_same_and_writes_nothing(pictures, tmp_path, capsys):
    masks = tmp_path / "masks"
    masks.mkdir()
    (pictures / "phone.heic").write_bytes(b"no")
    for index in range(6):
        Image.fromarray((box(2, 2, 10, 10) * 3).astype(np.uint8)).save(masks / f"p{index}.png")
    flags = ["--images", pictures, "--masks", f"cell={masks}", "--output", tmp_path / "out", "--val", "0.3"]
    assert run("masks", *flags, "--dry-run") == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("dry run: nothing is written") and not (tmp_path / "out").exists()
    assert "images: 7 found = 6 written + 1 left out" in rest
    assert "objects: 6 found = 6 written + 0 left out + 0 joined with others" in rest
    assert any("1 images have a format that is not decoded" in line for line in rest)
    assert run("masks", *flags) == 0
    assert capsys.readouterr().out.splitlines() == rest


def test_pictures_of_one_name_in_two_folders_are_refused(pictures, tmp_path, capsys):
    for folder in ("a", "b"):
        (pictures / folder).mkdir()
        (pictures / folder / "1.png").write_bytes((pictures / "p1.png").read_bytes())
    images = [{"id": i, "file_name": f"{f}/1.png", "height": 40, "width": 60} for i, f in enumerate("ab", start=1)]
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[2, 2, 9, 2, 9, 9]]}
    path = tmp_path / "instances.json"
    path.write_text(
        json.dumps({"images": images, "annotations": [annotation], "categories": [{"id": 3, "name": "fish"}]})
    )
    flags = ["--json", path, "--images", pictures, "--output", tmp_path / "out", "--split", "train"]
    assert run("instances", *flags) == 2
    assert "b/1.png: has the same name as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda pictures, masks: (masks / "p2.png").write_bytes(b"no"), "p2.png: not a PNG file"),
        (lambda pictures, masks: Image.new("L", (3, 3)).save(masks / "p3.png"), "3 x 3 (height x width), but its"),
        (lambda pictures, masks: (pictures / "p1.png").write_bytes(b"no"), "p1.png: broken image"),
        (lambda pictures, masks: (pictures / "p1.jpg").write_bytes(b"no"), "p1.jpg, apart from folder and suffix"),
        (lambda pictures, masks: [path.unlink() for path in pictures.iterdir()], "no images"),
        (lambda pictures, masks: [path.unlink() for path in masks.iterdir()], "no mask has the name of an image"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_nothing_claims_to_be_complete(pictures, tmp_path, capsys, damage, message):
    masks = tmp_path / "masks"
    masks.mkdir()
    for index in range(6):
        Image.fromarray(box(2, 2, 10, 10).astype(np.uint8)).save(masks / f"p{index}.png")
    damage(pictures, masks)
    flags = ["--images", pictures, "--masks", f"cell={masks}", "--output", tmp_path / "out", "--split", "train"]
    assert run("masks", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out/annotations/panoptic_train.json").exists()


def test_who_is_held_out_depends_on_the_name_alone(tmp_path):
    names = [tmp_path / f"{i}.png" for i in range(200)]
    few, many = hold_out(names[:100], 0.2), hold_out(names, 0.2)
    assert set(few["val"]) == set(many["val"]) & set(names[:100]) and 25 <= len(many["val"]) <= 55
    assert [len(part) for part in hold_out(names[:2], 0.01).values()] == [1, 1]
    assert [len(part) for part in hold_out(names[:2], 0.99).values()] == [1, 1]
    with pytest.raises(DataError, match="cannot be divided"):
        hold_out(names[:1], 0.5)


def test_tfds_from_a_folder_gives_the_folders_examples(tmp_path, capsys):
    pytest.importorskip("tensorflow_datasets")
    root = write_tiny_coco(tmp_path / "tiny", splits={"train": 3, "val": 2})
    flags = ["--input", root, "--output", tmp_path / "tfds", "--splits", "train=train", "val=validation"]
    assert run("tfds", *flags, "--dry-run") == 0
    assert "would get train: 3 annotated images" in capsys.readouterr().out and not (tmp_path / "tfds").exists()
    assert run("tfds", *flags) == 0
    out = capsys.readouterr().out
    assert "train: 3 annotated images" in out and "validation: 2 annotated images" in out
    ours, theirs = open_source("tfds", tmp_path / "tfds", "train"), CocoFolder(root, "train")
    assert len(ours) == 3
    np.testing.assert_array_equal(ours[2].segment_map, theirs[2].segment_map)
    assert run("tfds", "--input", root, "--output", tmp_path / "tfds", "--splits", "train") == 2
    assert "expected NAME=VALUE pairs" in capsys.readouterr().err
