"""Random damage of a JSON or an image ends each verb that reads it with a status and a message, never a traceback."""

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

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's and pycocotools' about damaged files
OWN = f"--config={pathlib.Path(__file__).parents[1] / 'configs' / 'own_data.py'}"
COUNT = 2  # images


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

    def files(self, verb: str) -> list[pathlib.Path]:
        """What a verb reads."""
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


def damage(data: bytes, is_json: bool, rng: random.Random) -> bytes:
    if is_json and rng.random() < 0.8:
        return encode(damage_tree(json.loads(data), rng), rng)
    return damage_bytes(data, rng)


VERBS = ("validate-data", "instances", "masks", "semantic", "evaluate", "train")


@pytest.mark.parametrize("rounds", [30, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_ends_in_a_traceback(world, verb, rounds, capsys):
    assert world.run(verb) == 0
    files, rng = world.files(verb), random.Random(rounds)
    jsons = [path for path in files if path.suffix == ".json"]
    statuses = set()
    for number in range(rounds):
        path = rng.choice(jsons if jsons and number % 2 else files)
        sound = path.read_bytes()
        try:
            path.write_bytes(damage(sound, path.suffix == ".json", rng))
            status = world.run(verb)
        finally:
            path.write_bytes(sound)
        said = capsys.readouterr()
        assert status in (0, 1, 2) and "out-of-memory" not in said.err
        assert status == 0 or "error: " in said.err or "error" in said.out
        statuses.add(status)
    assert statuses - {0}, "some damage is named"
