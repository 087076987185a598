"""Loads a model with its config and classes from a checkpoint or an exported file, and initializes runs from one."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from pfcn_jax.checkpoints.format import (
    BACKBONE,
    CheckpointError,
    check_intact,
    find_checkpoint,
    load_meta,
    load_model,
    load_stored,
    steps_of,
)
from pfcn_jax.checkpoints.named import resolve
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config, from_dict
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.errors import ConfigError, UserError
from pfcn_jax.interop.convert import Converted, merge_backbone, merge_model
from pfcn_jax.interop.names import ModelFacts
from pfcn_jax.interop.reader import read_weights
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.models.options import ModelOptions
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.utils.settings import names_affecting

CHANGEABLE = names_affecting(ModelOptions, "precision", "speed")  # after training, of the model section


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A network with its parameters, and the config and classes that it was trained with."""

    path: pathlib.Path
    config: Config
    classes: ClassTable
    model: PanopticFCN
    variables: Any
    step: int = 0  # of its training; 0 for converted weights


def load_checkpoint(path: pathlib.Path, *, best: bool = True) -> LoadedModel:
    """Loads a checkpoint, the best (by PQ; else the latest) one of a working directory, or exported `.safetensors`.

    Raises:
      CheckpointError: if there is none, it is damaged, does not fit its own config, or holds a backbone only.
    """
    path = resolve(path)
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    checkpoint = find_checkpoint(path, best=best)
    check_intact(checkpoint)
    meta = load_meta(checkpoint)
    if meta.get("kind") == BACKBONE:
        raise CheckpointError(f"{checkpoint}: a backbone alone; start training from it with config.train.init_from")
    config = from_dict(meta["config"])
    classes = ClassTable.from_json(meta["classes"])
    model = build_model(config.model, *classes.counts)
    variables = load_model(checkpoint, abstract_variables(model))
    return LoadedModel(checkpoint, config, classes, model, variables, steps_of(meta))


def load_safetensors(path: pathlib.Path) -> LoadedModel:
    """Loads a `.safetensors` file of `export`: parameters by their paths, config and classes in the header.

    Raises:
      CheckpointError: no such file, not one of ours, damaged, or it does not fit its own config.
    """
    try:
        stored = read_weights(path)
    except UserError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})".replace(f"({path}: ", "(")) from error
    if stored.metadata.get("format") != "pfcn_jax":
        raise CheckpointError(f"{path}: not written by `export`; bring other people's weights by `convert --input`")
    meta = json.loads(str(stored.metadata["meta"]))
    config, classes = from_dict(meta["config"]), ClassTable.from_json(meta["classes"])
    model = build_model(config.model, *classes.counts)
    wanted = traverse_util.flatten_dict(abstract_variables(model), sep="/")
    wrong = sorted(wanted.keys() ^ stored.tensors.keys())
    wrong += [name for name, leaf in wanted.items() if name not in wrong and stored.tensors[name].shape != leaf.shape]
    if wrong:
        raise CheckpointError(f"{path}: {len(wrong)} arrays do not fit its own config: {', '.join(wrong[:10])}")
    arrays = {name: jnp.asarray(stored.tensors[name], leaf.dtype) for name, leaf in wanted.items()}
    variables = {"batch_stats": {}, **traverse_util.unflatten_dict(arrays, sep="/")}
    return LoadedModel(path, config, classes, model, variables, steps_of(meta))


def load_with_config(path: pathlib.Path, config_argv: list[str], *, best: bool = True) -> LoadedModel:
    """Loads a checkpoint and changes its config from the command line (`--config.data.root=DIR`, ...).

    Of the network only `model.dtype` and `model.remat` may change: everything else is fixed by the parameters.

    Raises:
      CheckpointError: see `load_checkpoint`.
      ConfigError: a value that the checkpoint's parameters contradict; it names the key.
    """
    loaded = load_checkpoint(path, best=best)
    config = from_command_line(config_argv, loaded.config)
    for field in dataclasses.fields(config.model):
        wanted, made = getattr(config.model, field.name), getattr(loaded.config.model, field.name)
        if wanted != made and field.name not in CHANGEABLE:
            raise ConfigError(
                f"config.model.{field.name}: {wanted!r}, but {loaded.path} was trained with {made!r}; leave it out (of "
                f"the network only {' and '.join(CHANGEABLE)} can change after training)"
            )
    model = loaded.model if config.model == loaded.config.model else build_model(config.model, *loaded.classes.counts)
    return dataclasses.replace(loaded, config=config, model=model)


def initialize_from(
    path: pathlib.Path, variables: Mapping[str, Any], config: Config, *, fresh_heads: bool
) -> tuple[dict[str, Any], list[str]]:
    """Replaces initial variables by those of a checkpoint: a backbone, or a whole model.

    Args:
      variables: initial ones of the model to be trained.
      fresh_heads: outside of the backbone, keep the initial value of what does not fit (other classes); otherwise it
        is an error.

    Returns:
      The variables, and notes for the user: parameters that kept their initial value, settings that differ.
    """
    checkpoint = find_checkpoint(resolve(path), best=True)
    check_intact(checkpoint)
    meta = load_meta(checkpoint)
    stored = load_stored(checkpoint)
    converted = Converted(stored, ModelFacts(), meta.get("converted_from", "panoptic_fcn"))
    notes = []
    if meta.get("kind") == BACKBONE:
        merged = merge_backbone(variables, converted)
    else:
        merged, fresh = merge_model(variables, converted, allow_mismatch=fresh_heads)
        notes = [f"fresh (not in {path} or of another shape): {name}" for name in fresh]
    theirs = from_dict(meta["config"]).model
    for name in ("pixel_order", "pixel_mean", "pixel_std", "stride_in_1x1"):
        wanted, made = getattr(config.model, name), getattr(theirs, name)
        if wanted != made:
            notes.append(f"config.model.{name} is {wanted}, the weights were made with {made}")
    return merged, notes
