"""Random damage of labels or an image ends each verb that reads it with a status and a message, never a traceback."""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.data.inputs import open_evaluation, open_training
from pfcn_jax.data.options import DataOptions
from tests.data.fixtures import SIZES, write_tiny_coco
from tests.data.test_fuzz import damage_bytes, damage_tree, encode
from tests.support import tool_exports
from tests.support.fault_inputs import Change

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's and pycocotools' about damaged files
OWN = f"--config={pathlib.Path(__file__).parents[1] / 'configs' / 'own_data.py'}"
COUNT = 2  # images
TEXTS = (".json", ".xml", ".yaml", ".txt")
LETTERS = b'0123456789-.,;:e" az\n[]{}<>/&'
# Importer of a tool -> makes a sound export, the words of its command, and the files that are damaged.
TOOLS: dict[str, tuple[Change, str, tuple[str, ...]]] = {
    "yolo": (tool_exports.make_yolo, "--data {root}", ("data.yaml", "labels/*.txt")),
    "labelme": (tool_exports.make_labelme, "--labels {root}/labels", ("labels/*.json",)),
    "voc": (tool_exports.make_voc, "--root {root}", ("Segmentation*/*.png",)),
    "palette": (
        tool_exports.make_palette,
        "--masks {root}/masks --colors {root}/colors.json --images {root}/images",
        ("colors.json", "masks/*.png"),
    ),
    "cvat": (tool_exports.make_cvat, "--input {root}", ("annotations.xml",)),
    "label-studio": (tool_exports.make_label_studio, "--input {root}", ("tasks.json",)),
    "roboflow": (tool_exports.make_roboflow, "--input {root}", ("train/*.json",)),
    "supervisely": (tool_exports.make_supervisely, "--input {root}", ("meta.json", "set/ann/*.json")),
}


class World:
    """Sound files for every verb, one of which is damaged for one run."""

    def __init__(self, root: pathlib.Path):
        self.root = write_tiny_coco(root / "data", splits={"train": COUNT}, image_format="png")
        self.out, self.images = root / "out", self.root / "train"
        names = sorted(path.name for path in self.images.iterdir())
        self.masks, self.classes, self.detection = root / "masks", root / "classes.json", root / "instances.json"
        self.masks.mkdir()
        for name, (height, width) in zip(names, SIZES):
            mask = np.zeros((height, width), np.uint8)
            mask[10:30, 20:60], mask[40:60, 10:30] = 1, 2
            Image.fromarray(mask).save(self.masks / name)
        self.classes.write_text(json.dumps([{"id": i, "name": f"class {i}", "isthing": int(i > 0)} for i in range(3)]))
        polygon = [[10, 10, 40, 10, 40, 40, 10, 40]]
        content = {
            "images": [
                {"id": i, "file_name": name, "height": height, "width": width}
                for i, (name, (height, width)) in enumerate(zip(names, SIZES))
            ],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "segmentation": polygon} for i in range(COUNT)
            ],
            "categories": [{"id": 1, "name": "a"}],
        }
        self.detection.write_text(json.dumps(content))
        self.panoptic = self.root / "annotations/panoptic_train.json"
        self.labels = self.panoptic.with_suffix("")
        self.predicted_json, self.predicted = root / "pred.json", root / "pred"
        shutil.copy(self.panoptic, self.predicted_json)
        shutil.copytree(self.labels, self.predicted)
        self.tools = root / "tools"
        for tool, (make, _, _) in TOOLS.items():
            make(self.tools / tool)

    def files(self, verb: str) -> list[pathlib.Path]:
        """What a verb reads."""
        if verb in TOOLS:
            return sorted(path for pattern in TOOLS[verb][2] for path in (self.tools / verb).glob(pattern))
        own = {
            "validate-data": [self.panoptic, *self.labels.iterdir(), *self.images.iterdir()],
            "instances": [self.detection, *self.images.iterdir()],
            "masks": [*self.masks.iterdir(), *self.images.iterdir()],
            "semantic": [self.classes, *self.masks.iterdir(), *self.images.iterdir()],
            "evaluate": [self.predicted_json, *self.predicted.iterdir(), self.panoptic, *self.labels.iterdir()],
        }
        return sorted(own.get(verb, own["validate-data"]))

    def run(self, verb: str) -> int:
        to = ["--images", self.images, "--output", self.out, "--split", "train"]
        words = {
            "validate-data": ["validate-data", OWN, f"--config.data.root={self.root}", "--workers", "1"],
            "instances": ["prepare", "instances", "--json", self.detection, *to],
            "masks": ["prepare", "masks", "--masks", f"a={self.masks}", *to],
            "semantic": ["prepare", "semantic", "--masks", self.masks, "--classes", self.classes, *to],
            "evaluate": ["evaluate", "--gt-json", self.panoptic, "--gt-dir", self.labels, "--pred-json",
                         self.predicted_json, "--pred-dir", self.predicted],
        }  # fmt: skip
        if verb in TOOLS:
            given = TOOLS[verb][1].format(root=self.tools / verb).split()
            return front_door.main(["prepare", verb, *given, "--output", str(self.out), "--split", "train"])
        if verb == "train":
            return front_door.run(argparse.Namespace(run=self._open_training))
        return front_door.main([str(word) for word in words[verb]])

    def _open_training(self, args: argparse.Namespace) -> int:
        """What `train` reads before its first step, and all examples."""
        options = DataOptions(root=str(self.root))
        source = open_training(options)
        open_evaluation(options, 0, classes=source.classes)
        for index in range(len(source)):
            source[index]
        return 0


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("fuzz"))


def damage(data: bytes, suffix: str, rng: random.Random) -> bytes:
    if suffix not in TEXTS or rng.random() < 0.2:
        return damage_bytes(data, rng)
    if suffix == ".json":
        return encode(damage_tree(json.loads(data), rng), rng)
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 3)):  # letter by letter, so that much of it stays XML or YAML
        damaged[rng.randrange(len(damaged))] = rng.choice(LETTERS)
    return bytes(damaged)


VERBS = ("validate-data", "instances", "masks", "semantic", "evaluate", "train", *TOOLS)


@pytest.mark.parametrize("rounds", [30, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_ends_in_a_traceback(world, verb, rounds, capsys):
    assert world.run(verb) == 0
    files, rng = world.files(verb), random.Random(rounds)
    texts = [path for path in files if path.suffix in TEXTS]
    statuses = set()
    for number in range(rounds):
        path = rng.choice(texts if texts and number % 2 else files)
        sound = path.read_bytes()
        try:
            path.write_bytes(damage(sound, path.suffix, rng))
            status = world.run(verb)
        finally:
            path.write_bytes(sound)
        said = capsys.readouterr()
        assert status in (0, 1, 2) and "out-of-memory" not in said.err
        assert status == 0 or "error: " in said.err or "error" in said.out
        statuses.add(status)
    assert statuses - {0}, "some damage is named"
