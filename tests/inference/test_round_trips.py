"""docs/predict.md: its commands, run as written, make a data set with the same segments of each `predict --format`."""

from __future__ import annotations

import pathlib
import re
import shlex
import subprocess
import types
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.commands import predict
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.types import PanopticPrediction
from tests.documents import DOOR, ROOT
from tests.inference.drawn import drawn_prediction

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decoder
CLASSES = ClassTable(("person", "car", "sky"), (1, 3, 187), (True, True, False))  # the page names the stuff `sky`
# YOLO replaces the last `images` of a path by `labels`.
PREDICTED = {"a.png": drawn_prediction(), "images/b.png": drawn_prediction(mirrored=True)}
Segments = list[tuple[str, bool, bytes]]  # class, thing, pixels


class DrawnPredictor:
    """In place of a network, which would have to be trained to find anything."""

    def __init__(self, loaded: object, config: object, *, batch_size: int, mesh: object):
        self.loaded = loaded

    def stream(self, images: Iterable) -> Iterator:
        for entry, image in images:
            yield entry, image, types.SimpleNamespace(panoptic=PREDICTED[entry.image_id])


def page_lines() -> list[str]:
    """The commands of the page, each on one line."""
    match = re.search(r"<!-- round trips -->\n```bash\n(.*?)```", (ROOT / "docs/predict.md").read_text(), re.DOTALL)
    assert match
    return [line for line in match[1].replace("\\\n", " ").splitlines() if not line.startswith("#")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder in which all commands of the page ran."""
    folder = tmp_path_factory.mktemp("page")
    for name, prediction in PREDICTED.items():
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", prediction.segment_map.shape[::-1]).save(folder / "photos" / name)
    loaded = types.SimpleNamespace(classes=CLASSES, config=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(predict, "load_with_config", lambda *_: loaded)
        patch.setattr(predict, "Predictor", DrawnPredictor)
        for line in page_lines():
            if line.startswith(DOOR):
                assert front_door.main(shlex.split(line.removeprefix(DOOR))) == 0, line
            else:
                subprocess.run(line, shell=True, check=True)
    return folder


@pytest.mark.parametrize(
    ("name", "stuff"),
    [("panoptic", True), ("instances", False), ("yolo", False), ("labelme", True), ("label-studio", True)],
)
def test_the_same_segments_come_back(folder: pathlib.Path, name: str, stuff: bool):
    source = CocoFolder(folder / "data" / name, "train")
    found = {pathlib.PurePath(source[index].file_name).name: index for index in range(len(source))}
    assert set(found) == {"a.png", "b.png"}
    for image, prediction in PREDICTED.items():
        expected = segments_written(prediction, stuff)
        assert segments_read(source, found[pathlib.PurePath(image).name], stuff) == expected


def test_the_page_imports_every_format_that_has_an_importer(folder: pathlib.Path):
    text = "\n".join(page_lines())
    made = {path.name for path in (folder / "data").iterdir()}
    assert made == {"panoptic", "instances", "yolo", "labelme", "label-studio"}
    assert set(re.findall(r"--format (\S+)", text)) == {f"coco-{name}" for name in ("panoptic", "instances")} | {
        "yolo", "labelme", "label-studio"
    }  # fmt: skip


def segments_written(prediction: PanopticPrediction, stuff: bool) -> Segments:
    """The segments of a prediction, sorted."""
    found = []
    for row, (class_id, thing) in enumerate(zip(prediction.class_id.tolist(), prediction.is_thing.tolist())):
        if stuff or thing:
            found.append((CLASSES.names[class_id], thing, np.packbits(prediction.segment_map == row + 1).tobytes()))
    return sorted(found)


def segments_read(source: CocoFolder, index: int, stuff: bool) -> Segments:
    """The same of an example; importers may have put a background below the things."""
    example, classes, found = source[index], source.classes, []
    for row, c in enumerate(example.class_id.tolist()):
        if stuff or classes.is_thing[c]:
            mask = np.packbits(example.segment_map == row + 1).tobytes()
            found.append((classes.names[c], bool(classes.is_thing[c]), mask))
    return sorted(found)
