"""Table between our parameter tree and the state dicts of other implementations.

`table` lists every tensor of a model once, with our path, their name and both shapes. Conversion in either direction
iterates over it, so that no tensor is used twice, dropped or invented. It covers the original implementation
(detectron2 names, every variant) and ImageNet backbones in three dialects.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from pfcn_jax.interop.records import WeightsError
from pfcn_jax.models.options import ModelOptions

STAGE_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BASIC_DEPTHS = (18, 34)
DIALECTS = ("detectron2", "caffe2", "torchvision")  # names of backbones
TAP_NUMBERS = 27  # offsets and masks of a deformable 3x3 convolution

# The original applies these means, written in RGB order, to BGR images; its checkpoints depend on it.
_MSRA_PIXELS: dict[str, Any] = {
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (1.0, 1.0, 1.0),
    "pixel_order": "bgr",
    "stride_in_1x1": True,
}
_TORCHVISION_PIXELS: dict[str, Any] = {
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
    "pixel_order": "rgb",
    "stride_in_1x1": False,
}

# Tensors without a parameter of ours, by source; any other unused tensor is an error.
IGNORED = {
    "panoptic_fcn": re.compile(r"pixel_mean|pixel_std|.*\.num_batches_tracked"),
    "detectron2": re.compile(r"(stem\.)?(fc|fc1000|linear)\.(weight|bias)|stem\.conv1\.bias|.*\.num_batches_tracked"),
    "caffe2": re.compile(r"(pred|fc1000)_[wb]|conv1_b|.*_momentum|lr|weight_order"),
    "torchvision": re.compile(r"fc\.(weight|bias)|.*\.num_batches_tracked"),
}


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Model that a set of weights belongs to: its options and its numbers of classes.

    `NOT_IN_WEIGHTS` are the options that no weights can tell.
    """

    options: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    num_things: int = 80
    num_stuff: int = 53

    @property
    def depth(self) -> int:
        """Depth of the ResNet.

        Raises:
          WeightsError: the backbone is no ResNet, so it has no names in these formats.
        """
        match = re.fullmatch(r"resnet(\d+)", self.options.backbone)
        if match is None or int(match[1]) not in STAGE_BLOCKS:
            known = ", ".join(f"resnet{depth}" for depth in STAGE_BLOCKS)
            raise WeightsError(f"backbone {self.options.backbone!r} has no names in these formats (known: {known})")
        return int(match[1])


NOT_IN_WEIGHTS = ("drop_path", "freeze_at", "dtype", "remat")
BACKBONE_FACTS = (
    "backbone",
    "backbone_norm",
    "backbone_width",
    "deformable_stages",
    "stride_in_1x1",
    "pixel_mean",
    "pixel_std",
    "pixel_order",
)


def pixel_facts(dialect: str, *, torchvision_weights: bool = False) -> dict[str, Any]:
    """Returns the pixel statistics and the stride placement of a dialect's published weights.

    Args:
      torchvision_weights: torchvision's weights under detectron2's names, as in some of its `.pkl` files.
    """
    return _TORCHVISION_PIXELS if dialect == "torchvision" or torchvision_weights else _MSRA_PIXELS


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: our path (`collection/module/.../name`) and shape, their name."""

    path: str
    name: str
    shape: tuple[int, ...]

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Kernels are `[k, k, I, O]` with us, `[O, I, k, k]` with them; a dense `[I, O]` is a 1x1 `[O, I, 1, 1]`."""
        if len(self.shape) == 4:
            return (self.shape[3], self.shape[2], self.shape[0], self.shape[1])
        return (self.shape[1], self.shape[0], 1, 1) if len(self.shape) == 2 else self.shape

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        """Converts their tensor to our layout, float32."""
        ours = theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs
        return np.ascontiguousarray(ours.reshape(self.shape), dtype=np.float32)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Converts our tensor to their layout, float32."""
        ours = np.asarray(ours, dtype=np.float32)
        theirs = ours.transpose(3, 2, 0, 1) if ours.ndim == 4 else ours.T
        return np.ascontiguousarray(theirs.reshape(self.their_shape))


def table(facts: ModelFacts) -> tuple[Entry, ...]:
    """Every tensor of the original implementation's model, in its own order."""
    entries = [*_pyramid(facts), *backbone_table(facts, "detectron2", prefix="backbone.bottom_up.")]
    entries += [*_semantic_fpn(facts), *_position_head(facts), *_kernel_head(facts), *_encoder(facts)]
    for kind in ("thing", "stuff"):
        shape = (facts.options.kernel_channels, facts.options.encoder_channels)
        entries += _with_bias(f"{kind}_embedding", f"{kind}_generator.embed_extractor", shape)
    return tuple(entries)


