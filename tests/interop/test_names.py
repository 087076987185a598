"""The table of names: total and one to one against the model itself, and against the recorded list of the original."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import flax
import jax
import numpy as np
import pytest

from pfcn_jax.interop.names import DIALECTS, Entry, ModelFacts, backbone_table, table
from pfcn_jax.models.build import build_model
from pfcn_jax.models.panoptic_fcn import init_variables
from tests.support import weights

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "enhanced": {"encoder_deformable": True, "encoder_channels": 256},
    "r101": {"depth": 101},
    "dcn-101 enhanced": {"depth": 101, "deformable_stages": (3, 4, 5), "encoder_deformable": True},
    "r18": {"depth": 18, "backbone_width": 16, "fpn_channels": 32, "head_channels": 48, "kernel_channels": 40},
    "r34": {"depth": 34},
    "from scratch": {"backbone_norm": "group_norm"},
    "cityscapes": {"num_things": 8, "num_stuff": 11, "region_classes": "all"},
    "other heads": {"position_convs": 1, "position_deformable": False, "position_coords": True, "kernel_convs": 4,
                    "kernel_deformable": True, "kernel_coords": False, "encoder_convs": 2, "encoder_coords": False},
    "encoder on p2": {"encoder_input": "p2"},
}  # fmt: skip


def model_shapes(facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of the model that the facts describe."""
    model = build_model(facts.options, facts.num_things, facts.num_stuff)
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(variables, sep="/").items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_table_is_the_model(name: str) -> None:
    facts = weights.facts(**VARIANTS[name])
    entries = table(facts)
    assert len({entry.path for entry in entries}) == len({entry.name for entry in entries}) == len(entries)
    assert {entry.path: entry.shape for entry in entries} == model_shapes(facts)


@pytest.mark.parametrize(("variant", "options"), [("R50-1x", {}), ("Star-R50-3x", VARIANTS["enhanced"])])
def test_table_is_the_original(variant: str, options: dict[str, Any], reference_dir: pathlib.Path) -> None:
    recorded = json.loads((reference_dir / "tensors" / f"state_dict_{variant}.json").read_text())
    entries = table(weights.facts(**options))
    assert {entry.name: entry.their_shape for entry in entries} == {
        name: tuple(entry["shape"]) for name, entry in recorded.items()
    }
    assert [entry.name for entry in entries] == list(recorded)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_backbone_tables(dialect: str, depth: int) -> None:
    entries = backbone_table(weights.facts(depth=depth), dialect)
    assert len({entry.path for entry in entries}) == len({entry.name for entry in entries}) == len(entries)
    expected = {path for path in (entry.path for entry in table(weights.facts(depth=depth))) if "/backbone/" in path}
    if dialect == "caffe2":
        expected = {path for path in expected if not path.endswith(("/mean", "/var"))}
    assert {entry.path for entry in entries} == expected


@pytest.mark.parametrize(
    ("dialect", "path", "name"),
    [
        ("caffe2", "params/backbone/stem/conv/kernel", "conv1_w"),
        ("caffe2", "batch_stats/backbone/stem/conv/norm/scale", "res_conv1_bn_s"),
        ("caffe2", "params/backbone/res2_0/conv1/kernel", "res2_0_branch2a_w"),
        ("caffe2", "batch_stats/backbone/res4_22/conv3/norm/bias", "res4_22_branch2c_bn_b"),
        ("caffe2", "params/backbone/res3_0/shortcut/kernel", "res3_0_branch1_w"),
        ("detectron2", "params/backbone/stem/conv/kernel", "stem.conv1.weight"),
        ("detectron2", "batch_stats/backbone/res5_1/conv2/norm/var", "res5.1.conv2.norm.running_var"),
        ("torchvision", "params/backbone/stem/conv/kernel", "conv1.weight"),
        ("torchvision", "batch_stats/backbone/stem/conv/norm/mean", "bn1.running_mean"),
        ("torchvision", "params/backbone/res3_0/shortcut/kernel", "layer2.0.downsample.0.weight"),
        ("torchvision", "batch_stats/backbone/res3_0/shortcut/norm/scale", "layer2.0.downsample.1.weight"),
        ("torchvision", "batch_stats/backbone/res5_2/conv3/norm/bias", "layer4.2.bn3.bias"),
    ],
)
def test_names_of_backbones(dialect: str, path: str, name: str) -> None:
    assert name in {entry.name for entry in backbone_table(weights.facts(depth=101), dialect) if entry.path == path}


def test_names_of_deformable_backbone() -> None:
    names = {entry.name: entry for entry in table(weights.facts(deformable_stages=(3,)))}
    offset = names["backbone.bottom_up.res3.1.conv2_offset.weight"]
    assert (offset.path, offset.their_shape) == ("params/backbone/res3_1/conv2/offset/kernel", (27, 128, 3, 3))
    assert not any("res4.0.conv2_offset" in name for name in names)


def test_unknown_dialect_is_named() -> None:
    with pytest.raises(ValueError, match="'keras'"):
        backbone_table(ModelFacts(), "keras")


def test_layouts() -> None:
    rng = np.random.default_rng(0)
    conv = rng.normal(size=(5, 4, 3, 2)).astype(np.float32)  # theirs: O I kh kw
    ours = Entry("a", "b", (3, 2, 4, 5)).to_ours(conv)
    assert ours[1, 0, 3, 2] == conv[2, 3, 1, 0] and ours.flags.c_contiguous
    np.testing.assert_array_equal(Entry("a", "b", (3, 2, 4, 5)).to_theirs(ours), conv)
    dense = Entry("a", "b", (4, 5))
    assert dense.their_shape == (5, 4, 1, 1)
    assert dense.to_ours(conv[:, :, :1, :1])[3, 2] == conv[2, 3, 0, 0]
    np.testing.assert_array_equal(dense.to_theirs(dense.to_ours(conv[:, :, :1, :1])), conv[:, :, :1, :1])
    vector = Entry("a", "b", (7,))
    np.testing.assert_array_equal(vector.to_theirs(vector.to_ours(np.arange(7.0))), np.arange(7, dtype=np.float32))
