"""Pascal VOC's PNGs and masks in class colors: the same segments come back, and each fault is named and counted."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.importers.colors import voc_color
from pfcn_jax.data.importers.voc import NAMES
from tests.data.importers.support import (
    CLASSES,
    SIZE,
    STUFF,
    THINGS,
    imported,
    prepare,
    save_images,
    scenes,
    segments_of,
    square,
)

BORDER = square(40, 0, 44, SIZE[1])  # void


def save_indices(path: pathlib.Path, values: np.ndarray) -> None:
    """A palette PNG with VOC's colors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([part for index in range(256) for part in voc_color(index)])
    image.save(path)


def save_colors(path: pathlib.Path, values: np.ndarray, colors: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colors[values].astype(np.uint8)).save(path)


def write_voc(root: pathlib.Path, save) -> None:
    """The scenes in VOC's layout; every class has objects or is stuff."""
    save_images(root / "JPEGImages", "abc")
    for name, scene in zip("abc", scenes()):
        category = np.append([0], scene.class_id + 1)[scene.segment_map]
        category[BORDER] = 255
        thing = np.array(CLASSES.is_thing)[scene.class_id]
        objects = np.append([0], np.where(thing, np.arange(1, len(thing) + 1), 0))[scene.segment_map]
        objects[BORDER] = 255
        save(root / f"SegmentationClass/{name}.png", category)
        save(root / f"SegmentationObject/{name}.png", objects)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in (("train", "a\nb\n"), ("val", "c\n"), ("trainval", "a\nb\nc\n")):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(names)


@pytest.mark.parametrize("kind", ["indices", "colors"])
def test_voc_gives_the_same_segments(tmp_path, capsys, kind):
    root, classes = tmp_path / "VOCdevkit/VOC2012", tmp_path / "classes.txt"
    if kind == "indices":
        write_voc(root, save_indices)
        classes.write_text("\n".join(CLASSES.names))
    else:  # as CVAT exports it: its own colors of classes, the background not first
        colors = np.array([voc_color(index) for index in range(256)])
        colors[1 : len(CLASSES) + 1] = colors[len(CLASSES) : 0 : -1]
        write_voc(root, lambda path, values: save_colors(path, values, colors))
        lines = [f"{name}:{','.join(map(str, color))}::" for name, color in zip(CLASSES.names, colors[1:].tolist())]
        classes.write_text("\n".join(["# label:color_rgb:parts:actions", *lines, "background:0,0,0::"]))
    flags = ["--root", tmp_path / "VOCdevkit", "--classes", classes, "--stuff", *STUFF, "--background", ""]
    assert prepare("voc", *flags, "--output", tmp_path / "out") == 0
    out = capsys.readouterr().out
    train, val = imported(tmp_path / "out"), imported(tmp_path / "out", "val")
    assert train | val == {f"{n}.png": segments_of(s, hidden=BORDER) for n, s in zip("abc", scenes())}
    assert set(val) == {"c.png"}
    count = sum(len(segments) for segments in (train | val).values())
    assert f"objects: {count} found = {count} written + 0 left out" in out
    assert "images: 3 found = 3 written + 0 left out" in out


@pytest.fixture
def voc(tmp_path) -> pathlib.Path:
    """One image of VOC's classes: a cat (8) of two parts, a dog (12), background, a border."""
    root = tmp_path / "voc"
    save_images(root / "JPEGImages", "a")
    category, objects = np.zeros(SIZE, int), np.zeros(SIZE, int)
    for number, value, mask in (
        (1, 8, square(10, 10, 20, 20) | square(30, 10, 40, 20)),
        (2, 12, square(50, 50, 70, 70)),
    ):
        category[mask], objects[mask] = value, number
    category[square(60, 60, 62, 70)] = objects[square(60, 60, 62, 70)] = 255
    save_indices(root / "SegmentationClass/a.png", category)
    save_indices(root / "SegmentationObject/a.png", objects)
    return root


def change(path: pathlib.Path, mask: np.ndarray, value: int) -> None:
    with Image.open(path) as image:
        values = np.array(image)
    values[mask] = value
    save_indices(path, values)


def test_voc_by_its_own_classes_with_and_without_objects(voc, tmp_path, capsys):
    flags = ["--root", voc, "--output", tmp_path / "out", "--split", "train"]
    assert prepare("voc", *flags) == 0
    cat, dog = square(10, 10, 20, 20) | square(30, 10, 40, 20), square(50, 50, 70, 70)
    border = square(60, 60, 62, 70)
    rest = ~cat & ~dog
    expected = {("cat", cat.tobytes()), ("dog", (dog & ~border).tobytes()), ("background", rest.tobytes())}
    assert imported(tmp_path / "out") == {"a.png": expected}
    assert CocoFolder(tmp_path / "out", "train").classes.names == (*NAMES, "background")
    assert "18 classes have no object" in capsys.readouterr().out
    (voc / "SegmentationObject/a.png").unlink()
    (voc / "SegmentationObject").rmdir()
    assert prepare("voc", *flags) == 0
    assert "no SegmentationObject" in capsys.readouterr().out
    names = [name for name, _ in imported(tmp_path / "out")["a.png"]]
    assert sorted(names) == ["background", "cat", "cat", "dog"]


