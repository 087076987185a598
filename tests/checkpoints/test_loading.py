"""A checkpoint with values of its config changed: what may change takes effect, what may not is an error."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.checkpoints.format import load_stored, save_model
from pfcn_jax.checkpoints.loading import load_checkpoint, load_with_config
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import to_json
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.errors import ConfigError, UserError
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.panoptic.predict import Prediction, crop_prediction
from pfcn_jax.types import Kernels, PanopticPrediction
from tests.support.tiny import TINY


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config, classes = from_command_line(TINY), Scenes("val").classes
    zeros = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        abstract_variables(build_model(config.model, *classes.counts)),
    )
    meta = {"kind": "model", "config": json.loads(to_json(config)), "classes": classes.to_json()}
    return save_model(tmp_path_factory.mktemp("run"), model=zeros, meta=meta)


def test_a_healthy_checkpoint_loads_without_a_warning(checkpoint, caplog):
    with caplog.at_level("WARNING"):
        loaded = load_checkpoint(checkpoint)
        stored = load_stored(checkpoint)
    assert not caplog.records
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"], stored["params"])


def test_the_compute_type_can_change_and_parameters_stay_float32(checkpoint):
    loaded = load_with_config(checkpoint, ["--config.model.dtype=bfloat16", "--config.inference.min_score=0.1"])
    assert loaded.model.options.dtype == "bfloat16" and loaded.config.model.dtype == "bfloat16"
    assert loaded.config.inference.min_score == 0.1
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {np.dtype(np.float32)}
    assert load_with_config(checkpoint, []).model.options.dtype == "float32"


@pytest.mark.parametrize(
    "flag", ["encoder_channels=16", "pixel_order=bgr", "pixel_mean=(0.0,0.0,0.0)", "region_classes=all"]
)
def test_what_belongs_to_the_parameters_cannot(checkpoint, flag):
    key = flag.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"config\.model\.{key}: .* was trained with") as error:
        load_with_config(checkpoint, [f"--config.model.{flag}"])
    assert "dtype and remat can change" in str(error.value) and str(checkpoint) in str(error.value)


def test_an_image_larger_than_the_output_canvas_is_an_error():
    nothing = np.zeros(0)
    segments = PanopticPrediction(np.zeros((64, 96), np.int32), nothing, nothing, nothing, nothing, nothing)
    prediction = Prediction(segments, Kernels(nothing, nothing, nothing, nothing), None, None)
    assert crop_prediction(prediction, (64, 90)).panoptic.segment_map.shape == (64, 90)
    for size in ((65, 96), (64, 97)):
        with pytest.raises(UserError, match=rf"{size[0]} x {size[1]} pixels .* output canvas of 64 x 96: .* cut off"):
            crop_prediction(prediction, size)


@pytest.mark.parametrize("verb", [["evaluate"], ["predict", "--output", "out", "picture.png"]])
def test_a_damaged_checkpoint_is_one_clear_line_everywhere(checkpoint, verb, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("picture.png")
    copy = shutil.copytree(checkpoint, tmp_path / "run" / "checkpoints" / "7")
    victim = max((copy / "model").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    assert front_door.main([verb[0], "--checkpoint", "run", *verb[1:]]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {copy}: damaged") and victim.name in said and "Traceback" not in said
