"""ImageNet weights of EfficientNet-Lite, ConvNeXt and Swin <-> our backbones: one name for each tensor, both ways.

The table is made from the shapes of our variables: every path has exactly one name on the other side, and every tensor
of the other side is used once or is one of the classifier's. A family has the names of several implementations; the
first is the one that is written. The detection norms `norm2`..`norm5` are in no classification checkpoint: where they
are missing they get the weight 1 and the bias 0 that they start with.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from pfcn_jax.interop.reader import WeightsError

Shape = tuple[int, ...]
Parts = Mapping[str, str]
DETECTION_NORM = re.compile(r"params/norm(\d)/(scale|bias)")
_PATH = re.compile(r"\w+/([a-z]+)(\d?)(?:_(\d+))?/(.+)")  # collection, kind of module, stage, block, the rest
_FIRST_STAGE = {"stage": 1, "res": 2, "down": 2, "norm": 2}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


@dataclasses.dataclass(frozen=True)
class Dialect:
    """The names of one implementation.

    Attributes:
      mark: a tensor that only its files have.
      ignored: tensors of no parameter of ours: the classifier, and constants.
      modules: kind of our module (with its stage, where a stage differs) -> where theirs is, and the name of each of
        its parts. Numbers in it: stage `i` from 0, `even` = 2i, `odd` = 2i + 1, `before` = i - 1, `block` of a stage,
        and `number` of a block in the whole network.
    """

    mark: str
    ignored: re.Pattern[str]
    modules: Mapping[str, tuple[str, Parts]]


def family_of(backbone: str) -> str:
    """The family whose names a backbone's weights have.

    Raises:
      WeightsError: this backbone has no table here.
    """
    for family in DIALECTS:
        if backbone.startswith(family):
            return family
    raise WeightsError(f"no table of names for the backbone {backbone!r}; known: {', '.join(DIALECTS)}")


def dialect_of(state_dict: Mapping[str, np.ndarray], family: str) -> str:
    """The implementation whose names a state dict has; the first of the family if none is recognized."""
    known = DIALECTS[family]
    return next((name for name, dialect in known.items() if dialect.mark in state_dict), next(iter(known)))


def to_backbone(
    state_dict: Mapping[str, np.ndarray], backbone: str, shapes: Mapping[str, Shape]
) -> dict[str, np.ndarray]:
    """A state dict as our variables: path (`collection/module/.../name`) -> float32 array.

    Args:
      backbone: its registered name.
      shapes: shape of every variable of our backbone, by path.

    Raises:
      WeightsError: with the list of every tensor that is missing, superfluous or of another shape.
    """
    family = family_of(backbone)
    dialect = dialect_of(state_dict, family)
    names = table(backbone, shapes, dialect)
    wrong, found = [], {}
    for path, name in names.items():
        if name in state_dict:
            theirs, expected = np.asarray(state_dict[name]), their_shape(name, shapes[path])
            if theirs.shape == expected:
                found[path] = _to_ours(theirs, name, shapes[path])
            else:
                wrong.append(f"{name} has shape {theirs.shape}, expected {expected}")
        elif DETECTION_NORM.fullmatch(path):
            found[path] = np.full(shapes[path], float(path.endswith("/scale")), np.float32)
        else:
            wrong.append(f"missing {name}")
    known, ignored = set(names.values()), DIALECTS[family][dialect].ignored
    wrong += [f"superfluous {name}" for name in state_dict if name not in known and not ignored.fullmatch(name)]
    if wrong:
        raise WeightsError(f"{len(wrong)} tensors do not fit {backbone}:\n  " + "\n  ".join(wrong))
    return found


def from_backbone(
    variables: Mapping[str, np.ndarray], backbone: str, dialect: str | None = None
) -> dict[str, np.ndarray]:
    """Our variables by path as a state dict under the names of a dialect (without its classifier)."""
    names = table(backbone, {path: np.shape(array) for path, array in variables.items()}, dialect)
    return {name: _to_theirs(np.asarray(variables[path]), name) for path, name in names.items()}


def table(backbone: str, shapes: Mapping[str, Shape], dialect: str | None = None) -> dict[str, str]:
    """Our path -> their name, one to one.

    Args:
      dialect: one of `DIALECTS` of the backbone's family; None: the first.

    Raises:
      WeightsError: a path without a name.
    """
    known = DIALECTS[family_of(backbone)]
    modules = known[dialect or next(iter(known))].modules
    blocks = sorted({(int(m[2]), int(m[3])) for path in shapes if (m := _PATH.fullmatch(path)) and m[3]})
    number = {block: index for index, block in enumerate(blocks)}
    names = {path: _name(path, modules, number) for path in shapes}
    assert len(set(names.values())) == len(names), "two paths have one name"
    return names


def _name(path: str, modules: Mapping[str, tuple[str, Parts]], number: Mapping[tuple[int, int], int]) -> str:
    match = _PATH.fullmatch(path)
    kind, stage, block, inner = match.groups() if match else ("", "", "", "")
    place, parts = modules.get(kind + stage) or modules.get(kind, ("", {}))
    module, _, leaf = inner.rpartition("/")
    if inner in parts:  # a parameter with a name of its own
        part, leaf = parts[inner], ""
    elif module in parts:
        part = parts[module]
    else:
        raise WeightsError(f"no name for our {path}")
    i = int(stage or 0) - _FIRST_STAGE.get(kind, 0)
    where = place.format(
        i=i, even=2 * i, odd=2 * i + 1, before=i - 1, block=block, number=number.get((int(stage or 0), int(block or 0)))
    )
    return ".".join(filter(None, (where, part, leaf and _LEAVES[leaf])))


def their_shape(name: str, shape: Shape) -> Shape:
    """Shape of a tensor on the other side: convolutions are (O, I, k, k), linear layers (O, I)."""
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    if name.endswith(".layer_scale"):  # torchvision's; timm's `gamma` has one axis
        return (*shape, 1, 1)
    return shape[::-1] if name.endswith(".weight") else shape


def _to_ours(theirs: np.ndarray, name: str, shape: Shape) -> np.ndarray:
    if theirs.ndim == 4:
        theirs = theirs.transpose(2, 3, 1, 0)
    elif name.endswith(".weight"):
        theirs = theirs.T
    return np.ascontiguousarray(theirs.reshape(shape), dtype=np.float32)


def _to_theirs(ours: np.ndarray, name: str) -> np.ndarray:
    shape = their_shape(name, ours.shape)
    if ours.ndim == 4:
        ours = ours.transpose(3, 2, 0, 1)
    elif name.endswith(".weight"):
        ours = ours.T
    return np.ascontiguousarray(ours.reshape(shape), dtype=np.float32)


# ------------------------------------------------------------------------------------------------------------ dialects
_DETECTION = ("norm{i}", {"": ""})
_NORM_FIRST = {"norm": "0", "conv": "1"}
_MERGING = {"norm": "norm", "reduction": "reduction"}
_ATTENTION = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn/qkv": "attn.qkv",
    "attn/proj": "attn.proj",
    "attn/bias_table": "attn.relative_position_bias_table",
}
_FC = {"expand": "mlp.fc1", "project": "mlp.fc2"}

_LITE = {
    "efficientnet_lite_pytorch": Dialect(
        "_conv_stem.weight",
        re.compile(r"(_conv_head|_bn1|_fc)\..*|.*\.num_batches_tracked"),
        {
            "stem": ("", {"": "_conv_stem", "norm": "_bn0"}),
            "stage": (
                "_blocks.{number}",
                {
                    "expand": "_expand_conv",
                    "expand/norm": "_bn0",
                    "depthwise": "_depthwise_conv",
                    "depthwise/norm": "_bn1",
                    "project": "_project_conv",
                    "project/norm": "_bn2",
                },
            ),
        },
    ),
    "timm": Dialect(
        "conv_stem.weight",
        re.compile(r"(conv_head|bn2|classifier)\..*|.*\.num_batches_tracked"),
        {
            "stem": ("", {"": "conv_stem", "norm": "bn1"}),
            "stage1": (  # without an expansion
                "blocks.{i}.{block}",
                {"depthwise": "conv_dw", "depthwise/norm": "bn1", "project": "conv_pw", "project/norm": "bn2"},
            ),
            "stage": (
                "blocks.{i}.{block}",
                {
                    "expand": "conv_pw",
                    "expand/norm": "bn1",
                    "depthwise": "conv_dw",
                    "depthwise/norm": "bn2",
                    "project": "conv_pwl",
                    "project/norm": "bn3",
                },
            ),
        },
    ),
}
_CONVNEXT = {
    "torchvision": Dialect(
        "features.0.0.weight",
        re.compile(r"classifier\..*"),
        {
            "stem": ("features.0", {"conv": "0", "norm": "1"}),
            "down": ("features.{even}", _NORM_FIRST),
            "res": (
                "features.{odd}.{block}",
                {
                    "depthwise": "block.0",
                    "norm": "block.2",
                    "expand": "block.3",
                    "project": "block.5",
                    "layer_scale": "layer_scale",
                },
            ),
            "norm": _DETECTION,
        },
    ),
    "timm": Dialect(
        "stem.0.weight",
        re.compile(r"head\..*"),
        {
            "stem": ("stem", {"conv": "0", "norm": "1"}),
            "down": ("stages.{i}.downsample", _NORM_FIRST),
            "res": (
                "stages.{i}.blocks.{block}",
                {"depthwise": "conv_dw", "norm": "norm", "layer_scale": "gamma", **_FC},
            ),
            "norm": _DETECTION,
        },
    ),
}
_SWIN_CONSTANTS = r"(norm|head)\..*|.*\.(relative_position_index|attn_mask)"
_SWIN = {
    "torchvision": Dialect(
        "features.0.0.weight",
        re.compile(_SWIN_CONSTANTS),
        {
            "stem": ("features.0", {"conv": "0", "norm": "2"}),
            "down": ("features.{even}", _MERGING),
            "res": ("features.{odd}.{block}", {**_ATTENTION, "expand": "mlp.0", "project": "mlp.3"}),
            "norm": _DETECTION,
        },
    ),
    # timm counts the merging of patches to the stage after it, the authors to the stage before it.
    **{
        name: Dialect(
            mark,
            re.compile(_SWIN_CONSTANTS),
            {
                "stem": ("patch_embed", {"conv": "proj", "norm": "norm"}),
                "down": (down, _MERGING),
                "res": ("layers.{i}.blocks.{block}", {**_ATTENTION, **_FC}),
                "norm": _DETECTION,
            },
        )
        for name, mark, down in (
            ("timm", "layers.3.downsample.norm.weight", "layers.{i}.downsample"),
            ("authors", "layers.0.downsample.norm.weight", "layers.{before}.downsample"),
        )
    },
}
DIALECTS: dict[str, dict[str, Dialect]] = {"efficientnet_lite": _LITE, "convnext": _CONVNEXT, "swin": _SWIN}
