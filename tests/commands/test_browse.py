"""`browse`: the sheet is there, and its targets are those of the training step."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.commands.browse import image_targets
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.datasets.scenes import class_table
from pfcn_jax.data.inputs import open_training, train_pipeline
from pfcn_jax.models.build import build_model
from pfcn_jax.steps import batch_geometry, batch_targets
from pfcn_jax.viz.regions import draw_regions
from tests.support.tiny import TINY


def test_a_sheet_of_labels_and_targets(tmp_path, capsys):
    output = tmp_path / "sheets" / "sheet.png"
    assert front_door.main(["browse", *TINY, "--output", str(output), "--count", "7", "--targets", "2"]) == 0
    assert "7 of " in capsys.readouterr().out
    sheet = np.array(Image.open(output))
    both = sheet.shape
    assert front_door.main(["browse", *TINY, "--output", str(output), "--count", "7", "--targets", "0"]) == 0
    labels_only = np.array(Image.open(output))
    rows = (both[0] - labels_only.shape[0]) / (labels_only.shape[0] / 2)  # 7 labels in 2 rows; 2 targets in 4
    assert both[1] == labels_only.shape[1] and rows == pytest.approx(4, abs=0.1)
    np.testing.assert_array_equal(sheet[: labels_only.shape[0]], labels_only)
    assert len(np.unique(sheet[labels_only.shape[0] :].reshape(-1, 3), axis=0)) > 1000
    assert front_door.main(["browse", *TINY, "--first", "100000000", "--output", str(output)]) == 2
    assert "there are" in capsys.readouterr().err


def test_targets_are_those_of_the_training_step():
    config = from_command_line(TINY)
    source = open_training(config.data)
    with iter(
        train_pipeline(config.data, source, batch_size=config.train.batch_size, seed=config.seed, process=(0, 1))
    ) as batches:
        batch = next(batches)
    model = build_model(config.model, *source.classes.counts)
    geometry = batch_geometry(batch, config.targets)
    make = jax.jit(lambda batch, geometry: batch_targets(batch, geometry, model, config.targets, None))
    expected = make(batch, geometry)
    ours = image_targets(batch, 1, config, source.classes)
    for name in ("center_heatmap", "region_score"):
        for level, theirs in zip(getattr(ours, name), getattr(expected, name)):
            np.testing.assert_array_equal(level, theirs[1])
    assert int(ours.thing_count) == int(expected.thing_count[1]) > 0


def test_regions_have_their_class_colours():
    classes = class_table()
    score = np.zeros((2, 3, 1 + classes.num_stuff), np.float32)
    score[0, 0, 0], score[0, 1, 2], score[1, 2, 3] = 1.0, 1.0, 0.5
    image = np.full((16, 20, 3), 100, np.uint8)
    drawn = draw_regions(score, image, 8, classes)
    assert drawn.shape == image.shape
    dark = np.full(3, 40)
    np.testing.assert_array_equal(drawn[3, 3], np.rint(0.2 * dark + 0.8 * 255))
    np.testing.assert_array_equal(drawn[3, 10], np.rint(0.2 * dark + 0.8 * classes.palette[classes.num_things + 1]))
    np.testing.assert_array_equal(drawn[12, 18], np.rint(0.6 * dark + 0.4 * classes.palette[classes.num_things + 2]))
    np.testing.assert_array_equal(drawn[12, 3], dark)
