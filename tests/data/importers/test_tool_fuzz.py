"""Random damage of the tools' label files ends in an error of one line or in sound data, never in a traceback."""

from __future__ import annotations

import json
import pathlib
import random

import pytest

from tests.data.importers import test_cvat, test_label_studio, test_supervisely
from tests.data.importers.drawn import box, corners, disk, prepare, write_image
from tests.data.test_fuzz import damage_bytes, damage_tree, encode

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's and pycocotools' about damaged files
ROUNDS = 150


def run(tool: str, source: pathlib.Path, number: int, *flags: str) -> int:
    more = ["--dry-run", "--workers", "1", *(["--skip-bad"] if number % 2 else [])]
    return prepare(tool, source, source / "out", *flags, *more)


def test_supervisely_json(tmp_path):
    objects = [
        test_supervisely.bitmap("cell", disk(20, 20, 6), instance="a"),
        test_supervisely.polygon("field", test_supervisely.square(1, 1, 30, 30), test_supervisely.square(5, 5, 9, 9)),
    ]
    test_supervisely.write_project(tmp_path, {"ds": objects})
    rng, status = random.Random(0), []
    for path in (tmp_path / "ds/ann/a.png.json", tmp_path / "meta.json"):
        content = json.loads(path.read_text())
        for number in range(ROUNDS if path.parent.name == "ann" else ROUNDS // 5):
            path.write_bytes(encode(damage_tree(content, rng), rng))
            status.append(run("supervisely", tmp_path, number))
        path.write_text(json.dumps(content))
    assert set(status) == {0, 2}


def test_label_studio_json(tmp_path):
    write_image(tmp_path / "a.png")
    results = [
        test_label_studio.polygon("cat", corners(4, 4, 20, 30)),
        test_label_studio.brush("dog", test_label_studio.brush_rle(disk(14, 20, 4))),
        test_label_studio.region(
            "ellipselabels", "cat", {"x": 75.0, "y": 75.0, "radiusX": 9, "radiusY": 9, "rotation": 3}
        ),
    ]
    content = [test_label_studio.task(1, "a.png", {"id": 3, "result": results, "updated_at": "2024"})]
    results[1]["value"]["rle"] = results[1]["value"]["rle"][:60]  # damage should hit other keys, too
    rng, status = random.Random(1), []
    for number in range(ROUNDS):
        (tmp_path / "tasks.json").write_bytes(encode(damage_tree(content, rng), rng))
        status.append(run("label-studio", tmp_path, number, "--split", "x"))
    assert set(status) == {0, 2}


def test_label_studio_masks(tmp_path):
    write_image(tmp_path / "a.png")
    mask = tmp_path / "task-7-annotation-3-by-1-tag-cat-0.png"
    write_image(mask)
    content = [{"id": 7, "image": "a.png", "annotation_id": 3}]
    rng = random.Random(2)
    for number in range(ROUNDS // 5):
        (tmp_path / "tasks.json").write_bytes(encode(damage_tree(content, rng), rng))
        run("label-studio", tmp_path, number, "--split", "x")


def test_cvat_xml(tmp_path):
    write_image(tmp_path / "images/a.png")
    shapes = test_cvat.polygon("cat", corners(2, 2, 20, 20), 'z_order="1" group_id="1"') + test_cvat.mask(
        "dog", box(30, 30, 34, 34)
    )
    data = (test_cvat.write_xml(tmp_path, test_cvat.image("a.png", shapes)) / "annotations.xml").read_bytes()
    rng, status = random.Random(3), []
    for number in range(ROUNDS):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 3)):  # most of it in the values, so that it stays XML
            damaged[rng.randrange(len(damaged))] = rng.choice(b'0123456789-.,;e" az')
        (tmp_path / "annotations.xml").write_bytes(bytes(damaged) if number % 5 else damage_bytes(data, rng))
        status.append(run("cvat", tmp_path, number))
    assert set(status) == {0, 2}


def test_tables_of_classes(tmp_path):
    rng = random.Random(4)
    write_image(tmp_path / "rf/train/a.png")
    write_image(tmp_path / "rf/train/a_mask.png")
    test_cvat.write_masks(tmp_path / "cvat", "a", [("sky", box(0, 0, 10, 64))])
    write_image(tmp_path / "cvat/JPEGImages/a.png")
    lines = b"".join(f"{name}:{r},{g},{b}::\n".encode() for name, (r, g, b) in test_cvat.COLORS.items())
    for number in range(ROUNDS // 5):
        table = damage_bytes(b"Pixel Value, Class\n0, background\n1, cat\n", rng)
        (tmp_path / "rf/train/_classes.csv").write_bytes(table)
        run("roboflow", tmp_path / "rf", number)
        (tmp_path / "cvat/labelmap.txt").write_bytes(damage_bytes(lines, rng))
        run("cvat", tmp_path / "cvat", number)
