"""Conversion there and back, bit by bit; facts read from weights; every misfit in one list; partial loading."""

from __future__ import annotations

import pathlib
from typing import Any

import flax
import numpy as np
import pytest
from safetensors.numpy import save_file

from pfcn_jax.interop.convert import (
    Converted,
    detect_format,
    from_params,
    merge_backbone,
    merge_model,
    read_facts,
    to_params,
)
from pfcn_jax.interop.names import backbone_table, table
from pfcn_jax.interop.reader import WeightsError, read_tensors
from pfcn_jax.interop.writer import write_state_dict
from tests.support import weights

SMALL: dict[str, Any] = {
    "backbone_width": 4, "fpn_channels": 6, "head_channels": 8, "kernel_channels": 10, "encoder_channels": 12,
    "num_things": 3, "num_stuff": 2,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "enhanced": {"encoder_deformable": True},
    "dcn-101": {"depth": 101, "deformable_stages": (3, 4, 5)},
    "r18 from scratch": {"depth": 18, "backbone_norm": "group_norm"},
    "r34": {"depth": 34},
    "cityscapes": {"region_classes": "all"},
    "other heads": {"position_convs": 1, "position_deformable": False, "position_coords": True, "kernel_convs": 4,
                    "kernel_deformable": True, "kernel_coords": False, "encoder_convs": 2, "encoder_coords": False},
}  # fmt: skip
OTHER_PIXELS = {"pixel_std": (58.395, 57.12, 57.375), "pixel_order": "rgb", "stride_in_1x1": False}


def _draw(names: list[tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(names))
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in names}


def _state_dict(**options: Any) -> dict[str, np.ndarray]:
    facts = weights.facts(**{**SMALL, **options})
    return _draw([(entry.name, entry.their_shape) for entry in table(facts)])


def _backbone(dialect: str, depth: int = 50, **options: Any) -> dict[str, np.ndarray]:
    facts = weights.facts(depth=depth, backbone_width=4, **options)
    return _draw([(entry.name, entry.their_shape) for entry in backbone_table(facts, dialect)])


def _flat(variables: Any) -> dict[str, np.ndarray]:
    return flax.traverse_util.flatten_dict(variables, sep="/")


