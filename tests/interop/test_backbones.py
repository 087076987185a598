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
WITH_TABLE = [
    (name, dialect)
    for name in known_backbones()
    if not name.startswith("resnet")
    for dialect in backbones.DIALECTS[backbones.family_of(name)]
]


@functools.cache
def shapes_of(name: str, width: int = 64) -> dict[str, tuple[int, ...]]:
    net = find_backbone(name).build(ModelOptions(backbone=name, backbone_width=width))
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), None))
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(variables, sep="/").items()}


@pytest.mark.parametrize("name", RECORDED)
def test_the_table_is_the_recorded_state_dict(name, reference_dir):
    listing = json.loads((reference_dir / "backbones" / f"state_dict_{RECORDED[name]}.json").read_text())
    family, shapes = backbones.family_of(name), shapes_of(name)
    ignored = next(iter(backbones.DIALECTS[family].values())).ignored
    theirs = {key: tuple(entry["shape"]) for key, entry in listing.items() if not ignored.fullmatch(key)}
    named = backbones.table(name, shapes)
    ours = {key: backbones.their_shape(key, shapes[path]) for path, key in named.items()}
    fresh = {named[path] for path in shapes if backbones.DETECTION_NORM.fullmatch(path)}
    assert {key: shape for key, shape in ours.items() if key not in fresh} == theirs
    assert len(fresh) == (0 if family == "efficientnet_lite" else 8)


@pytest.mark.parametrize("name", RECORDED)
def test_names_of_timm_are_the_recorded_ones(name, reference_dir):
    model = RECORDED[name].removesuffix("_torchvision")
    recorded = json.loads((reference_dir / "backbones" / f"names_{model}.json").read_text())
    shapes = shapes_of(name)
    theirs, timm = backbones.table(name, shapes), backbones.table(name, shapes, "timm")
    for path, key in theirs.items():
        if not backbones.DETECTION_NORM.fullmatch(path):
            assert timm[path] == recorded.pop(key)
    ignored = backbones.DIALECTS[backbones.family_of(name)]["timm"].ignored
    assert all(ignored.fullmatch(key) for key in recorded.values() if key)


@pytest.mark.parametrize("name", ["convnext_t", "swin_t"])
def test_a_state_dict_of_timm_is_that_of_torchvision(name, reference_dir):
    """The recorded shapes of timm with its classifier: the same variables as from torchvision's names."""
    model = RECORDED[name].removesuffix("_torchvision")
    listing = json.loads((reference_dir / "backbones" / f"state_dict_{model}_timm.json").read_text())
    rng, shapes = np.random.default_rng(0), shapes_of(name)
    timm = {key: rng.normal(size=entry["shape"]).astype(np.float32) for key, entry in listing.items()}
    recorded = json.loads((reference_dir / "backbones" / f"names_{model}.json").read_text())
    torchvision = {key: timm[other] for key, other in recorded.items() if other}
    torchvision |= {key: array.reshape(-1, 1, 1) for key, array in torchvision.items() if key.endswith(".layer_scale")}
    ours, theirs = (backbones.to_backbone(tensors, name, shapes) for tensors in (timm, torchvision))
    assert ours.keys() == theirs.keys() == shapes.keys()
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_files_of_swin_may_hold_constants_and_need_windows_of_7():
    shapes = shapes_of("swin_t", 8)
    zeros = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    authors = backbones.from_backbone(zeros, "swin_t", "authors")
    assert {"layers.0.downsample.norm.weight", "layers.2.downsample.reduction.weight"} < authors.keys()
    assert not any(key.startswith("layers.3.downsample") for key in authors)
    authors["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((49, 49), np.int64)
    authors["layers.0.blocks.1.attn_mask"] = np.zeros((64, 49, 49), np.float32)
    authors["head.weight"] = np.zeros((1000, 96), np.float32)
    assert backbones.to_backbone(authors, "swin_t", shapes).keys() == shapes.keys()
    bias = "layers.0.blocks.0.attn.relative_position_bias_table"
    authors[bias] = np.zeros((23**2, authors[bias].shape[1]), np.float32)
    with pytest.raises(WeightsError, match=r"bias_table has shape \(529, 3\), expected \(169, 3\)"):
        backbones.to_backbone(authors, "swin_t", shapes)


@pytest.mark.parametrize(("name", "dialect"), WITH_TABLE)
def test_there_and_back_is_bit_equal(name, dialect):
    shapes, rng = shapes_of(name, 8), np.random.default_rng(0)
    variables = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    state_dict = backbones.from_backbone(variables, name, dialect)
    assert len(state_dict) == len(variables)
    assert backbones.dialect_of(state_dict, backbones.family_of(name)) == dialect
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
