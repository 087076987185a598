"""YOLO segmentation: layouts, list files, names; the same segments come back, and each fault is named and counted."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.inference.outlines import outline
from tests.data.importers.support import (
    CLASSES,
    SIZE,
    STUFF,
    imported,
    prepare,
    save_images,
    scenes,
    segments_of,
    square,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder
NAMES = f"names: [{', '.join(CLASSES.names)}]\n"


def lines_of(index: int) -> str:
    """A scene as YOLO labels: several parts and holes are joined by bridges."""
    scene = scenes()[index]
    lines = []
    for row, class_id in enumerate(scene.class_id.tolist()):
        corners = outline(scene.segment_map == row + 1).joined() / np.array(SIZE[::-1])
        lines.append(f"{class_id} " + " ".join(f"{value:.8f}" for value in corners.reshape(-1)))
    return "\n".join(lines) + "\n"


def write_split(root: pathlib.Path, images: str, labels: str, names: list[str]) -> list[pathlib.Path]:
    (root / labels).mkdir(parents=True, exist_ok=True)
    paths = save_images(root / images, names)
    for index, name in enumerate(names):
        (root / labels / f"{name}.txt").write_text(lines_of(index))
    return paths


@pytest.mark.parametrize("layout", ["ultralytics", "roboflow", "lists"])
def test_the_same_segments_in_every_layout(tmp_path, capsys, layout):
    root = tmp_path / "data"
    if layout == "roboflow":
        write_split(root, "train/images", "train/labels", ["a", "b"])
        write_split(root, "valid/images", "valid/labels", ["c"])
        yaml = f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 10\n{NAMES}"
    elif layout == "ultralytics":
        write_split(root, "set/images/train", "set/labels/train", ["a", "b"])
        write_split(root, "set/images/val", "set/labels/val", ["c"])
        names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASSES.names))
        yaml = f"path: set\ntrain: images/train\nval: [images/val]\nnames:\n{names}"
    else:
        write_split(root, "images", "labels", ["a", "b"])
        write_split(root, "more/images", "more/labels", ["c"])
        (root / "train.txt").write_text("./images/a.png\nimages\\b.png\n\n")
        (root / "val.txt").write_text("more/images/c.png\n")
        yaml = f"train: train.txt\nval: val.txt\n{NAMES}"
    (root / "data.yaml").write_text(yaml)
    out = tmp_path / "out"
    flags = ["--data", root, "--output", out, "--background", "", "--stuff", *STUFF]
    assert prepare("yolo", *flags) == 0
    text = capsys.readouterr().out
    found = 2 * len(scenes()[0].class_id) + len(scenes()[1].class_id)
    assert "train: 2 images, val: 1 images" in text and "images: 3 found = 3 written + 0 left out" in text
    assert f"objects: {found} found = {found} written + 0 left out + 0 joined with others" in text
    assert ("test, which is not there" in text) == (layout == "roboflow")
    assert imported(out) == {"a.png": segments_of(scenes()[0]), "b.png": segments_of(scenes()[1])}
    assert imported(out, "val") == {"c.png": segments_of(scenes()[0])}
    assert (
        prepare("yolo", *flags[:2], "--output", tmp_path / "one", "--only", "val", "--split", "all", "--dry-run") == 0
    )
    assert not (tmp_path / "one").exists()


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    """Two images of two classes; one without objects."""
    root = tmp_path / "data"
    save_images(root / "images", ["a", "b"])
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    (root / "labels/b.txt").write_text("")
    (root / "data.yaml").write_text("train: images\nnames: {0: cat, 1: dog}\n")
    return root


def test_smaller_above_larger_and_images_without_objects(root, tmp_path, capsys):
    inner = "1 0.375 0.3333333 0.5 0.3333333 0.5 0.5 0.375 0.5\n"
    path = root / "labels/a.txt"
    path.write_text("\ufeff" + inner + path.read_text() + inner, encoding="utf-8")
    (root / "labels/b.txt").unlink()
    (root / "labels/z.txt").write_text("")
    (root / "labels/classes.txt").write_text("cat\ndog\n")
    assert prepare("yolo", "--data", root / "data.yaml", "--output", tmp_path / "out", "--split", "train") == 0
    out = capsys.readouterr().out
    small, large = square(32, 48, 48, 64), square(24, 32, 72, 96)
    assert imported(tmp_path / "out") == {
        "a.png": {
            ("dog", small.tobytes()),
            ("cat", (large & ~small).tobytes()),
            ("background", (~large).tobytes()),
        },
        "b.png": {("background", np.ones(SIZE, bool).tobytes())},
    }
    assert "objects: 3 found = 2 written + 1 left out" in out and "1 objects lie completely below others" in out
    assert "1 images: no label file" in out and "1 label files belong to no image" in out


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.2 0.2", "boxes without a polygon"),
        ("0 0.5 0.5 0.2 0.2 0.9", "boxes without a polygon"),
        ("0 0.5 0.5", "fewer than three points"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "an x without a y"),
        ("0 10 10 20 10 20 20", "outside of 0..1"),
        ("0 -0.2 0.1 0.2 0.1 0.2 0.2", "outside of 0..1"),
        ("2 0.1 0.1 0.2 0.1 0.2 0.2", "the names of the data.yaml lack"),
        ("0.5 0.1 0.1 0.2 0.1 0.2 0.2", "the names of the data.yaml lack"),
        ("cat 0.1 0.1 0.2 0.1 0.2 0.2", "something else than numbers"),
        ("0 nan 0.1 0.2 0.1 0.2 0.2", "something else than numbers"),
    ],
)
def test_faults_are_counted_over_all_files_and_can_be_skipped(root, tmp_path, capsys, line, reason):
    for name in ("a", "b"):
        path = root / f"labels/{name}.txt"
        path.write_text(path.read_text() + line + "\n")
    flags = ["--data", root, "--output", tmp_path / "out", "--split", "train"]
    assert prepare("yolo", *flags) == 2
    message = capsys.readouterr().err
    assert "2 objects cannot be used: 2 " in message and reason in message and "--skip-bad" in message
    assert f"line 2 of {root / 'labels/a.txt'}" in message
    assert not (tmp_path / "out/annotations/panoptic_train.json").exists()
    assert prepare("yolo", *flags, "--skip-bad") == 0
    out = capsys.readouterr().out
    assert "objects: 3 found = 1 written + 2 left out" in out and reason in out
    assert len(CocoFolder(tmp_path / "out", "train")) == 2


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images\n", "names is null"),
        ("train: images\nnames: cat\n", "names is 'cat' (text)"),
        ("train: images\nnames: [cat, no]\n", "put quotes around it"),
        ("train: images\nnames: [cat, cat]\n", "'cat' appears twice"),
        ("train: images\nnames: {a: cat}\n", "the index 'a'"),
        ("train: images\nnames: [cat, dog]\nnc: 3\n", "names has 2 classes"),
        ("train: other\nnames: [cat, dog]\n", "there is no such folder"),
        ("train: 3\nnames: [cat, dog]\n", "train is 3"),
        ("names: [cat, dog]\n", "names no images"),
        ("train: list.txt\nnames: [cat, dog]\n", "c.png: no such image"),
        ("train: empty\nnames: [cat, dog]\n", "none of 1 images has a label file"),
        ("train: [", "not YAML"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
        ("- 1", "holds [1]"),
    ],
)
def test_damaged_descriptions_are_named(root, tmp_path, capsys, yaml, message):
    (root / "list.txt").write_text("images/c.png\n")
    save_images(root / "empty", ["x"])
    (root / "data.yaml").write_text(yaml)
    assert prepare("yolo", "--data", root, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_images_with_an_orientation_are_counted_and_turned(root, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers turn it by a quarter, clockwise
    paths = [root / "images/a.png", root / "images/b.png"]
    for path in paths:
        with Image.open(path) as image:
            stored = np.array(image)
            image.save(path, exif=exif)
    (root / "labels/a.txt").write_text("0 0.25 0 0.75 0 0.75 0.5 0.25 0.5\n")  # the upper half, in the middle
    flags = ["--data", root, "--split", "train"]
    assert prepare("yolo", *flags, "--output", tmp_path / "stored") == 0  # fractions fit any size, so it may be right
    warning = (
        "warning: 2 images have an EXIF orientation: copied as stored; if the labels belong to the upright: --upright"
    )
    assert warning in capsys.readouterr().out
    assert masks_of(tmp_path / "stored")["cat"] == square(0, 32, 48, 96).tobytes()
    assert (tmp_path / "stored/train/a.png").read_bytes() == paths[0].read_bytes()
    assert prepare("yolo", *flags, "--output", tmp_path / "upright", "--upright") == 0
    assert "2 images have an EXIF orientation: turned upright" in capsys.readouterr().out
    assert masks_of(tmp_path / "upright")["cat"] == square(0, 24, 64, 72, SIZE[::-1]).tobytes()
    with Image.open(tmp_path / "upright/train/b.png") as image:
        assert not image.getexif()
        np.testing.assert_array_equal(np.asarray(image), np.rot90(stored, -1))


def masks_of(root: pathlib.Path) -> dict[str, bytes]:
    """The segments of image a.png."""
    return dict(imported(root)["a.png"])


def test_flags_of_classes(root, tmp_path, capsys):
    flags = ["--data", root, "--output", tmp_path / "out", "--split", "train", "--dry-run"]
    for words, message in (
        (["--stuff", "bird"], "no class is called 'bird'"),
        (["--stuff", "cat", "dog"], "at least one must be a thing"),
        (["--stuff", "cat", "--things", "cat"], "'cat' is in both"),
        (["--only", "val"], "no such split"),
    ):
        assert prepare("yolo", *flags, *words) == 2
        assert message in capsys.readouterr().err
    assert prepare("yolo", *flags, "--things", "dog") == 0
    assert "no instance to learn from" in capsys.readouterr().out


def test_cats(image_data_dir, tmp_path, capsys):
    images = sorted((image_data_dir / "cats/valid/images").iterdir())[:6]
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in images))
    (tmp_path / "data.yaml").write_text("val: list.txt\nnames: ['cat']\n")
    assert prepare("yolo", "--data", tmp_path, "--output", tmp_path / "out") == 0
    labels = [path.parents[1] / "labels" / f"{path.stem}.txt" for path in images]
    count = sum(len(path.read_text().splitlines()) for path in labels)
    out = capsys.readouterr().out
    assert "images: 6 found = 6 written" in out and f"objects: {count} found" in out
    source = CocoFolder(tmp_path / "out", "val")
    assert source.classes.names == ("cat", "background") and len(source) == 6
    for index, path in enumerate(labels):  # the areas are those of the polygons, up to pixels on the border
        area = 0.0
        for line in path.read_text().splitlines():
            x, y = np.array(line.split()[1:], float).reshape(-1, 2).T * 640
            area += abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
        cats = source[index].area[source[index].class_id == 0].sum()
        assert cats <= 1.03 * area + 100 and cats >= 0.7 * area, path
