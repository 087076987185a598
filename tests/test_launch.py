"""The download scripts, run with a `curl` that copies from a folder: what they leave can be trained on."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.registry import open_source
from tests.data.datasets.test_tfds import write_zips
from tests.data.fixtures import write_tiny_coco

ROOT = pathlib.Path(__file__).parents[1]
# Copies the last part of the address (the last argument) to what follows --output; notes each call.
CURL = """#!/usr/bin/env bash
set -euo pipefail
echo "${@: -1}" >> "$MIRROR/calls"
while [ "$1" != --output ]; do shift; done
cp "$MIRROR/$(basename "$3")" "$2"
"""


@pytest.fixture
def mirror(tmp_path: pathlib.Path) -> pathlib.Path:
    """COCO's three zips with a few images, and the tiny data set that they hold."""
    root = write_tiny_coco(tmp_path / "tiny", splits={"train2017": 3, "val2017": 2})
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    write_zips(root, mirror, splits=("train2017", "val2017"))
    (mirror / "panoptic_annotations_trainval.zip").rename(mirror / "panoptic_annotations_trainval2017.zip")
    (mirror / "curl").write_text(CURL)
    (mirror / "curl").chmod(0o755)
    return mirror


def run(script: str, mirror: pathlib.Path, target: pathlib.Path) -> str:
    environment = {
        **os.environ,
        "PATH": f"{mirror}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "MIRROR": str(mirror),
    }
    ran = subprocess.run(
        [str(ROOT / "launch" / script), str(target)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def test_array_records_from_the_zips_in_place(mirror, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    out = run("coco_tfds.sh", mirror, tmp_path / "coco")
    assert re.search(
        r"train: 3 annotated images with \d+ segments, validation: 2 annotated images with \d+ segments", out
    )
    calls = (mirror / "calls").read_text().splitlines()
    assert [call.removeprefix("http://images.cocodataset.org/") for call in calls] == [
        "zips/train2017.zip", "zips/val2017.zip", "annotations/panoptic_annotations_trainval2017.zip",
    ]  # fmt: skip
    ours = open_source("tfds", tmp_path / "coco/tfds", "validation")
    theirs = CocoFolder(tmp_path / "tiny", "val2017")
    assert len(ours) == 2
    np.testing.assert_array_equal(ours[1].image, theirs[1].image)
    run("coco_tfds.sh", mirror, tmp_path / "coco")  # again: nothing is downloaded twice
    assert (mirror / "calls").read_text().splitlines() == calls


@pytest.mark.skipif(shutil.which("unzip") is None, reason="needs unzip")
def test_a_plain_folder(mirror, tmp_path):
    out = run("coco_folder.sh", mirror, tmp_path / "coco")
    assert "train2017: 3 images, 3 readable" in out and "training would work" in out
    names = [path.name for path in (tmp_path / "coco").iterdir()]
    assert sorted(names) == [".complete", "annotations", "train2017", "val2017"]
    np.testing.assert_array_equal(
        CocoFolder(tmp_path / "coco", "val2017")[0].segment_map, CocoFolder(tmp_path / "tiny", "val2017")[0].segment_map
    )