def test_faults_of_voc(voc, tmp_path, capsys):
    classes, objects = voc / "SegmentationClass/a.png", voc / "SegmentationObject/a.png"
    change(classes, square(0, 0, 2, 2), 77)
    change(objects, square(80, 0, 90, 9), 5)
    change(classes, square(10, 10, 12, 12), 15)
    change(classes, square(80, 100, 90, 110), 3)
    flags = ["--root", voc, "--output", tmp_path / "out", "--split", "train"]
    assert prepare("voc", *flags) == 2
    message = capsys.readouterr().err
    assert "3 objects cannot be used" in message and f"77 in 4 pixels of {classes}" in message
    assert f"1 lie on no class (background or void in SegmentationClass), as object 5 of {objects}" in message
    assert f"1 lie on several classes in SegmentationClass, as object 1 of {objects}" in message
    assert prepare("voc", *flags, "--skip-bad") == 0
    out = capsys.readouterr().out
    assert "objects: 4 found = 1 written + 3 left out" in out
    assert "1 images: pixels of a thing class that SegmentationObject does not number" in out


def test_voc_folders_that_are_not_complete(voc, tmp_path, capsys):
    flags = ["--root", voc, "--output", tmp_path / "out", "--split", "train"]
    save_images(voc / "JPEGImages", ["b", "c"])
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/train.txt").write_text("a\nb\nd\n")
    assert prepare("voc", *flags) == 0
    out = capsys.readouterr().out
    assert "images: 4 found = 1 written + 3 left out" in out
    assert "1 images have no PNG in SegmentationClass" in out and "1 images are in no list" in out
    assert "1 images are named by ImageSets, but are not in JPEGImages, as d (split train)" in out
    assert prepare("voc", *flags[2:], "--root", tmp_path / "out") == 2
    assert "wanted a folder with JPEGImages" in capsys.readouterr().err
    (voc / "SegmentationObject/a.png").rename(voc / "SegmentationObject/b.png")
    assert prepare("voc", *flags) == 2
    assert "no mask of" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("# nothing\n")
    assert prepare("voc", *flags, "--classes", tmp_path / "empty.txt") == 2
    assert "no class name in it" in capsys.readouterr().err


def write_semantic(root: pathlib.Path, colors: np.ndarray) -> None:
    """The scenes as color masks (`masks`) and as category ids (`values`); category 11 is void."""
    save_images(root / "pictures", "abc")
    for name, scene in zip("abc", scenes()):
        category = np.append([0], scene.class_id + 1)[scene.segment_map]
        category[BORDER] = 11
        save_colors(root / f"masks/{name}_L.png", category, colors)
        (root / "values").mkdir(exist_ok=True)
        Image.fromarray(category.astype(np.uint8)).save(root / f"values/{name}.png")


def write_table(path: pathlib.Path, colors: list[list[int]]) -> list[str]:
    """A color table in the format of the suffix; returns the flags that it needs."""
    entries = list(zip((*CLASSES.names, "Void"), colors))
    if path.suffix == ".json":
        path.write_text(json.dumps([{"name": n, "color": c, "isthing": int(n in THINGS)} for n, c in entries]))
        return []
    if path.suffix == ".csv":
        rows = [f"{name}, {color[0]}, {color[1]}, {color[2]}, {int(name in THINGS)}" for name, color in entries]
        path.write_text("\n".join(["name,r,g,b,isthing", *rows]))
        return []
    if path.stem == "labelmap":
        path.write_text(
            "# label:color_rgb:parts:actions\n" + "".join(f"{n}:{c[0]},{c[1]},{c[2]}::\n" for n, c in entries)
        )
    else:
        path.write_text("".join(f"{c[0]} {c[1]} {c[2]}\t\t{n}\n" for n, c in entries))
    return ["--things", *THINGS]


COLORS = np.array([[0, 0, 0], *([13 * i, 255 - 20 * i, 7 * i] for i in range(1, 12))])


@pytest.mark.parametrize("table", ["colors.json", "colors.csv", "labelmap.txt", "label_colors.txt"])
def test_color_masks_give_what_category_ids_give(tmp_path, capsys, table):
    write_semantic(tmp_path, COLORS)
    flags = ["--images", tmp_path / "pictures", "--split", "train"]
    more = write_table(tmp_path / table, COLORS[1:].tolist())
    words = ["--masks", tmp_path / "masks", "--colors", tmp_path / table, *more, "--output", tmp_path / "colors"]
    assert prepare("palette", *flags, *words) == 0
    assert "left out" in capsys.readouterr().out
    classes = [{"id": i, "name": n, "isthing": int(n in THINGS)} for i, n in enumerate(CLASSES.names, start=1)]
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    words = ["--masks", tmp_path / "values", "--classes", tmp_path / "classes.json", "--ignore", "11"]
    assert prepare("semantic", *flags, *words, "--output", tmp_path / "ids") == 0
    found = imported(tmp_path / "colors")
    assert found == imported(tmp_path / "ids")
    for name, scene in zip("abc", scenes()):
        stuff = {(n, m) for n, m in segments_of(scene, hidden=BORDER) if n in STUFF}
        assert {(n, m) for n, m in found[f"{name}.png"] if n in STUFF} == stuff


