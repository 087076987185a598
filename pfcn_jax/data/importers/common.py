"""The common part of the label importers: a function `(image, size) -> Labelled` becomes a COCO-panoptic folder.

`write_splits` runs it in threads and writes the folder. Images are copied byte for byte, after they have been decoded
once, so that what is written can be read.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import io
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8
from PIL import Image

from pfcn_jax.codec import MAX_ID, write_id_png
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.decode import decode_picture, stored_orientation
from pfcn_jax.data.example import DataError
from pfcn_jax.data.image_files import SUFFIXES, describe_left_out, is_image
from pfcn_jax.data.segments import count_pixels, find_runs, tight_boxes
from pfcn_jax.utils.atomic import write_text
from pfcn_jax.utils.progress import ProgressDisplay
from pfcn_jax.utils.stderr import print_lines

HIDDEN = "lie completely below others"
_EXIF = "EXIF turns this image for viewers; if the labels were drawn on the upright image: --upright"


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The labels of one image: 0 = void, i = row i - 1.

    Fields:
      left_out: reason -> number of instances that were left out for it ("N instances REASON").
      notes: remarks about the file, counted over all images ("N images: NOTE").
    """

    segment_map: Int32[np.ndarray, "h w"]
    class_id: Int32[np.ndarray, " n"]
    is_crowd: Bool[np.ndarray, " n"]
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


Labeller = Callable[[pathlib.Path, tuple[int, int]], Labelled]  # (image, its height and width) -> its labels


@dataclasses.dataclass
class Counts:
    """Sums over all images that were written."""

    images: int = 0
    segments: int = 0
    instances: int = 0  # of thing classes, without crowds
    rotated: int = 0  # images with an EXIF orientation
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    notes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `write_dataset` reads."""
    parser.add_argument("--pictures", required=True, help="folder of images")
    parser.add_argument("--output", required=True, help="folder to write; data.root of the training")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--split", help="write all images as this split, as train or val")
    where.add_argument("--val", type=float, help="write splits train and val, this fraction held out by name")
    parser.add_argument("--upright", action="store_true", help="turn images as their EXIF orientation says")
    parser.add_argument("--workers", type=int, default=4)


def write_dataset(
    args: argparse.Namespace, classes: ClassTable, images: Sequence[pathlib.Path], label: Labeller, notes: list[str]
) -> list[str]:
    """Writes the splits that the flags ask for; returns the lines of the summary, which end with `notes`."""
    splits = {args.split: images} if args.split else hold_out(images, args.val)
    display = ProgressDisplay(len(images), label="prepare")
    counts = write_splits(
        args.output,
        splits,
        classes,
        label,
        workers=args.workers,
        upright=args.upright,
        on_image=lambda done: display.update(done, "") if done % 50 == 0 or done == len(images) else None,
    )
    display.close()
    parts = ", ".join(f"{name}: {len(part)} images" for name, part in splits.items())
    lines = [f"{args.output}: {parts}; {counts.segments} segments of {len(classes)} classes"]
    lines += [f"{count} instances {reason} and are left out" for reason, count in counts.left_out.items()]
    lines += [f"warning: {count} images: {note}" for note, count in counts.notes.items()]
    if counts.rotated:
        done = "turned upright" if args.upright else "copied as stored; if the labels belong to the upright: --upright"
        lines.append(f"warning: {counts.rotated} images have an EXIF orientation: {done}")
    if not counts.instances:
        lines.append("warning: no instance to learn from (no-instances): every thing is a crowd, or there is none")
    return lines + notes


def list_images(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The images directly inside a folder, in name order; formats that are not decoded are named on stderr.

    Raises:
      DataError: no such folder, no image in it, or two of one stem (their labels would be one file).
    """
    base = pathlib.Path(folder)
    if not base.is_dir():
        raise DataError(f"{base}: no such folder of images")
    files = sorted(base.iterdir())
    found = [path for path in files if is_image(path)]
    left_out = describe_left_out(files)
    if not found:
        raise DataError(f"{base}: no images (looked for {', '.join(SUFFIXES)}){'; ' + left_out if left_out else ''}")
    if left_out:
        print_lines(f"{base}: {left_out}")
    require_unique_stems(found)
    return found


