"""Cityscapes, Mapillary Vistas and ADE20K as their owners ship them: class tables, segments, ignore and crowd rules."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from pfcn_jax.data.datasets import ade20k, cityscapes, mapillary
from pfcn_jax.data.decode import decode_values
from pfcn_jax.data.example import DataError, Source
from pfcn_jax.data.registry import open_source
from tests.data import layout_fixtures as layouts


def assert_reads(source: Source, truths: list[layouts.Truth]) -> None:
    """The source gives exactly the drawn images and segments."""
    assert len(source) == len(truths)
    categories = source.classes.category_ids
    for index, truth in enumerate(truths):
        example = source[index]
        assert (example.image_id, example.file_name) == (truth.image_id, truth.file_name)
        assert source.info(index).size == example.segment_map.shape == truth.image.shape[:2]
        np.testing.assert_array_equal(example.image, truth.image)
        labelled = np.zeros(truth.image.shape[:2], bool)
        left = list(range(len(example.class_id)))
        for category, crowd, mask in truth.segments:
            rows = [row for row in left if np.array_equal(example.segment_map == row + 1, mask)]
            assert len(rows) == 1, f"category {category}: {len(rows)} equal masks"
            assert categories[example.class_id[rows[0]]] == category and bool(example.is_crowd[rows[0]]) == crowd
            left.remove(rows[0])
            labelled |= mask
        assert not left, "segments that nobody drew"
        assert not example.segment_map[~labelled].any()


def test_cityscapes_classes_are_the_benchmarks():
    table = cityscapes.class_table()
    assert (table.num_things, table.num_stuff) == (8, 11)
    assert table.names[:8] == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    assert table.names[8:11] == ("road", "sidewalk", "building") and table.names[-1] == "sky"
    by_name = {label.name: label for label in cityscapes.LABELS}
    train_ids = [by_name[name].train_id for name in table.names]
    assert train_ids == [*range(11, 19), *range(11)]
    assert [label.id for label in cityscapes.LABELS] == list(range(34))
    assert table.category_ids == (24, 25, 26, 27, 28, 31, 32, 33, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23)
    assert table.colors[2] == (0, 0, 142) and table.colors[8] == (128, 64, 128) and table.colors[-1] == (70, 130, 180)


def test_mapillary_classes_are_those_of_its_config(tmp_path):
    layouts.write_mapillary(tmp_path, panoptic=False, count=1)
    table = mapillary.class_table(mapillary.read_labels(tmp_path))
    assert (table.num_things, table.num_stuff) == (37, 28)
    assert table.names[0] == "Bird" and table.names[-1] == "Ego Vehicle" and "Unlabeled" not in table.names
    car = table.names.index("Car")
    assert (table.category_ids[car], table.colors[car], table.is_thing[car]) == (56, (0, 0, 142), True)
    assert table.supercategories[car] == "object--vehicle--car"
    assert not table.is_thing[table.names.index("On Rails")] and table.is_thing[table.names.index("Crosswalk - Plain")]


def test_ade20k_classes_are_the_challenges():
    table = ade20k.class_table()
    assert (len(table), table.num_things, table.num_stuff) == (150, 100, 50)
    assert sorted(table.category_ids) == list(range(150))
    assert (table.names[0], table.names[1], table.names[99]) == ("bed", "window", "flag")
    wall = table.names.index("wall")
    assert wall == 100 and table.colors[wall] == (120, 120, 120) and table.category_ids[wall] == 0
    assert table.names[table.category_ids.index(12)] == "person" and table.is_thing[table.category_ids.index(12)]


def test_cityscapes_reads_groups_as_crowds_and_ignores_what_the_benchmark_ignores(tmp_path):
    truths = layouts.write_cityscapes(tmp_path, count=4)
    source = open_source("cityscapes", tmp_path, "train")
    assert_reads(source, truths)
    assert source[0].is_crowd.sum() == 1 and not source[1].is_crowd.any()


@pytest.mark.parametrize("version_folder", ["", "v1.2"])
@pytest.mark.parametrize("panoptic", [False, True])
def test_mapillary_reads_panoptic_or_instance_files(tmp_path, panoptic, version_folder):
    truths = layouts.write_mapillary(tmp_path, panoptic=panoptic, version_folder=version_folder)
    source = open_source("mapillary", tmp_path, "training")
    assert_reads(source, truths)
    assert source.classes == mapillary.class_table(layouts.mapillary_labels())


@pytest.mark.parametrize("panoptic", [False, True])
@pytest.mark.parametrize("split", ["training", "validation"])
def test_ade20k_reads_panoptic_files_or_composes_them(tmp_path, panoptic, split):
    truths = layouts.write_ade20k(tmp_path, split=split, panoptic=panoptic)
    source = open_source("ade20k", tmp_path, split)
    assert_reads(source, truths)
    assert_reads(open_source("ade20k", tmp_path / "ADEChallengeData2016", split), truths)
    assert source.classes == ade20k.class_table()


def test_a_missing_part_of_a_layout_is_named(tmp_path):
    with pytest.raises(DataError, match="leftImg8bit/train:"):
        open_source("cityscapes", tmp_path, "train")
    layouts.write_cityscapes(tmp_path / "c")
    shutil.rmtree(tmp_path / "c/gtFine")
    with pytest.raises(DataError, match="gtFine/train:"):
        open_source("cityscapes", tmp_path / "c", "train")
    layouts.write_mapillary(tmp_path / "m", panoptic=False)
    with pytest.raises(DataError, match=r"validation/images: no such folder"):
        open_source("mapillary", tmp_path / "m", "validation")
    shutil.rmtree(tmp_path / "m/training/instances")
    with pytest.raises(DataError, match=r"neither panoptic/panoptic_2018\.json nor instances/"):
        open_source("mapillary", tmp_path / "m", "training")
    layouts.write_mapillary(tmp_path / "n", panoptic=False)
    (tmp_path / "n/config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config\.json:"):
        open_source("mapillary", tmp_path / "n", "training")
    layouts.write_ade20k(tmp_path / "a", panoptic=False)
    shutil.rmtree(tmp_path / "a/ADEChallengeData2016/annotations_instance")
    with pytest.raises(DataError, match="annotations_instance/training:"):
        open_source("ade20k", tmp_path / "a", "training")


def test_damage_of_one_example_is_named(tmp_path):
    layouts.write_cityscapes(tmp_path, count=4)
    labels = sorted((tmp_path / "gtFine").rglob("*_instanceIds.png"))
    labels[0].unlink()
    labels[1].write_bytes(labels[1].read_bytes()[:200])
    values = np.array(Image.open(labels[2]))
    values[0, 0] = 77
    Image.fromarray(values).save(labels[2])
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(labels[3])
    source = open_source("cityscapes", tmp_path, "train")
    kinds = []
    for index in range(4):
        with pytest.raises(DataError, match=pathlib.Path(labels[index]).name) as caught:
            source[index]
        kinds.append(caught.value.kind)
    assert kinds == ["label-missing", "label-unreadable", "label-value", "label-size"]


def test_values_of_palette_and_one_bit_pngs(tmp_path):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4) % 2
    palette = Image.new("P", (4, 3))
    palette.putpalette([7, 7, 7, 9, 9, 9])
    palette.putdata(values.reshape(-1).tolist())
    for name, image in (("palette.png", palette), ("bit.png", Image.fromarray(values.astype(bool)))):
        image.save(tmp_path / name)
        np.testing.assert_array_equal(decode_values((tmp_path / name).read_bytes(), name), values)
    Image.new("L", (2, 2)).save(tmp_path / "grey.png")
    grey = bytearray((tmp_path / "grey.png").read_bytes())
    grey[24] = 4  # bits a pixel
    with pytest.raises(DataError, match="a gray PNG of 4 bits a pixel"):
        decode_values(bytes(grey), "grey.png")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match="one value a pixel") as caught:
        decode_values((tmp_path / "rgb.png").read_bytes(), "rgb.png")
    assert caught.value.kind == "label-format"
