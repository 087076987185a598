"""`train`: runs a config to its end, evaluates it, writes checkpoints and pictures; started again, it continues."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

import jax

from pfcn_jax.config.schema import from_command_line
from pfcn_jax.parallel import distributed
from pfcn_jax.training.signals import StopRequest
from pfcn_jax.training.trainer import Trainer
from pfcn_jax.training.workdir import keep_compiled
from pfcn_jax.utils.stderr import print_lines


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", help="where checkpoints, metrics and pictures go (default: runs/<config name>)")
    parser.add_argument("--init-from", help="a checkpoint to start from (short for --config.train.init_from)")
    distributed.add_flags(parser)


def main(args: argparse.Namespace) -> int:
    distributed.join(args)
    config = from_command_line(args.config_argv)
    if args.init_from:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=args.init_from))
    workdir = pathlib.Path(args.workdir or pathlib.Path("runs") / config.name)
    with StopRequest() as stop:  # also while the data are opened and a checkpoint is read
        if jax.default_backend() != "cpu":  # another machine's program for a CPU may hold instructions that it lacks
            keep_compiled(workdir)
        pq = Trainer(config, workdir).run(stop).pq
    if jax.process_index() == 0:
        scores = f"PQ {pq.all.PQ:.2f}  PQ_th {pq.things.PQ:.2f}  PQ_st {pq.stuff.PQ:.2f}"
        print_lines(f"{scores}  ({workdir}/evaluation.json)", to=sys.stdout)
    return 0
