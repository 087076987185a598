"""Wires the network that options describe, and tells the shapes of its variables."""

from __future__ import annotations

from typing import Any

import jax

from pfcn_jax.errors import ConfigError
from pfcn_jax.models.backbones.registry import find_backbone
from pfcn_jax.models.options import ModelOptions
from pfcn_jax.models.panoptic_fcn import PanopticFCN, init_variables

PyTree = Any


def build_model(options: ModelOptions, num_things: int, num_stuff: int) -> PanopticFCN:
    """The network that the options describe, with heads for so many classes.

    Raises:
      ConfigError: the options describe no network, or no class is a thing.
    """
    if num_things == 0:
        raise ConfigError("none of the classes is a thing: at least one must be countable (isthing: 1)")
    find_backbone(options.backbone).check(options)
    return PanopticFCN(num_things, num_stuff, options)


def abstract_variables(model: PanopticFCN) -> dict[str, PyTree]:
    """Shapes and dtypes of the network's variables."""
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
