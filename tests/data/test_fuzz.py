"""Random damage of JSONs, PNGs and JPEGs ends in a DataError or in sound data, never in another exception."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.codec import encode_id_png
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.decode import decode_ids, decode_image, decode_values, stored_orientation
from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.instances import DetectionOptions, from_detection
from pfcn_jax.data.kinds import KINDS
from pfcn_jax.data.panoptic_json import parse_panoptic
from tests.data.fixtures import write_tiny_coco

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's and pycocotools' about damaged files
ROUNDS = 2000
NASTY: tuple[Any, ...] = (
    None, True, False, "", "0", "1", "x", "\ud800", "a\0b", "../..", -1, 0, 1, 2**31, 2**63, 10**400, 0.5, 1.0, 1e300,
    float("nan"), float("inf"), [], {}, [[]], [None], [1, 2], [[1, 2], [3, 4]], {"counts": "x", "size": [1, 1]},
    {"counts": [5, 10**12], "size": [96, 128]}, {"size": [96, 128], "counts": "0" * 50}, [[0.1, 0.2, 0.3, 0.9, 1, 1]],
    [[1e308, -1e308, 5, 5, 9, 9]],
)  # fmt: skip


def containers(tree: Any) -> list[Any]:
    """All lists and objects in a tree that are not empty."""
    found = [tree] if isinstance(tree, (list, dict)) and tree else []
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        found += containers(child)
    return found


def damage_tree(tree: Any, rng: random.Random) -> Any:
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        places = containers(tree)
        if not places or rng.random() < 0.01:
            return rng.choice(NASTY)
        place = rng.choice(places)
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        action = rng.random()
        if action < 0.65:
            place[key] = copy.deepcopy(rng.choice(NASTY))
        elif action < 0.8:
            del place[key]
        elif isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        else:
            place[key] = str(place[key])
    return tree


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    if rng.random() < 0.2:
        del changed[rng.randrange(len(changed)) :]
    return bytes(changed)


def survives(read: Callable[..., object], *args: object) -> bool:
    """True if sound data came back, False after a DataError of a known kind; anything else is raised."""
    try:
        read(*args)
    except DataError as error:
        assert error.kind in KINDS and str(error)
        return False
    return True


class Found:
    """A `Report` that collects the kinds of errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def __call__(self, kind: str, message: str) -> None:
        if KINDS[kind][0] == "error":
            self.errors.append(message)


def encode(tree: Any, rng: random.Random) -> bytes:
    text = json.dumps(tree)
    return text.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32"]) if rng.random() < 0.2 else "utf-8")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    return write_tiny_coco(tmp_path_factory.mktemp("fuzz"), splits={"train": 2}, image_format="png")


def test_panoptic_json(root):
    content = json.loads((root / "annotations/panoptic_train.json").read_text())
    rng, sound = random.Random(0), 0
    for _ in range(ROUNDS):
        tree = damage_tree(content, rng)
        data = encode(tree, rng)
        strict = survives(parse_panoptic, data, "x.json")
        found = Found()
        survives(parse_panoptic, data, "x.json", found)
        assert not (strict and found.errors), "what training accepts, a check does not refuse"
        sound += strict
    assert 0 < sound < ROUNDS
    for _ in range(ROUNDS // 10):
        data = damage_bytes(json.dumps(content).encode(), rng)
        survives(parse_panoptic, data, "x.json")


def test_a_damaged_folder_is_read_or_refused(root, tmp_path):
    content = json.loads((root / "annotations/panoptic_train.json").read_text())
    rng, path = random.Random(1), root / "annotations/panoptic_train.json"
    before = path.read_bytes()
    try:
        for _ in range(150):
            path.write_bytes(encode(damage_tree(content, rng), rng))
            with contextlib.suppress(DataError):
                source = CocoFolder(root, "train")
                for index in range(len(source)):
                    survives(source.__getitem__, index)
    finally:
        path.write_bytes(before)


def test_detection_json(root, tmp_path):
    names = sorted(path.name for path in (root / "train").iterdir())
    size = (96, 128)
    images = [{"id": i, "file_name": name, "height": size[0], "width": size[1]} for i, name in enumerate(names)]
    polygon = [[10, 10, 40, 10, 40, 40, 10, 40]]
    runs = {"size": list(size), "counts": [96 * 20, 96 * 30, 96 * 78]}
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 1, "iscrowd": 0, "segmentation": polygon},
        {"id": 2, "image_id": 1, "category_id": 2, "iscrowd": 1, "segmentation": runs},
    ]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    rng, path, sound = random.Random(2), tmp_path / "instances.json", 0
    for round_number in range(ROUNDS):
        path.write_bytes(encode(damage_tree(content, rng), rng))

        def read(skip: bool = round_number % 2 == 0) -> None:
            found = from_detection(path, root / "train", DetectionOptions(skip_bad=skip))
            for file in found.images[""]:
                found.label(file, size)

        sound += survives(read)
    assert 0 < sound < ROUNDS


