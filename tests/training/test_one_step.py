"""One step of training, and an evaluation, on every kind of data set, with the classes of its owner in the heads."""

from __future__ import annotations

import json

import jax
import pytest

from pfcn_jax import main as front_door
from pfcn_jax.checkpoints.loading import load_checkpoint
from tests.data import layout_fixtures as layouts
from tests.data.fixtures import write_tiny_coco
from tests.support.tiny import TINY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer power
        yield


def _write(kind: str, root) -> list[str]:
    """Writes a data set with both splits; returns the flags that open it."""
    if kind in ("coco", "tfds"):
        write_tiny_coco(root, splits={"train": 4, "val": 2})
        if kind == "coco":
            return [f"--config.data.root={root}"]
        argv = ["prepare", "tfds", "--input", str(root), "--output", str(root / "tfds")]
        assert front_door.main([*argv, "--splits", "train=train", "val=validation"]) == 0
        return [f"--config.data.root={root / 'tfds'}"]
    if kind == "cityscapes":
        for split in ("train", "val"):
            layouts.write_cityscapes(root, split=split)
        return [f"--config.data.root={root}", "--config.model.region_classes=all"]
    write = {"mapillary": layouts.write_mapillary, "ade20k": layouts.write_ade20k}[kind]
    for split in ("training", "validation"):
        write(root, split=split, panoptic=split == "validation")  # the two ways to read it
    return [f"--config.data.root={root}"]


@pytest.mark.parametrize(
    ("kind", "things", "stuff"),
    [("coco", 5, 5), ("tfds", 5, 5), ("cityscapes", 8, 11), ("mapillary", 37, 28), ("ade20k", 100, 50)],
)
def test_one_step_and_an_evaluation(kind, things, stuff, tmp_path):
    flags = [f"--config.data.source={kind}", *_write(kind, tmp_path / "data"), "--config.data.train_split="]
    flags += ["--config.data.eval_split=", "--config.train.steps=1", "--config.data.eval_examples=2"]
    crop = ["--config.data.crop=(48, 48)", "--config.data.crop_with_instance=True", "--config.data.cache=True"]
    run = tmp_path / "run"
    assert front_door.main(["train", *TINY, *flags, *crop, "--workdir", str(run)]) == 0
    loaded = load_checkpoint(run)
    assert (loaded.model.num_things, loaded.model.num_stuff) == (things, stuff)
    regions = things + stuff if kind == "cityscapes" else 1 + stuff
    assert loaded.variables["params"]["position_head"]["regions"]["kernel"].shape[-1] == regions
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert metrics["step"] == 1 and 0 < metrics["loss"] < 100 and metrics["positives"] > 0
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["pictures"] == 2
    assert set(evaluation["per_class"]) == {str(category) for category in loaded.classes.category_ids}