def require_unique_stems(images: Iterable[pathlib.Path]) -> None:
    """Raises DataError if two images have one name, apart from folder and suffix: they would share their labels."""
    stems: dict[str, pathlib.Path] = {}
    for path in images:
        if path.stem in stems:
            raise DataError(
                f"{path}: has the same name as {stems[path.stem]}, apart from folder and suffix; rename one",
                kind="picture-repeated",
            )
        stems[path.stem] = path


def hold_out(images: Sequence[pathlib.Path], fraction: float) -> dict[str, list[pathlib.Path]]:
    """`train` and `val`: which image goes where follows from its name alone, so new images move no old ones.

    Raises:
      DataError: fewer than two images, or a fraction outside 0..1.
    """
    if len(images) < 2 or not 0.0 < fraction < 1.0:
        raise DataError(f"{len(images)} images with a fraction of {fraction} for validation: cannot be divided")
    place = {path: zlib.crc32(path.name.encode()) / 2**32 for path in images}
    val = {path for path in images if place[path] < fraction} or {min(images, key=place.__getitem__)}
    if len(val) == len(images):
        val.remove(max(images, key=place.__getitem__))
    return {"train": [p for p in images if p not in val], "val": [p for p in images if p in val]}


def write_splits(
    root: str | os.PathLike[str],
    splits: Mapping[str, Sequence[pathlib.Path]],
    classes: ClassTable,
    label: Labeller,
    *,
    workers: int = 4,
    upright: bool = False,
    on_image: Callable[[int], None] | None = None,
) -> Counts:
    """Writes a COCO-panoptic folder; each split's JSON appears last, when everything it names is there.

    Args:
      splits: name of the split -> its images.
      upright: turn images as EXIF says; labels then belong to the upright image.
      on_image: called with the number of images written so far.

    Raises:
      DataError: an image or a label file cannot be read or does not fit; the message names it.
    """
    base, counts = pathlib.Path(root), Counts()
    for split, images in splits.items():
        writer = _Writer(base / split, base / "annotations" / f"panoptic_{split}", classes, label, upright)
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        with concurrent.futures.ThreadPoolExecutor(max(workers, 1)) as pool:
            for written in pool.map(writer.write, range(1, len(images) + 1), images):
                entries.append(written.image)
                annotations.append(written.annotation)
                _count(counts, written, classes)
                if on_image is not None:
                    on_image(counts.images)
        content = {"categories": classes.to_coco(), "images": entries, "annotations": annotations}
        write_text(base / "annotations" / f"panoptic_{split}.json", json.dumps(content))
    return counts


@dataclasses.dataclass(frozen=True)
class _Written:
    image: dict[str, Any]
    annotation: dict[str, Any]
    labelled: Labelled
    rotated: bool


def _count(counts: Counts, written: _Written, classes: ClassTable) -> None:
    labelled = written.labelled
    counts.images += 1
    counts.segments += len(labelled.class_id)
    counts.instances += int((np.array(classes.is_thing)[labelled.class_id] & ~labelled.is_crowd).sum())
    counts.rotated += written.rotated
    counts.left_out.update({reason: count for reason, count in labelled.left_out.items() if count})
    counts.notes.update(labelled.notes)


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes the files of one split."""

    image_dir: pathlib.Path
    label_dir: pathlib.Path
    classes: ClassTable
    label: Labeller
    upright: bool

    def __post_init__(self) -> None:
        self.image_dir.mkdir(parents=True, exist_ok=True)
        self.label_dir.mkdir(parents=True, exist_ok=True)

    def write(self, number: int, path: pathlib.Path) -> _Written:
        """Writes image `number` and its labels."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})", kind="picture-missing") from error
        orientation = stored_orientation(data)
        pixels = decode_picture(data, str(path), upright=self.upright)
        height, width = pixels.shape[:2]
        try:
            labelled = self.label(path, (height, width))
        except DataError as error:
            if orientation == 1 or self.upright or error.kind not in ("label-size", "picture-size"):
                raise
            raise DataError(f"{error}; {_EXIF}", kind=error.kind) from error
        if len(labelled.class_id) > MAX_ID:
            raise DataError(f"{path}: {len(labelled.class_id)} segments; a panoptic PNG holds {MAX_ID}")
        if orientation != 1 and self.upright:
            data = _encode_as(path.suffix, pixels)
        (self.image_dir / path.name).write_bytes(data)
        write_id_png(self.label_dir / f"{path.stem}.png", labelled.segment_map)
        image = {"id": number, "file_name": path.name, "height": height, "width": width}
        segments = _segments_info(labelled, self.classes)
        annotation = {"image_id": number, "file_name": f"{path.stem}.png", "segments_info": segments}
        return _Written(image, annotation, labelled, orientation != 1)


