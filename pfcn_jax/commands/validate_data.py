"""`validate-data`: reads every image and label of a data set and says whether training would work.

Exit status: 0 if it would (warnings are told), 1 if something would stop it or teach wrong things; with --strict 1 for
warnings, too.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.example import DataError, Source
from pfcn_jax.data.image_files import compose
from pfcn_jax.data.inputs import evaluation_recipe, find_split, open_split, training_recipe
from pfcn_jax.data.kinds import KINDS, WARNING
from pfcn_jax.data.panoptic_json import Declared
from pfcn_jax.data.registry import list_splits
from pfcn_jax.data.validate import ExampleReport, Finding, Limits, check_canvases, check_example, check_instances
from pfcn_jax.errors import PAGE
from pfcn_jax.utils.atomic import write_json
from pfcn_jax.utils.progress import ProgressDisplay

_SHOWN, _KEPT = 5, 1000  # findings of a kind in the text and in the JSON


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--splits", nargs="+", help="splits to read (default: those that the config trains on and scores)"
    )
    parser.add_argument("--output", help="write the report as JSON to this file")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="reading threads")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")


def main(args: argparse.Namespace) -> int:
    config = from_command_line(args.config_argv)
    report = validate(config, args.splits, workers=args.workers)
    print(format_report(report))
    if args.output:
        write_json(args.output, report)
    return 0 if report["errors"] + (report["warnings"] if args.strict else 0) == 0 else 1


def validate(config: Config, splits: Sequence[str] | None = None, *, workers: int = 1) -> dict[str, Any]:
    """Reads the splits and returns the report as it is written to JSON."""
    findings: list[Finding] = []
    readers: dict[str, tuple[Source, Declared | None]] = {}
    parts: dict[str, Any] = {}
    digests: dict[str, dict[bytes, str]] = {}
    try:
        training = config.data.train_split or find_split(config.data, "train")
        names = list(splits or dict.fromkeys([training, config.data.eval_split or find_split(config.data, "val")]))
    except DataError as error:
        findings.append(Finding(error.kind, str(error), ""))
        names, training = list(splits or list_splits_or_none(config)), ""
    for name in names:
        try:
            readers[name] = _open(config, name, findings)
        except DataError as error:
            findings.append(Finding(error.kind, str(error), name))
    for name, (source, declared) in readers.items():
        limits = _limits(config, source.classes, training=name == training)
        findings += check_canvases(source, limits, name)
        if not source.classes.num_things:
            findings.append(Finding("no-thing", f"{len(source.classes)} classes, all stuff", name))
        reports, found = _read_all(source, name, limits, declared, workers)
        findings += found
        readable = [report for report in reports if report is not None]
        findings += check_instances(source.classes, readable, name, training=name == training)
        parts[name] = summary(source.classes, reports, len(source))
        findings += [
            Finding("class-empty", str(row["name"]), name) for row in parts[name]["classes"] if not row["segments"]
        ]
        digests[name] = {}
        for index, report in enumerate(reports):
            if report is not None:
                other = digests[name].setdefault(report.digest, source.info(index).file_name)
                if other != source.info(index).file_name:
                    findings.append(Finding("picture-repeated", f"{source.info(index).file_name} = {other}", name))
    findings += _compare_splits(readers, digests)
    findings += _unlisted_files(readers)
    return {
        "source": config.data.source,
        "root": config.data.root,
        "usable": not any(finding.severity != WARNING for finding in findings),
        "errors": sum(finding.severity != WARNING for finding in findings),
        "warnings": sum(finding.severity == WARNING for finding in findings),
        "splits": parts,
        "findings": _grouped(findings),
    }


def list_splits_or_none(config: Config) -> list[str]:
    """The splits that are there, if any."""
    try:
        return list_splits(config.data.source, config.data.root)
    except DataError:
        return []


def _open(config: Config, split: str, findings: list[Finding]) -> tuple[Source, Declared | None]:
    """The source; a COCO-panoptic folder is opened past the errors in its JSON, which are reported."""
    if config.data.source != "coco":
        return open_split(config.data, split, 0), None
    source = CocoFolder(
        config.data.root, split, report=lambda kind, message: findings.append(Finding(kind, message, split))
    )
    return source, source.declared


def _limits(config: Config, classes: ClassTable, *, training: bool) -> Limits:
    data = config.data
    recipe = training_recipe(data, classes) if training else evaluation_recipe(data)
    return Limits(
        smallest=lambda size: recipe.resized_range(size)[0],
        largest=lambda size: recipe.resized_range(size)[1],
        on_canvas=recipe.largest_size,
        canvases=data.canvases if training else data.eval_canvases,
        max_segments=data.max_segments,
        max_positives=config.targets.max_positives,
        max_things=config.inference.max_things,
        level_ranges=config.targets.level_ranges,
    )


def _read_all(
    source: Source, split: str, limits: Limits, declared: Declared | None, workers: int
) -> tuple[list[ExampleReport | None], list[Finding]]:
    reports: list[ExampleReport | None] = []
    findings: list[Finding] = []
    display = ProgressDisplay(len(source), label=f"read {split}")
    check = functools.partial(check_example, source, limits=limits, split=split, declared=declared)
    every = max(len(source) // 10, 1)
    with concurrent.futures.ThreadPoolExecutor(max(workers, 1)) as pool:
        for done, (report, found) in enumerate(pool.map(check, range(len(source))), start=1):
            reports.append(report)
            findings += found
            if done % every == 0 or done == len(source):
                display.update(done, f"{len(findings)} findings")
    display.close()
    return reports, findings


def summary(classes: ClassTable, reports: Sequence[ExampleReport | None], images: int) -> dict[str, Any]:
    """Counts over the readable examples of a split."""
    readable = [report for report in reports if report is not None]
    columns = {
        name: np.zeros(len(classes), np.int64) for name in ("segments", "crowds", "pictures", "pixels", "vanishing")
    }
    for report in readable:
        for name, weight in (
            ("segments", None),
            ("crowds", report.is_crowd),
            ("pixels", report.area),
            ("vanishing", report.vanishing),
        ):
            columns[name] += np.bincount(report.class_id, weights=weight, minlength=len(classes)).astype(np.int64)
        columns["pictures"][np.unique(report.class_id)] += 1
    sizes = collections.Counter(report.size for report in readable)
    pixels = sum(height * width * count for (height, width), count in sizes.items())
    return {
        "pictures": images,
        "readable": len(readable),
        "segments": int(columns["segments"].sum()),
        "labelled_share": round(float(columns["pixels"].sum() / max(pixels, 1)), 4),
        "sizes": [{"height": h, "width": w, "pictures": n} for (h, w), n in sizes.most_common(5)],
        "different_sizes": len(sizes),
        "segments_per_picture": _spread([len(report.class_id) for report in readable]),
        "instances_per_picture": _spread([report.instances for report in readable]),
        "positives_per_picture": _spread([report.positives for report in readable]),
        "vanishing": int(columns["vanishing"].sum()),
        "classes": [
            {
                "name": classes.names[c],
                "category_id": classes.category_ids[c],
                "isthing": classes.is_thing[c],
                **{name: int(column[c]) for name, column in columns.items()},
            }
            for c in range(len(classes))
        ],
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {"mean": 0.0, "median": 0.0, "p95": 0.0, "max": 0.0}
    return {
        "mean": round(float(np.mean(values)), 2),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": float(np.max(values)),
    }


def _compare_splits(
    readers: dict[str, tuple[Source, Declared | None]], digests: dict[str, dict[bytes, str]]
) -> list[Finding]:
    findings = []
    names = list(readers)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            if difference := readers[first][0].classes.difference(readers[second][0].classes):
                message = f"{first} and {second} declare different classes: {difference}"
                findings.append(Finding("splits-differ", message, second))
            for digest in digests[first].keys() & digests[second].keys():
                text = f"{digests[first][digest]} of {first} = {digests[second][digest]} of {second}"
                findings.append(Finding("picture-in-both-splits", text, second))
    return findings


def _unlisted_files(readers: dict[str, tuple[Source, Declared | None]]) -> list[Finding]:
    """Files beside those that a COCO-panoptic folder lists; a folder that splits share is looked at once."""
    listed: dict[pathlib.Path, tuple[set[str], str]] = {}
    for split, (source, _) in readers.items():
        if isinstance(source, CocoFolder):
            listed.setdefault(source.images_dir, (set(), split))[0].update(map(compose, source.index.file_names))
            listed.setdefault(source.labels_dir, (set(), split))[0].update(map(compose, source.index.label_names))
    findings = []
    for folder, (known, split) in listed.items():
        extra = sorted(
            entry.name for entry in os.scandir(folder) if entry.is_file() and compose(entry.name) not in known
        )
        if extra:
            findings.append(Finding("file-unlisted", f"{folder}: {len(extra)} files, as {extra[0]}", split))
    return findings


def _grouped(findings: Sequence[Finding]) -> dict[str, Any]:
    """Findings by kind, errors first."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.kind, []).append(finding)
    return {
        kind: {
            "severity": KINDS[kind][0],
            "meaning": KINDS[kind][1],
            "count": len(groups[kind]),
            "examples": [{"split": one.split, "message": one.message} for one in groups[kind][:_KEPT]],
        }
        for kind in KINDS
        if kind in groups
    }


