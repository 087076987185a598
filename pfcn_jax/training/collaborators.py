"""Functions that a run is made of: data, model, state, compiled step, evaluation, clock. A test passes its own."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from pfcn_jax.config.schema import Config
from pfcn_jax.data.example import Example, Source
from pfcn_jax.data.inputs import open_evaluation, open_training
from pfcn_jax.data.options import DataOptions
from pfcn_jax.evaluation.evaluate import EvaluationResult, evaluate_model
from pfcn_jax.models.build import build_model
from pfcn_jax.models.options import ModelOptions
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.optim.state import TrainState
from pfcn_jax.panoptic.predict import Prediction
from pfcn_jax.parallel.prefetch import DevicePrefetch
from pfcn_jax.parallel.sharding import replicated
from pfcn_jax.steps import Scalars, train_step
from pfcn_jax.training.monitor import make_report
from pfcn_jax.training.state import build_optimizer, create_state
from pfcn_jax.types import Batch

PyTree = Any
Report = Int[Array, " 4+batch"]
Step = Callable[[TrainState, Batch, Int[Array, " devices"]], tuple[TrainState, Scalars, Report]]


@dataclasses.dataclass(frozen=True)
class EvaluationTask:
    """One evaluation of a run.

    Attributes:
      step: training step of the variables.
      detailed: compute all metrics of the config, not PQ alone.
      on_example: called with every example and its prediction; an exception ends the evaluation. The examples hold
        their image only if previews are drawn: of a detailed evaluation.
    """

    step: int
    variables: PyTree
    model: PanopticFCN
    source: Source
    config: Config
    mesh: Mesh
    detailed: bool
    on_example: Callable[[Example, Prediction], None]


def evaluate(task: EvaluationTask) -> EvaluationResult:
    """Scores a model on a validation split (`evaluate_model`)."""
    return evaluate_model(
        task.variables,
        task.model,
        task.source,
        task.config,
        task.mesh,
        detailed=task.detailed,
        on_image=task.on_example,
        with_images=task.detailed and task.config.train.preview_images > 0,
    )


def compile_step(config: Config, model: PanopticFCN, mesh: Mesh) -> Step:
    """The jitted training step with its report; it donates the state that it is given.

    Raises:
      ConfigError: see `build_optimizer`.
    """
    step = functools.partial(
        monitored_step, model=model, optimizer=build_optimizer(config, model), config=config, mesh=mesh
    )
    return jax.jit(step, donate_argnums=0)


def monitored_step(
    state: TrainState,
    batch: Batch,
    stop: Int[Array, " devices"],
    *,
    model: PanopticFCN,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
) -> tuple[TrainState, Scalars, Report]:
    """`train_step` and its report for the monitor (`make_report`), replicated over the devices."""
    state, scalars = train_step(state, batch, model=model, optimizer=optimizer, config=config, mesh=mesh)
    report = make_report(scalars, batch.image_id, stop)
    return state, scalars, jax.lax.with_sharding_constraint(report, replicated(mesh))


@dataclasses.dataclass(frozen=True)
class Collaborators:
    """Everything outside of the loop that a `Trainer` calls."""

    open_training: Callable[[DataOptions], Source] = open_training
    open_evaluation: Callable[..., Source] = open_evaluation
    build_model: Callable[[ModelOptions, int, int], PanopticFCN] = build_model
    create_state: Callable[..., TrainState] = create_state
    build_step: Callable[[Config, PanopticFCN, Mesh], Step] = compile_step
    prefetch: Callable[..., DevicePrefetch] = DevicePrefetch
    evaluate: Callable[[EvaluationTask], EvaluationResult] = evaluate
    clock: Callable[[], float] = time.monotonic