# -------------------------------------------------------------------------------------------------------- backbone
def backbone_table(facts: ModelFacts, dialect: str, *, prefix: str = "") -> tuple[Entry, ...]:
    """Every tensor of the backbone under the names of a dialect.

    In "caffe2" a norm is a scale and a bias only; in "caffe2" and "torchvision" deformable convolutions have no
    offsets, because ImageNet models have none.
    """
    entries: list[Entry] = []
    collection = "batch_stats" if facts.options.backbone_norm == "frozen_bn" else "params"
    for module, unit, shape in _backbone_convs(facts):
        weight, norm = _their_conv(dialect, unit)
        entries.append(Entry(f"params/backbone/{module}/kernel", prefix + weight, shape))
        entries += [
            Entry(f"{collection}/backbone/{module}/norm/{ours}", prefix + norm + theirs, shape[-1:])
            for ours, theirs in _norm_names(facts, dialect)
        ]
        deformable = unit[2] == "conv2" and unit[0] in facts.options.deformable_stages
        if deformable and dialect == "detectron2":
            offset = prefix + weight.removesuffix(".weight") + "_offset"
            entries += _with_bias(f"backbone/{module}/offset", offset, (3, 3, shape[2], TAP_NUMBERS))
    return tuple(entries)


def _norm_names(facts: ModelFacts, dialect: str) -> tuple[tuple[str, str], ...]:
    if dialect == "caffe2":
        return (("scale", "_s"), ("bias", "_b"))
    affine = (("scale", ".weight"), ("bias", ".bias"))
    statistics = (("mean", ".running_mean"), ("var", ".running_var"))
    return (*affine, *statistics) if facts.options.backbone_norm == "frozen_bn" else affine


def _backbone_convs(facts: ModelFacts) -> Iterator[tuple[str, tuple[int, int, str], tuple[int, ...]]]:
    """(our module, (stage, block, convolution), kernel shape); the stem is stage 1."""
    width = channels = facts.options.backbone_width
    yield "stem/conv", (1, 0, "conv1"), (7, 7, 3, width)
    basic = facts.depth in BASIC_DEPTHS
    for stage, blocks in enumerate(STAGE_BLOCKS[facts.depth], start=2):
        inner = width * 2 ** (stage - 2)
        out = inner if basic else 4 * inner
        for block in range(blocks):
            shapes: dict[str, tuple[int, ...]] = {}
            if channels != out or (block == 0 and stage > 2):
                shapes["shortcut"] = (1, 1, channels, out)
            if basic:
                shapes |= {"conv1": (3, 3, channels, out), "conv2": (3, 3, out, out)}
            else:
                shapes |= {"conv1": (1, 1, channels, inner), "conv2": (3, 3, inner, inner), "conv3": (1, 1, inner, out)}
            for conv, shape in shapes.items():
                yield f"res{stage}_{block}/{conv}", (stage, block, conv), shape
            channels = out


_CAFFE2_BRANCH = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}


def _their_conv(dialect: str, unit: tuple[int, int, str]) -> tuple[str, str]:
    """Name of a convolution's weight, and prefix of the names of its norm."""
    stage, block, conv = unit
    if dialect == "detectron2":
        base = "stem.conv1" if stage == 1 else f"res{stage}.{block}.{conv}"
        return f"{base}.weight", f"{base}.norm"
    if dialect == "caffe2":
        base = "conv1" if stage == 1 else f"res{stage}_{block}_{_CAFFE2_BRANCH[conv]}"
        return f"{base}_w", "res_conv1_bn" if stage == 1 else f"{base}_bn"
    if dialect == "torchvision":
        base = "" if stage == 1 else f"layer{stage - 1}.{block}."
        if conv == "shortcut":
            return f"{base}downsample.0.weight", f"{base}downsample.1"
        return f"{base}{conv}.weight", f"{base}{conv.replace('conv', 'bn')}"
    raise ValueError(f"dialect {dialect!r}; known: {DIALECTS}")


