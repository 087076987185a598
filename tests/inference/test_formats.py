"""What `predict --format` writes, read back by the tools' own rules: the same pixels, classes and scores."""

from __future__ import annotations

import base64
import io
import json
import pathlib

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pfcn_jax.data.decode import decode_ids
from pfcn_jax.errors import UserError
from pfcn_jax.inference.formats import FORMATS, make_writer
from pfcn_jax.inference.formats.registry import ImageEntry
from pfcn_jax.inference.result import Result
from tests.inference.drawn import CLASSES, drawn_result

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decoder


@pytest.fixture(scope="module")
def result() -> Result:
    return drawn_result()


@pytest.fixture
def written(result, tmp_path, monkeypatch):
    """A function: format -> the folder after two images, the later one first in order."""

    def write(name: str) -> pathlib.Path:
        for number in (1, 2):
            path = tmp_path / f"photos/sub/p{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"image %d" % number)
        monkeypatch.chdir(tmp_path)
        writer = make_writer(name, tmp_path, CLASSES)
        for number in (2, 1):
            writer.add(ImageEntry(f"k{number}", number, f"sub/p{number}", f"photos/sub/p{number}.jpg"), result)
        writer.finish(["k1", "k2"])
        return tmp_path

    return write


def fill(points: np.ndarray) -> np.ndarray:
    rle = coco_mask.frPyObjects([np.asarray(points, float).reshape(-1).tolist()], 20, 30)
    return coco_mask.decode(coco_mask.merge(rle)).astype(bool)


def test_coco_panoptic(written, result):
    folder = written("coco-panoptic")
    content = json.loads((folder / "panoptic.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2]
    assert [entry["category_id"] for entry in content["annotations"][0]["segments_info"]] == [7, 9, 21]
    assert content["annotations"][0] == result.to_coco(1, "sub/p1.png")  # from Python the same
    np.testing.assert_array_equal(
        decode_ids((folder / "panoptic" / "sub" / "p1.png").read_bytes(), "a.png"), result.segment_map
    )


def test_coco_instances_are_what_the_coco_api_loads(written, result):
    folder = written("coco-instances")
    content = json.loads((folder / "instances.json").read_text())
    assert [entry["area"] for entry in content["annotations"][:2]] == [24, 56]
    own = [{"id": number, **entry} for number, entry in enumerate(result.to_coco_instances(1), start=1)]
    assert own == content["annotations"][:2]  # from Python the same
    coco = COCO()  # loading changes the entries
    coco.dataset = {"images": content["images"], "categories": content["categories"]}
    coco.createIndex()
    loaded = coco.loadRes(content["annotations"])
    found = loaded.loadAnns(loaded.getAnnIds(imgIds=[1]))
    assert [(entry["category_id"], entry["score"]) for entry in found] == [(7, 0.9), (9, 0.75)]
    for entry, segment in zip(found, result.segments):
        np.testing.assert_array_equal(loaded.annToMask(entry).astype(bool), result.mask(segment))
        x, y, width, height = entry["bbox"]
        assert (x, y, x + width, y + height) == segment.box
    assert [entry["id"] for entry in content["categories"]] == [7, 9]


def test_yolo_polygons_fill_to_the_same_pixels(written, result):
    folder = written("yolo")
    assert yaml.safe_load((folder / "data.yaml").read_text()) == {
        "train": "images",
        "names": {0: "cat", 1: 'dog "Rex"'},
    }
    assert (folder / "images/sub/p1.jpg").read_bytes() == b"image 1"
    lines = (folder / "labels" / "sub" / "p1.txt").read_text().splitlines()
    assert len(lines) == 2
    for line, segment in zip(lines, result.segments):
        number, *values = line.split()
        assert int(number) == segment.class_id
        points = np.array(values, float).reshape(-1, 2)
        assert points.min() >= 0.0 and points.max() <= 1.0
        np.testing.assert_array_equal(fill(np.rint(points * [30, 20])), result.mask(segment))


def test_labelme_shapes(written, result):
    folder = written("labelme")
    path = folder / "labelme" / "sub" / "p1.json"
    content = json.loads(path.read_text())
    assert (path.parent / content["imagePath"]).resolve() == pathlib.Path("photos/sub/p1.jpg").resolve()
    assert (content["imageHeight"], content["imageWidth"]) == (20, 30)
    kinds = [shape["shape_type"] for shape in content["shapes"]]
    assert kinds == ["polygon", "mask", "mask"]
    for shape, segment in zip(content["shapes"], result.segments):
        assert shape["label"] == segment.class_name and shape["group_id"] == segment.id
        if shape["shape_type"] == "polygon":
            mask = fill(shape["points"])
        else:
            (x0, y0), (x1, y1) = np.array(shape["points"], int)
            mask = np.zeros((20, 30), bool)
            mask[y0 : y1 + 1, x0 : x1 + 1] = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
        np.testing.assert_array_equal(mask, result.mask(segment))


def test_label_studio_tasks(written, result):
    folder = written("label-studio")
    tasks = json.loads((folder / "label_studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["photos/sub/p1.jpg", "photos/sub/p2.jpg"]
    (prediction,) = tasks[0]["predictions"]
    for region, segment in zip(prediction["result"], result.segments):
        assert (region["original_width"], region["original_height"]) == (30, 20)
        assert region["value"]["polygonlabels"] == [segment.class_name]
        points = np.array(region["value"]["points"]) * [0.3, 0.2]
        np.testing.assert_array_equal(fill(np.rint(points)), result.mask(segment))
    import xml.etree.ElementTree as ElementTree

    labels = ElementTree.parse(folder / "label_studio.xml").getroot().iter("Label")
    assert [label.get("value") for label in labels] == list(CLASSES.names)


def test_geojson_polygons_have_their_holes(written, result):
    folder = written("geojson")
    features = json.loads((folder / "geojson" / "sub" / "p1.geojson").read_text())["features"]
    assert [feature["geometry"]["type"] for feature in features] == ["Polygon", "MultiPolygon", "MultiPolygon"]
    for feature, segment in zip(features, result.segments):
        geometry = feature["geometry"]
        parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        mask = np.zeros((20, 30), bool)
        for outer, *holes in parts:
            assert outer[0] == outer[-1]
            mask |= fill(outer[:-1]) & ~np.any([fill(hole[:-1]) for hole in holes] or [np.zeros_like(mask)], axis=0)
        np.testing.assert_array_equal(mask, result.mask(segment))
        assert feature["properties"]["class"] == segment.class_name


def test_an_unknown_format_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="labelme"):
        make_writer("pascal", tmp_path, CLASSES)
    assert set(FORMATS) == {"coco-panoptic", "coco-instances", "yolo", "labelme", "label-studio", "geojson"}