def _encode_as(suffix: str, pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """An image file of the format that the suffix means, without EXIF data."""
    file = io.BytesIO()
    form = Image.registered_extensions()[suffix.lower()]
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    Image.fromarray(pixels).save(file, format=form, **options)
    return file.getvalue()


def _segments_info(labelled: Labelled, classes: ClassTable) -> list[dict[str, Any]]:
    count, runs = len(labelled.class_id), find_runs(labelled.segment_map)
    areas, boxes = count_pixels(runs, count).tolist(), tight_boxes(runs, count).astype(int).tolist()
    return [
        {
            "id": row + 1,
            "category_id": classes.category_ids[int(labelled.class_id[row])],
            "iscrowd": int(labelled.is_crowd[row]),
            "area": areas[row],
            "bbox": [boxes[row][0], boxes[row][1], boxes[row][2] - boxes[row][0], boxes[row][3] - boxes[row][1]],
        }
        for row in range(count)
    ]


def finish(
    segment_map: np.ndarray,
    class_ids: Sequence[int],
    crowds: Sequence[bool],
    background: int | None,
    left_out: Mapping[str, int] | None = None,
    notes: tuple[str, ...] = (),
    void: Bool[np.ndarray, "h w"] | None = None,
) -> Labelled:
    """Drops rows without pixels and fills what is free.

    Args:
      segment_map: 0 = free, i = row i - 1 of `class_ids` and `crowds`.
      background: class id of a stuff segment that takes the free pixels; None: they are void.
      left_out: as in `Labelled`; rows without pixels are added.
      notes: as in `Labelled`.
      void: pixels that stay void.
    """
    kept = np.flatnonzero(count_pixels(find_runs(segment_map), len(class_ids)) > 0)
    renumber = np.zeros(len(class_ids) + 1, np.int32)
    renumber[kept + 1] = np.arange(1, kept.size + 1)
    segment_map = renumber[segment_map]
    class_id, is_crowd = np.array(class_ids, np.int32)[kept], np.array(crowds, bool)[kept]
    free = segment_map == 0
    if void is not None:
        segment_map[void] = 0
        free &= ~void
    if background is not None and free.any():
        segment_map[free] = kept.size + 1
        class_id, is_crowd = np.append(class_id, np.int32(background)), np.append(is_crowd, False)
    reasons = collections.Counter(left_out or {})
    reasons[HIDDEN] += len(class_ids) - kept.size
    return Labelled(segment_map, class_id, is_crowd, reasons, notes)


def split_components(values: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Numbers the 8-connected parts of equal value, from 1; 0 stays 0."""
    parts = np.zeros(values.shape, np.int32)
    for value in np.unique(values[values > 0]).tolist():
        _, own = cv2.connectedComponents((values == value).astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        parts = np.where(own > 0, own + int(parts.max()), parts)
    return parts


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """(NAME, VALUE) of words `NAME=VALUE`.

    Raises:
      DataError: a word of another form, or a name twice.
    """
    found = [(name, value) for name, _, value in (word.partition("=") for word in words)]
    if not all(name and value for name, value in found) or len({name for name, _ in found}) < len(found):
        raise DataError(f"{' '.join(words)}: expected NAME=VALUE pairs with different names")
    return found
