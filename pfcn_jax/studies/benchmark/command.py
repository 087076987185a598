"""`benchmark PART`: what the programs cost here, beside a matrix product measured in the same run.

  network    the heads            post    everything after them      predict   from uint8 images to ids on the host
  train      the training step    input   the input pipeline         dice, layers   each form beside the plain one
  backbones  parameters, operations and time of the backbones' forward pass at 512 x 512 (docs/backbones.md)
  scenes     everything after the heads on synthetic heads with a known number of instances
  scaling    no measurement: time of a training over numbers of chips, from counted operations and the
             assumptions that the flags state (docs/scaling.md)
  tracking   no times: VPQ and STQ of tracked drawn films, by masks and by kernels (docs/predict.md)
  table      JSON files of earlier runs as tables (--markdown)

Times are medians with the 95th percentile; "share of matmul" is the rate of the program's matrix products and
convolutions over that of a plain product, measured before and after. Scans count as often as they run, loops whose
length follows from the data once.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
from typing import Any

import jax
import jax.numpy as jnp

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config, config_hash
from pfcn_jax.errors import UserError
from pfcn_jax.studies.benchmark import backbones, forms, loading, prediction, scaling, tracking, training
from pfcn_jax.studies.benchmark.measure import Row, Yardstick
from pfcn_jax.studies.benchmark.scenes_post import scene_rows
from pfcn_jax.studies.benchmark.tables import markdown, terminal
from pfcn_jax.studies.sections import write_section
from pfcn_jax.utils.atomic import write_json
from pfcn_jax.utils.environment import environment

PARTS = (
    *("network", "post", "predict", "train", "input", "dice", "layers"),
    *("backbones", "scenes", "scaling", "tracking", "table"),
)
_SECONDS = 10.0
_DICE_MAP, _LAYERS_CANVAS = (200, 336), (512, 768)  # an image of 800 x 1344 at 1/4; an image


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("files", nargs="*", metavar="JSON", help="`table`: results to read")
    parser.add_argument("--checkpoint", help="weights: a checkpoint or a working directory (default: random ones)")
    parser.add_argument("--reference", help="weights: the original's, of a reference data directory")
    parser.add_argument(
        "--enhanced",
        action=argparse.BooleanOptionalAction,
        help="with --reference: the enhanced model",
    )
    parser.add_argument("--images", nargs="+", metavar="PATH", help="files and folders (default: the config's data)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="batch sizes (default: 1)")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], help="`input`: worker processes to try")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="how long to repeat each measurement")
    parser.add_argument("--output", help="write everything as JSON to this file")
    parser.add_argument("--markdown", metavar="FILE:NAME", help="write the table into section NAME of a document")
    backbones.add_flags(parser)
    scaling.add_flags(parser)


def main(args: argparse.Namespace) -> int:
    if any(batch < 1 for batch in args.batch):
        raise UserError(f"--batch {' '.join(map(str, args.batch))}: must be at least 1")
    result = _read(args.files) if args.part == "table" else _measure(args)
    print(terminal(result["rows"]))
    if args.output:
        write_json(args.output, result)
    if args.markdown:
        path, _, name = args.markdown.rpartition(":")
        write_section(pathlib.Path(path), name, markdown(result))
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    place = environment()  # first: the load average is that of the others
    config, weights, rows = _rows(args)
    return {
        "part": args.part,
        "command": _command(args),
        "environment": place,
        "config": config.name,
        "config_hash": config_hash(config),
        "weights": weights,
        "rows": rows,
    }


def _rows(args: argparse.Namespace) -> tuple[Config, str, list[Row]]:
    if args.part in ("network", "post", "predict"):
        subject, rows = prediction.rows(args.part, args)
        return subject.config, subject.weights, rows
    if args.part == "train":
        subject, rows = training.rows(args)
        return subject.config, subject.weights, rows
    if args.part == "input":
        config, rows = loading.rows(args)
        return config, "none", rows
    if args.part == "backbones":
        config, rows = backbones.rows(args)
        return config, "random", rows
    if args.part == "scaling":
        config, rows = scaling.rows(args)
        return config, "none", rows
    if args.part == "tracking":
        return tracking.rows(args)
    config = from_command_line(args.config_argv, Config())
    yardstick, channels = Yardstick(), config.model.encoder_channels
    if args.part == "scenes":
        return config, "none", scene_rows(yardstick, seconds=args.seconds)
    if args.part == "dice":
        rows = forms.dice_rows(map_shape=_DICE_MAP, channels=channels, yardstick=yardstick, seconds=args.seconds)
    else:
        rows = forms.layer_rows(
            canvas=_LAYERS_CANVAS,
            channels=config.model.head_channels,
            dtype=jnp.dtype(config.model.dtype),
            yardstick=yardstick if jax.default_backend() == "cpu" else Yardstick(config.model.dtype),
            seconds=args.seconds,
        )
    return config, "random", rows


def _command(args: argparse.Namespace) -> str:
    """The command line that repeats a run, with folders by their last name."""
    words = ["python", "-m", "pfcn_jax.main", "benchmark", args.part]
    names = ["checkpoint", "reference", "images", "batch"]
    of_part = {"input": ["workers"], "backbones": ["names"], "scaling": list(scaling.FLAGS)}
    names += of_part.get(args.part, [])
    for name in names:
        value = getattr(args, name.replace("-", "_"))
        if value is None or (name == "batch" and args.part == "scaling"):
            continue
        values = [str(entry) for entry in (value if isinstance(value, list) else [value])]
        words += [f"--{name}", *(pathlib.Path(entry).name or entry for entry in values)]
    if args.seconds != _SECONDS and args.part != "scaling":
        words += ["--seconds", f"{args.seconds:g}"]
    if args.enhanced is not None:
        words.append("--enhanced" if args.enhanced else "--no-enhanced")
    for word in args.config_argv:
        key, _, value = word.partition("=")
        words.append(f"{key}={pathlib.Path(value).name if value.startswith('/') else value}")
    return shlex.join(words)


def _read(files: list[str]) -> dict[str, Any]:
    """Results of earlier runs of one part; the rows of all, the circumstances of the first."""
    if not files:
        raise UserError("`table` needs JSON files that earlier runs wrote with --output")
    try:
        results = [json.loads(pathlib.Path(file).read_text()) for file in files]
        return {**results[0], "rows": [row for result in results for row in result["rows"]]}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{' '.join(files)}: no results of `benchmark` ({error})") from error
