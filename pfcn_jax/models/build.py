"""The network that options describe, and the shapes of its variables."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pfcn_jax.errors import ConfigError
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
    keywords = {key: getattr(options, key) for key in options.__dataclass_fields__}
    keywords["dtype"] = jnp.dtype(options.dtype)
    model = PanopticFCN(num_things=num_things, num_stuff=num_stuff, **keywords)
    try:
        jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from error
    return model


def abstract_variables(model: PanopticFCN) -> dict[str, PyTree]:
    """Shapes and dtypes of the network's variables."""
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
