"""The parts `network`, `post` and `predict`: the heads, everything after them, and from images to ids."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pfcn_jax.data.plan import output_shape
from pfcn_jax.panoptic.options import OutputSpec
from pfcn_jax.steps import generate_for_prediction, per_image, predict_step, segment
from pfcn_jax.studies.benchmark.measure import (
    Row,
    Yardstick,
    against_matmul,
    compile_program,
    device_peak_mb,
    time_runs,
)
from pfcn_jax.studies.benchmark.subject import Placed, Subject, load_subject, place, read_images
from pfcn_jax.types import image_geometry

PyTree = Any


def network_program(subject: Subject) -> Callable[..., PyTree]:
    """(variables, image, size) -> what the heads say."""

    def network(variables: PyTree, image: Any, size: Any) -> PyTree:
        return generate_for_prediction(variables, image, image_geometry(size), subject.model, None)

    return network


def predict_program(subject: Subject, placed: Placed) -> Callable[..., PyTree]:
    """(variables, image, size, original size) -> prediction, as `predict` and `evaluate` run it."""
    return functools.partial(
        predict_step,
        model=subject.model,
        config=subject.config,
        output=OutputSpec(output_shape(placed.original_size)),
    )


def post_program(subject: Subject, placed: Placed) -> Callable[..., PyTree]:
    """The same without the network: (variables, what the heads say, image, size, original size) -> prediction."""
    one = functools.partial(
        segment,
        model=subject.model,
        options=subject.config.inference,
        output=OutputSpec(output_shape(placed.original_size)),
    )

    def post(variables: PyTree, dense: PyTree, image: Any, size: Any, original_size: Any) -> PyTree:
        return per_image(one, None, variables)(dense, image_geometry(size, original_size))

    return post


def count_segments(prediction: Any) -> tuple[float, float]:
    """Candidates that passed the rescoring, and segments in the result: means over the batch."""
    things, panoptic = jax.device_get((prediction.things.valid, prediction.panoptic.valid))
    return float(np.mean(np.sum(things, axis=-1))), float(np.mean(np.sum(panoptic, axis=-1)))


def measure_prediction(
    part: str, subject: Subject, placed: Placed, yardstick: Yardstick, *, seconds: float
) -> tuple[Row, PyTree]:
    """One row of a part ("network", "post" or "predict") for one batch, and the last result."""
    arrays = (placed.image, placed.size, placed.original_size)
    on_device = jax.device_put(arrays)
    if part == "network":
        arguments: tuple[Any, ...] = (subject.variables, *on_device[:2])
        program = compile_program(network_program(subject), *arguments)
    elif part == "post":
        dense = jax.jit(network_program(subject))(subject.variables, *on_device[:2])
        arguments = (subject.variables, dense, *on_device)
        program = compile_program(post_program(subject, placed), *arguments)
    else:
        arguments = (subject.variables, *on_device)
        program = compile_program(predict_program(subject, placed), *arguments)

    def run() -> PyTree:
        if part == "predict":  # with the way to the device and back
            prediction = program.run(subject.variables, *jax.device_put(arrays))
            return jax.device_get(prediction.panoptic), prediction
        return program.run(*arguments)

    batch = len(placed.image)
    row: Row = {"batch": batch, "canvas": "x".join(map(str, placed.canvas))}
    with yardstick.around(row):
        timing = time_runs(run, seconds=seconds)
    row |= timing.row() | {"seconds_per_picture": timing.median / batch} | program.row()
    row["device_peak_mb"] = device_peak_mb()
    result = run()
    if part == "predict":
        result = result[1]
    if part != "network":
        row["things"], row["segments"] = count_segments(result)
    return against_matmul(row), result


def rows(part: str, args: argparse.Namespace) -> tuple[Subject, list[Row]]:
    """The batch sweep of a part."""
    subject = load_subject(args)
    images = read_images(args, subject.config)
    yardstick = Yardstick(subject.config.model.dtype if jax.default_backend() != "cpu" else "float32")
    measured = []
    for batch in args.batch:
        placed = place(images, batch, subject.config)
        row, _ = measure_prediction(part, subject, placed, yardstick, seconds=args.seconds)
        measured.append(row)
    return subject, measured
