"""`export`: a trained model for people who do not have this package. The format follows from the ending of --output.

model.pfcn         the whole program, image to panoptic ids, for CPU, GPU and TPU; runs with JAX alone
model.safetensors  the parameters alone, with config and classes; `load` and --checkpoint read it
model.onnx         the network for one canvas, and beside it the script that makes segments; needs the package onnx
name (no ending)   an Orbax checkpoint of the parameters, without the state of training
"""

from __future__ import annotations

import argparse
import pathlib

from pfcn_jax.checkpoints.loading import load_with_config
from pfcn_jax.errors import UserError
from pfcn_jax.export.writing import (
    ENDINGS,
    OUTPUT_SIDES,
    onnx_shape,
    program_shapes,
    write_onnx,
    write_parameters,
    write_program,
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, a working directory, or .safetensors")
    parser.add_argument("--output", required=True, help="what to write")
    parser.add_argument("--format", choices=sorted(ENDINGS.values()), help="default: by the ending of --output")
    parser.add_argument(
        "--output-sides", type=int, nargs="+", default=OUTPUT_SIDES, metavar="PIXELS",
        help="original images up to these sides: a program for each and each canvas (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(1,), metavar="N", help="default: 1")
    parser.add_argument(
        "--canvas", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of ONNX; default: the first of the config's"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="IMAGES",
        help="run what was written beside the model on these; 1 if they differ",
    )
    parser.add_argument("--report", metavar="JSON", help="where --compare writes what it found, with sizes and times")


def main(args: argparse.Namespace) -> int:
    output = pathlib.Path(args.output)
    kind = args.format or ENDINGS.get(output.suffix.lower())
    if kind is None:
        raise UserError(f"{output}: unknown ending; name a --format ({', '.join(sorted(ENDINGS.values()))})")
    if kind in ("safetensors", "onnx") and output.suffix.lower() != f".{kind}":
        raise UserError(
            f"{output}: what reads {kind} goes by the ending; name it {output.with_suffix(f'.{kind}').name}"
        )
    for name in ("output_sides", "batch_sizes", "canvas"):
        if min(getattr(args, name) or (1,)) < 1:
            raise UserError(f"--{name.replace('_', '-')}: must be at least 1")
    if args.report and not args.compare:
        raise UserError("--report: what --compare finds; name images to --compare")
    loaded = load_with_config(pathlib.Path(args.checkpoint), args.config_argv)
    if kind == "program":
        shapes = program_shapes(loaded.config, args.output_sides, args.batch_sizes)
        print(f"{output}: {write_program(output, loaded, shapes)}")
    elif kind == "onnx":
        shape = onnx_shape(loaded.config, args.canvas, args.output_sides)
        print(f"{output}: {write_onnx(output, loaded, shape)}")
    else:
        print(f"{output}: {write_parameters(output, loaded, kind)}")
    if not args.compare:
        return 0
    from pfcn_jax.export.compare import compare_and_report

    return compare_and_report(output, kind, loaded, args.compare, args.report)
