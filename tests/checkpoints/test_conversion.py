"""Published weights of a backbone become a checkpoint that a fresh model starts from."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

from pfcn_jax.checkpoints.conversion import convert_file
from pfcn_jax.checkpoints.loading import initialize_from
from pfcn_jax.config.schema import Config
from pfcn_jax.errors import UserError
from pfcn_jax.interop.backbones import from_backbone
from pfcn_jax.interop.writer import write_state_dict
from pfcn_jax.models.build import abstract_variables, build_model


@pytest.mark.parametrize("name", ["efficientnet_lite0", "convnext_t", "swin_t"])
def test_converted_weights_are_where_a_model_starts(name, tmp_path):
    options = dataclasses.replace(Config().model, backbone=name, backbone_width=8, fpn_channels=16, head_channels=16)
    config = dataclasses.replace(Config(), model=options)
    shapes = abstract_variables(build_model(options, 2, 1))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    flat = traverse_util.flatten_dict(variables, sep="/")
    backbone = {path.replace("/backbone/", "/"): a for path, a in flat.items() if path.split("/")[1] == "backbone"}
    fresh_norms = {path for path in backbone if path.split("/")[1].startswith("norm")}
    published = from_backbone({path: a for path, a in backbone.items() if path not in fresh_norms}, name)
    write_state_dict(tmp_path / "weights.pth", published)
    converted = convert_file(tmp_path / "weights.pth", config, tmp_path / "converted").config
    assert converted.model.pixel_order == "rgb"
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    merged, notes = initialize_from(tmp_path / "converted", zeros, converted, fresh_heads=False)
    assert notes == []
    merged = traverse_util.flatten_dict(merged, sep="/")
    for path, array in backbone.items():
        expected = np.full_like(array, path.endswith("scale")) if path in fresh_norms else array
        np.testing.assert_array_equal(merged[path.replace("/", "/backbone/", 1)], expected)
    del published[next(iter(published))]
    write_state_dict(tmp_path / "less.pth", published)
    with pytest.raises(UserError, match=r"less\.pth: 1 tensors do not fit"):
        convert_file(tmp_path / "less.pth", config, tmp_path / "other")
