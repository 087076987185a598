"""What `predict --format` writes for annotation tools is read by `prepare` as the same segments."""

from __future__ import annotations

import numpy as np
import pytest

from pfcn_jax.inference.formats import make_writer
from pfcn_jax.inference.formats.registry import ImageEntry
from pfcn_jax.inference.result import make_result
from pfcn_jax.types import PanopticPrediction
from tests.data.importers.support import CLASSES, STUFF, THINGS, imported, prepare, save_images, scenes, segments_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder


@pytest.mark.parametrize("form", ["yolo", "labelme"])
def test_predictions_come_back(tmp_path, form):
    paths = save_images(tmp_path / "images", "abc")
    writer = make_writer(form, tmp_path, CLASSES)
    for path, scene in zip(paths, scenes()):
        rows = len(scene.class_id)
        prediction = PanopticPrediction(
            segment_map=scene.segment_map,
            class_id=scene.class_id,
            is_thing=np.array(CLASSES.is_thing)[scene.class_id],
            score=np.ones(rows, np.float32),
            area=scene.area.astype(np.int32),
            valid=np.ones(rows, bool),
        )
        writer.add(ImageEntry(path.stem, 1, path.stem, str(path)), make_result(scene.image, prediction, CLASSES))
    writer.finish("abc")
    flags = ["--output", tmp_path / "out", "--split", "train", "--background", ""]
    if form == "yolo":
        with (tmp_path / "data.yaml").open("a") as file:
            file.write("train: images\n")
        assert prepare("yolo", "--data", tmp_path, *flags) == 0
    else:
        assert prepare("labelme", "--labels", tmp_path / "labelme", *flags, "--things", *THINGS, "--stuff", *STUFF) == 0
    kept = THINGS if form == "yolo" else CLASSES.names
    expected = [{(name, mask) for name, mask in segments_of(scene) if name in kept} for scene in scenes()]
    assert imported(tmp_path / "out") == {f"{name}.png": own for name, own in zip("abc", expected)}
