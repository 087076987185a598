"""The part `train`: time, memory and images per second of the training step."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from pfcn_jax.data.inputs import open_training, train_pipeline
from pfcn_jax.errors import UserError
from pfcn_jax.parallel.sharding import data_mesh, shard_batch
from pfcn_jax.steps import train_step
from pfcn_jax.studies.benchmark.measure import (
    Row,
    Yardstick,
    against_matmul,
    compile_program,
    device_peak_mb,
    time_runs,
)
from pfcn_jax.studies.benchmark.subject import Subject, load_subject
from pfcn_jax.training.state import build_optimizer, create_state


def measure_training(subject: Subject, yardstick: Yardstick, *, batch: int, seconds: float) -> Row:
    """One row: the step that `train` runs, on the first batch of the config's training data, over all devices."""
    if batch % jax.device_count():
        raise UserError(f"--batch {batch}: does not divide over {jax.device_count()} devices")
    config = dataclasses.replace(subject.config, train=dataclasses.replace(subject.config.train, batch_size=batch))
    source = open_training(config.data)
    if (len(source.classes.is_thing) - sum(source.classes.is_thing)) != subject.model.num_stuff:
        raise UserError(f"{config.data.root}: {len(source.classes.is_thing)} classes, the model was made for others")
    with iter(
        train_pipeline(config.data, source, batch_size=config.train.batch_size, seed=config.seed, process=(0, 1))
    ) as batches:
        host_batch = jax.tree.map(np.copy, next(batches))  # a copy: a worker's memory is to be freed
    mesh = data_mesh()
    state = create_state(config, subject.model, mesh, subject.variables)
    placed = shard_batch(host_batch, mesh)
    optimizer = build_optimizer(config, subject.model)
    step = functools.partial(train_step, model=subject.model, optimizer=optimizer, config=config, mesh=mesh)
    program = compile_program(step, state, placed, donate=(0,))
    held: list[Any] = [state]

    def run() -> Any:
        held[0], scalars = program.run(held[0], placed)
        return held[0].params, scalars

    height, width = host_batch.image.shape[1:3]
    row: Row = {"batch": batch, "canvas": f"{height}x{width}"}
    with yardstick.around(row):
        timing = time_runs(run, seconds=seconds)
    row |= timing.row() | {"images_per_s": batch / timing.median} | program.row()
    row |= {"device_peak_mb": device_peak_mb(), "positives": float(run()[1]["positives"])}
    return against_matmul(row)


def rows(args: argparse.Namespace) -> tuple[Subject, list[Row]]:
    """The batch sweep."""
    subject = load_subject(args)
    yardstick = Yardstick(subject.config.model.dtype if jax.default_backend() != "cpu" else "float32")
    return subject, [measure_training(subject, yardstick, batch=batch, seconds=args.seconds) for batch in args.batch]
