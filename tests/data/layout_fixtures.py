"""Small data sets in the layouts of their owners, to the file name: Cityscapes, Mapillary Vistas, ADE20K.

Every writer returns what it drew, so that a test can compare what a source reads: a `Truth` per image, in the order
in which a source lists them.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image

from pfcn_jax.codec import write_id_png
from pfcn_jax.data.datasets import ade20k

SIZES = ((64, 96), (96, 64), (64, 128))


@dataclasses.dataclass(frozen=True)
class Region:
    """A rectangle (y0, x0, y1, x1) of one category; number 0: not an instance of its own."""

    box: tuple[int, int, int, int]
    category: int
    number: int = 0


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a source should give: the segments as (category id, crowd) with their masks, whatever their order."""

    image_id: str
    file_name: str
    image: np.ndarray
    segments: list[tuple[int, bool, np.ndarray]]


def draw(index: int, regions: list[Region], *, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy image, and the maps of category and number of rectangles; later ones lie over earlier ones."""
    rng = np.random.default_rng(index)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    category, number = np.full(size, -1, np.int64), np.zeros(size, np.int64)
    for region in regions:
        y0, x0, y1, x1 = region.box
        category[y0:y1, x0:x1], number[y0:y1, x0:x1] = region.category, region.number
        image[y0:y1, x0:x1] //= 1 + region.category % 5
    return image, category, number


def scene(size: tuple[int, int], *, stuff: tuple[int, int], things: tuple[int, int], ignored: int) -> list[Region]:
    """Two stuff classes, the second one in two parts; three instances of two things; an ignored corner."""
    height, width = size
    return [
        Region((0, 0, height, width), stuff[0]),
        Region((height // 2, 0, height, width), stuff[1]),
        Region((0, 0, 8, 12), stuff[1]),
        Region((height // 2 - 10, 10, height // 2 + 10, 30), things[0], 1),
        Region((height // 2 - 4, 24, height // 2 + 16, 50), things[0], 2),  # touches and covers the first
        Region((4, width - 20, 30, width - 6), things[1], 1),
        Region((height - 6, 0, height, 20), ignored),
    ]


def _segments(
    category: np.ndarray, number: np.ndarray, *, keep: set[int], things: set[int], crowd_numbers: tuple[int, ...] = ()
) -> list[tuple[int, bool, np.ndarray]]:
    segments = []
    for value in sorted(keep & set(np.unique(category).tolist())):
        mask = category == value
        if value not in things:
            segments.append((value, False, mask))
            continue
        for n in np.unique(number[mask]).tolist():
            segments.append((value, n in crowd_numbers, mask & (number == n)))
    return segments


def write_cityscapes(root: pathlib.Path, *, split: str = "train", count: int = 3) -> list[Truth]:
    """Two cities; every third image has a group of persons, the last one also a caravan (an ignored instance)."""
    evaluated = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    truths = []
    for index in range(count):
        size = SIZES[index % 3]
        regions = scene(size, stuff=(11, 7), things=(26, 24), ignored=4)
        if index % 3 == 0:
            regions.append(Region((34, size[1] - 30, 60, size[1] - 10), 24, 0))  # "persongroup": the id alone
        if index == count - 1:
            regions.append(Region((40, 60, 50, 64), 29, 1))
        image, category, number = draw(index, regions, size=size)
        city = ("aachen", "bochum")[2 * index // count]
        stem = f"{city}_{index:06d}_{19 + index:06d}"
        values = np.where(np.isin(category, list(range(24, 34))) & (number > 0), category * 1000 + number - 1, category)
        for folder in (root / "leftImg8bit" / split / city, root / "gtFine" / split / city):
            folder.mkdir(parents=True, exist_ok=True)
        path = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
        Image.fromarray(image).save(path)
        labels = root / "gtFine" / split / city / f"{stem}_gtFine"
        Image.fromarray(values.astype(np.uint16)).save(f"{labels}_instanceIds.png")
        Image.fromarray(category.astype(np.uint8)).save(f"{labels}_labelIds.png")
        pathlib.Path(f"{labels}_polygons.json").write_text("{}")
        segments = _segments(category, number, keep=evaluated, things=set(range(24, 34)), crowd_numbers=(0,))
        truths.append(Truth(stem, f"{city}/{path.name}", image, segments))
    return truths


def mapillary_labels() -> list[dict]:
    """The label list of Mapillary Vistas 1.2: name, readable, color, instances, evaluate."""
    rows = (pathlib.Path(__file__).parent / "mapillary_v1.2.txt").read_text().splitlines()
    labels = []
    for row in rows:
        name, readable, color, instances, evaluate = row.split("|")
        labels.append(
            {
                "name": name,
                "readable": readable,
                "color": [int(part) for part in color.split()],
                "instances": instances == "1",
                "evaluate": evaluate == "1",
            }
        )
    return labels


def write_mapillary(
    root: pathlib.Path, *, split: str = "training", count: int = 3, panoptic: bool, version_folder: str = ""
) -> list[Truth]:
    """With `panoptic` the COCO-panoptic files (with a crowd in the first image), else the instance files only."""
    labels = mapillary_labels()
    config = {"labels": labels, "version": "1.2", "mapping": "public", "folder_structure": "{split}/{content}/{image}"}
    root.mkdir(parents=True, exist_ok=True)
    (root / ("config_v1.2.json" if version_folder else "config.json")).write_text(json.dumps(config))
    things = {i for i, label in enumerate(labels) if label["instances"]}
    evaluated = {i for i, label in enumerate(labels) if label["evaluate"]}
    base = root / split / version_folder
    for folder in (root / split / "images", base / "instances", base / "labels"):
        folder.mkdir(parents=True, exist_ok=True)
    truths, images, annotations = [], [], []
    for index in range(count):
        size = SIZES[index % 3]
        regions = scene(size, stuff=(27, 13), things=(55, 19), ignored=65)
        image, category, number = draw(index + 10, regions, size=size)
        stem = f"{index:03d}-Ab_{index:04d}"
        path = root / split / "images" / f"{stem}.jpg"
        Image.fromarray(image).save(path, quality=95)
        image = np.array(Image.open(path))
        values = np.where(np.isin(category, list(things)), category * 256 + number, category * 256)
        Image.fromarray(values.astype(np.uint16)).save(base / "instances" / f"{stem}.png")
        Image.fromarray(category.astype(np.uint8)).save(base / "labels" / f"{stem}.png")
        crowd = (2,) if panoptic and index == 0 else ()
        segments = [
            (value + 1, is_crowd, mask)
            for value, is_crowd, mask in _segments(category, number, keep=evaluated, things=things, crowd_numbers=crowd)
        ]
        truths.append(Truth(stem, path.name, image, segments))
        images.append({"id": stem, "file_name": path.name, "height": size[0], "width": size[1]})
        annotations.append({"image_id": stem, "file_name": f"{stem}.png", "segments_info": _info(segments)})
        if panoptic:
            (base / "panoptic").mkdir(exist_ok=True)
            write_id_png(base / "panoptic" / f"{stem}.png", _paint(segments, size))
    if panoptic:
        categories = [
            {
                "id": i + 1,
                "name": label["readable"],
                "supercategory": label["name"],
                "isthing": int(label["instances"]),
                "color": label["color"],
            }
            for i, label in enumerate(labels)
            if label["evaluate"]
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (base / "panoptic" / "panoptic_2018.json").write_text(json.dumps(content))
    return truths


def write_ade20k(root: pathlib.Path, *, split: str = "training", count: int = 3, panoptic: bool) -> list[Truth]:
    """With `panoptic` the composed COCO-panoptic files besides the challenge's own."""
    base, short = root / "ADEChallengeData2016", {"training": "train", "validation": "val"}[split]
    for folder in ("images", "annotations", "annotations_instance"):
        (base / folder / split).mkdir(parents=True, exist_ok=True)
    bed, window, flag = 7, 8, 149  # categories; things number 1, 2 and 100
    red = {bed: 1, window: 2, flag: 100}
    truths, images, annotations = [], [], []
    for index in range(count):
        size = SIZES[index % 3]
        regions = scene(size, stuff=(0, 3), things=(bed, flag), ignored=-1)
        regions.append(Region((36, 52, 44, 60), window, 0))  # a thing in the semantic labels that has no instance
        image, category, number = draw(index + 20, regions, size=size)
        stem = f"ADE_{short}_{index + 1:08d}"
        path = base / "images" / split / f"{stem}.jpg"
        Image.fromarray(image).save(path, quality=95)
        image = np.array(Image.open(path))
        Image.fromarray((category + 1).astype(np.uint8)).save(base / "annotations" / split / f"{stem}.png")
        instance = np.zeros((*size, 3), np.uint8)
        unique = 0
        for thing in (bed, window, flag):
            for n in sorted(set(np.unique(number[category == thing]).tolist()) - {0}):
                unique += 1  # numbers run on over the classes of an image
                instance[(category == thing) & (number == n)] = (red[thing], unique, 0)
        Image.fromarray(instance).save(base / "annotations_instance" / split / f"{stem}.png")
        segments = _segments(category, number, keep={0, 3, bed, flag}, things={bed, flag})
        truths.append(Truth(stem, path.name, image, segments))
        images.append({"id": stem, "file_name": path.name, "height": size[0], "width": size[1]})
        annotations.append({"image_id": stem, "file_name": f"{stem}.png", "segments_info": _info(segments)})
        if panoptic:
            folder = base / f"ade20k_panoptic_{short}"
            folder.mkdir(exist_ok=True)
            write_id_png(folder / f"{stem}.png", _paint(segments, size))
    (base / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    if panoptic:
        categories = json.loads(pathlib.Path(ade20k.__file__).with_name("ade20k_classes.json").read_text())
        content = {"images": images, "annotations": annotations, "categories": categories}
        (base / f"ade20k_panoptic_{short}.json").write_text(json.dumps(content))
    return truths


def _paint(segments: list[tuple[int, bool, np.ndarray]], size: tuple[int, int]) -> np.ndarray:
    ids = np.zeros(size, np.int64)
    for row, (_, _, mask) in enumerate(segments, start=1):
        ids[mask] = row * 257
    return ids


def _info(segments: list[tuple[int, bool, np.ndarray]]) -> list[dict]:
    return [
        {"id": row * 257, "category_id": category, "iscrowd": int(crowd), "area": int(mask.sum()), "bbox": _bbox(mask)}
        for row, (category, crowd, mask) in enumerate(segments, start=1)
    ]


def _bbox(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
