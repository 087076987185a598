"""`compile`: the programs of a config, compiled for TPUs by the TPU's own compiler; no TPU is needed.

Says for each program whether it compiles and fits, in how long, and what the compiler expects it to cost: memory,
cycles by kind and by module, the dearest lines, collectives, and an estimate of its time (docs/tpu.md).
Needs libtpu: pip install -r requirements-tpu.txt.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
import time
from importlib import metadata
from typing import Any

import jax

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.data.classes import ClassTable, coco_classes
from pfcn_jax.data.inputs import open_training
from pfcn_jax.errors import UserError
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.parallel.sharding import data_mesh
from pfcn_jax.studies.compile.chips import Slice, devices_of, find_slice, require_compiler
from pfcn_jax.studies.compile.costs import program_costs
from pfcn_jax.studies.compile.hlo import parse
from pfcn_jax.studies.compile.programs import PROGRAMS, Job, canvas_of, trace
from pfcn_jax.studies.compile.report import Row, estimate, largest_that_fit, markdown, summarize, terminal
from pfcn_jax.studies.flops import traced_flops
from pfcn_jax.studies.sections import write_section
from pfcn_jax.types import SIZE_DIVISOR
from pfcn_jax.utils.atomic import write_json
from pfcn_jax.utils.stderr import print_lines


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--topology", nargs="+", default=["v5e:2x2"], help="slices, as v5e:2x2 or v5p:2x2x1")
    parser.add_argument("--program", nargs="+", choices=PROGRAMS, default=["train", "predict"])
    parser.add_argument("--batch-per-chip", nargs="+", type=int, default=[1], help="images on each chip (default: 1)")
    parser.add_argument(
        "--canvas", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="default: the first of the config"
    )
    parser.add_argument("--output", help="write everything as JSON to this file")
    parser.add_argument("--hlo", metavar="DIR", help="write the compiled programs as HLO text into this folder")
    parser.add_argument("--read", nargs="+", metavar="JSON", help="compile nothing: show what earlier runs wrote")
    parser.add_argument("--markdown", metavar="FILE:NAME", help="write the table into section NAME of a document")


def main(args: argparse.Namespace) -> int:
    result = _read(args.read) if args.read else _compile(args)
    print(terminal(result["rows"]))
    if args.output:
        write_json(args.output, result)
    if args.markdown:
        path, _, name = args.markdown.rpartition(":")
        write_section(pathlib.Path(path), name, markdown(result), kind="compile")
    wanted = {(row["topology"], row["program"]) for row in result["rows"]}
    fitting = {(row["topology"], row["program"]) for row in largest_that_fit(result["rows"])}
    return 0 if wanted == fitting else 1


def _compile(args: argparse.Namespace) -> Row:
    slices = [find_slice(name) for name in args.topology]
    if any(images < 1 for images in args.batch_per_chip):
        raise UserError(f"--batch-per-chip {' '.join(map(str, args.batch_per_chip))}: must be at least 1")
    if args.canvas and any(side < SIZE_DIVISOR or side % SIZE_DIVISOR for side in args.canvas):
        raise UserError(f"--canvas {args.canvas[0]} {args.canvas[1]}: both sides must be multiples of {SIZE_DIVISOR}")
    config = from_command_line(args.config_argv, Config())
    require_compiler()
    model = build_model(config.model, *_classes(config).counts)
    names = abstract_variables(model)["params"]
    rows = []
    for found in slices:
        mesh = data_mesh(devices_of(found))
        for program in args.program:
            canvas = tuple(args.canvas) if args.canvas else canvas_of(config, program)
            for images in sorted(args.batch_per_chip):
                job = Job(program, config, model, mesh, images, canvas)
                print_lines(f"compiling {program} for {found.name}, {images} a chip")
                rows.append(_row(job, found, names, args.hlo))
    return {
        "commands": [_command(args)],
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: metadata.version(name) for name in ("jax", "libtpu")},
        "config": config.name,
        "rows": rows,
    }


def _classes(config: Config) -> ClassTable:
    if config.data.source != "scenes" and not pathlib.Path(config.data.root).exists():
        print_lines(f"{config.data.root}: not there, so the heads get the classes of COCO")
        return coco_classes()
    return open_training(config.data).classes


def _row(job: Job, found: Slice, names: Any, hlo: str | None) -> Row:
    """Compiles one program and says what it costs."""
    begin, used = time.perf_counter(), time.process_time()
    traced = trace(job)
    lowered = traced.lower()
    traced_at = time.perf_counter()
    row: Row = {
        "topology": found.name,
        "chips": found.chips,
        "program": job.program,
        "images_per_chip": job.images,
        "canvas": f"{job.canvas[0]}x{job.canvas[1]}",
        "lower_s": traced_at - begin,
        "gflop_per_image": traced_flops(traced.jaxpr) / job.batch / 1e9,
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error).splitlines()[0]
        fits = {"compiles": "RESOURCE_EXHAUSTED" in message, "fits": False, "error": message}
        return row | _spent(traced_at, used) | fits
    row |= _spent(traced_at, used) | {"compiles": True} | _memory(compiled, found)
    text = compiled.as_text() or ""
    if hlo:
        path = pathlib.Path(hlo) / f"{job.program}_{found.name.replace(':', '_')}_{job.images}.hlo"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    row |= summarize(*program_costs(parse(text), names))
    return row | estimate(row, found.chip, images=job.images, batch=job.batch)


def _spent(begin: float, used: float) -> Row:
    """Seconds since `begin`, and of all cores (tracing included): the figure to trust on a busy machine."""
    return {"compile_s": time.perf_counter() - begin, "cpu_s": time.process_time() - used}


def _memory(compiled: jax.stages.Compiled, found: Slice) -> Row:
    """HBM of one chip, by the compiler's plan."""
    plan: Any = compiled.memory_analysis()
    parts = {
        "arguments": plan.argument_size_in_bytes,
        "outputs": plan.output_size_in_bytes - plan.alias_size_in_bytes,
        "temporary": plan.temp_size_in_bytes,
        "code": plan.generated_code_size_in_bytes,
    }
    total = sum(parts.values())
    fits = total <= found.chip.hbm_bytes
    return {"hbm_bytes": parts, "hbm_gb": total / 1e9, "fits": fits}


def _command(args: argparse.Namespace) -> str:
    """The command line that repeats a run."""
    words = ["python", "-m", "pfcn_jax.main", "compile"]
    for name in ("topology", "program", "batch_per_chip", "canvas"):
        if value := getattr(args, name):
            words += [f"--{name.replace('_', '-')}", *map(str, value)]
    for word in args.config_argv:
        key, _, value = word.partition("=")
        words += ["--config", value] if key == "--config" else [word]
    return shlex.join(words)


def _read(files: list[str]) -> Row:
    """The rows of earlier runs; date and versions are those of the last."""
    try:
        results = [json.loads(pathlib.Path(file).read_text()) for file in files]
        commands = [command for result in results for command in result["commands"]]
        return {**results[-1], "commands": commands, "rows": [row for result in results for row in result["rows"]]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--read {' '.join(files)}: no results of `compile` ({error})") from error
