"""Small sound inputs for the verbs that read people's files, and ways to change them (see tests/support/faults.py).

A `Fault` changes a copy of the inputs of its section. What the section's command says then is a row of docs/faults.md.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pfcn_jax.codec import write_id_png

SIZE = (48, 64)  # height, width
NAMES = ("a.jpg", "b.jpg")
IDS = (70_001, 300)  # of the disk and of the ground: blue and red are not alike

Change = Callable[[pathlib.Path], object]
SPLIT = "--split train --output out"  # end of commands


@dataclasses.dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Fields:
      what: the fault, in words of the page.
      change: makes it, in a folder with the section's sound inputs.
      flags: added to the section's command.
      code: the kind that `validate-data` must name; other verbs print theirs.
      finds: part of the line that the page shows, where it is no error and no warning.
    """

    what: str
    change: Change
    flags: str = ""
    code: str = ""
    finds: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A command, its sound inputs and the faults."""

    title: str
    command: str  # `damaged` is the folder of the inputs
    make: Change
    faults: tuple[Fault, ...]


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8))


def disk() -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return (y - 20) ** 2 + (x - 30) ** 2 < 150


def edit(name: str, change: Callable[[Any], Any]) -> Change:
    """A change of a JSON: `change` works in place, or returns what is written instead."""

    def apply(root: pathlib.Path) -> None:
        content = json.loads((root / name).read_text())
        changed = change(content)
        (root / name).write_text(json.dumps(content if changed is None else changed))

    return apply


def turn(name: str, orientation: int) -> Change:
    """Gives an image an EXIF orientation."""

    def apply(root: pathlib.Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(root / name) as image:
            image.save(root / name, exif=exif)

    return apply


def redraw(names: str, change: Callable[[np.ndarray], np.ndarray | Image.Image]) -> Change:
    """Changes the pixels of all PNGs that a glob finds."""

    def apply(root: pathlib.Path) -> None:
        for path in sorted(root.glob(names)):
            with Image.open(path) as image:
                changed = change(np.asarray(image))
            (changed if isinstance(changed, Image.Image) else Image.fromarray(changed)).save(path)

    return apply


def together(*changes: Change) -> Change:
    return lambda root: [change(root) for change in changes]


def cut(name: str) -> Change:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-200])


def rename(name: str, other: str) -> Change:
    return lambda root: (root / name).rename(root / other)


def deep_png(path: pathlib.Path) -> None:
    """A PNG of 16 bits a channel."""
    cv2.imwrite(str(path), np.asarray(photo(0)).astype(np.uint16) * 257)


def deep_image(name: str) -> Change:
    """Puts a PNG of 16 bits a channel in the place of an image, whatever its name says."""
    return together(lambda root: deep_png(root / "deep.png"), rename("deep.png", name))


def put(entry: Any, **values: Any) -> None:
    entry.update(values)


def put_all(entries: list[Any], **values: Any) -> None:
    for entry in entries:
        entry.update(values)


def save_photos(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        photo(seed).save(folder / name)


def make_detection(root: pathlib.Path) -> None:
    save_photos(root / "images")
    polygon = [[10, 10, 40, 10, 40, 40, 10, 40]]
    content = {
        "images": [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(NAMES)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "segmentation": polygon} for i in range(2)
        ],
        "categories": [{"id": 1, "name": "disk"}],
    }
    (root / "instances.json").write_text(json.dumps(content))


def make_masks(root: pathlib.Path) -> None:
    save_photos(root / "images")
    (root / "masks").mkdir()
    for name in NAMES:
        Image.fromarray(disk().astype(np.uint8)).save((root / "masks" / name).with_suffix(".png"))


def make_semantic(root: pathlib.Path) -> None:
    make_masks(root)
    classes = [{"id": 0, "name": "ground", "isthing": 0}, {"id": 1, "name": "disk", "isthing": 1}]
    (root / "classes.json").write_text(json.dumps(classes))


def panoptic_json(names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    area = int(disk().sum())
    segments = [
        {"id": IDS[0], "category_id": 1, "iscrowd": 0, "area": area},
        {"id": IDS[1], "category_id": 2, "iscrowd": 0, "area": SIZE[0] * SIZE[1] - area},
    ]
    return {
        "categories": [{"id": 1, "name": "disk", "isthing": 1}, {"id": 2, "name": "ground", "isthing": 0}],
        "images": [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": i, "file_name": f"{pathlib.Path(name).stem}.png", "segments_info": segments}
            for i, name in enumerate(names)
        ],
    }


def save_maps(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True)
    for name in NAMES:
        write_id_png((folder / name).with_suffix(".png"), np.where(disk(), *IDS).astype(np.int32))


def make_panoptic(root: pathlib.Path) -> None:
    for split, seed in (("train", 0), ("val", 10)):
        save_photos(root / split)
        for number, name in enumerate(NAMES):
            photo(seed + number).save(root / split / name)
        save_maps(root / "annotations" / f"panoptic_{split}")
        (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(panoptic_json()))


def make_scoring(root: pathlib.Path) -> None:
    for side in ("gt", "pred"):
        save_maps(root / side)
        content = panoptic_json() if side == "gt" else {"annotations": panoptic_json()["annotations"]}
        (root / f"{side}.json").write_text(json.dumps(content))


def make_photos(root: pathlib.Path) -> None:
    save_photos(root / "images")
    (root / "labels.json").write_text(json.dumps(panoptic_json()))