def format_report(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"{report['source']} in {report['root']}"]
    for name, part in report["splits"].items():
        sizes = ", ".join(f"{size['height']} x {size['width']} ({size['pictures']})" for size in part["sizes"])
        lines += [
            "",
            f"{name}: {part['pictures']} images, {part['readable']} readable, {part['segments']} segments, "
            f"{100 * part['labelled_share']:.1f} % of the pixels labeled",
            f"  sizes (height x width): {sizes}" + (", ..." if part["different_sizes"] > len(part["sizes"]) else ""),
        ]
        for what in ("segments", "instances", "positives"):
            spread = part[f"{what}_per_picture"]
            lines.append(
                f"  {what} per image: median {spread['median']:g}, mean {spread['mean']:g}, 95 % have at most "
                f"{spread['p95']:g}, most {spread['max']:g}"
            )
        lines.append(f"  {'class':28s}{'kind':>6s}{'segments':>10s}{'crowds':>8s}{'pictures':>10s}{'vanish':>8s}")
        for row in part["classes"]:
            if row["segments"]:
                kind = "thing" if row["isthing"] else "stuff"
                lines.append(
                    f"  {row['name'][:27]:28s}{kind:>6s}{row['segments']:10d}{row['crowds']:8d}{row['pictures']:10d}"
                    f"{row['vanishing']:8d}"
                )
    for kind, group in report["findings"].items():
        lines += ["", f"{group['severity']} {kind}: {group['count']} ({group['meaning']})"]
        for one in group["examples"][:_SHOWN]:
            lines.append(f"  {one['split'] + ': ' if one['split'] else ''}{one['message']}")
        if group["count"] > _SHOWN:
            lines.append(f"  and {group['count'] - _SHOWN} more")
    verdict = "training would work" if report["usable"] else "training would not work, or would learn wrong things"
    more = f" ({PAGE} has a line for each kind)" if report["findings"] else ""
    lines += ["", f"{report['errors']} errors, {report['warnings']} warnings: {verdict}{more}"]
    return "\n".join(lines)
