"""The programs that users run, traced for the devices of a slice: from shapes alone, no parameter is made."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from pfcn_jax.config.schema import Config
from pfcn_jax.data.plan import output_shape
from pfcn_jax.errors import UserError
from pfcn_jax.inference.predictor import compile_prediction
from pfcn_jax.models.build import abstract_variables
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.panoptic.options import OutputSpec
from pfcn_jax.parallel.sharding import batch_sharding, replicated
from pfcn_jax.steps import generate_for_prediction
from pfcn_jax.studies.abstract import abstract_batch
from pfcn_jax.training.collaborators import compile_step
from pfcn_jax.training.state import create_state
from pfcn_jax.types import image_geometry

PyTree = Any
PROGRAMS = ("train", "predict", "forward")


@dataclasses.dataclass(frozen=True)
class Job:
    """A program for `images` on each chip of a mesh."""

    program: str  # of PROGRAMS
    config: Config
    model: PanopticFCN
    mesh: Mesh
    images: int
    canvas: tuple[int, int]  # (height, width)

    @property
    def batch(self) -> int:
        """Images of all chips."""
        return self.images * self.mesh.size


def canvas_of(config: Config, program: str) -> tuple[int, int]:
    """The config's first canvas for a program."""
    canvases = config.data.canvases if program == "train" else config.data.eval_canvases or config.data.canvases
    if not canvases:
        raise UserError("the config has no canvases: give --canvas HEIGHT WIDTH")
    return canvases[0]


def trace(job: Job) -> jax.stages.Traced:
    """Traces a program.

    Raises:
      UserError: the images of a chip do not divide into `train.accumulate` parts.
    """
    return {"train": _train, "predict": _predict, "forward": _forward}[job.program](job)


def _train(job: Job) -> jax.stages.Traced:
    """The training step as the trainer runs it."""
    parts = job.config.train.accumulate
    if job.images % parts:
        raise UserError(
            f"--batch-per-chip {job.images}: does not divide into {parts} parts (config.train.accumulate); give a "
            f"multiple of {parts}, or --config.train.accumulate=1"
        )
    config = dataclasses.replace(job.config, train=dataclasses.replace(job.config.train, batch_size=job.batch))
    state = jax.eval_shape(functools.partial(create_state, config, job.model, job.mesh))
    batch = abstract_batch(job.batch, job.canvas, config.data.max_segments)
    stop = jax.ShapeDtypeStruct((job.mesh.size,), np.int32)
    step: Any = compile_step(config, job.model, job.mesh)
    return step.trace(_with(state, replicated(job.mesh)), *_with((batch, stop), batch_sharding(job.mesh)))


def _predict(job: Job) -> jax.stages.Traced:
    """The prediction as `predict` and `evaluate` run it, of images that are as large as the canvas."""
    step: Any = compile_prediction(job.model, job.config, job.mesh)
    image, size = _images(job)
    return step.trace(_variables(job), image, size, size, output=OutputSpec(output_shape([job.canvas])))


def _forward(job: Job) -> jax.stages.Traced:
    """The network alone, in the form that prediction runs."""

    def forward(variables: PyTree, image: Any, size: Any) -> PyTree:
        return generate_for_prediction(variables, image, image_geometry(size), job.model, job.mesh)

    return jax.jit(forward).trace(_variables(job), *_images(job))


def _variables(job: Job) -> PyTree:
    return _with(abstract_variables(job.model), replicated(job.mesh))


def _images(job: Job) -> PyTree:
    """Images and their sizes."""
    image = jax.ShapeDtypeStruct((job.batch, *job.canvas, 3), np.uint8)
    size = jax.ShapeDtypeStruct((job.batch, 2), np.int32)
    return _with((image, size), batch_sharding(job.mesh))


def _with(tree: PyTree, sharding: NamedSharding) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
