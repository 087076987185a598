"""Optimizers by name (`optim.name`). A new one is a function with `@register_optimizer("name")`.

It returns the update rule without the learning rate, which `make_optimizer` adds. An optimizer outside of the package
is named `module:name` in the config: the module is imported, and registers `name`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import optax

from pfcn_jax.errors import ConfigError
from pfcn_jax.optim.options import OptimOptions
from pfcn_jax.optim.rules import decay_mask

Rule = Callable[[OptimOptions], optax.GradientTransformation]
_RULES: dict[str, Rule] = {}


def register_optimizer(name: str) -> Callable[[Rule], Rule]:
    """Registers an update rule under a name.

    Raises:
      ValueError: another rule has this name.
    """

    def register(rule: Rule) -> Rule:
        if name in _RULES:
            raise ValueError(f"two optimizers are called {name!r}")
        _RULES[name] = rule
        return rule

    return register


def find_optimizer(name: str) -> Rule:
    """Returns the update rule of a name, or of `module:name`.

    Raises:
      ConfigError: the module cannot be imported, or no optimizer has this name; the message lists the known ones.
    """
    module, _, short = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"config.optim.name: cannot import {module!r} of {name!r} ({error})") from error
    if short not in _RULES:
        raise ConfigError(f"config.optim.name: no optimizer {short!r} (known: {', '.join(sorted(_RULES))})")
    return _RULES[short]


@register_optimizer("sgd")
def sgd(options: OptimOptions) -> optax.GradientTransformation:
    """SGD with momentum, in the original's order: clip each element, add weight decay, accumulate momentum."""
    return optax.chain(
        optax.clip(options.clip_value),
        optax.add_decayed_weights(options.weight_decay, mask=decay_mask),
        optax.trace(decay=options.momentum),
    )


@register_optimizer("adamw")
def adamw(options: OptimOptions) -> optax.GradientTransformation:
    """AdamW: clip each element, divide by the moments, add weight decay."""
    return optax.chain(
        optax.clip(options.clip_value),
        optax.scale_by_adam(b1=options.momentum),
        optax.add_decayed_weights(options.weight_decay, mask=decay_mask),
    )
