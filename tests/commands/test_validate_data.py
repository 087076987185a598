"""`validate-data`: every planted damage is found by name, sound data pass, and counts are those of the labels."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.codec import write_id_png
from pfcn_jax.data.decode import decode_ids
from pfcn_jax.data.example import Example
from pfcn_jax.data.kinds import KINDS
from pfcn_jax.data.segments import find_runs
from pfcn_jax.data.transforms import resize
from pfcn_jax.data.validate import visible_rows
from pfcn_jax.panoptic.labels import from_id_map, quarter_taps
from pfcn_jax.panoptic.targets import mass_centers
from tests.data import layout_fixtures as layouts
from tests.data.fixtures import tiny_examples, write_tiny_coco

OWN = f"--config={pathlib.Path(__file__).parents[2] / 'configs' / 'own_data.py'}"
IMAGE, LABELS = "train/000000000002.png", "annotations/panoptic_train/000000000002.png"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> pathlib.Path:
    return write_tiny_coco(tmp_path_factory.mktemp("sound"), splits={"train": 4, "val": 3}, image_format="png")


@pytest.fixture
def root(sound: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return shutil.copytree(sound, tmp_path / "data")


def run(root: pathlib.Path, *flags: str) -> tuple[int, dict]:
    output = root / "report.json"
    status = front_door.main(["validate-data", OWN, f"--config.data.root={root}", "--output", str(output), *flags])
    return status, json.loads(output.read_text())


def edit(root: pathlib.Path, change: Callable[[dict], object], split: str = "train") -> None:
    path = root / f"annotations/panoptic_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def segments(content: dict, image: int = 1) -> list[dict]:
    return content["annotations"][image]["segments_info"]


def cut(root: pathlib.Path, name: str) -> None:
    (root / name).write_bytes((root / name).read_bytes()[:-200])


def repaint(root: pathlib.Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    write_id_png(root / LABELS, change(decode_ids((root / LABELS).read_bytes(), "a.png")))


def erase_first(ids: np.ndarray) -> np.ndarray:
    return np.where(ids == 1 + 256 + 65536, 0, ids)  # the id that `write_coco_folder` gives the first row


DAMAGE: dict[str, tuple[Callable[[pathlib.Path], object], str]] = {
    "json-missing": (lambda r: (r / "annotations/panoptic_train.json").unlink(), "the panoptic JSON of split 'train'"),
    "json-broken": (lambda r: cut(r, "annotations/panoptic_train.json"), "panoptic_train.json: not JSON"),
    "json-part-missing": (lambda r: edit(r, lambda c: c.pop("categories")), "no categories"),
    "category-invalid": (lambda r: edit(r, lambda c: c["categories"][0].pop("isthing")), "no isthing"),
    "entry-incomplete": (lambda r: edit(r, lambda c: c["images"][1].pop("height")), "images[1] has no height"),
    "image-repeated": (lambda r: edit(r, lambda c: c["images"].append(c["images"][0])), "image id 1 appears twice"),
    "annotation-without-image": (lambda r: edit(r, lambda c: c["images"].pop(1)), "annotation of image 2"),
    "image-without-annotation": (lambda r: edit(r, lambda c: c["annotations"].pop(1)), "image 2 (000000000002.png)"),
    "category-unknown": (lambda r: edit(r, lambda c: segments(c)[0].update(category_id=99)), "image 2, segment 65793"),
    "segment-id-invalid": (lambda r: edit(r, lambda c: segments(c)[0].update(id=0)), "image 2, segment 0"),
    "segment-id-repeated": (lambda r: edit(r, lambda c: segments(c).append(segments(c)[0])), "image 2, segment 65793"),
    "picture-missing": (lambda r: (r / IMAGE).unlink(), IMAGE),
    "picture-unreadable": (lambda r: cut(r, IMAGE), IMAGE),
    "picture-format": (lambda r: Image.fromarray(np.ones((128, 96), np.uint16)).save(r / IMAGE), IMAGE),
    "picture-size": (lambda r: Image.new("RGB", (96, 96)).save(r / IMAGE), IMAGE),
    "label-missing": (lambda r: (r / LABELS).unlink(), LABELS),
    "label-unreadable": (lambda r: cut(r, LABELS), LABELS),
    "label-format": (lambda r: Image.new("L", (96, 128)).save(r / LABELS), LABELS),
    "label-size": (lambda r: Image.new("RGB", (96, 96)).save(r / LABELS), LABELS),
    "id-unlisted": (lambda r: edit(r, lambda c: segments(c).pop()), LABELS),
    "id-unpainted": (lambda r: repaint(r, erase_first), "65793"),
    "area-differs": (lambda r: edit(r, lambda c: segments(c)[0].update(area=1)), "JSON 1, pixels"),
    "box-differs": (lambda r: edit(r, lambda c: segments(c)[0].update(bbox=[1, 2, 3, 4])), "JSON [1, 2, 3, 4]"),
    "no-thing": (lambda r: edit(r, lambda c: [entry.update(isthing=0) for entry in c["categories"]]), "10 classes"),
    "splits-differ": (lambda r: edit(r, lambda c: c["categories"][0].update(name="other"), "val"), "train and val"),
    "picture-in-both-splits": (lambda r: copy_image(r), "000000000001.png of train = 000000000001.png of val"),
    "picture-repeated": (lambda r: edit(r, again), "2 images have the file 000000000001.png"),
    "stuff-crowd": (lambda r: edit(r, lambda c: segments(c)[-1].update(iscrowd=1)), "image 2"),
    "stuff-repeated": (lambda r: edit(r, lambda c: c["categories"][0].update(isthing=0)), ""),
    "nothing-labelled": (lambda r: clear(r), "000000000002.png"),
    "file-unlisted": (lambda r: (r / "train/extra.png").write_bytes(b""), "extra.png"),
    "class-empty": (
        lambda r: edit(r, lambda c: c["categories"].append({"id": 77, "name": "ufo", "isthing": 1})),
        "ufo",
    ),
}


def copy_image(root: pathlib.Path) -> None:
    """The first image of val gets the pixels of the first of train (both are 96 x 128)."""
    shutil.copy(root / "train/000000000001.png", root / "val/000000000001.png")


def again(content: dict) -> None:
    """The first image once more, under another id."""
    content["images"].append({**content["images"][0], "id": 9})
    content["annotations"].append({**content["annotations"][0], "image_id": 9})


def clear(root: pathlib.Path) -> None:
    edit(root, lambda content: segments(content).clear())
    repaint(root, np.zeros_like)


def test_sound_data_pass_with_counts_of_every_class(root, capsys):
    status, report = run(root)
    assert status == 0 and report["usable"] and report["errors"] == 0
    assert {kind for kind, group in report["findings"].items() if group["severity"] == "error"} == set()
    train = report["splits"]["train"]
    examples = tiny_examples(4)
    assert (train["pictures"], train["readable"]) == (4, 4)
    assert train["segments"] == sum(len(example.class_id) for example in examples)
    ids = np.concatenate([example.class_id for example in examples])
    assert [row["segments"] for row in train["classes"]] == np.bincount(ids, minlength=10).tolist()
    pixels = [
        sum(int((e.class_id[e.segment_map[e.segment_map > 0] - 1] == c).sum()) for e in examples) for c in range(10)
    ]
    assert [row["pixels"] for row in train["classes"]] == pixels
    assert sum(row["crowds"] for row in train["classes"]) == sum(int(e.is_crowd.sum()) for e in examples) == 2
    assert train["segments_per_picture"]["max"] == max(len(example.class_id) for example in examples)
    captured = capsys.readouterr()
    assert "training would work" in captured.out and "read train" in captured.err


@pytest.mark.parametrize("kind", DAMAGE)
def test_planted_damage_is_found_by_name(root, capsys, kind):
    plant, place = DAMAGE[kind]
    plant(root)
    status, report = run(root, "--config.data.train_split=train")
    severity = KINDS[kind][0]
    assert kind in report["findings"], f"found {sorted(report['findings'])}"
    group = report["findings"][kind]
    assert group["severity"] == severity and any(place in one["message"] for one in group["examples"])
    assert status == (1 if report["errors"] else 0)
    errors = {name for name, other in report["findings"].items() if other["severity"] == "error"}
    # One cause, one error: nothing else is blamed (another class table in one split is also a difference of splits).
    assert errors - {"splits-differ"} <= {kind}
    assert (kind in errors) == (severity == "error")
    assert f"{severity} {kind}: " in capsys.readouterr().out


def test_a_training_split_that_is_not_there(root):
    (root / "annotations/panoptic_train.json").unlink()
    status, report = run(root)
    assert status == 1 and "no split starts with 'train' (there are val)" in json.dumps(report["findings"]["no-split"])
    assert report["splits"]["val"]["readable"] == 3  # what is there is read nevertheless


def test_all_damage_at_once_is_all_found(root):
    for kind, plant in {
        "entry-incomplete": lambda r: edit(r, lambda c: segments(c, 3).append({"id": 5})),
        "category-unknown": lambda r: edit(r, lambda c: segments(c, 3)[0].update(category_id=99)),
        "picture-unreadable": lambda r: cut(r, "train/000000000001.png"),
        "label-missing": lambda r: (r / LABELS).unlink(),
        "area-differs": lambda r: edit(r, lambda c: segments(c, 2)[0].update(area=1)),
        "image-repeated": lambda r: edit(r, lambda c: c["images"].append(c["images"][0]), "val"),
    }.items():
        plant(root)
        assert kind in KINDS
    status, report = run(root)
    assert status == 1 and report["errors"] == 5
    assert set(report["findings"]) >= {
        "entry-incomplete", "category-unknown", "picture-unreadable", "label-missing", "area-differs", "image-repeated",
    }  # fmt: skip


def test_values_of_the_wrong_kind_are_findings(root):
    edit(root, lambda c: segments(c)[0].update(area=None, bbox=[1, 2]))
    edit(root, lambda c: segments(c)[1].update(id="5"))
    status, report = run(root)
    assert status == 1 and "id is '5' (text)" in report["findings"]["value-invalid"]["examples"][0]["message"]


def test_settings_that_do_not_fit_the_data(root):
    flags = ["--config.data.canvases=((96, 128),)", "--config.data.max_segments=3", "--config.targets.max_positives=2",
             "--config.inference.max_things=1"]  # fmt: skip
    status, report = run(root, *flags)
    assert status == 1
    assert set(report["findings"]) >= {"no-canvas", "too-many-segments", "too-many-positives", "too-many-instances"}
    status, report = run(root, "--config.data.short_sides=(8,)")
    assert status == 0 and report["splits"]["train"]["vanishing"] > 0 and "segment-vanishes" in report["findings"]
    assert run(root, "--config.data.short_sides=(8,)", "--strict")[0] == 1


def test_damage_in_another_layout(tmp_path):
    layouts.write_cityscapes(tmp_path, count=3)
    layouts.write_cityscapes(tmp_path, split="val", count=3)
    labels = sorted((tmp_path / "gtFine/train").rglob("*_instanceIds.png"))
    labels[1].unlink()
    flags = ["--config.data.source=cityscapes", "--splits", "train"]
    status, report = run(tmp_path, *flags)
    assert status == 1 and report["findings"]["label-missing"]["count"] == 1
    assert labels[1].name in report["findings"]["label-missing"]["examples"][0]["message"]
    layouts.write_cityscapes(tmp_path, count=3)
    status, report = run(tmp_path, "--config.data.source=cityscapes")
    assert status == 0 and report["findings"]["picture-in-both-splits"]["count"] == 3  # the same seeds


@pytest.mark.parametrize("size", [(96, 128), (128, 96), (31, 47), (63, 65), (9, 10)])
def test_what_vanishes_is_what_the_targets_do_not_see(size):
    rng = np.random.default_rng(3)
    segment_map = np.zeros((50, 70), np.int32)
    for row in range(40):
        y, x = int(rng.integers(0, 48)), int(rng.integers(0, 68))
        segment_map[y : y + int(rng.integers(1, 4)), x : x + int(rng.integers(1, 4))] = row + 1
    rows = 40
    example = Example(
        np.zeros((50, 70, 3), np.uint8), find_runs(segment_map), np.zeros(rows, np.int32), np.zeros(rows, bool), 0, ""
    )
    canvas = np.zeros((128, 128), np.int32)
    canvas[: size[0], : size[1]] = resize(example, size).segment_map
    taps = quarter_taps(jnp.array(size, jnp.int32), (128, 128))
    _, visible = jax.jit(lambda ids: mass_centers(from_id_map(ids).resample(*taps), jnp.ones(rows, bool)))(canvas)
    ours = visible_rows(example, size)
    np.testing.assert_array_equal(ours, np.asarray(visible))
    assert 0 < ours.sum() < rows


@pytest.mark.parametrize(
    ("folder", "splits"), [("coco_sample", ("train2017", "val2017")), ("nuclei", ("train", "val"))]
)
def test_real_data_pass(image_data_dir, tmp_path, folder, splits):
    output = tmp_path / "report.json"
    flags = [OWN, f"--config.data.root={image_data_dir / folder}", "--output", str(output)]
    assert front_door.main(["validate-data", *flags]) == 0
    report = json.loads(output.read_text())
    assert report["errors"] == 0 and tuple(report["splits"]) == splits
    if folder == "coco_sample":
        assert [report["splits"][split]["segments"] for split in splits] == [1111, 526]
    else:
        assert report["splits"]["val"]["instances_per_picture"]["max"] == 272
