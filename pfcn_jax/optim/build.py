"""Builds the optimizer of a run: update rule, learning rate schedule, multipliers by path, frozen parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pfcn_jax.optim.optimizers import find_optimizer
from pfcn_jax.optim.options import OptimOptions
from pfcn_jax.optim.rules import frozen_mask, learning_rate_schedule, rate_factors

PyTree = Any


def make_optimizer(
    options: OptimOptions, *, steps: int, batch_size: int, frozen: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `steps` steps.

    Args:
      frozen: paths of parameters that are not trained.

    Raises:
      ConfigError: `options.name` is no known optimizer.
    """
    schedule = learning_rate_schedule(options, steps=steps, batch_size=batch_size)
    rule = optax.chain(find_optimizer(options.name)(options), optax.scale_by_learning_rate(schedule))
    if options.lr_multipliers:
        rule = _multiply_by_path(rule, options.lr_multipliers)

    def labels(params: PyTree) -> PyTree:
        return jax.tree.map(lambda fixed: "frozen" if fixed else "trained", frozen_mask(params, frozen))

    return optax.partition({"trained": rule, "frozen": optax.set_to_zero()}, labels)


def _multiply_by_path(
    rule: optax.GradientTransformation, multipliers: tuple[tuple[str, float], ...]
) -> optax.GradientTransformation:
    """Multiplies the updates of `rule` path by path. The state, and so a checkpoint, is the same with and without."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        updates, state = rule.update(updates, state, params)
        return jax.tree.map(jnp.multiply, updates, rate_factors(updates, multipliers)), state

    return optax.GradientTransformation(rule.init, update)
