"""`curves`: losses, learning rate and PQ of one or more runs as one image, from their `metrics.jsonl`."""

from __future__ import annotations

import argparse
import pathlib

from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.curves import draw, read_metrics


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="working directories of training runs")
    parser.add_argument("--output", required=True, help="the image to write (.png, .svg or .pdf)")


def main(args: argparse.Namespace) -> int:
    if args.config_argv:
        raise UserError("curves takes no config: it draws what the runs have written")
    output = pathlib.Path(args.output)
    if output.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--output {output}: must end in .png, .svg or .pdf")
    runs = [(pathlib.Path(workdir).name, read_metrics(pathlib.Path(workdir))) for workdir in args.workdirs]
    draw(runs, output)
    print(f"{output}: {len(runs)} run(s)")
    return 0
