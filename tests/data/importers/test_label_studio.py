"""Label Studio's exports give the segments that were drawn: percents, brush run lengths, PNG masks, COCO."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pfcn_jax.data.importers.brush_rle import decode_brush
from pfcn_jax.data.importers.label_studio_json import UploadIndex
from tests.data.importers.drawn import SIZE, box, corners, disk, masks_of, prepare, visible, write_image
from tests.data.importers.support import imported

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder
WIDTHS = (3, 4, 8, 16)
# What Label Studio's own Python package (2.1.2, `mask2rle`) writes for this mask.
REAL_MASK = [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0]]
REAL = [0, 0, 0, 120, 57, 27, 254, 35, 0, 143, 254, 248, 5, 191, 251, 96, 22, 255, 239, 128, 71, 255, 56, 0]


def encode(values: np.ndarray, rng: np.random.Generator) -> list[int]:
    """A stream of blocks as the format describes them: repeated values, or values one by one."""
    bits = f"{values.size:032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in WIDTHS)
    position = 0
    while position < values.size:
        rest = values[position:]
        equal = int(np.argmax(rest != rest[0])) or (rest.size if (rest == rest[0]).all() else 1)
        is_repeated = bool(equal > 1 or rng.integers(2))
        choice = int(rng.integers(4))
        length = min(equal if is_repeated else int(rng.integers(1, 9)), 2 ** WIDTHS[choice], rest.size)
        bits += f"{int(is_repeated)}{choice:02b}{length - 1:0{WIDTHS[choice]}b}"
        bits += "".join(f"{value:08b}" for value in rest[: 1 if is_repeated else length].tolist())
        position += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


def brush_rle(mask: np.ndarray, color: tuple[int, int, int] = (7, 7, 7), alpha: int = 255) -> list[int]:
    rgba = np.zeros((*mask.shape, 4), np.uint8)
    rgba[mask] = (*color, alpha)
    return encode(rgba.ravel(), np.random.default_rng(0))


@pytest.mark.parametrize("color", [(255, 255, 255), (10, 20, 30)])
def test_brush_masks_are_decoded(color):
    for mask in (disk(20, 30, 9), np.zeros(SIZE, bool), np.ones(SIZE, bool)):
        np.testing.assert_array_equal(decode_brush(brush_rle(mask, color), SIZE), mask)


def test_a_brush_mask_of_the_tool_itself():
    np.testing.assert_array_equal(decode_brush(REAL, (5, 6)), np.array(REAL_MASK, bool))


def test_damaged_brush_masks_are_errors():
    stream = brush_rle(disk(20, 30, 9))
    for damaged, words in (
        (stream[:-4], "ends too early"),
        (stream[:3], "ends too early"),
        ([0, 0, 0, 9, *stream[4:]], "it has 9 values"),
        ([*stream[:4], 0, *stream[5:]], "1 bits instead of 8"),
    ):
        with pytest.raises(ValueError, match=words):
            decode_brush(damaged, SIZE)
    with pytest.raises(ValueError, match="more values than its header says"):
        decode_brush([0, 0, 0, 4, *REAL[4:]], (1, 1))  # its first block has 36


def test_images_are_found_by_all_kinds_of_paths(tmp_path):
    for name in ("my photo (1).png", "b/c.png", "d/c.png", "100%.png", "0123abcd-e.png", "e.png"):
        write_image(tmp_path / name)
    index = UploadIndex(tmp_path)
    for written, name in (
        ("/data/upload/1/0a1b2c3d-my_photo_1.png", "my photo (1).png"),
        ("/data/local-files/?d=some/my%20photo%20(1).png", "my photo (1).png"),
        ("/data/local-files/?d=some%5Cb%5Cc.png", "b/c.png"),
        ("images\\1/0a1b2c3d-my_photo_1.png", "my photo (1).png"),
        ("../../media/upload/d/c.png", "d/c.png"),
        ("s3://bucket/b/c.png", "b/c.png"),
        ("https://host/b/c.png?token=d/c.png", "b/c.png"),
        ("upload/1/100%.png", "100%.png"),
        ("upload/1/0123abcd-e.png", "0123abcd-e.png"),
        ("upload/1/ffffffff-e.png", "e.png"),
    ):
        assert index.find(written) == tmp_path / name, written
    assert index.find("/data/upload/1/other.png") is None and index.find("http://[") is None
    with pytest.raises(ValueError, match="may be"):
        index.find("c.png")


def percent(flat: list[float]) -> list[list[float]]:
    points = np.reshape(flat, (-1, 2)) * 100 / np.array([SIZE[1], SIZE[0]])
    return points.tolist()


def region(kind: str, label: str | None, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    labels = {kind: [label]} if label else {}
    size = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    return {"id": "r1", "type": kind, "value": value | labels, **size, **more}


def polygon(label: str, flat: list[float], **more: Any) -> dict[str, Any]:
    return region("polygonlabels", label, {"points": percent(flat), "closed": True}, **more)


def brush(label: str, rle: list[int]) -> dict[str, Any]:
    return region("brushlabels", label, {"format": "rle", "rle": rle})


def task(number: int, image: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    return {"id": number, "data": {"image": image}, "annotations": list(annotations), "predictions": []}


def write_tasks(folder: pathlib.Path, tasks: list[dict[str, Any]]) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "project-1.json").write_text(json.dumps(tasks))
    return folder


def test_json_with_polygons_and_brushes(tmp_path, capsys):
    write_image(tmp_path / "images/a b.png")
    write_image(tmp_path / "images/empty.png")
    write_image(tmp_path / "images/extra.png")
    ellipse = {"x": 75.0, "y": 75.0, "radiusX": 100 * 8 / SIZE[1], "radiusY": 100 * 8 / SIZE[0], "rotation": 30}
    results = [
        polygon("sky", corners(0, 0, 12, 64)),
        polygon("cat", corners(4, 4, 20, 30)),
        brush("dog", brush_rle(disk(14, 20, 4))),
        region("ellipselabels", "cat", ellipse),
        {"id": "x", "type": "choices", "value": {"choices": ["good"]}},
        region("polygon", None, {"points": percent(corners(40, 2, 44, 6))}, id="r9"),  # <Labels> lists it twice
        region("labels", "dog", {"points": percent(corners(40, 2, 44, 6))}, id="r9"),
    ]
    older = {"id": 1, "result": [], "updated_at": "2024-01-01T00:00:00Z"}
    newer = {"id": 2, "result": results, "updated_at": "2024-02-01T00:00:00Z"}
    cancelled = {"id": 3, "result": [], "updated_at": "2024-03-01T00:00:00Z", "was_cancelled": True}
    tasks = [
        task(1, "/data/upload/1/0a1b2c3d-a_b.png", older, newer, cancelled),
        task(2, "/data/local-files/?d=images/empty.png", older),
        task(3, "/data/upload/1/unlabelled.png"),
        task(4, "/data/upload/1/skipped.png", cancelled),
    ]
    write_tasks(tmp_path / "in", tasks)
    flags = ["--images", tmp_path / "images", "--split", "train", "--stuff", "sky"]
    assert prepare("label-studio", tmp_path / "in", tmp_path / "out", *flags) == 0
    text = capsys.readouterr().out
    for words in (
        "Label Studio's JSON",
        "objects: 5 found = 5 written",
        "1 images have no annotation",
        "1 images were skipped",
        "1 images are in no task, as",
        "1 images have several annotations",
        "1 images have an empty annotation",
    ):
        assert words in text
    found = imported(tmp_path / "out", "train")
    assert found["empty.png"] == visible([])
    round_cat = next(mask for mask in masks_of(found["a b.png"], "cat") if mask[36, 48])
    assert abs(int(round_cat.sum()) - np.pi * 64) < 12
    drawn = [("sky", box(0, 0, 12, 64)), ("cat", box(4, 4, 20, 30)), ("dog", disk(14, 20, 4))]
    assert found["a b.png"] == visible([*drawn, ("cat", round_cat), ("dog", box(40, 2, 44, 6))])


def test_regions_without_pixels_are_counted(tmp_path, capsys):
    write_image(tmp_path / "images/a.png")
    rectangle = region("rectanglelabels", "cat", {"x": 1, "y": 1, "width": 5, "height": 5, "rotation": 0})
    two = polygon("cat", corners(1, 1, 9, 9))
    two["value"]["polygonlabels"] = ["cat", "dog"]
    results = [
        polygon("cat", corners(20, 20, 30, 30)),
        rectangle,
        rectangle,
        region("keypointlabels", "cat", {"x": 1, "y": 1, "width": 0.3}),
        two,
        region("polygon", None, {"points": percent(corners(1, 1, 9, 9))}, id="r7"),
        polygon("cat", corners(1, 1, 9, 9), image_rotation=90),
        region("polygonlabels", "cat", {"points": percent([1, 1, 9, 9]), "closed": True}),
        region("polygonlabels", "cat", {"points": percent(corners(1, 1, 9, 9)), "closed": False}),
        region("polygonlabels", "cat", {"points": [["a", 1]]}),
        brush("cat", brush_rle(disk(14, 20, 4))[:-8]),
        brush("cat", ["x"]),  # type: ignore[list-item]
    ]
    write_tasks(tmp_path / "in", [task(1, "a.png", {"result": results})])
    flags = ["--images", tmp_path / "images", "--split", "train"]
    assert prepare("label-studio", tmp_path / "in", tmp_path / "out", *flags) == 2
    message = capsys.readouterr().err
    for words in (
        "11 objects cannot be used",
        "2 are rectangles",
        "1 are key points",
        "1 have several labels",
        "1 have no label",
        "1 were drawn on an image that Label Studio had rotated",
        "1 have a polygon of fewer than three points",
        "1 have a polygon that was not closed",
        "1 have coordinates that are no numbers",
        "2 have an unusable RLE",
    ):
        assert words in message
    assert prepare("label-studio", tmp_path / "in", tmp_path / "out", *flags, "--skip-bad") == 0
    assert imported(tmp_path / "out", "train")["a.png"] == visible([("cat", box(20, 20, 30, 30))])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"id": 1, "data": {}, "annotations": []}], "no image in data"),
        ([{"id": 1, "data": {"a": "x.png", "b": "y.png"}}], "several images in data (keys a, b)"),
        ([task(1, "a.png", {"result": {}})], "result is {} (an object), must be a list"),
        (
            [task(1, "a.png", {"result": [polygon("cat", corners(1, 1, 9, 9), original_width=5)]})],
            "is for an image of 48 x 5",
        ),
        (
            [task(1, "a.png", {"result": [polygon("cat", corners(1, 1, 9, 9)), "x"]})],
            "a result is 'x' (text), must be an object",
        ),
        ([task(1, "b.png", {"result": [polygon("cat", corners(1, 1, 9, 9))]})], "1 of 1 images are not below"),
        ([task(1, "a.png", {"result": [polygon("cat", corners(1, 1, 9, 9))]})] * 2, "lead to one image"),
        ([{"image": "a.png", "id": 1, "label": [], "annotation_id": 1}], "a JSON-MIN export without PNG masks"),
        ({"tasks": []}, "no export of Label Studio"),
    ],
)
def test_faults_of_the_json_are_named(tmp_path, capsys, content, words):
    write_image(tmp_path / "in/images/a.png")
    (tmp_path / "in/project.json").write_text(json.dumps(content))
    assert prepare("label-studio", tmp_path / "in", tmp_path / "out", "--split", "train") == 2
    assert words in capsys.readouterr().err


def test_png_masks_need_the_names_of_their_images(tmp_path, capsys):
    folder = tmp_path / "in"
    write_image(tmp_path / "images/a.png")
    write_image(tmp_path / "images/todo.png")
    folder.mkdir()
    for number, (label, mask) in enumerate([("big-cat", disk(20, 20, 9)), ("big-cat", disk(24, 40, 6))]):
        alpha = mask * 255 + (disk(20, 20, 10) & ~disk(20, 20, 9)) * 60  # a soft border
        Image.fromarray(alpha.astype(np.uint8)).save(
            folder / f"task-7-annotation-3-by-me@x.org-tag-{label}-{number}.png"
        )
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder / "task-7-annotation-2-by-1-tag-dog-0.png")
    flags = ["--images", tmp_path / "images", "--split", "train"]
    assert prepare("label-studio", folder, tmp_path / "out", *flags) == 2
    assert "put the JSON or JSON-MIN export beside them" in capsys.readouterr().err
    rows = [{"id": 7, "image": "/data/upload/1/0a1b2c3d-a.png", "annotation_id": 3}]
    rows += [{"id": 8, "image": "/data/upload/1/0a1b2c3d-todo.png", "annotation_id": None}]
    (folder / "result.json").write_text(json.dumps(rows))
    assert prepare("label-studio", folder, tmp_path / "out", *flags) == 0
    text = capsys.readouterr().out
    assert "PNG masks" in text and "1 images have several annotations" in text and "1 images have no annotation" in text
    drawn = [("big-cat", disk(20, 20, 9)), ("big-cat", disk(24, 40, 6))]
    assert imported(tmp_path / "out", "train")["a.png"] == visible(drawn)
    (folder / "result.json").write_text(json.dumps(rows[1:]))
    assert prepare("label-studio", folder, tmp_path / "out", *flags) == 2
    assert "task 7 is not in" in capsys.readouterr().err


def test_coco_with_backslashes_and_category_0(tmp_path, capsys):
    write_image(tmp_path / "in/images/0a1b2c3d-a.png")
    images = [{"id": 0, "file_name": "images\\1/0a1b2c3d-a.png", "height": SIZE[0], "width": SIZE[1]}]
    own = {"id": 0, "image_id": 0, "category_id": 0, "iscrowd": 0, "ignore": 0}
    annotations = [own | {"segmentation": [corners(4, 4, 20, 30)]}, own | {"id": 1, "segmentation": []}]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "in/result.json").write_text(json.dumps(content))
    flags = ["--split", "train", "--background", ""]
    assert prepare("label-studio", tmp_path / "in", tmp_path / "out", *flags) == 2
    assert "1 have an empty segmentation" in capsys.readouterr().err
    assert prepare("label-studio", tmp_path / "in", tmp_path / "out", *flags, "--skip-bad") == 0
    assert "Label Studio's COCO" in capsys.readouterr().out
    assert imported(tmp_path / "out", "train")["0a1b2c3d-a.png"] == visible([("cat", box(4, 4, 20, 30))], "")


def test_predictions_count_only_if_wanted_and_nobody_annotated(tmp_path, capsys):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "in" / name)
    guess = {"id": 1, "result": [polygon("dog", corners(2, 2, 20, 20), score=0.5)]}
    label = {"id": 2, "result": [polygon("cat", corners(4, 4, 20, 30))]}
    tasks = [task(1, "a.png", label) | {"predictions": [guess]}, task(2, "b.png") | {"predictions": [guess]}]
    write_tasks(tmp_path / "in", tasks)
    flags = ["--split", "train"]
    assert prepare("label-studio", tmp_path / "in", tmp_path / "one", *flags) == 0
    assert "1 images have only predictions (pre-annotations; --predictions takes" in capsys.readouterr().out
    assert set(imported(tmp_path / "one")) == {"a.png"}
    assert prepare("label-studio", tmp_path / "in", tmp_path / "two", *flags, "--predictions") == 0
    assert imported(tmp_path / "two") == {
        "a.png": visible([("cat", box(4, 4, 20, 30))]),
        "b.png": visible([("dog", box(2, 2, 20, 20))]),
    }
    write_tasks(tmp_path / "in", [task(1, "a.png") | {"predictions": [7]}])
    assert prepare("label-studio", tmp_path / "in", tmp_path / "out", *flags, "--predictions") == 2
    assert "predictions is [7]" in capsys.readouterr().err
