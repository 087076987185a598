"""The part `backbones`: parameters, operations and time of one forward pass of each backbone (docs/backbones.md)."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.models.backbones.registry import STAGES, find_backbone, known_backbones
from pfcn_jax.models.options import ModelOptions
from pfcn_jax.studies.benchmark.measure import Row, Yardstick, against_matmul, time_runs
from pfcn_jax.studies.flops import traced_flops

SIDE = 512  # of the image, in pixels


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--names", nargs="+", metavar="NAME", help="`backbones`: those to measure (default: all)")


def rows(args: argparse.Namespace) -> tuple[Config, list[Row]]:
    """One row for each backbone of `--names` and each batch size, the cheapest first.

    Raises:
      ConfigError: no backbone has this name, or it lacks an option of the config.
    """
    config = from_command_line(args.config_argv, Config())
    choices = [dataclasses.replace(config.model, backbone=name) for name in args.names or known_backbones()]
    for options in choices:
        find_backbone(options.backbone).check(options)  # all of them before the first is measured
    yardstick = Yardstick(config.model.dtype if jax.default_backend() != "cpu" else "float32")
    measured = [
        measure_backbone(options, batch, yardstick, seconds=args.seconds)
        for options in choices
        for batch in sorted(args.batch)
    ]
    return config, sorted(measured, key=lambda row: row["gflop"])


def measure_backbone(options: ModelOptions, batch: int, yardstick: Yardstick, *, seconds: float) -> Row:
    """Measures the forward pass of `batch` images of SIDE x SIDE pixels, with random weights, nothing frozen away."""
    net: Any = find_backbone(options.backbone).build(options)
    image = jax.random.normal(jax.random.key(1), (batch, SIDE, SIDE, 3))
    extent = jnp.full((batch, 2), SIDE, jnp.int32)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), None)
    traced = jax.jit(net.apply).trace(variables, image, extent)
    program = traced.lower().compile()
    features = traced.out_info
    row: Row = {
        "backbone": options.backbone,
        "batch": batch,
        "parameters_m": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) / 1e6,
        "channels": ", ".join(str(features[f"res{stage}"].shape[-1]) for stage in STAGES),
        "gflop": traced_flops(traced.jaxpr) / 1e9,
    }
    with yardstick.around(row):
        timing = time_runs(lambda: program(variables, image, extent), seconds=seconds)
    return against_matmul(row | timing.row())