def test_labelme_json(root, tmp_path):
    name = sorted(path.name for path in (root / "train").iterdir())[0]
    (tmp_path / name).write_bytes((root / "train" / name).read_bytes())
    polygon = {"label": "a", "points": [[10, 10], [40, 10], [40, 40]], "group_id": 1, "shape_type": "polygon"}
    circle = {"label": "b", "points": [[30, 30], [40, 30]], "shape_type": "circle", "flags": {"crowd": True}}
    content = {"shapes": [polygon, circle], "imagePath": name, "imageData": None, "imageHeight": None, "flags": {}}
    rng, status = random.Random(4), []
    for number in range(ROUNDS // 10):
        (tmp_path / "a.json").write_bytes(encode(damage_tree(content, rng), rng))
        words = ["labelme", "--labels", str(tmp_path), "--output", str(tmp_path / "out"), "--split", "x", "--dry-run"]
        status.append(front_door.main(["prepare", *words, *(["--skip-bad"] if number % 2 else [])]))
    assert set(status) == {0, 2}


def test_yolo_labels(root, tmp_path):
    (tmp_path / "images").mkdir()
    name = sorted(path.name for path in (root / "train").iterdir())[0]
    (tmp_path / "images" / name).write_bytes((root / "train" / name).read_bytes())
    (tmp_path / "labels").mkdir()
    label = (tmp_path / "labels" / name).with_suffix(".txt")
    good = ("train: images\nnames: [a, b]\nnc: 2\n", "0 0.1 0.1 0.5 0.1 0.5 0.5\n1 0.2 0.2 0.9 0.2 0.9 0.9 0.2 0.9\n")
    rng, status = random.Random(5), []
    for number in range(ROUNDS // 10):
        for path, text in zip((tmp_path / "data.yaml", label), good):
            path.write_bytes(damage_bytes(text.encode(), rng) if (path == label) == (number % 2) else text.encode())
        words = ["yolo", "--data", str(tmp_path), "--output", str(tmp_path / "out"), "--split", "x", "--dry-run"]
        status.append(front_door.main(["prepare", *words, *(["--skip-bad"] if number % 4 > 1 else [])]))
    assert set(status) == {0, 2}


def test_image_files():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 5, (24, 32)) * 70_000
    grey, rgb = io.BytesIO(), io.BytesIO()
    Image.fromarray(ids.astype(np.uint8)).save(grey, format="PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(rgb, format="JPEG", exif=exif)
    files = (encode_id_png(ids), grey.getvalue(), rgb.getvalue())
    dice, sound = random.Random(3), 0
    for number in range(ROUNDS):
        data = damage_bytes(files[number % 3], dice)
        for decode in (decode_ids, decode_values, decode_image):
            sound += survives(decode, data, "x")
        assert 1 <= stored_orientation(data) <= 8
    assert sound > 0
