"""The Python API: images in every form, the result, and what is said about things that are no images."""

from __future__ import annotations

import io
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps

import pfcn_jax
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.data.decode import decode_ids, decode_image
from pfcn_jax.errors import UserError
from pfcn_jax.inference.api import read_image
from pfcn_jax.inference.result import make_result
from pfcn_jax.types import PanopticPrediction
from tests.support.tiny import write_tiny_model

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return Scenes("val", size=(48, 64))[3].image


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pfcn_jax.Model:
    with jax.numpy_dtype_promotion("standard"):
        return pfcn_jax.load(write_tiny_model(tmp_path_factory.mktemp("tiny")))


def test_importing_is_light():
    code = (
        "import sys, pfcn_jax; from pfcn_jax import load; assert 'load' in dir(pfcn_jax)\n"
        "sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'flax', 'orbax', 'cv2', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        pfcn_jax.laod  # noqa: B018


def test_frames_of_a_video_keep_their_ids(model, scene):
    first, second = model.track([scene, Image.fromarray(scene)])
    assert first.tracked and [segment.id for segment in first.segments] == [segment.id for segment in second.segments]
    np.testing.assert_array_equal(first.segment_map, second.segment_map)
    assert {segment.id for segment in first.segments} == set(np.unique(first.segment_map)) - {0}
    assert min(segment.id for segment in first.segments if segment.is_thing) > len(model.classes)


def test_the_result_of_an_image_in_every_form(model, scene, tmp_path):
    result = model(scene)
    assert isinstance(result, pfcn_jax.Result) and result.size == (48, 64)
    assert len(result.segments) > 1 and {segment.is_thing for segment in result.segments} == {True, False}
    for segment in result.segments:
        mask = result.mask(segment)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert segment.area == mask.sum()
        assert segment.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert segment.class_name == model.classes.names[segment.class_id]
        assert segment.category_id == model.classes.category_ids[segment.class_id]
        assert 0 <= segment.score <= 1
    assert set(np.unique(result.segment_map)) - {0} == {segment.id for segment in result.segments}

    Image.fromarray(scene).save(tmp_path / "scene.png")
    alpha = np.concatenate([scene, np.full((48, 64, 1), 7, np.uint8)], axis=2)
    for form in (tmp_path / "scene.png", str(tmp_path / "scene.png"), Image.fromarray(scene), alpha):
        np.testing.assert_array_equal(model(form).segment_map, result.segment_map)
    assert model(tmp_path / "scene.png").name == "scene" and model(scene).name == "image"


def test_what_a_result_says_draws_and_saves(model, scene, tmp_path):
    result = model(scene)
    assert repr(result).startswith(f"<Result 48 x 64 (height x width), {len(result.segments)} segments: ")
    assert str(model.classes.num_things) in repr(model) and "quickstart" in repr(model)
    assert result.overlay().size == (320, 240)  # magnified, so that names can be read
    plain = np.asarray(result.overlay(scale=1, alpha=0.0, labels=False))
    assert plain.shape == scene.shape
    folder = result.save(tmp_path / "new" / "folder", name="scene")
    assert sorted(path.name for path in folder.iterdir()) == ["scene.json", "scene.png", "scene_overlay.png"]
    np.testing.assert_array_equal(decode_ids((folder / "scene.png").read_bytes(), "a.png"), result.segment_map)
    written = json.loads((folder / "scene.json").read_text())
    assert [info["id"] for info in written["annotations"][0]["segments_info"]] == [s.id for s in result.segments]
    first, info = result.segments[0], written["annotations"][0]["segments_info"][0]
    x0, y0, x1, y1 = first.box
    assert info["bbox"] == [x0, y0, x1 - x0, y1 - y0] and info["area"] == first.area
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        result.save(tmp_path / "file")


def test_a_result_without_segments_is_a_result(model, scene):
    nothing = np.zeros(4, np.int32)
    empty = PanopticPrediction(np.zeros((48, 64), np.int32), nothing, nothing > 0, nothing * 0.0, nothing, nothing > 0)
    result = make_result(scene, empty, model.classes)
    assert repr(result) == "<Result 48 x 64 (height x width), 0 segments>"
    np.testing.assert_array_equal(result.overlay(scale=1), scene)


def test_settings_change_the_prediction_and_unknown_ones_are_refused(model, scene):
    strict = pfcn_jax.load(model.path, merge_score=2.0)
    assert not any(segment.is_thing for segment in strict(scene).segments)
    with pytest.raises(UserError, match=r"merge_scroe: .*'merge_score'"):
        pfcn_jax.load(model.path, merge_scroe=0.5)
    with pytest.raises(UserError, match="nowhere: no checkpoint here"):
        pfcn_jax.load("nowhere")


def test_all_eight_orientations_are_turned_as_pillow_does(scene):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        Image.fromarray(scene).save(file, "PNG", exif=exif)
        upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue()))))
        np.testing.assert_array_equal(decode_image(file.getvalue(), "x", upright=True), upright)
        np.testing.assert_array_equal(decode_image(file.getvalue(), "x"), scene)
        opened = Image.open(io.BytesIO(file.getvalue()))
        np.testing.assert_array_equal(read_image(opened)[0], upright)
        np.testing.assert_array_equal(read_image(opened, upright=False)[0], scene)


def test_exif_data_that_cannot_be_read_turn_nothing(scene):
    for damaged in (b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03"):
        file = io.BytesIO()
        Image.fromarray(scene).save(file, "JPEG", exif=damaged)
        assert decode_image(file.getvalue(), "x", upright=True).shape == scene.shape


def test_grey_is_grey_in_three_channels(scene):
    grey = Image.fromarray(scene).convert("L")
    for form in (grey, np.array(grey), np.array(grey)[:, :, None]):
        image, _ = read_image(form)
        assert image.shape == scene.shape and (image == np.array(grey)[:, :, None]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: np.zeros((4, 4, 3)), r"float64 \[4, 4, 3\] is no image: expected uint8 of 0..255; bring it"),
        (lambda path: np.zeros((4, 4, 3), bool), "an array of bool"),
        (lambda path: np.zeros((4, 4, 2), np.uint8), r"shape \[4, 4, 2\] is no image"),
        (lambda path: np.zeros((2, 4, 4, 3), np.uint8), r"shape \[2, 4, 4, 3\]"),
        (lambda path: np.zeros((0, 4, 3), np.uint8), r"shape \[0, 4, 3\]"),
        (lambda path: 7, "got int"),
        (lambda path: None, "got NoneType"),
        (lambda path: Image.new("F", (4, 4)), "mode F"),
        (lambda path: Image.new("RGB", (0, 4)), "4 x 0 .height x width."),
        (lambda path: path / "missing.jpg", "missing.jpg: No such file"),
        (lambda path: path, "a folder; call the model with one image"),
        (lambda path: path / "text.jpg", "text.jpg: broken image"),
        (lambda path: Image.open(path / "cut.png"), "cut.png: broken image"),
    ],
)
def test_what_is_no_image_is_one_clear_error(make, message, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(file, "PNG")
    (tmp_path / "cut.png").write_bytes(file.getvalue()[:2000])
    with pytest.raises(UserError, match=message):
        read_image(make(tmp_path))
