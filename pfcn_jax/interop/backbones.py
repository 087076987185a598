"""ImageNet weights of EfficientNet-Lite, ConvNeXt and Swin <-> our backbones: one name for each tensor, both ways.

The table is made from the shapes of our variables: every path has exactly one name on the other side, and every tensor
of the other side is used once or is one of the classifier's. Names are torchvision's (ConvNeXt, Swin) and those of the
package `efficientnet_lite_pytorch`. The detection norms `norm2`..`norm5` are in no classification checkpoint: where
they are missing they get the weight 1 and the bias 0 that they start with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from pfcn_jax.interop.reader import WeightsError

Shape = tuple[int, ...]
DETECTION_NORM = re.compile(r"params/norm(\d)/(scale|bias)")
# Tensors that belong to no parameter of ours: the classifier, and constants.
IGNORED = {
    "efficientnet_lite": re.compile(r"_conv_head\..*|_bn1\..*|_fc\..*|.*\.num_batches_tracked"),
    "convnext": re.compile(r"classifier\..*"),
    "swin": re.compile(r"(norm|head)\..*|.*\.relative_position_index"),
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def family_of(backbone: str) -> str:
    """The family whose names a backbone's weights have.

    Raises:
      WeightsError: this backbone has no table here.
    """
    for family in IGNORED:
        if backbone.startswith(family):
            return family
    raise WeightsError(f"no table of names for the backbone {backbone!r}; known: {', '.join(IGNORED)}")


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
    names = table(backbone, shapes)
    wrong, found = [], {}
    for path, name in names.items():
        if name in state_dict:
            theirs = np.asarray(state_dict[name])
            expected = their_shape(family, path, shapes[path])
            if theirs.shape == expected:
                found[path] = _to_ours(theirs, path, shapes[path])
            else:
                wrong.append(f"{name} has shape {theirs.shape}, expected {expected}")
        elif DETECTION_NORM.fullmatch(path):
            found[path] = np.full(shapes[path], float(path.endswith("/scale")), np.float32)
        else:
            wrong.append(f"missing {name}")
    known = set(names.values())
    wrong += [f"superfluous {n}" for n in state_dict if n not in known and not IGNORED[family].fullmatch(n)]
    if wrong:
        raise WeightsError(f"{len(wrong)} tensors do not fit {backbone}:\n  " + "\n  ".join(wrong))
    return found


def from_backbone(variables: Mapping[str, np.ndarray], backbone: str) -> dict[str, np.ndarray]:
    """Our variables by path as a state dict under the other side's names (without its classifier)."""
    family = family_of(backbone)
    names = table(backbone, {path: np.shape(array) for path, array in variables.items()})
    return {name: _to_theirs(np.asarray(variables[path]), family, path) for path, name in names.items()}


