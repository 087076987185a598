"""ImageNet weights of a backbone that is no ResNet -> a checkpoint to start from."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from pfcn_jax.checkpoints.format import BACKBONE, save_model
from pfcn_jax.config.schema import Config, to_json
from pfcn_jax.errors import UserError
from pfcn_jax.interop.backbones import family_of, to_backbone
from pfcn_jax.interop.reader import read_tensors
from pfcn_jax.models.backbones.registry import find_backbone


def convert_backbone(source: pathlib.Path, config: Config, output: pathlib.Path) -> tuple[pathlib.Path, Config]:
    """Writes a checkpoint of `config.model.backbone` from a file of its published weights.

    Returns:
      The checkpoint, and its config: `config` with the pixel statistics that belong to the weights.

    Raises:
      UserError: the file cannot be read, or its tensors are not those of this backbone.
    """
    name = config.model.backbone
    spec = find_backbone(name)
    net: Any = spec.build(config.model)
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), None))
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables, sep="/").items()}
    tensors = read_tensors(source)
    try:
        found = to_backbone(tensors, name, shapes)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    placed = {path.replace("/", "/backbone/", 1): array for path, array in found.items()}
    pixels = spec.pixels(config.model)
    options: dict[str, Any] = {"pixel_order": pixels.order, "pixel_mean": pixels.mean, "pixel_std": pixels.std}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **options))
    meta = {"kind": BACKBONE, "config": json.loads(to_json(config)), "classes": None, "converted_from": family_of(name)}
    return save_model(output, model=traverse_util.unflatten_dict(placed, sep="/"), meta=meta), config
