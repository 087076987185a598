"""`train`: trains a config to its last step and evaluates it; started again, it resumes."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

import jax

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.metrics.protocol import format_score
from pfcn_jax.parallel import distributed
from pfcn_jax.training.collaborators import Collaborators
from pfcn_jax.training.signals import StopRequest
from pfcn_jax.training.trainer import DEFAULTS, Trainer
from pfcn_jax.training.workdir import cache_compiled
from pfcn_jax.utils.stderr import print_lines


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", help="where checkpoints, metrics and images go (default: runs/<config name>)")
    parser.add_argument("--init-from", help="a checkpoint to start from (short for --config.train.init_from)")
    distributed.add_flags(parser)


def main(args: argparse.Namespace, collaborators: Collaborators = DEFAULTS) -> int:
    """Runs the command; returns 0, or raises (see `Trainer.run`)."""
    distributed.join(args)
    config = from_command_line(args.config_argv)
    if args.init_from:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=args.init_from))
    workdir = pathlib.Path(args.workdir or pathlib.Path("runs") / config.name)
    with StopRequest() as stop:  # listens while data are opened and a checkpoint is restored, too
        if jax.default_backend() != "cpu":  # a CPU program of another machine may use instructions that this one lacks
            cache_compiled(workdir)
        figures = Trainer(config, workdir, collaborators).run(stop).figures
    if jax.process_index() == 0:
        scores = "  ".join(f"{name} {format_score(figures[name])}" for name in ("PQ", "PQ_th", "PQ_st"))
        print_lines(f"{scores}  ({workdir}/evaluation.json)", to=sys.stdout)
    return 0
