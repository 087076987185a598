"""The tables of EfficientNet-Lite, ConvNeXt and Swin: one to one with recorded state dicts, and there and back."""

from __future__ import annotations

import functools
import json

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax.interop import backbones
from pfcn_jax.interop.reader import WeightsError
from pfcn_jax.models.backbones.registry import find_backbone, known_backbones
from pfcn_jax.models.options import ModelOptions

RECORDED = {
    "convnext_t": "convnext_tiny_torchvision",
    "swin_t": "swin_t_torchvision",
    "efficientnet_lite0": "efficientnet_lite0",
    "efficientnet_lite1": "efficientnet_lite1",
    "efficientnet_lite2": "efficientnet_lite2",
}
WITH_TABLE = [name for name in known_backbones() if not name.startswith("resnet")]


@functools.cache
def shapes_of(name: str, width: int = 64) -> dict[str, tuple[int, ...]]:
    net = find_backbone(name).build(ModelOptions(backbone=name, backbone_width=width))
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), None))
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(variables, sep="/").items()}


@pytest.mark.parametrize("name", RECORDED)
def test_the_table_is_the_recorded_state_dict(name, reference_dir):
    listing = json.loads((reference_dir / "backbones" / f"state_dict_{RECORDED[name]}.json").read_text())
    family, shapes = backbones.family_of(name), shapes_of(name)
    theirs = {key: tuple(entry["shape"]) for key, entry in listing.items()}
    theirs = {key: shape for key, shape in theirs.items() if not backbones.IGNORED[family].fullmatch(key)}
    named = backbones.table(name, shapes)
    ours = {key: backbones.their_shape(family, path, shapes[path]) for path, key in named.items()}
    fresh = {named[path] for path in shapes if backbones.DETECTION_NORM.fullmatch(path)}
    assert {key: shape for key, shape in ours.items() if key not in fresh} == theirs
    assert len(fresh) == (0 if family == "efficientnet_lite" else 8)


@pytest.mark.parametrize("name", WITH_TABLE)
def test_there_and_back_is_bit_equal(name):
    shapes, rng = shapes_of(name, 8), np.random.default_rng(0)
    variables = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    state_dict = backbones.from_backbone(variables, name)
    assert len(state_dict) == len(variables)
    again = backbones.to_backbone(state_dict, name, shapes)
    assert again.keys() == variables.keys()
    for path, array in variables.items():
        np.testing.assert_array_equal(again[path], array)


def test_layouts():
    """A linear layer is transposed, also a square one; a depthwise kernel keeps its taps."""
    shapes = shapes_of("swin_t", 8)
    variables = {path: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for path, shape in shapes.items()}
    theirs = backbones.from_backbone(variables, "swin_t")
    square = variables["params/res2_0/attn/proj/kernel"]
    assert square.shape[0] == square.shape[1]
    np.testing.assert_array_equal(theirs["features.1.0.attn.proj.weight"], square.T)
    bias = "features.1.0.attn.relative_position_bias_table"
    np.testing.assert_array_equal(theirs[bias], variables["params/res2_0/attn/bias_table"])


def test_misfits_are_listed_by_name():
    shapes = shapes_of("convnext_t", 8)
    state_dict = backbones.from_backbone(
        {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}, "convnext_t"
    )
    state_dict["extra.weight"] = np.zeros(3, np.float32)
    state_dict["features.0.0.bias"] = np.zeros(5, np.float32)
    del state_dict["features.1.0.layer_scale"], state_dict["norm0.weight"]  # a detection norm may be missing
    with pytest.raises(WeightsError) as error:
        backbones.to_backbone(state_dict, "convnext_t", shapes)
    for part in (
        "3 tensors",
        "missing features.1.0.layer_scale",
        "superfluous extra.weight",
        "features.0.0.bias has shape (5,)",
    ):
        assert part in str(error.value)
    with pytest.raises(WeightsError, match="resnet50"):
        backbones.family_of("resnet50")
