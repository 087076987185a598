"""`predict`: what it finds, how it batches, and what it writes for images and videos."""

from __future__ import annotations

import csv
import json
import pathlib

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.checkpoints.loading import load_checkpoint
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.data.decode import decode_ids
from pfcn_jax.errors import UserError
from pfcn_jax.inference.input_files import find_inputs, output_names
from pfcn_jax.inference.predictor import Predictor
from pfcn_jax.parallel.sharding import data_mesh
from tests.data.fixtures import write_tiny_coco
from tests.support.tiny import write_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    with jax.numpy_dtype_promotion("standard"):
        return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def scene(index: int, size=(48, 64)) -> np.ndarray:
    return Scenes("val", size=size)[index].image


def write_video(path: pathlib.Path, count: int, size=(48, 64)) -> pathlib.Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, size[::-1])
    for index in range(count):
        writer.write(scene(index, size)[:, :, ::-1])
    writer.release()
    return path


def predict(checkpoint: pathlib.Path, output: pathlib.Path, *argv: str | pathlib.Path) -> int:
    return front_door.main(["predict", "--checkpoint", str(checkpoint), "--output", str(output), *map(str, argv)])


def read_video(path: pathlib.Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def test_files_folders_and_globs_are_found_once_each(tmp_path):
    for name in ("b.png", "a.jpg", "deep/er/a.png", "deep/film.mp4", "deep/notes.txt", "out/overlay/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    output = tmp_path / "out"
    found = find_inputs([str(tmp_path)], exclude=output)
    assert [entry.name for entry in found] == ["a", "b", "deep/er/a", "deep/film"]
    assert [entry.is_video for entry in found] == [False, False, False, True]
    assert found[2].image_id == "deep/er/a.png"
    again = find_inputs([str(tmp_path / "b.png"), str(tmp_path), f"{tmp_path}/**/*.png"], exclude=output)
    assert [entry.name for entry in again] == ["b", "a", "deep/er/a", "deep/film"]
    assert [entry.name for entry in find_inputs([f"{tmp_path}/deep/**"])] == ["a", "film"]
    assert [entry.name for entry in find_inputs([f"{tmp_path}/dee*"])] == ["er/a", "film"]
    for word, message in (("gone", "gone: no such file"), ("*.gone", "matches no file"), ("deep/er/..", "nothing to")):
        (tmp_path / "deep/er/a.png").unlink(missing_ok=True), (tmp_path / "deep/film.mp4").unlink(missing_ok=True)
        with pytest.raises(UserError, match=message):
            find_inputs([str(tmp_path / word)])


def test_names_never_collide():
    assert list(output_names(["x.png", "x.jpg", "x_2.jpg", "y/x.png"])) == ["x", "x_2", "x_2_2", "y/x"]


@pytest.mark.slow
def test_batches_over_devices_give_what_single_images_give(checkpoint):
    loaded = load_checkpoint(checkpoint)
    single = Predictor(loaded, loaded.config)
    batched = Predictor(loaded, loaded.config, batch_size=3, mesh=data_mesh())
    assert batched.batch_size == 4  # rounded up to two devices
    images = [(index, scene(index, size)) for index, size in enumerate([(48, 64), (64, 48)] * 2 + [(48, 64)])]
    seen = {}
    for index, image, prediction in batched.stream(images):
        assert image is images[index][1]
        seen[index] = prediction.panoptic
    assert sorted(seen) == [0, 1, 2, 3, 4]
    for index, image in images[:2]:
        alone = single(image).panoptic
        np.testing.assert_array_equal(seen[index].segment_map, alone.segment_map)
        np.testing.assert_array_equal(seen[index].class_id, alone.class_id)


def test_images_videos_and_broken_files_in_one_go(checkpoint, tmp_path, capsys):
    folder, output = tmp_path / "in", tmp_path / "in" / "out"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(scene(0)).save(folder / "first.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(scene(1)).save(folder / "sub" / "second.png", exif=turned)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "broken.mp4").write_bytes(b"no video")
    write_video(folder / "film.mp4", 3)
    assert predict(checkpoint, output, folder, "--frame-maps") == 1
    captured = capsys.readouterr()
    assert "2 images and 3 frames of 2 videos segmented" in captured.out
    for message in ("broken.jpg: broken image", "broken.mp4: cannot be opened", "2 of 5 could not be segmented"):
        assert message in captured.err

    written = json.loads((output / "panoptic.json").read_text())
    assert [image["id"] for image in written["images"]] == ["first.png", "sub/second.png"]
    assert [(image["height"], image["width"]) for image in written["images"]] == [(48, 64), (64, 48)]  # upright
    for entry in written["annotations"]:
        ids = decode_ids((output / "panoptic" / entry["file_name"]).read_bytes(), entry["file_name"])
        areas = {info["id"]: info["area"] for info in entry["segments_info"]}
        assert areas and {int(value): int((ids == value).sum()) for value in np.unique(ids) if value} == areas
        assert Image.open(output / "overlay" / entry["file_name"]).mode == "RGB"

    lines = [json.loads(line) for line in (output / "frames" / "film.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["seconds"]) for line in lines] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert all(line["segments_info"] for line in lines)
    assert [frame.shape for frame in read_video(output / "overlay" / "film.mp4")] == [(240, 320, 3)] * 3
    assert len(list((output / "panoptic" / "film").glob("*.png"))) == 3
    table = list(csv.DictReader((output / "classes.csv").open()))
    assert [row["name"] for row in table][:2] == ["ball", "crate"] and len(table) == 10
    segments = [entry["segments_info"] for entry in written["annotations"] + lines]
    assert sum(int(row["segments"]) for row in table) == sum(map(len, segments))

    # Again, drawing nothing: the output lies inside the input folder and is not taken for images.
    assert predict(checkpoint, output, folder / "first.png", folder / "sub", "--no-overlay", "--as-stored") == 0
    written = json.loads((output / "panoptic.json").read_text())
    assert [(image["height"], image["width"]) for image in written["images"]] == [(48, 64), (48, 64)]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_of_an_image_can_be_set(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # set back afterwards
    Image.fromarray(scene(0)).save(tmp_path / "large.png")
    picture = ["--no-overlay", tmp_path / "large.png"]
    assert predict(checkpoint, tmp_path / "out", *picture, "--max-megapixels", "0.002") == 1
    said = capsys.readouterr().err
    assert (
        "large.png: too large, the limit is 0.002 megapixels, it has 0.00307" in said and "[image-too-large: " in said
    )
    assert predict(checkpoint, tmp_path / "out", *picture, "--max-megapixels", "0.004") == 0


def test_tracked_videos_keep_ids_and_are_scored_as_videos(checkpoint, tmp_path, capsys):
    film, out = write_video(tmp_path / "film.mp4", 3), tmp_path / "out"
    assert predict(checkpoint, out, film, "--track", "--frame-maps", "--no-overlay") == 0
    lines = [json.loads(line)["segments_info"] for line in (out / "frames" / "film.jsonl").read_text().splitlines()]
    written = json.loads((out / "panoptic_frames.json").read_text())
    assert [image["file_name"] for image in written["images"]] == [f"film/00000{i}.png" for i in range(3)]
    assert [entry["segments_info"] for entry in written["annotations"]] == lines
    for entry, segments in zip(written["annotations"], lines):
        ids = decode_ids((out / "panoptic" / entry["file_name"]).read_bytes(), entry["file_name"])
        assert {segment["id"] for segment in segments} == set(np.unique(ids)) - {0}
        stuff = [segment for segment in segments if segment["category_id"] > 5]
        assert stuff and all(segment["id"] == segment["category_id"] for segment in stuff)
        assert all(segment["id"] > 10 for segment in segments if segment["category_id"] <= 5)
    pair = [str(path) for path in (out / "panoptic_frames.json", out / "panoptic")]
    flags = ["--gt-json", pair[0], "--gt-dir", pair[1], "--pred-json", pair[0], "--pred-dir", pair[1]]
    assert front_door.main(["evaluate", "--video", *flags, "--windows", "1", "3"]) == 0
    assert "1 videos, 3 frames" in (printed := capsys.readouterr().out) and "100.00" in printed

    Image.fromarray(scene(0)).save(tmp_path / "scene.png")
    assert predict(checkpoint, tmp_path / "other", tmp_path / "scene.png", "--track") == 2
    assert "--track: no video" in capsys.readouterr().err


def test_a_video_that_ends_early_is_reported_and_its_frames_are_kept(checkpoint, tmp_path, capsys):
    data = bytearray(write_video(tmp_path / "film.mp4", 12).read_bytes())
    start = data.find(b"mdat") + 4
    half = start + (data.find(b"moov") - start) // 2
    data[half : data.find(b"moov") - 4] = bytes(data.find(b"moov") - 4 - half)  # the index is whole, the frames are not
    (tmp_path / "film.mp4").write_bytes(data)
    assert predict(checkpoint, tmp_path / "out", tmp_path / "film.mp4", "--no-overlay") == 1
    assert "film.mp4: " in (err := capsys.readouterr().err) and "frames could be read" in err
    assert (tmp_path / "out/frames/film.jsonl").read_text()


def test_predictions_are_scored_against_labels_as_the_checkpoint_is(checkpoint, tmp_path, capsys):
    root = write_tiny_coco(tmp_path / "data", splits={"val": 2}, image_format="png")
    labels, out = root / "annotations" / "panoptic_val.json", tmp_path / "out"
    assert predict(checkpoint, out, "--as-stored", "--ids-of", labels, root / "val") == 0
    pair = ["--gt-json", labels, "--gt-dir", labels.with_suffix("")]
    pair += ["--pred-json", out / "panoptic.json", "--pred-dir", out / "panoptic"]
    files, direct = tmp_path / "files.json", tmp_path / "direct.json"
    assert front_door.main(["evaluate", *map(str, pair), "--output", str(files)]) == 0
    flags = ["--config.data.source=coco", f"--config.data.root={root}", "--config.data.eval_split=val"]
    assert front_door.main(["evaluate", "--checkpoint", str(checkpoint), *flags, "--output", str(direct)]) == 0
    ours, theirs = json.loads(files.read_text()), json.loads(direct.read_text())
    for part in ("All", "Things", "Stuff"):
        assert ours[part]["PQ"] == pytest.approx(theirs[part]["PQ"], abs=1e-9)

    stranger = tmp_path / "stranger.png"
    Image.fromarray(scene(0)).save(stranger)
    assert predict(checkpoint, tmp_path / "other", "--ids-of", labels, root / "val", stranger) == 2
    assert "stranger.png: not in" in capsys.readouterr().err and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to segment: name files"),
        (["--frames", "-1", "x.png"], "must not be negative"),
        (["nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_bad_flags_are_one_clear_line(argv, message, tmp_path, capsys):
    assert predict(tmp_path, tmp_path / "out", *argv) == 2
    assert message in capsys.readouterr().err