# ----------------------------------------------------------------------------------------------------- other parts
def _with_bias(module: str, name: str, shape: tuple[int, ...]) -> list[Entry]:
    return [
        Entry(f"params/{module}/kernel", f"{name}.weight", shape),
        Entry(f"params/{module}/bias", f"{name}.bias", shape[-1:]),
    ]


def _with_norm(module: str, name: str, shape: tuple[int, ...]) -> list[Entry]:
    return [
        Entry(f"params/{module}/kernel", f"{name}.weight", shape),
        Entry(f"params/{module}/norm/scale", f"{name}.norm.weight", shape[-1:]),
        Entry(f"params/{module}/norm/bias", f"{name}.norm.bias", shape[-1:]),
    ]


def _pyramid(facts: ModelFacts) -> Iterator[Entry]:
    channels = facts.options.fpn_channels
    backbone_out = facts.options.backbone_width * (1 if facts.depth in BASIC_DEPTHS else 4)
    for level in (2, 3, 4, 5):
        inputs = backbone_out * 2 ** (level - 2)
        yield from _with_bias(f"fpn/lateral{level}", f"backbone.fpn_lateral{level}", (1, 1, inputs, channels))
        yield from _with_bias(f"fpn/output{level}", f"backbone.fpn_output{level}", (3, 3, channels, channels))
    for top in ("p6", "p7"):
        yield from _with_bias(f"fpn/{top}", f"backbone.top_block.{top}", (3, 3, channels, channels))


def _semantic_fpn(facts: ModelFacts) -> Iterator[Entry]:
    if facts.options.encoder_input != "semantic_fpn":
        return
    shape = (3, 3, facts.options.fpn_channels, facts.options.fpn_channels)
    for level, convs in (("p2", 1), ("p3", 1), ("p4", 2), ("p5", 3)):
        for index in range(convs):  # theirs count the upsampling between two convolutions as a layer
            yield from _with_norm(f"semantic_fpn/{level}_conv{index + 1}", f"semantic_fpn.{level}.{2 * index}", shape)


def _tower(
    module: str, name: str, convs: int, inputs: int, channels: int, *, deformable: bool, norm: bool
) -> Iterator[Entry]:
    for index in range(1, convs + 1):
        ours, theirs = f"{module}/conv{index}", f"{name}_head_{index}"
        if deformable:
            yield from _with_bias(f"{ours}/offset", f"{theirs}.offset_mask_conv", (3, 3, inputs, TAP_NUMBERS))
            theirs += ".dcnv2"
        yield from (_with_norm if norm else _with_bias)(ours, theirs, (3, 3, inputs, channels))
        inputs = channels


def _position_head(facts: ModelFacts) -> Iterator[Entry]:
    yield from _tower(
        "position_head",
        "position_head.position_head.position_head",
        facts.options.position_convs,
        facts.options.fpn_channels + 2 * facts.options.position_coords,
        facts.options.head_channels,
        deformable=facts.options.position_deformable,
        norm=True,
    )
    shape = (3, 3, facts.options.head_channels)
    yield from _with_bias("position_head/centers", "position_head.out_inst", (*shape, facts.num_things))
    regions = facts.options.regions(facts.num_things, facts.num_stuff).count
    yield from _with_bias("position_head/regions", "position_head.out_sem", (*shape, regions))


def _kernel_head(facts: ModelFacts) -> Iterator[Entry]:
    yield from _tower(
        "kernel_head",
        "kernel_head.kernel_head.kernel_head",
        facts.options.kernel_convs,
        facts.options.fpn_channels + 2 * facts.options.kernel_coords,
        facts.options.head_channels,
        deformable=facts.options.kernel_deformable,
        norm=True,
    )
    shape = (3, 3, facts.options.head_channels, facts.options.kernel_channels)
    yield from _with_bias("kernel_head/output", "kernel_head.out_conv", shape)


def _encoder(facts: ModelFacts) -> Iterator[Entry]:
    yield from _tower(
        "feature_encoder",
        "feature_encoder.encode_head.encode_head",
        facts.options.encoder_convs,
        facts.options.fpn_channels + 2 * facts.options.encoder_coords,
        facts.options.encoder_channels,
        deformable=facts.options.encoder_deformable,
        norm=False,
    )
