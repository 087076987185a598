"""Does a data set do for training? Checks of one example and of a whole split, each kind of damage with a name."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from pfcn_jax.data.canvas import Size, smallest_canvas
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.coco import PanopticFiles
from pfcn_jax.data.decode import stored_orientation
from pfcn_jax.data.example import DataError, Example, Source
from pfcn_jax.data.kinds import KINDS
from pfcn_jax.data.panoptic_json import Declared
from pfcn_jax.data.transforms import nearest_index


@dataclasses.dataclass(frozen=True)
class Finding:
    kind: str
    message: str
    split: str

    @property
    def severity(self) -> str:
        return KINDS[self.kind][0]


@dataclasses.dataclass(frozen=True)
class Limits:
    """The settings that decide what training does with the images of a split."""

    smallest: Callable[[Size], Size]  # size of an image -> its smallest training size
    largest: Callable[[Size], Size]  # ... and its largest, before a crop
    on_canvas: Callable[[Size], Size]  # ... and what must fit on a canvas
    canvases: tuple[Size, ...]
    max_segments: int
    max_positives: int
    max_things: int
    level_ranges: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class ExampleReport:
    """The contents of one example, measured."""

    size: Size
    digest: bytes  # of the decoded image
    class_id: Int[np.ndarray, " n"]
    is_crowd: Bool[np.ndarray, " n"]
    area: Int[np.ndarray, " n"]
    vanishing: Bool[np.ndarray, " n"]  # instances without a pixel at 1/4 of the smallest training size
    instances: int
    positives: int  # (instance, level) pairs at the largest training size
    rotated: bool  # EXIF turns the image for viewers


def check_example(
    source: Source, index: int, limits: Limits, split: str, declared: Declared | None = None
) -> tuple[ExampleReport | None, list[Finding]]:
    """Reads an example and says what is in it and what is wrong with it; without a report it cannot be read."""
    findings: list[Finding] = []
    info = source.info(index)
    name = f"{info.file_name} (image {info.image_id})"
    try:
        example = source[index]
    except DataError as error:
        damaged = declared is not None and info.image_id in declared.damaged
        # What the JSON lost is already reported; that its pixels are now unknown says nothing new.
        return None, [] if damaged and error.kind == "id-unlisted" else [Finding(error.kind, str(error), split)]
    instance = np.array(source.classes.is_thing, bool)[example.class_id] & ~example.is_crowd
    size = (example.image.shape[0], example.image.shape[1])
    report = ExampleReport(
        size=size,
        digest=hashlib.blake2b(example.image.tobytes(), digest_size=16).digest(),
        class_id=example.class_id,
        is_crowd=example.is_crowd,
        area=example.area,
        vanishing=instance & ~visible_rows(example, limits.smallest(size)),
        instances=int(instance.sum()),
        positives=count_pairs(example.box[instance], size, limits.largest(size), limits.level_ranges),
        rotated=isinstance(source, PanopticFiles) and stored_orientation(source.read_image(index)) != 1,
    )
    if report.rotated:
        findings.append(Finding("image-rotated", name, split))
    if declared is not None and isinstance(source, PanopticFiles):
        findings += _compare(source, index, declared, example.area, example.box, name, split)
    counts = {
        "too-many-segments": (len(example.area), limits.max_segments),
        "too-many-positives": (report.positives, limits.max_positives),
        "too-many-instances": (report.instances, limits.max_things),
    }
    findings += [Finding(kind, f"{name}: {n} > {most}", split) for kind, (n, most) in counts.items() if n > most]
    if not len(example.area):
        findings.append(Finding("nothing-labelled", name, split))
    if report.vanishing.any():
        smallest = int(example.area[report.vanishing].max())
        findings.append(
            Finding("segment-vanishes", f"{name}: {int(report.vanishing.sum())}, of up to {smallest} pixels", split)
        )
    return report, findings


def _compare(
    source: PanopticFiles, index: int, declared: Declared, area: np.ndarray, box: np.ndarray, name: str, split: str
) -> list[Finding]:
    """Areas and boxes as the JSON declares them against the pixels."""
    rows = slice(source.index.offset[index], source.index.offset[index + 1])
    ids, listed, listed_box = source.index.segment_id[rows], declared.area[rows], declared.box[rows]
    measured = np.concatenate([box[:, :2], box[:, 2:] - box[:, :2]], axis=1).astype(np.int64)
    wrong_area = (listed >= 0) & (listed != area)
    wrong_box = (listed_box[:, 2] >= 0) & (listed_box != measured).any(axis=1)
    findings = []
    for kind, wrong, said, found in (
        ("area-differs", wrong_area, listed, area),
        ("box-differs", wrong_box, listed_box, measured),
    ):
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            example = f"segment {ids[first]}: JSON {said[first].tolist()}, pixels {found[first].tolist()}"
            findings.append(Finding(kind, f"{name}: {int(wrong.sum())} segments, as {example}", split))
    return findings


def visible_rows(example: Example, size: Size) -> Bool[np.ndarray, " n"]:
    """Which rows have a pixel in the mask at 1/4 of `size` (paper section 3.2: bilinear from the resized labels)."""
    height, width = example.size
    rows = nearest_index(height, size[0])[quarter_reads(size[0])]
    columns = nearest_index(width, size[1])[quarter_reads(size[1])]
    sampled = example.segment_map[rows][:, columns]
    return np.bincount(sampled.reshape(-1), minlength=len(example.class_id) + 1)[1:] > 0


def quarter_reads(length: int) -> Int[np.ndarray, " n"]:
    """The positions along one axis that a bilinear resize to int(length / 4 + 0.5) reads."""
    quarter = max(int(length / 4 + 0.5), 1)
    position = np.maximum((np.arange(quarter) + 0.5) * (length / quarter) - 0.5, 0.0)
    low = np.minimum(position.astype(np.int64), length - 1)
    return np.union1d(low, np.minimum(low + 1, length - 1)[position > low])


def count_pairs(box: np.ndarray, size: Size, resized: Size, level_ranges: Sequence[tuple[float, float]]) -> int:
    """(instance, level) pairs of boxes in an image of `size` that is resized."""
    ratio = (resized[0] / size[0]) * (resized[1] / size[1])
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) * ratio
    bounds = np.array(level_ranges, np.float64) ** 2
    return int(((area[:, None] >= bounds[None, :, 0]) & (area[:, None] <= bounds[None, :, 1])).sum())


def check_canvases(source: Source, limits: Limits, split: str) -> list[Finding]:
    """Images that fit on no canvas, one finding a size."""
    findings = []
    sizes, counts = np.unique(source.sizes(), axis=0, return_counts=True)
    for (height, width), count in zip(sizes.tolist(), counts.tolist()):
        needed = limits.on_canvas((height, width))
        if smallest_canvas(needed, limits.canvases) is None:
            text = f"{count} images of {height} x {width} (height x width) become {needed[0]} x {needed[1]}"
            findings.append(Finding("no-canvas", text, split))
    return findings


def check_instances(
    classes: ClassTable, reports: Sequence[ExampleReport], split: str, *, training: bool
) -> list[Finding]:
    """Findings about things without an instance: all of a split's (an error where it is trained on), or of a class."""
    things = np.zeros(len(classes), np.int64)
    crowds = np.zeros(len(classes), np.int64)
    for report in reports:
        things += np.bincount(report.class_id[~report.is_crowd], minlength=len(classes))
        crowds += np.bincount(report.class_id[report.is_crowd], minlength=len(classes))
    is_thing = np.array(classes.is_thing, bool)
    findings = [
        Finding("class-crowds-only", f"{classes.names[c]}: {crowds[c]} crowds, no instance", split)
        for c in np.flatnonzero(is_thing & (crowds > 0) & (things == 0)).tolist()
    ]
    if training and reports and is_thing.any() and not things[is_thing].any():
        what = f"all {crowds.sum()} are crowds (iscrowd 1)" if crowds.any() else "there are only stuff segments"
        hint = "; from a detection JSON: prepare instances --crowds-as-instances" if crowds.any() else ""
        findings.append(Finding("no-instances", f"{len(reports)} images: {what}{hint}", split))
    return findings