def test_unknown_colors_are_counted(tmp_path, capsys):
    write_semantic(tmp_path, COLORS)
    write_table(tmp_path / "colors.json", COLORS[1:].tolist())
    for name in "ab":
        path = tmp_path / f"masks/{name}_L.png"
        with Image.open(path) as image:
            pixels = np.array(image)
        pixels[:2, :5] = (1, 2, 3)
        Image.fromarray(pixels).save(path)
    flags = ["--images", tmp_path / "pictures", "--masks", tmp_path / "masks", "--split", "train"]
    flags += ["--colors", tmp_path / "colors.json", "--output", tmp_path / "out"]
    assert prepare("palette", *flags) == 2
    message = capsys.readouterr().err
    assert "2 are colors that the table lacks" in message and f"(1, 2, 3) in 10 pixels of {tmp_path}" in message
    assert prepare("palette", *flags, "--void", "void", "#010203") == 0
    assert "left out" in capsys.readouterr().out
    assert prepare("palette", *flags, "--void", "void", "sea") == 2
    assert "--void sea: no class of" in capsys.readouterr().err
    Image.fromarray(scenes()[0].image).save(tmp_path / "masks/c_L.png")
    assert prepare("palette", *flags, "--skip-bad") == 2
    assert "colors that the table lacks: softened" in capsys.readouterr().err
    Image.fromarray(np.dstack([pixels, np.full(SIZE, 100, np.uint8)])).save(tmp_path / "masks/c_L.png")
    assert prepare("palette", *flags) == 2
    assert "partly transparent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "{", "not JSON"),
        ("c.json", "3", "wanted: a list of classes"),
        ("c.json", '[{"color": [1, 2, 3]}]', "has no name"),
        ("c.json", '{"car": [1, 2]}', "color is [1, 2] (a list)"),
        ("c.json", '{"car": [1, 2, 300]}', "three numbers in 0..255"),
        ("c.json", '{"car": "#010203", "bus": [1, 2, 3]}', "the color (1, 2, 3) appears twice"),
        ("c.json", '[{"name": "car", "color": [1, 2, 3], "isthing": "1"}]', "isthing is '1' (text)"),
        ("c.json", '{"car": "#010203"}', "no class is a thing; name the countable ones by --things"),
        ("c.csv", "name,r,g\ncar,1,2\n", "no column b"),
        ("c.csv", "name,r,g,b\ncar,1,2,x\n", "line 2: color is"),
        ("c.txt", "car 1 2 3\n", "line 1: 'car 1 2 3' is neither"),
        ("c.txt", "", "no color in it"),
    ],
)
def test_damaged_color_tables_are_named(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    words = ["--images", tmp_path, "--masks", tmp_path, "--colors", tmp_path / name]
    assert prepare("palette", *words, "--output", tmp_path / "out", "--split", "train") == 2
    assert message in capsys.readouterr().err


def test_camvid(image_data_dir, tmp_path):
    names = (
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    )
    colors = [
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 0),
    ]  # fmt: skip
    path = sorted((image_data_dir / "camvid/val").iterdir())[0]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / path.name).write_bytes(path.read_bytes())
    with Image.open(image_data_dir / f"camvid/val_labels/{path.stem}.png") as image:
        values = np.asarray(image)
    save_colors(tmp_path / f"masks/{path.stem}_L.png", values, np.array(colors))
    lines = [f"{r} {g} {b}\t{name}" for (r, g, b), name in zip(colors, (*names, "Void"))]
    (tmp_path / "label_colors.txt").write_text("\n".join(lines))
    words = [
        "--images",
        tmp_path / "pictures",
        "--masks",
        tmp_path / "masks",
        "--colors",
        tmp_path / "label_colors.txt",
    ]
    words += ["--things", "Car", "Pedestrian", "Bicyclist", "--split", "val", "--output", tmp_path / "out"]
    assert prepare("palette", *words) == 0
    source = CocoFolder(tmp_path / "out", "val")
    example = source[0]
    name_of_pixel = np.array(["Void", *(source.classes.names[c] for c in example.class_id)])[example.segment_map]
    np.testing.assert_array_equal(name_of_pixel, np.array([*names, "Void"])[values])
    assert source.classes.num_things == 3 and (70, 0) not in source.classes.colors
