"""Learning rate schedule, parameter masks by path (frozen, decayed, multiplied), and the moving average.

A path such as "backbone/res5_0" selects the parameters at or below it.
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
    """Returns lr(i) = lr * batch / reference_batch * warmup(i) * (1 - i / steps) ** power, for i = 0, 1, ...

    warmup(i) rises linearly from `warmup_factor` to 1 over `warmup_steps`; the decay starts at step 0, too.
    """
    peak = config.learning_rate * batch_size / config.reference_batch

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.minimum(jnp.asarray(count, jnp.int32), steps)
        left = (steps - done).astype(jnp.float32) / steps  # not 1 - done / steps: that cancels digits at the end
        progress = jnp.minimum(done.astype(jnp.float32) / max(config.warmup_steps, 1), 1.0)
        warmup = config.warmup_factor * (1.0 - progress) + progress if config.warmup_steps else 1.0
        return peak * warmup * left**config.poly_power

    return schedule


def frozen_mask(params: PyTree, frozen: tuple[str, ...]) -> PyTree:
    """Returns True for the parameters at or below one of the `frozen` paths."""
    return _by_name(params, lambda name: any(_below(name, path) for path in frozen))


def stop_frozen(params: PyTree, frozen: tuple[str, ...]) -> PyTree:
    """Stops the gradient of parameters at or below the `frozen` paths, so that XLA does not compute it."""
    mask = frozen_mask(params, frozen)
    return jax.tree.map(lambda leaf, fixed: jax.lax.stop_gradient(leaf) if fixed else leaf, params, mask)


def rate_factors(params: PyTree, multipliers: tuple[tuple[str, float], ...]) -> PyTree:
    """Returns the learning rate multiplier of each parameter: the factor of its longest matching path, else 1."""

    def factor(name: str) -> float:
        path = _longest(name, [path for path, _ in multipliers])
        return 1.0 if path is None else dict(multipliers)[path]

    return _by_name(params, factor)


def check_paths(config: OptimOptions, params: PyTree, *, frozen: tuple[str, ...]) -> None:
    """Checks that every path of the config has an effect.

    Args:
      params: parameters of the model, or their shapes.
      frozen: paths that the model freezes by itself.

    Raises:
      ConfigError: a path matches no parameter (the message lists the nearest names), or sets no learning rate.
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
    """Returns True for all parameters except those of norms and tables of position biases; other biases are decayed."""
    undecayed = re.compile(r"(^|/)[a-z0-9_]*norm[a-z0-9_]*/(scale|bias)$|(^|/)bias_table$")
    return _by_name(params, lambda name: undecayed.search(name) is None)


def update_average(average: PyTree, params: PyTree, step: jax.Array, *, decay: float) -> PyTree:
    """Returns the exponential moving average (EMA) after an update: a + (1 - d) (p - a).

    d = min(decay, (1 + step) / (10 + step)), where `step` counts the updates before this one, so that the average
    forgets its random start quickly. In this form a parameter that never changes keeps its bits.
    """
    done = step.astype(jnp.float32)
    momentum = jnp.minimum(jnp.float32(decay), (1.0 + done) / (10.0 + done))
    return jax.tree.map(lambda old, new: old + (1.0 - momentum) * (new - old), average, params)


def _below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")


def _longest(name: str, paths: Iterable[str]) -> str | None:
    return max((path for path in paths if _below(name, path)), key=len, default=None)


def _by_name(params: PyTree, function: Callable[[str], Any]) -> PyTree:
    def name_of(path: tuple[Any, ...]) -> str:
        return "/".join(str(getattr(part, "key", part)) for part in path)

    return jax.tree_util.tree_map_with_path(lambda path, _: function(name_of(path)), params)
