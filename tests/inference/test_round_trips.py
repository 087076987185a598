"""Labels -> `predict --format` -> the importer of that format -> the same segments, pixel by pixel."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.example import Source
from pfcn_jax.inference.formats import make_writer
from pfcn_jax.inference.formats.registry import ImageEntry
from pfcn_jax.inference.result import Result
from tests.inference.drawn import CLASSES, drawn_result

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decoder
NAMES = ("a", "b")


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """A result with parts, a hole and void, and its mirror image."""
    return {"a": drawn_result(), "b": drawn_result(mirrored=True)}


@pytest.fixture
def photos(results, tmp_path) -> pathlib.Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, result in results.items():
        Image.fromarray(result.image).save(folder / f"{name}.png")
    return folder


def place_panoptic(out: pathlib.Path, photos: pathlib.Path, data: pathlib.Path) -> None:
    """Panoptic files need no importer: in COCO's folders they are a data set."""
    (data / "annotations").mkdir(parents=True)
    (out / "panoptic.json").rename(data / "annotations" / "panoptic_train.json")
    (out / "panoptic").rename(data / "annotations" / "panoptic_train")
    photos.rename(data / "train")


def prepare_instances(out: pathlib.Path, photos: pathlib.Path, data: pathlib.Path) -> None:
    _prepare("instances", "--json", out / "instances.json", "--images", photos, "--output", data)


def _prepare(*words: object) -> None:
    assert front_door.main(["prepare", *map(str, words), "--split", "train"]) == 0


@pytest.mark.parametrize(
    ("name", "bring_back", "stuff"),
    [("coco-panoptic", place_panoptic, True), ("coco-instances", prepare_instances, False)],
)
def test_the_same_segments_come_back(
    name: str,
    bring_back: Callable[[pathlib.Path, pathlib.Path, pathlib.Path], None],
    stuff: bool,
    results: dict[str, Result],
    photos: pathlib.Path,
    tmp_path: pathlib.Path,
):
    writer = make_writer(name, tmp_path / "out", CLASSES)
    for number, (image, result) in enumerate(results.items(), start=1):
        writer.add(ImageEntry(image, number, image, f"{image}.png"), result)
    writer.finish(NAMES)
    bring_back(tmp_path / "out", photos, tmp_path / "data")
    source = CocoFolder(tmp_path / "data", "train")
    assert len(source) == len(NAMES)
    for index in range(len(source)):
        image = pathlib.PurePath(source[index].file_name).stem
        assert segments_read(source, index, stuff) == segments_written(results[image], stuff)


def segments_written(result: Result, stuff: bool) -> list[tuple[str, bool, bytes]]:
    """(class, thing, pixels) of each segment, sorted."""
    kept = [segment for segment in result.segments if stuff or segment.is_thing]
    return sorted((one.class_name, one.is_thing, np.packbits(result.mask(one)).tobytes()) for one in kept)


def segments_read(source: Source, index: int, stuff: bool) -> list[tuple[str, bool, bytes]]:
    """The same of an example; importers may have put a background below the things."""
    example, classes, found = source[index], source.classes, []
    for row, c in enumerate(example.class_id.tolist()):
        if stuff or classes.is_thing[c]:
            mask = np.packbits(example.segment_map == row + 1).tobytes()
            found.append((classes.names[c], bool(classes.is_thing[c]), mask))
    return sorted(found)
