"""`convert` from end to end on a narrow network: there and back, and training that starts from converted weights."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from pfcn_jax import main as front_door
from pfcn_jax.checkpoints.conversion import read_classes
from pfcn_jax.checkpoints.loading import initialize_from, load_checkpoint
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.data.classes import coco_classes
from pfcn_jax.data.datasets.scenes import class_table
from pfcn_jax.interop.convert import from_params
from pfcn_jax.interop.reader import read_tensors
from pfcn_jax.interop.writer import write_state_dict
from pfcn_jax.models.build import abstract_variables, build_model
from tests.support import weights
from tests.support.tiny import TINY

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
NARROW = ["backbone_width=8", "fpn_channels=32", "head_channels=32", "kernel_channels=32", "encoder_channels=8"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A whole model under the original's names, 80 + 53 classes, and its tensors."""
    options = {name: int(value) for name, value in (entry.split("=") for entry in NARROW)}
    facts = weights.facts(18, **options)
    model = build_model(facts.options, *coco_classes().counts)
    rng = np.random.default_rng(0)
    draw = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract_variables(model))
    state_dict = from_params(draw, facts)
    path = tmp_path_factory.mktemp("original") / "model_final.pth"
    write_state_dict(path, state_dict)
    return path, state_dict


def test_there_and_back_is_bit_equal(original, tmp_path, capsys):
    path, state_dict = original
    assert front_door.main(["convert", "--input", str(path), "--output", str(tmp_path / "ours")]) == 0
    assert "a whole model" in capsys.readouterr().out
    loaded = load_checkpoint(tmp_path / "ours")
    assert loaded.config.model.backbone == "resnet18" and loaded.config.model.pixel_order == "bgr"
    assert loaded.classes.names[0] == "person" and len(loaded.classes) == 133
    back = tmp_path / "back.pth"
    assert front_door.main(["convert", "--checkpoint", str(tmp_path / "ours"), "--output", str(back)]) == 0
    again = read_tensors(back)
    assert again.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_a_damaged_checkpoint_is_listed(original, tmp_path, capsys):
    _, state_dict = original
    broken = dict(state_dict)
    del broken["position_head.out_inst.bias"]
    broken["stranger.weight"] = np.zeros(3, np.float32)
    broken["kernel_head.out_conv.bias"] = np.zeros(7, np.float32)
    write_state_dict(tmp_path / "broken.pth", broken)
    assert front_door.main(["convert", "--input", str(tmp_path / "broken.pth"), "--output", str(tmp_path / "x")]) == 2
    message = capsys.readouterr().err
    for part in ("missing position_head.out_inst.bias", "superfluous stranger.weight", "kernel_head.out_conv.bias has"):
        assert part in message
    assert not (tmp_path / "x").exists()


def test_a_backbone_starts_a_training_and_cannot_predict(original, tmp_path, capsys):
    _, state_dict = original
    prefix = "backbone.bottom_up."
    backbone = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    write_state_dict(tmp_path / "backbone.pth", backbone)
    argv = ["convert", "--input", str(tmp_path / "backbone.pth"), "--output", str(tmp_path / "ours")]
    assert front_door.main(argv) == 0
    assert "init_from" in capsys.readouterr().out
    assert front_door.main(["evaluate", "--checkpoint", str(tmp_path / "ours")]) == 2
    assert "backbone alone" in capsys.readouterr().err
    config = from_command_line([*TINY, "--config.model.backbone_norm=frozen_bn"])
    model = build_model(config.model, *coco_classes().counts)
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_variables(model))
    merged, notes = initialize_from(tmp_path / "ours", fresh, config, fresh_heads=False)
    stem = merged["params"]["backbone"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(stem, backbone["stem.conv1.weight"].transpose(2, 3, 1, 0))
    assert not np.any(merged["params"]["fpn"]["p6"]["kernel"])
    assert notes == []  # detectron2's names with statistics: torchvision's weights, as the quickstart's settings
    other = from_command_line([*TINY, "--config.model.backbone_norm=frozen_bn", "--config.model.pixel_order=bgr"])
    _, notes = initialize_from(tmp_path / "ours", fresh, other, fresh_heads=False)
    assert notes == ["config.model.pixel_order is bgr, the weights were made with rgb"]


def test_other_classes_need_to_be_asked_for(original, tmp_path):
    path, _ = original
    assert front_door.main(["convert", "--input", str(path), "--output", str(tmp_path / "ours")]) == 0
    loaded = load_checkpoint(tmp_path / "ours")
    model = build_model(loaded.config.model, *class_table().counts)
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_variables(model))
    with pytest.raises(ValueError, match="position_head/centers"):
        initialize_from(tmp_path / "ours", fresh, loaded.config, fresh_heads=False)
    merged, notes = initialize_from(tmp_path / "ours", fresh, loaded.config, fresh_heads=True)
    assert sum("fresh" in note for note in notes) == 4  # kernel and bias of centers and regions
    assert np.any(merged["params"]["kernel_head"]["output"]["kernel"])


def test_a_region_channel_for_every_class_is_said_by_the_config(tmp_path, capsys):
    classes = class_table()  # 5 things, 5 stuff
    options = {name: int(value) for name, value in (entry.split("=") for entry in NARROW)}
    facts = weights.facts(18, num_things=5, num_stuff=5, region_classes="all", **options)
    config = dataclasses.replace(Config().model, backbone="resnet18", region_classes="all", **options)
    model = build_model(config, *classes.counts)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_variables(model))
    write_state_dict(tmp_path / "theirs.pth", from_params(zeros, facts))
    (tmp_path / "classes.json").write_text(json.dumps({"categories": classes.to_coco()}))
    command = ["convert", "--input", str(tmp_path / "theirs.pth"), "--classes", str(tmp_path / "classes.json")]
    assert front_door.main([*command, "--output", str(tmp_path / "wrong")]) == 2
    assert "--config.model.region_classes=all" in capsys.readouterr().err
    ours = tmp_path / "ours"
    assert front_door.main([*command, "--config.model.region_classes=all", "--output", str(ours)]) == 0
    assert load_checkpoint(ours).model.regions.things == 5
    back = tmp_path / "back.pth"
    assert front_door.main(["convert", "--checkpoint", str(ours), "--output", str(back)]) == 0
    assert read_tensors(back)["position_head.out_sem.weight"].shape[0] == 10


def test_unknown_class_counts_want_a_file(tmp_path):
    with pytest.raises(ValueError, match="--classes"):
        read_classes(weights.facts(num_things=3, num_stuff=2), None)
