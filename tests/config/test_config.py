"""The config door: every key is known and typed, every error names the key."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import pytest

from pfcn_jax.checkpoints.loading import CHANGEABLE
from pfcn_jax.config import schema as config_lib
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.panoptic.options import THRESHOLDS, PredictOptions, TargetOptions
from pfcn_jax.utils.settings import Bounds, bounds_of, names_affecting

CANONICAL = pathlib.Path(__file__).parents[2] / "configs" / "panoptic_fcn_r50.py"


def test_canonical_config_states_the_defaults():
    assert from_command_line([f"--config={CANONICAL}"]) == config_lib.Config()


def test_json_round_trip():
    config = from_command_line([f"--config={CANONICAL}", "--config.data.short_sides=(512, 544)"])
    assert config.data.short_sides == (512, 544)
    assert config_lib.from_dict(json.loads(config_lib.to_json(config))) == config
    assert config_lib.config_hash(config) != config_lib.config_hash(config_lib.Config())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rat=1", "config.optim.learning_rat: unknown config key; did you mean 'learning_rate'?"),
        ("nope=1", "config.nope: unknown config key (known: name, seed, data,"),
        ("seed.x=1", "config.seed.x: unknown config key (config.seed is a value"),
        ("optim.warmup_steps=many", "warmup_steps"),
        ("model.dtype=float16", "config.model.dtype: must be one of float32, bfloat16"),
        ("data.canvases=((100, 64),)", "multiples of 32"),
        ("train.batch_size=0", "config.train.batch_size: must be at least 1"),
        ("optim.learning_rate=0.0", "config.optim.learning_rate: must be above 0"),
        ("optim.momentum=1.5", "config.optim.momentum: must be at least 0 and below 1"),
        ("inference.mask_threshold=-0.5", "config.inference.mask_threshold: must be at least 0"),
        ("loss.positives=0", "config.loss.positives: must be at least 1"),
        ("seed=-1", "config.seed: must be at least 0"),
        ("model.freeze_at=-1", "config.model.freeze_at: must be from 0 to 5"),
        ("model.freeze_at=6", "config.model.freeze_at: must be from 0 to 5"),
        ("model.deformable_stages=(6,)", "config.model.deformable_stages: stages are 2 to 5"),
        ("model.pixel_std=(1.0, 0.0, 1.0)", "config.model.pixel_std: each must be above 0"),
        ("data.scene_size=(0, 0)", "config.data.scene_size: sides of at least 32"),
        ("train.ema_decay=1.0", "config.train.ema_decay: must be at least 0 and below 1"),
        ("targets.level_ranges=((1., 2.),)", "must have 5 ranges"),
        ("targets.level_ranges=((2., 1.), (1., 2.), (1., 2.), (1., 2.), (1., 2.))", "0 <= low <= high, got (2.0, 1.0)"),
        ("data.jitter=(2.0, 0.1)", "config.data.jitter: expected 0 < low <= high, or (0, 0)"),
        ("data.jitter=(0.1, 2.0)", "config.data.jitter: needs config.data.crop"),
        ("data.crop_with_instance=True", "config.data.crop_with_instance: needs config.data.crop"),
        ("data.crop=(0, 64)", "config.data.crop: must be a"),
    ],
)
def test_bad_overrides_name_the_key(override, message):
    with pytest.raises(config_lib.ConfigError, match=re.escape(message)):
        from_command_line([f"--config={CANONICAL}", f"--config.{override}"])
    with pytest.raises(config_lib.ConfigError, match=re.escape(message)):  # on top of a checkpoint's config
        from_command_line([f"--config.{override}"], base=config_lib.Config())


def test_basic_blocks_cannot_be_deformable():
    with pytest.raises(config_lib.ConfigError, match="deformable_stages: resnet18"):
        config_lib.from_dict({"model": {"backbone": "resnet18", "deformable_stages": [3, 4, 5]}})


def test_unknown_key_in_a_dict_suggests_the_nearest():
    with pytest.raises(config_lib.ConfigError, match=r"config\.model\.fpn_chanels.*did you mean 'fpn_channels'"):
        config_lib.from_dict({"model": {"fpn_chanels": 128}})


def test_wrong_types_are_errors():
    for tree in ({"seed": True}, {"seed": 1.5}, {"model": 3}, {"data": {"short_sides": 5}}, {"model": {"remat": 1}}):
        with pytest.raises(config_lib.ConfigError):
            config_lib.from_dict(tree)


def test_missing_config_is_an_error():
    with pytest.raises(config_lib.ConfigError, match="no config"):
        from_command_line([])
    with pytest.raises(config_lib.ConfigError, match=r"nowhere\.py: no such config file"):
        from_command_line(["--config=nowhere.py"])


def test_config_is_hashable_all_the_way():
    hash(config_lib.Config())
    assert dataclasses.is_dataclass(config_lib.Config().data)


def test_fields_say_their_bounds_and_what_they_affect():
    bounds = {field.name: str(bounds_of(field)) for field in dataclasses.fields(TargetOptions)}
    assert bounds["min_overlap"] == "from 0 to 1" and bounds["max_positives"] == "at least 1"
    assert not Bounds(at_least=0).hold(float("nan"))
    assert CHANGEABLE == ("dtype", "remat")
    everything = {field.name for field in dataclasses.fields(PredictOptions)}
    assert set(names_affecting(PredictOptions, "scores")) == everything
    assert set(THRESHOLDS) < everything


def test_old_names_of_keys_and_values_are_read_and_named_on_the_command_line(tmp_path, capsys):
    tree = json.loads(config_lib.to_json(config_lib.Config()))
    tree["train"]["preview_pictures"] = tree["train"].pop("preview_images") - 5
    tree["targets"]["padding"] = "picture"
    found = config_lib.from_dict(tree)
    assert (found.train.preview_images, found.targets.padding) == (3, "image")
    assert "preview_pictures" in tree["train"] and not capsys.readouterr().err  # checkpoints of before load silently
    file = tmp_path / "mine.py"
    file.write_text(
        "from pfcn_jax.config.schema import default_config\n\ndef get_config():\n    config = default_config()\n"
        "    config.train.preview_pictures = 1\n    return config\n"
    )
    assert from_command_line([f"--config={file}"]).train.preview_images == 1
    assert "train.preview_images" in capsys.readouterr().err
    found = from_command_line([f"--config={CANONICAL}", "--config.train.preview_pictures=2"])
    assert found.train.preview_images == 2 and "train.preview_images" in capsys.readouterr().err
    found = from_command_line([f"--config={CANONICAL}", "--config.targets.padding=picture"])
    assert found.targets.padding == "image" and "'picture' is called 'image'" in capsys.readouterr().err
