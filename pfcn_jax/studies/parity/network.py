"""Recorded features of the original network against ours, tensor by tensor, through the weight converter."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from pfcn_jax.interop.convert import to_params
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.studies.parity.reference import Check, Recorded, recorded_files
from pfcn_jax.studies.reference_weights import make_state_dict
from pfcn_jax.types import LEVELS, round_up

# In a recorded file, but no intermediate of the network: inputs, labels, losses and what follows from them.
NOT_THE_NETWORK = ("image", "out_size", "config", "batch", "in0.", "in1.", "loss", "total_loss", "thing_", "stuff_")
NOT_OF_A_LEVEL = ("loss_pos_th_sum", "loss_pos_st_sum", "guided_weights", "stuff_pooled")


@functools.cache
def load_model(reference: pathlib.Path, variant: str) -> tuple[PanopticFCN, dict[str, Any]]:
    """The model of a variant ("R50-1x", "Star-R50-3x", "R50-400-3x-FAST", ...) with the reference's weights.

    Thresholds, schedules and input sizes in a variant's name are no matter of the network.
    """
    converted = to_params(make_state_dict(reference, variant))
    facts = converted.facts
    model = PanopticFCN(facts.num_things, facts.num_stuff, facts.options)
    return model, jax.tree.map(jnp.asarray, converted.variables)


def place(images: list[UInt8[np.ndarray, "h w 3"]]) -> tuple[UInt8[np.ndarray, "B H W 3"], Int[np.ndarray, "B 2"]]:
    """Images (BGR, as recorded) as a batch in RGB and their sizes; the canvas is what the original pads them to."""
    sides = [max(photo.shape[axis] for photo in images) for axis in (0, 1)]
    canvas = [round_up(side) for side in sides]
    image = np.zeros((len(images), *canvas, 3), np.uint8)
    for row, photo in zip(image, images, strict=True):
        row[: photo.shape[0], : photo.shape[1]] = photo[..., ::-1]
    return image, np.asarray([photo.shape[:2] for photo in images], np.int32)


def recorded_images(recorded: Recorded) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The images of a file: one of an `infer_*`, the batch of a `train_*`."""
    if "image" in recorded:
        return [recorded["image"]]
    return [recorded[f"in{index}.image"] for index in range(int(recorded["batch"]))]


@functools.cache
def _intermediates(model: PanopticFCN) -> Any:
    """One compiled function per model (and, inside of jit, per shape)."""

    def is_wanted(_: nn.Module, method: str) -> bool:
        return method in ("__call__", "normalize")

    @jax.jit
    def run(variables: Any, image: Any, size: Any, extent: Any) -> Any:
        _, state = model.apply(
            variables, image, size, extent, capture_intermediates=is_wanted, mutable=["intermediates"]
        )
        found = state["intermediates"]
        named = {
            "input": found["normalize"][0],
            **found["backbone"]["__call__"][0],
            **found["fpn"]["__call__"][0],
            "semantic_fpn": found["semantic_fpn"]["__call__"][0],
            "encode_feat": found["feature_encoder"]["__call__"][0],
        }
        for level, positions, kernels in zip(
            LEVELS, found["position_head"]["__call__"], found["kernel_head"]["__call__"], strict=True
        ):
            named[f"{level}.pred_center"], named[f"{level}.pred_region"] = positions
            named[f"{level}.pred_weights"] = kernels
        first = found["position_head"]["conv1"]
        named["p3.position_head_1.offset_mask_conv"] = first["offset"]["__call__"][0]
        named["p3.position_head_1"] = first["__call__"][0]
        named["p3.kernel_head_1"] = found["kernel_head"]["conv1"]["__call__"][0]
        return named

    return run


def intermediates(reference: pathlib.Path, recorded: Recorded) -> dict[str, np.ndarray]:
    """Everything the network computes for a file's images, channels last, under the recorded names."""
    model, variables = load_model(reference, recorded.config["config"])
    image, size = place(recorded_images(recorded))
    extent = np.broadcast_to(np.asarray(image.shape[1:3], np.int32), size.shape)
    return jax.device_get(_intermediates(model)(variables, image, size, extent))


def check_network(recorded: Recorded, reference: pathlib.Path) -> list[Check]:
    """One check per recorded tensor of the network; a tensor that we do not compute is an error, not a gap."""
    ours = intermediates(reference, recorded)
    wanted = [key for key in recorded.arrays if _is_network(key)]
    unknown = sorted(set(wanted) - set(ours))
    if unknown:
        raise KeyError(f"{recorded.name}: recorded, but unknown to this comparison: {', '.join(unknown)}")
    return [recorded.compare(key, ours[key]) for key in wanted]


def _is_network(key: str) -> bool:
    return not key.startswith(NOT_THE_NETWORK) and not key.endswith(NOT_OF_A_LEVEL)


def check_all_networks(reference: pathlib.Path) -> list[Check]:
    """Every `infer_*_feats` and `train_*` file of the reference data directory."""
    checks: list[Check] = []
    for pattern in ("infer_*_feats.npz", "train_*.npz"):
        for recorded in recorded_files(reference, pattern):
            checks += check_network(recorded, reference)
    return checks
