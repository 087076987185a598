"""TFDS without TensorFlow: the same examples as from the folder or the zips, and directories others prepared."""

from __future__ import annotations

import json
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.datasets.coco_zips import CocoZips
from pfcn_jax.data.example import DataError, Source
from pfcn_jax.data.registry import open_source
from tests.data.fixtures import write_tiny_coco

tfds_source = pytest.importorskip("pfcn_jax.data.datasets.tfds")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    return write_tiny_coco(tmp_path_factory.mktemp("tiny"), splits={"train": 5, "val": 3})


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory) -> pathlib.Path:
    parts = {"train": CocoFolder(root, "train"), "validation": CocoFolder(root, "val")}
    return tfds_source.prepare(tmp_path_factory.mktemp("tfds"), parts)


def assert_same_examples(ours: Source, theirs: Source, count: int) -> None:
    assert ours.classes == theirs.classes
    np.testing.assert_array_equal(ours.sizes()[:count], theirs.sizes()[:count])
    for index in range(count):
        a, b = ours[index], theirs[index]
        assert (a.image_id, a.file_name) == (b.image_id, b.file_name)
        assert ours.info(index) == theirs.info(index)
        for field in ("image", "segment_map", "class_id", "is_crowd"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
            assert getattr(a, field).dtype == getattr(b, field).dtype


@pytest.mark.parametrize(("split", "folder_split"), [("train", "train"), ("validation", "val")])
def test_the_same_examples_as_from_the_folder(root, prepared, split, folder_split):
    source = open_source("tfds", prepared, split)
    folder = CocoFolder(root, folder_split)
    assert len(source) == len(folder)
    assert_same_examples(source, folder, len(folder))
    assert_same_examples(pickle.loads(pickle.dumps(source)), folder, 1)
    # The data directory above serves as root, too.
    assert len(open_source("tfds", prepared.parents[2], split)) == len(folder)


def test_features_and_boxes_are_those_of_tfds_own_builder(prepared):
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(str(prepared)).info
    assert (info.name, info.config_name, str(info.version)) == ("coco", "2017_panoptic", "1.1.0")
    assert set(info.features) == {
        "image", "image/filename", "image/id", "panoptic_image", "panoptic_image/filename", "panoptic_objects",
    }  # fmt: skip
    assert set(info.features["panoptic_objects"].feature) == {"id", "area", "bbox", "label", "is_crowd"}
    record = tfds.builder_from_directory(str(prepared)).as_data_source(
        split="validation", decoders=tfds_source.DECODERS
    )[0]
    objects = record["panoptic_objects"]
    boxes = np.array(objects["bbox"])
    assert boxes.shape == (len(objects["id"]), 4) and (boxes >= 0).all() and (boxes <= 1).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all() and min(objects["area"]) > 0


def test_a_directory_without_our_index_is_scanned_once(root, prepared, tmp_path, monkeypatch):
    other = tmp_path / "coco"
    other.mkdir()
    for file in prepared.iterdir():
        if file.name != tfds_source.INDEX_FILE:
            (other / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"10 classes from 'ball' to 'sand' are not COCO's"):
        tfds_source.TfdsSource(other, "train")
    monkeypatch.setattr(tfds_source, "coco_class_table", lambda names: CocoFolder(root, "train").classes)
    assert_same_examples(tfds_source.TfdsSource(other, "train"), CocoFolder(root, "train"), 5)
    index = json.loads((other / tfds_source.INDEX_FILE).read_text())
    assert list(index["splits"]) == ["train"]
    monkeypatch.setattr(tfds_source, "coco_class_table", None)
    assert_same_examples(tfds_source.TfdsSource(other, "validation"), CocoFolder(root, "val"), 3)
    index["splits"]["train"]["record"].pop()
    (other / tfds_source.INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"panoptic_index\.json: .*4.*5"):
        tfds_source.TfdsSource(other, "train")


def test_the_coco_table_from_names_equals_the_one_from_the_json(image_data_dir):
    table = CocoFolder(image_data_dir / "coco_sample", "val2017").classes
    ours = tfds_source.coco_class_table(list(table.names))
    assert (ours.names, ours.category_ids, ours.is_thing) == (table.names, table.category_ids, table.is_thing)


def test_real_images_come_back_the_same(image_data_dir, tmp_path):
    folder = CocoFolder(image_data_dir / "coco_sample", "val2017")
    root = tfds_source.prepare(tmp_path, {"validation": folder})
    assert_same_examples(open_source("tfds", root, "validation"), folder, 8)


def test_what_is_not_there_is_named(prepared, tmp_path, root):
    with pytest.raises(DataError, match=r"2017_panoptic.1\.1\.0:"):
        tfds_source.TfdsSource(tmp_path, "train")
    with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
        tfds_source.TfdsSource(prepared, "test")
    with pytest.raises(IndexError):
        tfds_source.TfdsSource(prepared, "train")[5]


def write_zips(root: pathlib.Path, target: pathlib.Path, *, splits: tuple[str, ...] = ("train", "val")) -> None:
    """The layout of COCO's downloads."""
    annotations = target / "panoptic_annotations_trainval.zip"
    for split in splits:
        with zipfile.ZipFile(target / f"{split}.zip", "w") as archive:
            for file in (root / split).iterdir():
                archive.write(file, f"{split}/{file.name}")
        inner = target / f"panoptic_{split}.zip"
        with zipfile.ZipFile(inner, "w") as archive:
            for file in (root / f"annotations/panoptic_{split}").iterdir():
                archive.write(file, f"panoptic_{split}/{file.name}")
        with zipfile.ZipFile(annotations, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.write(root / f"annotations/panoptic_{split}.json", f"annotations/panoptic_{split}.json")
            archive.write(inner, f"annotations/panoptic_{split}.zip")
        inner.unlink()


def test_zips_are_read_in_place(root, tmp_path):
    with pytest.raises(DataError, match=r"train\.zip: no such file"):
        CocoZips(tmp_path, "train")
    write_zips(root, tmp_path)
    assert_same_examples(CocoZips(tmp_path, "val"), CocoFolder(root, "val"), 3)
    tfds_source.prepare(tmp_path / "tfds", {"train": CocoZips(tmp_path, "train")}, name="shapes")
    ours = tfds_source.TfdsSource(tmp_path / "tfds", "train", dataset="shapes")
    assert_same_examples(ours, CocoFolder(root, "train"), 5)
    (tmp_path / "other.zip").write_bytes((tmp_path / "train.zip").read_bytes())
    with pytest.raises(DataError, match=r"no annotations/panoptic_other\.json in panoptic_annotations_trainval\.zip"):
        CocoZips(tmp_path, "other")
    content = (tmp_path / "panoptic_annotations_trainval.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "panoptic_annotations_trainval.zip", "w") as archive:
        archive.writestr("annotations/panoptic_train.json", (root / "annotations/panoptic_train.json").read_bytes())
        archive.writestr("annotations/panoptic_train.zip", b"PK no")
    with pytest.raises(DataError, match=r"panoptic_annotations_trainval\.zip:"):
        CocoZips(tmp_path, "train")
    (tmp_path / "panoptic_annotations_trainval.zip").write_bytes(content)
    (tmp_path / "val.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match=r"val\.zip: broken zip"):
        CocoZips(tmp_path, "val")
    (tmp_path / "panoptic_annotations_trainval.zip").unlink()
    with pytest.raises(DataError, match=r"no panoptic_annotations\*\.zip \(found other\.zip, train\.zip, val\.zip\)"):
        CocoZips(tmp_path, "train")


def test_an_image_missing_in_its_zip_is_named(root, tmp_path):
    write_zips(root, tmp_path)
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
        archive.writestr("val/readme.txt", "empty")
    with pytest.raises(DataError, match=r"val/000000000001\.jpg \(image 1\):"):
        CocoZips(tmp_path, "val")[0]


def test_records_of_other_data_are_not_taken_for_these(root, tmp_path):
    tfds_source.prepare(tmp_path, {"train": CocoFolder(root, "train")})
    assert tfds_source.prepare(tmp_path, {"train": CocoFolder(root, "train")}).exists()
    more = write_tiny_coco(tmp_path / "more", splits={"train": 6})
    with pytest.raises(DataError, match=r"5 images in train, .* 6"):
        tfds_source.prepare(tmp_path, {"train": CocoFolder(more, "train")})
    content = (root / "annotations/panoptic_train.json").read_text()
    first = CocoFolder(root, "train").classes.names[0]
    try:
        (root / "annotations/panoptic_train.json").write_text(content.replace(f'"{first}"', '"renamed"'))
        with pytest.raises(DataError, match="holds other data already"):
            tfds_source.prepare(tmp_path, {"train": CocoFolder(root, "train")})
    finally:
        (root / "annotations/panoptic_train.json").write_text(content)


def test_a_damaged_record_is_named(prepared, monkeypatch):
    source = tfds_source.TfdsSource(prepared, "train")

    class Damaged:
        def __getitem__(self, index):
            raise RuntimeError("DATA_LOSS: corrupted chunk")

    monkeypatch.setattr(source, "_records", Damaged())
    with pytest.raises(DataError, match=r"its record cannot be read \(DATA_LOSS"):
        source[0]


def test_broken_examples_are_not_written(root, tmp_path):
    class Broken(CocoFolder):
        def read(self, name: str) -> bytes:
            return super().read(name)[:-100] if name.endswith(".jpg") else super().read(name)

    with pytest.raises(Exception, match=r"000000000001\.jpg \(image 1\):"):
        tfds_source.prepare(tmp_path, {"train": Broken(root, "train")})
    other = write_tiny_coco(tmp_path / "other", splits={"val": 1})
    content = json.loads((other / "annotations/panoptic_val.json").read_text())
    content["categories"][0]["name"] = "renamed"
    (other / "annotations/panoptic_val.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="do not have one class table in common"):
        tfds_source.prepare(tmp_path, {"train": CocoFolder(root, "train"), "validation": CocoFolder(other, "val")})


def test_reading_never_loads_tensorflow(prepared):
    code = (
        "import sys; from pfcn_jax.data.registry import open_source; "
        f"open_source('tfds', {str(prepared)!r}, 'train')[0]; sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