def table(backbone: str, shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Our path -> their name, one to one.

    Raises:
      WeightsError: a path without a name.
    """
    family = family_of(backbone)
    names = _NAMES[family](shapes)
    assert len(set(names.values())) == len(names), "two paths have one name"
    return names


def their_shape(family: str, path: str, shape: Shape) -> Shape:
    """Shape of a tensor on the other side: convolutions are (O, I, k, k), linear layers (O, I)."""
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    if family == "convnext" and path.endswith("/layer_scale"):
        return (*shape, 1, 1)
    return shape[::-1] if path.endswith("/kernel") else shape


def _to_ours(theirs: np.ndarray, path: str, shape: Shape) -> np.ndarray:
    if theirs.ndim == 4:
        theirs = theirs.transpose(2, 3, 1, 0)
    elif path.endswith("/kernel"):
        theirs = theirs.T
    return np.ascontiguousarray(theirs.reshape(shape), dtype=np.float32)


def _to_theirs(ours: np.ndarray, family: str, path: str) -> np.ndarray:
    shape = their_shape(family, path, ours.shape)
    if ours.ndim == 4:
        ours = ours.transpose(3, 2, 0, 1)
    elif path.endswith("/kernel"):
        ours = ours.T
    return np.ascontiguousarray(ours.reshape(shape), dtype=np.float32)


# ----------------------------------------------------------------------------------------------------------- names
def _matched(path: str, rules: tuple[tuple[str, Callable[[re.Match[str]], str]], ...]) -> str:
    for pattern, name in rules:
        if match := re.fullmatch(pattern, path):
            return name(match)
    raise WeightsError(f"no name for our {path}")


def _efficientnet_lite(shapes: Mapping[str, Shape]) -> dict[str, str]:
    blocks = sorted({(int(m[1]), int(m[2])) for path in shapes if (m := re.search(r"/stage(\d)_(\d+)/", path))})
    number = {block: index for index, block in enumerate(blocks)}  # theirs are numbered through
    unit = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
    unit["project"] = ("_project_conv", "_bn2")

    def of_block(match: re.Match[str]) -> str:
        conv, norm = unit[match[3]]
        part = norm if match[4] else conv
        return f"_blocks.{number[int(match[1]), int(match[2])]}.{part}.{_LEAVES[match[5]]}"

    rules = (
        (r"\w+/stem/kernel", lambda match: "_conv_stem.weight"),
        (r"\w+/stem/norm/(\w+)", lambda match: f"_bn0.{_LEAVES[match[1]]}"),
        (r"\w+/stage(\d)_(\d+)/(\w+)/(norm/)?(\w+)", of_block),
    )
    return {path: _matched(path, rules) for path in shapes}


def _norm_of_detection(match: re.Match[str]) -> str:
    return f"norm{int(match[1]) - 2}.{_LEAVES[match[2]]}"


def _convnext(shapes: Mapping[str, Shape]) -> dict[str, str]:
    part = {"depthwise": "block.0", "norm": "block.2", "expand": "block.3", "project": "block.5"}
    rules = (
        (r"params/stem/(conv|norm)/(\w+)", lambda m: f"features.0.{int(m[1] == 'norm')}.{_LEAVES[m[2]]}"),
        (
            r"params/down(\d)/(norm|conv)/(\w+)",
            lambda m: f"features.{2 * int(m[1]) - 4}.{int(m[2] == 'conv')}.{_LEAVES[m[3]]}",
        ),
        (r"params/res(\d)_(\d+)/layer_scale", lambda m: f"features.{2 * int(m[1]) - 3}.{m[2]}.layer_scale"),
        (
            r"params/res(\d)_(\d+)/(\w+)/(\w+)",
            lambda m: f"features.{2 * int(m[1]) - 3}.{m[2]}.{part[m[3]]}.{_LEAVES[m[4]]}",
        ),
        (DETECTION_NORM.pattern, _norm_of_detection),
    )
    return {path: _matched(path, rules) for path in shapes}


def _swin(shapes: Mapping[str, Shape]) -> dict[str, str]:
    part = {"expand": "mlp.0", "project": "mlp.3", "norm1": "norm1", "norm2": "norm2"}
    rules = (
        (r"params/stem/(conv|norm)/(\w+)", lambda m: f"features.0.{2 * (m[1] == 'norm')}.{_LEAVES[m[2]]}"),
        (
            r"params/down(\d)/(norm|reduction)/(\w+)",
            lambda m: f"features.{2 * int(m[1]) - 4}.{m[2]}.{_LEAVES[m[3]]}",
        ),
        (
            r"params/res(\d)_(\d+)/attn/bias_table",
            lambda m: f"features.{2 * int(m[1]) - 3}.{m[2]}.attn.relative_position_bias_table",
        ),
        (
            r"params/res(\d)_(\d+)/attn/(qkv|proj)/(\w+)",
            lambda m: f"features.{2 * int(m[1]) - 3}.{m[2]}.attn.{m[3]}.{_LEAVES[m[4]]}",
        ),
        (
            r"params/res(\d)_(\d+)/(\w+)/(\w+)",
            lambda m: f"features.{2 * int(m[1]) - 3}.{m[2]}.{part[m[3]]}.{_LEAVES[m[4]]}",
        ),
        (DETECTION_NORM.pattern, _norm_of_detection),
    )
    return {path: _matched(path, rules) for path in shapes}


_NAMES: dict[str, Callable[[Mapping[str, Shape]], dict[str, str]]] = {
    "efficientnet_lite": _efficientnet_lite,
    "convnext": _convnext,
    "swin": _swin,
}
