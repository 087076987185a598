"""The optimiser: clip each element, decay (not norms), momentum, warm-up times poly learning rate; frozen parameters.

Order as in the original implementation: clip, then weight decay, then momentum.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pfcn_jax.errors import ConfigError
from pfcn_jax.optim.options import OptimOptions

PyTree = Any


def learning_rate_schedule(config: OptimOptions, *, steps: int, batch_size: int) -> optax.Schedule:
    """lr(i) = lr * batch / reference_batch * warmup(i) * (1 - i / steps) ** power; both factors act from step 0 on.

    warmup(i) rises linearly from `warmup_factor` to 1 over `warmup_steps`.
    """
    peak = config.learning_rate * batch_size / config.reference_batch

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.minimum(jnp.asarray(count, jnp.int32), steps)
        left = (steps - done).astype(jnp.float32) / steps  # not 1 - done / steps: that loses its digits at the end
        progress = jnp.minimum(done.astype(jnp.float32) / max(config.warmup_steps, 1), 1.0)
        warmup = config.warmup_factor * (1.0 - progress) + progress if config.warmup_steps else 1.0
        return peak * warmup * left**config.poly_power

    return schedule


def frozen_mask(params: PyTree, frozen: tuple[str, ...]) -> PyTree:
    """True for the parameters that are not trained: those below one of the `frozen` paths ("backbone/stem")."""
    return _by_name(params, lambda name: any(_below(name, path) for path in frozen))


def stop_frozen(params: PyTree, frozen: tuple[str, ...]) -> PyTree:
    """The parameters, without a gradient for those below the `frozen` paths: it is not even computed."""
    mask = frozen_mask(params, frozen)
    return jax.tree.map(lambda leaf, fixed: jax.lax.stop_gradient(leaf) if fixed else leaf, params, mask)


def rate_factors(params: PyTree, multipliers: tuple[tuple[str, float], ...]) -> PyTree:
    """What the learning rate of each parameter is multiplied by: the factor of the longest path that fits, else 1."""

    def factor(name: str) -> float:
        path = _longest(name, [path for path, _ in multipliers])
        return 1.0 if path is None else dict(multipliers)[path]

    return _by_name(params, factor)


def check_paths(config: OptimOptions, params: PyTree, *, frozen: tuple[str, ...]) -> None:
    """Every path that the config names must do something.

    Args:
      params: of the model, or their shapes.
      frozen: paths that the model itself freezes.

    Raises:
      ConfigError: a path has no parameter below it (with the nearest names), or none whose learning rate it sets.
    """
    names = jax.tree.leaves(_by_name(params, lambda name: name))
    known = sorted({name[: match.start()] for name in names for match in re.finditer(r"/|$", name)})
    factors = dict(config.lr_multipliers)
    keys = [("frozen", path) for path in config.frozen] + [("lr_multipliers", path) for path in factors]
    for key, path in keys:
        if path not in known:
            near = difflib.get_close_matches(path, known, n=3) or sorted({name.split("/")[0] for name in names})
            raise ConfigError(f"config.optim.{key}: no parameter is at or below {path!r}; near: {', '.join(near)}")
    if len(factors) < len(config.lr_multipliers):
        raise ConfigError(f"config.optim.lr_multipliers: a path is named twice in {config.lr_multipliers}")
    trained = [name for name in names if not any(_below(name, path) for path in frozen + config.frozen)]
    deciding = {_longest(name, factors) for name in trained}
    for path, factor in factors.items():
        if factor <= 0.0:
            raise ConfigError(f"config.optim.lr_multipliers: {path!r} has {factor}; to train nothing use optim.frozen")
        if path not in deciding:
            raise ConfigError(
                f"config.optim.lr_multipliers: {path!r} sets no learning rate: what is below it is frozen or has a "
                "longer path of its own"
            )
    if not trained:
        raise ConfigError(f"config.optim.frozen: {config.frozen} leave no parameter to train")


def decay_mask(params: PyTree) -> PyTree:
    """True where weight decay applies: everything but the parameters of norms (convolution biases are decayed)."""
    return _by_name(params, lambda name: re.search(r"(^|/)[a-z0-9_]*norm[a-z0-9_]*/(scale|bias)$", name) is None)


def make_optimizer(
    config: OptimOptions, *, steps: int, batch_size: int, frozen: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """The update rule of a run, for `params` as the model makes them.

    Args:
      frozen: paths of parameters that are not trained.
    """
    schedule = learning_rate_schedule(config, steps=steps, batch_size=batch_size)
    if config.name == "sgd":
        rule = optax.chain(
            optax.clip(config.clip_value),
            optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
            optax.trace(decay=config.momentum),
        )
    else:
        rule = optax.chain(
            optax.clip(config.clip_value),
            optax.scale_by_adam(b1=config.momentum),
            optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        )
    rule = optax.chain(rule, optax.scale_by_learning_rate(schedule))
    if config.lr_multipliers:
        rule = _scaled_by_path(rule, config.lr_multipliers)

    def labels(params: PyTree) -> PyTree:
        return jax.tree.map(lambda fixed: "frozen" if fixed else "trained", frozen_mask(params, frozen))

    return optax.partition({"trained": rule, "frozen": optax.set_to_zero()}, labels)


def update_average(average: PyTree, params: PyTree, step: jax.Array, *, decay: float) -> PyTree:
    """The exponential moving average (EMA) after the update that made `params`: a + (1 - d) (p - a).

    d = min(decay, (1 + step) / (10 + step)) with the number of steps before this one: a young average forgets its
    random start quickly. In this form a parameter that never moves keeps its very bits.
    """
    done = step.astype(jnp.float32)
    keep = jnp.minimum(jnp.float32(decay), (1.0 + done) / (10.0 + done))
    return jax.tree.map(lambda old, new: old + (1.0 - keep) * (new - old), average, params)


def _scaled_by_path(
    rule: optax.GradientTransformation, multipliers: tuple[tuple[str, float], ...]
) -> optax.GradientTransformation:
    """`rule` with its updates multiplied path by path; its state, and so a checkpoint, is the same with or without."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        updates, state = rule.update(updates, state, params)
        return jax.tree.map(jnp.multiply, updates, rate_factors(updates, multipliers)), state

    return optax.GradientTransformation(rule.init, update)


def _below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")


def _longest(name: str, paths: Iterable[str]) -> str | None:
    return max((path for path in paths if _below(name, path)), key=len, default=None)


def _by_name(params: PyTree, function: Callable[[str], Any]) -> PyTree:
    def name_of(path: tuple[Any, ...]) -> str:
        return "/".join(str(getattr(part, "key", part)) for part in path)

    return jax.tree_util.tree_map_with_path(lambda path, _: function(name_of(path)), params)
