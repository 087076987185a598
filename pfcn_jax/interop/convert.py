"""Converts weights of other implementations to our variables and back: every tensor is used once, every parameter is
filled once; otherwise one error lists all differences."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from pfcn_jax.interop.names import (
    BACKBONE_FACTS,
    BASIC_DEPTHS,
    DIALECTS,
    IGNORED,
    NOT_IN_WEIGHTS,
    STAGE_BLOCKS,
    Entry,
    ModelFacts,
    backbone_table,
    pixel_facts,
    table,
)
from pfcn_jax.interop.reader import WeightsError
from pfcn_jax.models.options import ModelOptions

FORMATS = ("panoptic_fcn", *DIALECTS)
_EPSILON = 1e-5  # of the frozen norm: a scale and a bias alone mean mean 0 and var + epsilon = 1


@dataclasses.dataclass(frozen=True)
class Converted:
    """Weights in our tree, and the model that they belong to.

    Attributes:
      variables: `params` and, with frozen norms, `batch_stats`; of a backbone only the branch `backbone`.
      source: one of FORMATS.
    """

    variables: dict[str, Any]
    facts: ModelFacts
    source: str

    @property
    def is_backbone(self) -> bool:
        return self.source != "panoptic_fcn"

    def model_options(self) -> dict[str, Any]:
        """Options that the weights determine; of a backbone only its own."""
        if self.is_backbone:  # a plain backbone fits a model with offsets, too: they start at zero
            names = set(BACKBONE_FACTS) - {"deformable_stages"}
        else:
            names = {field.name for field in dataclasses.fields(ModelOptions)} - set(NOT_IN_WEIGHTS)
        return {name: getattr(self.facts.options, name) for name in sorted(names)}

    def apply_to(self, options: ModelOptions) -> ModelOptions:
        """Returns `options` with everything that the weights determine: the model that these weights fit."""
        return dataclasses.replace(options, **self.model_options())


def detect_format(state_dict: Mapping[str, Any]) -> str:
    """Returns the format that the names belong to, one of FORMATS."""
    marks = {"panoptic_fcn": "backbone.bottom_up.stem.conv1.weight", "detectron2": "stem.conv1.weight",
             "caffe2": "conv1_w", "torchvision": "conv1.weight"}  # fmt: skip
    for name, mark in marks.items():
        if mark in state_dict:
            return name
    raise WeightsError(f"neither Panoptic FCN nor a ResNet that is known; its first names: {sorted(state_dict)[:5]}")


def to_params(
    state_dict: Mapping[str, np.ndarray],
    *,
    torchvision_weights: bool | None = None,
    region_classes: str = "stuff",
) -> Converted:
    """Converts a state dict to our tree.

    Args:
      torchvision_weights: for a backbone under detectron2's names: made from torchvision's weights (RGB, stride in the
        3x3 convolution) rather than from MSRA's (BGR, stride in the 1x1). None: by whether the norms have statistics,
        which MSRA's folded ones have not.
      region_classes: of a whole model, as in its config: the tensors do not tell.

    Raises:
      WeightsError: with the list of every tensor that is missing, superfluous or of another shape.
    """
    source = detect_format(state_dict)
    facts = read_facts(state_dict, source, torchvision_weights=torchvision_weights, region_classes=region_classes)
    entries = table(facts) if source == "panoptic_fcn" else backbone_table(facts, source)
    if source == "detectron2" and not _has_statistics(state_dict):
        entries = tuple(entry for entry in entries if entry.path.rsplit("/", 1)[1] not in ("mean", "var"))
    _compare(state_dict, entries, IGNORED[source])
    flat = {entry.path: entry.to_ours(np.asarray(state_dict[entry.name], np.float32)) for entry in entries}
    if facts.options.backbone_norm == "frozen_bn":
        for path in [path for path in flat if path.startswith("batch_stats/") and path.endswith("/scale")]:
            module = path.removesuffix("scale")
            flat.setdefault(f"{module}mean", np.zeros_like(flat[path]))
            flat.setdefault(f"{module}var", np.full_like(flat[path], 1.0 - _EPSILON))
    return Converted(traverse_util.unflatten_dict(flat, sep="/"), facts, source)


def from_params(variables: Mapping[str, Any], facts: ModelFacts) -> dict[str, np.ndarray]:
    """Converts our variables to a state dict that the original implementation loads strictly.

    Raises:
      WeightsError: the variables are not those of a model with these facts, or the original has no such model.
    """
    if facts.options.encoder_input != "semantic_fpn":
        raise WeightsError(f"the original has no feature encoder on {facts.options.encoder_input!r}")
    flat = {path: np.asarray(value) for path, value in traverse_util.flatten_dict(dict(variables), sep="/").items()}
    entries = table(facts)
    wrong = [f"missing {entry.path}" for entry in entries if entry.path not in flat]
    wrong += [f"superfluous {path}" for path in sorted(set(flat) - {entry.path for entry in entries})]
    wrong += [
        f"{entry.path} has shape {flat[entry.path].shape}, not {entry.shape}"
        for entry in entries
        if entry.path in flat and flat[entry.path].shape != entry.shape
    ]
    if wrong:
        raise WeightsError("variables do not fit the model:\n  " + "\n  ".join(wrong))
    return {entry.name: entry.to_theirs(flat[entry.path]) for entry in entries}


def _compare(state_dict: Mapping[str, np.ndarray], entries: tuple[Entry, ...], ignored: re.Pattern[str]) -> None:
    known = {entry.name: entry for entry in entries}
    assert len(known) == len(entries)
    wrong = [f"missing {name} {entry.their_shape}" for name, entry in known.items() if name not in state_dict]
    for name, array in state_dict.items():
        if name in known and tuple(array.shape) != known[name].their_shape:
            wrong.append(f"{name} has shape {tuple(array.shape)}, expected {known[name].their_shape}")
        elif name not in known and not ignored.fullmatch(name):
            wrong.append(f"superfluous {name} {tuple(array.shape)}")
    if wrong:
        raise WeightsError(f"{len(wrong)} tensors do not fit the model:\n  " + "\n  ".join(wrong))


# ----------------------------------------------------------------------------------------------------------- facts
def read_facts(
    state_dict: Mapping[str, np.ndarray],
    source: str,
    *,
    torchvision_weights: bool | None = None,
    region_classes: str = "stuff",
) -> ModelFacts:
    """Reads the model from the names and shapes of a state dict."""
    if source not in FORMATS:
        raise WeightsError(f"format {source!r}; known: {FORMATS}")
    if source == "panoptic_fcn":
        facts = _backbone_facts(state_dict, "detectron2", "backbone.bottom_up.", torchvision_weights or False)
        return _with_heads(facts, state_dict, region_classes)
    if torchvision_weights is None:
        torchvision_weights = source == "detectron2" and _has_statistics(state_dict)
    return _backbone_facts(state_dict, source, "", torchvision_weights)


def _has_statistics(state_dict: Mapping[str, Any]) -> bool:
    return any(name.endswith("running_var") for name in state_dict)


def _backbone_facts(
    state_dict: Mapping[str, np.ndarray], dialect: str, prefix: str, torchvision_weights: bool
) -> ModelFacts:
    stem = _shape(
        state_dict, prefix + {"detectron2": "stem.conv1.weight", "caffe2": "conv1_w"}.get(dialect, "conv1.weight")
    )
    first = {"detectron2": r"res(\d)\.(\d+)\.", "caffe2": r"res(\d)_(\d+)_branch", "torchvision": r"layer(\d)\.(\d+)\."}
    last = {"detectron2": "res2.0.conv3.weight", "caffe2": "res2_0_branch2c_w", "torchvision": "layer1.0.conv3.weight"}
    found = [match for name in state_dict if (match := re.match(re.escape(prefix) + first[dialect], name))]
    blocks = {(int(match[1]) + (dialect == "torchvision"), int(match[2])) for match in found}
    counts = tuple(sum(stage == wanted for stage, _ in blocks) for wanted in (2, 3, 4, 5))
    basic = prefix + last[dialect] not in state_dict
    depths = [d for d, known in STAGE_BLOCKS.items() if known == counts and (d in BASIC_DEPTHS) == basic]
    if not depths:
        raise WeightsError(f"no ResNet of depth {sorted(STAGE_BLOCKS)} has {counts} blocks in its stages")
    offsets = re.compile(re.escape(prefix) + r"res(\d)\.\d+\.conv2_offset\.weight")
    stages = {int(match[1]) for name in state_dict if (match := offsets.fullmatch(name))}
    frozen = prefix == "" or f"{prefix}stem.conv1.norm.running_var" in state_dict
    options: dict[str, Any] = {
        "backbone": f"resnet{depths[0]}",
        "backbone_norm": "frozen_bn" if frozen else "group_norm",
        "backbone_width": stem[0],
        "deformable_stages": tuple(sorted(stages)),
        **pixel_facts(dialect, torchvision_weights=torchvision_weights),
    }
    return ModelFacts(ModelOptions(**options))


def _with_heads(facts: ModelFacts, state_dict: Mapping[str, np.ndarray], region_classes: str) -> ModelFacts:
    """Adds what the tensors of pyramid, heads and encoder tell."""
    options: dict[str, Any] = {"region_classes": region_classes}
    fpn = _shape(state_dict, "backbone.fpn_output2.weight")[0]
    heads = {
        "position": "position_head.position_head.position_head_head_",
        "kernel": "kernel_head.kernel_head.kernel_head_head_",
        "encoder": "feature_encoder.encode_head.encode_head_head_",
    }
    for part, name in heads.items():
        deformable = f"{name}1.dcnv2.weight" in state_dict
        suffix = ".dcnv2.weight" if deformable else ".weight"
        shape = _shape(state_dict, f"{name}1{suffix}")
        options[f"{part}_convs"] = sum(name.startswith(heads[part]) and name.endswith(suffix) and ".norm." not in name
                                     and ".offset_mask_conv." not in name for name in state_dict)  # fmt: skip
        options[f"{part}_deformable"], options[f"{part}_coords"] = deformable, shape[1] == fpn + 2
        options["encoder_channels" if part == "encoder" else "head_channels"] = shape[0]
    options["fpn_channels"] = fpn
    options["kernel_channels"] = _shape(state_dict, "kernel_head.out_conv.weight")[0]
    num_things = _shape(state_dict, "position_head.out_inst.weight")[0]
    regions = _shape(state_dict, "position_head.out_sem.weight")[0]
    num_stuff = regions - (num_things if region_classes == "all" else 1)
    if num_stuff < 0:
        raise WeightsError(f"{regions} region channels are less than one for each of {num_things} thing classes")
    for name in ("pixel_mean", "pixel_std"):
        if name in state_dict:
            options[name] = tuple(float(value) for value in np.asarray(state_dict[name]).ravel())
    return ModelFacts(dataclasses.replace(facts.options, **options), num_things, num_stuff)


def _shape(state_dict: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    if name not in state_dict or np.ndim(state_dict[name]) != 4:
        raise WeightsError(f"no convolution {name!r}: not such a model, or a part of one")
    return tuple(state_dict[name].shape)


# --------------------------------------------------------------------------------------------- into initial variables
def merge_backbone(variables: Mapping[str, Any], converted: Converted) -> dict[str, Any]:
    """Replaces the backbone of initial variables by that of converted weights.

    Offsets of deformable convolutions, which ImageNet models do not have, keep their initial zeros.

    Raises:
      WeightsError: with the list of everything in the backbone that does not fit.
    """
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    theirs = _flat_backbone(converted.variables)
    expected = {path for path in flat if path.split("/")[1] == "backbone"}
    optional = {path for path in expected if "/offset/" in path}
    wrong = _misfits(flat, theirs, expected - (optional - set(theirs)))
    if wrong:
        raise WeightsError("the backbone does not fit the model:\n  " + "\n  ".join(wrong))
    return traverse_util.unflatten_dict({**flat, **theirs}, sep="/")


def merge_model(
    variables: Mapping[str, Any], converted: Converted, *, allow_mismatch: bool = False
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Replaces initial variables by those of converted weights of a whole model.

    Args:
      allow_mismatch: outside of the backbone, keep the initial value of parameters that the weights lack or have in
        another shape (for other classes); otherwise they are an error.

    Returns:
      The variables, and the paths that kept their initial value.

    Raises:
      WeightsError: with the list of everything that does not fit.
    """
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    theirs = traverse_util.flatten_dict(converted.variables, sep="/")
    backbone = {path for path in flat if path.split("/")[1] == "backbone"}
    wrong = _misfits(flat, _flat_backbone(converted.variables), backbone)
    heads = {path: value for path, value in theirs.items() if path.split("/")[1] != "backbone"}
    misfits = _misfits(flat, heads, set(flat) - backbone)
    if wrong or (misfits and not allow_mismatch):
        raise WeightsError("the weights do not fit the model:\n  " + "\n  ".join([*wrong, *misfits]))
    fits = {path: value for path, value in theirs.items() if path in flat and np.shape(flat[path]) == value.shape}
    fresh = tuple(sorted(set(flat) - set(fits)))
    return traverse_util.unflatten_dict({**flat, **fits}, sep="/"), fresh


def _flat_backbone(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return {path: value for path, value in flat.items() if path.split("/")[1] == "backbone"}


def _misfits(flat: Mapping[str, Any], theirs: Mapping[str, np.ndarray], expected: set[str]) -> list[str]:
    wrong = [f"missing {path}" for path in sorted(expected - set(theirs))]
    wrong += [f"superfluous {path}" for path in sorted(set(theirs) - set(flat))]
    return wrong + [
        f"{path} has shape {theirs[path].shape}, the model's is {np.shape(flat[path])}"
        for path in sorted(set(theirs) & set(flat))
        if theirs[path].shape != np.shape(flat[path])
    ]
