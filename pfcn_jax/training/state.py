"""Creates the state and the optimizer of a run, and checks that a stored state fits a config."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pfcn_jax.config.schema import Config
from pfcn_jax.errors import ConfigError
from pfcn_jax.models.build import abstract_variables
from pfcn_jax.models.panoptic_fcn import PanopticFCN, init_variables
from pfcn_jax.optim.build import make_optimizer
from pfcn_jax.optim.rules import check_paths
from pfcn_jax.optim.state import TrainState
from pfcn_jax.parallel.sharding import replicate, replicated

PyTree = Any


def build_optimizer(config: Config, model: PanopticFCN) -> optax.GradientTransformation:
    """Returns the optimizer of a run.

    Raises:
      ConfigError: `config.optim` names an unknown optimizer, or paths that match no parameter or have no effect.
    """
    optim = config.optim
    if optim.frozen or optim.lr_multipliers:
        check_paths(optim, abstract_variables(model)["params"], frozen=model.frozen_paths())
    return make_optimizer(
        optim,
        steps=config.train.steps,
        batch_size=config.train.batch_size,
        frozen=model.frozen_paths() + optim.frozen,
    )


def check_same_state(before: Config, now: Config, where: str) -> None:
    """Checks that a run may resume under the config `now` from a checkpoint at `where`, written under `before`.

    Raises:
      ConfigError: a key that changes the structure of the state differs; the message names it.
    """
    keys: list[tuple[str, Any, Any]] = [
        ("optim.name", before.optim.name, now.optim.name),
        ("optim.frozen", before.optim.frozen, now.optim.frozen),
        ("model.freeze_at", before.model.freeze_at, now.model.freeze_at),
    ]
    changed = [entry for entry in keys if entry[1] != entry[2]]
    if bool(before.train.ema_decay) != bool(now.train.ema_decay):
        changed.append(("train.ema_decay", before.train.ema_decay, now.train.ema_decay))
    if changed:
        key, old, new = changed[0]
        raise ConfigError(
            f"config.{key} is {new!r}, the run so far had {old!r}: its state does not fit; keep {old!r}, or start "
            f"another workdir with --init-from {where}"
        )


def create_state(config: Config, model: PanopticFCN, mesh: Mesh, variables: PyTree | None = None) -> TrainState:
    """Initializes a state, replicated on the mesh: random parameters by `config.seed`, or the given variables."""
    optimizer = build_optimizer(config, model)

    def create(start: PyTree) -> TrainState:
        if start is None:
            start = init_variables(model, jax.random.key(config.seed))
        params = start["params"]
        stats = start.get("batch_stats", {})
        average = jax.tree.map(jnp.copy, params) if config.train.ema_decay else None
        return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), average)

    start = None if variables is None else replicate(variables, mesh)
    return jax.jit(create, out_shardings=replicated(mesh))(start)
