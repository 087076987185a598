"""Other people's labels -> a COCO-panoptic folder: detection JSON, PNGs of instance ids, PNGs of semantic classes.

Every kind is a function `(picture) -> Labelled`; `write_splits` runs it in threads and writes the folder. Pictures are
copied as they are, byte for byte, after they have been decoded once: what is written can be read.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Int, Int32
from pycocotools import mask as coco_mask

from pfcn_jax.codec import MAX_ID, write_id_png
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.decode import decode_ids, decode_picture, decode_values
from pfcn_jax.data.segments import count_pixels, find_runs, tight_boxes
from pfcn_jax.data.sources import DataError
from pfcn_jax.utils.atomic import write_text

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_RGB = 2  # colour type in a PNG's header


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The labels of one picture: 0 = void, i = row i - 1. `hidden` counts instances that others cover completely."""

    segment_map: Int32[np.ndarray, "h w"]
    class_id: Int32[np.ndarray, " n"]
    is_crowd: Bool[np.ndarray, " n"]
    hidden: int = 0


# What every entry of a detection file must have.
_DETECTION_KEYS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id"),
}

Labeller = Callable[[pathlib.Path, tuple[int, int]], Labelled]  # (picture, its height and width) -> its labels


def list_pictures(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The pictures directly inside a folder, in name order.

    Raises:
      DataError: no such folder, no picture in it, or two of one stem (their labels would be one file).
    """
    base = pathlib.Path(folder)
    if not base.is_dir():
        raise DataError(f"{base}: no such folder of pictures")
    found = sorted(path for path in base.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"{base}: no pictures (looked for {', '.join(SUFFIXES)})")
    _require_unique_stems(found)
    return found


def _require_unique_stems(pictures: Iterable[pathlib.Path]) -> None:
    """Pictures of one name, apart from folder and suffix, would have one file of labels."""
    stems: dict[str, pathlib.Path] = {}
    for path in pictures:
        if path.stem in stems:
            raise DataError(
                f"{path}: has the same name as {stems[path.stem]}, apart from folder and suffix; rename one"
            )
        stems[path.stem] = path


def hold_out(pictures: Sequence[pathlib.Path], fraction: float) -> dict[str, list[pathlib.Path]]:
    """`train` and `val`: which picture goes where follows from its name alone, so new pictures move no old ones.

    Raises:
      DataError: fewer than two pictures, or a fraction outside 0..1.
    """
    if len(pictures) < 2 or not 0.0 < fraction < 1.0:
        raise DataError(f"{len(pictures)} pictures with a fraction of {fraction} for validation: cannot be divided")
    place = {path: zlib.crc32(path.name.encode()) / 2**32 for path in pictures}
    val = {path for path in pictures if place[path] < fraction} or {min(pictures, key=place.__getitem__)}
    if len(val) == len(pictures):
        val.remove(max(pictures, key=place.__getitem__))
    return {"train": [p for p in pictures if p not in val], "val": [p for p in pictures if p in val]}


def from_id_masks(
    folders: Mapping[str, pathlib.Path], *, components: bool, background: str
) -> tuple[ClassTable, Labeller]:
    """PNGs in which every instance has its own value, 0 = nothing: one folder for each thing class.

    Args:
      folders: class name -> folder of PNGs with the pictures' stems: grey (8 or 16 bits), palette, or RGB ids. A file
        that is not there means no instance of the class; where classes overlap, the later folder lies above.
      components: connected parts of one value are instances of their own (for masks of 0 and 255).
      background: name of a stuff class for all other pixels; empty: they are void.
    """
    classes = _things_and_background(list(folders), background)

    def label(picture: pathlib.Path, size: tuple[int, int]) -> Labelled:
        segment_map, class_ids = np.zeros(size, np.int32), []
        for class_id, folder in enumerate(folders.values()):
            path = folder / f"{picture.stem}.png"
            if not path.is_file():
                continue
            values = _read_values(path, size)
            parts = _split_components(values) if components else values
            for value in np.unique(parts[parts > 0]).tolist():
                class_ids.append(class_id)
                segment_map[parts == value] = len(class_ids)
        return _finish(segment_map, class_ids, [False] * len(class_ids), classes, background)

    return classes, label


def from_semantic(folder: pathlib.Path, classes: ClassTable, *, ignore: Sequence[int]) -> Labeller:
    """PNGs of category ids, with the pictures' stems. Stuff: a segment a class. Things: one for each connected part.

    Args:
      ignore: values that become void. Any other value that is no category id is an error.
    """
    class_of = classes.class_of_category

    def label(picture: pathlib.Path, size: tuple[int, int]) -> Labelled:
        path = folder / f"{picture.stem}.png"
        values = _read_values(path, size)
        segment_map, class_ids = np.zeros(size, np.int32), []
        for value in np.unique(values).tolist():
            if value in ignore:
                continue
            if value not in class_of:
                raise DataError(
                    f"{path}: value {value} is no category id (add it to the classes, or to --ignore)",
                    kind="label-value",
                )
            mask = values == value
            class_id = class_of[value]
            parts = _split_components(mask.astype(np.int32)) if classes.is_thing[class_id] else mask.astype(np.int32)
            for part in range(1, int(parts.max()) + 1):
                class_ids.append(class_id)
                segment_map[parts == part] = len(class_ids)
        return Labelled(segment_map, np.array(class_ids, np.int32), np.zeros(len(class_ids), bool))

    return label


def from_detection(
    path: str | os.PathLike[str], pictures: str | os.PathLike[str], *, background: str
) -> tuple[ClassTable, list[pathlib.Path], Labeller]:
    """A COCO detection JSON (`instances_*.json`) with polygons or RLE: its classes, its pictures and their labels.

    Where instances overlap the smaller one lies above the larger, crowds lie below all; one that is covered completely
    is left out and counted.

    Raises:
      DataError: not such a JSON, a picture in it has no file, or two pictures have one name.
    """
    content = _read_detection(pathlib.Path(path))
    things = [{"isthing": 1} | category for category in content["categories"]]
    if background:
        unused = max(category["id"] for category in things) + 1
        things.append({"id": unused, "name": background, "isthing": 0})
    try:
        classes = ClassTable.from_coco(things)
    except ValueError as error:
        raise DataError(f"{path}: {error}", kind="category-invalid") from error
    instances: dict[Any, list[Mapping[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        name = f"{path}: annotation {annotation.get('id')}"
        if annotation["image_id"] not in instances:
            raise DataError(f"{name}: of image {annotation['image_id']}, which is not in images")
        if annotation["category_id"] not in classes.class_of_category:
            raise DataError(
                f"{name}: category {annotation['category_id']} is not in categories", kind="category-unknown"
            )
        instances[annotation["image_id"]].append(annotation)
    by_name = {image["file_name"]: image for image in content["images"]}
    base = pathlib.Path(pictures)
    files = [base / name for name in sorted(by_name)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: no such picture ({len(missing)} of {len(files)} missing)", kind="picture-missing"
        )
    _require_unique_stems(files)

    def label(picture: pathlib.Path, size: tuple[int, int]) -> Labelled:
        image = by_name[picture.relative_to(base).as_posix()]
        if (image["height"], image["width"]) != size:
            raise DataError(f"{picture}: {size[1]} x {size[0]}, but the JSON says {image['width']} x {image['height']}")
        own = [(annotation, _detection_mask(annotation, size, str(path))) for annotation in instances[image["id"]]]
        own.sort(key=lambda pair: (not pair[0].get("iscrowd", 0), -int(pair[1].sum())))
        segment_map = np.zeros(size, np.int32)
        for row, (_, mask) in enumerate(own, start=1):
            segment_map[mask] = row
        class_ids = [classes.class_of_category[annotation["category_id"]] for annotation, _ in own]
        crowds = [bool(annotation.get("iscrowd", 0)) for annotation, _ in own]
        return _finish(segment_map, class_ids, crowds, classes, background)

    return classes, files, label


def write_splits(
    root: str | os.PathLike[str],
    splits: Mapping[str, Sequence[pathlib.Path]],
    classes: ClassTable,
    label: Labeller,
    *,
    workers: int = 4,
    on_picture: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Writes a COCO-panoptic folder; each split's JSON appears last, when everything it names is there.

    Args:
      splits: name of the split -> its pictures.
      on_picture: called with the number of pictures written so far.

    Returns:
      Counts: pictures, segments, hidden instances.

    Raises:
      DataError: a picture or a label file cannot be read or does not fit; the message names it.
    """
    base, counts = pathlib.Path(root), {"pictures": 0, "segments": 0, "hidden": 0}
    for split, pictures in splits.items():
        picture_dir, label_dir = base / split, base / "annotations" / f"panoptic_{split}"
        picture_dir.mkdir(parents=True, exist_ok=True)
        label_dir.mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []

        def write(
            numbered: tuple[int, pathlib.Path],
            picture_dir: pathlib.Path = picture_dir,
            label_dir: pathlib.Path = label_dir,
        ) -> tuple[dict[str, Any], dict[str, Any], int]:
            return _write_example(*numbered, picture_dir, label_dir, classes, label)

        with concurrent.futures.ThreadPoolExecutor(max(workers, 1)) as pool:
            for image, annotation, hidden in pool.map(write, enumerate(pictures, start=1)):
                images.append(image)
                annotations.append(annotation)
                counts["pictures"] += 1
                counts["segments"] += len(annotation["segments_info"])
                counts["hidden"] += hidden
                if on_picture is not None:
                    on_picture(counts["pictures"])
        content = {"categories": classes.to_coco(), "images": images, "annotations": annotations}
        write_text(base / "annotations" / f"panoptic_{split}.json", json.dumps(content))
    return counts


def _write_example(
    number: int,
    picture: pathlib.Path,
    picture_dir: pathlib.Path,
    label_dir: pathlib.Path,
    classes: ClassTable,
    label: Labeller,
) -> tuple[dict[str, Any], dict[str, Any], int]:
    data = picture.read_bytes()
    height, width = decode_picture(data, str(picture)).shape[:2]
    labelled = label(picture, (height, width))
    count = len(labelled.class_id)
    if count > MAX_ID:
        raise DataError(f"{picture}: {count} segments; a panoptic PNG holds {MAX_ID}")
    (picture_dir / picture.name).write_bytes(data)
    write_id_png(label_dir / f"{picture.stem}.png", labelled.segment_map)
    runs = find_runs(labelled.segment_map)
    areas, boxes = count_pixels(runs, count).tolist(), tight_boxes(runs, count).astype(int).tolist()
    segments = [
        {
            "id": row + 1,
            "category_id": classes.category_ids[int(labelled.class_id[row])],
            "iscrowd": int(labelled.is_crowd[row]),
            "area": areas[row],
            "bbox": [boxes[row][0], boxes[row][1], boxes[row][2] - boxes[row][0], boxes[row][3] - boxes[row][1]],
        }
        for row in range(count)
    ]
    image = {"id": number, "file_name": picture.name, "height": height, "width": width}
    return image, {"image_id": number, "file_name": f"{picture.stem}.png", "segments_info": segments}, labelled.hidden


def _things_and_background(names: Sequence[str], background: str) -> ClassTable:
    entries = [{"id": i, "name": name, "isthing": 1} for i, name in enumerate(names, start=1)]
    if background:
        entries.append({"id": len(entries) + 1, "name": background, "isthing": 0})
    try:
        return ClassTable.from_coco(entries)
    except ValueError as error:
        raise DataError(f"classes {', '.join(names)} and background {background!r}: {error}") from error


def _finish(
    segment_map: np.ndarray, class_ids: list[int], crowds: list[bool], classes: ClassTable, background: str
) -> Labelled:
    """Without rows that have no pixels left; free pixels become the background class, if there is one."""
    kept = np.flatnonzero(count_pixels(find_runs(segment_map), len(class_ids)) > 0)
    renumber = np.zeros(len(class_ids) + 1, np.int32)
    renumber[kept + 1] = np.arange(1, kept.size + 1)
    segment_map = renumber[segment_map]
    class_id, is_crowd = np.array(class_ids, np.int32)[kept], np.array(crowds, bool)[kept]
    free = segment_map == 0
    if background and free.any():
        segment_map[free] = kept.size + 1
        class_id, is_crowd = np.append(class_id, np.int32(len(classes) - 1)), np.append(is_crowd, False)
    return Labelled(segment_map, class_id, is_crowd, hidden=len(class_ids) - kept.size)


def _read_values(path: pathlib.Path, size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", kind="label-missing") from error
    values = (decode_ids if len(data) > 25 and data[25] == _RGB else decode_values)(data, str(path))
    if values.shape != size:
        raise DataError(
            f"{path}: {values.shape[1]} x {values.shape[0]}, but its picture has {size[1]} x {size[0]}",
            kind="label-size",
        )
    return values


def _split_components(values: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Numbers the 8-connected parts of equal value, from 1; 0 stays 0."""
    parts = np.zeros(values.shape, np.int32)
    for value in np.unique(values[values > 0]).tolist():
        _, own = cv2.connectedComponents((values == value).astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        parts = np.where(own > 0, own + int(parts.max()), parts)
    return parts


def _read_detection(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", kind="json-missing") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})", kind="json-broken") from error
    missing = [key for key in ("categories", "images", "annotations") if not content.get(key)]
    if missing:
        raise DataError(f"{path}: no {', '.join(missing)}; is it a COCO detection file?", kind="json-part-missing")
    for part, keys in _DETECTION_KEYS.items():
        for position, entry in enumerate(content[part]):
            missing = [key for key in keys if key not in entry]
            if missing:
                raise DataError(f"{path}: {part}[{position}] has no {', '.join(missing)}", kind="entry-incomplete")
    return content


def _detection_mask(annotation: Mapping[str, Any], size: tuple[int, int], path: str) -> Bool[np.ndarray, "h w"]:
    """The pixels of an annotation: polygons, or RLE as counts or as COCO's compressed text."""
    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
        elif isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            rle = coco_mask.frPyObjects(segmentation, *size)
        elif isinstance(segmentation, dict):
            rle = segmentation
        else:
            raise ValueError("no segmentation; boxes alone have no masks")
        mask = coco_mask.decode(rle)
        if mask.shape != size:
            raise ValueError(f"its size is {mask.shape}, its picture's {size}")
    except Exception as error:  # pycocotools raises that itself
        raise DataError(f"{path}: annotation {annotation.get('id')}: unusable segmentation ({error})") from error
    return mask.astype(bool)
