"""Comparison of exported files with the live model, image by image: equal segments, sizes, times."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from pfcn_jax.checkpoints.loading import LoadedModel, load_checkpoint
from pfcn_jax.export import run_exported
from pfcn_jax.inference.input_files import find_inputs, read_ahead
from pfcn_jax.inference.predictor import Predictor
from pfcn_jax.utils.atomic import write_json
from pfcn_jax.utils.environment import environment
from pfcn_jax.utils.progress import ProgressDisplay
from pfcn_jax.viz.preview import compact

PIXELS_THAT_MAY_DIFFER = 5e-4  # of an image; a value may lie within rounding of a threshold

Image = UInt8[np.ndarray, "h w 3"]
# An image -> its segment map (0 = none, i = class i - 1 of the list), and the classes of its segments.
Segment = Callable[[Any], tuple[Int[np.ndarray, "h w"], list[int]]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One image, segmented by both. Seconds are those of a second run, when everything is compiled."""

    name: str
    segments: int  # of the live model
    segments_that_differ: int  # rows of the two lists
    pixels_that_differ: float  # share of the image
    live_seconds: float
    exported_seconds: float

    @property
    def same(self) -> bool:
        return self.segments_that_differ == 0 and self.pixels_that_differ <= PIXELS_THAT_MAY_DIFFER


def compare_and_report(
    path: pathlib.Path, kind: str, loaded: LoadedModel, words: Sequence[str], report: str | None
) -> int:
    """Runs both on the images, prints and writes what differs; 1 if anything does, or nothing could be compared."""
    inputs = [entry for entry in find_inputs(words) if not entry.is_video]
    broken: list[str] = []
    begin = time.perf_counter()
    exported = open_exported(path, kind)
    opened = time.perf_counter() - begin
    images = ((entry.name, image) for entry, image in read_ahead(inputs, broken, upright=True))
    found = []
    with contextlib.closing(ProgressDisplay(len(inputs), label="compare")) as display:
        for comparison in compare(live_segments(loaded), exported, images, broken):
            found.append(comparison)
            display.update(len(found) + len(broken), f"{comparison.name}: {'same' if comparison.same else 'DIFFERENT'}")
    summary = summarize(found)
    if report:
        rows = [{**dataclasses.asdict(one), "same": one.same} for one in found]
        where = {
            "file": path.name,
            "format": kind,
            "bytes": size_of(path),
            "open_seconds": opened,
            "unreadable": broken,
        }
        write_json(report, {**where, **summary, "environment": environment(), "per_picture": rows})
    for message in broken:
        print(f"skipped: {message}", file=sys.stderr)
    for one in found:
        if not one.same:
            what = f"{one.segments_that_differ} segments, {100 * one.pixels_that_differ:.3f} % of the pixels"
            print(f"{one.name}: differs in {what}", file=sys.stderr)
    print(
        f"{summary['same']} of {summary['pictures']} images have the same segments ({summary['identical']} to the "
        f"pixel); seconds an image: live {summary['live_seconds']:.3f}, exported {summary['exported_seconds']:.3f}"
    )
    return 0 if found and not broken and summary["same"] == len(found) else 1


def compare(
    live: Segment, exported: Segment, images: Iterable[tuple[str, Any]], broken: list[str]
) -> Iterable[Comparison]:
    """Every image through both, twice: the first run may compile. What has no room in the file goes to `broken`."""
    for name, image in images:
        try:
            exported(image)
        except ValueError as error:
            broken.append(f"{name}: {error}")
            continue
        live(image)
        (map_1, classes_1), live_seconds = _timed(live, image)
        (map_2, classes_2), exported_seconds = _timed(exported, image)
        common = min(len(classes_1), len(classes_2))
        rows = sum(a != b for a, b in zip(classes_1, classes_2)) + len(classes_1) + len(classes_2) - 2 * common
        pixels = float((map_1 != map_2).mean())
        yield Comparison(name, len(classes_1), rows, pixels, live_seconds, exported_seconds)


def _timed(segment: Segment, image: Any) -> tuple[tuple[np.ndarray, list[int]], float]:
    begin = time.perf_counter()
    result = segment(image)
    return result, time.perf_counter() - begin


def summarize(found: Sequence[Comparison]) -> dict[str, Any]:
    """Counts, and medians of the seconds."""
    return {
        "pictures": len(found),
        "same": sum(one.same for one in found),
        "identical": sum(one.same and one.pixels_that_differ == 0 for one in found),
        "segments": sum(one.segments for one in found),
        "live_seconds": statistics.median([one.live_seconds for one in found] or [0.0]),
        "exported_seconds": statistics.median([one.exported_seconds for one in found] or [0.0]),
    }


def live_segments(loaded: LoadedModel) -> Segment:
    """The model as `predict` runs it."""
    predictor = Predictor(loaded, loaded.config)

    def segment(image: Any) -> tuple[np.ndarray, list[int]]:
        segment_map, class_id, _ = compact(predictor(image).panoptic)
        return segment_map, class_id.tolist()

    return segment


def open_exported(path: pathlib.Path, kind: str) -> Segment:
    """The exported file, run as its receiver runs it."""
    if kind in ("safetensors", "orbax"):
        return live_segments(load_checkpoint(path))
    meta, run = run_exported.load(path)

    def segment(image: Any) -> tuple[np.ndarray, list[int]]:
        segment_map, segments = run_exported.segment(meta, run, image)
        return segment_map, [entry["class_id"] for entry in segments]

    return segment


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file, or of everything in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
