"""The recipes of the data sets: the published numbers, and canvases that hold every image."""

from __future__ import annotations

import pathlib

import pytest

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.data.augment import ResizeShortSide

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
RECIPES = ("cityscapes_r50", "mapillary_r50_star", "ade20k_r50", "own_data", "panoptic_fcn_r50")


def recipe(name: str) -> Config:
    return from_command_line([f"--config={CONFIGS / name}.py"])


@pytest.mark.parametrize("name", RECIPES)
def test_images_of_any_shape_have_a_canvas(name):
    data = recipe(name).data
    assert recipe(name).name == name
    sizes = [(height, width) for height in (200, 480, 640, 1024, 3000) for width in (200, 500, 640, 2048, 4000)]
    if name == "cityscapes_r50":
        sizes = [(1024, 2048)]
    train = ResizeShortSide(data.short_sides, data.max_long_side, crop_size=data.crop if any(data.crop) else None)
    evaluate = ResizeShortSide((data.eval_short_side,), data.eval_max_long_side)
    for size in sizes:
        for rule, canvases in ((train, data.canvases), (evaluate, data.eval_canvases)):
            height, width = rule.largest_size(size)
            assert any(height <= h and width <= w for h, w in canvases), (size, height, width)


def test_cityscapes_as_published():
    config = recipe("cityscapes_r50")
    assert config.loss.segmentation_weight == 4.0 and config.loss.positives == 7
    inference = config.inference
    assert (inference.center_threshold, inference.stuff_threshold, inference.candidates) == (0.01, 0.1, 200)
    assert (inference.fusion_threshold, inference.mask_threshold) == (0.97, 0.5)
    assert config.targets.level_ranges[0] == (1, 128) and config.targets.level_ranges[-1] == (512, 2048)
    optim = config.optim
    assert (optim.learning_rate, optim.reference_batch, optim.clip_value) == (0.02, 32, 15.0)
    assert (config.train.steps, config.train.batch_size) == (65_000, 32)
    data = config.data
    assert (min(data.short_sides), max(data.short_sides), data.crop) == (512, 2048, (512, 1024))
    assert data.crop_with_instance and config.targets.max_positives >= 2 * 150
    assert (config.model.encoder_channels, config.model.encoder_deformable) == (64, False)


def test_mapillary_as_published():
    config = recipe("mapillary_r50_star")
    assert config.loss.positives == 3
    inference = config.inference
    assert (inference.center_threshold, inference.stuff_threshold, inference.candidates) == (0.2, 0.1, 200)
    assert inference.fusion_threshold == 0.95 and config.targets.level_ranges[-1] == (512, 4096)
    assert (config.optim.learning_rate, config.optim.clip_value) == (0.02, 15.0)
    assert (config.train.steps, config.train.batch_size) == (150_000, 32)
    data = config.data
    assert (min(data.short_sides), max(data.short_sides), data.crop) == (1024, 2048, (1024, 1024))
    assert data.crop_with_instance and config.targets.max_positives >= 2 * 400 and data.max_segments >= 400
    assert (config.model.encoder_channels, config.model.encoder_deformable) == (256, True)
