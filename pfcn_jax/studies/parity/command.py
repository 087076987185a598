"""`parity`: every recorded tensor of a reference data directory against ours; exit status 1 if one is not ok."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

import jax

from pfcn_jax.errors import UserError
from pfcn_jax.studies.parity.backbones import check_backbones
from pfcn_jax.studies.parity.gradients import check_gradients
from pfcn_jax.studies.parity.independence import check_independence
from pfcn_jax.studies.parity.network import check_all_networks
from pfcn_jax.studies.parity.pictures import check_pictures
from pfcn_jax.studies.parity.prediction import check_prediction
from pfcn_jax.studies.parity.reference import Check
from pfcn_jax.studies.parity.schedule import check_schedule
from pfcn_jax.studies.parity.training import check_training
from pfcn_jax.utils.atomic import write_json

Area = Callable[[pathlib.Path], list[Check]]
AREAS: dict[str, Area] = {
    "network": check_all_networks,
    "training": check_training,
    "gradients": check_gradients,
    "prediction": check_prediction,
    "schedule": check_schedule,
    "backbones": check_backbones,
}
TITLES = {
    "network": "Features of every layer",
    "training": "Targets, guided kernels and losses",
    "gradients": "Gradients and one optimiser step",
    "prediction": "Prediction: picks, kernels, masks, segments",
    "schedule": "Learning rates",
    "backbones": "Features of EfficientNet-Lite, ConvNeXt and Swin",
    "pictures": "Pictures and labels: resize, flip, pad",
    "independence": "A photo alone against the photo in a mixed batch on a larger canvas",
}
NOTES = {
    "gradients": [
        "",
        "Gradients jump where a ReLU switches, so a rounding decides single elements. The step is computed with the",
        "parameters as they are and, if an element misses, again with every parameter moved by at most one unit in its",
        "last place (up to 16 times); all gradients must be right in one and the same run. Losses are always compared",
        "with the parameters as they are.",
    ],
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference", required=True, help="the reference data directory")
    parser.add_argument("--pictures", default="", help="the picture data directory (default: $PFCN_DATA_DIR)")
    parser.add_argument("--output", help="write all checks as a JSON list to this file")
    parser.add_argument("--markdown", help="write a table per area to this file (docs/parity.md)")
    parser.add_argument("--areas", nargs="+", choices=[*AREAS, "pictures", "independence"], help="only these areas")
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
    if args.areas != ["backbones"] and not (reference / "tensors").is_dir():
        raise UserError(f"{reference}: no folder 'tensors' here; expected a reference data directory")
    data = args.pictures or os.environ.get("PFCN_DATA_DIR", "")
    areas: dict[str, Area] = dict(AREAS)
    if not args.areas and not (reference / "backbones").is_dir():
        print(f"backbones: not checked, there is no folder 'backbones' in {reference}")
        del areas["backbones"]
    if data and (pathlib.Path(data) / "two_photos").is_dir():
        areas["pictures"] = lambda reference: check_pictures(reference, pathlib.Path(data))
    elif not args.areas or "pictures" in args.areas:
        print("pictures: not checked, there is no picture data directory (--pictures or PFCN_DATA_DIR)")
    if args.areas and "independence" in args.areas:
        if not (pathlib.Path(data) / "coco_sample").is_dir():
            raise UserError("independence needs the photos of 'coco_sample': give --pictures or PFCN_DATA_DIR")
        areas["independence"] = lambda reference: check_independence(
            reference,
            pathlib.Path(data),
            checkpoint=args.checkpoint,
            short_side=args.short_side,
            max_photos=args.max_photos,
        )
    results: dict[str, list[Check]] = {}
    with jax.default_matmul_precision("highest"):
        for name, area in areas.items():
            if args.areas and name not in args.areas:
                continue
            results[name] = area(reference)
            failed = [check for check in results[name] if not check.ok]
            print(f"{name:11s} {len(results[name]):5d} tensors, {len(failed)} not ok", flush=True)
            for check in failed:
                print(f"  {check.file} {check.tensor}: {check.max_abs_diff:.3g}, allowed {check.tolerance:.3g}")
    checks = [check for part in results.values() for check in part]
    if not checks:
        raise UserError(f"{reference}: nothing to compare was found")
    if args.output:
        write_json(args.output, [dataclasses.asdict(check) for check in checks])
    if args.markdown:
        pathlib.Path(args.markdown).write_text(markdown(results))
    return 0 if all(check.ok for check in checks) else 1


def markdown(results: dict[str, list[Check]]) -> str:
    """A table per area: for each tensor the largest difference over all files, and the share of the allowed one."""
    lines = [
        "# Parity with the original implementation",
        "",
        "Made by `python -m pfcn_jax.main parity --reference DIR --markdown docs/parity.md` (float32, CPU).",
        "For each tensor, over all recorded files: the largest difference, what is allowed in that file, and how much",
        "of it is used.",
        "Allowed for features: 3 times the difference between the original's own float32 and float64 runs, or 1e-5 of",
        "the tensor's largest value, whichever is larger.",
        "",
    ]
    for name, checks in results.items():
        ok = sum(check.ok for check in checks)
        lines += [f"## {TITLES[name]}", "", f"{ok} of {len(checks)} comparisons ok.", *NOTES.get(name, []), ""]
        lines += ["| tensor | files | largest difference | allowed | used |", "|---|---|---|---|---|"]
        lines += [_row(tensor, group) for tensor, group in _by_tensor(checks).items()]
        lines.append("")
    return "\n".join(lines)


def _by_tensor(checks: Sequence[Check]) -> dict[str, list[Check]]:
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(check.tensor, []).append(check)
    return groups


def _row(tensor: str, checks: list[Check]) -> str:
    def used(check: Check) -> float:
        return check.max_abs_diff / check.tolerance if check.tolerance else float(check.max_abs_diff > 0)

    worst = max(checks, key=used)
    share = f"{100 * used(worst):.0f} %" if worst.ok else "**not ok**"
    return f"| {tensor} | {len(checks)} | {worst.max_abs_diff:.2g} | {worst.tolerance:.2g} | {share} |"
