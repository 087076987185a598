"""`parity`: every recorded tensor of a reference data directory against ours; exit status 1 if one is not ok."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Callable

import jax

from pfcn_jax.errors import UserError
from pfcn_jax.studies.parity.backbones import check_backbones
from pfcn_jax.studies.parity.gradients import check_gradients
from pfcn_jax.studies.parity.images import check_images
from pfcn_jax.studies.parity.independence import check_independence
from pfcn_jax.studies.parity.network import check_all_networks
from pfcn_jax.studies.parity.page import TITLES, Section, write_page
from pfcn_jax.studies.parity.prediction import check_prediction
from pfcn_jax.studies.parity.reference import Check
from pfcn_jax.studies.parity.schedule import check_schedule
from pfcn_jax.studies.parity.trace_page import IMAGE, draw_traces, trace_lines
from pfcn_jax.studies.parity.trace_study import IN_FLOAT64, study_traces
from pfcn_jax.studies.parity.trace_variants import VARIANTS
from pfcn_jax.studies.parity.training import check_training
from pfcn_jax.utils.atomic import write_json

Area = Callable[[pathlib.Path], Section]


def _table(check: Callable[[pathlib.Path], list[Check]]) -> Area:
    return lambda reference: Section(check(reference))


AREAS: dict[str, Area] = {
    "network": _table(check_all_networks),
    "training": _table(check_training),
    "gradients": _table(check_gradients),
    "prediction": _table(check_prediction),
    "schedule": _table(check_schedule),
    "backbones": _table(check_backbones),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference", required=True, help="the reference data directory")
    parser.add_argument(
        "--images", default="", metavar="DIR", help="the image data directory (default: $PFCN_DATA_DIR)"
    )
    parser.add_argument("--output", help="write all checks as a JSON list to this file")
    parser.add_argument(
        "--markdown", help="write a section per area to this file (docs/parity.md); others stay as they are"
    )
    parser.add_argument("--areas", nargs="+", choices=TITLES, help="only these areas")
    group = parser.add_argument_group("trace (only when named in --areas: about a minute per canvas, and the steps)")
    group.add_argument("--traces", nargs="+", default=[], help="only these files, without .npz")
    group.add_argument(
        "--variants",
        nargs="+",
        default=[],
        metavar="TRACE/VARIANT",
        help=f"also replays a trace with one thing changed: {', '.join((*VARIANTS, IN_FLOAT64))}",
    )
    group = parser.add_argument_group("independence (only when named in --areas: each photo size is compiled)")
    group.add_argument(
        "--checkpoint", type=pathlib.Path, help="trained weights in place of the reference's random ones"
    )
    group.add_argument("--short-side", type=int, default=320, help="photos are resized to this")
    group.add_argument("--max-photos", type=int, default=0, help="only the first so many of the 50")


def main(args: argparse.Namespace) -> int:
    keys = [word for word in args.config_argv if word.startswith("--config.")]
    if keys:
        raise UserError(f"{keys[0]}: parity takes no config, every recorded file says its own")
    reference = pathlib.Path(args.reference)
    if not (reference / "tensors").is_dir() and not set(args.areas or ["all"]) <= {"backbones", "trace"}:
        raise UserError(f"{reference}: no folder 'tensors' here; expected a reference data directory")
    sections: dict[str, Section] = {}
    with jax.default_matmul_precision("highest"):
        for name, area in _chosen(args).items():
            sections[name] = area(reference)
            checks = sections[name].checks
            failed = [check for check in checks if not check.ok]
            print(f"{name:11s} {len(checks):5d} tensors, {len(failed)} not ok", flush=True)
            for check in failed:
                print(f"  {check.file} {check.tensor}: {check.max_abs_diff:.3g}, allowed {check.tolerance:.3g}")
    checks = [check for section in sections.values() for check in section.checks]
    if not checks:
        raise UserError(f"{reference}: nothing to compare was found")
    if args.output:
        write_json(args.output, [dataclasses.asdict(check) for check in checks])
    if args.markdown:
        write_page(pathlib.Path(args.markdown), sections)
    return 0 if all(check.ok for check in checks) else 1


def _chosen(args: argparse.Namespace) -> dict[str, Area]:
    """The areas that are checked: those named by `--areas`, else all whose data are there and that are not long."""
    data = pathlib.Path(args.images or os.environ.get("PFCN_DATA_DIR", ""))
    areas: dict[str, Area] = dict(AREAS)
    if data.name and (data / "two_photos").is_dir():
        areas["pictures"] = _table(lambda reference: check_images(reference, data))
    elif not args.areas or "pictures" in args.areas:
        print("pictures: not checked, there is no image data directory (--images or PFCN_DATA_DIR)")
    if not args.areas:
        if not (pathlib.Path(args.reference) / "backbones").is_dir():
            print(f"backbones: not checked, there is no folder 'backbones' in {args.reference}")
            del areas["backbones"]
        return areas
    areas["trace"] = lambda reference: _traces(reference, args)
    if "independence" in args.areas:
        if not (data / "coco_sample").is_dir():
            raise UserError("independence needs the photos of 'coco_sample': give --images or PFCN_DATA_DIR")
        areas["independence"] = _table(
            lambda reference: check_independence(
                reference,
                data,
                checkpoint=args.checkpoint,
                short_side=args.short_side,
                max_photos=args.max_photos,
            )
        )
    return {name: area for name, area in areas.items() if name in args.areas}


def _traces(reference: pathlib.Path, args: argparse.Namespace) -> Section:
    outcomes = study_traces(reference, names=args.traces, variants=args.variants)
    return Section(
        [check for outcome in outcomes for check in outcome.checks],
        trace_lines(outcomes),
        lambda folder: draw_traces(outcomes, folder / IMAGE),
    )
