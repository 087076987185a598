"""The COCO-panoptic folder: what is read, where it is found, and one clear error for each kind of damage."""

from __future__ import annotations

import io
import json
import pathlib
import pickle
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.decode import decode_ids, decode_image, jpeg_header
from pfcn_jax.data.example import DataError
from pfcn_jax.data.panoptic_json import read_index
from pfcn_jax.data.registry import open_source
from pfcn_jax.data.sources import FirstExamples
from tests.data.fixtures import tiny_examples, write_tiny_coco


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
    return write_tiny_coco(tmp_path_factory.mktemp("written"), image_format="png")


@pytest.fixture
def root(written: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy that a test may damage."""
    return shutil.copytree(written, tmp_path / "data")


def edit_json(root: pathlib.Path, change) -> None:
    path = root / "annotations/panoptic_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_folder_gives_back_what_was_written(root):
    source = open_source("coco", root, "train")
    written = tiny_examples(6)
    assert len(source) == 6
    for index, expected in enumerate(written):
        example = source[index]
        np.testing.assert_array_equal(example.image, expected.image)
        np.testing.assert_array_equal(example.segment_map, expected.segment_map)
        np.testing.assert_array_equal(example.class_id, expected.class_id)
        np.testing.assert_array_equal(example.is_crowd, expected.is_crowd)
        assert example.image.dtype == np.uint8 and example.segment_map.dtype == np.int32
        assert (example.image_id, example.file_name) == (index + 1, f"{index + 1:012d}.png")
        info = source.info(index)
        assert info.size == example.segment_map.shape == tuple(source.sizes()[index])
        assert (info.image_id, info.file_name) == (example.image_id, example.file_name)
    assert any(example.is_crowd.any() for example in written)
    for index in (-1, 6):
        with pytest.raises(IndexError, match=f"example {index} of 6"):
            source[index]


def test_jpegs_come_back_nearly(tmp_path):
    source = CocoFolder(write_tiny_coco(tmp_path, splits={"train": 2}), "train")
    difference = np.abs(source[0].image.astype(int) - tiny_examples(1)[0].image)
    assert 0 < difference.mean() < 3.0


def test_a_copy_for_a_worker_reads_the_same(root):
    copy = pickle.loads(pickle.dumps(CocoFolder(root, "val")))
    np.testing.assert_array_equal(copy[1].segment_map, CocoFolder(root, "val")[1].segment_map)


def test_layouts_are_found_or_named(root, tmp_path):
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    shutil.copytree(root / "train", other / "images/train")
    shutil.copy(root / "annotations/panoptic_train.json", other / "panoptic_train.json")
    shutil.copytree(root / "annotations/panoptic_train", other / "panoptic_train")
    assert len(CocoFolder(other, "train")) == 6
    shutil.move(other / "panoptic_train", other / "labels")
    shutil.move(other / "images/train", other / "pictures")
    shutil.move(other / "panoptic_train.json", other / "index.json")
    options = {"images_dir": "pictures", "json_file": "index.json", "labels_dir": "labels"}
    assert CocoFolder(other, "any", **options)[0].image_id == 1


def test_first_examples(root):
    source = FirstExamples(CocoFolder(root, "train"), 2)
    assert len(source) == 2 and source.sizes().shape == (2, 2) and source[1].image_id == 2
    with pytest.raises(IndexError):
        source[2]
    assert len(FirstExamples(source, 10)) == 2


def test_missing_parts_say_where_they_were_looked_for(root):
    with pytest.raises(DataError, match="nowhere: no such data directory"):
        CocoFolder(root / "nowhere", "train")
    with pytest.raises(DataError, match=r"panoptic JSON of split 'test'.*annotations/panoptic_test\.json"):
        CocoFolder(root, "test")
    (root / "train").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"images of split 'train'; looked for train, images/train, images"):
        CocoFolder(root, "train")
    (root / "elsewhere").rename(root / "train")
    (root / "annotations/panoptic_train").rename(root / "annotations/png")
    with pytest.raises(DataError, match="panoptic_train:"):
        CocoFolder(root, "train")


def set_first(part, key, value):
    def change(content):
        content[part][0][key] = value

    return change


def set_segment(key, value):
    def change(content):
        content["annotations"][0]["segments_info"][0][key] = value

    return change


def repeat_segment(content):
    segments = content["annotations"][0]["segments_info"]
    segments[1]["id"] = segments[0]["id"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_segment("category_id", 99), r"image 1, segment \d+: unknown category 99"),
        (set_segment("id", 0), "image 1, segment 0: a segment id must be in 1"),
        (set_segment("id", 1 << 24), "a segment id must be in 1"),
        (repeat_segment, r"image 1, segment \d+: this segment id appears twice"),
        (set_first("images", "id", 2), "image id 2 appears twice in images"),
        (set_first("annotations", "image_id", 2), "image id 2 appears twice in annotations"),
        (set_first("annotations", "image_id", 77), "annotation of image 77 has no entry in images"),
        (set_first("categories", "id", 2), "repeated category id: 2"),
        (lambda content: content.pop("categories"), "no categories; is it a COCO-panoptic file"),
        (lambda content: content["images"][0].pop("height"), "has no height"),
        (lambda content: content["images"][0].pop("id"), "images\\[0\\] has no id"),
        (lambda content: content["annotations"].clear(), "no annotated image"),
    ],
)
def test_a_wrong_json_is_refused_when_it_is_opened(root, change, message):
    edit_json(root, change)
    with pytest.raises(DataError, match=rf"panoptic_train\.json.*{message}"):
        CocoFolder(root, "train")


def test_a_json_that_is_none(root):
    path = root / "annotations/panoptic_train.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"panoptic_train\.json: not JSON"):
        CocoFolder(root, "train")
    with pytest.raises(DataError, match="no such panoptic JSON"):
        read_index(root / "none.json")


def test_images_without_labels_are_left_out(root):
    edit_json(root, lambda content: content["annotations"].pop(0))
    assert [CocoFolder(root, "train").info(i).image_id for i in range(5)] == [2, 3, 4, 5, 6]


IMAGE, LABELS = "train/000000000001.png", "annotations/panoptic_train/000000000001.png"


@pytest.mark.parametrize("file", [IMAGE, LABELS])
def test_missing_and_broken_files_are_named(root, file):
    path, source = root / file, CocoFolder(root, "train")
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:40], b"", b"no image at all"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{file} \(image 1\).*(broken|not a PNG)"):
            source[0]
    path.unlink()
    with pytest.raises(DataError, match=rf"{file} \(image 1\)"):
        source[0]
    assert source[1].image_id == 2


def test_sizes_that_differ_are_named(root):
    source = CocoFolder(root, "train")
    with Image.open(root / IMAGE) as image:
        rotated = image.transpose(Image.Transpose.ROTATE_90)
    rotated.save(root / IMAGE)
    with pytest.raises(
        DataError,
        match=r"1\.png \(image 1\): is 128 x 96 .* 96 x 128 .*are exchanged",
    ):
        source[0]
    edit_json(root, lambda content: content["images"][0].update(height=128, width=96))
    with pytest.raises(DataError, match=r"is 128 x 96 .*but its labels .*panoptic_train.* are 96 x 128"):
        CocoFolder(root, "train")[0]


def test_labels_that_do_not_fit_their_json_are_named(root):
    path = root / LABELS
    pixels = np.array(Image.open(path))
    strange = pixels.copy()
    strange[0, :2] = (1, 2, 3), (5, 0, 200)
    Image.fromarray(strange).save(path)
    with pytest.raises(DataError, match=rf"{LABELS} \(image 1\): segment ids 197121, 13107205 are painted but not in"):
        CocoFolder(root, "train")[0]
    gone = pixels.copy()
    value = pixels[10, 10].astype(int)
    gone[(pixels == pixels[10, 10]).all(-1)] = 0
    Image.fromarray(gone).save(path)
    number = value[0] + 256 * value[1] + 65536 * value[2]
    with pytest.raises(DataError, match=rf"segment ids {number} are in the JSON but have no pixels"):
        CocoFolder(root, "train")[0]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_kind_of_image_becomes_rgb_as_pillow_says():
    rgb = Image.fromarray(tiny_examples(1)[0].image)
    for drawn, kind, *options in (
        (rgb, "JPEG"),
        (rgb, "JPEG", {"progressive": True}),
        (rgb, "JPEG", {"comment": b"of any length " * 500}),
        (rgb.convert("L"), "JPEG"),
        (rgb.convert("CMYK"), "JPEG"),
        (rgb, "PNG"),
        (rgb.convert("L"), "PNG"),
        (rgb.convert("P"), "PNG"),
        (rgb.convert("RGBA"), "PNG"),
    ):
        data = encoded(drawn, kind, **(options[0] if options else {}))
        ours = decode_image(data, "x")
        assert ours.dtype == np.uint8 and ours.shape == (96, 128, 3)
        np.testing.assert_array_equal(ours, np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_jpeg_that_claims_to_be_huge_is_refused():
    data = encoded(Image.fromarray(tiny_examples(1)[0].image), "JPEG")
    frame = data.index(b"\xff\xc0")
    for size in (b"\x9c\x40\x9c\x40", b"\xff\xff\xff\xff"):
        with pytest.raises(DataError, match=r"\d+ megapixels"):
            decode_image(data[: frame + 5] + size + data[frame + 9 :], "x")


def test_jpeg_header_is_what_pillow_reads():
    rgb = Image.fromarray(tiny_examples(1)[0].image)
    for drawn, channels in ((rgb, 3), (rgb.convert("L"), 1), (rgb.convert("CMYK"), 4)):
        data = encoded(drawn, "JPEG")
        header = (8, 96, 128, channels)
        assert jpeg_header(data) == header and jpeg_header(data).is_plain == (channels != 4)
        # A marker may be preceded by bytes that fill up, and markers without a length may stand between.
        assert jpeg_header(data[:2] + b"\xff\xff\xff\x01" + data[2:]) == header
        assert jpeg_header(data[:30]) is None and jpeg_header(data[2:]) is None
        assert jpeg_header(data[:2] + b"\0" + data[2:]) is None
    assert jpeg_header(encoded(rgb, "PNG")) is None


def test_exif_orientation_is_ignored_because_labels_follow_the_pixels():
    rgb = Image.fromarray(tiny_examples(1)[0].image)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to show"
    assert decode_image(encoded(rgb, "JPEG", exif=exif), "x").shape == (96, 128, 3)


def test_a_jpeg_cut_short_is_refused_and_trailing_bytes_are_not():
    data = encoded(Image.fromarray(tiny_examples(1)[0].image), "JPEG")
    for length in (len(data) - 2, len(data) // 2, 300):
        with pytest.raises(DataError, match="x: broken image"):
            decode_image(data[:length], "x")
    whole = decode_image(data, "x")
    for tail in (b"\0" * 10, b"\0" * 500):
        np.testing.assert_array_equal(decode_image(data + tail, "x"), whole)


def test_more_than_8_bits_are_refused():
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900)
    with pytest.raises(DataError, match="x: an image of mode I;16"):
        decode_image(encoded(deep, "PNG"), "x")
    colour = cv2.imencode(".png", np.full((8, 8, 3), 900, np.uint16))[1].tobytes()
    with pytest.raises(DataError, match="8 bits"):
        decode_image(colour, "x")


def test_labels_that_are_no_rgb_png_are_refused():
    rgb = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for image in (rgb.convert("L"), rgb.convert("P"), rgb.convert("RGBA")):
        with pytest.raises(DataError, match="x: a panoptic PNG must be 8-bit RGB"):
            decode_ids(encoded(image, "PNG"), "x")
    with pytest.raises(DataError, match="x: not a PNG file"):
        decode_ids(encoded(rgb, "JPEG"), "x")


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_images(image_data_dir, split):
    source = CocoFolder(image_data_dir / "coco_sample", split)
    assert (source.classes.num_things, source.classes.num_stuff) == (80, 53)
    assert source.classes.names[0] == "person" and source.classes.names[80] == "banner"
    for index in range(0, len(source), 10):
        example = source[index]
        np.testing.assert_array_equal(
            np.bincount(example.segment_map.reshape(-1), minlength=len(example.class_id) + 1)[1:] > 0, True
        )
