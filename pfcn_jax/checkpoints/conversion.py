"""Published weights -> a checkpoint, with the config and the classes that belong to them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pfcn_jax.checkpoints.format import BACKBONE, WHOLE_MODEL, save_model
from pfcn_jax.config.schema import Config, to_json
from pfcn_jax.data.classes import ClassTable, coco_classes
from pfcn_jax.errors import UserError
from pfcn_jax.interop.backbones import family_of, to_backbone
from pfcn_jax.interop.convert import to_params
from pfcn_jax.interop.names import ModelFacts
from pfcn_jax.interop.reader import read_tensors
from pfcn_jax.models.backbones.registry import find_backbone
from pfcn_jax.models.backbones.resnet import DEPTHS
from pfcn_jax.models.options import ModelOptions


@dataclasses.dataclass(frozen=True)
class ConvertedCheckpoint:
    """A checkpoint that was written.

    Attributes:
      config: of the model that the weights fit.
      source: the implementation whose names the weights had.
    """

    path: pathlib.Path
    config: Config
    source: str
    is_backbone: bool
    num_parameters: int


def convert_file(
    source: pathlib.Path,
    config: Config,
    output: pathlib.Path,
    *,
    torchvision_weights: bool | None = None,
    classes_file: str | None = None,
) -> ConvertedCheckpoint:
    """Writes a checkpoint from a file of published weights.

    The file itself tells a whole model or a ResNet, and which one. Files of other backbones are for
    `config.model.backbone`.

    Args:
      torchvision_weights: see `interop.convert.to_params`.
      classes_file: a COCO-panoptic JSON with the classes of a whole model; None: COCO's.

    Raises:
      UserError: the file cannot be read, its tensors fit no model, or the number of classes differs.
    """
    tensors = read_tensors(source)
    facts = None
    try:
        if config.model.backbone in DEPTHS:
            found = to_params(
                tensors, torchvision_weights=torchvision_weights, region_classes=config.model.region_classes
            )
            variables, origin, model = found.variables, found.source, found.apply_to(config.model)
            facts = None if found.is_backbone else found.facts
        else:
            variables, model = _other_backbone(tensors, config.model)
            origin = family_of(model.backbone)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    config = dataclasses.replace(config, model=model)
    meta = {
        "kind": BACKBONE if facts is None else WHOLE_MODEL,
        "config": json.loads(to_json(config)),
        "classes": None if facts is None else read_classes(facts, classes_file).to_json(),
        "converted_from": origin,
    }
    path = save_model(output, model=variables, meta=meta)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    return ConvertedCheckpoint(path, config, origin, facts is None, parameters)


def _other_backbone(tensors: Mapping[str, np.ndarray], options: ModelOptions) -> tuple[dict[str, Any], ModelOptions]:
    """Variables of a backbone that is no ResNet, and `options` with the pixel statistics of its weights."""
    spec = find_backbone(options.backbone)
    net: Any = spec.build(options)
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), None))
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables, sep="/").items()}
    found = to_backbone(tensors, options.backbone, shapes)
    placed = {path.replace("/", "/backbone/", 1): array for path, array in found.items()}
    pixels = spec.pixels(options)
    statistics: dict[str, Any] = {"pixel_order": pixels.order, "pixel_mean": pixels.mean, "pixel_std": pixels.std}
    return traverse_util.unflatten_dict(placed, sep="/"), dataclasses.replace(options, **statistics)


def read_classes(facts: ModelFacts, path: str | None) -> ClassTable:
    """Returns the classes of converted weights: from a JSON file, or COCO's if the numbers match.

    Raises:
      UserError: if the numbers of classes do not fit.
    """
    wanted = (facts.num_things, facts.num_stuff)
    if path:
        try:
            classes = ClassTable.from_coco(json.loads(pathlib.Path(path).read_text())["categories"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no COCO-panoptic JSON with `categories` ({error})") from error
    elif wanted == (80, 53):
        classes = coco_classes()
    else:
        raise UserError(f"weights of {wanted[0]} things and {wanted[1]} stuff classes: name them with --classes JSON")
    if (classes.num_things, classes.num_stuff) != wanted:
        theirs = (classes.num_things, classes.num_stuff)
        every = wanted[0] > 0 and theirs == (wanted[0], wanted[1] + 1 - wanted[0])
        hint = "; they have a region channel for every class: add --config.model.region_classes=all" if every else ""
        raise UserError(f"{path}: {theirs} things and stuff classes, but the weights are for {wanted}{hint}")
    return classes