def _fresh(**options: Any) -> dict[str, Any]:
    """Zeros in the shape of a model's variables."""
    entries = table(weights.facts(**{**SMALL, **options}))
    return flax.traverse_util.unflatten_dict(
        {entry.path: np.zeros(entry.shape, np.float32) for entry in entries}, sep="/"
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_there_and_back_is_bit_equal(name: str) -> None:
    theirs = _state_dict(**VARIANTS[name])
    regions = VARIANTS[name].get("region_classes", "stuff")
    converted = to_params(theirs, region_classes=regions)
    assert converted.source == "panoptic_fcn" and not converted.is_backbone
    assert converted.facts == weights.facts(**{**SMALL, **VARIANTS[name]})
    back = from_params(converted.variables, converted.facts)
    assert list(back) == list(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(back[key], value)
        assert back[key].dtype == np.float32
    again = _flat(to_params(back, region_classes=regions).variables)
    for path, value in _flat(converted.variables).items():
        np.testing.assert_array_equal(again[path], value)


def test_file_there_and_back(tmp_path: pathlib.Path) -> None:
    theirs = _state_dict()
    converted = to_params(theirs)
    write_state_dict(tmp_path / "model.pth", from_params(converted.variables, converted.facts))
    loaded = read_tensors(tmp_path / "model.pth")
    assert list(loaded) == list(theirs)
    assert all(np.array_equal(loaded[name], value) for name, value in theirs.items())


def test_ignorable_buffers_and_recorded_pixel_statistics() -> None:
    theirs = _state_dict()
    theirs["pixel_mean"] = np.float32([1, 2, 3]).reshape(3, 1, 1)
    theirs["pixel_std"] = np.float32([4, 5, 6]).reshape(3, 1, 1)
    theirs["backbone.bottom_up.stem.conv1.norm.num_batches_tracked"] = np.zeros((), np.int64)
    facts = to_params(theirs).facts.options
    assert (facts.pixel_mean, facts.pixel_std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


def test_every_misfit_is_in_one_list() -> None:
    theirs = _state_dict()
    del theirs["semantic_fpn.p4.2.norm.bias"], theirs["backbone.bottom_up.res3.1.conv2.weight"]
    theirs["backbone.roi_head.weight"] = np.zeros((2, 3), np.float32)
    theirs["thing_generator.embed_extractor.bias"] = np.zeros(13, np.float32)
    with pytest.raises(WeightsError) as caught:
        to_params(theirs)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("4 tensors") and len(lines) == 5
    for part in ("missing semantic_fpn.p4.2.norm.bias (6,)", "missing backbone.bottom_up.res3.1.conv2.weight",
                 "superfluous backbone.roi_head.weight (2, 3)",
                 "thing_generator.embed_extractor.bias has shape (13,), expected (12,)"):  # fmt: skip
        assert part in str(caught.value)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
@pytest.mark.parametrize("dialect", ["detectron2", "caffe2", "torchvision"])
def test_backbones(dialect: str, depth: int) -> None:
    theirs = _backbone(dialect, depth)
    theirs[{"detectron2": "stem.fc.weight", "caffe2": "fc1000_w", "torchvision": "fc.weight"}[dialect]] = np.zeros(
        (9, 8)
    )
    if dialect == "caffe2":
        theirs |= {"conv1_b": np.zeros(4), "conv1_w_momentum": np.zeros((4, 3, 7, 7))}
    assert detect_format(theirs) == dialect
    converted = to_params(theirs)
    assert converted.is_backbone and converted.facts.depth == depth
    variables = merge_backbone(_fresh(depth=depth), converted)
    flat = _flat(variables)
    for entry in backbone_table(converted.facts, dialect):
        np.testing.assert_array_equal(entry.to_theirs(flat[entry.path]), theirs[entry.name])
    assert not any(value.any() for path, value in flat.items() if "/backbone/" not in path)
    if dialect == "caffe2":  # scale and bias alone: the statistics must change nothing
        np.testing.assert_array_equal(flat["batch_stats/backbone/res3_0/conv1/norm/mean"], 0)
        np.testing.assert_allclose(flat["batch_stats/backbone/res3_0/conv1/norm/var"] + 1e-5, 1, rtol=1e-7)


def test_pixels_and_strides_follow_the_source() -> None:
    for dialect in ("caffe2", "torchvision", "detectron2"):
        facts = to_params(_backbone(dialect)).facts.options
        rgb = dialect != "caffe2"  # detectron2 names with statistics are torchvision's weights
        assert (facts.pixel_order, facts.stride_in_1x1) == (("rgb", False) if rgb else ("bgr", True))
        assert facts.pixel_std == ((58.395, 57.12, 57.375) if rgb else (1.0, 1.0, 1.0))
    facts = to_params(_backbone("detectron2"), torchvision_weights=False).facts.options
    assert (facts.pixel_order, facts.stride_in_1x1) == ("bgr", True)
    folded = {name: value for name, value in _backbone("detectron2").items() if "running" not in name}
    converted = to_params(folded)
    assert converted.facts.options.stride_in_1x1 and "mean" in str(list(_flat(converted.variables)))
    options = to_params(_backbone("torchvision")).model_options()
    assert options["backbone"] == "resnet50" and options["pixel_order"] == "rgb" and "num_things" not in options


def test_plain_backbone_fits_a_deformable_model() -> None:
    fresh = _fresh(deformable_stages=(3, 4))
    merged = _flat(merge_backbone(fresh, to_params(_backbone("caffe2"))))
    assert merged["params/backbone/res3_0/conv2/kernel"].any()
    assert not merged["params/backbone/res3_0/conv2/offset/kernel"].any()


def test_misfitting_backbone_is_listed() -> None:
    with pytest.raises(WeightsError, match="superfluous params/backbone/res4_6/conv1/kernel"):
        merge_backbone(_fresh(), to_params(_backbone("caffe2", 101)))
    with pytest.raises(WeightsError, match=r"stem/conv/kernel has shape \(7, 7, 3, 4\)"):
        merge_backbone(_fresh(backbone_width=8), to_params(_backbone("caffe2")))
    with pytest.raises(WeightsError, match="missing params/backbone/stem/conv/norm/scale"):
        merge_backbone(_fresh(backbone_norm="group_norm"), to_params(_backbone("caffe2")))


def test_backbone_of_a_whole_model() -> None:
    converted = to_params(_state_dict())
    flat = _flat(merge_backbone(_fresh(num_things=7), converted))
    theirs = _flat(converted.variables)
    assert all(np.array_equal(flat[path], theirs[path]) for path in flat if "/backbone/" in path)
    assert not flat["params/fpn/lateral2/kernel"].any()


def test_other_classes_are_named_and_fresh_only_on_request() -> None:
    converted = to_params(_state_dict())
    fresh = _fresh(num_things=7)
    with pytest.raises(WeightsError) as caught:
        merge_model(fresh, converted)
    assert str(caught.value).count("position_head/centers") == 2 and "regions" not in str(caught.value)
    merged, names = merge_model(fresh, converted, allow_mismatch=True)
    assert names == ("params/position_head/centers/bias", "params/position_head/centers/kernel")
    theirs = _flat(converted.variables)
    for path, value in _flat(merged).items():
        if path in names:
            assert value.shape[-1] == 7 and not value.any()
        else:
            np.testing.assert_array_equal(value, theirs[path])
    merged, names = merge_model(_fresh(), converted)
    assert names == () and np.array_equal(_flat(merged)["params/position_head/centers/kernel"],
                                          theirs["params/position_head/centers/kernel"])  # fmt: skip


def test_other_backbone_is_an_error_even_if_mismatch_is_allowed() -> None:
    with pytest.raises(WeightsError, match="res4_6"):
        merge_model(_fresh(depth=101), to_params(_state_dict()), allow_mismatch=True)


def test_from_params_lists_what_does_not_fit() -> None:
    converted = to_params(_state_dict())
    facts = weights.facts(**{**SMALL, "num_things": 4, "encoder_convs": 2})
    with pytest.raises(WeightsError) as caught:
        from_params(converted.variables, facts)
    assert "superfluous params/feature_encoder/conv3/bias" in str(caught.value)
    assert "centers/bias has shape (3,), not (4,)" in str(caught.value)
    with pytest.raises(WeightsError, match="'sum'"):
        from_params(converted.variables, weights.facts(**{**SMALL, "encoder_input": "sum"}))


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(WeightsError, match="vit"):
        to_params({"vit.blocks.0.weight": np.zeros(3)})
    with pytest.raises(WeightsError, match="'keras'"):
        read_facts({}, "keras")
    odd = _backbone("torchvision")
    del odd["layer3.5.conv1.weight"]
    with pytest.raises(WeightsError, match=r"missing layer3\.5\.conv1\.weight"):
        to_params(odd)
    with pytest.raises(WeightsError, match="blocks"):
        to_params({name: value for name, value in odd.items() if not name.startswith("layer3.5.")})
    with pytest.raises(WeightsError, match=r"position_head\.out_inst\.weight"):
        to_params({name: value for name, value in _state_dict().items() if "out_inst" not in name})


def test_half_precision_and_other_containers(tmp_path: pathlib.Path) -> None:
    theirs = {f"module.{name}": value.astype(np.float16) for name, value in _state_dict().items()}
    write_state_dict(tmp_path / "a.pth", theirs, wrap=None)
    converted = to_params(read_tensors(tmp_path / "a.pth"))
    assert isinstance(converted, Converted)
    assert {leaf.dtype for leaf in _flat(converted.variables).values()} == {np.dtype(np.float32)}
    save_file(_backbone("torchvision"), tmp_path / "b.safetensors")
    assert to_params(read_tensors(tmp_path / "b.safetensors")).source == "torchvision"
    write_state_dict(tmp_path / "c.pth", {}, wrap="model")
    with pytest.raises(WeightsError, match=r"c\.pth"):
        read_tensors(tmp_path / "c.pth")
    with pytest.raises(WeightsError, match=r"none\.pth"):
        read_tensors(tmp_path / "none.pth")
