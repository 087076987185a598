"""Writes a COCO-panoptic folder, or only counts: images with `Labelled`s, in threads.

Images are copied byte for byte, after they have been decoded once, so that what is written can be read.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pfcn_jax.codec import MAX_ID, write_id_png
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.decode import decode_image, stored_orientation
from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.files import read_file
from pfcn_jax.data.importers.labelled import Labelled
from pfcn_jax.data.segments import count_pixels, find_runs, tight_boxes
from pfcn_jax.utils.atomic import write_text

Labeller = Callable[[pathlib.Path, tuple[int, int]], Labelled]  # (image, its height and width) -> its labels
_EXIF = "EXIF turns this image for viewers; if the labels were drawn on the upright image: --upright"


@dataclasses.dataclass
class Counts:
    """Sums over all images."""

    images: int = 0
    segments: int = 0
    instances: int = 0  # of thing classes, without crowds
    rotated: int = 0  # images with an EXIF orientation
    found: int = 0  # objects in the label files = written + joined + left out + lost by a fault
    written: int = 0
    joined: int = 0
    by_class: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)  # class id -> segments
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    lost: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # reason -> names of lost objects
    damaged: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # of objects that lost a part
    notes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, labelled: Labelled, is_thing: Sequence[bool]) -> None:
        """Adds the labels of an image."""
        self.images += 1
        self.segments += len(labelled.class_id)
        self.instances += int((np.array(is_thing)[labelled.class_id] & ~labelled.is_crowd).sum())
        self.by_class.update(labelled.class_id.tolist())
        self.found += labelled.found
        self.written += labelled.written
        self.joined += labelled.joined
        self.left_out.update({reason: count for reason, count in labelled.left_out.items() if count})
        for fault in labelled.faults:
            (self.lost if fault.is_lost else self.damaged).setdefault(fault.reason, []).append(fault.name)
        self.notes.update(labelled.notes)

    def faults(self) -> dict[str, list[str]]:
        """Reason -> names of all objects with a fault."""
        reasons = [*self.lost, *(reason for reason in self.damaged if reason not in self.lost)]
        return {reason: self.lost.get(reason, []) + self.damaged.get(reason, []) for reason in reasons}


def read_image(path: pathlib.Path) -> bytes:
    """`read_file` of an image."""
    return read_file(path, "picture-missing")


@dataclasses.dataclass(frozen=True)
class WriteOptions:
    """Options for writing a folder.

    Fields:
      workers: threads.
      upright: turn images as EXIF says; labels then belong to the upright image.
      skip_bad: leave out objects that cannot be used, and count them, instead of refusing all.
      dry_run: decode and count everything, write nothing.
      read: the bytes of an image.
    """

    workers: int = 4
    upright: bool = False
    skip_bad: bool = False
    dry_run: bool = False
    read: Callable[[pathlib.Path], bytes] = read_image


def write_splits(
    base: pathlib.Path,
    splits: Mapping[str, Sequence[pathlib.Path]],
    classes: ClassTable,
    label: Labeller,
    options: WriteOptions,
    on_image: Callable[[int], None] | None = None,
) -> Counts:
    """Writes a COCO-panoptic folder; the JSONs appear last, when everything that they name is there.

    Args:
      splits: name of the split -> its images; images of one split have different stems.
      on_image: called with the number of images read so far.

    Raises:
      DataError: an image or a label file cannot be read or does not fit; or (without `skip_bad`) objects cannot be
        used, which is known and counted when all labels have been read.
    """
    counts = Counts()
    contents: dict[str, dict[str, Any]] = {}
    for split, images in splits.items():
        writer = _Writer(base / split, base / "annotations" / f"panoptic_{split}", classes, label, options)
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        with concurrent.futures.ThreadPoolExecutor(max(options.workers, 1)) as pool:
            for written in pool.map(writer.write, range(1, len(images) + 1), images):
                entries.append(written.image)
                annotations.append(written.annotation)
                counts.add(written.labelled, classes.is_thing)
                counts.rotated += written.is_rotated
                if on_image is not None:
                    on_image(counts.images)
        contents[split] = {"categories": classes.to_coco(), "images": entries, "annotations": annotations}
    if counts.faults() and not options.skip_bad:
        raise _describe_faults(counts.faults())
    if not options.dry_run:
        for split, content in contents.items():
            write_text(base / "annotations" / f"panoptic_{split}.json", json.dumps(content))
    return counts


def _describe_faults(faults: Mapping[str, Sequence[str]]) -> DataError:
    total = sum(len(names) for names in faults.values())
    shown = "; ".join(f"{len(names)} {reason}, as {names[0]}" for reason, names in faults.items())
    return DataError(f"{total} objects cannot be used: {shown}. Mend them, or --skip-bad", kind="segmentation-invalid")


@dataclasses.dataclass(frozen=True)
class _Written:
    image: dict[str, Any]
    annotation: dict[str, Any]
    labelled: Labelled
    is_rotated: bool


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes the files of one split."""

    image_dir: pathlib.Path
    label_dir: pathlib.Path
    classes: ClassTable
    label: Labeller
    options: WriteOptions

    def __post_init__(self) -> None:
        if not self.options.dry_run:
            self.image_dir.mkdir(parents=True, exist_ok=True)
            self.label_dir.mkdir(parents=True, exist_ok=True)

    def write(self, number: int, path: pathlib.Path) -> _Written:
        """Writes image `number` and its labels."""
        data, upright = self.options.read(path), self.options.upright
        orientation = stored_orientation(data)
        pixels = decode_image(data, str(path), upright=upright)
        height, width = pixels.shape[:2]
        try:
            labelled = self.label(path, (height, width))
        except DataError as error:
            if orientation == 1 or upright or error.kind not in ("label-size", "picture-size"):
                raise
            raise DataError(f"{error}; {_EXIF}", kind=error.kind) from error
        if len(labelled.class_id) > MAX_ID:
            raise DataError(f"{path}: {len(labelled.class_id)} segments; a panoptic PNG holds {MAX_ID}")
        if not self.options.dry_run and (self.options.skip_bad or not labelled.faults):
            if orientation != 1 and upright:
                data = _encode_as(path.suffix, pixels)
            (self.image_dir / path.name).write_bytes(data)
            write_id_png(self.label_dir / f"{path.stem}.png", labelled.segment_map)
        image = {"id": number, "file_name": path.name, "height": height, "width": width}
        segments = _segments_info(labelled, self.classes)
        annotation = {"image_id": number, "file_name": f"{path.stem}.png", "segments_info": segments}
        return _Written(image, annotation, labelled, orientation != 1)


def _encode_as(suffix: str, pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
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
