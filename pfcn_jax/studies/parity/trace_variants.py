"""A recorded training with one thing changed: what we do otherwise on purpose, bfloat16, accumulation, float64.

Each variant starts from the same weights and sees the same batches as the replay that is compared with the original.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfcn_jax.config.schema import Config
from pfcn_jax.errors import UserError
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.optim.rules import stop_frozen
from pfcn_jax.optim.state import TrainState
from pfcn_jax.parallel.sharding import split_batch
from pfcn_jax.steps import Scalars, loss_fn
from pfcn_jax.studies.parity.trace import Replay, Step, Trace, compile_step, replay, start_state
from pfcn_jax.training.state import build_optimizer
from pfcn_jax.types import Batch

PyTree = Any
VARIANTS = {
    "padding": "`targets.padding` as we train: an image's padding never counts",
    "positives": "positives counted for each image alone, as the original does on GPUs with one image each",
    "accumulate": "`train.accumulate` = 2: the batch in two parts",
    "bfloat16": "`model.dtype` = bfloat16",
}


def replay_variant(name: str, trace: Trace, model: PanopticFCN, variables: PyTree) -> Replay:
    """Runs a trace with one of VARIANTS."""
    config, compiled = trace.config, compile_step
    if name == "padding":
        config = dataclasses.replace(config, targets=dataclasses.replace(config.targets, padding="image"))
    elif name == "accumulate":
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=2))
    elif name == "bfloat16":
        model = model.clone(options=dataclasses.replace(model.options, dtype="bfloat16"))
    elif name == "positives":
        compiled = compile_step_by_image
    else:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {name!r}")
    return replay(trace, compiled(model, config), start_state(variables, model, config), final=False)[0]


def replay_in_float64(path: pathlib.Path, weights: pathlib.Path, steps: int) -> Replay:
    """A recorded training, replayed in float64 in a process of its own; without `final_losses`.

    Raises:
      UserError: the process failed (with its last lines).
    """
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "replay.npz"
        command = [
            sys.executable,
            "-m",
            "pfcn_jax.studies.parity.trace_float64",
            str(path),
            str(weights),
            str(steps),
            str(output),
        ]
        # The compiler's last passes over double precision take minutes and save seconds.
        quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        flags = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()
        run = subprocess.run(
            command,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise UserError(f"{path}: the replay in float64 failed:\n{run.stderr[-2000:]}")
        with np.load(output) as archive:
            return Replay(**archive)


def compile_step_by_image(model: PanopticFCN, config: Config) -> Step:
    """A step whose losses and gradients are the means over images of each image's own, as on one GPU for each."""
    optimizer = build_optimizer(config, model)

    @jax.jit
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        images = batch.image.shape[0]

        def loss(params: PyTree, image: Batch) -> tuple[jax.Array, Scalars]:
            params = stop_frozen(params, config.optim.frozen)
            return loss_fn(params, state.batch_stats, image, model=model, config=config)

        def add(total: PyTree, image: Batch) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, jax.grad(loss, has_aux=True)(state.params, image)), None

        parts = split_batch(batch, images, None)
        shapes = jax.eval_shape(jax.grad(loss, has_aux=True), state.params, jax.tree.map(lambda leaf: leaf[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        summed, _ = jax.lax.scan(add, zeros, parts)
        gradients, scalars = jax.tree.map(lambda leaf: leaf / images, summed)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        scalars["grad_norm"] = optax.tree.norm(gradients)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, params=params, opt_state=opt_state, step=state.step + 1), scalars

    return step
