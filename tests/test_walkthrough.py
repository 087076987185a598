"""docs/datasets.md: the walk-through from images and masks to a trained model, run as it is written."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.data.registry import BUILT_IN
from tests.support.tiny import TINY

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "datasets.md").read_text()


def walk_through() -> str:
    match = re.search(r"<!-- walk-through -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
    assert match
    return match.group(1)


def test_the_table_names_every_source_and_every_config_is_there():
    table = [line for line in PAGE.splitlines() if line.startswith("| ")]
    assert {name for name in BUILT_IN if any(f"| `{name}` |" in line for line in table)} == set(BUILT_IN)
    for config in set(re.findall(r"`(\w+\.py)`", "\n".join(table))):
        assert (ROOT / "configs" / config).is_file(), config
    for script in set(re.findall(r"launch/\w+\.sh", PAGE)):
        assert os.access(ROOT / script, os.X_OK), script


@pytest.mark.slow
def test_from_images_and_masks_to_a_trained_model(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    scenes = Scenes("train", size=(64, 64), length=8)
    for index in range(8):
        example = scenes[index]
        thing = example.class_id < scenes.classes.num_things
        value = np.concatenate([[0], np.where(thing, np.cumsum(thing), 0)])
        Image.fromarray(example.image).save(tmp_path / "images" / f"photo {index}.png")
        Image.fromarray(value[example.segment_map].astype(np.uint8)).save(tmp_path / "masks" / f"photo {index}.png")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    settings = [flag.replace(" ", "") for flag in TINY[1:]]
    environment = {
        **os.environ,
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FLAGS": " ".join([*settings, "--config.train.steps=2", "--config.data.workers=0"]),
    }
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", walk_through()],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "training would work" in ran.stdout and "8 images segmented" in ran.stdout
    assert np.array(Image.open(tmp_path / "browse.png")).shape[1] > 1000
    result = json.loads((tmp_path / "result.json").read_text())
    assert {row for row in result["per_class"]} == {"1", "2"} and 1 <= result["pictures"] <= 7
    predicted = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert [category["name"] for category in predicted["categories"]] == ["object", "background"]
    assert len(list((tmp_path / "out/overlay").glob("*.png"))) == len(predicted["annotations"]) == 8
