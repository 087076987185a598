"""Converted weights as a checkpoint: the config and the classes that belong to them."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from pfcn_jax.checkpoints.format import BACKBONE, WHOLE_MODEL, save_model
from pfcn_jax.config.schema import Config, to_json
from pfcn_jax.data.classes import ClassTable, coco_classes
from pfcn_jax.errors import UserError
from pfcn_jax.interop.convert import Converted
from pfcn_jax.interop.names import ModelFacts


def converted_config(config: Config, converted: Converted) -> Config:
    """Returns the config of the model that the weights fit."""
    return dataclasses.replace(config, model=converted.apply_to(config.model))


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


def save_converted(
    output: pathlib.Path, converted: Converted, config: Config, classes: ClassTable | None
) -> pathlib.Path:
    """Writes converted weights as a checkpoint in `output`; returns the path of the checkpoint."""
    return save_model(
        output,
        model=converted.variables,
        meta={
            "kind": BACKBONE if converted.is_backbone else WHOLE_MODEL,
            "config": json.loads(to_json(config)),
            "classes": classes.to_json() if classes else None,
            "converted_from": converted.source,
        },
    )
